"""A folder of images, one subfolder per class; subfolders for training, validation and test above them are respected.
A single picture is a folder of one.

Pictures of 8 bits are bytes. A folder that has pictures of 16 or 32 bits, or of floats, is read as floats, and nothing
is cut off: white is 1, the largest number of 16 bits where they are integers.
"""

import hashlib
import io
import logging
import re
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from core.data.sources.contents import refuse_bomb
from core.data.sources.files import relative_name, sha256_named
from core.data.sources.walk import LeftOut, entries, is_system, walk
from core.errors import DataError, blamed

if TYPE_CHECKING:
    from PIL.Image import Image

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
Color = tuple[int, int, int]
WHITE: Color = (255, 255, 255)
_PARTS = {
    "train": "train", "training": "train", "trainset": "train",
    "val": "validation", "valid": "validation", "validation": "validation", "dev": "validation",
    "test": "test", "testing": "test", "testset": "test",
}  # fmt: skip
_GRAY = ("1", "L", "LA", "La")
_WHITE_16 = 65535
_ORIENTATION = 0x0112  # the tag of EXIF
_ORIENTED = (b"Exif", b"EXIF", b"eXIf", b"exif", b"rientation")  # a picture that says how it lies holds one of these


@dataclass(frozen=True)
class Folder:
    """The image files [N], their class names (None if they lie in no class folder), and one image's shape (C, H, W).

    peak: what white is, 255 of bytes and 1 of floats. background: what shows through where a picture is transparent.
    file_names: the files' names below the folder. notes: what of the folder is left out.
    """

    files: list[Path]
    names: list[str] | None
    shape: tuple[int, int, int]
    peak: float
    background: Color
    fingerprint: str
    parts: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    file_names: tuple[str, ...] = ()

    @property
    def pixel_bytes(self) -> int:
        """How many bytes each number of `decode` takes."""
        return 1 if self.peak == 255 else 4

    def decode(self, row: int) -> NDArray[Any]:
        """[C, H, W] of one image, resized where the shape says so. Raises DataError if the file is damaged."""
        from PIL import Image, ImageOps

        channels, height, width = self.shape
        with _opened(self.files[row], self.files[row]) as image:
            ImageOps.exif_transpose(image, in_place=True)
            is_deep = _is_deep(image.mode)
            pixels = Image.fromarray(_floats(image)) if is_deep else _flat(image, self.background, channels)
            if pixels.size != (width, height):
                pixels = pixels.resize((width, height), Image.Resampling.BILINEAR)
            array = np.asarray(pixels, np.float32 if is_deep else np.uint8)
        if self.peak == 1 and not is_deep:
            array = array.astype(np.float32) / 255
        if array.ndim == 3:
            return array.transpose(2, 0, 1)
        return array[None] if channels == 1 else np.stack([array] * channels)


def is_picture(path: Path) -> bool:
    """Whether it is a file of one picture."""
    return path.suffix.lower() in EXTENSIONS and path.is_file()


def read_folder(
    path: Path,
    size: tuple[int, int] | None,
    background: Color = WHITE,
    shape: tuple[int, ...] | None = None,
    labeled: bool = True,
) -> Folder:
    """Lists and checks the images below `path`, or the one that it is, without keeping their pixels.

    shape: [C, H, W] that a model takes. labeled: whether each must lie in the folder of its class. DataError names the
    first bad file.
    """
    _silence_pillow()
    left, root = LeftOut(), path.parent if path.is_file() else path
    files, names, parts = ([path], [""], {}) if path.is_file() else _listed(root, left)
    if not files:
        raise DataError(f"{root}: holds no images ({', '.join(EXTENSIONS)}), and no IDX or CIFAR files")
    if labeled and any(names) and not all(names):
        raise DataError(f"{files[names.index('')]}: lies in no class folder, others do; every class has its subfolder")
    with ThreadPoolExecutor(4) as pool:
        heads = list(pool.map(_head, files))
    modes = {mode for _, mode, _ in heads}
    channels = 1 if all(mode in _GRAY or _is_deep(mode) for mode in modes) else 3
    if shape is not None and shape[0] in (1, 3):  # a model of color images takes gray ones, and the other way round
        channels = shape[0]
    peak = 1.0 if any(map(_is_deep, modes)) else 255.0
    height, width = size or _common_size(files, [pixels for _, _, pixels in heads], shape)
    named = [relative_name(file, root) for file in files]
    fingerprint = sha256_named((name, digest) for name, (digest, _, _) in zip(named, heads, strict=True))
    classes = [_shown(name) for name in names] if labeled and all(names) else None
    shown = tuple(map(_shown, named))
    return Folder(
        files, classes, (channels, height, width), peak, background, fingerprint, parts, left.note(root), shown
    )


