"""Hugging Face model directories, in and out: config.json and safetensors of Llama- and GPT-2-shaped GPTs. No pickle.

Differences in layout: here, as in GPT-2, queries, keys and values are one matrix; GPT-2 stores its matrices transposed.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from core.data.spec import Spec
from core.errors import ConfigError, DataError
from core.models.gpt import GPT

Weights = dict[str, Tensor]

LLAMA = {"positions": "rope", "norm": "rmsnorm", "activation": "swiglu"}
GPT2 = {"positions": "learned", "norm": "layernorm", "bias": True}
GPT2_ACTIVATIONS = {"gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}

# our names of a block's matrices -> Llama's; queries, keys and values apart
LLAMA_BLOCK = {
    "attention.output": "self_attn.o_proj",
    "mlp.gate": "mlp.gate_proj",
    "mlp.input": "mlp.up_proj",
    "mlp.output": "mlp.down_proj",
}

# our name inside a block -> GPT-2's inside h.N; matrices are transposed
GPT2_BLOCK = {
    "attention_norm": "ln_1",
    "attention.qkv": "attn.c_attn",
    "attention.output": "attn.c_proj",
    "mlp_norm": "ln_2",
    "mlp.input": "mlp.c_fc",
    "mlp.output": "mlp.c_proj",
}


def to_hugging_face(network: nn.Module, config: GPT, spec: Spec) -> tuple[dict[str, Any], Weights]:
    """The contents of config.json and the tensors of model.safetensors, under the names that `transformers` reads.

    Raises ConfigError for a mixture that is neither Llama- nor GPT-2-shaped.
    """
    weights = {name: tensor.detach() for name, tensor in network.state_dict().items()}
    if all(getattr(config, name) == value for name, value in LLAMA.items()):
        return _llama_config(config, spec), _to_llama(weights, config)
    is_gpt2 = all(getattr(config, name) == value for name, value in GPT2.items())
    if is_gpt2 and config.activation != "swiglu" and config.key_heads == config.heads:
        return _gpt2_config(config, spec), _to_gpt2(weights, config)
    raise ConfigError(
        f"model: positions={config.positions}, norm={config.norm}, activation={config.activation}, bias={config.bias} "
        "has no Hugging Face shape; Llama's is rope, rmsnorm, swiglu; GPT-2's learned, layernorm, gelu or gelu_tanh, "
        "bias, kv_heads = heads"
    )


def from_hugging_face(directory: str | Path) -> tuple[GPT, Spec, Weights]:
    """Config, spec (its context is the model's) and state dict (float32) of a model directory.

    Raises DataError if a file is missing or damaged, or the model is of another architecture.
    """
    directory = Path(directory)
    found = _read_json(directory / "config.json")
    readers = {"llama": (_llama_of, _from_llama), "gpt2": (_gpt2_of, _from_gpt2)}
    kind = found.get("model_type")
    if kind not in readers:
        raise DataError(f"{directory / 'config.json'}: model_type {kind} cannot be read; {' and '.join(readers)} can")
    config_of, convert = readers[kind]
    try:
        config, context = config_of(found)
        spec = Spec("text", (context,), found["vocab_size"], "token")
        weights = convert(_read_tensors(directory), config)
    except KeyError as error:
        raise DataError(f"{directory}: {error.args[0]} is missing; the directory is not a whole {kind} model") from None
    except ValueError as error:  # also ours, from the checks of GPT
        raise DataError(f"{directory}: {error}") from None
    _check_shapes(directory, config, spec, weights)
    return config, spec, weights


# --- Llama ---------------------------------------------------------------------------------------------------------


def _llama_config(config: GPT, spec: Spec) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": spec.outputs,
        "hidden_size": config.width,
        "intermediate_size": config.inner,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.key_heads,
        "head_dim": config.width // config.heads,
        "hidden_act": "silu",
        "max_position_embeddings": spec.shape[0],
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,  # up to transformers 4; 5 reads the next line
        "rope_parameters": {"rope_type": "default", "rope_theta": config.rope_theta},
        "attention_bias": config.bias,
        "mlp_bias": config.bias,
        "tie_word_embeddings": config.tie,
        "dtype": "float32",
        **_no_special_tokens(),
    }


def _llama_of(found: dict[str, Any]) -> tuple[GPT, int]:
    width, heads = found["hidden_size"], found["num_attention_heads"]
    rope = found.get("rope_parameters") or found.get("rope_scaling") or {}
    bias = bool(found.get("attention_bias", False))
    _require(found.get("hidden_act", "silu"), "silu", "hidden_act")
    _require(rope.get("rope_type", rope.get("type", "default")), "default", "rope_type")
    _require(found.get("head_dim") or width // heads, width // heads, "head_dim")
    _require(bool(found.get("mlp_bias", False)), bias, "mlp_bias")
    config = GPT(
        width=width,
        layers=found["num_hidden_layers"],
        heads=heads,
        kv_heads=found.get("num_key_value_heads"),
        hidden=found["intermediate_size"],
        tie=bool(found.get("tie_word_embeddings", False)),
        bias=bias,
        rope_theta=float(rope.get("rope_theta", found.get("rope_theta", 10000.0))),
        norm_eps=float(found.get("rms_norm_eps", 1e-6)),
    )
    return config, found.get("max_position_embeddings", 2048)


def _to_llama(weights: Weights, config: GPT) -> Weights:
    size = config.width // config.heads
    parts = [config.heads * size, config.key_heads * size, config.key_heads * size]
    out = {"model.embed_tokens.weight": weights["embedding.weight"], "model.norm.weight": weights["norm.weight"]}
    if not config.tie:
        out["lm_head.weight"] = weights["head.weight"]
    for layer in range(config.layers):
        ours, theirs = f"blocks.{layer}.", f"model.layers.{layer}."
        out[theirs + "input_layernorm.weight"] = weights[ours + "attention_norm.weight"]
        out[theirs + "post_attention_layernorm.weight"] = weights[ours + "mlp_norm.weight"]
        for kind in ("weight", "bias") if config.bias else ("weight",):
            for name, part in zip("qkv", weights[f"{ours}attention.qkv.{kind}"].split(parts), strict=True):
                out[f"{theirs}self_attn.{name}_proj.{kind}"] = part
            for ours_name, theirs_name in LLAMA_BLOCK.items():
                out[f"{theirs}{theirs_name}.{kind}"] = weights[f"{ours}{ours_name}.{kind}"]
    return {name: tensor.contiguous() for name, tensor in out.items()}


def _from_llama(found: Weights, config: GPT) -> Weights:
    weights = {"embedding.weight": found["model.embed_tokens.weight"], "norm.weight": found["model.norm.weight"]}
    if not config.tie:
        weights["head.weight"] = found["lm_head.weight"]
    for layer in range(config.layers):
        ours, theirs = f"blocks.{layer}.", f"model.layers.{layer}."
        weights[ours + "attention_norm.weight"] = found[theirs + "input_layernorm.weight"]
        weights[ours + "mlp_norm.weight"] = found[theirs + "post_attention_layernorm.weight"]
        for kind in ("weight", "bias") if config.bias else ("weight",):
            qkv = [found[f"{theirs}self_attn.{name}_proj.{kind}"] for name in "qkv"]
            weights[f"{ours}attention.qkv.{kind}"] = torch.cat(qkv)
            for ours_name, theirs_name in LLAMA_BLOCK.items():
                weights[f"{ours}{ours_name}.{kind}"] = found[f"{theirs}{theirs_name}.{kind}"]
    return weights


# --- GPT-2 ---------------------------------------------------------------------------------------------------------


def _gpt2_config(config: GPT, spec: Spec) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": spec.outputs,
        "n_positions": spec.shape[0],
        "n_embd": config.width,
        "n_layer": config.layers,
        "n_head": config.heads,
        "n_inner": config.inner,
        "activation_function": "gelu_new" if config.activation == "gelu_tanh" else "gelu",
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": config.tie,
        "dtype": "float32",
        **_no_special_tokens(),
    }


def _gpt2_of(found: dict[str, Any]) -> tuple[GPT, int]:
    activation = found.get("activation_function", "gelu_new")
    if activation not in GPT2_ACTIVATIONS:
        raise ValueError(f"activation_function {activation} cannot be read; {', '.join(GPT2_ACTIVATIONS)} can")
    _require(bool(found.get("scale_attn_weights", True)), True, "scale_attn_weights")
    _require(bool(found.get("scale_attn_by_inverse_layer_idx", False)), False, "scale_attn_by_inverse_layer_idx")
    config = GPT(
        width=found["n_embd"],
        layers=found["n_layer"],
        heads=found["n_head"],
        hidden=found.get("n_inner"),
        positions="learned",
        norm="layernorm",
        activation="gelu_tanh" if GPT2_ACTIVATIONS[activation] == "gelu_tanh" else "gelu",
        tie=bool(found.get("tie_word_embeddings", True)),
        bias=True,
        norm_eps=float(found.get("layer_norm_epsilon", 1e-5)),
    )
    return config, found["n_positions"]


def _gpt2_names(config: GPT) -> dict[str, str]:
    """Our names of all tensors but the head -> GPT-2's."""
    names = {"embedding.weight": "wte.weight", "positions.weight": "wpe.weight"}
    names |= {f"norm.{kind}": f"ln_f.{kind}" for kind in ("weight", "bias")}
    for layer in range(config.layers):
        for ours, theirs in GPT2_BLOCK.items():
            names |= {f"blocks.{layer}.{ours}.{kind}": f"h.{layer}.{theirs}.{kind}" for kind in ("weight", "bias")}
    return names


def _turn(name: str, tensor: Tensor) -> Tensor:
    """GPT-2's linear layers hold their matrices transposed."""
    return tensor.T.contiguous() if name.startswith("blocks.") and tensor.dim() == 2 else tensor


def _to_gpt2(weights: Weights, config: GPT) -> Weights:
    out = {f"transformer.{theirs}": _turn(ours, weights[ours]) for ours, theirs in _gpt2_names(config).items()}
    if not config.tie:
        out["lm_head.weight"] = weights["head.weight"]
    return out


def _from_gpt2(found: Weights, config: GPT) -> Weights:
    # the original GPT-2 files leave the prefix out
    prefix = "transformer." if "transformer.wte.weight" in found else ""
    weights = {ours: _turn(ours, found[prefix + theirs]) for ours, theirs in _gpt2_names(config).items()}
    if not config.tie:
        weights["head.weight"] = found["lm_head.weight"]
    return weights


# --- files ---------------------------------------------------------------------------------------------------------


def _no_special_tokens() -> dict[str, None]:
    """The tokenizer knows them; the defaults of `transformers` would be wrong."""
    return {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


def _require(value: object, wanted: object, name: str) -> None:
    if value != wanted:
        raise ValueError(f"{name} {value} cannot be read, only {wanted}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; a Hugging Face model directory holds a config.json") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(found, dict):
        raise DataError(f"{path}: holds a {type(found).__name__}, not an object")
    return found


def _read_tensors(directory: Path) -> Weights:
    """All tensors in float32, from model.safetensors or from the files that its index names."""
    index = directory / "model.safetensors.index.json"
    files = ["model.safetensors"]
    if index.exists():
        files = sorted(set(_read_json(index)["weight_map"].values()))
    tensors: Weights = {}
    for file in files:
        path = directory / Path(file).name  # an index does not lead out of its directory
        if not path.exists():
            raise ValueError(f"{path.name} is missing; only safetensors are read (pickled weights can run code)")
        try:
            tensors |= load_file(path)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path.name} is damaged: {error}") from None
    return {name: tensor.float() for name, tensor in tensors.items()}


def _check_shapes(directory: Path, config: GPT, spec: Spec, weights: Weights) -> None:
    with torch.device("meta"):
        wanted = config.build(spec).state_dict()
    for name, tensor in wanted.items():
        if weights[name].shape != tensor.shape:
            raise DataError(
                f"{directory}: {name} has shape {list(weights[name].shape)}, config.json says {list(tensor.shape)}"
            )
