"""What each augmentation does to an image or a text, addressed by the example's key alone."""

import pytest
import torch

from core.data import Augment, Image, Text, load
from core.data.augment import cut_out, drop_tokens, keys, mixing, normal, shift_and_flip

KEY = keys(0, 5, torch.arange(4000))
BLACK = torch.full((1, 1, 1), -1.0)


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.arange(1.0, 31).view(1, 1, 5, 6).expand(4000, 1, 5, 6)


def test_crop_shifts_by_every_offset_up_to_its_size_and_fills_with_black(image: torch.Tensor) -> None:
    moved = shift_and_flip(image, KEY, Augment(crop=2), BLACK)
    padded = torch.nn.functional.pad(image[0, 0], (2, 2, 2, 2), value=-1.0)
    expected = {tuple(padded[y : y + 5, x : x + 6].flatten().tolist()) for y in range(5) for x in range(5)}
    assert {tuple(row.flatten().tolist()) for row in moved} == expected


def test_flip_mirrors_about_half(image: torch.Tensor) -> None:
    moved = shift_and_flip(image, KEY, Augment(flip=True), BLACK)
    mirrored = (moved == image.flip(3)).flatten(1).all(1)
    assert ((moved == image).flatten(1).all(1) | mirrored).all()
    assert 0.45 < mirrored.float().mean() < 0.55


def test_cutout_erases_one_square_of_at_most_its_size(image: torch.Tensor) -> None:
    erased = cut_out(image, KEY, 3) == 0
    heights, widths = erased.any(3).sum(2), erased.any(2).sum(2)
    assert torch.equal(erased.flatten(1).sum(1, keepdim=True), heights * widths)  # a rectangle
    assert heights.max() == widths.max() == 3 and heights.min() >= 1
    assert erased.float().mean(0).min() > 0  # it reaches every pixel


def test_noise_is_standard_normal_and_differs_by_example() -> None:
    noise = normal(KEY, torch.Size((3, 5)))
    assert noise.shape == (4000, 3, 5) and noise.dtype == torch.float32
    assert noise.mean().abs() < 0.02 and (noise.std() - 1).abs() < 0.02 and noise.abs().max() < 7
    assert ((noise**4).mean() - 3).abs() < 0.15  # a normal distribution's fourth moment
    assert len({round(v, 6) for v in noise[:, 0, 0].tolist()}) > 3900


def test_dropped_tokens_are_replaced_by_tokens_of_the_text() -> None:
    inputs = torch.full((4000, 16), 9)
    changed = drop_tokens(inputs, KEY, 0.25, torch.tensor([3, 3, 3, 4]))
    assert set(changed.unique().tolist()) == {3, 4, 9}
    assert 0.24 < (changed != 9).float().mean() < 0.26
    assert 0.7 < (changed == 3).sum() / (changed != 9).sum() < 0.8


def test_token_drop_leaves_the_targets_alone() -> None:
    from tests.core.data.test_shard import Numbers

    plain, dropped = (load(Text(context=16, limit_bytes=40_000, token_drop=p), "token").shard() for p in (0.0, 0.3))
    a, b = plain.batch(Numbers(32), 3), dropped.batch(Numbers(32), 3)
    assert torch.equal(a["targets"], b["targets"])
    assert 0.15 < (a["inputs"] != b["inputs"]).float().mean() < 0.3


def test_mixup_blends_inputs_and_targets_alike() -> None:
    from tests.core.data.test_shard import Numbers

    plain = load(Image(), "class").shard().batch(Numbers(40), 3)
    mixed = load(Image(augment=Augment(mixup=0.5)), "class").shard().batch(Numbers(40), 3)
    partner, share = mixing(0, 3, 40, 0.5)
    x, y = plain["inputs"], torch.eye(10)[plain["targets"]]
    part = share.view(-1, 1, 1, 1)
    assert torch.allclose(mixed["inputs"], part * x + (1 - part) * x[partner], atol=1e-6)
    assert torch.allclose(mixed["targets"], share[:, None] * y + (1 - share[:, None]) * y[partner], atol=1e-6)
    assert torch.allclose(mixed["targets"].sum(1), torch.ones(40), atol=1e-6)


def test_a_steps_draws_differ_from_the_next_ones() -> None:
    position = torch.arange(64)
    assert not set(keys(0, 1, position).tolist()) & set(keys(0, 2, position).tolist())
    assert mixing(0, 1, 64, 0.3)[1].tolist() != mixing(0, 2, 64, 0.3)[1].tolist()


def test_a_black_border_is_black_after_normalization() -> None:
    data = load(Image(augment=Augment(crop=1)), "class")
    assert torch.allclose(data.augmentation.black.min(), data.splits["train"].inputs.min())
