"""Images: from files to inputs [N, C, H, W], normalized with what the training split says."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from core.data.augment import Augmentation
from core.data.config import Image
from core.data.examples import Data, Decoded, Examples, Names, Pixels, Stacked, decode_all
from core.data.labels import class_labels, known_labels
from core.data.preprocess import ImageFit, Preprocess, Trained, standardization
from core.data.sources import bundled
from core.data.sources.files import bundled_name, find, sha256_of
from core.data.sources.folder import Folder, is_picture, read_folder
from core.data.sources.frame import Texts, texts_of
from core.data.sources.pictures import Pictures, is_binary_folder, read_pictures
from core.data.spec import Spec
from core.data.split import Indices, refuse_lonely, refuse_unseen, split_rows
from core.data.table import Target
from core.errors import DataError

FLOAT_BYTES = 64 << 20  # images up to this size as float32 are normalized once; larger ones when they are taken
FIT_IMAGES = 1000  # images read to fit mean and std where they do not lie in memory


@dataclass(frozen=True)
class Album:
    """Images in memory (pixels [N, C, H, W]) or in their files (decode), and what is known of them."""

    name: str
    shape: tuple[int, ...]
    count: int
    fingerprint: str
    peak: float
    labels: NDArray[Any] | None
    classes: tuple[str, ...]
    parts: dict[str, Indices] = field(default_factory=dict)
    pixels: Tensor | None = None
    decode: Callable[[int], NDArray[Any]] | None = None
    notes: tuple[str, ...] = ()
    names: Names | None = None


def load_image(config: Image, target: Target, seed: int, trained: Trained | None = None) -> Data:
    """Reads, splits, fits on the training images. DataError if anything is not as it must be."""
    album = _read(config)
    if trained:
        trained.require(album.fingerprint, config.path)
    if album.labels is None:
        raise DataError(
            f"{config.path}: there are no labels to learn from; put each class in a subfolder, or save `targets`"
        )
    classes: tuple[str, ...] = ()
    if target == "class":
        labels, classes = _class_labels(album)
        targets, stratify = torch.from_numpy(labels), labels
    else:
        targets, stratify = torch.from_numpy(_real_labels(album))[:, None], None
    if stratify is not None:
        refuse_lonely(stratify[album.parts.get("train", slice(None))], classes, config.split, album.name)
    splits = _split(album, config, seed, stratify)
    if stratify is not None:
        refuse_unseen(splits, stratify, classes, album.name)
    fitted = trained.preprocess.fitted if trained else _fit(config, album, splits["train"])
    assert isinstance(fitted, ImageFit)
    spec = Spec("image", album.shape, len(classes) or 1, target, classes)
    mean, std = fitted.scale(album.peak)
    rows = {name: torch.from_numpy(index) for name, index in splits.items()}
    parts = {name: _examples(album, targets, index, mean, std) for name, index in rows.items()}
    change = Augmentation(config.augment, black=-mean / std, classes=len(classes) or None)
    return Data(Preprocess(spec, fitted), album.fingerprint, parts, seed, change, rows, album.notes, album.names)


def open_image(preprocess: Preprocess, config: Image, wanted: bool = True) -> Data:
    """All images of another source as the split `test`; where targets are `wanted`, its own test set if it has one."""
    fitted, spec = preprocess.fitted, preprocess.spec
    assert isinstance(fitted, ImageFit)
    album = _read(replace(config, size=fitted.size), spec.shape, wanted)
    if not wanted:
        album = replace(album, labels=None, parts={})
    if album.shape != spec.shape:
        raise DataError(
            f"{config.path}: images of {_size(album.shape)}, the model was trained on {_size(spec.shape)}; resize them"
        )
    targets = None
    if album.labels is not None and spec.target == "class":
        targets = torch.from_numpy(known_labels(_named(album), "label", spec.classes, album.name))
    elif album.labels is not None:
        targets = torch.from_numpy(_real_labels(album))[:, None]
    mean, std = fitted.scale(album.peak)
    rows = torch.from_numpy(album.parts.get("test", np.arange(album.count)))
    parts = {"test": _examples(album, targets, rows, mean, std)}
    return Data(preprocess, album.fingerprint, parts, rows={"test": rows}, notes=album.notes, names=album.names)


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[0]} channels and {shape[1]}x{shape[2]} pixels"


# --- reading -------------------------------------------------------------------------------------------------------


def _read(config: Image, shape: tuple[int, ...] | None = None, labeled: bool = True) -> Album:
    """`shape`: what a model takes; `labeled`: whether the labels count."""
    name = bundled_name(config.path, bundled.IMAGES)
    if name is not None:
        digits = bundled.read_digits()
        pictures = Pictures(
            digits.inputs.reshape(-1, 1, 8, 8).astype(np.uint8),
            digits.targets,
            sha256_of(digits.content),
            peak=16.0,
            classes=digits.classes,
        )
        return _in_memory(config, pictures)
    path = find(config.path)
    if is_picture(path) or (path.is_dir() and not is_binary_folder(path)):
        return _from_folder(config, read_folder(path, config.size, config.background, shape, labeled))
    return _in_memory(config, read_pictures(path))


def _in_memory(config: Image, pictures: Pictures) -> Album:
    pixels = torch.from_numpy(np.ascontiguousarray(pictures.images))
    if config.size and tuple(pixels.shape[2:]) != config.size:
        pixels = torch.cat([_resized(chunk, config.size) for chunk in pixels.split(1024)])
    shape = tuple(pixels.shape[1:])
    return Album(
        config.path,
        shape,
        len(pixels),
        pictures.fingerprint,
        pictures.peak,
        pictures.labels,
        pictures.classes,
        pictures.parts,
        pixels,
        notes=pictures.notes,
    )


def _resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    resized = F.interpolate(images.float(), size=size, mode="bilinear", antialias=True)
    return resized.round().clamp(0, 255).to(images.dtype) if images.dtype == torch.uint8 else resized


def _from_folder(config: Image, folder: Folder) -> Album:
    count = len(folder.files)
    fits = count * int(np.prod(folder.shape)) * folder.pixel_bytes <= config.memory_mb << 20
    pixels = torch.from_numpy(decode_all(folder.decode, list(range(count)))) if fits else None
    return Album(
        config.path,
        folder.shape,
        count,
        folder.fingerprint,
        folder.peak,
        None if folder.names is None else np.array(folder.names, dtype=object),
        (),
        folder.parts,
        pixels,
        folder.decode,
        folder.notes,
        Names("file", folder.file_names),
    )


# --- labels and splits ---------------------------------------------------------------------------------------------


def _named(album: Album) -> Texts:
    """Labels as class names: those of the files, else as they are written."""
    assert album.labels is not None
    return Texts(album.classes, album.labels.astype(np.int64)) if album.classes else texts_of(album.labels)


def _class_labels(album: Album) -> tuple[Indices, tuple[str, ...]]:
    assert album.labels is not None
    if album.classes:
        return album.labels.astype(np.int64), album.classes
    return class_labels(_named(album), "label", album.name)


def _real_labels(album: Album) -> NDArray[np.float32]:
    assert album.labels is not None
    if album.labels.dtype.kind in "OU" or album.classes:
        raise DataError(
            f"{album.name}: the labels are classes, a regression needs numbers; use objective.kind=classification"
        )
    with np.errstate(over="ignore"):
        values: NDArray[np.float32] = album.labels.astype(np.float32)
    if not np.isfinite(values).all():
        raise DataError(
            f"{album.name}: the label of image {int((~np.isfinite(values)).argmax()) + 1} is NaN or infinite"
        )
    return values


def _split(album: Album, config: Image, seed: int, labels: Indices | None) -> dict[str, Indices]:
    """As the files say; what they do not hold out is split off their training set, and so is a fold."""
    if "train" not in album.parts:
        return split_rows(album.count, config.split, seed, labels)
    train = album.parts["train"]
    rest = replace(
        config.split,
        validation=0.0 if "validation" in album.parts else config.split.validation,
        test=0.0 if "test" in album.parts else config.split.test,
    )
    inner = split_rows(len(train), rest, seed, None if labels is None else labels[train])
    return {name: train[rows] if len(rows) else album.parts.get(name, rows) for name, rows in inner.items()}


# --- preparing -----------------------------------------------------------------------------------------------------


def _fit(config: Image, album: Album, train: Indices) -> ImageFit:
    channels = album.shape[0]
    if not config.normalize:
        return ImageFit((0.0,) * channels, (1.0,) * channels, config.size)
    if album.pixels is not None:
        sample = album.pixels[torch.from_numpy(train)].numpy()
    else:
        assert album.decode is not None
        spread = train[:: max(1, len(train) // FIT_IMAGES)][:FIT_IMAGES]
        sample = decode_all(album.decode, spread.tolist())
    moments = [standardization(sample[:, c].astype(np.float64).ravel() / album.peak) for c in range(channels)]
    return ImageFit(tuple(mean for mean, _ in moments), tuple(std for _, std in moments), config.size)


def _examples(album: Album, targets: Tensor | None, index: Tensor, mean: Tensor, std: Tensor) -> Examples:
    chosen = None if targets is None else targets[index]
    if album.pixels is None:
        decode = album.decode
        assert decode is not None
        return Decoded(len(index), lambda row: decode(int(index[row])), chosen, mean, std)
    images = album.pixels[index]
    if images.numel() * 4 <= FLOAT_BYTES:
        return Stacked(images.float().sub_(mean).div_(std), chosen)
    return Pixels(images, chosen, mean, std)
