"""Makes `.venv` for this clone and installs Hanse into it, editable, with the tested versions: `make setup`.

torch goes first and alone, because its default build for Linux carries CUDA (about 3 GB): without an NVIDIA driver the
CPU build is taken where the package source has one. A second run sees from a stamp that nothing changed and ends at
once; an interrupted one goes on. Standard library only, for the machine's own Python; run it from anywhere.

Environment: HANSE_GPU=1 takes the CUDA build without a driver in sight, HANSE_GPU=0 the CPU build in spite of one;
TORCH_INDEX=URL is a package index to take torch from, such as PyTorch's own index of CPU wheels.
"""

import sys

if not (3, 11) <= sys.version_info[:2] < (3, 14):  # before anything that an old Python could not run
    sys.exit(
        "hanse: Python 3.11, 3.12 or 3.13 is needed, and %s is %d.%d; name another: make setup PYTHON=python3.11"
        % (sys.executable, sys.version_info[0], sys.version_info[1])
    )

import hashlib
import importlib.util
import os
import platform
import queue
import re
import shutil
import subprocess
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / ".hanse-setup"
LOG = VENV / "setup.log"
PACKAGES = ("core", "cluster", "federated", "hanse")

# Download and disk, measured with the versions in constraints.txt.
SIZE_REST = "about 260 MB"
SIZE_CPU, SIZE_CUDA = "about 200 MB", "about 3 GB"
DISK_CPU, DISK_CUDA = 4, 12  # GB: what is installed, and as much again for the wheel that is being unpacked

QUIET = ["--disable-pip-version-check", "--no-input"]
NETWORK = ("NewConnectionError", "name resolution", "ProxyError", "ConnectTimeout", "Network is unreachable")
NO_SOURCE = (
    "no package source answered; check the network and pip's settings (.venv/bin/pip config list), then run"
    " `make setup` again, it goes on from here"
)


class SetupError(Exception):
    """One line for the user: what is wrong and how to mend it."""


def main() -> int:
    try:
        return set_up()
    except SetupError as error:
        print("hanse: %s" % error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nhanse: stopped; `make setup` goes on from here", file=sys.stderr)
        return 130


def set_up() -> int:
    """Brings `.venv` to the state that pyproject.toml and constraints.txt ask for; returns the exit code."""
    state = fingerprint()
    if PYTHON.exists() and STAMP.is_file() and STAMP.read_text() == state:
        print("hanse: .venv is up to date")
        return 0
    began = time.monotonic()
    print("hanse: setting up .venv (about 3 minutes on a fast line; Ctrl-C is safe)")
    make_venv()
    STAMP.unlink(missing_ok=True)
    LOG.write_text("")
    mend()
    install_torch()
    print("[3/3] the rest: ray, flwr, opacus, tools and hanse itself; download %s" % SIZE_REST)
    pip("install", "-c", "constraints.txt", "-e", ".[dev]")
    verify()
    compile_packages()
    STAMP.write_text(state)
    print("hanse: ready in %d s; next: make demo, or .venv/bin/hanse --help" % (time.monotonic() - began))
    return 0


def fingerprint() -> str:
    """What the environment depends on. The path is part of it: scripts and the editable install hold it."""
    digest = hashlib.sha256(str(ROOT).encode())
    for name in ("pyproject.toml", "constraints.txt"):
        try:
            digest.update((ROOT / name).read_bytes())
        except OSError as error:
            raise SetupError("cannot read %s (%s); is this a whole clone?" % (ROOT / name, error.strerror)) from None
    return digest.hexdigest()


def make_venv() -> None:
    """Step 1: an environment whose Python and pip run. A half-made or broken one is made again."""
    version = venv_version()
    if version is not None:
        if not (3, 11) <= version < (3, 14):
            raise SetupError(".venv has Python %d.%d; remove it and run again: rm -rf .venv && make setup" % version)
        print("[1/3] .venv with Python %d.%d is here: kept" % version)
        return
    if VENV.is_symlink() or (VENV.exists() and not VENV.is_dir()):
        raise SetupError(".venv is a link or a file, and no working Python is behind it; remove it and run again")
    if importlib.util.find_spec("venv") is None or importlib.util.find_spec("ensurepip") is None:
        raise SetupError(
            "%s has no venv module; install it (Debian, Ubuntu: apt install python%d.%d-venv)"
            " or name another Python: make setup PYTHON=python3.12" % (sys.executable, *sys.version_info[:2])
        )
    again = "; what was there is broken or half made, and goes" if VENV.exists() else ""
    print("[1/3] making .venv with Python %s%s; no download" % (platform.python_version(), again))
    made = subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], capture_output=True, text=True)
    if made.returncode or venv_version() is None:
        said = (made.stderr or made.stdout).strip().splitlines() or ["no reason given"]
        raise SetupError("cannot make %s: %s" % (VENV, said[-1]))


