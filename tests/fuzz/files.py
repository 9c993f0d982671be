"""Data files to damage: a good one for every reader."""

import bz2
import gzip
import io
import json
import lzma
import random
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from core.data import DataConfig, Image, Table, Text

Target = Literal["class", "real", "token"]
ROWS = 60


class Case(NamedTuple):
    """What is read: `path` below the folder, and how."""

    name: str
    config: DataConfig
    targets: tuple[Target, ...]


def table_rows() -> list[dict[str, Any]]:
    return [
        {"a": i * 0.5, "b": ("x", "yy", "zé")[i % 3], "day": f"2024-01-{i % 28 + 1:02}", "y": i % 2}
        for i in range(ROWS)
    ]


def csv_lines(mark: str = ",") -> bytes:
    lines = [mark.join(table_rows()[0]), *(mark.join(map(str, row.values())) for row in table_rows())]
    return ("\n".join(lines) + "\n").encode()


def _jsonl() -> bytes:
    return "".join(json.dumps(row) + "\n" for row in table_rows()).encode()


def _texts() -> bytes:
    return "".join(json.dumps({"text": f"many words, {i} of them, é\n" * 4}) + "\n" for i in range(ROWS)).encode()


def _parquet() -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    out = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(table_rows()), out)
    return out.getvalue()


def numpy_file(compressed: bool = False, **arrays: Any) -> bytes:
    out = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(out, **arrays)
    return out.getvalue()


def npy(array: Any, pickled: bool = False) -> bytes:
    out = io.BytesIO()
    np.save(out, array, allow_pickle=pickled)
    return out.getvalue()


def zipped(content: bytes, name: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return out.getvalue()


def zstd(content: bytes) -> bytes:
    import pyarrow

    return bytes(pyarrow.compress(content, codec="zstd", asbytes=True))


def idx(shape: tuple[int, ...], content: bytes) -> bytes:
    return bytes([0, 0, 8, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape) + content


def picture(ending: str, seed: int) -> bytes:
    from PIL import Image as Pillow

    out = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), np.uint8)
    Pillow.fromarray(pixels).save(out, {"jpg": "jpeg", "tif": "tiff"}.get(ending, ending))
    return out.getvalue()


