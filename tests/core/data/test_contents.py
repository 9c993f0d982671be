"""Files as they are packed and encoded, and records as json and jsonl hold them."""

import bz2
import gzip
import io
import json
import lzma
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest

from core.data import Text, load
from core.data.sources.contents import text_file
from core.data.sources.records import read_records
from core.errors import DataError

WORDS = "many words about nothing at all\n" * 200


def zipped(content: bytes, name: str = "a.txt") -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("__MACOSX/._a", b"a mac was here")
        archive.writestr(name, content)
    return file.getvalue()


PACK: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: bytes(pyarrow.compress(content, codec="zstd", asbytes=True)),
    ".zip": zipped,
}


def text_of(path: Path) -> str:
    with text_file(path) as file:
        return file.read()


# --- packed --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", PACK)
def test_a_packed_text_is_read_as_the_text_is(ending: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(WORDS)
    packed = tmp_path / f"A.TXT{ending.upper()}"
    packed.write_bytes(PACK[ending](WORDS.encode()))
    plain, unpacked = (load(Text(path=str(path), context=16), "token") for path in (tmp_path / "a.txt", packed))
    assert unpacked.sizes == plain.sizes
    folder = load(Text(path=str(tmp_path), context=16), "token")
    assert folder.notes == () and sum(folder.sizes.values()) > 1.9 * sum(plain.sizes.values())


@pytest.mark.parametrize("ending", PACK)
def test_a_packed_file_that_is_cut_off_is_refused(ending: str, tmp_path: Path) -> None:
    content = PACK[ending](WORDS.encode())
    for keep in (1, 10, len(content) // 2, len(content) - 1):
        path = tmp_path / f"a.txt{ending}"
        path.write_bytes(content[:keep])
        with pytest.raises(DataError, match=rf"a\.txt{ending}: cannot be read: .*truncated or damaged") as caught:
            text_of(path)
        assert "\n" not in str(caught.value)


def test_what_unpacks_to_more_than_data_can_be_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("core.data.sources.contents.MOST_BYTES", 1 << 20)
    path = tmp_path / "a.txt.bz2"
    path.write_bytes(bz2.compress(b"0" * (8 << 20)))
    with pytest.raises(DataError, match="unpacks to more than 100 times its size"):
        text_of(path)


def test_a_zip_of_several_files_is_refused_and_one_of_none(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a.txt", WORDS)
        archive.writestr("b.txt", WORDS)
    with pytest.raises(DataError, match=r"a\.zip: holds 2 files; unpack it, and name the one to read"):
        load(Text(path=str(tmp_path / "a.zip")), "token")
    zipfile.ZipFile(tmp_path / "b.zip", "w").close()
    with pytest.raises(DataError, match=r"b\.zip: holds 0 files"):
        load(Text(path=str(tmp_path / "b.zip")), "token")


# --- encodings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", ["", ".gz"])
def test_a_text_in_another_encoding_is_named_with_its_line(packed: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.txt{packed}"
    for content, said in [
        ("Bonn\n" * 3000 + "K\u00f6ln\n", r"line 3001: the byte 0xf6 is not UTF-8; the text may be cp1252"),
        ("Bonn\n", r"line 1: the byte 0xff is not UTF-8; the text may be utf-16"),
    ]:
        encoded = content.encode("utf-16" if "utf-16" in said else "cp1252")
        path.write_bytes(gzip.compress(encoded) if packed else encoded)
        with pytest.raises(DataError, match=said):
            load(Text(path=str(path)), "token")


def test_a_folder_of_upper_case_names_is_read_and_what_is_left_out_is_said(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in ("A.TXT", "sub/b.Txt", "readme.md", ".git.txt"):
        (tmp_path / name).write_text(WORDS)
    data = load(Text(path=str(tmp_path), context=16), "token")
    assert data.notes == (f"{tmp_path}: left out 2 files (1 .txt, 1 .md)",)


# --- records -------------------------------------------------------------------------------------------------------

ROWS: list[dict[str, Any]] = [{"a": 1, "text": "x"}, {"a": 2, "text": "y"}]
DOCUMENTS = {
    "list": json.dumps(ROWS),
    "pretty list": json.dumps(ROWS, indent=2) + "\n",
    "columns": json.dumps({"a": [1, 2], "text": ["x", "y"]}),
    "pandas": json.dumps({"a": {"0": 1, "1": 2}, "text": {"0": "x", "1": "y"}}),
    "lines": "\n".join(map(json.dumps, ROWS)),
}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_json_file_holds_records_however_they_are_written(name: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(DOCUMENTS[name])
    assert [record for _, record in read_records(path).numbered] == ROWS
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(DOCUMENTS[name].encode()))
    assert read_records(tmp_path / "a.json.gz") == read_records(path)


def test_one_object_is_one_record(tmp_path: Path) -> None:
    for text in (json.dumps(ROWS[0]), json.dumps(ROWS[0], indent=1), json.dumps(ROWS[0]) + "\n"):
        (tmp_path / "a.json").write_text(text)
        assert [record for _, record in read_records(tmp_path / "a.json").numbered] == ROWS[:1]


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("a.json", "[1, 2]", "record 1: not a JSON object but a int"),
        ("a.json", "3", "holds a int; need a list of objects"),
        ("a.json", '{"a": [1], "b": [1, 2]}', "its columns are of different lengths"),
        ("a.json", '[{"a": 1},]', "the document: not valid JSON"),
        ("a.json", '{"a": 1}\n{"a": }\n', "line 2: not valid JSON"),
        ("a.jsonl", "[" * 100_000, "line 1: not valid JSON: nested too deeply"),
        ("a.json", "[" * 100_000, "the document: not valid JSON: nested too deeply"),
        ("a.jsonl", '{"a": ' + "1" * 10_000 + "}", "line 1: not valid JSON"),
    ],
)
def test_records_that_are_none_are_refused_in_one_line(name: str, content: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=said) as caught:
        read_records(tmp_path / name)
    assert "\n" not in str(caught.value)
