"""A plain Flower app (`bench/peers/flower_app`: digits, 100 clients) on our engine beside `flwr run`: seconds of the
whole command, for few rounds and for more. The SuperLink that `flwr run` starts is up before its time is taken."""

import contextlib
import functools
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from bench.measure import alternate, emit

ROOT = Path(__file__).resolve().parents[1]
APP = ROOT / "bench" / "peers" / "flower_app"
CLIENTS, PAIRS = 100, 3


def run() -> None:
    with tempfile.TemporaryDirectory() as folder, _flower(Path(folder)) as environment:
        out = Path(folder) / "out.json"
        for rounds in (5, 20):
            config = {"out": str(out), "num-server-rounds": rounds}
            accuracy: dict[str, list[float]] = {"ours": [], "theirs": []}
            ours = functools.partial(_ours, config, accuracy["ours"])
            theirs = functools.partial(_theirs, config, environment, accuracy["theirs"])
            theirs(), ours()
            emit(
                "a Flower app, seconds of the whole command, over flwr run",
                work=f"digits, mlp, {CLIENTS} clients, all of them in each of {rounds} rounds",
                accuracy=accuracy,
                **alternate(ours, theirs, PAIRS),
            )


def _ours(config: dict[str, Any], accuracy: list[float]) -> float:
    words = [f"run_config.{key}={json.dumps(value)}" for key, value in config.items()]
    simulate = ["federate", "simulate", "--quiet", "--app", str(APP), f"clients={CLIENTS}"]
    command = [sys.executable, "-m", "hanse", *simulate, *words]
    return _timed(command, Path(config["out"]), dict(os.environ), accuracy)


def _theirs(config: dict[str, Any], environment: dict[str, str], accuracy: list[float]) -> float:
    nodes = f"num-supernodes={CLIENTS} client-resources-num-cpus=1"
    changes = " ".join(f"{key}={json.dumps(value)}" for key, value in config.items())
    options = ["--federation-config", nodes, "--run-config", changes, "--stream"]
    return _timed(["flwr", "run", str(APP), *options], Path(config["out"]), environment, accuracy)


def _timed(command: list[str], out: Path, environment: dict[str, str], accuracy: list[float]) -> float:
    """Seconds. The app writes its accuracy into `out` when it has come to its end."""
    out.unlink(missing_ok=True)
    began = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    seconds = time.perf_counter() - began
    if done.returncode or not out.exists():
        raise RuntimeError(f"{command[:2]} ended with {done.returncode}:\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    accuracy.append(json.loads(out.read_text())["accuracy"])
    return seconds


@contextlib.contextmanager
def _flower(folder: Path) -> Iterator[dict[str, str]]:
    """An environment in which `flwr run` keeps to a folder. At the end stops the server that it starts and detaches."""
    http, control = _free_ports()
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(folder / "flwr"),
        "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": str(http),
        "FLWR_LOCAL_CONTROL_API_PORT": str(control),
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    try:
        yield environment
    finally:
        left = [process for process in psutil.process_iter() if _home(process) == environment["FLWR_HOME"]]
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.terminate()
        _, alive = psutil.wait_procs(left, timeout=15)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def _home(process: psutil.Process) -> str | None:
    try:
        return process.environ().get("FLWR_HOME")
    except psutil.Error:
        return None


def _free_ports() -> tuple[int, int]:
    with socket.socket() as first, socket.socket() as second:
        for port in (first, second):
            port.bind(("127.0.0.1", 0))
        return first.getsockname()[1], second.getsockname()[1]
