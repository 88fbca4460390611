"""What people bring: folders, tables, arrays and files of every kind, and what is said of each."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import sys
import unicodedata
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
from numpy.typing import NDArray
from PIL import Image

from defuse_core.base.errors import UnreadableError
from defuse_core.data.notes import dataset_notes
from defuse_core.data.reading import Fit, Reading
from defuse_core.data.sources import load_dataset, load_image_folder, load_npz
from defuse_core.data.splits import DataError, ImageDataset, set_validation_apart
from defuse_core.data.torchvision_sets import load_torchvision


def flat(level: int, size: tuple[int, int] = (4, 4)) -> Image.Image:
    """An image of one grey level, by which it is known again."""
    return Image.new("L", size, level)


def save(path: Path, level: int, size: tuple[int, int] = (4, 4)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    flat(level, size).save(path)
    return path


def levels(dataset: ImageDataset) -> dict[str, list[int]]:
    return {name: split.images[:, 0, 0, 0].tolist() for name, split in dataset.splits().items()}


def said(dataset: ImageDataset, words: str) -> bool:
    return any(words in note for note in dataset.conversions)


# Folders


@pytest.mark.parametrize("train", ["train", "Training", "TRAIN"])
@pytest.mark.parametrize("test", ["test", "Testing"])
def test_splits_are_found_by_any_of_their_names(tmp_path: Path, train: str, test: str) -> None:
    for part, level in ((train, 1), (test, 2), ("Valid", 3)):
        save(tmp_path / part / "cat" / "0.png", level)
    dataset = load_image_folder(tmp_path)
    assert levels(dataset) == {"train": [1], "validation": [3], "test": [2]}
    assert dataset.conversions == ()


def test_validation_is_the_test_split_where_there_is_no_other(tmp_path: Path) -> None:
    for part, level in (("train", 1), ("val", 2)):
        save(tmp_path / part / "cat" / "0.png", level)
    dataset = load_image_folder(tmp_path)
    assert levels(dataset) == {"train": [1], "test": [2]}
    assert said(dataset, "the validation split is the test split")


def test_a_train_folder_alone_is_divided_and_an_unlabelled_test_folder_passed_over(tmp_path: Path) -> None:
    for number in range(10):
        save(tmp_path / "train" / "cat" / f"{number}.png", number)
    save(tmp_path / "test" / "0.png", 99)
    dataset = load_image_folder(tmp_path)
    assert [len(split) for split in dataset.splits().values()] == [8, 2]
    assert said(dataset, "test/ passed over: its images are in no class folders, so have no label")
    assert said(dataset, "2 of 10 images were set apart")


def test_a_folder_in_each_class_for_its_splits(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        for part, level in (("train", 1), ("Test", 2)):
            save(tmp_path / name / part / "0.png", level)
    dataset = load_image_folder(tmp_path)
    assert levels(dataset) == {"train": [1, 1], "test": [2, 2]}
    assert said(dataset, "each class has folders of its own for the splits")
    assert not said(dataset, "counted in")


def test_a_folder_that_holds_nothing_but_another_is_gone_into(tmp_path: Path) -> None:
    for part in ("train", "test"):
        save(tmp_path / "animals" / part / "cat" / "0.png", 1)
    (tmp_path / "__MACOSX" / "animals").mkdir(parents=True)
    dataset = load_image_folder(tmp_path)
    assert dataset.class_names == ("cat",)
    assert said(dataset, "the folder animals/ in it was read")


def test_numbered_classes_are_in_natural_order_and_the_other_order_is_told(tmp_path: Path) -> None:
    for number in (*range(12), 100):
        for part in ("train", "test"):
            save(tmp_path / part / str(number) / "0.png", number)
    dataset = load_image_folder(tmp_path)
    assert dataset.class_names == (*map(str, range(12)), "100")
    assert levels(dataset)["train"] == [*range(12), 100]
    assert said(dataset, "by characters it would be 0, 1, 10 …")


def test_a_thousand_classes_and_one_of_one_image(tmp_path: Path) -> None:
    for number in range(1000):
        for image in range(1 if number == 7 else 2):
            save(tmp_path / f"n{number:04d}" / f"{image}.png", number % 256, (2, 2))
    dataset = load_image_folder(tmp_path)
    assert dataset.n_classes == 1000
    assert int(dataset.class_counts()["train"].min()) == 1
    assert int(dataset.class_counts()["test"].sum()) == 400
    assert 7 not in dataset.test.labels


def test_names_that_systems_encode_differently_are_one_class(tmp_path: Path) -> None:
    one, other = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    save(tmp_path / "train" / one / "0.png", 1)
    save(tmp_path / "train" / other / "1.png", 2)
    save(tmp_path / "test" / other / "0.png", 3)
    dataset = load_image_folder(tmp_path)
    assert dataset.class_names == (one,)
    assert {name: sorted(own) for name, own in levels(dataset).items()} == {"train": [1, 2], "test": [3]}
    assert said(dataset, f"folders whose names look the same are one class ({one})")


def test_files_that_cannot_be_read_are_all_listed_and_left_out_on_request(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for number in range(14):
            save(tmp_path / part / "cat" / f"{number:02d}.png", number)
    broken = [tmp_path / "train" / "cat" / f"{number:02d}.png" for number in range(12)]
    for path in broken:
        path.write_bytes(b"none")
    with pytest.raises(UnreadableError, match=r"12 files .* and 2 more; .*or leave them out") as caught:
        load_image_folder(tmp_path)
    assert [line.partition(" ")[0] for line in caught.value.files] == [
        str(path.relative_to(tmp_path)) for path in broken
    ]
    dataset = load_image_folder(tmp_path, leave_out=True)
    assert levels(dataset)["train"] == [12, 13]
    assert said(dataset, "12 files left out, not readable (train/cat/00.png, ")


@pytest.mark.parametrize(
    ("fit", "row", "words"),
    [
        ("stretch", [0, 255], "stretched to square"),
        ("crop", [128, 128], "cropped"),
        ("pad", [0, 0], "padded"),
    ],
)
def test_images_that_are_not_square_are_resized_as_is_stated(
    tmp_path: Path, fit: Fit, row: list[int], words: str
) -> None:
    """Black, grey, white from left to right: 4, 8 and 4 of 16×8 pixels."""
    pixels = np.repeat(np.array([[0] * 4 + [128] * 8 + [255] * 4], np.uint8), 8, axis=0)
    arrays = {f"{kind}_{part}": own for part in ("train", "test") for kind, own in
              (("x", pixels[None]), ("y", np.zeros(1, int)))}  # fmt: skip
    np.savez(tmp_path / "wide.npz", **arrays)
    for part in ("train", "test"):
        (tmp_path / "wide" / part / "a").mkdir(parents=True)
        Image.fromarray(pixels).save(tmp_path / "wide" / part / "a" / "0.png")
    for source in ("wide", "wide.npz"):
        dataset = load_dataset(str(tmp_path / source), image_size=8, fit=fit)
        image = dataset.train.images[0, 0]
        middle = image[4] if fit != "pad" else image[0]
        assert image.shape == (8, 8)
        assert [int(middle[0]), int(middle[-1])] == row
        assert said(dataset, "2 images resized to 8×8, 2 of them not square and " + words)
        whole = load_dataset(str(tmp_path / source))
        assert any("are 16×8, not square" in note for note in dataset_notes(whole))


def test_mixed_sizes_and_modes_become_one_on_request(tmp_path: Path) -> None:
    modes = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F")
    for part in ("train", "test"):
        (tmp_path / part / "a").mkdir(parents=True)
        for number, mode in enumerate(modes):
            suffix = "tif" if mode in ("CMYK", "F") else "png"
            image = Image.new("L", (6 + number, 9), 255).convert("RGB" if mode == "CMYK" else "L")
            made = Image.new(mode, image.size, 65535) if mode == "I;16" else image.convert(mode)
            made.save(tmp_path / part / "a" / f"{number}.{suffix}")
    dataset = load_image_folder(tmp_path, image_size=8, leave_out=True)
    assert dataset.image_shape == (3, 8, 8)
    assert len(dataset.train) == len(modes)
    assert said(dataset, "18 images resized to 8×8")


# Tables


def pets(root: Path) -> list[str]:
    """Ten images in a folder beside the table, of levels 0 to 9."""
    return [
        save(root / "images" / f"{number}.png", number).relative_to(root).as_posix() for number in range(10)
    ]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_table_with_splits_by_any_delimiter_and_mark(tmp_path: Path, delimiter: str, encoding: str) -> None:
    rows = [("Path", "Label", "Split")]
    rows += [(path, f"ö{i % 2}", ("Training", "TEST", "dev")[i % 3]) for i, path in enumerate(pets(tmp_path))]
    text = "\r\n".join(delimiter.join(row) for row in rows)
    (tmp_path / "labels.csv").write_bytes(text.encode(encoding))
    dataset = load_image_folder(tmp_path)
    assert dataset.class_names == ("ö0", "ö1")
    assert levels(dataset) == {"train": [0, 3, 6, 9], "validation": [2, 5, 8], "test": [1, 4, 7]}
    assert dataset.train.labels.tolist() == [0, 1, 0, 1]
    assert dataset.conversions == ("classes were read from labels.csv, not from the names of folders",)
    assert load_dataset(str(tmp_path / "labels.csv")).fingerprint == dataset.fingerprint


@pytest.mark.parametrize(
    "name", [r"C:\data\pets\images\{}.PNG", r"images\{}.png", "./images/{}.png", "/home/ada/images/{}.png",
             "{}.png", "{}", "images/{}"]
)  # fmt: skip
def test_paths_of_other_machines_and_systems_are_found(tmp_path: Path, name: str) -> None:
    pets(tmp_path)
    rows = [f"{name.format(number)},{number % 2},{'train' if number < 8 else 'test'}" for number in range(10)]
    (tmp_path / "any.csv").write_text("\n".join(["filename,class,subset", *rows]))
    dataset = load_image_folder(tmp_path)
    assert levels(dataset) == {"train": [*range(8)], "test": [8, 9]}
    assert said(dataset, "columns of any.csv read: filename as path, class as label, subset as split")


def test_labels_of_digits_are_classes_in_natural_order_and_groups_stay_together(tmp_path: Path) -> None:
    for number in range(60):
        save(tmp_path / f"{number}.png", number)
    rows = [f"{number}.png,{9 + number % 3}.0,patient {number // 6}" for number in range(60)]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label,group", *rows]))
    dataset, again, other = (load_image_folder(tmp_path, seed=seed) for seed in (0, 0, 1))
    assert dataset.class_names == ("9", "10", "11")
    groups = [{level // 6 for level in own} for own in levels(dataset).values()]
    assert len(groups[1]) == 2
    assert not groups[0] & groups[1]
    assert dataset.fingerprint == again.fingerprint != other.fingerprint
    assert said(dataset, "12 of 60 images were set apart for it (whole groups at random, seed 0)")
    assert said(dataset, "labels such as 1.0 read as whole numbers")
    divided = set_validation_apart(dataset, 0.2)
    assert divided.validation is not None
    kept = {level // 6 for level in levels(divided)["train"]}
    assert not kept & {level // 6 for level in levels(divided)["validation"]}


def test_groups_that_splits_share_are_told(tmp_path: Path) -> None:
    rows = [f"{path},0,{'test' if i == 9 else 'train'},{i % 3}" for i, path in enumerate(pets(tmp_path))]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label,split,group", *rows]))
    assert said(load_image_folder(tmp_path), "groups are in more than one split (0)")


def test_a_table_without_titles_and_rows_that_repeat_or_lack_something(tmp_path: Path) -> None:
    paths = pets(tmp_path)
    rows = [f"{path},{number % 2}" for number, path in enumerate(paths)]
    (tmp_path / "list.csv").write_text("\n".join([*rows[:9], rows[0]]))
    dataset = load_image_folder(tmp_path)
    assert sorted(chain.from_iterable(levels(dataset).values())) == [*range(9)]
    for words in ("no line of titles", "1 row that repeat another", "1 image that the table does not name"):
        assert said(dataset, words)
    (tmp_path / "list.csv").write_text("\n".join(["path,label", *rows, "gone.png,1", f"{paths[0]},"]))
    with pytest.raises(UnreadableError, match="2 files") as caught:
        load_image_folder(tmp_path)
    assert [line.rpartition(" (")[2] for line in caught.value.files] == [
        "no such image in the folder)",
        "no label)",
    ]
    assert said(load_image_folder(tmp_path, leave_out=True), "2 files left out")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("path,label\nimages/1.png,a\nimages/1.png,b", r"names images/1.png twice, with different labels"),
        (
            "path,class,target\nimages/1.png,a,b",
            "has columns class and target; call the one with the label 'label'",
        ),
        ("path,label,split\nimages/1.png,a,fold3", "has a split called 'fold3'; call it train, val or test"),
        ("path,label,split\nimages/1.png,a,train\nimages/2.png,a,", "names no split for 1 of 2 images"),
        ("path,label,split\nimages/1.png,a,val", "has no training images, only validation; add train"),
        ("path,label,group\nimages/1.png,a,x\nimages/2.png,a,", "names no group for 1 of 2 images"),
    ],
)
def test_a_table_that_contradicts_itself_is_refused(tmp_path: Path, text: str, told: str) -> None:
    pets(tmp_path)
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(DataError, match=told):
        load_image_folder(tmp_path)


def test_a_table_that_names_no_images_leaves_the_folders_as_they_are(tmp_path: Path) -> None:
    for part in ("train", "test"):
        save(tmp_path / part / "cat" / "0.png", 1)
    (tmp_path / "results.csv").write_text("epoch,loss\n1,2")
    assert said(load_image_folder(tmp_path), "results.csv not read, the folders say the classes")
    pets(tmp_path / "pets")
    (tmp_path / "pets" / "results.csv").write_text("epoch,loss\n1,2")
    with pytest.raises(DataError, match=r"results\.csv has no columns called path and label"):
        load_image_folder(tmp_path / "pets")
    (tmp_path / "pets" / "more.csv").write_text("path,label")
    with pytest.raises(DataError, match=r"several tables, more\.csv, results\.csv; give the path of that of"):
        load_image_folder(tmp_path / "pets")


def test_tables_called_after_splits_say_them(tmp_path: Path) -> None:
    paths = pets(tmp_path)
    for part, own in (("train", paths[:6]), ("valid", paths[6:8]), ("test", paths[8:])):
        rows = [f"{path},{index % 2}" for index, path in enumerate(own)]
        (tmp_path / f"{part}.csv").write_text("\n".join(["path,label", *rows]))
    dataset = load_image_folder(tmp_path)
    assert levels(dataset) == {"train": [*range(6)], "validation": [6, 7], "test": [8, 9]}
    (tmp_path / "test.csv").write_text("path\nimages/8.png")
    dataset = load_image_folder(tmp_path)
    assert levels(dataset) == {"train": [*range(6)], "test": [6, 7]}
    assert said(dataset, "test.csv not read, without columns path and label")


def test_a_table_that_windows_saved_is_read_and_the_encoding_told(tmp_path: Path) -> None:
    rows = [f"{path};{'größe' if i % 2 else 'café'}" for i, path in enumerate(pets(tmp_path))]
    (tmp_path / "labels.csv").write_bytes("\r\n".join(["sep=;", "path;label", *rows]).encode("cp1252"))
    dataset = load_image_folder(tmp_path)
    assert dataset.class_names == ("café", "größe")
    assert said(dataset, "is not UTF-8, so read as Windows-1252")


def test_classes_that_differ_in_case_alone_are_told(tmp_path: Path) -> None:
    rows = [f"{path},{'Cat' if i % 2 else 'cat'}" for i, path in enumerate(pets(tmp_path))]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label", *rows]))
    notes = dataset_notes(load_image_folder(tmp_path))
    assert "classes differ in case alone (Cat, cat)" in notes


def test_a_parquet_of_paths_and_labels(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    table = {"path": pets(tmp_path), "label": [0, 1] * 5, "split": ["train"] * 8 + ["test"] * 2}
    pandas.DataFrame(table).to_parquet(tmp_path / "labels.parquet")
    assert levels(load_image_folder(tmp_path)) == {"train": [*range(8)], "test": [8, 9]}


# .npz


def arrays(n: int = 10, n_classes: int = 5) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images of levels 10, 20, …, with labels that repeat."""
    images = (10 + 10 * np.arange(n, dtype=np.uint8))[:, None, None].repeat(4, 1).repeat(4, 2)
    images[:, 0, 1], images[0, 1, 1], images[0, 1, 2] = 7, 0, 255
    return images, np.arange(n) % n_classes


