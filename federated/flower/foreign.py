"""Any Flower app, unchanged, on a pool of workers: its own strategy, mods, state and run config.

    with LocalPool() as pool:
        simulate(Path("my-app"), pool, clients=100, run_config={"num-server-rounds": 5}, report=print)

A process holds one app at a time. Its directory stands first on `sys.path`, and its modules are taken out again
afterwards, so that the next app may have modules of the same names.
"""

import contextlib
import difflib
import functools
import gc
import importlib
import logging
import sys
import time
import tomllib
import traceback
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from flwr.app import Context, RecordDict
from flwr.app.user_config import UserConfig
from flwr.clientapp import ClientApp
from flwr.common.config import flatten_dict, validate_fields_in_config
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.serverapp import ServerApp
from flwr.supercore.object_ref import load_app
from flwr.supercore.run import Run

from core.errors import ConfigError, HanseError, WorkerError
from core.pool import WorkerPool
from federated.flower.grid import PoolGrid, Report
from federated.flower.node import Nodes

PROJECT = "pyproject.toml"
OURS = ("core", "cluster", "federated", "hanse")
T = TypeVar("T")


def simulate(
    app: Path, pool: WorkerPool, clients: int, run_config: Mapping[str, Any], report: Report, seed: int = 0
) -> dict[str, Any]:
    """Runs the app in the directory `app` with `clients` nodes to its end. Returns exchanges, failed, seconds.

    run_config: overrides of the app's `[tool.flwr.app.config]`, nested or with dotted keys. seed: addresses the global
    generators of `random`, numpy and torch, for the server and for every message to a node.
    report: called from this thread only, with one record for each exchange and each new error of a client (see
    `federated.flower.traffic`), and {"event": "log", "level", "text"} for each line of Flower's logger here.

    Raises ConfigError where the app cannot be run as it is, and WorkerError where its ServerApp fails, or no client
    ever trained.
    """
    if clients < 1:
        raise ConfigError(f"clients: there must be at least one, not {clients}")
    folder = Path(app).resolve()
    project = _project(folder)
    components = project["tool"]["flwr"]["app"]["components"]
    config = _merged(project["tool"]["flwr"]["app"].get("config", {}), run_config)
    run = Run.create_empty(uuid.uuid4().int >> 65)
    place = Place(str(folder), components["clientapp"], run.run_id)
    nodes = Nodes(functools.partial(client_of, place), clients, run, config, seed)
    began = time.perf_counter()
    try:
        with _told(report):
            client_of(place)
            server = _component(folder, "serverapp", components["serverapp"], ServerApp)
        grid = PoolGrid(pool, nodes, report)
        with _told(grid.say):
            grid.serve(functools.partial(_serve, server, grid, folder))
    finally:
        _leave()
    if grid.untrained and not grid.trained:
        first = grid.untrained[0]
        said = next(iter(first["error"].splitlines()), "")
        messages = f"all {len(grid.untrained)} messages to train failed"
        failed = WorkerError(f"app: no client has trained, {messages}; client {first['client']}: {said}")
        failed.add_note(first["traceback"])
        raise failed
    return {"exchanges": grid.exchanges, "failed": grid.failed, "seconds": time.perf_counter() - began}


def _serve(server: ServerApp, grid: PoolGrid, folder: Path) -> None:
    nodes = grid.nodes
    try:
        server(grid, Context(nodes.run.run_id, SUPERLINK_NODE_ID, {}, RecordDict(), dict(nodes.run_config)))
    except HanseError:
        raise
    except (Exception, SystemExit) as error:
        if not isinstance(error, SystemExit) or error.code:
            raise _blamed(error, "the serverapp failed", folder, WorkerError) from error


def _project(folder: Path) -> dict[str, Any]:
    """The app's pyproject.toml, with all that Flower asks for."""
    if not (folder / PROJECT).is_file():
        raise ConfigError(f"app: {folder} has no {PROJECT}; give the directory of a Flower app")
    try:
        project = tomllib.loads((folder / PROJECT).read_text(encoding="utf-8"))
        _, faults, _ = validate_fields_in_config(project)
        if not faults and "serverapp" not in project["tool"]["flwr"]["app"]["components"]:
            faults = ["it has an agentapp, and no serverapp to run"]
    except ValueError as error:  # of TOML, of UTF-8, or of a value in the config
        faults = [str(error)]
    if faults:
        raise ConfigError(f"app: {folder / PROJECT}: {'; '.join(' '.join(fault.split()) for fault in faults)}")
    return project


def _merged(defaults: dict[str, Any], overrides: Mapping[str, Any]) -> UserConfig:
    config = flatten_dict(defaults)
    try:
        changes = flatten_dict(dict(overrides))
    except ValueError as error:
        raise ConfigError(f"run_config: {' '.join(str(error).split())}") from None
    for key in changes:
        if key not in config:
            near = difflib.get_close_matches(key, config, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(config) or 'none'}"
            raise ConfigError(f"run_config.{key}: the app has no such key; {hint}")
    return config | changes


