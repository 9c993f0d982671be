"""Hostile values in every key of every kind of config end as one line with exit code 2, 3 or 4, and take no memory."""

import io
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from core.config import apply, parse, read, read_overrides
from core.ensemble.voices import MonteCarlo
from core.errors import ConfigError, HanseError
from core.recipe import TrainRun
from federated.federation import Federation
from federated.run import FederateRun
from federated.trees.config import Plan
from federated.trees.run import TreesRun
from hanse.commands import train as command
from hanse.console import PlainConsole
from hanse.federate import parse_federate
from hanse.federate_app import AppRun
from hanse.federate_statistics import Wanted
from hanse.federate_trees import parse_trees
from hanse.launch import parse_train
from hanse.writer import Writing
from tests.fuzz.hostile import SWEEP, VALUES, Key, draws, ends_well, keys_of


@pytest.fixture(autouse=True)
def _paths_lead_to_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")


TABLE = {"data": {"kind": "table", "path": "bundled:wine"}, "model": {"kind": "mlp", "hidden": [8]}}
IMAGES = {"data": {"kind": "image", "path": "bundled:digits"}, "model": {"kind": "cnn", "channels": [2], "hidden": 4}}
TEXT = {"data": {"kind": "text", "limit_bytes": 20_000}, "model": {"kind": "recurrent", "hidden": 8}}
DEALT = ("clients", "cohort", "partition", "devices", "attack", "evaluate", "trees")
TREES = {"data": TABLE["data"], "trees": {}}


@pytest.mark.parametrize(
    "cls, base, parser",
    [(TrainRun, TABLE, parse_train), (FederateRun, TABLE, parse_federate), (TreesRun, TREES, parse_trees)],
    ids=["train", "federate", "trees"],
)
def test_every_key_of_a_run_refuses_what_it_cannot_take(
    cls: type, base: Mapping[str, Any], parser: Callable[..., Any]
) -> None:
    refused = 0
    for key in keys_of(cls):
        for value in draws(key.name, 8):
            refused += bool(ends_well(parser, base, key.overrides(value)))
    assert refused > 500


@pytest.mark.parametrize("cls", [Writing, MonteCarlo, Wanted, AppRun])
def test_every_option_of_a_request_refuses_what_it_cannot_take(cls: type) -> None:
    base = {"prompt": "x"} if cls is Writing else {}
    for key in keys_of(cls):
        for value in VALUES:
            ends_well(lambda overrides: parse(cls, apply(base, overrides)), key.overrides(value))


@pytest.mark.parametrize("base", [TABLE, IMAGES, TEXT], ids=["table", "image", "text"])
def test_a_dry_run_ends_well_whatever_stands_in_data_and_model(
    base: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = {"data.kind": base["data"]["kind"], "model.kind": base["model"]["kind"]}

    def estimate(key: Key, value: Any) -> None:
        overrides = key.overrides(value)
        monkeypatch.setattr(command.launch, "parse_train", lambda file, words: parse_train(base, overrides))
        command.dry_run("any.yaml", [], PlainConsole(out=io.StringIO()))

    for key in keys_of(TrainRun):
        section = key.name.partition(".")[0]
        if section in ("data", "model", "train") and key.kinds.items() <= kinds.items():
            for value in draws(key.name + base["data"]["kind"], 2):
                ends_well(estimate, key, value)


def test_a_federation_and_trees_are_dealt_out_or_refused() -> None:
    def federation(overrides: Mapping[str, Any]) -> None:
        made = Federation.of(parse_federate(TABLE, overrides))
        assert made.setting and made.schedule

    def trees(overrides: Mapping[str, Any]) -> None:
        run = parse_trees(TREES, overrides)
        partition, data = run.deal()
        Plan.of(run.trees, data.spec, len(run.clients_of(partition, data)))

    for cls, work in ((FederateRun, federation), (TreesRun, trees)):
        for key in keys_of(cls):
            if key.name.partition(".")[0] in (
                "clients",
                "cohort",
                "partition",
                "devices",
                "attack",
                "evaluate",
                "trees",
            ):
                for value in draws(key.name, 2):
                    ends_well(work, key.overrides(value))


# --- files ---------------------------------------------------------------------------------------------------------

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)
FILES = {
    "an alias bomb": BOMB,
    "a list in itself": "data: &a [*a]\n",
    "a mapping in itself": "data: &a {kind: *a}\n",
    "nested lists": "data: " + "[" * 5000,
    "nested mappings": "data: " + "{a: " * 3000,
    "indented mappings": "".join(f"{' ' * i}a:\n" for i in range(400)),
    "an object": "data: !!python/object/apply:os.system [echo]\n",
    "a tag of one's own": "data: !mine {kind: table}\n",
    "a date": "data: !!timestamp 2001-01-01\n",
    "a set": "data: !!set {a, b}\n",
    "pairs": "data: !!pairs [a: 1]\n",
    "bytes": "data: !!binary aGFsbG8=\n",
    "a tagged text as number": "seed: !!int many\n",
    "a tagged text as truth": "resume: !!bool maybe\n",
    "a tagged number": "train: {steps: !!float much}\n",
    "a mapping tagged as text": "name: !!str {a: 1}\n",
    "a list as key": "? [a, b]\n: 1\n",
    "a merge": "a: &a {kind: mlp}\nmodel: {<<: *a}\n",
    "a huge integer": f"seed: {'9' * 5000}\n",
    "infinity": "optimizer: {lr: .inf}\n",
    "not a number": "optimizer: {lr: .nan}\n",
    "a kind that is a list": "model: {kind: [mlp]}\n",
    "two documents": "a: 1\n---\nb: 2\n",
    "an anchor that is not there": "a: *b\n",
    "a word": "word\n",
    "a million values": "a: &a [" + "1," * 20_000 + "]\nb: [" + "*a, " * 50 + "]\n",
    "too many bytes": "a: " + "x" * (2 << 20) + "\n",
}


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(FILES[name])
    said = ends_well(parse_train, tmp_path / "c.yaml", {})
    assert said
    if name in ("an alias bomb", "a list in itself", "a mapping in itself", "a million values"):
        assert "more than" in said and "c.yaml:" in said


