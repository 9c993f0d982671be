"""Image files: MNIST IDX, CIFAR binary, npz and npy arrays. Pixels stay raw; labels are indices, names or values."""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.data.sources.columns import read_numpy
from core.data.sources.contents import byte_file, text_file
from core.data.sources.files import sha256_file, sha256_named, unknown_extension
from core.data.sources.walk import entries
from core.errors import DataError

CIFAR_10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_PIXELS = 3 * 32 * 32
_TRAIN, _TEST = "train", "t10k"


@dataclass(frozen=True)
class Pictures:
    """Raw images [N, C, H, W] with pixels in [0, peak]; labels [N]: class indices (into `classes` if named) or values.

    `parts` says which rows the files themselves call train, validation and test. notes: what of a file is not read.
    """

    images: NDArray[Any]
    labels: NDArray[Any] | None
    fingerprint: str
    peak: float = 255.0
    classes: tuple[str, ...] = ()
    parts: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_pictures(path: Path) -> Pictures:
    """Images of a file, or of a folder of IDX or CIFAR files. Raises DataError."""
    if path.is_dir():
        return _read_cifar(path) if _cifar_files(path) else _read_idx(path)
    if path.suffix.lower() in (".npz", ".npy"):
        return _read_arrays(path)
    if path.suffix.lower() == ".bin":
        return _read_cifar(path)
    if is_idx(path):
        return _read_idx(path)
    raise unknown_extension(
        path, ("a folder", "one picture", ".npz", ".npy", "IDX (...-idx3-ubyte, .gz)", "CIFAR binary (.bin)")
    )


def is_binary_folder(path: Path) -> bool:
    """Whether a folder holds IDX or CIFAR files rather than images."""
    return bool(_cifar_files(path)) or any(is_idx(file) for file in entries(path) if file.is_file())


def joined(images: list[NDArray[Any]], labels: list[NDArray[Any]], names: list[str]) -> dict[str, Any]:
    """images, labels and parts of several sets, for `Pictures`."""
    ends = np.cumsum([len(part) for part in images])
    parts: dict[str, NDArray[np.int64]] = {}
    for name, end, part in zip(names, ends, images, strict=True):
        parts[name] = np.concatenate([parts.get(name, np.empty(0, np.int64)), np.arange(end - len(part), end)])
    return {"images": np.concatenate(images), "labels": np.concatenate(labels), "parts": parts}


# --- MNIST's IDX (yann.lecun.com/exdb/mnist) ------------------------------------------------------------------------


def is_idx(path: Path) -> bool:
    """Whether the name is that of an IDX file."""
    return "-idx" in path.name.replace(".idx", "-idx")


def _read_idx(path: Path) -> Pictures:
    files = [p for p in entries(path) if is_idx(p) and "images" in p.name] if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path}: holds neither images nor IDX nor CIFAR files")
    read: list[Path] = []
    images, labels, names = [], [], []
    for file in sorted(files, key=lambda p: p.name.startswith(_TEST)):
        partner = _labels_of(file)
        pixels, classes = _idx_array(file), _idx_array(partner)
        if pixels.ndim != 3 or classes.ndim != 1:
            raise DataError(
                f"{file}: images of shape {list(pixels.shape)}, labels of {list(classes.shape)}; need [N, H, W] and [N]"
            )
        if len(pixels) != len(classes):
            raise DataError(f"{file}: {len(pixels)} images, but {partner.name} holds {len(classes)} labels")
        if not pixels.size:
            raise DataError(f"{file}: holds no images")
        images.append(pixels[:, None])
        labels.append(classes)
        names.append("test" if file.name.startswith(_TEST) else "train")
        read += [file, partner]
    sets = joined(images, labels, names)
    if set(names) != {"train", "test"}:
        sets["parts"] = {}
    return Pictures(fingerprint=sha256_named((p.name, sha256_file(p)) for p in read), **sets)


def _labels_of(images: Path) -> Path:
    name = images.name.replace("images", "labels").replace("idx3", "idx1")
    stem = name.removesuffix(".gz")
    for candidate in (name, stem, f"{stem}.gz"):
        if candidate != images.name and images.with_name(candidate).is_file():
            return images.with_name(candidate)
    raise DataError(f"{images}: there is no file {name} with its labels beside it")


def _idx_array(path: Path) -> NDArray[np.uint8]:
    content = _content(path)
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != 0x08:
        raise DataError(
            f"{path}: not an IDX file of bytes: it must begin with 00 00 08, not {content[:3].hex(' ') or 'nothing'}"
        )
    dims = content[3]
    if dims > 3:
        raise DataError(f"{path}: its header says {dims} dimensions; images have 3 and labels 1")
    shape = tuple(int.from_bytes(content[4 + 4 * i : 8 + 4 * i], "big") for i in range(dims))
    expected, size = 4 + 4 * dims + math.prod(shape), len(content)
    if size != expected:
        how = "truncated" if size < expected else "too long"
        raise DataError(f"{path}: {how}: {list(shape)} need {expected} bytes, the file has {size}; fetch it again")
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dims).reshape(shape)


def _content(path: Path) -> bytes:
    with byte_file(path) as file:
        return file.read()


# --- CIFAR's binary version (cs.toronto.edu/~kriz/cifar.html) -------------------------------------------------------


def _cifar_files(folder: Path) -> list[Path]:
    return [
        p
        for p in entries(folder)
        if p.suffix == ".bin" and (p.stem in ("train", "test", "test_batch") or p.stem.startswith("data_batch"))
    ]


