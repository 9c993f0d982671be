"""Real data that is on every machine: files inside scikit-learn's package, and text of Python's standard library.

scikit-learn itself is not imported, that takes seconds; its files are read as they lie.
"""

import gzip
import importlib.util
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from core.errors import DataError

TABLES = ("breast_cancer", "wine", "diabetes")
IMAGES = ("digits",)
TEXTS = ("english", "python")

_CELL = (
    "radius", "texture", "perimeter", "area", "smoothness", "compactness", "concavity", "concave points", "symmetry",
    "fractal dimension",
)  # fmt: skip
_COLUMNS = {
    "breast_cancer": tuple(
        pattern.format(name) for pattern in ("mean {}", "{} error", "worst {}") for name in _CELL
    ),
    "wine": (
        "alcohol", "malic_acid", "ash", "alcalinity_of_ash", "magnesium", "total_phenols", "flavanoids",
        "nonflavanoid_phenols", "proanthocyanins", "color_intensity", "hue", "od280/od315_of_diluted_wines", "proline",
    ),
    "diabetes": ("age", "sex", "bmi", "bp", "s1", "s2", "s3", "s4", "s5", "s6"),
}  # fmt: skip
_CLASSES = {"breast_cancer": ("malignant", "benign"), "wine": ("class_0", "class_1", "class_2"), "diabetes": ()}


@dataclass(frozen=True)
class Bundled:
    """Rows [N, F] and targets [N]: indices into `classes`, or values where there are none; content: the raw bytes."""

    columns: tuple[str, ...]
    inputs: NDArray[np.float64]
    targets: NDArray[np.float64]
    classes: tuple[str, ...]
    content: bytes


def read_table(name: str) -> Bundled:
    """One of TABLES."""
    columns, classes = _COLUMNS[name], _CLASSES[name]
    if name == "diabetes":
        inputs, targets = _content("diabetes_data_raw.csv.gz"), _content("diabetes_target.csv.gz")
        return Bundled(columns, _numbers(inputs), _numbers(targets)[:, 0], classes, inputs + targets)
    content = _content({"wine": "wine_data.csv"}.get(name, f"{name}.csv"))
    rows = _numbers(content.partition(b"\n")[2])  # the first line holds counts and class names
    return Bundled(columns, rows[:, :-1], rows[:, -1], classes, content)


def read_digits() -> Bundled:
    """1797 handwritten digits of 8x8 pixels in 0..16, as rows of 64 (UCI, Alpaydin and Kaynak 1998)."""
    content = _content("digits.csv.gz")
    rows = _numbers(content)
    return Bundled((), rows[:, :-1], rows[:, -1], tuple("0123456789"), content)


def read_text(name: str) -> Iterator[tuple[str, str]]:
    """(name, text) of each document of one of TEXTS, in the order of their names.

    english: the help topics of Python's documentation, 0.46 MB. python: the standard library's source, 12 MB.
    """
    if name == "english":
        from pydoc_data.topics import topics

        yield from sorted(topics.items())
        return
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(set(folders) - skipped)
        for file in sorted(f for f in files if f.endswith(".py")):
            path = Path(folder, file)
            yield path.relative_to(root).as_posix(), path.read_text(encoding="utf-8", errors="replace")


def _content(file: str) -> bytes:
    package = importlib.util.find_spec("sklearn")  # finds a top-level package without importing it
    if package is None or package.origin is None:
        raise DataError("bundled data lies inside scikit-learn, which is not installed; run: pip install scikit-learn")
    path = Path(package.origin).parent / "datasets" / "data" / file
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; scikit-learn's files have moved") from None
    return gzip.decompress(content) if path.suffix == ".gz" else content


def _numbers(content: bytes) -> NDArray[np.float64]:
    lines = content.decode("ascii").splitlines()
    return np.loadtxt(lines, delimiter="," if "," in lines[0] else None, ndmin=2)
