"""Model directories of strangers: any value in any key, any byte of any file. They load, or end as one line."""

import copy
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from core.config import parse
from core.data import load as load_data
from core.errors import DataError, HanseError
from core.recipe import Recipe
from core.storage import artifact
from hanse.inference import predict
from hanse.writer import Writing, write
from tests.fuzz.hostile import SWEEP, ends_well

KINDS: dict[str, dict[str, Any]] = {
    "table": {"data": {"kind": "table", "path": "bundled:wine"}, "model": {"kind": "mlp", "hidden": [4]}},
    "image": {"data": {"kind": "image", "path": "bundled:digits"}, "model": {"kind": "mlp", "hidden": [2]}},
    "text": {
        "data": {"kind": "text", "limit_bytes": 4000, "context": 8, "tokenizer": {"kind": "bpe", "vocab": 280}},
        "model": {"kind": "gpt", "width": 8, "layers": 1, "heads": 2},
    },
}  # fmt: skip
VALUES: list[Any] = [
    None, True, -1, 0, 3, 2**31, 2**62, 2**63, 10**400, 1e308, float("inf"), float("nan"), "", "x", "\0", "\ud800",
    "x" * 3000, [], [-1], [2**40, 2**40], [0], ["x"], {}, {"kind": ["x"]}, [[[[[]]]]],
]  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # a mean of 1e308 is no number in float32
FILES = ("config.json", "preprocess.json", "model.safetensors", "tokenizer.json")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A whole model directory of each kind of data, never trained."""
    made = {}
    for kind, config in KINDS.items():
        recipe = parse(Recipe, config)
        data = load_data(recipe.data, recipe.goal.target)
        weights = recipe.build(data.spec).network.state_dict()
        made[kind] = tmp_path_factory.mktemp(kind)
        artifact.save(made[kind], recipe, data.spec, data.preprocess, weights, fingerprint=data.fingerprint)
    return made


@pytest.fixture
def model(
    models: dict[str, Path], request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A copy of the one that the test names."""
    shutil.copytree(models[request.param], tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    return tmp_path / "model"


def every_kind(test: Callable[..., None]) -> Callable[..., None]:
    return pytest.mark.parametrize("model", KINDS, indirect=True)(test)


def use(directory: Path) -> None:
    """Loads the model and asks it something."""
    loaded = artifact.load_all(directory)
    if loaded[0].spec.target == "token":
        list(write(loaded, Writing("ab", max_new_tokens=2)))
    else:
        predict(loaded, {"data.path": KINDS[loaded[0].spec.kind]["data"]["path"]})


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value of a JSON file."""
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in list(items)[:8]:
        yield from places(item, (*path, key))


def changed(content: Any, path: tuple[Any, ...], value: Any, remove: bool = False) -> Any:
    content = copy.deepcopy(content)
    holder = content
    for key in path[:-1]:
        holder = holder[key]
    if remove:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return content


@every_kind
def test_the_whole_model_answers(model: Path) -> None:
    use(model)


@every_kind
@pytest.mark.parametrize("name", ["config.json", "preprocess.json"])
def test_any_value_in_any_key_is_taken_or_refused_by_name(model: Path, name: str) -> None:
    file, refused = model / name, 0
    content = json.loads(file.read_text())
    for path in places(content):
        drawn = random.Random(repr(path)).sample(VALUES, min(len(VALUES), 2 * SWEEP))
        for damaged in [changed(content, path, None, remove=True), *(changed(content, path, value) for value in drawn)]:
            file.write_text(json.dumps(damaged))
            if said := ends_well(use, model):
                refused += 1
                assert any(place in said for place in (str(model), "bundled:", "data.", "model: ", "column '")), said
    assert refused > 30


@every_kind
def test_any_byte_of_any_file_may_be_another(model: Path) -> None:
    for name in FILES:
        file = model / name
        if not file.exists():
            continue
        whole = file.read_bytes()
        for seed in range(10 * SWEEP):
            draw = random.Random(f"{name} {seed}")
            damaged = bytearray(whole)
            for _ in range(draw.choice((1, 1, 5, 50))):
                damaged[draw.randrange(min(len(damaged), 2000))] = draw.randrange(256)
            cut = draw.choice((0, 0, 1, len(whole) // 2, len(whole)))
            file.write_bytes(bytes(damaged[: len(damaged) - cut]))
            ends_well(use, model)
        file.write_bytes(whole)


HEADERS: dict[str, Any] = {
    "a length past the file": (2**40).to_bytes(8, "little") + b"{}",
    "a length past 64 bits": b"\xff" * 8 + b"{}",
    "nested": (40_000).to_bytes(8, "little") + b"[" * 40_000,
    "a huge shape": {"head.weight": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}},
    "a negative shape": {"head.weight": {"dtype": "F32", "shape": [-1, 4], "data_offsets": [0, 4]}},
    "an unknown type": {"head.weight": {"dtype": "F7", "shape": [1], "data_offsets": [0, 4]}},
    "offsets past the end": {"head.weight": {"dtype": "F32", "shape": [2**30], "data_offsets": [0, 2**32]}},
    "no header": b"",
}


@pytest.mark.parametrize("model", ["table"], indirect=True)
@pytest.mark.parametrize("name", HEADERS)
def test_a_hostile_header_of_the_weights_is_refused(model: Path, name: str) -> None:
    header = HEADERS[name]
    if isinstance(header, dict):
        text = json.dumps(header).encode()
        header = len(text).to_bytes(8, "little") + text + b"\0" * 4
    (model / "model.safetensors").write_bytes(header)
    with pytest.raises(DataError, match=r"model\.safetensors"):
        artifact.load(model)


@pytest.mark.parametrize("model", ["table"], indirect=True)
@pytest.mark.parametrize("name", FILES[:3])
def test_what_is_no_file_is_refused_by_name(model: Path, name: str) -> None:
    (model / name).unlink()
    with pytest.raises(DataError):
        artifact.load(model)
    (model / name).mkdir()
    with pytest.raises(DataError):
        artifact.load(model)
    (model / name).rmdir()
    (model / name).symlink_to("/dev/zero")
    with pytest.raises(DataError):
        artifact.load(model)
    (model / name).unlink()
    with (model / name).open("wb") as file:
        file.truncate(1 << 40)  # a hole: no byte of it lies on the disk
    with pytest.raises(HanseError):
        artifact.load(model)


@pytest.mark.parametrize("model", ["table"], indirect=True)
def test_parts_of_two_models_are_told_apart(model: Path, models: dict[str, Path]) -> None:
    for name in FILES[:3]:
        whole = (model / name).read_bytes()
        shutil.copy(models["image"] / name, model / name)
        with pytest.raises(DataError):
            artifact.load(model)
        (model / name).write_bytes(whole)
