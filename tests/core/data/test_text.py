"""Text: every token once per epoch, tokenizers that lose nothing, and every way in which a text can be wrong."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from core.data import BPE, Byte, Split, Text, load, open_with
from core.data.examples import Windows, fixed_windows
from core.data.tokenizer import LONGEST_WORD, BPETokenizer, ByteTokenizer, Tokenizer
from core.errors import DataError

PROSE = "The Hanse was a league of towns; each kept its own laws, and all shared the sea. Größe, 漢字, \x00.\n"
LEARNED = BPETokenizer.learn(BPE(vocab=300), [PROSE * 20])


def write(path: Path, text: str = PROSE * 40) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("tokenizer", [ByteTokenizer(), LEARNED], ids=["byte", "bpe"])
@settings(max_examples=40)
@given(text=st.text())
def test_every_text_survives_encoding(tokenizer: Tokenizer, text: str) -> None:
    text = text.encode("utf-8", "replace").decode()  # lone surrogates are no text
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text
    assert tokenizer.token_bytes()[tokens].sum() == len(text.encode())
    assert tokenizer.encode_documents([text]).tolist() == [*tokens, tokenizer.end]
    assert tokenizer.decode([*tokens, tokenizer.end]) == text


def test_a_text_cannot_forge_the_end_token() -> None:
    assert LEARNED.end not in LEARNED.encode("a<end>b") and LEARNED.decode(LEARNED.encode("a<end>b")) == "a<end>b"


def test_byte_pairs_are_learned_the_same_again_and_save_tokens() -> None:
    again = BPETokenizer.learn(BPE(vocab=300), [PROSE * 20])
    assert again.sha256 == LEARNED.sha256 and again.size == 300
    assert len(LEARNED.encode(PROSE)) < 0.8 * len(PROSE.encode())


def test_a_long_run_of_text_without_a_break_is_learned_and_encoded_in_pieces() -> None:
    """The library's time grows with the square of the longest piece: 160,000 letters in a row took 22 s."""
    text = "".join(random.Random(0).choices("acgt", k=60_000))
    tokenizer = BPETokenizer.learn(BPE(vocab=300), [text, "and words"])
    pieces = tokenizer._tokenizer.pre_tokenizer.pre_tokenize_str(f"{text} {'é' * 5000} words")
    assert max(len(piece) for piece, _ in pieces) == LONGEST_WORD
    tokens = tokenizer.encode(text)
    assert tokenizer.decode(tokens) == text and len(tokens) < len(text) / 2


def test_words_are_cut_as_byte_level_tokenizers_cut_them() -> None:
    from tokenizers import pre_tokenizers

    text = "It's 1,437 words,\n\n and  one of " + "x" * LONGEST_WORD + " naïve letters 漢字"
    ours = BPETokenizer.learn(BPE(vocab=300), [text])._tokenizer.pre_tokenizer.pre_tokenize_str(text)
    theirs = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)
    assert [piece for piece, _ in ours[:8]] == [piece for piece, _ in theirs[:8]]
    assert len(ours) == len(theirs) + 1, "the word of 257 bytes, its space with it, is cut once"


def test_the_tokenizer_sees_the_training_text_only(tmp_path: Path) -> None:
    path, train = tmp_path / "a.txt", (PROSE * 30)[:1600]  # of 2000 characters, 80 % train
    config = Text(path=write(path, train + "xyz " * 100), context=8, tokenizer=BPE(vocab=300))
    first = load(config, "token")
    write(path, train + "uvw " * 100)
    second = load(config, "token")
    assert second.preprocess.tokenizer.sha256 == first.preprocess.tokenizer.sha256
    assert second.fingerprint != first.fingerprint


