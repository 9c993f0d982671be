"""A real Flower federation on this machine: a SuperLink and its SuperNodes as processes, with TLS and node keys.

    with deployment(directory, nodes=2) as here:
        finished = here.run(write_app(directory / "app", config_yaml), show=print)

Everything that Flower keeps lies in the directory, and nothing of it runs on after the block, whatever ends it. Only
who can read the directory can use it: `superlink.py` says why. Flower itself is not imported. A message takes 4 to 6 s
here, because a SuperNode asks for work every 3 s and starts a process for each piece: deploy to federate, and simulate
to experiment.
"""

import http.client
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import ConfigError, HanseError, ResourceError, WorkerError
from federated.flower.app_directory import Scalar, toml, toml_value
from federated.flower.certificates import Certificates, check, issue, node_key, private_folder, write_private
from federated.flower.daemon import NOTE_LINES, Daemon, last_error, plain

HOST = "127.0.0.1"
CONNECTION = "hanse"  # the name of the SuperLink in Flower's own configuration
SUPERLINK = (sys.executable, "-P", "-m", "federated.flower.superlink")
POLL_S = 0.1
ASK_S = 1.0  # between two questions that start a process to be asked
# Flower's switches; what the user has set stays. Its SuperExecs ask for work every second unless told otherwise.
SWITCHES = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.25",
    "PYTHONUNBUFFERED": "1",
}


@dataclass(frozen=True)
class Finished:
    """A run that ended well: its id, seconds from start to end, and bytes from and to the nodes, as Flower counts."""

    run_id: int
    seconds: float
    bytes_from_nodes: int
    bytes_to_nodes: int


