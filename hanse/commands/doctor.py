"""`hanse doctor`: is this machine ready? One line per check, and how to fix what is not; it leaves nothing behind.

Libraries are tried in processes of their own, at the same time: one that hangs or crashes is a line in the report.
"""

import importlib.metadata
import importlib.util
import json as jsonlib
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from core.errors import ResourceError
from hanse.console import Console
from hanse.format import size

PACKAGES = ("core", "cluster", "federated", "hanse")
PROBE_TIMEOUT_S = 60
GB = 10**9
STYLES = {"ok": "", "warn": "yellow", "fail": "red"}
SET_UP = "make setup"


@dataclass(frozen=True)
class Finding:
    """What one check found. `fix` is what to type or change; empty where all is well."""

    name: str
    status: Literal["ok", "warn", "fail"]
    detail: str
    fix: str = ""

    def __str__(self) -> str:
        return f"{self.status:<5} {self.name:<14} {self.detail}" + (f"; fix: {self.fix}" if self.fix else "")


def doctor(json: bool = False, ray: bool = True) -> int:
    """Checks this machine and prints what it finds; returns 0, or 4 if something must be fixed first."""
    checks: list[Callable[[], Finding]] = [python, packages, names, torch, cores, flwr, opacus]
    checks += [ray_start] if ray else []
    checks += [ray_token, runs, shared_memory, memory]
    found: Counter[str] = Counter(ok=0, warn=0, fail=0)
    with Console.choose(json=json) as console, ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        for finding in pool.map(lambda check: check(), checks):
            found[finding.status] += 1
            console.event("check", **asdict(finding)) if json else console.say(
                str(finding), style=STYLES[finding.status]
            )
        console.end(None, found, [] if found["fail"] else ["hanse demo"])
    return ResourceError.exit_code if found["fail"] else 0


def python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    if not (3, 11) <= sys.version_info[:2] < (3, 14):
        return Finding("python", "fail", f"{version}, not 3.11 to 3.13", "rm -rf .venv && make setup PYTHON=python3.11")
    return Finding("python", "ok", f"{version}  {sys.executable}")


def packages() -> Finding:
    """Everything that is installed goes together, and Hanse's own ranges hold."""
    try:
        importlib.metadata.version("hanse")
    except importlib.metadata.PackageNotFoundError:
        return Finding("packages", "fail", "hanse itself is not installed in this environment", SET_UP)
    broken = list(disagreements())
    if not broken:
        return Finding("packages", "ok", "all versions are in the ranges that were tested")
    more = f" and {len(broken) - 1} more" if len(broken) > 1 else ""
    is_ours = any(line.startswith("hanse ") for line in broken)
    return Finding("packages", "fail" if is_ours else "warn", broken[0] + more, "rm -rf .venv && make setup")


def disagreements() -> Iterator[str]:
    """What `pip check` would say, Hanse's own first: "flwr 1.41.0 needs rich<15, and 15.1 is installed"."""
    from packaging.requirements import Requirement

    installed = {_plain(d.name): d for d in importlib.metadata.distributions()}
    for owner in sorted(installed.values(), key=lambda d: d.name != "hanse"):
        for text in owner.requires or []:
            wanted = Requirement(text)
            if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
                continue
            have = installed.get(_plain(wanted.name))
            if have is None:
                yield f"{owner.name} {owner.version} needs {wanted.name}, which is not installed"
            elif not wanted.specifier.contains(have.version, prereleases=True):
                needs = f"{wanted.name}{wanted.specifier}"
                yield f"{owner.name} {owner.version} needs {needs}, and {have.version} is installed"


