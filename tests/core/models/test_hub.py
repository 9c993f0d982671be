"""Hugging Face directories in and out, against `transformers`: random weights, equal logits, both directions."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from core.data.spec import Spec
from core.errors import ConfigError, DataError
from core.models import GPT
from core.models.hub import from_hugging_face, to_hugging_face

SPEC = Spec("text", (16,), 23, "token")
GPT2_SHAPE = {"positions": "learned", "norm": "layernorm", "activation": "gelu_tanh", "bias": True}
LLAMA = {
    "llama-tied": GPT(width=32, layers=2, heads=4, kv_heads=2, rope_theta=500.0),
    "llama-untied": GPT(width=32, layers=2, heads=4, tie=False, hidden=40),
    "llama-bias": GPT(width=32, layers=2, heads=4, kv_heads=1, bias=True, norm_eps=1e-4),
}
GPT2: dict[str, GPT] = {
    "gpt2": GPT(width=32, layers=2, heads=4, **GPT2_SHAPE),  # type: ignore[arg-type]
    "gpt2-untied": GPT(width=32, layers=2, heads=4, tie=False, **GPT2_SHAPE | {"activation": "gelu"}),  # type: ignore[arg-type]
}
EVERY = LLAMA | GPT2


def random_network(config: GPT) -> Any:
    torch.manual_seed(0)
    network = config.build(SPEC)
    for parameter in network.parameters():  # so that biases, norms and small initial weights are all visible
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    return network


def write(directory: Path, config: dict[str, Any], weights: dict[str, Any]) -> Path:
    (directory / "config.json").write_text(json.dumps(config))
    save_file(weights, directory / "model.safetensors")
    return directory


def exported(directory: Path, config: GPT) -> tuple[Any, Path]:
    network = random_network(config)
    return network, write(directory, *to_hugging_face(network, config, SPEC))


def tokens() -> torch.Tensor:
    return torch.randint(23, (3, 16), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.filterwarnings("default")
def test_transformers_computes_the_same_logits_from_what_we_write(name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    network, directory = exported(tmp_path, EVERY[name])
    peer, report = transformers.AutoModelForCausalLM.from_pretrained(directory, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    with torch.no_grad():
        assert (peer.eval()(tokens()).logits - network(tokens())).abs().max() < 1e-5


def peer_of(name: str) -> Any:
    transformers = pytest.importorskip("transformers")
    config = EVERY[name]
    torch.manual_seed(3)
    if name in GPT2:
        kind = "gelu_new" if config.activation == "gelu_tanh" else "gelu"
        shape = {
            "vocab_size": 23,
            "n_positions": 16,
            "n_embd": 32,
            "n_layer": 2,
            "n_head": 4,
            "activation_function": kind,
        }
        found = transformers.GPT2Config(**shape, tie_word_embeddings=config.tie)
        peer = transformers.GPT2LMHeadModel(found)
    else:
        found = transformers.LlamaConfig(
            vocab_size=23,
            hidden_size=32,
            intermediate_size=config.inner,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=config.key_heads,
            max_position_embeddings=16,
            rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            attention_bias=config.bias,
            mlp_bias=config.bias,
            tie_word_embeddings=config.tie,
        )
        peer = transformers.LlamaForCausalLM(found)
    for parameter in peer.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    return peer.eval()


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.filterwarnings("default")
def test_we_compute_the_same_logits_from_what_transformers_writes(name: str, tmp_path: Path) -> None:
    peer = peer_of(name)
    peer.save_pretrained(tmp_path)
    config, spec, weights = from_hugging_face(tmp_path)
    wanted = EVERY[name]
    assert replace(config, hidden=None, kv_heads=None) == replace(wanted, hidden=None, kv_heads=None)
    assert (config.inner, config.key_heads, spec) == (wanted.inner, wanted.key_heads, SPEC)
    network = config.build(spec)
    network.load_state_dict(weights)
    with torch.no_grad():
        assert (peer(tokens()).logits - network(tokens())).abs().max() < 1e-5


@pytest.mark.filterwarnings("default")
def test_weights_in_several_files_are_read(tmp_path: Path) -> None:
    peer = peer_of("llama-untied")
    peer.save_pretrained(tmp_path, max_shard_size="10KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    config, spec, weights = from_hugging_face(tmp_path)
    network = config.build(spec)
    network.load_state_dict(weights)
    with torch.no_grad():
        assert (peer(tokens()).logits - network(tokens())).abs().max() < 1e-5


@pytest.mark.parametrize("name", EVERY)
def test_there_and_back_is_the_same_model(name: str, tmp_path: Path) -> None:
    network, directory = exported(tmp_path, EVERY[name])
    config, spec, weights = from_hugging_face(directory)
    config.build(spec).load_state_dict(weights)
    assert all(torch.equal(weights[key], tensor) for key, tensor in network.state_dict().items())


@pytest.mark.parametrize(
    "change",
    [
        {"positions": "sinusoidal"},
        {"norm": "layernorm"},
        {"activation": "gelu"},
        GPT2_SHAPE | {"bias": False},
        GPT2_SHAPE | {"kv_heads": 2},
    ],
)
def test_a_mixture_without_a_hugging_face_shape_is_refused(change: dict[str, Any]) -> None:
    config = GPT(width=32, layers=1, heads=4, **change)
    with pytest.raises(ConfigError, match="no Hugging Face shape"):
        to_hugging_face(config.build(SPEC), config, SPEC)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "mamba"}, "model_type mamba cannot be read; llama and gpt2 can"),
        ({"hidden_act": "gelu"}, "hidden_act gelu"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4}}, "rope_type llama3"),
        ({"head_dim": 64}, "head_dim 64"),
        ({"mlp_bias": True}, "mlp_bias True"),
        ({"num_attention_heads": 5, "head_dim": None}, "heads must divide width"),
        ({"hidden_size": 64, "head_dim": None}, r"embedding.weight has shape \[23, 32\], config.json says \[23, 64\]"),
        ({"tie_word_embeddings": False}, "lm_head.weight is missing"),
    ],
)
def test_an_unsupported_model_is_refused_in_one_line(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    _, directory = exported(tmp_path, LLAMA["llama-tied"])
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=message) as caught:
        from_hugging_face(directory)
    assert "\n" not in str(caught.value)


def test_a_damaged_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"config\.json: no such file"):
        from_hugging_face(tmp_path)
    _, directory = exported(tmp_path, LLAMA["llama-tied"])
    weights = directory / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="damaged"):
        from_hugging_face(directory)
    weights.unlink()
    (directory / "pytorch_model.bin").write_bytes(b"never opened")
    with pytest.raises(DataError, match="only safetensors"):
        from_hugging_face(directory)
    (directory / "config.json").write_text("{")
    with pytest.raises(DataError, match="not readable as JSON"):
        from_hugging_face(directory)
