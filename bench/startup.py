"""Seconds from Enter: `hanse --help`, `hanse runs list`, and the first training number of local digits."""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time

from bench.measure import emit

ROUNDS = 9
HANSE = [sys.executable, "-m", "hanse"]


def run() -> None:
    with tempfile.TemporaryDirectory() as runs:
        environment = {**os.environ, "HANSE_RUNS": runs}
        first = [_first_number(environment) for _ in range(5)]  # these runs are what `runs list` then lists
        for words in (["--help"], ["runs", "list"]):
            seconds = [_whole(words, environment) for _ in range(ROUNDS)]
            emit("seconds of a command", command=" ".join(["hanse", *words]), seconds=statistics.median(seconds))
        emit("seconds to the first training number", work="local digits", seconds=statistics.median(first))


def _whole(words: list[str], environment: dict[str, str]) -> float:
    began = time.perf_counter()
    subprocess.run([*HANSE, *words], env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def _first_number(environment: dict[str, str]) -> float:
    command = [*HANSE, "train", "configs/train/digits.yaml", "train.steps=20", "--json"]
    began = time.perf_counter()
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if json.loads(line).get("split") == "train":
                seconds = time.perf_counter() - began
                process.communicate()
                return seconds
    raise RuntimeError("no training number was printed")