def _plain(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def names() -> Finding:
    """Our packages have general names; another distribution must not stand before them on the path."""
    root = Path(__file__).resolve().parents[2]
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec and spec.origin and not Path(spec.origin).resolve().is_relative_to(root / name):
            return Finding(
                "names", "fail", f"`import {name}` finds {spec.origin}, not ours", "uninstall what it belongs to"
            )
    return Finding("names", "ok", f"core and its neighbors are those in {root}")


def torch() -> Finding:
    code = """
import torch
gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
mps = ["mps"] if torch.backends.mps.is_available() else []
answer(version=torch.__version__, devices=gpus or mps or ["cpu"])
"""
    said = probe(code)
    if "error" in said:
        return Finding("torch", "fail", said["error"], "rm -rf .venv && make setup")
    detail = f"{said['version']}  on {', '.join(said['devices'])}"
    has_driver = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None
    if has_driver and said["devices"] == ["cpu"]:
        return Finding(
            "torch", "warn", detail + ", though an NVIDIA driver is here", "rm -rf .venv && HANSE_GPU=1 make setup"
        )
    return Finding("torch", "ok", detail)


def cores() -> Finding:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    detail = f"{usable} usable, OMP_NUM_THREADS {asked or 'not set'}"
    if asked.isdigit() and int(asked) > usable:
        return Finding("cores", "warn", detail + ": threads will wait for each other", "unset OMP_NUM_THREADS")
    return Finding("cores", "ok", detail)


def flwr() -> Finding:
    return _imports("flwr")


def opacus() -> Finding:
    return _imports("opacus")


def _imports(name: str) -> Finding:
    said = probe(f"import importlib.metadata, {name}\nanswer(version=importlib.metadata.version({name!r}))")
    if "error" in said:
        return Finding(name, "fail", said["error"], SET_UP)
    return Finding(name, "ok", f"{said['version']}  imports")


def ray_start() -> Finding:
    """Ray imports, starts on this machine alone, runs one task and stops."""
    code = """
import time
from cluster.session import session
began = time.monotonic()
with session(None, 1):
    import ray
    assert ray.get(ray.remote(lambda: 6 * 7).remote(), timeout=40) == 42
answer(version=ray.__version__, seconds=time.monotonic() - began)
"""
    said = probe(code)
    if "error" in said:
        return Finding("ray", "fail", said["error"], "see README, or train without Ray: workers=0")
    return Finding("ray", "ok", f"{said['version']}  started, ran a task and stopped in {said['seconds']:.1f} s")


def ray_token() -> Finding:
    """Whoever reads the token can run code on the cluster; Ray writes it readable for everybody."""
    token = Path(os.environ.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()
    if token.exists() and token.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        return Finding("ray token", "warn", "other users of this machine can read Ray's token", f"chmod 600 {token}")
    return Finding("ray token", "ok", "only you can read it" if token.exists() else "none yet")


def runs() -> Finding:
    """Where results go: room and the right to write."""
    wanted = Path(os.environ.get("HANSE_RUNS", "runs")).expanduser()
    place = wanted.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    detail = f"{size(free)} free for {wanted}"
    fix = "make room, or name another place: HANSE_RUNS=DIR"
    if not place.is_dir() or not os.access(place, os.W_OK):
        return Finding("runs", "fail", f"{place} cannot be written to", "name another place: HANSE_RUNS=DIR")
    if free < 5 * GB:
        return Finding("runs", "warn" if free > GB // 2 else "fail", detail, fix)
    return Finding("runs", "ok", detail)


def shared_memory() -> Finding:
    """Ray's objects live there; containers often get 64 MB, and Ray then falls back to the disk."""
    place = Path("/dev/shm")
    if not place.is_dir():
        return Finding("shared memory", "ok", "not used on this system")
    total = shutil.disk_usage(place).total
    if total < 2 * GB:
        return Finding("shared memory", "warn", f"{size(total)}, little for Ray workers", "docker run --shm-size=4g")
    return Finding("shared memory", "ok", size(total))


def memory() -> Finding:
    import psutil

    now = psutil.virtual_memory()
    detail = f"{size(now.available)} of {size(now.total)} free"
    if now.available < 2 * GB:
        return Finding("memory", "warn", detail, "close other programs, or train with workers=0")
    return Finding("memory", "ok", detail)


def probe(code: str, timeout_s: float = PROBE_TIMEOUT_S, **env: str) -> dict[str, Any]:
    """Runs code in a process of its own; returns what it answered, or {"error": the last line it said}.

    The code calls `answer(key=value, ...)` once. At the time-out the process and all it started are killed.
    """
    answer = "import json, sys\ndef answer(**said): print('\\nanswer', json.dumps(said))\n"
    clean = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    child = subprocess.Popen(
        [sys.executable, "-c", answer + code],
        env=clean | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = child.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {timeout_s:.0f} s"}
    finally:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
            child.communicate()
    lines = [line for line in said.splitlines() if line.strip()]
    answers = [line for line in lines if line.startswith("answer ")]
    if child.returncode == 0 and answers:
        found: dict[str, Any] = jsonlib.loads(answers[-1].removeprefix("answer "))
        return found
    return {"error": lines[-1].strip() if lines else f"ended with status {child.returncode}"}
