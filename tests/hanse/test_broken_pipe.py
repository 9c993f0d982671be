"""`hanse train FILE | head -3`: whoever listens may go, the training stays."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """\
data: {kind: image, path: "bundled:digits"}
model: {kind: mlp, hidden: [8]}
train: {steps: 300, batch_size: 16, log_every: 1}
"""


@pytest.mark.parametrize("words", [[], ["--json"]], ids=["plain", "json"])
def test_a_training_that_nobody_listens_to_any_more_goes_on_to_its_end(words: list[str], tmp_path: Path) -> None:
    (tmp_path / "digits.yaml").write_text(CONFIG)
    command = [sys.executable, "-m", "hanse", "train", str(tmp_path / "digits.yaml"), f"run_dir={tmp_path / 'run'}"]
    with subprocess.Popen([*command, *words], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline()
        process.stdout.close()
        said = process.stderr.read().decode()
        assert process.wait(timeout=60) == 0
    assert said == ""
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 300
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "done"
