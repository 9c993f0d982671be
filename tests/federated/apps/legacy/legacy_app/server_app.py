import numpy as np
from flwr.common import Context, parameters_to_ndarrays
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg


class Saving(FedAvg):
    def __init__(self, out: str, **options) -> None:
        super().__init__(**options)
        self.out = out

    def aggregate_fit(self, server_round, results, failures):
        parameters, metrics = super().aggregate_fit(
            server_round, sorted(results, key=lambda r: int(r[0].cid)), failures
        )
        np.savez(self.out, *parameters_to_ndarrays(parameters))
        return parameters, metrics


def server_fn(context: Context) -> ServerAppComponents:
    config = context.run_config
    strategy = Saving(config["out"], fraction_evaluate=1.0, min_available_clients=config["min-nodes"])
    return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=config["num-server-rounds"]))


app = ServerApp(server_fn=server_fn)
