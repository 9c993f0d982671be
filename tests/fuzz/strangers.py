"""Data files that lie about their sizes, their kind or their texts, or are no files at all."""

import bz2
import gzip
import io
import lzma
import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from core.data import Image, Table, Text
from tests.fuzz.files import (
    CLASSES,
    LABELS,
    PIXELS,
    ROWS,
    Case,
    Target,
    csv_lines,
    idx,
    npy,
    numpy_file,
    picture,
    zipped,
    zstd,
)


def png(width: int, height: int) -> bytes:
    """A picture of one bit a pixel, all black: a thousandth of its size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer = zlib.compressobj(9)
    rows = b"".join([*(packer.compress(bytes(width // 8 + 1)) for _ in range(height)), packer.flush()])
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def hostile(folder: Path) -> Iterator[Case]:
    """One file after the other; those of a case are gone when the next comes."""
    for name, content in FILES.items():
        path = folder / name.partition(": ")[2]
        path.parent.mkdir(parents=True, exist_ok=True)
        if "/train-images" in name:
            (path.parent / "train-labels-idx1-ubyte").write_bytes(idx((ROWS,), LABELS))
        made = content()
        if isinstance(made, bytes):
            path.write_bytes(made)
        elif callable(made):
            made(path)
        kinds: dict[str, tuple[type[Any], tuple[Target, ...]]] = {
            "table": (Table, ("class", "real")), "image": (Image, ("class", "real")), "text": (Text, ("token",)),
        }  # fmt: skip
        kind, targets = kinds[name.partition(" ")[0]]
        root = path if path.parent == folder else folder / path.relative_to(folder).parts[0]
        yield Case(name, kind(path=str(root)), targets)
        shutil.rmtree(root) if root.is_dir() else root.unlink()


_fast_gzip = partial(gzip.compress, compresslevel=1)
_fast_bz2 = partial(bz2.compress, compresslevel=1)
_fast_lzma = partial(lzma.compress, preset=0)


def _bomb(pack: Callable[[bytes], bytes], head: bytes = b"") -> bytes:
    """Packed zeros, 1 GB of them: packed files may follow each other."""
    return pack(head) + pack(b"0" * (16 << 20)) * 64


def _zip_of_zeros(name: str, head: bytes = b"") -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive, archive.open(name, "w") as file:
        file.write(head)
        for _ in range(400):
            file.write(bytes(1 << 20))
    return out.getvalue()


def _tiff_of_many_samples() -> bytes:
    """A picture of which Pillow tells the terminal that it has too many samples a pixel."""
    tags = [(256, 8), (257, 8), (258, 8), (262, 1), (273, 8), (277, 8354), (278, 8), (279, 64)]
    body = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + body + bytes(100)


def _header(shape: str, kind: str = "<f8") -> bytes:
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text


def _encrypted(name: str) -> bytes:
    content = bytearray(zipped(b"a,y\n1,2\n", name))
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    return bytes(content)


def _member(content: bytes, name: str = "inputs.npy") -> bytes:
    return zipped(content, name)


def _wide(values: list[int]) -> Any:
    return np.array(values * (ROWS // len(values)), "<u4").view("<U1")


def _parquet_of(column: Any, **more: Any) -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    out = io.BytesIO()
    parquet.write_table(pa.table({"a": column, "y": pa.array([0, 1] * (len(column) // 2), pa.int8())}), out, **more)
    return out.getvalue()


def _many_rows() -> bytes:
    import pyarrow as pa
    from pyarrow import parquet

    out, same = io.BytesIO(), pa.table({"a": pa.array(np.zeros(1 << 20)), "y": pa.array(np.zeros(1 << 20, np.int8))})
    with parquet.ParquetWriter(out, same.schema, compression="zstd") as file:
        for _ in range(64):
            file.write_table(same, row_group_size=1 << 20)
    return out.getvalue()


def _column(kind: str) -> bytes:
    import pyarrow as pa

    makers: dict[str, Callable[[], Any]] = {
        "large_binary": lambda: pa.array([b"\xff"] * 4, pa.large_binary()),
        "no utf-8": lambda: pa.array([b"\xff"] * 4, pa.binary()).view(pa.string()),
        "decimal": lambda: pa.array([10**70] * 4, pa.decimal256(76)),
        "a date": lambda: pa.array([2**31 - 1, -(2**31)] * 2, pa.int32()).view(pa.date32()),
        "a time": lambda: pa.array([2**63 - 1, -(2**63)] * 2, pa.int64()).view(pa.timestamp("us")),
        "nothing": lambda: pa.nulls(4),
        "halves": lambda: pa.array([np.float16(1)] * 4),
        "unsigned": lambda: pa.array([2**64 - 1] * 4, pa.uint64()),
        "nested": lambda: pa.array([[1]] * 4),
        "spans": lambda: pa.array([1] * 4, pa.duration("ns")),
    }
    return _parquet_of(makers[kind]())


def _lines(value: str, key: str = "a") -> bytes:
    return "".join(f'{{"{key}": {value}, "y": {i % 2}, "text": "{i}"}}\n' for i in range(ROWS)).encode()


def _in_a_folder(make: Callable[[Path], object]) -> Callable[[], Callable[[Path], object]]:
    return lambda: make


def _non_utf8_folders(path: Path) -> None:
    for name in (b"\xff", b"\xfe"):
        inside = os.path.join(os.fsencode(path.parent), name)
        os.mkdir(inside)
        for i in range(8):
            Path(os.fsdecode(inside), f"{i}.png").write_bytes(picture("png", i))


def _cifar_100(path: Path) -> None:
    path.write_bytes(b"".join(bytes([0, i % 2]) + bytes(3072) for i in range(20)))
    path.with_name("fine_label_names.txt").write_bytes(b"\xff\n" * 100)


def _hole(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 42)  # no byte of it lies on the disk


FOUR, HUGE = np.zeros((4, 2, 2), np.uint8), "(4611686018427387904,)"
FILES: dict[str, Callable[[], Any]] = {
    "table member that is no array: x.npz": lambda: _member(b"words", "notes.txt"),
    "table no zip: x.npz": lambda: b"PK\x03\x04" + bytes(60),
    "table encrypted: x.npz": lambda: _encrypted("inputs.npy"),
    "table encrypted: x.csv.zip": lambda: _encrypted("x.csv"),
    "table unknown packing: x.csv.zip": lambda: _encrypted("x.csv").replace(b"\x08\x00", b"\x63\x00"),
    "table lzma: x.csv.xz": lambda: lzma.compress(csv_lines())[:-9] + b"damaged..",
    "table lzma of huge memory: x.csv.xz": lambda: b"\xfd7zXZ\0\0\4\xe6\xd6\xb4F\2\0!\1\x28\0\0\0\0" + bytes(40),
    "table size past memory: x.npy": lambda: _header("(1099511627776,)") + bytes(8),
    "table size past int64: x.npy": lambda: _header("(99999999999999999999999,)"),
    "table product past int64: x.npy": lambda: _header("(4294967296, 4294967296)"),
    "table negative size: x.npy": lambda: _header("(-1, 2)"),
    "table size past memory: x.npz": lambda: _member(_header("(1099511627776,)") + bytes(8)),
    "table size past int64: x.npz": lambda: _member(_header(HUGE)),
    "table size near memory: x.npz": lambda: _member(_header("(200000000,)") + bytes(8)),
    "table nested header: x.npy": lambda: _header("(" * 40 + ")" * 40),
    "table bomb: x.npz": lambda: _zip_of_zeros("inputs.npy", _header("(52428, 1000)")),
    "image bomb: x.npz": lambda: _zip_of_zeros("inputs.npy", _header("(400, 1024, 1024)", "|u1")),
    "table bomb: x.csv.gz": lambda: _bomb(_fast_gzip, b"a,y\n"),
    "table bomb: x.csv.bz2": lambda: _bomb(_fast_bz2),
    "table bomb: x.jsonl.xz": lambda: _bomb(_fast_lzma),
    "table bomb: x.json.zip": lambda: _zip_of_zeros("x.json", b'[{"a": "'),
    "text bomb: x.txt.gz": lambda: _bomb(_fast_gzip),
    "text bomb: x.txt.zip": lambda: _zip_of_zeros("x.txt"),
    "text bomb: x.txt.zst": lambda: _bomb(zstd),
    "table bomb: x.parquet": _many_rows,
    "image bomb: x/train-images-idx3-ubyte.gz": lambda: _bomb(_fast_gzip, idx((1 << 20, 32, 32), b"")),
    "image bomb: x/a/x.png": lambda: png(20_000, 20_000),
    "image smaller bomb: x/a/x.png": lambda: png(12_000, 12_000),
    "image a tag too many: x/a/x.tif": _tiff_of_many_samples,
    "table objects: x.npy": lambda: npy(np.array([[1, None], [{}, "x"]], object), True),
    "table objects: x.npz": lambda: numpy_file(inputs=np.eye(4), y=np.array([None, {}, 1, "x"], object)),
    "table structures: x.npz": lambda: numpy_file(inputs=np.eye(4), y=np.zeros(4, "i4,f8")),
    "table a matrix of structures: x.npy": lambda: npy(np.zeros((4, 2), "i4,f8")),
    "table times: x.npz": lambda: numpy_file(inputs=np.eye(4), y=np.zeros(4, "M8[s]")),
    "table no such letters: x.npz": lambda: numpy_file(a=np.arange(60.0), y=_wide([0x110000, 65])),
    "table lone surrogates: x.npz": lambda: numpy_file(a=np.arange(60.0), y=_wide([0xD800, 65])),
    "table long floats: x.npz": lambda: numpy_file(inputs=np.full((4, 2), np.longdouble("1e4000")), y=np.arange(4) % 2),
    "image object labels: x.npz": lambda: numpy_file(images=FOUR, labels=np.array([None, {}, 1, "x"], object)),
    "image structured labels: x.npz": lambda: numpy_file(images=FOUR, labels=np.zeros(4, "i4,f8")),
    "image no such letters: x.npz": lambda: numpy_file(images=PIXELS, labels=_wide([0x110000, 65])),
    "image large floats: x.npz": lambda: numpy_file(images=np.full((60, 2, 2), 1e300), labels=CLASSES),
    "image large labels: x.npz": lambda: numpy_file(images=PIXELS, labels=np.full(60, 1e300)),
    "image large integers: x.npz": lambda: numpy_file(images=PIXELS, labels=np.arange(60, dtype=np.uint64) + 2**63),
    "image no pixels: x.npz": lambda: numpy_file(images=np.zeros((4, 0, 3), np.uint8), labels=np.arange(4)),
    "image product past int64: x/train-images-idx3-ubyte": lambda: idx((2**32 - 1,) * 3, b""),
    "image product of nothing: x/train-images-idx3-ubyte": lambda: idx((65536,) * 4, b""),
    "image 255 dimensions: x/train-images-idx3-ubyte": lambda: idx((0,) * 255, b""),
    "image no images: x/train-images-idx3-ubyte": lambda: idx((0, 2, 2), b""),
    "image no pixels: x/train-images-idx3-ubyte": lambda: idx((60, 0, 2), b""),
    "image a folder: x/data_batch_1.bin": _in_a_folder(Path.mkdir),
    "image names not utf-8: x/train.bin": _in_a_folder(_cifar_100),
    "image folders not utf-8: x/a": _in_a_folder(_non_utf8_folders),
    "table nesting: x.json": lambda: b"[" * 100_000,
    "table nesting: x.jsonl": lambda: b'{"a":' * 100_000,
    "text nesting: x.json": lambda: b"[" * 100_000,
    "table long integers: x.jsonl": lambda: _lines("9" * 400),
    "table longer integers: x.jsonl": lambda: _lines("9" * 5000),
    "table long targets: x.jsonl": lambda: "".join(f'{{"a": 1, "y": {"9" * 400}}}\n' for _ in range(9)).encode(),
    "table long integers: x.csv": lambda: b"a,y\n" + b"".join(b"9" * 400 + b",%d\n" % (i % 2) for i in range(ROWS)),
    "table infinities: x.jsonl": lambda: _lines("Infinity"),
    "table lone surrogates: x.jsonl": lambda: _lines('"\\ud800"'),
    "table names of lone surrogates: x.jsonl": lambda: _lines("1", "\\ud800"),
    "table lone surrogates: x.json": lambda: b'[{"a": "\\udfff", "y": 1}]',
    "text lone surrogates: x.jsonl": lambda: b'{"text": "\\ud800"}\n' * 60,
    "table names not utf-8: x.csv": lambda: b"\xff\xfe,y\n" + b"1,1\n" * ROWS,
    "table values not utf-8: x.csv": lambda: b"a,y\n" + b"\xff,1\n" * ROWS,
    "table nothing: x.csv": lambda: b"",
    "table NULs: x.csv": lambda: bytes(1000),
    "table years: x.csv": lambda: b"a,y\n" + b"0000-00-00,1\n9999-12-31,0\n" * ROWS,
    "table hours: x.csv": lambda: b"a,y\n" + b"99:99:99,1\n12:00,0\n" * ROWS,
    "table days past all calendars: x.csv": lambda: b"a,y\n" + b"2999-12-31 23:59:59.9,1\n1000-01-01,0\n" * ROWS,
    "table an open quote: x.csv": lambda: b'a,y\n"' + b"1,1\n" * 100_000,
    "table a hole: x.csv": _in_a_folder(_hole),
    "text a hole: x.txt": _in_a_folder(_hole),
    "table a folder: x.csv": _in_a_folder(Path.mkdir),
    "text a folder: x.txt": _in_a_folder(Path.mkdir),
    "text a folder in a folder: x/x.txt": _in_a_folder(Path.mkdir),
    "image a folder: x.npz": _in_a_folder(Path.mkdir),
    "image a folder: x.png": _in_a_folder(Path.mkdir),
    **{
        f"{kind} a pipe: x{ending}": _in_a_folder(os.mkfifo)
        for kind, ending in (
            *(("table", e) for e in (".csv", ".csv.gz", ".csv.zip", ".jsonl", ".parquet", ".npz", ".npy")),
            *(("image", e) for e in (".npz", ".png", ".bin", "-images-idx3-ubyte")),
            *(("text", e) for e in (".txt", ".txt.gz", ".jsonl")),
        )
    },
    "image a pipe among pictures: x/a/x.png": _in_a_folder(os.mkfifo),
    "text a pipe among texts: x/x.txt": _in_a_folder(os.mkfifo),
    "table a pipe among tables: x/x.parquet": _in_a_folder(os.mkfifo),
    **{
        f"table a column of {kind}: x.parquet": lambda kind=kind: _column(kind)  # type: ignore[misc]
        for kind in (
            "large_binary", "no utf-8", "decimal", "a date", "a time", "nothing", "halves", "unsigned", "nested",
            "spans",
        )
    },
}  # fmt: skip
