"""A directory that `flwr build` and `flwr run` take for a Flower app, whose two components are this project's.

The components are imported from the installed project, on the server and on every node, so the bundle that travels
holds the config alone: as text, under the key `config` of the run config, which both components are given.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from core.errors import ConfigError

Scalar = bool | int | float | str  # what a run config may hold

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,31}")  # what `flwr build` takes for a directory
_KEY = re.compile(r"[A-Za-z0-9_-]+")

_PROJECT = """\
[project]
name = "hanse"
version = "0.1.0"
description = "A federated run of Hanse. Server and nodes need Hanse installed."
license = { file = "LICENSE" }
# Nothing more: Flower may install what stands here, and torch would be a download of gigabytes on every node.
dependencies = ["flwr>=1.41.0,<1.42"]

[tool.flwr.app]
publisher = "hanse"
fab-format-version = 1
flwr-version-target = "1.41.0"

[tool.flwr.app.components]
serverapp = "federated.server_app:app"
clientapp = "federated.client_app:app"

[tool.flwr.app.config]
"""


def write_app(directory: Path, config_yaml: str, run_config: Mapping[str, Scalar] | None = None) -> Path:
    """Writes the app and returns its directory. Only keys that are in `run_config` can be overridden at the start.

    Raises ConfigError if Flower would refuse the directory's name, or a key is not a plain word.
    """
    if not _NAME.fullmatch(directory.name):
        raise ConfigError(
            f"app directory: {directory.name!r} must be at most 32 letters, digits and hyphens, and start with a letter"
        )
    directory.mkdir(parents=True, exist_ok=True)
    values = toml(run_config or {}) + f"config = {_text_block(config_yaml)}\n"
    (directory / "pyproject.toml").write_text(_PROJECT + values, encoding="utf-8")
    (directory / "LICENSE").write_text("SPDX-License-Identifier: Apache-2.0\n", encoding="utf-8")
    return directory


def toml(values: Mapping[str, Scalar]) -> str:
    """One line `key = value` each. Raises ConfigError for a key that is not a plain word, and for `config`."""
    for key in values:
        if not _KEY.fullmatch(key) or key == "config":
            raise ConfigError(f"run config: the key {key!r} must be letters, digits, - and _, and not 'config'")
    return "".join(f"{key} = {toml_value(value)}\n" for key, value in values.items())


def toml_value(value: Scalar) -> str:
    """A value as TOML: JSON's strings and truth values are TOML's."""
    return repr(float(value)) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def _text_block(text: str) -> str:
    """A string over several lines, which a person can read and change."""
    escaped = text.replace("\\", "\\\\").replace('"""', '""\\"').replace("\r", "\\r")
    return f'"""\n{escaped.rstrip(chr(10))}\n"""'