@pytest.mark.parametrize("content", [b"\xff\xfe", b"\x00" * 100, b"a: \x07\n", b"\x80abc", "a: b".encode("utf-16")])
def test_bytes_that_are_no_text_are_refused_by_name(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(content)
    assert "c.yaml" in ends_well(parse_train, tmp_path / "c.yaml", {})


@pytest.mark.parametrize("name", ["", ".", "x" * 300, "a\0b", "/dev/zero", "no/such/c.yaml", "~nobody/c.yaml"])
def test_a_path_that_holds_no_config_is_refused(name: str) -> None:
    with pytest.raises(ConfigError):
        read(name)


@pytest.mark.parametrize(
    "value", ["*x", "&x [*x]", "[" * 5000, "!!python/name:os.system", "9" * 5000, "{a: 1", "%", "\udcff"]
)
def test_a_hostile_word_is_refused(value: str) -> None:
    assert ends_well(lambda: parse_train(TABLE, read_overrides([f"seed={value}"])))


def test_a_sample_of_random_configs_ends_well(tmp_path: Path) -> None:
    """Several keys at once: what one of them lets through reaches the checks of the next."""
    keys = list(keys_of(TrainRun))
    for seed in range(150 * SWEEP):
        chosen = draws(f"values {seed}", 4)
        picked = [keys[(seed * 37 + i * 101) % len(keys)] for i in range(4)]
        overrides = {n: v for key, value in zip(picked, chosen, strict=False) for n, v in key.overrides(value).items()}
        ends_well(parse_train, TABLE, overrides)


# --- memory --------------------------------------------------------------------------------------------------------

CHILD = """
import resource, sys
from core.errors import HanseError
from core.recipe import TrainRun
from hanse.commands.train import dry_run
from hanse.console import PlainConsole
from hanse.launch import parse_train, train

file, out = sys.argv[1], PlainConsole(out=open("/dev/null", "w"))
dry_run(file, [], out)  # what the libraries take once
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for words in (
    ["model.hidden=[2147483647]"], ["model.hidden=[100000,1000000]"], ["model.hidden=[1152921504606846976,8]"],
    ["train.batch_size=9223372036854775807"], ["train.evaluate_batch=9223372036854775807", "model.hidden=[]"],
    ["data.split.folds=4611686018427387904"], ["model.hidden=[300000,300000]"],
):
    for start in (lambda: dry_run(file, words, out), lambda: train(parse_train(file, _mapping(words)), out)):
        try:
            start()
        except HanseError as error:
            print(error.exit_code, str(error)[:100])
print("grown", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
""".replace("_mapping(words)", "__import__('core.config').config.read_overrides([*words, 'train.steps=1'])")


def test_sizes_that_no_machine_has_are_refused_before_memory_is_taken(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("data: {path: 'bundled:wine', kind: table}\nmodel: {kind: mlp, hidden: [8]}\n")
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path / "c.yaml")], capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    *lines, grown = done.stdout.splitlines()
    assert int(grown.split()[1]) <= 256, done.stdout
    assert sum(line.startswith("4 model: ") for line in lines) >= 4, done.stdout


def test_hostile_files_take_no_memory(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.yaml" for i in range(3)]
    for path, name in zip(paths, ("an alias bomb", "a list in itself", "too many bytes"), strict=True):
        path.write_text(FILES[name])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for path in [*paths, Path("/dev/zero")]:
        with pytest.raises(HanseError):
            parse_train(path, {})
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before <= 256 * 1024
