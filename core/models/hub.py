"""Hugging Face model directories, in and out: config.json and safetensors of Llama- and GPT-2-shaped GPTs. No pickle.

Differences in layout: here, as in GPT-2, queries, keys and values are one matrix; GPT-2 stores its matrices transposed.
"""

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from core.data.spec import Spec
from core.errors import ConfigError, DataError, blamed
from core.models.gpt import GPT
from core.models.hub_config import Fields, gpt2_of, llama_of
from core.storage.read import read_json
from core.storage.tensors import Shapes, read_shapes, read_tensors, require_shapes

Weights = dict[str, Tensor]

PREFIX, HEAD = "transformer.", "lm_head.weight"
# Masks and frequencies that older versions saved: no weights, and the same for every model of a shape.
CONSTANTS = re.compile(
    r"(?:transformer\.)?h\.\d+\.attn\.(?:bias|masked_bias)|model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq"
)

LLAMA = {"positions": "rope", "norm": "rmsnorm", "activation": "swiglu"}
GPT2 = {"positions": "learned", "norm": "layernorm", "bias": True}

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

    Raises DataError, which names the key or the tensor, if a file is missing or damaged, or holds anything that a model
    of ours does not have: nothing is left out in silence.
    """
    directory = Path(directory)
    file = directory / "config.json"
    found = read_json(file, "a Hugging Face model directory holds it")
    readers = {"llama": (llama_of, _from_llama), "gpt2": (gpt2_of, _from_gpt2)}
    kind = found.get("model_type")
    if not isinstance(kind, str) or kind not in readers:
        raise DataError(f"{file}: model_type {kind} cannot be read; {' and '.join(readers)} can")
    config_of, convert = readers[kind]
    with blamed(DataError, str(file), "not a whole model"):
        config, context, vocabulary = config_of(Fields(found, str(file)))
        spec = Spec("text", (context,), vocabulary, "token")
        with torch.device("meta"):
            outline = config.build(spec)
    _, wanted = to_hugging_face(outline, config, spec)
    tensors = _read_tensors(directory, {name: tuple(t.shape) for name, t in wanted.items()}, config.tie)
    return config, spec, convert(tensors, config)


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
    out = {PREFIX + theirs: _turn(ours, weights[ours]) for ours, theirs in _gpt2_names(config).items()}
    if not config.tie:
        out["lm_head.weight"] = weights["head.weight"]
    return out


def _from_gpt2(found: Weights, config: GPT) -> Weights:
    weights = {ours: _turn(ours, found[PREFIX + theirs]) for ours, theirs in _gpt2_names(config).items()}
    if not config.tie:
        weights["head.weight"] = found["lm_head.weight"]
    return weights


# --- files ---------------------------------------------------------------------------------------------------------


def _no_special_tokens() -> dict[str, None]:
    """The tokenizer knows them; the defaults of `transformers` would be wrong."""
    return {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


def _files(directory: Path) -> list[Path]:
    """model.safetensors, or the files that its index names."""
    index, names = directory / "model.safetensors.index.json", ["model.safetensors"]
    if index.exists():
        places = read_json(index).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()):
            raise DataError(f"{index}: weight_map should name a file for each tensor")
        names = sorted({Path(name).name for name in places.values()})  # an index does not lead out of its directory
    for name in names:
        if not (directory / name).is_file():
            raise DataError(f"{directory}: {name} is missing; only safetensors are read (pickled weights can run code)")
    return [directory / name for name in names]


def _read_tensors(directory: Path, wanted: Shapes, tie: bool) -> Weights:
    """Exactly the wanted tensors, in float32. Their names and shapes are compared before any is read."""
    files, is_short = _files(directory), False
    found: Shapes = {}
    for file in files:
        found |= read_shapes(file)
    if "wte.weight" in found:  # the original GPT-2 files leave the prefix out
        is_short = True
        wanted = {name.removeprefix(PREFIX): shape for name, shape in wanted.items()}
    known = {name: shape for name, shape in found.items() if not CONSTANTS.fullmatch(name)}
    if tie:
        known.pop(HEAD, None)
    require_shapes(known, wanted, directory)
    tensors: Weights = {}
    for file in files:
        tensors |= read_tensors(file)
    for name in wanted:
        if not tensors[name].is_floating_point():
            raise DataError(f"{directory}: {name} holds {tensors[name].dtype}, not floating point numbers")
    embedding = next(name for name in wanted if name.endswith(("embed_tokens.weight", "wte.weight")))
    if tie and HEAD in tensors and not torch.equal(tensors[HEAD], tensors[embedding]):
        raise DataError(
            f"{directory}: tie_word_embeddings is true, but {HEAD} is not {embedding}; set it to false in config.json"
        )
    return {f"{PREFIX}{name}" if is_short and name != HEAD else name: tensors[name].float() for name in wanted}
