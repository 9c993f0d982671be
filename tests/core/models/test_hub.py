"""Hugging Face directories in and out, against `transformers`: random weights, equal logits, both directions."""

import json
import random
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
from core.models.hub_config import IGNORED

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
        (
            {"hidden_size": 64, "head_dim": None},
            r"embed_tokens.weight has shape \[23, 32\], config.json says \[23, 64\]",
        ),
        ({"tie_word_embeddings": False}, "lacks lm_head.weight"),
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
    with pytest.raises(DataError, match="not whole JSON"):
        from_hugging_face(directory)


def altered(directory: Path, name: str, change: dict[str, Any], tensors: dict[str, Any] | None = None) -> Path:
    """A model as we write it, with other keys in its config, and more tensors."""
    network = random_network(EVERY[name])
    config, weights = to_hugging_face(network, EVERY[name], SPEC)
    return write(directory, {**config, **change}, {**weights, **(tensors or {})})


@pytest.mark.parametrize(
    "change",
    [
        {"sliding_window": 8},
        {"quantization_config": {"bits": 4}},
        {"num_local_experts": 8},
        {"attention_multiplier": 0.5},
        {"qk_norm": True},
        {"pretraining_tp": 2},
        {"rope_scaling": {"factor": 2.0}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
        {"scale_attn_by_inverse_layer_idx": True},
        {"logit_softcapping": 30.0},
    ],
)
@pytest.mark.parametrize("name", ["llama-tied", "gpt2"])
def test_a_key_that_is_not_understood_is_refused_by_name(name: str, change: dict[str, Any], tmp_path: Path) -> None:
    (key,) = change
    with pytest.raises(DataError, match=rf"config\.json: .*({key}|partial_rotary_factor|factor)"):
        from_hugging_face(altered(tmp_path, name, change))


def test_keys_that_move_no_logit_or_are_off_are_passed_over(tmp_path: Path) -> None:
    off = {"sliding_window": None, "use_sliding_window": False, "quantization_config": {}}
    other = {"task_specific_params": {"x": 1}, "attention_dropout": 0.1, "torch_dtype": "bfloat16", "temperature": 0.6}
    change = {**off, **other}
    _, _, weights = from_hugging_face(altered(tmp_path, "llama-untied", change))
    assert torch.equal(weights["head.weight"], random_network(EVERY["llama-untied"]).state_dict()["head.weight"])


HOSTILE: list[Any] = [
    "x", "", True, -1, 0, 2.5, 1e400, float("nan"), 2**31, 2**63, 10**400, [], [1], {"a": 1}, "\0", None, "32",
]  # fmt: skip


@pytest.mark.parametrize("name", ["llama-tied", "gpt2"])
def test_any_value_of_any_key_is_read_or_refused_with_the_key(name: str, tmp_path: Path) -> None:
    directory = altered(tmp_path, name, {})
    content = json.loads((directory / "config.json").read_text())
    said = []
    for key in content:
        for value in random.Random(key).sample(HOSTILE, 5) if key not in IGNORED else ():
            (directory / "config.json").write_text(json.dumps({**content, key: value}))
            try:
                from_hugging_face(directory)
            except DataError as error:
                said.append(str(error))
    assert len(said) > 30
    assert all("\n" not in message and str(directory) in message for message in said)


@pytest.mark.parametrize(
    "name, tensor",
    [
        ("llama-tied", "model.layers.0.self_attn.q_norm.weight"),
        ("llama-tied", "model.layers.1.self_attn.q_proj.bias"),
        ("llama-bias", "model.layers.0.self_attn.sinks"),
        ("llama-untied", "model.layers.2.input_layernorm.weight"),
        ("gpt2", "transformer.h.0.crossattention.c_attn.weight"),
        ("gpt2", "score.weight"),
    ],
)
def test_a_tensor_that_a_model_of_ours_does_not_have_is_refused_by_name(name: str, tensor: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"holds {tensor}, which"):
        from_hugging_face(altered(tmp_path, name, {}, {tensor: torch.zeros(8)}))


@pytest.mark.parametrize("name", ["llama-tied", "gpt2"])
def test_a_tied_config_beside_another_head_is_refused(name: str, tmp_path: Path) -> None:
    head = random_network(EVERY[name]).state_dict()["embedding.weight"]
    from_hugging_face(altered(tmp_path, name, {}, {"lm_head.weight": head.clone()}))
    with pytest.raises(DataError, match=r"tie_word_embeddings is true, but lm_head\.weight is not"):
        from_hugging_face(altered(tmp_path, name, {}, {"lm_head.weight": head + 1e-3}))


def test_numbers_that_are_no_floats_are_refused(tmp_path: Path) -> None:
    network = random_network(EVERY["llama-tied"])
    config, weights = to_hugging_face(network, EVERY["llama-tied"], SPEC)
    write(tmp_path, config, {name: tensor.to(torch.int8) for name, tensor in weights.items()})
    with pytest.raises(DataError, match=r"holds torch\.int8"):
        from_hugging_face(tmp_path)


def test_original_gpt2_files_are_read_without_their_prefix_and_with_their_masks(tmp_path: Path) -> None:
    network = random_network(EVERY["gpt2"])
    config, weights = to_hugging_face(network, EVERY["gpt2"], SPEC)
    short = {name.removeprefix("transformer."): tensor for name, tensor in weights.items()}
    masks = {f"h.{layer}.attn.bias": torch.ones(1, 1, 16, 16) for layer in range(2)}
    write(tmp_path, config, {**short, **masks})
    _, _, found = from_hugging_face(tmp_path)
    assert all(torch.equal(found[key], tensor) for key, tensor in network.state_dict().items())


@pytest.mark.parametrize("map_", [None, [], {"a": 1}, {"a": "/dev/zero"}, {"a": "../../x"}, "x"])
def test_a_damaged_index_is_refused(map_: Any, tmp_path: Path) -> None:
    altered(tmp_path, "llama-tied", {})
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": map_}))
    with pytest.raises(DataError):
        from_hugging_face(tmp_path)
