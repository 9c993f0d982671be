import random

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from plain_app.task import train


def counting(message: Message, context: Context, call_next) -> Message:
    """A mod: the node's own count of messages, which lives in its state."""
    count = context.state.config_records.setdefault("mod", ConfigRecord({"count": 0}))
    count["count"] = int(count["count"]) + 1
    reply = call_next(message, context)
    reply.content["metrics"]["count"] = count["count"]
    return reply


app = ClientApp(mods=[counting])


@app.train()
def train_(message: Message, context: Context) -> Message:
    partition, config = context.node_config["partition-id"], context.run_config
    if config["fail-partition"] in (partition, 99):  # 99: all of them
        context.state["spoiled"] = ConfigRecord({"it": True})
        raise RuntimeError(f"partition {partition} has no data\nat all")
    assert "spoiled" not in context.state
    arrays = message.content["arrays"].to_numpy_ndarrays(keep_input=False)
    noise = random.random() + np.random.rand() + float(torch.rand(())) if config["draw"] else 0.0
    arrays = train(arrays, partition + noise, config["lr"], config["train.steps"])
    metrics = MetricRecord({"num-examples": 1 + partition, "target": float(partition)})
    return Message(RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    arrays = message.content["arrays"].to_numpy_ndarrays()
    loss = float(np.abs(arrays[0] - context.node_config["partition-id"]).mean())
    return Message(
        RecordDict({"metrics": MetricRecord({"num-examples": 1, "loss": loss})}),
        reply_to=message,
    )
