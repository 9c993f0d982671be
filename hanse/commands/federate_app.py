"""`hanse federate simulate --app DIR`: any Flower app as it is. Nothing heavy is imported: the workers start first."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from core.config import parse, read_overrides
from core.errors import ConfigError
from hanse.console import Console
from hanse.federate_app import AppRun, simulate_app
from hanse.workers import place_of


def run(directory: str, words: Sequence[str], console: Console) -> int:
    """Runs any Flower app directory on our engine."""
    overrides = read_overrides(words)
    run_config = {k.removeprefix("run_config."): v for k, v in overrides.items() if k.startswith("run_config.")}
    own = {key: value for key, value in overrides.items() if not key.startswith("run_config.")}
    known = [field.name for field in dataclasses.fields(AppRun)]
    for key in own:
        if key not in known:
            raise ConfigError(
                f"{key}: a Flower app is told {', '.join(known)} and run_config.KEY; the rest is the app's own"
            )
    wanted = parse(AppRun, own)
    place = place_of(wanted.size, wanted.address) if wanted.engine == "pool" else "this process"
    console.header(f"hanse federate simulate --app  {directory}", {"clients": wanted.clients, "engine": place})
    summary = simulate_app(Path(directory), wanted, run_config, console)
    console.close()
    console.end(None, summary)
    return 0