def npz(path: Path, **content: Any) -> ImageDataset:
    np.savez(path / "a.npz", **content)
    return load_npz(path / "a.npz")


@pytest.mark.parametrize(
    "names",
    ["x_train y_train x_test y_test", "train_images train_labels test_images test_labels",
     "X_train Y_train X_test Y_test", "trainX trainY testX testY",
     "images_train targets_train images_test targets_test",
     "data labels testing_data testing_labels"],
)  # fmt: skip
def test_arrays_are_known_by_any_usual_name(tmp_path: Path, names: str) -> None:
    images, labels = arrays()
    dataset = npz(tmp_path, **dict(zip(names.split(), (images, labels, images, labels), strict=True)))
    assert levels(dataset) == {"train": images[:, 0, 0].tolist(), "test": images[:, 0, 0].tolist()}
    assert dataset.conversions == ()


def test_arrays_as_medmnist_has_them(tmp_path: Path) -> None:
    images, labels = arrays()
    parts = {f"{part}_images": images for part in ("train", "val", "test")}
    parts |= {f"{part}_labels": labels[:, None].astype(np.uint8) for part in ("train", "val", "test")}
    dataset = npz(tmp_path, **parts)
    assert list(dataset.splits()) == ["train", "validation", "test"]
    assert dataset.train.labels.tolist() == labels.tolist()
    assert dataset.conversions == ("labels of shape (n, 1) read as n labels",)


