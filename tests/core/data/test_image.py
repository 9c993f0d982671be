"""Images of every format, and every way in which they can be wrong."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from core.data import Augment, Image, Split, load, open_with
from core.errors import DataError

Pixels = NDArray[np.uint8]


def pixels(count: int, height: int = 6, width: int = 5, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width), dtype=np.uint8)


def idx(array: Pixels) -> bytes:
    return b"\0\0\x08" + bytes([array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()


def write_mnist(folder: Path, suffix: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    pack = gzip.compress if suffix else bytes
    for name, count in (("train", 30), ("t10k", 12)):
        (folder / f"{name}-images-idx3-ubyte{suffix}").write_bytes(pack(idx(pixels(count, seed=count))))
        labels = (np.arange(count) % 3).astype(np.uint8)
        (folder / f"{name}-labels-idx1-ubyte{suffix}").write_bytes(pack(idx(labels)))
    return folder


def write_cifar(folder: Path, hundred: bool = False) -> Path:
    folder.mkdir(exist_ok=True)
    files = (
        [("train", 40), ("test", 20)] if hundred else [("data_batch_1", 20), ("data_batch_2", 20), ("test_batch", 20)]
    )
    for name, count in files:
        labels = np.arange(count, dtype=np.uint8)[:, None] % 10
        images = pixels(count, 32, 96, seed=count).reshape(count, -1)
        head = np.hstack([labels // 5, labels]) if hundred else labels
        (folder / f"{name}.bin").write_bytes(np.hstack([head, images]).astype(np.uint8).tobytes())
    return folder


def write_folder(root: Path, color: bool = False, sets: tuple[str, ...] = ("",), each: int = 10) -> Path:
    from PIL import Image as Pillow

    for n, group in enumerate(sets):
        for k, name in enumerate(("cat", "dog")):
            folder = root / group / name
            folder.mkdir(parents=True)
            for i in range(each):
                array = pixels(1, 6, 15 if color else 5, seed=100 * n + 10 * k + i)[0]
                Pillow.fromarray(array.reshape(6, 5, 3) if color else array).save(folder / f"{i:02}.png")
    return root


def raw(data: Any, split: str) -> torch.Tensor:
    """The split's pixels as they were in the file, 0..255."""
    mean, std = data.preprocess.fitted.scale(255)
    examples = data.splits[split]
    return (examples.take(torch.arange(len(examples)))[0] * std + mean).round()


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist_files_keep_their_test_set(suffix: str, tmp_path: Path) -> None:
    data = load(Image(path=str(write_mnist(tmp_path / "mnist", suffix))), "class")
    assert data.sizes == {"train": 27, "validation": 3, "test": 12}
    assert data.spec.shape == (1, 6, 5) and data.spec.classes == ("0", "1", "2")
    assert np.array_equal(raw(data, "test")[:, 0].numpy(), pixels(12, seed=12))
    assert data.splits["test"].targets.tolist() == [0, 1, 2] * 4


def test_one_pair_of_idx_files_is_split(tmp_path: Path) -> None:
    path = write_mnist(tmp_path) / "train-images-idx3-ubyte"
    assert load(Image(path=str(path)), "class").sizes == {"train": 24, "validation": 3, "test": 3}


@pytest.mark.parametrize("hundred", [False, True])
def test_cifar_files_keep_their_test_set_and_names(hundred: bool, tmp_path: Path) -> None:
    data = load(Image(path=str(write_cifar(tmp_path / "cifar", hundred))), "class")
    assert data.sizes == {"train": 36, "validation": 4, "test": 20}
    assert data.spec.shape == (3, 32, 32) and data.spec.outputs == (100 if hundred else 10)
    assert hundred or data.spec.classes[:2] == ("airplane", "automobile")
    assert np.array_equal(raw(data, "test").numpy().reshape(20, 32, 96), pixels(20, 32, 96, seed=20))
    assert data.splits["test"].targets.tolist() == [*range(10)] * 2


