"""How a measure is taken: both sides in turn, in one run, and one JSON line with what is needed to read it later."""

import json
import os
import platform
import statistics
from collections.abc import Callable
from typing import Any

Side = Callable[[], float]


def alternate(ours: Side, theirs: Side, rounds: int) -> dict[str, Any]:
    """Runs both sides in turn `rounds` times; each returns its figure. Ratios are of pairs: ours / theirs."""
    pairs = [(ours(), theirs()) for _ in range(rounds)]
    ratios = [a / b for a, b in pairs]
    return {
        "ours": statistics.median(a for a, _ in pairs),
        "theirs": statistics.median(b for _, b in pairs),
        "ratio": statistics.median(ratios),
        "ratio_min_max": [min(ratios), max(ratios)],
        "rounds": rounds,
    }


def emit(measure: str, **fields: Any) -> None:
    """One JSON line."""
    import torch

    machine = {
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "torch": torch.__version__,
        "load1": os.getloadavg()[0],
    }
    print(json.dumps({"measure": measure, **_short(fields), "machine": machine}), flush=True)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _short(v) for key, v in value.items()}
    return [_short(v) for v in value] if isinstance(value, list | tuple) else value
