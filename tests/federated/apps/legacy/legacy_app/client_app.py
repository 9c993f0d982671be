import numpy as np
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.common import Context


class Client(NumPyClient):
    def __init__(self, partition: int) -> None:
        self.partition = partition

    def get_parameters(self, config: dict) -> list[np.ndarray]:
        return [np.full((3,), 8.0)]

    def fit(self, parameters: list[np.ndarray], config: dict):
        return [(array + self.partition) / 2 for array in parameters], 1 + self.partition, {"seen": self.partition}

    def evaluate(self, parameters: list[np.ndarray], config: dict):
        return float(np.abs(parameters[0] - self.partition).mean()), 2, {"accuracy": self.partition / 4}


def client_fn(context: Context):
    return Client(context.node_config["partition-id"]).to_client()


app = ClientApp(client_fn=client_fn)