def venv_version() -> "tuple[int, int] | None":
    """Python's version in `.venv`, or None if it or its pip does not run."""
    code = "import pip, sys; print(*sys.version_info[:2])"
    try:
        found = subprocess.run([str(PYTHON), "-c", code], capture_output=True, text=True)
    except OSError:
        return None
    words = found.stdout.split()
    return (int(words[0]), int(words[1])) if found.returncode == 0 and len(words) == 2 else None


def mend() -> None:
    """Forgets packages that an interrupted pip left without a list of files: pip would call them installed."""
    for folder in VENV.glob("lib/python3*/site-packages"):
        for left in [*folder.glob("*.dist-info"), *folder.glob("~*")]:
            if left.is_dir() and not (left / "RECORD").exists():
                shutil.rmtree(left)


def install_torch() -> None:
    """Step 2: torch alone, so that nothing later can pull another build of it."""
    pin = re.search(r"^torch==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    if pin is None:
        raise SetupError("constraints.txt has no line torch==VERSION")
    wanted = pin.group(1)
    have = installed_torch()
    if have.split(".")[:2] == wanted.split(".")[:2]:
        print("[2/3] torch %s is here: kept (for another build: rm -rf .venv && make setup)" % have)
        return
    index = os.environ.get("TORCH_INDEX", "")
    is_gpu = wants_gpu()
    offered = [] if index else offered_versions()
    arguments, size, note = choose_torch(wanted, offered, is_gpu, index)
    require_disk(DISK_CUDA if size == SIZE_CUDA else DISK_CPU)
    print("[2/3] torch %s; download %s" % (note, size))
    pip("install", *arguments)


def choose_torch(
    wanted: str, offered: "list[str]", is_gpu: bool, index: str, system: str = sys.platform
) -> "tuple[list[str], str, str]":
    """Which build: (pip's arguments, the download's size, a note for the user)."""
    pinned = ["-c", "constraints.txt", "torch==" + wanted]
    if index:
        size = SIZE_CUDA if is_gpu else SIZE_CPU
        return ["--index-url", index, "torch==" + wanted], size, wanted + " from TORCH_INDEX"
    if system != "linux":
        return pinned, SIZE_CPU, wanted
    if is_gpu:
        return pinned, SIZE_CUDA, wanted + " with CUDA (HANSE_GPU=0 takes the CPU build)"
    if wanted + "+cpu" in offered:
        return ["-c", "constraints.txt", "torch==%s+cpu" % wanted], SIZE_CPU, wanted + " for CPU, no NVIDIA driver here"
    note = (
        "%s with CUDA, though no NVIDIA driver is here: your package source has no CPU build. For that one (%s) press"
        " Ctrl-C, then: TORCH_INDEX=URL make setup, with the CPU index that PyTorch's install page names"
    )
    return pinned, SIZE_CUDA, note % (wanted, SIZE_CPU)


def installed_torch() -> str:
    """The version of an importable torch in `.venv`, or an empty string."""
    code = "import torch; print(torch.__version__)"
    found = subprocess.run([str(PYTHON), "-c", code], capture_output=True, text=True)
    return found.stdout.strip() if found.returncode == 0 else ""


def offered_versions() -> "list[str]":
    """The versions of torch that pip's configured package sources offer; local ones such as 2.13.0+cpu among them."""
    command = [str(PYTHON), "-m", "pip", "index", "versions", "torch", *QUIET]
    found = subprocess.run(command, capture_output=True, text=True)
    LOG.write_text(found.stdout + found.stderr)
    if "No matching distribution" in found.stderr:
        raise SetupError(NO_SOURCE)
    listed = re.search(r"^Available versions: (.*)$", found.stdout, re.MULTILINE)
    return listed.group(1).split(", ") if listed else []


def wants_gpu() -> bool:
    """HANSE_GPU if it is set, else whether an NVIDIA driver is loaded."""
    asked = os.environ.get("HANSE_GPU", "")
    if asked:
        return asked not in ("0", "false", "no")
    return Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None


def require_disk(gigabytes: int) -> None:
    free = shutil.disk_usage(ROOT).free / 1e9
    if free < gigabytes:
        raise SetupError("%s has %.1f GB free and about %d GB are needed; make room" % (ROOT, free, gigabytes))


def verify() -> None:
    """The packages agree with each other, and torch loads."""
    if not installed_torch():
        raise SetupError("torch is installed but does not import; try: .venv/bin/python -c 'import torch'")
    agreed = subprocess.run([str(PYTHON), "-m", "pip", "check"], cwd=ROOT, capture_output=True, text=True)
    if agreed.returncode:
        first = (agreed.stdout + agreed.stderr).strip().splitlines()[0]
        raise SetupError("packages disagree: %s; start afresh: rm -rf .venv && make setup" % first)


def compile_packages() -> None:
    """What pip does for all that it copies, but not for what stays in this clone: where PYTHONDONTWRITEBYTECODE is set,
    as in many containers, each start of `hanse` would compile them anew, which takes most of a second."""
    subprocess.run([str(PYTHON), "-m", "compileall", "-q", *PACKAGES], cwd=ROOT, capture_output=True)


def pip(*arguments: str) -> None:
    """Runs pip in the clone's root, shows one moving line on a terminal, and keeps pip's own words in the log."""
    command = [str(PYTHON), "-m", "pip", *arguments, "--progress-bar", "off", *QUIET]
    began = time.monotonic()
    child = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        lines = follow(child, began)
        code = child.wait()
    except KeyboardInterrupt:
        child.terminate()
        child.wait()
        raise
    finally:
        show("")
    if code:
        raise SetupError(reason(lines))
    print("      done in %d s, %s downloaded" % (time.monotonic() - began, total_size(lines)))


def follow(child: "subprocess.Popen[str]", began: float) -> "list[str]":
    """Copies the child's output to the log and the terminal's moving line until it closes; returns its lines."""
    incoming: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        assert child.stdout is not None
        for line in child.stdout:
            incoming.put(line)
        incoming.put(None)

    threading.Thread(target=read, daemon=True).start()
    lines: list[str] = []
    doing = ""
    with LOG.open("a") as log:
        while True:
            try:
                line = incoming.get(timeout=0.5)
            except queue.Empty:
                line = ""
            if line is None:
                return lines
            if line:
                log.write(line)
                lines.append(line.strip())
            if re.match(r"\s*(Collecting|Processing|Downloading|Using cached|Building|Preparing|Installing)", line):
                doing = line.strip()
            show("      %d s  %s" % (time.monotonic() - began, doing))


def show(text: str) -> None:
    """Rewrites the terminal's last line; an empty text clears it. Nothing in a pipe."""
    if sys.stdout.isatty():
        width = shutil.get_terminal_size().columns - 1
        sys.stdout.write("\r\x1b[2K" + text[:width])
        sys.stdout.flush()


def total_size(lines: "list[str]") -> str:
    """The sum of the sizes pip named for its downloads."""
    scale = {"bytes": 1e-6, "kB": 1e-3, "MB": 1.0, "GB": 1e3}
    sizes = [re.match(r"Downloading .*\(([\d.]+) (bytes|kB|MB|GB)\)", line) for line in lines]
    return "%d MB" % round(sum(float(s.group(1)) * scale[s.group(2)] for s in sizes if s))


def reason(lines: "list[str]") -> str:
    """One line out of pip's many: what went wrong and how to go on."""
    text = "\n".join(lines)
    if "No space left on device" in text:
        return "the disk is full; make room and run `make setup` again, it goes on from here"
    if "from versions: none" in text or any(sign in text for sign in NETWORK):
        return NO_SOURCE
    errors = [line for line in lines if line.startswith("ERROR:")] or lines[-1:] or ["pip failed without a word"]
    return "%s (all of pip's words: %s)" % (errors[0][:300], LOG)


if __name__ == "__main__":
    sys.exit(main())