def test_arrays_without_splits_are_divided(tmp_path: Path) -> None:
    images, labels = arrays(20)
    dataset = npz(tmp_path, images=images, labels=labels)
    assert [len(split) for split in dataset.splits().values()] == [16, 4]
    assert sorted(chain.from_iterable(levels(dataset).values())) == images[:, 0, 0].tolist()
    assert said(dataset, "there is no test split, so 4 of 20 images were set apart for it (of every class at")


@pytest.mark.parametrize(
    ("changed", "names", "words"),
    [
        (lambda own: np.eye(5)[own], "01234", "one-hot labels of 5 classes read"),
        (lambda own: own + 1, "12345", "labels begin at 1, so the class of label 1 has index 0"),
        (lambda own: own.astype(float), "01234", "labels that are whole floats read as integers"),
        (
            lambda own: np.array(list("abcde"))[own],
            "abcde",
            "labels that are texts are the names of the classes",
        ),
        (lambda own: own.astype("S1"), "01234", "labels that are texts"),
        (lambda own: (own + 9).astype(str), ("9", "10", "11", "12", "13"), "natural order"),
    ],
)
def test_labels_of_every_kind_become_indices(tmp_path: Path, changed: Any, names: Any, words: str) -> None:
    images, labels = arrays()
    own = changed(labels)
    dataset = npz(tmp_path, x_train=images, y_train=own, x_test=images, y_test=own)
    assert dataset.train.labels.tolist() == labels.tolist()
    assert dataset.class_names == tuple(names)
    assert said(dataset, words)


