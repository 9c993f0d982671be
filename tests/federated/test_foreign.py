"""Flower apps, unchanged, on our engine: the same numbers as Flower's own semantics, on any pool, and clear errors."""

import logging
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.object_ref import load_app
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from core.errors import ConfigError, WorkerError
from core.pool import LocalPool, ProcessPool, WorkerPool
from federated.flower import foreign
from federated.flower.foreign import simulate
from federated.flower.node import addressed

APPS = Path(__file__).parent / "apps"


class InProcessGrid(Grid):
    """What Flower's own grids do, without anything between: the meaning of an app."""

    def __init__(self, client: Any, nodes: int, run_config: dict[str, Any]) -> None:
        self.client, self.ids, self.run_config = client, list(range(2, nodes + 2)), run_config
        self.state = {node: RecordDict() for node in self.ids}

    def set_run(self, run: Run) -> None: ...

    @property
    def run(self) -> Run:
        return Run.create_empty(1)

    def create_message(self, *arguments: Any, **options: Any) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> list[int]:
        return self.ids

    def push_messages(self, messages: Any) -> Any:
        raise NotImplementedError

    def pull_messages(self, message_ids: Any) -> Any:
        raise NotImplementedError

    def send_and_receive(self, messages: Any, *, timeout: float | None = None) -> list[Message]:
        def one(m: Message) -> Message:
            node = m.metadata.dst_node_id
            config = {"partition-id": node - 2, "num-partitions": len(self.ids)}
            m.content = RecordDict({name: record.copy() for name, record in m.content.items()})
            return self.client(m, Context(1, node, config, self.state[node], self.run_config))

        return [one(m) for m in messages]


def reference(app: Path, clients: int, run_config: dict[str, Any]) -> None:
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    project = foreign._project(app)["tool"]["flwr"]["app"]
    config = foreign._merged(project["config"], run_config)
    try:
        client = foreign.client_of(foreign.Place(str(app), project["components"]["clientapp"], 0))
        server: ServerApp = load_app(project["components"]["serverapp"], ValueError, app)
        with addressed(0, "server"):
            server(InProcessGrid(client, clients, config), Context(1, 1, {}, RecordDict(), config))
    finally:
        foreign._leave()


def run(app: str | Path, tmp_path: Path, clients: int = 5, **config: Any) -> tuple[dict[str, Any], list[Any], Any]:
    """The arrays that the app wrote, what was reported, and the summary."""
    pool = config.pop("pool", None) or LocalPool()
    records: list[Any] = []
    summary = simulate(APPS / app, pool, clients, {"out": str(tmp_path / "out.npz"), **config}, records.append)
    return written(tmp_path), records, summary


def written(tmp_path: Path) -> dict[str, Any]:
    with np.load(tmp_path / "out.npz") as file:
        return {name: file[name].tolist() for name in file.files}