def _shown(name: str) -> str:
    """A name on the disk as a text: bytes that are not UTF-8 as numbers."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


# --- what lies where -----------------------------------------------------------------------------------------------


def _listed(root: Path, left: LeftOut) -> tuple[list[Path], list[str], dict[str, NDArray[np.int64]]]:
    """The images, the class name of each ("": none), and which of them are training, validation and test."""
    top, sets = _sets(root)
    if not sets:
        return _by_class(root, walk(root, EXTENSIONS, left))
    on_the_way = {top, *(parent for parent in top.parents if parent.is_relative_to(root))}
    for folder in {root, *on_the_way}:
        for path in entries(folder):
            if not path.is_dir():
                left.file(path)
            elif path not in on_the_way and path not in sets:
                left.folder(path)
    files, names, rows = list[Path](), list[str](), dict[str, list[int]]()
    for folder, part in sets.items():
        found = walk(folder, EXTENSIONS, left)
        rows.setdefault(part, []).extend(range(len(files), len(files) + len(found)))
        files += found
        names += [_class_name(path, _without_copies(folder)) for path in found]
    return files, names, {part: np.array(places, np.int64) for part, places in rows.items()}


def _by_class(root: Path, files: list[Path]) -> tuple[list[Path], list[str], dict[str, NDArray[np.int64]]]:
    """As `_listed` of folders that stand for classes, and in each of them perhaps folders of training and test."""
    names = [_class_name(path, root) for path in files]
    parts = [_PARTS.get(name.rpartition("/")[2].lower(), "") if "/" in name else "" for name in names]
    if not all(parts) or "train" not in parts or len(set(parts)) == 1:
        return files, names, {}
    rows = {part: np.flatnonzero([one == part for one in parts]) for part in dict.fromkeys(parts)}
    return files, [name.rpartition("/")[0] for name in names], rows


def _sets(root: Path) -> tuple[Path, dict[Path, str]]:
    """The folders of training, validation and test, and the folder that holds them: `root`, or the only one in it.

    None where such a name is that of a class: there are other folders with images, and no second set.
    """
    folders = [path for path in entries(root) if path.is_dir() and not is_system(path)]
    groups: dict[str, dict[Path, str]] = {}
    for path in folders:
        part, rest = _part_of(path.name)
        if part:
            groups.setdefault(rest, {})[path] = part
    for sets in groups.values():
        if "train" in sets.values() and len(set(sets.values())) > 1:
            return root, sets
    alone = groups.get("", {})
    if alone and not any(walk(path, EXTENSIONS, LeftOut()) for path in folders if path not in alone):
        return root, alone
    if len(folders) == 1 and not any(is_picture(path) and not is_system(path) for path in entries(root)):
        inner = _sets(folders[0])  # as archives are unpacked: one folder with everything in it
        return inner if inner[1] else (root, {})
    return root, {}


def _part_of(name: str) -> tuple[str, str]:
    """The part that a folder's name stands for, "" if none, and the rest of it: of `training_set` train and set."""
    words = re.findall(r"[a-z]+|[0-9]+", name.lower())
    known = [word for word in words if word in _PARTS]
    return (_PARTS[known[0]] if len(known) == 1 else ""), " ".join(word for word in words if word not in _PARTS)