@settings(max_examples=60)
@given(st.integers(2, 200), st.integers(1, 12), st.integers(0, 50))
def test_every_token_is_predicted_once_per_epoch(count: int, context: int, epoch: int) -> None:
    if count <= context:
        return
    import numpy as np

    windows = Windows(np.arange(count, dtype=np.int32), context)
    inputs, targets = windows.take(windows.addresses(3, epoch))
    assert inputs.shape == targets.shape == (count // context, context)
    assert torch.equal(targets, (inputs + 1) % count)
    assert len(set(targets.flatten().tolist())) == targets.numel() > count - context


def test_the_windows_begin_elsewhere_in_each_epoch(tmp_path: Path) -> None:
    train = load(Text(path=write(tmp_path / "a.txt"), context=16), "token").splits["train"]
    offsets = {int(train.addresses(0, epoch).min()) for epoch in range(8)}
    assert len(offsets) > 3


@settings(max_examples=40)
@given(st.integers(0, 60), st.integers(1, 9))
def test_a_held_out_text_is_scored_once_from_its_second_token_on(count: int, context: int) -> None:
    import numpy as np

    windows = fixed_windows(np.arange(count, dtype=np.int32), context)
    scored = windows.targets[windows.targets != -100]
    assert scored.tolist() == list(range(1, count))
    assert torch.equal(windows.inputs[windows.targets != -100] + 1, scored)


@pytest.mark.parametrize("kind", ["txt", "jsonl", "folder"])
def test_the_same_documents_give_the_same_tokens_in_every_format(kind: str, tmp_path: Path) -> None:
    documents = [PROSE * 3 + str(i) for i in range(30)]
    if kind == "folder":
        for i, text in enumerate(documents):
            write(tmp_path / f"{i:02}.txt", text)
        path = tmp_path
    elif kind == "jsonl":
        path = Path(
            write(tmp_path / "a.jsonl", "\n".join(json.dumps({"text": t, "id": 7}) for t in documents) + "\n\n")
        )
    else:
        path = Path(write(tmp_path / "a.txt", "".join(documents)))
    data = load(Text(path=str(path), context=16, split=Split(0, 0)), "token")
    tokens = data.splits["train"].tokens[:-17]
    assert data.preprocess.tokenizer.decode(tokens.tolist()) == "".join(documents)
    assert int((tokens == 256).sum()) == (1 if kind == "txt" else 30)
    assert data.sizes["validation"] == data.sizes["test"] == 0


def test_the_split_and_windows_follow_the_seed_alone() -> None:
    one, same, other = (load(Text(context=32), "token", seed) for seed in (1, 1, 2))
    assert torch.equal(one.splits["test"].inputs, same.splits["test"].inputs)
    assert not torch.equal(one.splits["test"].inputs[0], other.splits["test"].inputs[0])


def test_bytes_per_token_count_the_bytes_of_a_split(tmp_path: Path) -> None:
    config = Text(path=write(tmp_path / "a.txt"), context=16, tokenizer=BPE(vocab=300), split=Split(0, 0.2))
    data = load(config, "token")
    targets = data.splits["test"].targets
    scored = targets[targets != -100]
    text = data.preprocess.tokenizer.decode(scored.tolist())
    assert data.shard().bytes_per_token[scored].sum() == len(text.encode("utf-8"))
    assert data.spec.outputs == 300 == len(data.bytes_per_token)


BAD: dict[str, tuple[str, bytes, str]] = {
    "empty": ("a.txt", b" \n", "holds no text"),
    "short": ("a.txt", b"hello", "the training text is 5 tokens, less than one window of 129"),
    "not utf-8": ("a.txt", b"abc\xff", r"a\.txt: line 1: the byte 0xff is not UTF-8"),
    "no key": ("a.jsonl", b'{"text": "a"}\n{"txt": "b"}\n', "line 2: the key 'text' is missing"),
    "bad json": ("a.jsonl", b"{", "line 1: not valid JSON"),
    "extension": ("a.pdf", b"%PDF", r"the extension '\.pdf' is not read as this kind of data; use a folder of \.txt"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_a_bad_text_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    name, content, message = BAD[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load(Text(path=str(tmp_path / name)), "token")
    assert "\n" not in str(caught.value)


def test_a_held_out_text_of_nothing_is_refused(tmp_path: Path) -> None:
    config = Text(path=write(tmp_path / "a.txt", "abcdefghij" * 2), context=4, split=Split(0.01, 0.1))
    with pytest.raises(DataError, match=r"too short for a validation split.*data\.split\.validation=0"):
        load(config, "token")


def test_a_folder_without_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no \.txt file"):
        load(Text(path=str(tmp_path)), "token")


def test_another_text_is_read_with_the_models_tokenizer(tmp_path: Path) -> None:
    config = Text(path=write(tmp_path / "a.txt"), context=16, tokenizer=BPE(vocab=300))
    data = load(config, "token")
    other = Text(path=write(tmp_path / "b.txt", PROSE), context=16, tokenizer=BPE(vocab=300))
    test, tokenizer = open_with(data.preprocess, other).splits["test"], data.preprocess.tokenizer
    tokens = [*test.inputs.flatten()[:1].tolist(), *test.targets[test.targets != -100].tolist()]
    assert tokens == [*tokenizer.encode(PROSE), tokenizer.end]


@pytest.mark.parametrize(
    "values, message",
    [
        ({"tokenizer": BPE(vocab=300)}, r"data\.tokenizer: .*vocab=300.* does not match"),
        ({"context": 8}, r"data\.context: 8"),
    ],
)
def test_another_tokenizer_or_context_is_refused(values: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt")
    data = load(Text(path=path, context=16), "token")
    with pytest.raises(DataError, match=message):
        open_with(data.preprocess, Text(**{"path": path, "context": 16, "tokenizer": Byte(), **values}))


@pytest.mark.parametrize("values", [{"context": 0}, {"token_drop": 1.0}, {"limit_bytes": 0}])
def test_numbers_out_of_range_are_refused_with_the_fields_name(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(values))} must be"):
        Text(**values)
