"""Several language models write one text as one model would that had the mean of their probabilities."""

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from core.data.spec import Spec
from core.errors import ConfigError
from core.generation.generate import Sampling, generate, stream
from core.generation.mixture import Mixture
from core.models import GPT, Recurrent

PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8]]
STRATEGIES = [
    Sampling(greedy=True),
    Sampling(),
    Sampling(temperature=0.7, top_k=6, top_p=0.9, repetition_penalty=1.3),
    Sampling(beams=3, length_penalty=0.7),
]


def networks(vocabulary: int = 9, contexts: Sequence[int] = (24, 20)) -> list[nn.Module]:
    """Two transformers and a recurrent network, far from uniform and from each other."""
    built = []
    configs = [GPT(width=16, layers=1, heads=2), GPT(width=16, layers=2, heads=2), Recurrent(hidden=8)]
    for seed, (config, context) in enumerate(zip(configs, [*contexts, 24], strict=True)):
        torch.manual_seed(seed)
        network: nn.Module = config.build(Spec("text", (context,), vocabulary, "token"))
        for parameter in network.parameters():
            parameter.data.add_(torch.randn_like(parameter), alpha=0.25)
        built.append(network.eval())
    return built


def together(each: Sequence[nn.Module], tokens: Tensor) -> Tensor:
    """Log of the mean probability [B, T, V], by reading everything."""
    with torch.no_grad():
        return torch.stack([network(tokens).softmax(-1) for network in each]).mean(0).log()


@pytest.mark.parametrize("sampling", STRATEGIES[:2])
def test_each_token_has_the_mean_probability_of_the_networks(sampling: Sampling) -> None:
    each = networks()
    found = generate(Mixture(each), PROMPTS, max_new_tokens=8, sampling=sampling, seed=3)
    for prompt, tokens, logprobs in zip(PROMPTS, found.tokens, found.logprobs, strict=True):
        read = together(each, torch.tensor([prompt + tokens]))[0, len(prompt) - 1 : -1]
        assert logprobs == pytest.approx(read.gather(1, torch.tensor(tokens)[:, None])[:, 0].tolist(), abs=1e-4)
        if sampling.greedy:
            assert read.argmax(-1).tolist() == tokens


@pytest.mark.parametrize("stop", [[], [2]])
def test_wide_beams_find_the_text_that_brute_force_finds(stop: list[int]) -> None:
    each, prompt, count = networks(vocabulary=4), [1, 2], 3
    found = generate(Mixture(each), [prompt], max_new_tokens=count, sampling=Sampling(beams=4**3), stop=stop)
    texts = list(itertools.product(range(4), repeat=count))
    read = together(each, torch.tensor([[*prompt, *text] for text in texts]))
    scores: dict[tuple[int, ...], float] = {}
    for row, text in enumerate(texts):
        end = next((i + 1 for i, token in enumerate(text) if token in stop), count)
        scores[text[:end]] = sum(read[row, len(prompt) - 1 + i, text[i]].item() for i in range(end)) / end
    best = max(scores, key=lambda text: scores[text])
    assert tuple(found.tokens[0]) == best and found.scores[0] == pytest.approx(scores[best], abs=1e-4)


@pytest.mark.parametrize("sampling", STRATEGIES)
def test_a_network_mixed_with_itself_writes_what_it_writes_alone(sampling: Sampling) -> None:
    network: Any = networks()[0]
    settings: dict[str, Any] = {"max_new_tokens": 8, "sampling": sampling, "stop": [0], "seed": 1}
    if sampling.repetition_penalty != 1:  # which acts on logits, and a mean of probabilities has none
        settings["sampling"] = Sampling(temperature=0.7, top_k=6, top_p=0.9)
    alone, mixed = (generate(model, PROMPTS, **settings) for model in (network, Mixture([network] * 3)))
    assert mixed.tokens == alone.tokens
    assert mixed.scores == pytest.approx(alone.scores, abs=1e-4)


@pytest.mark.parametrize("sampling", STRATEGIES)
def test_a_text_does_not_depend_on_its_batch_mates(sampling: Sampling) -> None:
    mixture = Mixture(networks())
    settings: dict[str, Any] = {"max_new_tokens": 6, "sampling": sampling, "stop": [0], "seed": 4}
    found = generate(mixture, PROMPTS, ids=["a", "b", "c"], **settings)
    for i, prompt in enumerate(PROMPTS):
        assert generate(mixture, [prompt], ids=["abc"[i]], **settings).tokens == [found.tokens[i]]


def test_a_stream_gives_the_tokens_of_the_text() -> None:
    mixture = Mixture(networks())
    pieces = list(stream(mixture, PROMPTS[:1], max_new_tokens=7, seed=2))
    assert [tokens[0] for tokens in pieces] == generate(mixture, PROMPTS[:1], max_new_tokens=7, seed=2).tokens[0]


def test_the_shortest_context_is_the_mixtures() -> None:
    assert Mixture(networks()).context == 20
    assert Mixture(networks()[2:]).context is None  # a recurrent network reads any number
    with pytest.raises(ConfigError, match="do not fit into the model's context of 20"):
        generate(Mixture(networks()), [[1] * 20], max_new_tokens=2)
