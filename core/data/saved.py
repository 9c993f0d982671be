"""The preprocessing of a model directory, read back and checked: its files may come from anywhere."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core.config import parse
from core.data.config import BPE
from core.data.preprocess import FORMAT, Category, Fitted, ImageFit, Number, Preprocess, TableFit
from core.data.sources.notation import Form
from core.data.spec import Spec
from core.data.tokenizer import BPETokenizer, ByteTokenizer, Tokenizer
from core.errors import ConfigError, DataError, blamed
from core.storage.read import read_json, read_text

MISSING = "a model directory holds it beside model.safetensors"


def read_preprocess(folder: Path) -> Preprocess:
    """Raises DataError if a file is missing or damaged, or the tokenizer is not the one of this model."""
    path = folder / "preprocess.json"
    plain = read_json(path, MISSING)
    if plain.get("format") != FORMAT:
        raise DataError(f"{path}: not a preprocessing of this version of Hanse (format {FORMAT})")
    with blamed(DataError, str(path), "damaged"):
        spec = parse(Spec, plain["spec"], "spec")
        fitted = _fitted(spec, plain["fitted"], folder)
        if problem := _misfit(spec, fitted):
            raise ConfigError(problem)
    return Preprocess(spec, fitted)


def _fitted(spec: Spec, plain: Mapping[str, Any], folder: Path) -> Fitted:
    if spec.kind == "image":
        return parse(ImageFit, plain, "fitted")
    if spec.kind == "text":
        return _load_tokenizer(plain, folder)
    features = [_feature(feature, f"fitted.features.{i}") for i, feature in enumerate(plain["features"])]
    form = parse(Form, plain["target_form"], "fitted.target_form")
    return parse(TableFit, {**plain, "features": features, "target_form": form}, "fitted")


def _feature(plain: Mapping[str, Any], where: str) -> Number | Category:
    if "values" in plain:
        return parse(Category, plain, where)
    return parse(Number, {**plain, "form": parse(Form, plain["form"], f"{where}.form")}, where)


def _misfit(spec: Spec, fitted: Fitted) -> str:
    """What was fitted that does not go with the spec, if anything."""
    if isinstance(fitted, TableFit):
        numbers = [feature.std for feature in fitted.features if isinstance(feature, Number)]
        if not all(std > 0 for std in [*numbers, fitted.target_std]):
            return "fitted: a standard deviation must be above 0"
        found, wanted = [fitted.width], list(spec.shape)
    elif isinstance(fitted, ImageFit):
        if not all(std > 0 for std in fitted.std) or len(fitted.mean) != len(fitted.std):
            return "fitted: each channel needs a mean, and a standard deviation above 0"
        found, wanted = [len(fitted.mean), *(fitted.size or spec.shape[1:])], list(spec.shape)
    else:
        found, wanted = [fitted.size], [spec.outputs]
    return f"fitted: is for the shape {found}, spec says {wanted}" if found != wanted else ""


def _load_tokenizer(plain: Mapping[str, Any], folder: Path) -> Tokenizer:
    tokenizer: Tokenizer = ByteTokenizer()
    if plain["kind"] == "bpe":
        tokenizer = BPETokenizer(read_text(folder / "tokenizer.json", MISSING), parse(BPE, {"vocab": plain["vocab"]}))
    if tokenizer.sha256 != plain["sha256"]:
        raise DataError(
            f"{folder / 'tokenizer.json'}: does not match this model: its sha256 is {tokenizer.sha256[:12]}..., the "
            f"model was trained with {plain['sha256'][:12]}...; copy the model directory as a whole"
        )
    return tokenizer
