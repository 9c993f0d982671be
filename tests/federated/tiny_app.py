"""Two components of a Flower app that do next to nothing, for tests of what is around them.

The server sends a vector to all nodes `rounds` times and goes on with the mean of the replies; each node adds its
number plus one. With `behave: fail` the server raises at the end; with `behave: hang` the nodes never answer.
"""

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
SERVER = """
import time
import numpy as np
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.serverapp import ServerApp
app = ServerApp()

def exchange(grid, messages):
    waiting, replies = set(grid.push_messages(messages)), []
    while waiting:
        replies += grid.pull_messages(waiting)
        waiting -= {reply.metadata.reply_to_message_id for reply in replies}
        print("WAITING", flush=True)
        time.sleep(0.2)
    return [reply.content["w"].to_numpy_ndarrays()[0] for reply in replies]

@app.main()
def main(grid, context):
    print("CONFIG", context.run_config["config"])
    weights, nodes = np.zeros(3), list(grid.get_node_ids())
    for _ in range(context.run_config["rounds"]):
        content = RecordDict({"w": ArrayRecord([weights])})
        weights = np.mean(exchange(grid, [Message(content, node, "train") for node in nodes]), axis=0)
    print("WEIGHTS", *weights)
    if context.run_config["behave"] == "fail":
        raise ValueError("broken on purpose")
"""
CLIENT = """
import signal
import time
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.clientapp import ClientApp
app = ClientApp()

@app.train()
def train(message, context):
    assert context.node_config["num-partitions"] in (1, 2) and context.node_config["extra"] == 'a "b" c'
    if context.run_config["behave"] == "hang":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(600)
    weights = message.content["w"].to_numpy_ndarrays()[0] + context.node_config["partition-id"] + 1
    return Message(RecordDict({"w": ArrayRecord([weights])}), reply_to=message)
"""
RUN_CONFIG = {"rounds": 1, "behave": "well"}
NODE_CONFIG = {"extra": 'a "b" c'}


def environment_with_tiny_components(folder: Path) -> dict[str, str]:
    """An environment in which processes find the two in the place of this project's own, and all else where it is."""
    package = folder / "installed" / "federated"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(f"__path__.append({str(ROOT / 'federated')!r})\n")
    (package / "server_app.py").write_text(SERVER)
    (package / "client_app.py").write_text(CLIENT)
    return os.environ | {"PYTHONPATH": f"{package.parent}{os.pathsep}{ROOT}"}
