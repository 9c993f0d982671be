"""Decoding against brute force, against `transformers`, and against itself in other batches."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from core.data.spec import Spec
from core.errors import ConfigError
from core.generation.generate import Generation, Sampling, generate, stream
from core.generation.sampling import penalize
from core.models import GPT, Recurrent
from core.models.hub import to_hugging_face

VOCABULARY = 11
SPEC = Spec("text", (24,), VOCABULARY, "token")
MODELS: dict[str, Any] = {
    "llama": GPT(width=32, layers=2, heads=4, kv_heads=2),
    "gpt2": GPT(width=32, layers=2, heads=4, positions="learned", norm="layernorm", activation="gelu_tanh", bias=True),
    "lstm": Recurrent(hidden=16, layers=2),
    "gru": Recurrent(cell="gru", hidden=16),
}
PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10], [3, 3]]
every_model = pytest.mark.parametrize("name", MODELS)
STRATEGIES = {
    "greedy": Sampling(greedy=True),
    "plain": Sampling(),
    "mixed": Sampling(temperature=0.7, top_k=6, top_p=0.9, repetition_penalty=1.3),
    "beams": Sampling(beams=4, length_penalty=0.7),
}


def model(name: str, spec: Spec = SPEC) -> Any:
    torch.manual_seed(0)
    network = MODELS[name].build(spec)
    for parameter in network.parameters():  # far from uniform, so that choices are clear
        parameter.data.add_(torch.randn_like(parameter), alpha=0.25)
    return network


def close(a: Generation, b: Generation) -> bool:
    same = a.tokens == b.tokens and a.finished == b.finished
    return same and a.scores == pytest.approx(b.scores, abs=1e-4)


# --- the batch does not matter -------------------------------------------------------------------------------------


@every_model
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_prompt_gives_the_same_text_whatever_its_batch_mates(name: str, strategy: str) -> None:
    network = model(name)
    settings: dict[str, Any] = {"max_new_tokens": 8, "sampling": STRATEGIES[strategy], "stop": [0], "seed": 4}
    together = generate(network, PROMPTS, ids=["a", "b", "c", "d"], **settings)
    for i, prompt in enumerate(PROMPTS):
        alone = generate(network, [prompt], ids=["abcd"[i]], **settings)
        one = Generation(
            *([part[i]] for part in (together.tokens, together.logprobs, together.scores, together.finished))
        )
        assert close(alone, one)
        assert alone.logprobs[0] == pytest.approx(one.logprobs[0], abs=1e-4)


@every_model
def test_greedy_with_a_cache_equals_reading_everything_again(name: str) -> None:
    network = model(name)
    result = generate(network, PROMPTS, max_new_tokens=8, sampling=Sampling(greedy=True))
    for prompt, tokens, logprobs in zip(PROMPTS, result.tokens, result.logprobs, strict=True):
        logits = network(torch.tensor([prompt + tokens]))[0, len(prompt) - 1 : -1].log_softmax(-1)
        assert logits.argmax(-1).tolist() == tokens
        assert logits.amax(-1).tolist() == pytest.approx(logprobs, abs=1e-4)


def test_noise_follows_the_seed_the_id_and_the_token() -> None:
    network = model("llama")

    def write(seed: int, ids: list[Any], count: int = 12) -> list[list[int]]:
        return generate(network, [[1]] * len(ids), max_new_tokens=count, seed=seed, ids=ids).tokens

    a, b = write(0, ["a", "b"])
    assert a != b
    assert write(0, ["b", "a"]) == [b, a]
    assert write(0, ["a"], 5) == [a[:5]]
    assert write(1, ["a"]) != [a]
    assert write(0, [0, 1]) == generate(network, [[1], [1]], max_new_tokens=12).tokens


# --- strategies ----------------------------------------------------------------------------------------------------


def drawn(sampling: Sampling, logits: Tensor, count: int = 20000) -> tuple[Tensor, Tensor]:
    """Tokens drawn for one row of logits [V] at evenly spread noise, and their log-probabilities."""
    noise = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    return sampling.draw(logits.expand(count, -1), noise)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(temperature=0.5),
        Sampling(top_k=3),
        Sampling(top_p=0.6),
        Sampling(top_p=1e-9),
        Sampling(temperature=2.0, top_k=7, top_p=0.8),
        Sampling(top_k=100),
    ],
)
def test_tokens_are_drawn_from_the_distribution_of_transformers_processors(sampling: Sampling) -> None:
    process = pytest.importorskip("transformers.generation.logits_process")
    logits = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(3)) * 2
    expected = logits[None] / sampling.temperature
    if sampling.top_k:
        expected = process.TopKLogitsWarper(sampling.top_k)(None, expected)
    if sampling.top_p < 1:
        expected = process.TopPLogitsWarper(sampling.top_p)(None, expected)
    probabilities = expected.softmax(-1)[0]
    tokens, logprobs = drawn(sampling, logits)
    frequencies = torch.bincount(tokens, minlength=VOCABULARY) / len(tokens)
    assert torch.allclose(frequencies, probabilities, atol=2e-4)
    assert torch.allclose(logprobs.exp(), probabilities[tokens], atol=1e-5)


def test_a_token_of_probability_zero_is_never_drawn() -> None:
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).repeat(3, 1)
    tokens, _ = Sampling().draw(logits, torch.tensor([0.0, 0.5, 1 - 2**-32], dtype=torch.float64))
    assert tokens.tolist() == [1, 3, 3]


def test_the_repetition_penalty_is_that_of_transformers() -> None:
    process = pytest.importorskip("transformers.generation.logits_process")
    logits = torch.randn(2, VOCABULARY)
    text = torch.tensor([[1, 2, 2, 5], [0, 10, 3, 3]])
    seen = torch.zeros(2, VOCABULARY, dtype=torch.bool).scatter_(1, text, True)
    expected = process.RepetitionPenaltyLogitsProcessor(1.7)(text, logits)
    assert torch.equal(penalize(logits, seen, 1.7), expected)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    "sampling, theirs",
    [
        (Sampling(greedy=True), {}),
        (Sampling(greedy=True, repetition_penalty=1.4), {"repetition_penalty": 1.4}),
        (Sampling(beams=3), {"num_beams": 3, "early_stopping": "never"}),
        (Sampling(beams=3, length_penalty=-0.5), {"num_beams": 3, "length_penalty": -0.5, "early_stopping": "never"}),
    ],
)
def test_texts_are_those_of_transformers(name: str, sampling: Sampling, theirs: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    network = model(name)
    config, weights = to_hugging_face(network, MODELS[name], SPEC)
    peer = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(**config)).eval()
    peer.load_state_dict(weights, strict=False)
    settings = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": 0, "pad_token_id": 0}
    ours = generate(network, PROMPTS, max_new_tokens=10, sampling=sampling, stop=[0])
    for prompt, tokens in zip(PROMPTS, ours.tokens, strict=True):
        expected = peer.generate(
            torch.tensor([prompt]), attention_mask=torch.ones(1, len(prompt)), **settings, **theirs
        )
        assert expected[0, len(prompt) :].tolist() == tokens


# --- beams ---------------------------------------------------------------------------------------------------------


def brute_force(
    network: Any, prompt: list[int], count: int, stop: list[int], penalty: float
) -> tuple[float, list[int]]:
    """The best of all texts that end in a stop token, or are `count` tokens long."""
    scores: dict[tuple[int, ...], float] = {}
    texts = list(itertools.product(range(network.vocabulary), repeat=count))
    with torch.no_grad():
        logprobs = network(torch.tensor([prompt + list(text) for text in texts])).log_softmax(-1)
    for row, text in enumerate(texts):
        end = next((i + 1 for i, token in enumerate(text) if token in stop), count)
        each = [logprobs[row, len(prompt) - 1 + i, text[i]].item() for i in range(end)]
        scores[text[:end]] = sum(each) / end**penalty
    best = max(scores, key=lambda text: scores[text])
    return scores[best], list(best)


@pytest.mark.parametrize("name", ["llama", "lstm"])
@pytest.mark.parametrize("stop", [[], [2], [0, 3]])
@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.5, -1.0])
def test_wide_beams_find_what_brute_force_finds(name: str, stop: list[int], penalty: float) -> None:
    network = model(name, Spec("text", (24,), 4, "token"))
    prompts = [[1, 2, 3], [0]]
    sampling = Sampling(beams=4**4, length_penalty=penalty)
    result = generate(network, prompts, max_new_tokens=4, sampling=sampling, stop=stop)
    for i, prompt in enumerate(prompts):
        score, text = brute_force(network, prompt, 4, stop, penalty)
        assert result.tokens[i] == text
        assert result.scores[i] == pytest.approx(score, abs=1e-4)
        assert result.scores[i] == pytest.approx(sum(result.logprobs[i]) / len(text) ** penalty, abs=1e-4)
        assert result.finished[i] == (text[-1] in stop)


def test_more_beams_are_never_less_probable_than_greedy() -> None:
    network = model("llama")
    greedy = generate(network, PROMPTS, max_new_tokens=8, sampling=Sampling(greedy=True))
    beams = generate(network, PROMPTS, max_new_tokens=8, sampling=Sampling(beams=50, length_penalty=0.0))
    assert all(b >= g - 1e-4 for b, g in zip(beams.scores, greedy.scores, strict=True))
    assert beams.tokens != greedy.tokens


# --- stopping and streaming ----------------------------------------------------------------------------------------


@every_model
def test_a_text_ends_with_its_first_stop_token(name: str) -> None:
    network = model(name)
    free = generate(network, PROMPTS, max_new_tokens=16, seed=3)
    stop = [free.tokens[0][4], free.tokens[1][7]]
    stopped = generate(network, PROMPTS, max_new_tokens=16, seed=3, stop=stop)
    for whole, tokens, logprobs, finished in zip(
        free.tokens, stopped.tokens, stopped.logprobs, stopped.finished, strict=True
    ):
        end = next((i + 1 for i, token in enumerate(whole) if token in stop), None)
        assert tokens == whole[:end]
        assert len(logprobs) == len(tokens)
        assert finished == (end is not None)
    assert stopped.scores == pytest.approx([sum(logprobs) for logprobs in stopped.logprobs], abs=1e-5)


@every_model
@pytest.mark.parametrize("stop", [[], [1, 2]])
def test_streaming_gives_what_generate_gives(name: str, stop: list[int]) -> None:
    network = model(name)
    settings: dict[str, Any] = {"max_new_tokens": 10, "sampling": Sampling(top_p=0.95), "stop": stop, "seed": 2}
    texts: list[list[int]] = [[] for _ in PROMPTS]
    steps = 0
    for new in stream(network, PROMPTS, **settings):
        steps += 1
        for text, token in zip(texts, new, strict=True):
            if token is not None:
                text.append(token)
    expected = generate(network, PROMPTS, **settings).tokens
    assert texts == expected
    assert steps == max(len(text) for text in expected)


def test_a_stream_shows_each_token_before_the_next_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    network = model("llama")
    steps: list[int] = []
    step = network.step
    monkeypatch.setattr(network, "step", lambda *a: (steps.append(1), step(*a))[1])
    tokens = stream(network, [[1]], max_new_tokens=5)
    for index in range(5):
        next(tokens)
        assert len(steps) == index
    assert next(tokens, None) is None


def test_no_prompts_give_no_texts() -> None:
    assert generate(model("llama"), [], max_new_tokens=3) == Generation([], [], [], [])
    assert list(stream(model("llama"), [], max_new_tokens=3)) == []


# --- refusals ------------------------------------------------------------------------------------------------------


def test_the_context_can_be_filled_to_the_last_token_and_no_further() -> None:
    network = model("gpt2")
    assert len(generate(network, [[1, 2, 3]], max_new_tokens=22).tokens[0]) == 22
    with pytest.raises(ConfigError, match=r"prompt 1: 3 tokens .* context of 24; set max_new_tokens to 22 or less"):
        generate(network, [[1], [1, 2, 3]], max_new_tokens=23)
    with pytest.raises(ConfigError, match="shorten the prompt"):
        generate(network, [[1] * 25], max_new_tokens=1)
    assert len(generate(model("lstm"), [[1] * 30], max_new_tokens=30).tokens[0]) == 30


@pytest.mark.parametrize(
    "prompts, settings, message",
    [
        ([[1], []], {}, "prompt 1 is empty"),
        ([[1, 11]], {}, "prompt 0: token 11"),
        ([[-1]], {}, "prompt 0: token -1"),
        ([[1]], {"max_new_tokens": 0}, "max_new_tokens must"),
        ([[1]], {"stop": [99]}, "stop: token 99"),
        ([[1]], {"ids": [1, 2]}, "ids: 2 for 1 prompts"),
    ],
)
def test_bad_requests_are_refused_in_one_line(prompts: list[list[int]], settings: dict[str, Any], message: str) -> None:
    for verb in (generate, stream):
        with pytest.raises(ConfigError, match=message) as caught:
            verb(model("llama"), prompts, **{"max_new_tokens": 2} | settings)
        assert "\n" not in str(caught.value)


def test_beams_are_not_streamed() -> None:
    with pytest.raises(ConfigError, match="beams"):
        stream(model("llama"), [[1]], max_new_tokens=2, sampling=Sampling(beams=2))


@pytest.mark.parametrize(
    "field, value",
    [
        ("temperature", 0.0),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("repetition_penalty", 0.0),
        ("beams", 0),
        ("length_penalty", float("nan")),
    ],
)
def test_a_bad_setting_is_refused_by_its_name(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"^{field} must"):
        Sampling(**{field: value})


@pytest.mark.parametrize("field", [{"greedy": True}, {"temperature": 0.5}, {"top_k": 3}, {"top_p": 0.5}])
def test_beams_do_not_go_with_chance(field: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^beams"):
        Sampling(beams=2, **field)
