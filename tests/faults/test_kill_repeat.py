"""`kill -9` in the middle of a repeat, then the same command again: every member ends with the bits of an undisturbed
run, whether members train in turn or together."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from core.population import spacing
from hanse.cli import main

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """\
data: {kind: image, path: "bundled:digits", augment: {noise: 0.3}}
model: {kind: mlp, hidden: [16], dropout: 0.3}
optimizer: {kind: adamw, lr: 3e-2}
train: {steps: 300, batch_size: 64, log_every: 1, evaluate_every: 10, checkpoint_every: 25, patience: 6, keep: best}
repeat: {seeds: 3}
"""


SAVING = (
    "from core.population import spacing; spacing.SECONDS = 0; from hanse.cli import main; raise SystemExit(main())"
)


def hanse(file: Path, folder: Path, *words: str) -> int:
    return main(["train", str(file), f"run_dir={folder}", "resume=true", "--json", *words])


def kill_after(lines: int, file: Path, folder: Path, *words: str) -> None:
    """The command as a process, killed when members have said so much: it is then some hundred lines ahead at most, as
    many as the pipe between them holds."""
    command = [sys.executable, "-c", SAVING, "train", str(file), f"run_dir={folder}", "resume=true", "--json", *words]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        lines -= "member" in json.loads(line)
        if not lines:
            break
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL


def ended(folder: Path) -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in (folder / "members").glob("*.json")}


def records(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def curves(folder: Path) -> list[tuple[str, int, str, float]]:
    return sorted((r["member"], r["step"], r["split"], r["loss"]) for r in records(folder, "metrics.jsonl"))


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["loop", "vmap"])
def test_every_member_of_a_repeat_killed_twice_has_the_bits_of_an_undisturbed_one(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spacing, "SECONDS", 0.0)
    file, word = tmp_path / "digits.yaml", f"repeat.backend={backend}"
    file.write_text(CONFIG)
    assert hanse(file, tmp_path / "whole", word) == 0
    whole = ended(tmp_path / "whole")
    assert {member["ended"] for member in whole.values()} == {"early"}
    assert len({member["steps"] for member in whole.values()}) > 1, "one ends before the others"
    for lines in (100, 60):
        kill_after(lines, file, tmp_path / "killed", word)
    assert len(ended(tmp_path / "killed")) < 3
    assert hanse(file, tmp_path / "killed", word) == 0
    assert ended(tmp_path / "killed") == whole
    assert curves(tmp_path / "killed") == curves(tmp_path / "whole"), "no step is missing, and none is there twice"
    assert any(e["step"] > 0 for e in records(tmp_path / "killed", "events.jsonl") if e["event"] == "resumed")
    assert not list((tmp_path / "killed" / "checkpoints").iterdir())
