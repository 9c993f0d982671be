"""Configs of Hugging Face models, read key by key: what is damaged, or would change the numbers unseen, is refused."""

from collections.abc import Mapping
from typing import Any

from core.errors import DataError
from core.models.gpt import GPT
from core.plain import show

GPT2_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}
LARGEST = 2**31 - 1  # of a size
_REQUIRED = object()

# What moves no logit: origin, tokens that the tokenizer knows, training, what calls return, and how text is sampled.
IGNORED = {
    "_attn_implementation_autoset", "_name_or_path", "architectures", "attention_dropout", "attn_pdrop", "bos_token_id",
    "chunk_size_feed_forward", "decoder_start_token_id", "do_sample", "dtype", "early_stopping", "embd_pdrop",
    "eos_token_id", "gradient_checkpointing", "id2label", "initializer_range", "label2id", "length_penalty",
    "max_length", "min_length", "model_type", "n_ctx", "no_repeat_ngram_size", "num_beams", "output_attentions",
    "output_hidden_states", "pad_token_id", "problem_type", "reorder_and_upcast_attn", "repetition_penalty",
    "resid_pdrop", "return_dict", "summary_activation", "summary_first_dropout", "summary_proj_to_labels",
    "summary_type", "summary_use_proj", "task_specific_params", "temperature", "tokenizer_class", "top_k", "top_p",
    "torch_dtype", "transformers_version", "use_cache",
}  # fmt: skip


class Fields:
    """The keys of a config, each read once by its type. All errors are DataErrors that name the key."""

    def __init__(self, found: Mapping[str, Any], where: str) -> None:
        self._found, self._where, self._read = found, where, set[str]()

    def _get(self, key: str, default: Any) -> Any:
        self._read.add(key)
        value = self._found.get(key)
        if value is None and default is _REQUIRED:
            raise DataError(f"{self._where}: {key} is missing; the directory is not a whole model")
        return default if value is None else value

    def integer(self, key: str, default: Any = _REQUIRED) -> Any:
        """A size of at least 1; null and a missing key are the default."""
        value = self._get(key, default)
        if value is default or (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LARGEST):
            return value
        raise DataError(f"{self._where}: {key} should be an integer from 1 to {LARGEST:,}, got {show(value)}")

    def number(self, key: str, default: float) -> float:
        """A number above 0."""
        value = self._get(key, default)
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= LARGEST:
            return float(value)
        raise DataError(f"{self._where}: {key} should be a number above 0, got {show(value)}")

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise DataError(f"{self._where}: {key} should be true or false, got {show(value)}")
        return value

    def only(self, key: str, wanted: Any, default: Any) -> None:
        """Refuses every other value."""
        value = self._get(key, default)
        if value != wanted or isinstance(value, bool) != isinstance(wanted, bool):
            raise DataError(f"{self._where}: {key} {_text(value)} cannot be read, only {wanted}")

    def one_of(self, key: str, wanted: Mapping[str, str], default: str) -> str:
        """The entry of `wanted` that the value names."""
        value = self._get(key, default)
        if not isinstance(value, str) or value not in wanted:
            raise DataError(f"{self._where}: {key} {_text(value)} cannot be read; {', '.join(wanted)} can")
        return wanted[value]

    def section(self, *keys: str) -> "Fields":
        """The first of these keys that holds a mapping; an empty one if none does."""
        for key in keys:
            value = self._get(key, {})
            if not isinstance(value, Mapping):
                raise DataError(f"{self._where}: {key} should be a mapping, got {show(value)}")
            if value:
                return Fields(value, f"{self._where}: {key}")
        return Fields({}, self._where)

    def finish(self) -> None:
        """Refuses what was not read: a key that is not understood and is on could change what the model computes."""
        for key, value in self._found.items():
            is_off = value is None or value is False or value in ("", [], {})
            if key not in self._read and key not in IGNORED and not is_off:
                raise DataError(
                    f"{self._where}: {show(key)} {_text(value)} is not understood here, and may change what the model "
                    "computes; such a model cannot be read"
                )


def _text(value: object) -> str:
    return value if isinstance(value, str) and len(value) < 80 else show(value)


def llama_of(fields: Fields) -> tuple[GPT, int, int]:
    """Our config of a Llama, its context, and the size of its vocabulary."""
    width, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    rope, bias = fields.section("rope_parameters", "rope_scaling"), fields.flag("attention_bias", False)
    theta = fields.number("rope_theta", 10000.0)
    fields.only("hidden_act", "silu", "silu")
    fields.only("pretraining_tp", 1, 1)
    fields.only("head_dim", width // heads, width // heads)
    fields.only("mlp_bias", bias, False)
    for key in ("rope_type", "type"):
        rope.only(key, "default", "default")
    config = GPT(
        width=width,
        layers=fields.integer("num_hidden_layers"),
        heads=heads,
        kv_heads=fields.integer("num_key_value_heads", None),
        hidden=fields.integer("intermediate_size"),
        tie=fields.flag("tie_word_embeddings", False),
        bias=bias,
        rope_theta=rope.number("rope_theta", theta),
        norm_eps=fields.number("rms_norm_eps", 1e-6),
    )
    shape = fields.integer("max_position_embeddings", 2048), fields.integer("vocab_size")
    rope.finish()
    fields.finish()
    return config, *shape


def gpt2_of(fields: Fields) -> tuple[GPT, int, int]:
    """Our config of a GPT-2, its context, and the size of its vocabulary."""
    fields.only("scale_attn_weights", True, True)
    fields.only("scale_attn_by_inverse_layer_idx", False, False)
    activation = fields.one_of("activation_function", GPT2_ACTIVATIONS, "gelu_new")
    config = GPT(
        width=fields.integer("n_embd"),
        layers=fields.integer("n_layer"),
        heads=fields.integer("n_head"),
        hidden=fields.integer("n_inner", None),
        positions="learned",
        norm="layernorm",
        activation="gelu_tanh" if activation == "gelu_tanh" else "gelu",
        tie=fields.flag("tie_word_embeddings", True),
        bias=True,
        norm_eps=fields.number("layer_norm_epsilon", 1e-5),
    )
    shape = fields.integer("n_positions"), fields.integer("vocab_size")
    fields.finish()
    return config, *shape