def test_a_class_that_no_label_names_is_allowed_and_told(tmp_path: Path) -> None:
    images, labels = arrays()
    own = np.where(labels == 3, 4, labels)
    for names in ({}, {"class_names": np.array(list("abcde"))}):
        dataset = npz(tmp_path, x_train=images, y_train=own, x_test=images, y_test=own, **names)
        assert dataset.n_classes == 5
        assert any(note.startswith("1 class has no images (") for note in dataset_notes(dataset))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (lambda x: (x / 255).astype(np.float32), "scaled from 0 … 1"),
        (lambda x: (x / 127.5 - 1).astype(np.float64), "scaled from −1 … 1"),
        (lambda x: x.astype(np.float32), "rounded to uint8"),
        (lambda x: x.astype(np.int64), "saved as uint8"),
        (lambda x: x.astype(np.uint16) * 257, "scaled from 16 to 8 bits"),
    ],
)
def test_pixels_of_every_kind_become_bytes(tmp_path: Path, changed: Any, words: str) -> None:
    images, labels = arrays()
    own = changed(images)
    dataset = npz(tmp_path, x_train=own, y_train=labels, x_test=own[:5] * 1, y_test=labels[:5])
    assert torch.equal(dataset.train.images[:, 0], torch.from_numpy(images))
    assert said(dataset, words)


