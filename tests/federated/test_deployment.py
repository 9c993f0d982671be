"""A real federation on this machine: it trains, it refuses strangers, it says why it fails, and it leaves nothing."""

import http.client
import os
import re
import socket
import ssl
import stat
import sys
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import psutil
import pytest
from flwr.common.config import parse_config_args
from flwr.proto.runtime_pb2 import AcquireTaskRequest

from core.errors import ConfigError, ResourceError, WorkerError
from federated.flower import daemon
from federated.flower import deployment as deployments
from federated.flower.app_directory import Scalar, write_app
from federated.flower.certificates import Certificates, issue, node_key
from federated.flower.daemon import Daemon
from federated.flower.deployment import Deployment, _answers, _connection, _free_ports, _node_words, deployment
from tests.federated.tiny_app import NODE_CONFIG, RUN_CONFIG, environment_with_tiny_components

GUIDE = Path(__file__).parents[2] / "deploy/flower/README.md"


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Two nodes and their server."""
    folder = tmp_path_factory.mktemp("federation")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", environment_with_tiny_components(folder)["PYTHONPATH"])
        with deployment(folder / "run", 2, NODE_CONFIG) as here:
            yield here


@pytest.fixture
def app(tmp_path: Path) -> Path:
    return write_app(tmp_path / "app", "seed: 1\n", RUN_CONFIG)


@pytest.mark.slow
def test_nothing_is_left_of_a_federation_that_is_interrupted_in_the_middle_of_a_run(
    tmp_path: Path, app: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", environment_with_tiny_components(tmp_path)["PYTHONPATH"])
    others, seen = descendants(), set[psutil.Process]()

    def interrupt(line: str) -> None:
        family = descendants() - others
        if any(is_running(process, "flwr-clientapp") for process in family):
            seen.update(family)
            raise KeyboardInterrupt

    def bring_up_and_run() -> None:
        with deployment(tmp_path / "run", 1, NODE_CONFIG) as here:
            here.run(app, {"behave": "hang"}, interrupt)

    with pytest.raises(KeyboardInterrupt):
        bring_up_and_run()
    assert [process for process in seen if process.is_running()] == []
    # SuperLink, SuperNode and log under their guards; two SuperExecs; ServerApp and ClientApp
    assert len(seen) == 2 * 3 + 2 + 2
    assert descendants() <= others


def descendants() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def is_running(process: psutil.Process, program: str) -> bool:
    try:
        return any(Path(word).name == program for word in process.cmdline())
    except psutil.NoSuchProcess:
        return False


@pytest.mark.slow
def test_two_nodes_with_keys_train_over_tls(here: Deployment, app: Path) -> None:
    lines: list[str] = []
    finished = here.run(app, {"rounds": 2}, lines.append)
    assert "CONFIG seed: 1" in lines and "WEIGHTS 3.0 3.0 3.0" in lines
    assert finished.seconds > 0 and finished.bytes_from_nodes > 4 * 24 and finished.bytes_to_nodes > 4 * 24


@pytest.mark.slow
def test_a_run_that_fails_says_why(here: Deployment, app: Path) -> None:
    with pytest.raises(WorkerError, match=r"is finished:failed: .*broken on purpose \(log: ") as error:
        here.run(app, {"rounds": 0, "behave": "fail"})
    assert "ValueError: broken on purpose" in error.value.__notes__[0]


@pytest.mark.slow
def test_an_app_that_flower_refuses_is_a_mistake_in_the_config(here: Deployment, app: Path) -> None:
    with pytest.raises(ConfigError, match="Invalid run configuration"):
        here.run(app, {"unknown": 1})
    (app / "pyproject.toml").unlink()
    with pytest.raises(ConfigError, match="Failed to load"):
        here.run(app)


@pytest.mark.slow
def test_only_a_node_whose_key_is_registered_can_join(
    here: Deployment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "GRACE_S", 60.0)  # on a machine that is busy it does not end at once
    private, public = node_key(tmp_path, "newcomer")
    ports = _free_ports(0, 2)
    keyless, stranger = (
        here.start_node("keyless", None, ports[0], {}),
        here.start_node("stranger", private, ports[1], {}),
    )
    for node, why in ((keyless, "authentication is enabled"), (stranger, "Failed to activate SuperNode")):
        here.nodes.remove(node)
        assert node.wait() != 0
        node.release()
        assert why in str(node.ended_early(ResourceError))
    assert here.online() == 2
    here.register(public)
    friend = here.start_node("friend", private, ports[2], {})
    here.wait_online(3, deadline=float("inf"))
    here.nodes.remove(friend)
    friend.release()
    assert friend.wait() == 0


@pytest.mark.slow
def test_a_stranger_who_has_the_address_and_the_certificate_can_neither_let_a_node_in_nor_start_a_run(
    here: Deployment, app: Path, tmp_path: Path
) -> None:
    refuse_a_stranger(here, app, tmp_path)
    assert here.online() == 2, "its owner is served"


@pytest.mark.slow
def test_the_deployment_of_the_guide_serves_its_owner_and_refuses_a_stranger(app: Path, tmp_path: Path) -> None:
    """With the command of the guide, to the letter but for its paths and ports."""
    (section,) = re.findall(r"## 3\. The server\n\n```bash\n(.+?)```", GUIDE.read_text(), re.DOTALL)
    port, control_port = map(str, _free_ports(0, 1))
    place = tmp_path / "srv"
    command = section.replace("/srv/hanse", str(place)).replace("--port 8000", f"--port {port}")
    command = command.replace("--control-port 8001", f"--control-port {control_port}").replace("python", sys.executable)
    owner = Deployment(place, int(port), int(control_port), issue(place / "certificates", ["fed.example.org"]))
    owner._environment["FLWR_HOME"] = str(place / "flower")
    (place / "logs").mkdir()
    owner.superlink = owner._start("superlink", ["bash", "-euc", command])
    try:
        trusted = ssl.create_default_context(cafile=owner.certificates.ca)
        owner._wait(lambda: _answers(owner.address, trusted), [owner.superlink], float("inf"), 0.1)
        (place / "flower" / "config.toml").write_text(_connection(owner.control, owner.certificates.ca))
        refuse_a_stranger(owner, app, tmp_path)
        owner.register(node_key(tmp_path, "friend")[1])
    finally:
        owner.close()


def refuse_a_stranger(here: Deployment, app: Path, place: Path) -> None:
    """Both doors: that of the nodes, and that of the owner, which other users of this machine reach."""
    _, public = node_key(place, "stranger")

    def attempt(address: str) -> None:
        port, why = int(address.rpartition(":")[2]), "Authentication failed" if address == here.control else "404"
        home = place / f"stranger-{port}"
        (home / "flwr").mkdir(parents=True)
        (home / "flwr" / "config.toml").write_text(_connection(address, here.certificates.ca))
        stranger = Deployment(home, port, port, here.certificates)
        with pytest.raises(ResourceError, match=f"flwr supernode register: .*{why}"):
            stranger.register(public)
        with pytest.raises(ConfigError, match=f"flwr run .*{why}"):
            stranger.run(app)

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(attempt, (here.address, here.control)))


@pytest.mark.slow
def test_whoever_has_no_secret_is_given_no_task_of_the_servers_and_sees_none_of_its_pages(here: Deployment) -> None:
    """A task holds the app, and the token with which its messages are written."""
    task = AcquireTaskRequest().SerializeToString()
    for address, status in ((here.address, 404), (here.control, 401)):
        assert asked(here, address, "POST", "/v1/runtime/acquire-task", task) == status
    for path in ("/docs", "/openapi.json", "/v1/control/list-runs", "/v1/fleet/../control/list-runs"):
        assert asked(here, here.address, "GET", path) == 404
    assert asked(here, here.address, "GET", "/health") == 200


def asked(here: Deployment, address: str, method: str, path: str, body: bytes = b"") -> int:
    trusted = ssl.create_default_context(cafile=here.certificates.ca)
    with closing(http.client.HTTPSConnection(address, context=trusted)) as connection:
        connection.request(method, path, body, {"content-type": "application/protobuf"})
        return connection.getresponse().status


@pytest.mark.slow
def test_only_its_owner_can_read_what_a_deployment_is_held_by(here: Deployment) -> None:
    held = ("certificates", "keys", "flwr", "logs")
    assert {stat.S_IMODE((here.directory / name).stat().st_mode) for name in held} == {0o700}
    files = [file for name in ("certificates", "keys") for file in (here.directory / name).iterdir()]
    secret = f"superexec-{here.control.rpartition(':')[2]}.key"
    files += [here.directory / "flwr" / name for name in ("config.toml", "credentials.yaml", secret)]
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}


def test_a_taken_port_is_refused_before_anything_is_started(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ResourceError, match=f"port {port} on 127.0.0.1 cannot be used"):
            deployment(tmp_path / "run", 1, port=port).__enter__()
    assert not (tmp_path / "run").exists()


def test_a_certificate_of_another_issuer_is_refused_before_anything_is_started(tmp_path: Path) -> None:
    ours, others = issue(tmp_path / "ours"), issue(tmp_path / "elsewhere")
    mixed = Certificates(others.ca, ours.cert, ours.key)
    with pytest.raises(ResourceError, match=r"does not do for the host 127\.0\.0\.1"):
        deployment(tmp_path / "run", 1, certificates=mixed).__enter__()


def test_no_nodes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nodes must be at least 1, got 0"):
        deployment(tmp_path, 0).__enter__()


def test_a_server_that_dies_at_the_start_gives_its_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "superlink"
    program.write_text("#!/bin/sh\necho 'ERROR :  Exit Code: 1'\necho 'The disk is full.'\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setattr(deployments, "SUPERLINK", [str(program)])
    with pytest.raises(ResourceError, match=r"superlink ended with status 1: Exit Code: 1 The disk is full\."):
        deployment(tmp_path / "run", 1).__enter__()


def test_a_server_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "superlink"
    program.write_text("#!/bin/sh\nexec sleep 600\n")
    program.chmod(0o755)
    monkeypatch.setattr(deployments, "SUPERLINK", [str(program)])
    others = descendants()
    with pytest.raises(ResourceError, match="superlink did not come up in time"):
        deployment(tmp_path / "run", 1, deadline_s=0.3).__enter__()
    assert descendants() <= others


@pytest.mark.parametrize("gone", ["superlink", "node-1"])
def test_a_run_is_given_up_when_its_server_or_its_last_node_is_gone(tmp_path: Path, gone: str) -> None:
    def start(name: str) -> Daemon:
        code = "raise SystemExit('no memory')" if name == gone else "import time; print('on'); time.sleep(600)"
        return Daemon(name, [sys.executable, "-uc", code], tmp_path / name, os.environ)

    here = Deployment(tmp_path, 1, 2, issue(tmp_path))
    here.superlink, follower = start("superlink"), start("run")
    here.nodes = [start("node-1")]
    try:
        with pytest.raises(WorkerError, match=f"{gone} ended with status 1: no memory"):
            here._follow(follower, print)
    finally:
        follower.kill()
        here.close()


def test_a_missing_flower_is_a_one_line_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(ResourceError, match="flwr is missing; install flwr"):
        deployment(tmp_path / "run", 1).__enter__()


def test_flower_reads_a_node_config_as_it_was_written() -> None:
    told: dict[str, Scalar] = {"partition-id": 3, "path": 'a "b" \\c=d', "rate": 0.5, "is-big": True, "empty": ""}
    assert parse_config_args([_node_words(told)]) == told


@pytest.mark.parametrize("value", ["it's", "two\nlines"])
def test_a_node_config_that_flower_would_read_otherwise_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match="node config: name must hold neither"):
        _node_words({"name": value})