def test_images_are_normalized_per_channel_with_the_training_images_only(tmp_path: Path) -> None:
    folder = write_cifar(tmp_path / "cifar")
    data = load(Image(path=str(folder)), "class")
    train = data.splits["train"].inputs
    assert torch.allclose(train.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(train.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-5)
    content = bytearray((folder / "test_batch.bin").read_bytes())
    content[1:3073] = b"\xff" * 3072
    (folder / "test_batch.bin").write_bytes(content)
    changed = load(Image(path=str(folder)), "class")
    assert changed.preprocess == data.preprocess and changed.fingerprint != data.fingerprint


@pytest.mark.parametrize("layout", ["NHW", "NHWC", "NCHW"])
@pytest.mark.parametrize("floats", [False, True])
def test_arrays_are_read_in_every_layout(layout: str, floats: bool, tmp_path: Path) -> None:
    images: Any = pixels(20, seed=1)
    expected = images
    images = images / np.float32(255) if floats else images
    images = {"NHW": images, "NHWC": images[..., None], "NCHW": images[:, None]}[layout]
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(20) % 2)
    data = load(Image(path=str(tmp_path / "a.npz"), split=Split(0, 0)), "class")
    assert data.spec.shape == (1, 6, 5)
    assert np.array_equal(raw(data, "train")[:, 0].numpy(), expected)


def test_arrays_with_named_sets_keep_them(tmp_path: Path) -> None:
    labels = np.arange(20) % 2
    np.savez(tmp_path / "a.npz", x_train=pixels(20), y_train=labels, x_test=pixels(6), y_test=labels[:6])
    assert load(Image(path=str(tmp_path / "a.npz")), "class").sizes == {"train": 18, "validation": 2, "test": 6}