@pytest.mark.parametrize("order", [(0, 3, 1, 2), (1, 2, 3, 0)])
def test_channels_are_moved_last(tmp_path: Path, order: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).integers(0, 256, (10, 4, 5, 3), dtype=np.uint8)
    labels = arrays()[1]
    own = images.transpose(order)
    dataset = npz(tmp_path, x_train=own, y_train=labels, x_test=own, y_test=labels)
    assert np.array_equal(dataset.train.images.permute(0, 2, 3, 1).numpy(), images)
    assert dataset.conversions == ("channels moved last (x_train, x_test)",)


def test_arrays_of_another_size_are_resized_at_once(tmp_path: Path) -> None:
    images, labels = arrays()
    np.savez(
        tmp_path / "a.npz", x_train=images[:, :3, :3], y_train=labels, x_test=images[:, :3, :3], y_test=labels
    )
    whole = load_dataset(str(tmp_path / "a.npz"))
    assert any("3×3, of an odd side, and the generator takes" in note for note in dataset_notes(whole))
    assert load_dataset(str(tmp_path / "a.npz"), image_size=8).image_shape == (1, 8, 8)
    other = np.full((5, 8, 8), 9, np.uint8)
    np.savez(tmp_path / "a.npz", x_train=images, y_train=labels, x_test=other, y_test=labels[:5])
    with pytest.raises(DataError, match="test images are"):
        load_dataset(str(tmp_path / "a.npz"))
    dataset = load_dataset(str(tmp_path / "a.npz"), image_size=8)
    assert dataset.image_shape == (1, 8, 8)
    assert torch.equal(dataset.test.images[:, 0], torch.from_numpy(other))
    assert said(dataset, "10 images resized to 8×8")


