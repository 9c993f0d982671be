"""What an app's modules import is read from their text, without running them."""

from pathlib import Path

from hanse.mentioned import mentioned


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        place = folder / (name.replace("__", "/") + ".py")
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)


def test_modules_of_others_are_found_also_behind_the_app_s_own_and_inside_functions(tmp_path: Path) -> None:
    write(
        tmp_path,
        app__client="import torch.nn as nn\nfrom app.task import train\nfrom . import more\nraise RuntimeError",
        app__task="def train():\n    from sklearn.datasets import load_digits\n",
        app__other="import never",
    )
    (tmp_path / "app" / "__init__.py").write_text("import os\n")
    (tmp_path / "app" / "more").mkdir()
    (tmp_path / "app" / "more" / "__init__.py").write_text("from .deep import thing\n")
    write(tmp_path, app__more__deep="import json\nfrom ..task import train\nfrom app.client import nn\n")
    assert set(mentioned(tmp_path, "app.client")) == {"torch.nn", "sklearn.datasets", "os", "json"}


def test_a_file_that_is_not_python_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path, client="import torch\nfrom broken import x", broken="def (")
    assert mentioned(tmp_path, "client") == ["torch"]


def test_a_module_that_is_not_the_app_s_stands_for_itself(tmp_path: Path) -> None:
    assert mentioned(tmp_path, "elsewhere.client") == ["elsewhere.client"]
