"""The app directory: Flower bundles it, and the config arrives as it was written."""

import subprocess
import sysconfig
import tomllib
from pathlib import Path

import pytest
import tomli  # what Flower reads it with

from core.errors import ConfigError
from federated.flower.app_directory import Scalar, toml, write_app
from tests.federated.tiny_app import environment_with_tiny_components

CONFIG = """\
model: {kind: mlp, hidden: [8, 8]}
name: "a \\"quoted\\" path \\\\ with \\t and \\"\\"\\""
text: '\"\"\"\"\"\"'
emoji: 🌊
"""


def run_config(app: Path) -> dict[str, Scalar]:
    text = (app / "pyproject.toml").read_text(encoding="utf-8")
    parsed = tomllib.loads(text)
    assert tomli.loads(text) == parsed
    config: dict[str, Scalar] = parsed["tool"]["flwr"]["app"]["config"]
    return config


def test_the_config_arrives_as_it_was_written(tmp_path: Path) -> None:
    values = {
        "rounds": 3,
        "lr": 0.1,
        "tiny": 1e-30,
        "whole": 2.0,
        "fast": True,
        "name": 'a "b"\n\\ 🌊',
        "log-level": "x",
    }
    assert run_config(write_app(tmp_path / "app", CONFIG, values)) == values | {"config": CONFIG}


def test_whole_numbers_stay_floats(tmp_path: Path) -> None:
    assert isinstance(run_config(write_app(tmp_path / "app", CONFIG, {"lr": 2.0}))["lr"], float)


@pytest.mark.parametrize("key", ["a.b", "a b", "", "config"])
def test_a_key_that_flower_would_read_otherwise_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match="run config: the key"):
        toml({key: 1})


@pytest.mark.parametrize("name", ["my_app", "1app", "a" * 33])
def test_a_directory_that_flower_would_not_build_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="app directory"):
        write_app(tmp_path / name, CONFIG)


def test_flower_builds_it_with_components_that_are_installed(tmp_path: Path) -> None:
    app = write_app(tmp_path / "digits-app", CONFIG, {"rounds": 1})
    command = [Path(sysconfig.get_path("scripts")) / "flwr", "build", "--app", app]
    environment = environment_with_tiny_components(tmp_path)
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [file.name.startswith("hanse.hanse.0-1-0.") for file in tmp_path.glob("*.fab")] == [True]
