"""Text to token ids and back: bytes, or byte pairs learned on the training split. Every text survives both ways."""

import hashlib
import json
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from core.data.config import BPE, Byte, TokenizerConfig
from core.errors import DataError

LONGEST_WORD = 256  # bytes that pairs are learned and found in; no word of a language is longer
END = "<end>"  # the token after each document; `decode` leaves it out


class Tokenizer(Protocol):
    """What a text model needs to know of its vocabulary."""

    @property
    def config(self) -> TokenizerConfig:
        """What it was made from."""
        ...

    @property
    def size(self) -> int:
        """The number of tokens in the vocabulary."""
        ...

    @property
    def end(self) -> int:
        """The token that ends a document."""
        ...

    @property
    def sha256(self) -> str:
        """Two tokenizers with the same digest encode every text alike."""
        ...

    def encode(self, text: str) -> list[int]: ...

    def decode(self, tokens: list[int]) -> str: ...

    def encode_documents(self, documents: list[str]) -> NDArray[np.int32]:
        """All documents in a row, each followed by `end`."""
        ...

    def token_bytes(self) -> Tensor:
        """[size] float64: how many bytes of text each token stands for; 0 for `end`."""
        ...

    def to_json(self) -> str | None:
        """The content of `tokenizer.json`; None where `config` says it all."""
        ...


class ByteTokenizer:
    """Tokens 0..255 are bytes of UTF-8, 256 is the end of a document."""

    config = Byte()
    size = 257
    end = 256
    sha256 = hashlib.sha256(b"hanse byte tokenizer 1").hexdigest()

    def encode(self, text: str) -> list[int]:
        return list(_utf8(text))

    def decode(self, tokens: list[int]) -> str:
        return bytes(t for t in tokens if t < 256).decode("utf-8", errors="replace")

    def encode_documents(self, documents: list[str]) -> NDArray[np.int32]:
        parts: list[NDArray[Any]] = []
        for text in documents:
            parts += [np.frombuffer(_utf8(text), np.uint8), np.array([self.end])]
        return np.concatenate(parts).astype(np.int32) if parts else np.empty(0, np.int32)

    def token_bytes(self) -> Tensor:
        return torch.cat([torch.ones(256, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])

    def to_json(self) -> str | None:
        return None


class BPETokenizer:
    """Byte-level BPE of the `tokenizers` library; its JSON is what Hugging Face calls `tokenizer.json`."""

    def __init__(self, content: str, config: BPE) -> None:
        """Raises DataError if `content` is not such a JSON."""
        import tokenizers

        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(content)
        except Exception as error:  # noqa: BLE001 - the library raises bare Exception
            raise DataError(f"tokenizer.json: not a tokenizer: {str(error).splitlines()[0]}") from None
        end = self._tokenizer.token_to_id(END)
        if end is None:
            raise DataError(f"tokenizer.json: has no token {END}; it was not made by this program")
        # a text that happens to hold "<end>" must not become the special token
        self._tokenizer.encode_special_tokens = True
        self.config = config
        self.end = int(end)
        self.size = int(self._tokenizer.get_vocab_size())
        self.sha256 = hashlib.sha256(content.encode()).hexdigest()
        self._content = content

    @classmethod
    def learn(cls, config: BPE, documents: list[str]) -> "BPETokenizer":
        """Learns the pairs from `documents`: the same ones from the same text."""
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

        tokenizer = Tokenizer(models.BPE())
        # words, and of a longer run of text without a break (DNA, digits of pi) pieces: the library takes time that
        # grows with the square of the longest
        pieces = pre_tokenizers.Split(Regex(f".{{1,{LONGEST_WORD}}}"), "isolated")
        words = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pieces])
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=config.vocab,
            special_tokens=[END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(documents, trainer)
        return cls(json.dumps(json.loads(tokenizer.to_str()), sort_keys=True, ensure_ascii=False), config)

    def encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode([t for t in tokens if t != self.end], skip_special_tokens=False))

    def encode_documents(self, documents: list[str]) -> NDArray[np.int32]:
        parts: list[NDArray[Any]] = []
        for encoding in self._tokenizer.encode_batch_fast(documents, add_special_tokens=False):
            parts += [np.array(encoding.ids, np.int32), np.array([self.end], np.int32)]
        return np.concatenate(parts) if parts else np.empty(0, np.int32)

    def token_bytes(self) -> Tensor:
        # byte-level BPE writes each byte as one character
        lengths = [len(self._tokenizer.id_to_token(i) or "") for i in range(self.size)]
        lengths[self.end] = 0
        return torch.tensor(lengths, dtype=torch.float64)

    def to_json(self) -> str | None:
        return self._content


def make_tokenizer(config: TokenizerConfig, documents: list[str]) -> Tokenizer:
    """The tokenizer of a config, fitted on `documents` where it has something to learn."""
    return ByteTokenizer() if isinstance(config, Byte) else BPETokenizer.learn(config, documents)


def _utf8(text: str) -> bytes:
    return text.encode("utf-8", errors="replace")