def test_images_that_would_be_too_large_are_refused_before_they_are_resized(tmp_path: Path) -> None:
    images, labels = arrays(200)
    np.savez(tmp_path / "a.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    with pytest.raises(DataError, match=r"a has 400 images of 6\.\d GB, at most"):
        load_dataset(str(tmp_path / "a.npz"), image_size=4096)


# Other files


def idx(array: NDArray[Any]) -> bytes:
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return header + array.astype(np.uint8).tobytes()


@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_gzipped_or_not(tmp_path: Path, packed: bool) -> None:
    images, labels = arrays()
    for part, own in (("train", images), ("t10k", images[:5])):
        for kind, array in (("images-idx3", own), ("labels-idx1", labels[: len(own)])):
            path = tmp_path / f"{part}-{kind}-ubyte{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    dataset = load_dataset(str(tmp_path))
    assert torch.equal(dataset.train.images[:, 0], torch.from_numpy(images))
    assert dataset.test.labels.tolist() == labels[:5].tolist()
    first = sorted(tmp_path.iterdir())[0]
    assert load_dataset(str(first)).fingerprint == dataset.fingerprint
    first.write_bytes(gzip.compress(b"\0\0\x08\3" + bytes(20)) if packed else b"\0\0\x08\3")
    with pytest.raises(DataError, match=r"idx.*download it again"):
        load_dataset(str(tmp_path))


def test_idx_files_of_emnist_are_turned_upright(tmp_path: Path) -> None:
    images, labels = arrays()
    for part in ("train", "test"):
        (tmp_path / f"emnist-letters-{part}-images-idx3-ubyte").write_bytes(idx(images.swapaxes(1, 2)))
        (tmp_path / f"emnist-letters-{part}-labels-idx1-ubyte").write_bytes(idx(labels + 1))
    dataset = load_dataset(str(tmp_path))
    assert torch.equal(dataset.train.images[:, 0], torch.from_numpy(images))
    assert said(dataset, "images transposed")
    assert said(dataset, "labels begin at 1")


def test_mat_files_of_svhn(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (32, 32, 3, 20), dtype=np.uint8)
    digits = 1 + np.arange(20, dtype=np.uint8)[:, None] % 10
    for part in ("train", "test", "extra"):
        scipy.io.savemat(tmp_path / f"{part}_32x32.mat", {"X": images, "y": digits})
    for source in (tmp_path, tmp_path / "train_32x32.mat"):
        dataset = load_dataset(str(source))
        assert np.array_equal(dataset.train.images.permute(2, 3, 1, 0).numpy(), images)
        assert dataset.train.labels.tolist() == [*range(1, 10), 0] * 2
        assert dataset.class_names == tuple("0123456789")
        assert said(dataset, "label 10 read as the digit 0")
        assert said(dataset, "extra_32x32.mat not read")
    (tmp_path / "train_32x32.mat").write_bytes(b"none")
    with pytest.raises(DataError, match=r"train_32x32\.mat is no readable \.mat file"):
        load_dataset(str(tmp_path))


def png(level: int) -> bytes:
    buffer = io.BytesIO()
    flat(level).save(buffer, "PNG")
    return buffer.getvalue()


def test_parquet_with_images_as_hugging_face_stores_it(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    about = b'{"info": {"features": {"label": {"names": ["dog", "cat"], "_type": "ClassLabel"}}}}'
    (tmp_path / "data").mkdir()
    for part, n in (("train", 6), ("test", 2)):
        cells = [{"bytes": png(level), "path": f"{level}.png"} for level in range(n)]
        table = pa.table({"image": cells, "label": [level % 2 for level in range(n)]})
        path = tmp_path / "data" / f"{part}-00000-of-00001.parquet"
        pq.write_table(table.replace_schema_metadata({b"huggingface": about}), path)
    dataset = load_dataset(str(tmp_path))
    assert dataset.class_names == ("dog", "cat")
    assert levels(dataset) == {"train": [*range(6)], "test": [0, 1]}
    assert dataset.train.labels.tolist() == [0, 1, 0, 1, 0, 1]
    alone = load_dataset(str(tmp_path / "data" / "train-00000-of-00001.parquet"))
    assert said(alone, "there is no test split")


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    for source in (tmp_path, tmp_path / "a.parquet"):
        with pytest.raises(
            DataError, match=r"takes pyarrow; install it with: pip install 'defuse\[parquet\]'"
        ):
            load_dataset(str(source))


# torchvision


@pytest.mark.parametrize(
    ("name", "upright"), [("FashionMNIST", False), ("kmnist", False), ("EMNIST-letters", True)]
)
def test_sets_like_mnist_by_torchvision(tmp_path: Path, name: str, upright: bool) -> None:
    images = np.random.default_rng(0).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    labels = 1 + np.arange(20) % 9
    folder = tmp_path / {"kmnist": "KMNIST", "EMNIST-letters": "EMNIST"}.get(name, name) / "raw"
    folder.mkdir(parents=True)
    train, test = ("emnist-letters-train", "emnist-letters-test") if upright else ("train", "t10k")
    for part in (train, test):
        stored = images.swapaxes(1, 2) if upright else images
        (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(stored))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))
    dataset = load_torchvision(name, tmp_path, download=False)
    assert torch.equal(dataset.train.images[:, 0], torch.from_numpy(images))
    assert dataset.train.labels.tolist() == labels.tolist()
    assert dataset.class_names[0] in ("T-shirt/top", "o", "N/A")