def _read_cifar(path: Path) -> Pictures:
    files = _cifar_files(path) if path.is_dir() else [path]
    hundred = any(p.stem in ("train", "test") for p in files)
    header = 2 if hundred else 1  # CIFAR-100 has a coarse label before the fine one
    images, labels, names = [], [], []
    for file in files:
        pixels, classes = _cifar_records(file, header, 100 if hundred else 10)
        images.append(pixels)
        labels.append(classes)
        names.append("test" if file.stem.startswith("test") else "train")
    sets = joined(images, labels, names)
    if set(names) != {"train", "test"}:
        sets["parts"] = {}
    class_names = _cifar_names(files[0].parent, hundred)
    return Pictures(fingerprint=sha256_named((p.name, sha256_file(p)) for p in files), classes=class_names, **sets)


def _cifar_records(path: Path, header: int, classes: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    content, record = _content(path), header + _PIXELS
    if not content or len(content) % record:
        raise DataError(
            f"{path}: truncated: {len(content)} bytes are not a whole number of records of {record}; fetch it again"
        )
    records = np.frombuffer(content, np.uint8).reshape(-1, record)
    labels = records[:, header - 1]
    if labels.max() >= classes:
        row = int((labels >= classes).argmax())
        raise DataError(
            f"{path}: image {row + 1}: the label {labels[row]} is not in 0..{classes - 1}; is it CIFAR-{classes}?"
        )
    return records[:, header:].reshape(-1, 3, 32, 32), labels


def _cifar_names(folder: Path, hundred: bool) -> tuple[str, ...]:
    if not hundred:
        return CIFAR_10
    names = folder / "fine_label_names.txt"
    lines: list[str] = []
    if names.is_file():
        with text_file(names) as file:
            lines = file.read().split()
    return tuple(lines) if len(lines) == 100 else tuple(str(i) for i in range(100))


# --- NumPy ---------------------------------------------------------------------------------------------------------

_IMAGE_NAMES = ("inputs", "images", "x", "X", "data", "arr_0")
_LABEL_NAMES = ("targets", "labels", "y", "Y", "target", "arr_1")


def _read_arrays(path: Path) -> Pictures:
    (arrays, notes), fingerprint = read_numpy(path), sha256_file(path)
    if "x_train" in arrays:
        return replace(_read_named_sets(path, arrays, fingerprint), notes=notes)
    images = next((arrays[name] for name in _IMAGE_NAMES if name in arrays), None)
    labels = next((arrays[name] for name in _LABEL_NAMES if name in arrays), None)
    if images is None:
        raise DataError(f"{path}: holds {', '.join(arrays)}; call the images `inputs` and their labels `targets`")
    pixels, peak = channels_first(path, images)
    return Pictures(
        pixels, None if labels is None else _labels(path, labels, len(pixels)), fingerprint, peak, notes=notes
    )


def _read_named_sets(path: Path, arrays: dict[str, NDArray[Any]], fingerprint: str) -> Pictures:
    images, labels, names, peak = [], [], [], 255.0
    for name, suffix in (("train", "train"), ("validation", "val"), ("test", "test")):
        if f"x_{suffix}" in arrays:
            if f"y_{suffix}" not in arrays:
                raise DataError(f"{path}: holds x_{suffix} without y_{suffix}")
            pixels, peak = channels_first(path, arrays[f"x_{suffix}"])
            images.append(pixels)
            labels.append(_labels(path, arrays[f"y_{suffix}"], len(pixels)))
            names.append(name)
    if len({(part.shape[1:], part.dtype) for part in images}) > 1:
        raise DataError(f"{path}: the sets differ: {', '.join(f'{p.dtype} {list(p.shape)}' for p in images)}")
    sets = joined(images, labels, names)
    if len(names) == 1:
        sets["parts"] = {}
    return Pictures(fingerprint=fingerprint, peak=peak, **sets)


def channels_first(path: Path, images: NDArray[Any]) -> tuple[NDArray[Any], float]:
    """[N, C, H, W] of arrays [N, H, W], [N, H, W, C] or [N, C, H, W], and their peak: 1 of floats."""
    shape = list(images.shape)
    if images.dtype not in (np.uint8, np.uint16) and images.dtype.kind != "f":
        raise DataError(f"{path}: images of {images.dtype}; save uint8, uint16, or floats in [0, 1]")
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and shape[3] in (1, 3, 4):
        images = images.transpose(0, 3, 1, 2)
    elif images.ndim != 4 or shape[1] not in (1, 3, 4):
        raise DataError(
            f"{path}: images of shape {shape}; need [N, H, W], [N, H, W, C] or [N, C, H, W] with 1, 3 or 4 channels"
        )
    if not images.size:
        raise DataError(f"{path}: holds no images")
    if images.dtype == np.uint8:
        return images, 255.0
    if images.dtype == np.uint16:
        return images.astype(np.float32), 65535.0
    with np.errstate(over="ignore"):
        floats = images.astype(np.float32)
    bad = ~np.isfinite(floats).reshape(len(floats), -1).all(axis=1)
    if bad.any():
        raise DataError(f"{path}: image {int(bad.argmax()) + 1} holds NaN or infinite pixels")
    return floats, 1.0


def _labels(path: Path, labels: NDArray[Any], count: int) -> NDArray[Any]:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or len(labels) != count:
        raise DataError(f"{path}: labels of shape {list(labels.shape)} for {count} images; need one per image")
    if labels.dtype.kind not in "biufU":
        raise DataError(f"{path}: labels of {labels.dtype}, which are neither numbers nor texts")
    return labels