def changed(tmp_path: Path, *changes: tuple[str, str, str]) -> Path:
    """A copy of the plain app with (file, old, new) replaced."""
    folder = tmp_path / "app"
    shutil.copytree(APPS / "plain", folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name, old, new in changes:
        file = folder / name
        assert old in file.read_text()
        file.write_text(file.read_text().replace(old, new))
    return folder


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    handlers = list(logging.getLogger("flwr").handlers)
    yield
    assert not [name for name in sys.modules if name.startswith(("plain_app", "legacy_app"))]
    assert not [path for path in sys.path if Path(path, "pyproject.toml").exists() and Path(path, "plain_app").exists()]
    assert not foreign._held
    assert logging.getLogger("flwr").handlers == handlers


def test_an_app_with_mods_and_state_ends_as_under_flowers_own_semantics(tmp_path: Path) -> None:
    ours, records, summary = run("plain", tmp_path)
    reference(APPS / "plain", 5, {"out": str(tmp_path / "out.npz")})
    assert ours == written(tmp_path)
    assert len(set(ours["counts"])) == 3  # the state goes on from round to round
    assert summary["exchanges"] == 6 and summary["failed"] == 0 and summary["seconds"] > 0
    assert [r["type"] for r in records if r["event"] == "exchange"] == ["train", "evaluate"] * 3


def test_an_app_of_the_older_kind_ends_with_the_weights_worked_out_by_hand(tmp_path: Path) -> None:
    ours, records, summary = run("legacy", tmp_path)
    weights = 8.0
    for _ in range(2):  # client p moves half of the way to p and counts 1 + p
        weights = sum((1 + p) * (weights + p) / 2 for p in range(5)) / 15
    assert ours["arr_0"] == pytest.approx([weights] * 3)
    exchanges = [r for r in records if r["event"] == "exchange"]
    assert [(r["type"], r["round"]) for r in exchanges[1:]] == [
        ("train", 1),
        ("evaluate", 1),
        ("train", 2),
        ("evaluate", 2),
    ]
    assert exchanges[2]["metrics"]["accuracy"] == 0.5 and summary["failed"] == 0


@pytest.mark.parametrize("asks_between", [False, True])
def test_an_app_that_pushes_and_never_pulls_trains_every_client_in_every_round(asks_between: bool) -> None:
    records: list[Any] = []
    app, told = APPS / "pushes_gradients", {"asks-between": asks_between}
    assert simulate(app, LocalPool(), 3, told, records.append)["failed"] == 0
    exchanges = [r for r in records if r["event"] == "exchange" and r["type"] == "train"]
    moved = [-2.0, -6.0, -12.0]  # the mean of partitions 0, 1 and 2: minus the sum of 1 to the round, times 1, 2 and 3
    assert [(r["round"], r["clients"]) for r in exchanges] == [(1, 3), (2, 3), (3, 3)]
    assert [r["metrics"] for r in exchanges] == [
        {"messages": number + 1, "weights": [weight, weight]} for number, weight in enumerate(moved)
    ]
    if asks_between:
        kinds = [r["type"] for r in records if r["event"] == "exchange"]
        assert kinds == ["train", "query"] * 3, "what is pushed runs before what is sent later"
        said = [r["text"] for r in records if r["event"] == "log"]
        assert said[-1].startswith("after 3: [{'messages': 3, 'weights': [-6.0, -6.0]}, {'messages': 3,")


def test_the_run_config_can_be_changed_by_nested_and_by_dotted_keys(tmp_path: Path) -> None:
    first = run("plain", tmp_path, **{"num-server-rounds": 1, "train": {"steps": 3}})
    second = run("plain", tmp_path, **{"num-server-rounds": 1, "train.steps": 3})
    other = run("plain", tmp_path, **{"num-server-rounds": 1})
    assert first[0] == second[0] != other[0]
    assert first[2]["exchanges"] == 2
    assert {"event": "log", "level": "INFO", "text": "written with lr 0.5"} in first[1]


@pytest.mark.parametrize(
    "config, message",
    [
        ({"num-server-round": 1}, r"^run_config\.num-server-round: .*; did you mean 'num-server-rounds'\?$"),
        ({"zzz": 1}, r"^run_config\.zzz: the app has no such key; there are num-server-rounds, lr, out"),
        ({"lr": None}, r"^run_config: The value for key lr "),
    ],
)
def test_an_override_that_the_app_cannot_have_is_an_error(config: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        run("plain", tmp_path, **config)


def test_a_failing_client_is_told_once_with_its_traceback_and_the_run_goes_on(tmp_path: Path) -> None:
    _, records, summary = run("plain", tmp_path, clients=2, **{"fail-partition": 1, "lr": 1})
    failures = [r for r in records if r["event"] == "failure"]
    assert [(f["client"], f["error"]) for f in failures] == [(1, "RuntimeError: partition 1 has no data\nat all")]
    assert "plain_app/client_app.py" in failures[0]["traceback"]
    assert [r["failed"] for r in records if r["event"] == "exchange"] == [1, 0] * 3
    assert summary["failed"] == 3


def test_an_app_of_which_no_client_ever_trained_ends_with_the_first_error(tmp_path: Path) -> None:
    said = (
        r"app: no client has trained, all 6 messages to train failed; client 0: RuntimeError: partition 0 has no data\n"
    )
    with pytest.raises(WorkerError, match=said):
        run("plain", tmp_path, clients=2, **{"fail-partition": 99})


@pytest.mark.parametrize(
    "change, message",
    [
        (("pyproject.toml", "clientapp =", "client ="), 'Property "clientapp" missing in .tool.flwr.app.components'),
        (("pyproject.toml", "lr = 0.5", "lr = [0.5]"), "The value for key lr needs to be"),
        (("pyproject.toml", "lr = 0.5", "lr = "), "pyproject.toml: Invalid value"),
        (("pyproject.toml", "server_app:app", "server_app:ap"), "'plain_app.server_app:ap': Unable to load attribute"),
        (("pyproject.toml", "client_app:app", "client_app:train"), "is a function, not a Flower ClientApp$"),
        (
            ("plain_app/client_app.py", "import numpy", "import nunpy"),
            r"^app: clientapp 'plain_app.client_app:app' could not be imported: ModuleNotFoundError: "
            r"No module named 'nunpy' at plain_app.client_app.py:3; install what the app needs: pip install ",
        ),
        (
            ("plain_app/task.py", "def initial", "1 / 0\n\n\ndef initial"),
            r"ZeroDivisionError: division by zero at plain_app.task.py:6$",
        ),
        (("plain_app/task.py", "def initial()", "def initial("), r"SyntaxError: .* at plain_app.task.py:\d+$"),
    ],
)
def test_an_app_that_cannot_be_loaded_is_an_error_of_one_line(
    change: tuple[str, str, str], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=f"(?m){message}") as caught:
        run(changed(tmp_path, change), tmp_path)
    assert "\n" not in str(caught.value)


def test_a_directory_without_an_app_and_a_run_without_clients_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^app: .* has no pyproject.toml; give the directory of a Flower app$"):
        simulate(tmp_path, LocalPool(), 2, {}, print)
    with pytest.raises(ConfigError, match=r"^clients: there must be at least one, not 0$"):
        simulate(APPS / "plain", LocalPool(), 0, {}, print)


def test_a_failing_server_is_an_error_that_says_where(tmp_path: Path) -> None:
    app = changed(tmp_path, ("plain_app/server_app.py", "    log(20", '    raise OSError("disk full")\n    log(20'))
    line = (app / "plain_app/server_app.py").read_text().splitlines().index('    raise OSError("disk full")') + 1
    with pytest.raises(
        WorkerError, match=rf"(?m)^app: the serverapp failed: OSError: disk full at plain_app.server_app.py:{line}$"
    ) as caught:
        run(app, tmp_path)
    assert "Traceback" in caught.value.__notes__[0]


def test_a_server_that_exits_without_a_status_has_ended_well(tmp_path: Path) -> None:
    app = changed(tmp_path, ("plain_app/server_app.py", "    log(20", "    raise SystemExit\n    log(20"))
    assert run(app, tmp_path)[2]["exchanges"] == 6


def test_a_strategy_that_waits_for_more_nodes_is_refused_in_both_kinds_of_app(tmp_path: Path) -> None:
    for app in ("plain", "legacy"):
        with pytest.raises(ConfigError, match="strategy waits for 9 nodes and there are 5"):
            run(app, tmp_path, **{"min-nodes": 9})


def test_apps_with_modules_of_the_same_names_run_one_after_the_other(tmp_path: Path) -> None:
    first, _, _ = run("plain", tmp_path)
    app = changed(tmp_path, ("plain_app/task.py", "np.zeros", "np.ones"))
    second, _, _ = run(app, tmp_path)
    assert first != second
    assert run("plain", tmp_path)[0] == first


def test_a_module_that_has_the_name_of_one_of_the_apps_is_set_aside_and_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other, inner = type(sys)("plain_app"), type(sys)("plain_app.task")
    monkeypatch.setitem(sys.modules, "plain_app", other)
    monkeypatch.setitem(sys.modules, "plain_app.task", inner)
    run("plain", tmp_path)
    assert sys.modules["plain_app"] is other and sys.modules["plain_app.task"] is inner
    del sys.modules["plain_app"], sys.modules["plain_app.task"]


def test_an_app_with_a_package_of_one_of_our_names_is_refused(tmp_path: Path) -> None:
    app = changed(tmp_path)
    (app / "core").mkdir()
    (app / "core/__init__.py").touch()
    with pytest.raises(ConfigError, match=r"^app: its package 'core' has the name of one of Hanse's; rename it$"):
        run(app, tmp_path)


def test_libraries_of_an_environment_inside_the_apps_directory_stay_loaded(tmp_path: Path) -> None:
    app = changed(tmp_path, ("plain_app/task.py", "import numpy", "import lodged_library\nimport numpy"))
    libraries = app / ".venv/lib/site-packages"
    libraries.mkdir(parents=True)
    (libraries / "lodged_library.py").touch()
    sys.path.append(str(libraries))
    try:
        run(app, tmp_path)
        assert "lodged_library" in sys.modules
    finally:
        sys.path.remove(str(libraries))
        del sys.modules["lodged_library"]


@pytest.mark.slow
def test_workers_in_other_processes_give_the_same_numbers(tmp_path: Path) -> None:
    def all_of(pool: WorkerPool) -> list[Any]:
        plain = run("plain", tmp_path, pool=pool, draw=True, **{"fail-partition": 2})
        other = run(changed(tmp_path, ("plain_app/task.py", "np.zeros", "np.ones")), tmp_path, pool=pool)
        shutil.rmtree(tmp_path / "app")
        legacy = run("legacy", tmp_path, pool=pool)
        kept = [
            [{k: v for k, v in r.items() if k not in ("seconds", "traceback")} for r in run[1]]
            for run in (plain, other)
        ]
        return [
            plain[0],
            plain[2]["failed"],
            other[0],
            legacy[0],
            [[r for r in k if r["event"] != "log"] for k in kept],
        ]

    local = all_of(LocalPool())
    assert local[1] > 0
    with ProcessPool(2, cpus_per_worker=0.5) as pool:
        assert all_of(pool) == local