LABELS = bytes(i % 2 for i in range(ROWS))
PIXELS = np.random.default_rng(0).integers(0, 255, (ROWS, 4, 4), np.uint8)
CLASSES = np.frombuffer(LABELS, np.uint8)
TABLES: dict[str, Callable[[], bytes]] = {
    "t.csv": csv_lines,
    "t.tsv": lambda: csv_lines("\t"),
    "t.csv.gz": lambda: gzip.compress(csv_lines()),
    "t.csv.bz2": lambda: bz2.compress(csv_lines()),
    "t.csv.xz": lambda: lzma.compress(csv_lines()),
    "t.csv.zst": lambda: zstd(csv_lines()),
    "t.csv.zip": lambda: zipped(csv_lines(), "t.csv"),
    "t.jsonl": _jsonl,
    "t.json": lambda: json.dumps(table_rows()).encode(),
    "t.json.gz": lambda: gzip.compress(json.dumps(table_rows()).encode()),
    "t.parquet": _parquet,
    "folder/t.parquet": _parquet,
    "t.npz": lambda: numpy_file(inputs=np.eye(ROWS), words=np.array(["x", "yy"] * (ROWS // 2)), y=CLASSES),
    "packed.npz": lambda: numpy_file(True, inputs=np.eye(ROWS), y=CLASSES),
    "t.npy": lambda: npy(np.arange(ROWS * 3.0).reshape(ROWS, 3) % 2),
}
IMAGES: dict[str, Callable[[], bytes]] = {
    "i.npz": lambda: numpy_file(images=PIXELS, labels=CLASSES),
    "words.npz": lambda: numpy_file(True, images=PIXELS / 255, labels=np.array(["a", "b"] * (ROWS // 2))),
    "mnist/train-images-idx3-ubyte": lambda: idx(PIXELS.shape, PIXELS.tobytes()),
    "packed/train-images-idx3-ubyte.gz": lambda: gzip.compress(idx(PIXELS.shape, PIXELS.tobytes())),
    "labels/train-labels-idx1-ubyte": lambda: idx((ROWS,), LABELS),
    "cifar/data_batch_1.bin": lambda: b"".join(bytes([i % 2]) + bytes([i] * 3072) for i in range(20)),
    **{f"{e}/a/0.{e}": lambda e=e: picture(e, 0) for e in ("png", "jpg", "gif", "bmp", "tif", "webp", "ppm")},  # type: ignore[misc]
}
WORDS: dict[str, Callable[[], bytes]] = {
    "w.txt": lambda: "many words, é, about nothing at all\n".encode() * 100,
    "w.txt.xz": lambda: lzma.compress(b"many words about nothing at all\n" * 100),
    "texts/w.txt": lambda: b"many words about nothing at all\n" * 100,
    "w.jsonl": _texts,
    "w.json.gz": lambda: gzip.compress(_texts()),
}
READERS = {**TABLES, **IMAGES, **WORDS}


def write_good(folder: Path) -> None:
    """All good files, and what must lie beside some."""
    for name, make in READERS.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(make())
    for name in ("mnist/train-labels-idx1-ubyte", "packed/train-labels-idx1-ubyte"):
        (folder / name).write_bytes(idx((ROWS,), LABELS))
    (folder / "labels/train-images-idx3-ubyte").write_bytes(idx(PIXELS.shape, PIXELS.tobytes()))
    for name in IMAGES:
        if "/a/" in name:
            ending = name.partition("/")[0]
            for i in range(8):
                path = folder / ending / "ab"[i % 2] / f"{i + 1}.{ending}"
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(picture(ending, i + 1))


def case_of(name: str, folder: Path) -> Case:
    """How a good file, damaged or not, is read."""
    path = str(folder / (name.partition("/")[0] if "/" in name else name))
    if name in WORDS:
        return Case(name, Text(path=path, context=8), ("token",))
    if name in IMAGES:
        return Case(name, Image(path=path), ("class", "real") if "/a/" not in name else ("class",))
    return Case(name, Table(path=path), ("class", "real"))


def damaged(content: bytes, draw: random.Random) -> bytes:
    """One of the ways in which files break, or in which somebody breaks them."""
    some, way = bytearray(content), draw.randrange(7)
    first = min(len(some), draw.choice((64, 512, len(some))))
    if way == 0:
        return content[: draw.randrange(len(content))]
    if way == 1:
        start = draw.randrange(len(content))
        return (
            content[:start]
            + content[start : start + draw.choice((1, 8, 1000))] * draw.choice((2, 50))
            + content[start:]
        )
    if way in (2, 3):
        for _ in range(draw.choice((1, 1, 5, 50))):
            some[draw.randrange(first)] = draw.randrange(256)
    elif way == 4:  # sizes that are huge or negative
        size = draw.choice((2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1, 0, 10**9))
        width = draw.choice((4, 8))
        at = draw.randrange(max(1, first - width))
        some[at : at + width] = (size % 2 ** (8 * width)).to_bytes(width, draw.choice(("little", "big")))
    elif way == 5:  # the same, where they are written in digits; and what is no text
        numbers = list(re.finditer(rb"\d+", content[:4000])) or [re.search(b"", content)]
        one = draw.choice(numbers)
        other = draw.choice(
            (b"9" * 400, b"-1", b"9" * 19, b"\xff", b'"', b"\\ud800", b"1e999", b"[" * 5000, b"\0", b"99999999")
        )
        if one is not None:
            return content[: one.start()] + other + content[one.end() :]
    else:
        start, end = sorted(draw.randrange(len(content)) for _ in range(2))
        some[start:end] = b""
    return bytes(some)


def variants(folder: Path, seeds: int) -> Iterator[Case]:
    """Each reader's file in damaged variants, one after the other in place of the good one."""
    for name in READERS:
        path = folder / name
        whole = path.read_bytes()
        yield case_of(name, folder)._replace(name=f"{name} whole")
        for seed in range(seeds):
            path.write_bytes(damaged(whole, random.Random(f"{name} {seed}")))
            yield case_of(name, folder)._replace(name=f"{name} {seed}")
        path.write_bytes(whole)
