"""Text: documents to one row of tokens per split, and windows over it. The tokenizer sees training text only."""

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from core.data.augment import Augmentation
from core.data.config import Text
from core.data.examples import Data, Stacked, Windows, fixed_windows
from core.data.preprocess import Preprocess, Trained
from core.data.sources import bundled
from core.data.sources.contents import PACKED, kind_of, text_file
from core.data.sources.files import bundled_name, find, relative_name, sha256_named, sha256_of, unknown_extension
from core.data.sources.records import ENDINGS as RECORDS
from core.data.sources.records import read_records
from core.data.sources.walk import LeftOut, walk
from core.data.spec import Spec
from core.data.split import NAMES, split_documents
from core.data.tokenizer import Tokenizer, make_tokenizer
from core.errors import DataError

Documents = list[tuple[str, str]]  # (name, text)
ENDINGS = (".txt", *(f".txt{packed}" for packed in PACKED))  # of the files of a folder


def load_text(config: Text, seed: int, trained: Trained | None = None) -> Data:
    """Reads, splits, learns the tokenizer on the training split, encodes. DataError if a split is too short."""
    left = LeftOut()
    documents = _read(config, left)
    fingerprint = _fingerprint(documents)
    if trained:
        trained.require(fingerprint, config.path)
    parts = split_documents([text for _, text in documents], config.split, seed)
    tokenizer = trained.preprocess.tokenizer if trained else make_tokenizer(config.tokenizer, parts["train"])
    preprocess = Preprocess(Spec("text", (config.context,), tokenizer.size, "token"), tokenizer)
    train = _windows(config, tokenizer, parts["train"])
    held_out = {name: _held_out(config, tokenizer, name, parts[name]) for name in NAMES if name != "train"}
    change = Augmentation(token_drop=config.token_drop, tokens=train.tokens if config.token_drop else None)
    return Data(preprocess, fingerprint, {"train": train, **held_out}, seed, change, notes=left.note(config.path))


def open_text(preprocess: Preprocess, config: Text) -> Data:
    """The whole of another text as the split `test`, for a model whose tokenizer and context it must share."""
    tokenizer, context = preprocess.tokenizer, preprocess.spec.shape[0]
    if config.tokenizer != tokenizer.config:
        raise DataError(
            f"data.tokenizer: {config.tokenizer} does not match this model, which was trained with {tokenizer.config}"
        )
    if config.context != context:
        raise DataError(f"data.context: {config.context} does not match this model, which was trained with {context}")
    left = LeftOut()
    documents = _read(config, left)
    examples = _held_out(config, tokenizer, "test", [text for _, text in documents])
    return Data(preprocess, _fingerprint(documents), {"test": examples}, notes=left.note(config.path))


def window_documents(config: Text, data: Data) -> list[str]:
    """[N]: for each training window in fixed order the name of the document that its middle token is of.

    A name is a file's path below the folder, FILE:LINE in a jsonl file, or a help topic. DataError if the text is no
    longer the one of `data`.
    """
    documents = _read(config, LeftOut())
    if _fingerprint(documents) != data.fingerprint:
        raise DataError(f"{config.path}: has changed since it was loaded; load it again")
    if len(documents) > sys.maxunicode:
        raise DataError(f"{config.path}: at most {sys.maxunicode} documents can be told apart, not {len(documents)}")
    # a split looks at lengths alone, so texts of one letter each, their number, show which piece is of which document
    numbered = [chr(i) * len(text) for i, (_, text) in enumerate(documents)]
    pieces = [ord(piece[0]) for piece in split_documents(numbered, config.split, data.seed)["train"]]
    windows = data.splits["train"]
    assert isinstance(windows, Windows)
    ends = (windows.tokens == data.preprocess.tokenizer.end).nonzero()[:, 0]
    middles = windows.addresses(data.seed, None) + config.context // 2
    return [documents[pieces[i]][0] for i in torch.searchsorted(ends, middles).tolist()]


def _windows(config: Text, tokenizer: Tokenizer, documents: list[str]) -> Windows:
    tokens = tokenizer.encode_documents(documents)
    if len(tokens) <= config.context:
        raise DataError(
            f"{config.path}: the training text is {len(tokens)} tokens, less than one window of {config.context + 1}; "
            "give more text, or lower data.context"
        )
    return Windows(tokens, config.context)


def _held_out(config: Text, tokenizer: Tokenizer, split: str, documents: list[str]) -> Stacked:
    tokens = tokenizer.encode_documents(documents)
    is_fold = split == "test" and config.split.folds is not None
    wanted = documents or is_fold or getattr(config.split, split) > 0
    if wanted and len(tokens) < 2:
        cure = "lower data.split.folds" if is_fold else f"set data.split.{split}=0"
        raise DataError(f"{config.path}: the text is too short for a {split} split; give more text, or {cure}")
    return fixed_windows(tokens, config.context)


def _fingerprint(documents: Documents) -> str:
    return sha256_named((name, sha256_of(text.encode("utf-8", errors="replace"))) for name, text in documents)


# --- reading -------------------------------------------------------------------------------------------------------


def _read(config: Text, left: LeftOut) -> Documents:
    """The documents that are not blank, up to limit_bytes of UTF-8. `left` is told which files are not read."""
    name = bundled_name(config.path, bundled.TEXTS)
    source = bundled.read_text(name) if name else _documents(find(config.path), left)
    documents = list(_limited(source, config.limit_bytes))
    if not documents:
        raise DataError(f"{config.path}: holds no text")
    return documents


def _documents(path: Path, left: LeftOut) -> Iterator[tuple[str, str]]:
    if path.is_dir():
        files = walk(path, ENDINGS, left)
        if not files:
            raise DataError(f"{path}: the folder holds no .txt file")
        for file in files:
            yield relative_name(file, path), _text_of(file)
    elif kind_of(path) == ".txt":
        yield path.name, _text_of(path)
    elif kind_of(path) in RECORDS:
        unit, records = read_records(path)
        for number, record in records:
            if not isinstance(record.get("text"), str):
                raise DataError(f"{path}: {unit} {number}: the key 'text' is missing or not a text")
            yield f"{path.name}:{number}", record["text"]
    else:
        raise unknown_extension(path, ("a folder of .txt", ".txt", *RECORDS, f"each also packed: {', '.join(PACKED)}"))


def _text_of(path: Path) -> str:
    with text_file(path) as file:
        return file.read()


def _limited(documents: Iterable[tuple[str, str]], limit: int | None) -> Iterator[tuple[str, str]]:
    left = limit
    for name, text in documents:
        if not text.strip():
            continue
        if left is None:
            yield name, text
            continue
        content = text.encode("utf-8", errors="replace")[:left]
        left -= len(content)
        # the cut may fall inside a character, which is then left out
        yield name, content.decode("utf-8", errors="ignore")
        if left <= 0:
            return
