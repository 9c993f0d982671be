import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.common import log
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from plain_app.task import initial

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    strategy = FedAvg(fraction_train=0.5, min_available_nodes=config["min-nodes"])
    result = strategy.start(grid, ArrayRecord(initial()), num_rounds=config["num-server-rounds"])
    counts = [metrics["count"] for metrics in result.evaluate_metrics_clientapp.values()]
    np.savez(config["out"], *result.arrays.to_numpy_ndarrays(), counts=counts)
    log(20, "written with lr %s", config["lr"])
