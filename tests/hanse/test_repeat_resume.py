"""A repeat that is stopped goes on where it was: after Ctrl-C, in the shares of a pool; and what is said of it."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from core.config import parse_run
from core.ensemble.repeat import members
from core.ensemble.train import summaries, train_share
from core.errors import ConfigError
from core.recipe import TrainRun
from core.storage.stop import StopRequest
from core.storage.store import RunDirectory, read_run
from hanse import repeat
from hanse.cli import main
from hanse.repeat import shares

ROOT = Path(__file__).resolve().parents[2]
CONFIG = """\
data: {kind: image, path: "bundled:digits"}
model: {kind: mlp, hidden: [16], dropout: 0.1}
train: {steps: 600, batch_size: 64, evaluate_every: 50, log_every: 5, patience: 9, keep: best}
"""
SHORT: dict[str, Any] = {
    "data": {"kind": "image"},
    "model": {"kind": "mlp", "hidden": [8]},
    "train": {"steps": 9, "checkpoint_every": 4},
}


def train(config: Path, folder: Path, *words: str) -> int:
    return main(["train", str(config), f"run_dir={folder}", "repeat.seeds=3", *words])


def weights(folder: Path) -> dict[str, str]:
    return {path.stem: json.loads(path.read_text())["weights_sha256"] for path in (folder / "members").glob("*.json")}


@pytest.mark.parametrize("backend", ["loop", "vmap"])
def test_a_repeat_stopped_by_ctrl_c_goes_on_to_the_weights_of_an_undisturbed_one(
    backend: str, config: Path, tmp_path: Path
) -> None:
    word = f"repeat.backend={backend}"
    assert train(config, tmp_path / "whole", word, "--quiet") == 0
    command = [sys.executable, "-m", "hanse", "train", str(config), f"run_dir={tmp_path / 'run'}", "repeat.seeds=3"]
    with subprocess.Popen(
        [*command, word, "--json"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        next(line for line in process.stdout if '"step": 50' in line)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    said = [json.loads(line) for line in out.splitlines()]
    stopping = next(record for record in said if record["event"] == "stopping")
    assert stopping["message"].startswith("finishing this step and saving it;")
    assert said[-1]["summary"]["ended"] == "stopped" and len(said[-1]["summary"]["members"]) < 3
    assert train(config, tmp_path / "run", word, "resume=true", "--quiet") == 0
    assert weights(tmp_path / "run") == weights(tmp_path / "whole")


def test_people_are_told_where_a_repeat_goes_on_and_not_the_names_of_all_its_members(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from core.population import lockstep, spacing

    monkeypatch.setattr(spacing, "SECONDS", 0.0)

    class Killed(BaseException):
        pass

    def killed(*arguments: Any) -> None:
        raise Killed

    words = ("repeat.backend=vmap", "train.checkpoint_every=20")
    with monkeypatch.context() as at_the_first_evaluation:
        at_the_first_evaluation.setattr(lockstep, "validate", killed)
        with pytest.raises(Killed):
            train(config, tmp_path / "run", *words)
    assert train(config, tmp_path / "run", *words, "resume=true") == 0
    out = capsys.readouterr().out
    assert "resumed  members 3  step 40" in out
    assert "population  members 3  backend vmap" in out and "names" not in out


def test_a_failed_repeat_whose_members_can_go_on_is_not_advised_to_be_removed(tmp_path: Path) -> None:
    _, directory = made(tmp_path / "run", seeds=2)
    with directory:
        (directory.checkpoints / "seed-0" / "step-000100").mkdir(parents=True)
        directory.finish("failed", "the disk was full")
    with pytest.raises(ConfigError, match="go on with it by resume=true"):
        RunDirectory.create(tmp_path / "run")


def test_what_a_worker_says_again_of_its_last_steps_stands_once(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = repeat._train

    def twice(run: TrainRun, directory: RunDirectory, *rest: Any) -> None:
        """As if a worker had died and another had gone on from a checkpoint."""
        plain(run, directory, *rest)
        for record in list(directory.run.metrics())[5:20]:
            directory.record(record)

    monkeypatch.setattr(repeat, "_train", twice)
    assert train(config, tmp_path / "run", "train.steps=60", "--quiet") == 0
    said = [(r["member"], r["step"], r["split"]) for r in read_run(tmp_path / "run").metrics()]
    assert len(said) == len(set(said)) > 20


# --- over a pool ---------------------------------------------------------------------------------------------------


def made(path: Path, **repeat: Any) -> tuple[TrainRun, RunDirectory]:
    run = parse_run(TrainRun, {**SHORT, "repeat": repeat})
    return run, RunDirectory.create(path)


def parts(run: TrainRun, directory: RunDirectory, workers: int) -> list[list[str]]:
    assert run.repeat is not None
    found = shares(run, directory, members(run.recipe, run.repeat), workers).values()
    return [[spec.name for spec in share.members] for share in found]


@pytest.mark.parametrize("backend", ["loop", "vmap"])
def test_every_share_of_a_pool_goes_on_where_its_worker_stopped(
    backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Soon(StopRequest):
        """Asked for in the middle of a share."""

        def __call__(self) -> bool:
            self.calls = getattr(self, "calls", 0) + 1
            return self.calls > 6

    for name in ("whole", "stopped"):
        run, directory = made(tmp_path / name, seeds=4, backend=backend)
        assert run.repeat is not None
        own = shares(run, directory, members(run.recipe, run.repeat), 2).values()
        assert [len(share.members) for share in own] == [2, 2]
        with directory:
            if name == "stopped":
                with monkeypatch.context() as before:
                    before.setattr("core.ensemble.train.StopRequest", Soon)
                    for share in own:
                        train_share(share)
                assert summaries(directory) == {}
                assert len({path.parent for path in directory.checkpoints.rglob("step-*")}) == 2, "a place for each"
            for share in own:
                train_share(share)
            assert not list(directory.checkpoints.iterdir())
    assert weights(tmp_path / "stopped") == weights(tmp_path / "whole") and len(weights(tmp_path / "whole")) == 4


def test_members_that_were_put_together_stay_so_with_any_number_of_workers(tmp_path: Path) -> None:
    run, directory = made(tmp_path / "run", seeds=6)
    with directory:
        directory.event("population", backend="vmap", reason="", names=["seed-0", "seed-1", "seed-2"])
        directory.event("population", backend="loop", reason="", names=["seed-3", "seed-4", "seed-5"])
        (directory.path / "members").mkdir()
        for name in ("seed-1", "seed-3"):
            (directory.path / "members" / f"{name}.json").write_text("{}")
        together, alone = ["seed-0", "seed-1", "seed-2"], ["seed-4", "seed-5"]
        assert parts(run, directory, 2) == [together, alone]
        assert parts(run, directory, 6) == [together, *([name] for name in alone)]
        assert parts(run, directory, 1) == [[*together, *alone]]
        for name in together:
            (directory.path / "members" / f"{name}.json").write_text("{}")
        assert parts(run, directory, 1) == [alone]