def test_real_labels_make_a_regression(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", inputs=pixels(20), targets=np.linspace(0, 1, 20))
    data = load(Image(path=str(tmp_path / "a.npz")), "real")
    assert data.spec.outputs == 1 and data.splits["train"].targets.shape == (16, 1)


def test_a_folder_has_one_class_per_subfolder(tmp_path: Path) -> None:
    data = load(Image(path=str(write_folder(tmp_path / "pets"))), "class")
    assert data.sizes == {"train": 16, "validation": 2, "test": 2}
    assert data.spec.classes == ("cat", "dog") and data.spec.shape == (1, 6, 5)


def test_a_folder_keeps_its_train_val_and_test(tmp_path: Path) -> None:
    data = load(Image(path=str(write_folder(tmp_path / "pets", True, ("train", "val", "test"), 3))), "class")
    assert data.sizes == {"train": 6, "validation": 6, "test": 6}
    assert data.spec.shape == (3, 6, 5)
    assert np.array_equal(raw(data, "test")[0].permute(1, 2, 0).numpy(), pixels(1, 6, 15, seed=200)[0].reshape(6, 5, 3))


def test_images_that_do_not_fit_in_memory_give_the_same_batches(tmp_path: Path) -> None:
    path = str(write_folder(tmp_path / "pets"))
    whole, lazy = (load(Image(path=path, memory_mb=mb), "class") for mb in (100, 0))
    assert lazy.splits["train"].is_costly and not whole.splits["train"].is_costly
    assert lazy.preprocess == whole.preprocess and lazy.fingerprint == whole.fingerprint
    for a, b in zip(lazy.shard().held_out("test", 2), whole.shard().held_out("test", 2), strict=True):
        assert torch.allclose(a["inputs"], b["inputs"], atol=1e-6) and torch.equal(a["targets"], b["targets"])


def test_large_arrays_stay_bytes_and_give_the_same_inputs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(write_mnist(tmp_path))
    floats = load(Image(path=path), "class").splits["test"]
    monkeypatch.setattr("core.data.image.FLOAT_BYTES", 0)
    kept = load(Image(path=path), "class").splits["test"]
    rows = torch.tensor([5, 1])
    assert kept.images.dtype == torch.uint8
    assert torch.equal(kept.take(rows)[0], floats.take(rows)[0])


@pytest.mark.parametrize("kind", ["folder", "mnist"])
def test_size_resizes_every_image(kind: str, tmp_path: Path) -> None:
    path = write_folder(tmp_path / "a") if kind == "folder" else write_mnist(tmp_path / "a")
    assert load(Image(path=str(path), size=(8, 7)), "class").spec.shape == (1, 8, 7)


def test_an_image_of_another_shape_is_refused_by_name(tmp_path: Path) -> None:
    from PIL import Image as Pillow

    root = write_folder(tmp_path / "pets")
    Pillow.fromarray(pixels(1, 9, 9)[0]).save(root / "dog" / "03.png")
    with pytest.raises(DataError, match=r"dog/03\.png: is 9x9 pixels, others are 6x5; set data\.size=\[6,5\]"):
        load(Image(path=str(root)), "class")
    assert load(Image(path=str(root), size=(6, 5)), "class").spec.shape == (1, 6, 5)


@pytest.mark.parametrize("memory_mb", [0, 100])
@pytest.mark.parametrize("keep", [0, 5, 60])
def test_a_damaged_image_is_refused_by_name(keep: int, memory_mb: int, tmp_path: Path) -> None:
    root = write_folder(tmp_path / "pets")
    bad = root / "cat" / "01.png"
    bad.write_bytes(bad.read_bytes()[:keep])
    config = Image(path=str(root), memory_mb=memory_mb, split=Split(0, 0))
    with pytest.raises(DataError, match=r"cat/01\.png: not a readable image"):
        list(load(config, "class").shard().held_out("train", 4))


def test_a_class_that_is_only_in_the_test_set_is_refused(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "pets", sets=("train", "test"), each=5)
    (root / "test" / "dog").rename(root / "test" / "fox")
    with pytest.raises(DataError, match="class 'fox' is in the test split but not in training"):
        load(Image(path=str(root)), "class")


def test_images_outside_any_class_folder_are_refused(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "pets")
    (root / "cat" / "00.png").rename(root / "00.png")
    with pytest.raises(DataError, match=r"00\.png: lies in no class folder"):
        load(Image(path=str(root)), "class")


def test_a_folder_without_images_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    with pytest.raises(DataError, match="holds no images"):
        load(Image(path=str(tmp_path)), "class")


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte", "t10k-labels-idx1-ubyte", "t10k-images-idx3-ubyte.gz"])
@pytest.mark.parametrize("keep", [0, 3, 9, -1])
def test_a_truncated_idx_file_is_refused_by_name(name: str, keep: int, tmp_path: Path) -> None:
    path = write_mnist(tmp_path, ".gz" if name.endswith(".gz") else "") / name
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=rf"{name}: (truncated|not an IDX file|cannot be read)"):
        load(Image(path=str(tmp_path)), "class")


def test_idx_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(np.zeros(11, np.uint8)))
    with pytest.raises(DataError, match="12 images, but t10k-labels-idx1-ubyte holds 11 labels"):
        load(Image(path=str(tmp_path)), "class")
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="no file t10k-labels-idx1-ubyte with its labels"):
        load(Image(path=str(tmp_path)), "class")


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_a_truncated_cifar_file_is_refused_by_name(keep: int, tmp_path: Path) -> None:
    path = write_cifar(tmp_path) / "data_batch_2.bin"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"data_batch_2\.bin: truncated"):
        load(Image(path=str(tmp_path)), "class")


def test_a_label_out_of_range_is_refused(tmp_path: Path) -> None:
    path = write_cifar(tmp_path) / "data_batch_1.bin"
    content = bytearray(path.read_bytes())
    content[2 * 3073] = 77
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"data_batch_1\.bin: image 3: the label 77 is not in 0\.\.9"):
        load(Image(path=str(tmp_path)), "class")


