"""Both halves of each transform fit each other, bound what they say, and lose nothing that they do not say."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from core.errors import ConfigError
from core.population.frame import Frame
from federated.exchange import UPDATE, Reply, Transform, Vectors
from federated.inspection import Expected, fault
from federated.transforms import Clipping, Int8, TopK, TransformConfig, Weighting
from federated.transforms.chain import bytes_up, decode, encode, require, sent
from federated.transforms.top_k import largest
from tests.federated.frames import frame_of

FRAME = frame_of((40, 50), bias=10, statistics=7)  # P 2010, D 2017
P, D = FRAME.trainable, FRAME.size


def numbers(count: int = D, seed: int = 0) -> Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed))


def reply_of(update: Tensor, weight: float = 3.0, **more: Tensor) -> Reply:
    return Reply(4, weight, {UPDATE: update, **more})


def there_and_back(transform: Transform, reply: Reply, mine: Vectors | None = None, *key: int) -> tuple[Reply, Vectors]:
    coded, kept = transform.client(reply, mine or {}, FRAME, *(key or (0,)))
    return transform.server(coded, FRAME), kept


# --- clipping -------------------------------------------------------------------------------------------------------


def test_clipping_bounds_the_trainable_part_and_leaves_the_rest() -> None:
    update, other = numbers(), numbers(seed=1)
    reply, kept = there_and_back(Clipping(norm=0.5), reply_of(update, control=other))
    clipped = reply.payload[UPDATE]
    assert clipped[:P].double().norm().item() == pytest.approx(0.5, rel=1e-6)
    assert torch.allclose(clipped[:P] / clipped[:P].norm(), update[:P] / update[:P].norm())
    assert torch.equal(clipped[P:], update[P:]) and torch.equal(reply.payload["control"], other)
    assert kept == {} and torch.equal(update, numbers())


def test_clipping_leaves_small_and_zero_updates_as_they_are() -> None:
    for update in (numbers() * 1e-6, torch.zeros(D)):
        reply, _ = there_and_back(Clipping(norm=0.5), reply_of(update))
        assert torch.equal(reply.payload[UPDATE], update)


def test_batch_statistics_do_not_shrink_the_weights() -> None:
    update = numbers() * 1e-3
    update[P:] = 1e6
    assert torch.equal(there_and_back(Clipping(norm=1.0), reply_of(update))[0].payload[UPDATE], update)


def test_clipping_takes_float32_numbers_whose_squares_overflow() -> None:
    update = torch.zeros(D)
    update[:2] = 1e30
    clipped = there_and_back(Clipping(norm=1.0), reply_of(update))[0].payload[UPDATE]
    assert clipped[:2].tolist() == pytest.approx([math.sqrt(0.5)] * 2)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "chain", [[Clipping()], [Clipping(above="scale"), TopK()], [Int8()], [TopK(), Int8()]], ids=str
)
def test_a_number_that_is_not_finite_stays_visible_to_the_server(value: float, chain: list[TransformConfig]) -> None:
    update = numbers()
    update[77] = value
    coded, _ = encode(chain, reply_of(update), {}, FRAME, 0)
    assert "not finite" in str(fault(decode(chain, coded, FRAME), Expected({UPDATE: ((D,), torch.float32)})))


def test_the_server_refuses_what_was_not_clipped_or_scales_it() -> None:
    unclipped = reply_of(numbers())
    with pytest.raises(ValueError, match=r"update has norm 4\d\.\d+, above 0.5"):
        Clipping(norm=0.5).server(unclipped, FRAME)
    scaled = Clipping(norm=0.5, above="scale").server(unclipped, FRAME)
    assert torch.equal(scaled.payload[UPDATE], Clipping(norm=0.5).client(unclipped, {}, FRAME)[0].payload[UPDATE])
    with pytest.raises(ValueError, match="update is missing"):
        Clipping().server(Reply(1, 1.0, {"other": numbers()}), FRAME)


# --- weighting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "config, weight",
    [
        (Weighting(), 9.0),
        (Weighting(cap=5.0), 5.0),
        (Weighting(by="sqrt"), 3.0),
        (Weighting(by="sqrt", cap=2.0), 2.0),
        (Weighting(by="uniform"), 1.0),
    ],
    ids=str,
)
def test_a_weight_is_what_the_config_makes_of_it(config: Weighting, weight: float) -> None:
    assert there_and_back(config, reply_of(numbers(), 9.0))[0].weight == weight


@pytest.mark.parametrize(
    "config, weight, text",
    [
        (Weighting(cap=5.0), 5.1, "weight 5.1 is above 5"),
        (Weighting(by="sqrt", cap=2.0), 9.0, "weight 9 is above 2"),
        (Weighting(by="uniform"), 0.5, "weight 0.5 is not 1"),
        (Weighting(by="uniform"), 1e9, "weight 1e.09 is above 1"),
        (Weighting(), -2.0, "weight -2 is not above 0"),
        (Weighting(), math.nan, "weight nan is not above 0"),
        (Weighting(), 0.0, "weight 0 is not above 0"),
    ],
)
def test_the_server_refuses_a_weight_that_the_client_half_cannot_give(
    config: Weighting, weight: float, text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        config.server(reply_of(numbers(), weight), FRAME)


# --- int8 -----------------------------------------------------------------------------------------------------------


def test_int8_is_off_by_less_than_a_scale_and_keeps_zeros_and_single_numbers() -> None:
    update, steps = numbers(), torch.tensor(17.0)
    update[::3] = 0.0
    coded, _ = Int8().client(reply_of(update, steps=steps), {}, FRAME, 5)
    back = Int8().server(coded, FRAME)
    scales = coded.payload["update.scales"].repeat_interleave(512)[:D]
    assert ((back.payload[UPDATE] - update).abs() <= scales * (1 + 1e-5)).all()
    assert not back.payload[UPDATE][::3].any() and torch.equal(back.payload["steps"], steps)
    assert back.payload.keys() == {UPDATE, "steps"}
    assert {n: (tuple(t.shape), t.dtype) for n, t in coded.payload.items()} == {
        "update.codes": ((D,), torch.int8), "update.scales": ((4,), torch.float32), "steps": ((), torch.float32)
    }  # fmt: skip


def test_int8_rounds_without_bias() -> None:
    update = torch.linspace(-1.0, 1.0, D)
    update[-1] = 4.0
    plain, total = Int8(error_feedback=False), torch.zeros(D, dtype=torch.float64)
    count = 2000
    for i in range(count):
        total += there_and_back(plain, reply_of(update), None, i)[0].payload[UPDATE]
    error = (total / count - update).abs()
    # a Bernoulli draw's deviation is at most half a scale: 5 deviations of the mean cover 2017 numbers
    assert error.max() < 5 * 0.5 * (4.0 / 127) / math.sqrt(count)


def test_int8_draws_depend_on_the_key_and_the_name_only() -> None:
    update = numbers()
    first, _ = Int8().client(reply_of(update, other=update), {}, FRAME, 1, 2)
    again, _ = Int8().client(reply_of(update), {}, FRAME, 1, 2)
    later, _ = Int8().client(reply_of(update), {}, FRAME, 1, 3)
    assert torch.equal(first.payload["update.codes"], again.payload["update.codes"])
    assert not torch.equal(first.payload["update.codes"], first.payload["other.codes"])
    assert not torch.equal(first.payload["update.codes"], later.payload["update.codes"])


@pytest.mark.parametrize(
    "update", [torch.zeros(D), torch.full((D,), 1e-45), numbers() * 1e-30, torch.full((D,), -3e18)]
)
def test_int8_takes_numbers_of_every_size(update: Tensor) -> None:
    reply, kept = there_and_back(Int8(), reply_of(update))
    assert (reply.payload[UPDATE] - update).abs().max() <= update.abs().max() / 127 * (1 + 1e-4) + 1e-40
    assert kept[UPDATE].isfinite().all()


@pytest.mark.parametrize("block", [256, 257, 1000])
@pytest.mark.parametrize("count", [1, 255, 256, 257, 2000])
def test_int8_takes_vectors_of_every_length(block: int, count: int) -> None:
    frame = frame_of((1, count))
    config = Int8(block=block)
    coded, _ = config.client(reply_of(numbers(count)), {}, frame, 0)
    assert coded.payload["update.scales"].shape == (-(-count // block),)
    assert torch.allclose(config.server(coded, frame).payload[UPDATE], numbers(count), atol=5 / 127)


def test_int8_codes_never_leave_their_range() -> None:
    frame = frame_of((1, 2**20))
    update = torch.full((frame.size,), 0.3)  # in float32, 0.3 / (0.3 / 127) is a little more than 127
    coded, _ = Int8(error_feedback=False).client(reply_of(update), {}, frame, 0)
    assert (coded.payload["update.codes"] == 127).all()


def test_a_block_that_is_not_finite_has_no_codes_and_leaves_the_others() -> None:
    update = numbers()
    update[600] = math.nan
    coded, _ = Int8().client(reply_of(update), {}, FRAME, 0)
    clean, _ = Int8().client(reply_of(numbers()), {}, FRAME, 0)
    assert not coded.payload["update.codes"][512:1024].any() and coded.payload["update.scales"][1].isnan()
    assert torch.equal(coded.payload["update.codes"][1024:], clean.payload["update.codes"][1024:])


# --- top-k ----------------------------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(
    st.lists(st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5, 3e38, 1e-45, math.inf, math.nan]), min_size=1, max_size=20),
    st.data(),
)
def test_the_largest_are_found_and_of_equal_ones_the_first(values: list[float], data: st.DataObject) -> None:
    count = data.draw(st.integers(1, len(values)))
    magnitudes = [math.inf if math.isnan(v) else abs(v) for v in values]
    is_nan = [math.isnan(v) for v in values]
    order = sorted(range(len(values)), key=lambda i: (not is_nan[i], -magnitudes[i], i))
    assert largest(torch.tensor(values), count).tolist() == sorted(order[:count])


def test_top_k_sends_the_largest_trainable_numbers_and_whole_statistics() -> None:
    update = numbers() * 1e-3
    update[[3, 500, 2009]] = torch.tensor([5.0, -7.0, 6.0])
    update[P:] = 9.0
    config = TopK(share=3 / P)
    coded, kept = config.client(reply_of(update), {}, FRAME)
    assert coded.payload["update.indices"].tolist() == [3, 500, 2009]
    assert coded.payload["update.values"].tolist() == [5.0, -7.0, 6.0] + 7 * [9.0]
    back = config.server(coded, FRAME).payload[UPDATE]
    assert torch.equal(back + kept[UPDATE], update) and back.count_nonzero() == 10


def test_top_k_of_everything_changes_nothing() -> None:
    reply, kept = there_and_back(TopK(share=1.0), reply_of(numbers(), control=numbers(P, 1)))
    assert torch.equal(reply.payload[UPDATE], numbers()) and not kept[UPDATE].any()
    assert torch.equal(reply.payload["control"], numbers(P, 1))


SPARSE = TopK(share=0.01).client(reply_of(numbers()), {}, FRAME)[0]
CODED = Int8().client(reply_of(numbers()), {}, FRAME)[0]


def with_tensor(reply: Reply, name: str, tensor: Tensor) -> Reply:
    return replace(reply, payload=reply.payload | {name: tensor})


@pytest.mark.parametrize(
    "config, reply, text",
    [
        (TopK(share=0.01), with_tensor(SPARSE, "update.indices", torch.zeros(20, dtype=torch.int32)), "do not rise"),
        (TopK(share=0.01), with_tensor(SPARSE, "update.indices", torch.arange(20).int() - 1), "do not rise"),
        (TopK(share=0.01), with_tensor(SPARSE, "update.indices", torch.arange(20).int() + P - 19), "do not rise"),
        (TopK(share=0.01), with_tensor(SPARSE, "update.indices", torch.arange(20)), "another type"),
        (TopK(share=0.01), with_tensor(SPARSE, "update.indices", torch.arange(19).int()), "another type or number"),
        (TopK(share=0.01), with_tensor(SPARSE, "update.values", torch.ones(26)), "20 indices but 26 values"),
        (TopK(share=0.01), with_tensor(SPARSE, "update.values", torch.ones(20).double()), "another type"),
        (TopK(share=0.01), Reply(1, 1.0, {"update.values": torch.ones(27)}), "only one of"),
        (TopK(share=0.01), Reply(1, 1.0, {"update.indices": torch.arange(20).int()}), "only one of"),
        (Int8(), with_tensor(CODED, "update.codes", torch.zeros(D)), "another type"),
        (Int8(), with_tensor(CODED, "update.scales", torch.ones(4).double()), "another type"),
        (Int8(), with_tensor(CODED, "update.scales", torch.ones(5)), "2017 codes but 5 scales"),
        (Int8(), Reply(1, 1.0, {"update.codes": CODED.payload["update.codes"]}), "only one of"),
        (Int8(), Reply(1, 1.0, {"update.scales": CODED.payload["update.scales"]}), "only one of"),
    ],
)
def test_the_server_refuses_what_the_compression_cannot_have_sent(
    config: TransformConfig, reply: Reply, text: str
) -> None:
    with pytest.raises(ValueError, match=text):
        config.server(reply, FRAME)


# --- what is kept ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [TopK(share=0.05), Int8(), TopK(share=1.0)], ids=str)
def test_what_was_not_sent_comes_later_and_nothing_is_lost(config: TransformConfig) -> None:
    mine: Vectors = {}
    given_sum, read_sum = torch.zeros(P, dtype=torch.float64), torch.zeros(P, dtype=torch.float64)
    for i in range(10):
        update = numbers(seed=i)
        reply, mine = there_and_back(config, reply_of(update), mine, i)
        given_sum += update[:P]
        read_sum += reply.payload[UPDATE][:P]
    assert torch.allclose(read_sum + mine[UPDATE][:P], given_sum, atol=1e-5)
    assert not mine[UPDATE][P:].any()


@pytest.mark.parametrize("config", [TopK(share=0.05), Int8()], ids=str)
@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e30])
def test_a_reply_that_will_be_refused_leaves_what_is_owed_as_it_was(config: TransformConfig, bad: float) -> None:
    _, mine = there_and_back(config, reply_of(numbers()))
    update = numbers(seed=1)
    update[8] = bad
    _, kept = there_and_back(config, reply_of(update), mine)
    assert torch.equal(kept[UPDATE], mine[UPDATE])
    assert not there_and_back(config, reply_of(update))[1][UPDATE].any()


@pytest.mark.parametrize(
    "config", [TopK(error_feedback=False), Int8(error_feedback=False), Clipping(), Weighting()], ids=str
)
def test_a_transform_without_state_keeps_nothing(config: TransformConfig) -> None:
    assert not config.is_stateful and there_and_back(config, reply_of(numbers() * 1e-3))[1] == {}
    assert TopK().is_stateful and Int8().is_stateful


# --- chains ---------------------------------------------------------------------------------------------------------

CHAINS: list[list[TransformConfig]] = [
    [],
    [Weighting(by="sqrt")],
    [Weighting(cap=2.0), Clipping(norm=0.1)],
    [Clipping(norm=0.1), Weighting(cap=2.0)],
    [Clipping(norm=1.0, above="scale"), Int8()],
    [Clipping(norm=1.0, above="scale"), Weighting(), TopK(share=0.03)],
    [TopK(share=0.03), Int8()],
]


@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: "+".join(t.kind for t in chain))
def test_a_chain_gives_back_vectors_of_the_same_form(chain: list[TransformConfig]) -> None:
    require(chain)
    reply = reply_of(numbers(), control=numbers(seed=1), steps=torch.tensor(3.0))
    mine: Vectors = {"personal": numbers(seed=2)}
    for i in range(3):
        coded, mine = encode(chain, reply, mine, FRAME, i)
        back = decode(chain, coded, FRAME)
        assert {n: (t.shape, t.dtype) for n, t in back.payload.items()} == {
            n: (t.shape, t.dtype) for n, t in reply.payload.items()
        }
        assert "personal" not in mine
    assert back.payload["steps"] == 3.0
    for i, transform in enumerate(chain):
        if isinstance(transform, Clipping):
            assert back.payload[UPDATE][:P].norm() <= transform.norm * 1.0001
        assert any(name.startswith(f"{i}.") for name in mine) == transform.is_stateful or transform.kind == "int8"


@pytest.mark.parametrize("chain", CHAINS, ids=lambda chain: "+".join(t.kind for t in chain))
def test_the_size_of_a_reply_is_known_without_training(chain: list[TransformConfig]) -> None:
    reply = reply_of(numbers(), control=numbers(seed=1), steps=torch.tensor(3.0))
    coded, _ = encode(chain, reply, {}, FRAME, 0)
    assert bytes_up(chain, FRAME, [UPDATE, "control"], numbers=1) == coded.size_bytes
    form = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in coded.payload.items()}
    assert sent(chain, {name: torch.zeros_like(tensor) for name, tensor in reply.payload.items()}, FRAME) == form


def test_sizes_are_what_the_formats_say() -> None:
    assert bytes_up([], FRAME, [UPDATE]) == 4 * D
    assert bytes_up([Int8()], FRAME, [UPDATE]) == D + 4 * 4
    assert bytes_up([TopK(share=0.1)], FRAME, [UPDATE]) == 8 * 201 + 4 * 7
    assert bytes_up([TopK(share=0.1), Int8()], FRAME, [UPDATE]) == 4 * 201 + 208 + 4


def test_two_transforms_that_keep_errors_do_not_mix_them() -> None:
    chain: list[TransformConfig] = [TopK(share=0.05), Int8()]
    _, mine = encode(chain, reply_of(numbers()), {}, FRAME, 0)
    assert mine.keys() == {"0.update"}  # values that were selected stand for other numbers each time
    _, alone = TopK(share=0.05).client(reply_of(numbers()), {}, FRAME)
    assert torch.equal(mine["0.update"], alone[UPDATE])
    _, mine = encode(chain, reply_of(numbers(seed=1)), mine, FRAME, 1)
    _, alone = TopK(share=0.05).client(reply_of(numbers(seed=1)), alone, FRAME)
    assert torch.equal(mine["0.update"], alone[UPDATE])


def test_the_order_of_a_chain_is_the_order_of_its_list() -> None:
    update = torch.zeros(D)
    update[:2] = torch.tensor([3.0, 4.0])
    chain: list[TransformConfig] = [Clipping(norm=1.0, above="scale"), TopK(share=1 / P)]
    back = decode(chain, encode(chain, reply_of(update), {}, FRAME)[0], FRAME).payload[UPDATE]
    assert back[:2].tolist() == pytest.approx([0.0, 0.8])  # clipped to (0.6, 0.8) first, then the largest


@pytest.mark.parametrize(
    "chain, text",
    [
        ([Int8(), Clipping()], "transforms.1: clipping must come before int8; swap them"),
        ([TopK(), Weighting()], "transforms.1: weighting must come before top_k; swap them"),
        ([Int8(), TopK()], "transforms.1: top_k must come before int8; swap them"),
        ([Weighting(), Clipping(), Weighting()], "transforms.2: weighting is already transforms.0; keep one of them"),
        ([Int8(), Int8()], "transforms.1: int8 is already transforms.0; keep one of them"),
        ([Weighting(), Clipping(), Int8()], "set transforms.1.above=scale"),
    ],
    ids=lambda value: "+".join(t.kind for t in value) if isinstance(value, list) else "",
)
def test_a_senseless_order_is_refused_with_one_line(chain: list[TransformConfig], text: str) -> None:
    with pytest.raises(ConfigError) as error:
        require(chain)
    assert text in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "config, fields, text",
    [
        (Clipping, {"norm": 0.0}, "norm must be above 0"),
        (Clipping, {"norm": math.inf}, "norm must be above 0 and finite"),
        (Weighting, {"cap": 0.0}, "cap must be above 0"),
        (Weighting, {"cap": 2.0, "by": "uniform"}, "cap must be null"),
        (Int8, {"block": 100}, "block must be in"),
        (TopK, {"share": 0.0}, "share must be above 0"),
        (TopK, {"share": 1.5}, "share must be above 0 and at most 1"),
    ],
)
def test_numbers_out_of_range_are_refused(config: type, fields: dict[str, object], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        config(**fields)


def test_transforms_learn_as_the_whole_update_does() -> None:
    """Least squares with full gradients: with error feedback, a tenth of the numbers reaches the same place."""
    rng = np.random.default_rng(0)
    frame: Frame = frame_of((1, 50))
    inputs = torch.from_numpy(rng.normal(size=(200, 50))).float()
    truth = torch.from_numpy(rng.normal(size=50)).float()
    chain: list[TransformConfig] = [TopK(share=0.1), Int8()]
    weights, mine = torch.zeros(50), dict[str, Tensor]()
    for i in range(400):
        gradient = inputs.T @ (inputs @ weights - inputs @ truth) / 200
        coded, mine = encode(chain, reply_of(-0.05 * gradient), mine, frame, i)
        weights = weights + decode(chain, coded, frame).payload[UPDATE]
    assert (weights - truth).norm() < 1e-3 * truth.norm()