# The app that this process holds


@dataclass(frozen=True)
class Place:
    """Where a ClientApp is. Another run is another place: the files may have changed since."""

    folder: str
    reference: str
    run_id: int


@dataclass(frozen=True)
class Held:
    """The app of a place, the modules of others that it had to set aside, and whose modules were there before."""

    place: Place
    client: ClientApp
    aside: dict[str, ModuleType]
    before: frozenset[str]


_held: list[Held] = []


def client_of(place: Place) -> ClientApp:
    """The ClientApp, loaded once in a process. ConfigError if it cannot be."""
    if not _held or _held[0].place != place:
        _leave()
        folder = Path(place.folder)
        before = frozenset(name.partition(".")[0] for name in sys.modules)
        aside = _make_room(folder)
        try:
            client = _component(folder, "clientapp", place.reference, ClientApp)
        except HanseError:
            _clear(folder, aside, before)
            raise
        _held.append(Held(place, client, aside, before))
        gc.freeze()  # as `PoolGrid.serve` does, for clients in other processes
    return _held[0].client


def _leave() -> None:
    while _held:
        held = _held.pop()
        _clear(Path(held.place.folder), held.aside, held.before)


def _make_room(folder: Path) -> dict[str, ModuleType]:
    """Puts the directory first on the path, and sets aside what hides its modules: in a new process nothing would."""
    aside: dict[str, ModuleType] = {}
    for name in _packages(folder):
        if name not in sys.modules or name in sys.stdlib_module_names or _is_within(sys.modules[name], folder):
            continue
        if name in OURS:
            raise ConfigError(f"app: its package '{name}' has the name of one of Hanse's; rename it")
        aside |= {loaded: sys.modules.pop(loaded) for loaded in list(sys.modules) if _top(loaded) == name}
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    return aside


def _clear(folder: Path, aside: dict[str, ModuleType], before: frozenset[str]) -> None:
    """Takes out the modules that came with the app, and puts back what was set aside."""
    for loaded, module in list(sys.modules.items()):
        name = _top(loaded)
        if (name not in before or name in aside) and _is_within(module, folder):
            del sys.modules[loaded]
    sys.modules.update(aside)
    gc.unfreeze()
    if str(folder) in sys.path:
        sys.path.remove(str(folder))


def _top(module: str) -> str:
    return module.partition(".")[0]


def _packages(folder: Path) -> list[str]:
    """The names that `import` finds in this directory before any other on the path."""
    return [entry.stem for entry in folder.iterdir() if entry.suffix == ".py" or (entry / "__init__.py").is_file()]


def _is_within(module: ModuleType, folder: Path) -> bool:
    """Whether a module is the app's own: not one of an environment that lies in the app's directory."""
    origin = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), None)
    return origin is not None and _is_own(Path(origin), folder)


def _is_own(file: Path, folder: Path) -> bool:
    return file.is_relative_to(folder) and "site-packages" not in file.relative_to(folder).parts


def _component(folder: Path, part: str, reference: str, kind: type[T]) -> T:
    what = f"{part} '{reference}'"
    try:
        found = load_app(reference, ConfigError, folder)
    except ConfigError as error:
        raise ConfigError(f"app: {what}: {str(error).splitlines()[0]}") from None
    except (Exception, SystemExit) as error:
        raise _blamed(error, f"{what} could not be imported", folder, ConfigError) from error
    if not isinstance(found, kind):
        raise ConfigError(f"app: {what} is a {type(found).__name__}, not a Flower {kind.__name__}")
    return found


def _blamed(error: BaseException, what: str, folder: Path, kind: type[HanseError]) -> HanseError:
    """One line that says what failed and where in the app, with the traceback as a note."""
    frames = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        frames.append((error.filename, error.lineno))
    own = [(Path(file).relative_to(folder), line) for file, line in frames if _is_own(Path(file), folder)]
    where = f" at {own[-1][0]}:{own[-1][1]}" if own else ""
    first = next(iter(str(error).strip().splitlines()), "")
    hint = f"; install what the app needs: pip install {folder}" if isinstance(error, ModuleNotFoundError) else ""
    blamed = kind(f"app: {what}: {type(error).__name__}: {first}{where}{hint}")
    blamed.add_note("".join(traceback.format_exception(error)))
    return blamed


class Teller(logging.Handler):
    """Makes a record of each line of a logger."""

    def __init__(self, say: Report) -> None:
        super().__init__(logging.INFO)
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        if text := record.getMessage().strip():
            self._say({"event": "log", "level": record.levelname, "text": text})


@contextlib.contextmanager
def _told(say: Report) -> Iterator[None]:
    """What Flower and the app log is said, and not printed."""
    logger = logging.getLogger("flwr")
    handlers, logger.handlers = logger.handlers, [Teller(say)]
    try:
        yield
    finally:
        logger.handlers = handlers
