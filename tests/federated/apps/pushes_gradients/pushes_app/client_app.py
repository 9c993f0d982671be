"""Keeps its weights and a count of its messages in the node's state, and takes a step for each gradient."""

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    weights = kept(context) - message.content["gradient"].to_numpy_ndarrays()[0] * (1 + partition(context))
    context.state["weights"] = ArrayRecord([weights])
    context.state["count"] = ConfigRecord({"count": count(context) + 1})
    return said(message, context)


@app.query()
def tell(message: Message, context: Context) -> Message:
    return said(message, context)


def said(message: Message, context: Context) -> Message:
    metrics = MetricRecord({"messages": count(context), "weights": [float(w) for w in kept(context)]})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


def partition(context: Context) -> int:
    return int(context.node_config["partition-id"])


def count(context: Context) -> int:
    return int(context.state["count"]["count"]) if "count" in context.state else 0


def kept(context: Context) -> np.ndarray:
    return context.state["weights"].to_numpy_ndarrays()[0] if "weights" in context.state else np.zeros(2, np.float32)
