"""A folder of images, one subfolder per class; subfolders train, val and test above them are respected."""

import hashlib
import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.data.sources.files import relative_name, sha256_named
from core.errors import DataError

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_SETS = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
_GRAY = ("1", "L", "LA")


@dataclass(frozen=True)
class Folder:
    """The image files [N], their class names (None if they lie in no class folder), and one image's shape (C, H, W)."""

    files: list[Path]
    names: list[str] | None
    shape: tuple[int, int, int]
    fingerprint: str
    parts: dict[str, NDArray[np.int64]] = field(default_factory=dict)

    def decode(self, row: int) -> NDArray[np.uint8]:
        """[C, H, W] of one image, resized where the shape says so. Raises DataError if the file is damaged."""
        from PIL import Image

        channels, height, width = self.shape
        path = self.files[row]
        try:
            with Image.open(path) as image:
                pixels = image.convert("L" if channels == 1 else "RGB")
                if pixels.size != (width, height):
                    pixels = pixels.resize((width, height), Image.Resampling.BILINEAR)
                array = np.asarray(pixels, np.uint8)
        except (OSError, SyntaxError, ValueError) as error:  # Pillow reports a broken PNG as a SyntaxError
            raise DataError(f"{path}: not a readable image: {error}; replace or remove it") from None
        return array[None] if channels == 1 else array.transpose(2, 0, 1)


def read_folder(root: Path, size: tuple[int, int] | None) -> Folder:
    """Lists and checks the images below `root`, without keeping their pixels. DataError names the first bad file."""
    sets = {p.name: p for p in sorted(root.iterdir()) if p.is_dir() and p.name in _SETS}
    files: list[Path] = []
    parts: dict[str, NDArray[np.int64]] = {}
    for name, folder in (sets if "train" in sets else {"": root}).items():
        found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
        if name:
            parts[_SETS[name]] = np.arange(len(files), len(files) + len(found))
        files += found
    if not files:
        raise DataError(f"{root}: holds no images ({', '.join(EXTENSIONS)}), and no IDX or CIFAR files")
    names = [_class_name(path, root, bool(parts)) for path in files]
    if any(names) and not all(names):
        raise DataError(f"{files[names.index('')]}: lies in no class folder, others do; every class has its subfolder")
    with ThreadPoolExecutor(4) as pool:
        heads = list(pool.map(_head, files))
    channels = 1 if all(mode in _GRAY for _, mode, _ in heads) else 3
    shape = (channels, *(size or _common_size(files, [pixels for _, _, pixels in heads])))
    fingerprint = sha256_named(
        (relative_name(path, root), digest) for path, (digest, _, _) in zip(files, heads, strict=True)
    )
    return Folder(files, [n for n in names if n] or None, shape, fingerprint, parts)


def _class_name(path: Path, root: Path, has_sets: bool) -> str:
    inner = path.relative_to(root).parts[int(has_sets) : -1]
    return "/".join(inner)


def _head(path: Path) -> tuple[str, str, tuple[int, int]]:
    """SHA-256, color mode and (height, width), from reading the file once."""
    from PIL import Image

    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content)) as image:
            mode, (width, height) = image.mode, image.size
    except (OSError, SyntaxError, ValueError) as error:
        reason = str(error).split(" <")[0]
        raise DataError(f"{path}: not a readable image: {reason}; replace or remove it") from None
    return hashlib.sha256(content).hexdigest(), mode, (height, width)


def _common_size(files: list[Path], sizes: list[tuple[int, int]]) -> tuple[int, int]:
    values: list[Any] = sorted(set(sizes), key=sizes.count)
    usual = values[-1]
    for path, size in zip(files, sizes, strict=True):
        if size != usual:
            raise DataError(
                f"{path}: is {size[0]}x{size[1]} pixels, others are {usual[0]}x{usual[1]}; "
                f"set data.size=[{usual[0]},{usual[1]}] to resize all"
            )
    return int(usual[0]), int(usual[1])
