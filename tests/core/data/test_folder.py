"""Folders of pictures as people have them: what a pixel means, and what of a folder is read."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image as Pillow

from core.data import Data, Image, Split, load, open_with
from core.errors import DataError

ALL = Split(0, 0)
KINDS = ("cat", "dog")


def save(pixels: NDArray[Any], path: Path, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(pixels).save(path, **options)
    return path


def pair(root: Path, pixels: NDArray[Any], ending: str = ".png", **options: Any) -> Path:
    """Two classes of two pictures each: `pixels`, and the same upside down."""
    for kind, own in zip(KINDS, (pixels, pixels[::-1].copy()), strict=True):
        for i in range(2):
            save(own, root / kind / f"{i}{ending}", **options)
    return root


def gray(height: int = 4, width: int = 3) -> NDArray[np.uint8]:
    return np.linspace(0, 240, height * width).reshape(height, width).astype(np.uint8)


def raw(data: Data, row: int = 0, split: str = "train") -> torch.Tensor:
    """[C, H, W]: a picture of the split as it was read, white is 1."""
    mean, std = data.preprocess.fitted.scale(1)  # type: ignore[union-attr]
    return data.splits[split].take(torch.tensor([row]))[0][0] * std + mean


def whole(root: Path, **options: Any) -> Data:
    return load(Image(path=str(root), split=ALL, **options), "class")


# --- what a pixel means --------------------------------------------------------------------------------------------

DEEP: dict[str, tuple[NDArray[Any], str, float]] = {
    "16 bits": (gray().astype(np.uint16) * 250, ".png", 65535),
    "16 bits, tif": (gray().astype(np.uint16) * 250, ".tif", 65535),
    "16 bits, big-endian pgm": (gray().astype(np.uint16) * 250, ".pgm", 65535),
    "32 bits": (gray().astype(np.int32) * 250 - 300, ".tif", 65535),
    "floats": (gray().astype(np.float32) * 7 - 3, ".tif", 1),
}


@pytest.mark.parametrize("memory_mb", [0, 100])
@pytest.mark.parametrize("name", DEEP)
def test_a_picture_of_more_than_8_bits_keeps_all_its_values(name: str, memory_mb: int, tmp_path: Path) -> None:
    pixels, ending, white = DEEP[name]
    data = whole(pair(tmp_path, pixels, ending), memory_mb=memory_mb)
    assert data.spec.shape == (1, 4, 3)
    np.testing.assert_allclose(raw(data)[0], pixels / white, rtol=1e-5, atol=1e-5 * abs(pixels / white).max())


def test_pictures_of_8_and_16_bits_in_one_folder_have_the_same_white(tmp_path: Path) -> None:
    pair(tmp_path, gray())
    save(gray().astype(np.uint16) * 257, tmp_path / "cat" / "1.png")
    data = whole(tmp_path)
    assert torch.allclose(raw(data, 0), raw(data, 1), atol=1e-6)
    assert torch.allclose(raw(data, 0)[0], torch.from_numpy(gray() / np.float32(255)), atol=1e-6)
    color = whole(save(np.stack([gray()] * 3, 2), tmp_path / "dog" / "2.png").parents[1])
    assert color.spec.shape == (3, 4, 3) and torch.allclose(raw(color, 0), raw(color, 1), atol=1e-6)


def test_a_model_of_bytes_takes_deep_pictures_and_the_other_way_round(tmp_path: Path) -> None:
    bytes_, deep = (
        whole(pair(tmp_path / name, pixels)) for name, pixels in (("a", gray()), ("b", gray().astype(np.uint16) * 257))
    )
    for data, other in ((bytes_, "b"), (deep, "a")):
        opened = open_with(data.preprocess, Image(path=str(tmp_path / other)))
        assert torch.allclose(opened.splits["test"].inputs, data.splits["train"].inputs, atol=1e-5)  # type: ignore[attr-defined]


def test_arrays_of_16_bits_are_read(tmp_path: Path) -> None:
    images = np.stack([gray().astype(np.uint16) * 250] * 4)
    np.savez(tmp_path / "a.npz", images=images, labels=[0, 1, 0, 1])
    data = whole(tmp_path / "a.npz")
    np.testing.assert_allclose(raw(data)[0], images[0] / 65535, atol=1e-5)


def test_float_pixels_that_are_no_numbers_are_refused_by_name(tmp_path: Path) -> None:
    pixels = gray().astype(np.float32)
    pixels[1, 1] = np.nan
    with pytest.raises(DataError, match=r"cat/0\.tif: not a readable image: it holds NaN or infinite pixels"):
        whole(pair(tmp_path, pixels, ".tif"))


@pytest.mark.parametrize(
    "mode, channels", [("RGBA", 3), ("LA", 1), ("PA", 3), ("P", 3), ("L", 1)], ids=["RGBA", "LA", "PA", "P", "L"]
)
@pytest.mark.parametrize("background, shade", [(None, 255), ([0, 0, 0], 0), ([255, 0, 0], 76)])
def test_what_is_transparent_shows_the_background(
    mode: str, channels: int, background: list[int] | None, shade: int, tmp_path: Path
) -> None:
    clear = np.zeros((4, 3), np.uint8)
    clear[:2] = 255  # the upper half is opaque
    picture = Pillow.merge("LA", [Pillow.fromarray(gray()), Pillow.fromarray(clear)])
    options: dict[str, Any] = {}
    if mode in ("P", "L"):  # one of its values is transparent, as png and gif know it
        picture, options = Pillow.fromarray(np.where(clear == 255, gray(), 200).astype(np.uint8)), {"transparency": 200}
    for kind in KINDS:
        (tmp_path / kind).mkdir()
        for i in range(2):
            ending = ".tif" if mode == "PA" else ".gif" if mode == "P" else ".png"
            picture.convert(mode if mode != "PA" else "RGBA").save(tmp_path / kind / f"{i}{ending}", **options)
    color: dict[str, Any] = {} if background is None else {"background": tuple(background)}
    data = whole(tmp_path, **color)
    assert data.spec.shape[0] == channels
    shown = raw(data) * 255
    assert torch.allclose(shown[:, :2].mean(0), torch.from_numpy(gray()[:2]).float(), atol=0.02)
    below = [255, 255, 255] if background is None else background
    expected = [shade] if channels == 1 else below
    assert torch.allclose(shown[:, 2:], torch.tensor(expected).float()[:, None, None].expand(-1, 2, 3), atol=0.5)
    other = open_with(data.preprocess, Image(path=str(tmp_path), **color))
    assert torch.allclose(raw(other, 0, "test"), raw(data), atol=1e-6)


@pytest.mark.parametrize("ending", [".jpg", ".png", ".tif", ".webp"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_picture_lies_as_its_camera_says(orientation: int, ending: str, tmp_path: Path) -> None:
    pixels = np.kron(np.array([[0, 0, 255], [0, 0, 0]], np.uint8), np.ones((8, 8), np.uint8))
    exif = Pillow.Exif()
    exif[0x0112] = orientation
    data = whole(pair(tmp_path, np.stack([pixels] * 3, 2), ending, exif=exif))
    turned = np.rot90(pixels, {1: 0, 3: 2, 6: -1, 8: 1}[orientation])
    assert data.spec.shape == (3, *turned.shape)
    assert abs(raw(data)[0] * 255 - torch.from_numpy(turned.copy()).float()).max() < 40


def test_a_background_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^background must be red, green and blue of 0 to 255"):
        Image(background=(0, 0, 256))


def test_a_picture_that_is_too_large_or_damaged_is_refused_by_name(tmp_path: Path) -> None:
    pair(tmp_path, gray())
    Pillow.new("1", (20000, 20000)).save(tmp_path / "dog" / "large.png")
    with pytest.raises(DataError, match=r"dog/large\.png: not a readable image: .* exceeds limit"):
        whole(tmp_path)
    (tmp_path / "dog" / "large.png").unlink()
    for ending in (".bmp", ".gif", ".tif", ".webp", ".ppm", ".jpg"):
        content = save(np.stack([gray(40, 30)] * 3, 2), tmp_path / "dog" / f"bad{ending}").read_bytes()
        for seed in range(8):
            damaged = bytearray(content)
            for at in np.random.default_rng(seed).integers(0, 30, 6):
                damaged[at] ^= 0x5A
            (tmp_path / "dog" / f"bad{ending}").write_bytes(damaged)
            with suppress(DataError):  # nothing else comes up
                whole(tmp_path, size=(4, 3))
        (tmp_path / "dog" / f"bad{ending}").unlink()


# --- what of a folder is read --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "train, validation, test",
    [("Training", "Validation", "Testing"), ("TRAIN", "dev", "test"), ("train", "Val", "Test"), ("Train", "valid", "")],
)
def test_the_folders_of_the_splits_are_known_in_any_case(
    train: str, validation: str, test: str, tmp_path: Path
) -> None:
    for i, name in enumerate(filter(None, (train, validation, test))):
        pair(tmp_path / name, gray() + np.uint8(i))
    data = load(Image(path=str(tmp_path)), "class")
    assert data.spec.classes == KINDS and data.sizes["validation"] == 4
    assert data.sizes["test"] == 4 if test else data.sizes["test"] + data.sizes["train"] == 4
    assert round(float(raw(data, 0, "validation").min() * 255)) == 1


def test_the_splits_are_found_in_the_only_folder_of_an_archive(tmp_path: Path) -> None:
    for name in ("train", "test"):
        pair(tmp_path / "archive" / name, gray())
    (tmp_path / "readme.md").write_text("about")
    (tmp_path / "__MACOSX").mkdir()
    data = load(Image(path=str(tmp_path)), "class")
    assert data.spec.classes == KINDS and data.sizes["test"] == 4
    assert data.notes == (f"{tmp_path}: left out 1 folder with 0 files (__MACOSX) and 1 file (1 .md)",)


@pytest.mark.parametrize(
    "train, test",
    [
        ("training_set", "test_set"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("train2017", "val2017"),
        ("x/archive/Train", "x/archive/Test"),
        ("Train Images", "Test Images"),
    ],
)
def test_the_splits_are_known_by_a_word_that_distinguishes_their_folders(train: str, test: str, tmp_path: Path) -> None:
    pair(tmp_path / train, gray())
    pair(tmp_path / test, gray())
    data = load(Image(path=str(tmp_path), split=Split(0, 0)), "class")
    assert data.spec.classes == KINDS and data.sizes["train"] == 4 and sum(data.sizes.values()) == 8
    assert data.notes == ()


def test_the_splits_may_lie_in_the_folders_of_the_classes(tmp_path: Path) -> None:
    for kind in KINDS:
        for part, count in (("train", 4), ("Test", 2)):
            for i in range(count):
                save(gray() + np.uint8(part == "Test"), tmp_path / kind / part / f"{i}.png")
    data = load(Image(path=str(tmp_path), split=Split(0, 0)), "class")
    assert data.spec.classes == KINDS and data.sizes == {"train": 8, "validation": 0, "test": 4}
    assert round(float(raw(data, 0, "test").min() * 255)) == 1


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for name in ("train", "plane"):
        for i in range(2):
            save(gray(), tmp_path / name / f"{i}.png")
    data = whole(tmp_path)
    assert data.spec.classes == ("plane", "train") and data.sizes["train"] == 4


def test_what_systems_leave_behind_is_passed_over_and_all_that_is_left_out_is_said(tmp_path: Path) -> None:
    pets = pair(tmp_path / "pets", gray())
    clean = whole(pets)
    assert clean.notes == ()
    for name in ("__MACOSX/cat/._0.png", ".ipynb_checkpoints/a.png", "cat/._0.png", "Thumbs.db", "cat/.DS_Store"):
        (pets / name).parent.mkdir(parents=True, exist_ok=True)
        (pets / name).write_bytes(b"not an image")
    for name in ("labels.csv", "cat/a.txt", "dog/b.txt", "dog/c.TXT", "dog/d.heic"):
        (pets / name).write_text("text")
    (pets / "bird").mkdir()
    data = whole(pets)
    assert data.fingerprint == clean.fingerprint and data.spec == clean.spec
    said = "left out 3 folders with 2 files (.ipynb_checkpoints, __MACOSX, bird) and 8 files (3 .txt, "
    assert len(data.notes) == 1 and data.notes[0].startswith(f"{pets}: {said}")
    assert open_with(data.preprocess, Image(path=str(pets))).notes == data.notes


def test_what_lies_beside_the_splits_is_left_out_and_said(tmp_path: Path) -> None:
    for name in ("train", "test", "more"):
        pair(tmp_path / name, gray())
    save(gray(), tmp_path / "cover.png")
    data = load(Image(path=str(tmp_path)), "class")
    assert sum(data.sizes.values()) == 8
    assert data.notes == (f"{tmp_path}: left out 1 folder with 4 files (more) and 1 file (1 .png)",)


def test_linked_class_folders_are_followed_and_a_link_that_goes_round_ends(tmp_path: Path) -> None:
    pair(tmp_path / "real", gray())
    (tmp_path / "pets" / "cat").mkdir(parents=True)
    save(gray(), tmp_path / "pets" / "cat" / "0.png")
    os.symlink(tmp_path / "real" / "dog", tmp_path / "pets" / "dog")
    os.symlink(tmp_path / "pets", tmp_path / "pets" / "cat" / "round")
    os.symlink(tmp_path / "nowhere.png", tmp_path / "pets" / "cat" / "gone.png")
    data = whole(tmp_path / "pets")
    assert data.spec.classes == KINDS and data.sizes["train"] == 3
    assert data.notes == (f"{tmp_path / 'pets'}: left out 1 folder with 0 files (round) and 1 file (1 .png)",)


def test_a_name_that_is_not_utf8_is_a_name(tmp_path: Path) -> None:
    pair(tmp_path, gray())
    os.rename(tmp_path / "cat" / "0.png", os.fsencode(tmp_path / "cat") + b"/\xff.png")
    assert whole(tmp_path).sizes["train"] == 4