def _without_copies(folder: Path) -> Path:
    """The folder below which the classes are: archives often hold `test/test/`."""
    inside = [path for path in entries(folder) if not is_system(path) and (path.is_dir() or is_picture(path))]
    is_copy = [path.name for path in inside] == [folder.name]
    return _without_copies(inside[0]) if is_copy else folder


def _class_name(path: Path, root: Path) -> str:
    return "/".join(path.relative_to(root).parts[:-1])


# --- pictures ------------------------------------------------------------------------------------------------------


def _silence_pillow() -> None:
    """Pillow tells the terminal what it finds odd in a picture. Here a picture is read, or refused in one line."""
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", module=r"PIL\.")


@contextmanager
def _opened(path: Path, file: Path | BinaryIO) -> Iterator["Image"]:
    """The picture; whatever comes up while it is read is a DataError that names `path`."""
    from PIL import Image, UnidentifiedImageError

    with blamed(DataError, str(path), "not a readable image", "replace or remove it"):
        try:
            with Image.open(file) as image:
                yield image
        except UnidentifiedImageError:  # its own words name an object of Python
            raise ValueError("it is of no known kind, or damaged") from None


def _head(path: Path) -> tuple[str, str, tuple[int, int]]:
    """SHA-256, color mode and (height, width), from reading the file once."""
    with blamed(DataError, str(path)):
        content = path.read_bytes()
    with _opened(path, io.BytesIO(content)) as image:
        refuse_bomb(path, image.width * image.height * len(image.getbands()), len(content))
        width, height = _upright_size(image, content)
        return hashlib.sha256(content).hexdigest(), image.mode, (height, width)


def _upright_size(image: "Image", content: bytes) -> tuple[int, int]:
    """(width, height) of the picture as it is looked at."""
    from PIL import ImageOps

    # Pillow decodes a whole PNG to find out how it lies, so only one that says anything is asked
    if any(mark in content for mark in _ORIENTED) and image.getexif().get(_ORIENTATION, 1) != 1:
        ImageOps.exif_transpose(image, in_place=True)
    return image.size


def _is_deep(mode: str) -> bool:
    """Whether a picture of this mode has more than 8 bits: integers of 16 or 32, or floats."""
    return mode.startswith("I") or mode == "F"


def _floats(image: "Image") -> NDArray[np.float32]:
    """[H, W] of a picture with more than 8 bits; white is 1."""
    array = np.asarray(image).astype(np.float32)
    if image.mode != "F":
        return array / np.float32(_WHITE_16)
    if not np.isfinite(array).all():
        raise ValueError("it holds NaN or infinite pixels")
    return array


def _flat(image: "Image", background: Color, channels: int) -> "Image":
    """A picture of 8 bits, gray or in color, laid on the background where it is transparent."""
    from PIL import Image

    if image.has_transparency_data:
        canvas = Image.new("RGBA", image.size, (*background, 255))
        canvas.alpha_composite(image.convert("RGBA"))
        image = canvas.convert("RGB")
    return image.convert("L" if channels == 1 else "RGB")


def _common_size(files: list[Path], sizes: list[tuple[int, int]], shape: tuple[int, ...] | None) -> tuple[int, int]:
    """(height, width) of all. DataError names the first that differs from most, or from what a model takes."""
    values: list[Any] = sorted(set(sizes), key=sizes.count)
    usual = values[-1]
    if shape is not None:
        odd = next((i for i, size in enumerate(sizes) if size != shape[1:]), None)
        if odd is not None:
            height, width = sizes[odd]
            raise DataError(
                f"{files[odd]}: is {height}x{width} pixels, the model was trained on {shape[1]}x{shape[2]}; resize it, "
                f"or train with data.size=[{shape[1]},{shape[2]}], which resizes all pictures"
            )
    for path, size in zip(files, sizes, strict=True):
        if size != usual:
            raise DataError(
                f"{path}: is {size[0]}x{size[1]} pixels, others are {usual[0]}x{usual[1]}; "
                f"set data.size=[{usual[0]},{usual[1]}] to resize all"
            )
    return int(usual[0]), int(usual[1])
