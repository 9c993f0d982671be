"""Pushes a gradient to every node in each round, and never pulls, as apps with split models do."""

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.common import log
from flwr.serverapp import Grid, ServerApp

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    nodes = list(grid.get_node_ids())
    for number in range(1, context.run_config["num-server-rounds"] + 1):
        gradient = ArrayRecord([np.full(2, float(number), dtype=np.float32)])
        content = RecordDict({"gradient": gradient, "config": ConfigRecord({"server-round": number})})
        grid.push_messages([Message(content, node, MessageType.TRAIN) for node in nodes])
        if context.run_config["asks-between"]:
            asked = grid.send_and_receive([Message(RecordDict(), node, MessageType.QUERY) for node in nodes])
            log(20, "after %d: %s", number, [dict(reply.content["metrics"]) for reply in asked])