class Deployment:
    """A federation that is up, as who owns its `directory` sees it. Made by `deployment`.

    Nodes reach its SuperLink at `address`; its owner's commands, at `control`.
    """

    def __init__(self, directory: Path, port: int, control_port: int, certificates: Certificates) -> None:
        self.directory, self.certificates = directory, certificates
        self.address, self.control = f"{HOST}:{port}", f"{HOST}:{control_port}"
        self.superlink: Daemon | None = None
        self.nodes: list[Daemon] = []
        self._environment = _environment(directory / "flwr")
        self._logs = directory / "logs"
        self._followed: list[Daemon] = []

    def run(
        self,
        app: Path,
        run_config: Mapping[str, Scalar] | None = None,
        show: Callable[[str], None] = lambda line: None,
    ) -> Finished:
        """Runs a Flower app to its end and hands every line of its ServerApp's log to `show`.

        `run_config` overrides keys that the app's own run config has. Raises ConfigError if Flower refuses the app,
        WorkerError with the ServerApp's error if the run fails, or if the SuperLink or all nodes are gone.
        """
        overrides = self.directory / "run-config.toml"
        overrides.write_text(toml(run_config or {}), encoding="utf-8")
        answer = self._flwr("run", str(app), CONNECTION, "--run-config", str(overrides), error=ConfigError)
        run_id = str(answer["run-id"])
        follower = self._start(f"run-{run_id}", [_program("flwr"), "log", run_id, CONNECTION, "--stream"])
        self._followed.append(follower)
        self._follow(follower, show)
        record = self._flwr("list", CONNECTION, "--run-id", run_id, error=WorkerError)["runs"][0]
        if record["status"] != "finished:completed":
            reason = record["status-details"].strip().split("\n")[0]
            error = WorkerError(f"run {run_id} is {record['status']}: {reason} (log: {follower.log})")
            error.add_note("\n".join(follower.lines()[-NOTE_LINES:]))
            raise error
        traffic = record["network-traffic"]
        return Finished(int(run_id), record["elapsed"], traffic["inbound-bytes"], traffic["outbound-bytes"])

    def online(self) -> int:
        """How many nodes the SuperLink believes to be there."""
        nodes = self._flwr("supernode", "list", CONNECTION, error=ResourceError)["nodes"]
        return sum(node["status"] == "online" for node in nodes)

    def close(self) -> None:
        """Ends everything, nodes first: they say goodbye to the SuperLink."""
        try:
            _end([*self._followed, *self.nodes])
        finally:
            _end([self.superlink] if self.superlink else [])

    def start_superlink(self, deadline: float) -> None:
        """Starts the SuperLink and waits until it answers. `deadline` is of `time.monotonic`, here and below."""
        port, control_port = (address.rpartition(":")[2] for address in (self.address, self.control))
        files = self.certificates
        tls = ["--ssl-certfile", files.cert, "--ssl-keyfile", files.key, "--ssl-ca-certfile", files.ca]
        ports = ["--host", HOST, "--port", port, "--control-port", control_port]
        self.superlink = self._start("superlink", [*SUPERLINK, *ports, *map(str, tls)])
        trusted = ssl.create_default_context(cafile=files.ca)
        self._wait(lambda: _answers(self.address, trusted), [self.superlink], deadline, POLL_S)

    def register(self, public_key: Path) -> None:
        """Lets the node with this key join."""
        self._flwr("supernode", "register", str(public_key), CONNECTION, error=ResourceError)

    def start_node(self, name: str, private_key: Path | None, port: int, node_config: Mapping[str, Scalar]) -> Daemon:
        """Starts a SuperNode whose own server listens on `port`; does not wait. Without its key it will be refused."""
        link = ["--superlink", self.address, "--root-certificates", str(self.certificates.ca)]
        own = ["--host", HOST, "--port", str(port)]
        own += ["--auth-supernode-private-key", str(private_key)] if private_key else []
        words = ["--node-config", _node_words(node_config), "--max-wait-time", "60"]
        self.nodes.append(self._start(name, [_program("flower-supernode"), *link, *own, *words]))
        return self.nodes[-1]

    def wait_online(self, count: int, deadline: float) -> None:
        """Waits until so many nodes are online, or one of those that were started has ended."""
        self._wait(lambda: self.online() >= count, self.nodes, deadline, ASK_S)

    def _start(self, name: str, command: Sequence[str]) -> Daemon:
        return Daemon(name, command, self._logs / f"{name}.log", self._environment)

    def _wait(self, is_up: Callable[[], bool], daemons: Sequence[Daemon], deadline: float, every_s: float) -> None:
        while True:
            time.sleep(every_s)  # nothing is up at once
            if is_up():
                return
            for daemon in daemons:
                if daemon.status is not None:
                    raise daemon.ended_early(ResourceError)
            if time.monotonic() > deadline:
                names = ", ".join(daemon.name for daemon in daemons)
                raise ResourceError(f"deployment: {names} did not come up in time; see the logs in {self._logs}")

    def _follow(self, follower: Daemon, show: Callable[[str], None]) -> None:
        with follower.log.open("rb") as file:
            part = b""
            while True:
                has_ended = follower.status is not None  # asked before reading, so that the last lines are not lost
                *whole, part = (part + file.read()).split(b"\n")
                for line in whole:
                    show(plain(line.decode(errors="replace")))
                if has_ended:
                    break
                self._require_alive()
                time.sleep(POLL_S)
        self._require_alive()

    def _require_alive(self) -> None:
        if self.superlink is not None and self.superlink.status is not None:
            raise self.superlink.ended_early(WorkerError)
        if self.nodes and all(node.status is not None for node in self.nodes):
            raise self.nodes[-1].ended_early(WorkerError)

    def _flwr(self, *words: str, error: type[HanseError]) -> dict[str, Any]:
        """What a command of Flower's command line answers."""
        done = subprocess.run(
            [_program("flwr"), *words, "--format", "json"],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        try:
            answer: dict[str, Any] = json.loads(done.stdout)
        except json.JSONDecodeError:
            answer = {"error-message": last_error((done.stderr or done.stdout).splitlines())}
        if not answer.get("success"):
            reason = " ".join(str(answer.get("error-message")).split())
            raise error(f"flwr {' '.join(words[:2])}: {reason}")
        return answer


@contextmanager
def deployment(
    directory: Path,
    nodes: int,
    node_config: Mapping[str, Scalar] | None = None,
    *,
    port: int = 0,
    certificates: Certificates | None = None,
    deadline_s: float = 120.0,
) -> Iterator[Deployment]:
    """Brings up a SuperLink and `nodes` SuperNodes on this machine, and ends them all with the block.

    Node i is told `partition-id=i`, `num-partitions=nodes` and what `node_config` adds. Port 0 takes any free one.
    Certificates are issued unless given; node keys are kept. Raises ResourceError if a certificate does not do, the
    port is taken, a process ends before it is up (with its last lines), or not all is up after `deadline_s`.
    """
    if nodes < 1:
        raise ConfigError(f"deployment: nodes must be at least 1, got {nodes}")
    deadline = time.monotonic() + deadline_s
    directory = directory.resolve()
    link_port, control_port, *ports = _free_ports(port, 1 + nodes)
    for folder in ("flwr", "logs"):
        private_folder(directory / folder)
    _program("flwr")
    certificates = certificates or issue(directory / "certificates")
    check(certificates, HOST)
    here = Deployment(directory, link_port, control_port, certificates)
    write_private(directory / "flwr" / "config.toml", _connection(here.control, certificates.ca).encode())
    keys = [node_key(directory / "keys", f"node-{index}") for index in range(nodes)]
    try:
        here.start_superlink(deadline)
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            list(threads.map(here.register, [public for _, public in keys]))
        for index, (private, _) in enumerate(keys):
            told = {"partition-id": index, "num-partitions": nodes} | dict(node_config or {})
            here.start_node(f"node-{index}", private, ports[index], told)
        here.wait_online(nodes, deadline)
        yield here
    finally:
        here.close()


def _environment(home: Path) -> dict[str, str]:
    """What Flower's commands are started with: they start each other by name, so the path must lead to them."""
    path = f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ.get('PATH', '')}"
    direct = f"{os.environ.get('no_proxy') or os.environ.get('NO_PROXY', '')},{HOST}"
    own = {"FLWR_HOME": str(home), "PATH": path, "no_proxy": direct, "NO_PROXY": direct}
    return SWITCHES | os.environ | own