BAD_ARRAYS: dict[str, tuple[dict[str, Any], str]] = {
    "no labels": ({"images": pixels(4)}, "there are no labels"),
    "no images": ({"cats": pixels(4)}, "holds cats; call the images `inputs`"),
    "too few labels": ({"x": pixels(4), "y": np.zeros(3)}, r"labels of shape \[3\] for 4 images"),
    "shape": ({"x": np.zeros((4, 9), np.uint8), "y": np.arange(4)}, r"images of shape \[4, 9\]"),
    "dtype": ({"x": np.zeros((4, 5, 5), np.int64), "y": np.arange(4)}, "images of int64"),
    "nan": ({"x": np.full((4, 5, 5), np.nan), "y": np.arange(4)}, "image 1 holds NaN"),
    "nan label": ({"x": pixels(4), "y": np.array([0, 1, np.nan, 1])}, "row 3, column 'label'"),
}


@pytest.mark.parametrize("case", list(BAD_ARRAYS))
def test_bad_arrays_are_refused(case: str, tmp_path: Path) -> None:
    arrays, message = BAD_ARRAYS[case]
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=message) as caught:
        load(Image(path=str(tmp_path / "a.npz")), "class")
    assert "\n" not in str(caught.value)


def test_an_unknown_image_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "cat.pdf").write_bytes(b"")
    with pytest.raises(DataError, match=r"the extension '\.pdf' is not read as this kind of data"):
        load(Image(path=str(tmp_path / "cat.pdf")), "class")


def test_another_folder_is_prepared_as_the_training_folder_was(tmp_path: Path) -> None:
    data = load(Image(path=str(write_folder(tmp_path / "a")), size=(6, 5)), "class")
    other = open_with(data.preprocess, Image(path=str(write_folder(tmp_path / "b", each=2))))
    assert other.sizes == {"test": 4} and other.splits["test"].targets.tolist() == [0, 0, 1, 1]
    mean, std = data.preprocess.fitted.scale(255)
    expected = (torch.from_numpy(pixels(1, seed=0)).float() - mean) / std
    assert torch.allclose(other.splits["test"].inputs[0], expected, atol=1e-6)


def test_of_other_files_with_a_test_set_only_that_is_opened(tmp_path: Path) -> None:
    path = str(write_mnist(tmp_path))
    data = load(Image(path=path), "class")
    opened = open_with(data.preprocess, Image(path=path)).splits["test"]
    assert torch.equal(opened.take(torch.arange(12))[0], data.splits["test"].take(torch.arange(12))[0])
    assert len(opened) == 12


def test_pixels_mean_the_same_whatever_their_range(tmp_path: Path) -> None:
    data = load(Image(), "class")  # 0..16
    white = np.full((1, 8, 8), 255, np.uint8)
    np.save(tmp_path / "a.npy", white)
    (batch,) = open_with(data.preprocess, Image(path=str(tmp_path / "a.npy"))).shard().held_out("test", 1)
    assert batch["inputs"].max() == pytest.approx(data.splits["train"].inputs.max().item(), rel=1e-5)
    assert "targets" not in batch


def test_other_images_that_do_not_match_are_refused(tmp_path: Path) -> None:
    data = load(Image(), "class")
    with pytest.raises(
        DataError, match="images of 1 channels and 6x5 pixels, the model was trained on 1 channels and 8x8"
    ):
        open_with(data.preprocess, Image(path=str(write_mnist(tmp_path / "mnist"))))
    np.savez(tmp_path / "a.npz", x=pixels(2, 8, 8), y=np.array([3, 11]))
    with pytest.raises(DataError, match="'11' is no class of this model"):
        open_with(data.preprocess, Image(path=str(tmp_path / "a.npz")))


@pytest.mark.parametrize("values", [{"crop": -1}, {"noise": -0.1}, {"cutout": -2}, {"mixup": -1.0}])
def test_augmentation_out_of_range_is_refused_with_the_fields_name(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{next(iter(values))} must be"):
        Augment(**values)
