"""Which workers a run gets, and what a Flower app's may import before they are forked."""

from pathlib import Path

import pytest
import torch

from hanse.federate_app import _modules
from hanse.workers import gpu_share, place_of


@pytest.mark.parametrize(
    "gpus, workers, share", [(0, 2, 0.0), (1, 1, 1.0), (4, 2, 1.0), (1, 3, 1 / 3), (2, 3, 0.5), (2, 5, 1 / 3)]
)
def test_gpus_are_shared_out_so_that_all_workers_fit(
    gpus: int, workers: int, share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    assert gpu_share(workers) == pytest.approx(share)


def test_a_header_says_what_the_workers_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    assert place_of(1, None) == "1 process" and place_of(2, None) == "2 processes"
    assert place_of(2, "local") == "2 Ray workers on this machine"
    assert place_of(1, "head:6379") == "1 Ray worker at head:6379"
    monkeypatch.setattr("sys.platform", "darwin")
    assert place_of(2, None) == "2 Ray workers on this machine"


def app(folder: Path, code: str) -> Path:
    (folder / "pyproject.toml").write_text('[tool.flwr.app.components]\nclientapp = "client:app"\n')
    (folder / "client.py").write_text(code)
    return folder


def test_what_an_app_s_clients_import_is_imported_before_the_fork(tmp_path: Path) -> None:
    assert _modules(app(tmp_path, "import torch\n")) == ["client", "torch"]


@pytest.mark.parametrize("library", ["jax.numpy", "tensorflow"])
def test_an_app_whose_libraries_start_threads_is_imported_by_each_worker(tmp_path: Path, library: str) -> None:
    assert _modules(app(tmp_path, f"import {library}\n")) == []


@pytest.mark.parametrize("text", ["not toml [", "[tool]\n", "[tool.flwr.app]\ncomponents = 3\n"])
def test_an_app_that_cannot_be_read_has_nothing_to_import(tmp_path: Path, text: str) -> None:
    (tmp_path / "pyproject.toml").write_text(text)
    assert _modules(tmp_path) == []