def test_files_of_mixed_sizes_by_torchvision_take_a_size(tmp_path: Path) -> None:
    for label, name in enumerate(("AnnualCrop", "Forest")):
        for number in range(5):
            save(tmp_path / "eurosat" / "2750" / name / f"{number}.jpg", 10 * label, (6 + number, 8))
    with pytest.raises(DataError, match="give image_size to resize them all"):
        load_torchvision("EuroSAT", tmp_path, download=False)
    dataset = load_torchvision("EuroSAT", tmp_path, image_size=8, download=False)
    assert dataset.class_names == ("AnnualCrop", "Forest")
    assert [len(split) for split in dataset.splits().values()] == [8, 2]


def test_cifar_by_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 32, 32), dtype=np.uint8)
    for number, name in enumerate((*(f"data_batch_{n}" for n in range(1, 6)), "test_batch")):
        labels = [0, 1] if name == "test_batch" else [2 * number, 2 * number + 1]
        content = {"data": images.reshape(2, -1), "labels": labels}
        (folder / name).write_bytes(pickle.dumps(content))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    # The checksums are those of the real files.
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    dataset = load_torchvision("CIFAR10", tmp_path, download=False)
    assert dataset.class_names == tuple("abcdefghij")
    assert dataset.train.labels.tolist() == [*range(10)]
    assert torch.equal(dataset.test.images, torch.from_numpy(images))


def test_every_set_of_torchvision_is_there() -> None:
    from torchvision import datasets

    from defuse_core.data.torchvision_names import TORCHVISION_SETS

    for name, wanted in TORCHVISION_SETS.items():
        assert hasattr(datasets, wanted.kind or name)
        assert {*wanted.splits} <= {"", "train", "validation", "test"}


# What a project remembers


def test_the_choices_are_remembered_and_read_again() -> None:
    for reading in (Reading(), Reading(8, "pad", leave_out=True, seed=3, validation=0.1), Reading(seed=None)):
        assert Reading.of(reading.remembered()) == reading
    assert Reading.of({"image_size": None}) == Reading(seed=None)  # of a project before there was a seed
    with pytest.raises(DataError, match="fit must be stretch, crop or pad, got 'squeeze'"):
        Reading(fit="squeeze")
