"""One JSON line per run, with what is needed to read it later."""

import importlib.metadata
import json
import os


def emit(program, packages=(), **fields):
    def short(v):
        if isinstance(v, float):
            return float(f"{v:.6g}")
        if isinstance(v, dict):
            return {k: short(x) for k, x in v.items()}
        if isinstance(v, (list, tuple)):
            return [short(x) for x in v]
        return v

    versions = {p: importlib.metadata.version(p) for p in packages}
    line = {"program": program, **short(fields), "versions": versions, "load1": os.getloadavg()[0]}
    print(json.dumps(line), flush=True)