def _program(name: str) -> str:
    program = Path(sysconfig.get_path("scripts")) / name
    if not program.is_file():
        raise ResourceError(f"deployment: {program} is missing; install flwr into this Python")
    return str(program)


def _connection(address: str, ca: Path) -> str:
    entry = f"address = {toml_value(address)}\nroot-certificates = {toml_value(str(ca))}\n"
    return f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n{entry}'


def _node_words(node_config: Mapping[str, Scalar]) -> str:
    """Flower cuts the words with an expression of its own, which knows quotes but no escapes."""
    words = []
    for key, value in node_config.items():
        text = f"'{value}'" if isinstance(value, str) else toml_value(value)
        if isinstance(value, str) and re.search(r"['\x00-\x1f\x7f]", value):
            raise ConfigError(f"node config: {key} must hold neither single quotes nor control characters")
        words.append(f"{key}={text}")
    return " ".join(words)


def _free_ports(wanted: int, more: int) -> list[int]:
    """`wanted`, or any free port for 0, and so many more; all are held while they are chosen, so that they differ."""
    sockets = []
    try:
        for port in [wanted] + [0] * more:
            sockets.append(socket.socket())
            sockets[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the servers do
            sockets[-1].bind((HOST, port))
        return [int(s.getsockname()[1]) for s in sockets]
    except OSError as error:
        raise ResourceError(
            f"deployment: port {wanted} on {HOST} cannot be used ({error.strerror}); name another, or 0"
        ) from error
    finally:
        for s in sockets:
            s.close()


def _answers(address: str, trusted: ssl.SSLContext) -> bool:
    with closing(http.client.HTTPSConnection(address, context=trusted, timeout=5)) as connection:
        try:
            connection.request("HEAD", "/health")
            return connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False


def _end(daemons: Sequence[Daemon]) -> None:
    for daemon in daemons:
        daemon.release()
    for daemon in daemons:
        daemon.wait()
