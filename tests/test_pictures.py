"""Image files of every kind: how they become uint8, what is told of it, and what is refused."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from defuse_core.base.errors import UnreadableError
from defuse_core.base.limits import MAX_IMAGE_PIXELS, MAX_SCANS
from defuse_core.data import decoding, jpeg_scans, pictures, splits
from defuse_core.data.notes import dataset_notes
from defuse_core.data.reading import Reading
from defuse_core.data.sources import load_image_folder
from defuse_core.data.splits import DataError, ImageDataset

GREY = np.random.default_rng(0).integers(0, 256, (6, 8), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 256, (6, 8, 3), dtype=np.uint8)
SHAPE = np.zeros((6, 8), np.uint8)  # a digit as alpha: opaque in the middle
SHAPE[2:4, 3:6] = 255


def with_alpha(level: int, alpha: NDArray[np.uint8] = SHAPE, channels: int = 1) -> Image.Image:
    bands = [np.full_like(alpha, level)] * channels
    return Image.fromarray(np.dstack([*bands, alpha]), "LA" if channels == 1 else "RGBA")


def folder_of(root: Path, *images: Image.Image, suffix: str = ".png", **options: Any) -> Path:
    """A data set whose train and test splits both hold these images."""
    for part in ("train", "test"):
        for number, image in enumerate(images):
            path = root / part / "a" / f"{number}{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path, **options)
    return root


def read(root: Path, *images: Image.Image, suffix: str = ".png", **options: Any) -> ImageDataset:
    return load_image_folder(folder_of(root, *images, suffix=suffix, **options))


def pixels(dataset: ImageDataset, index: int = 0) -> NDArray[np.uint8]:
    image = dataset.train.images[index].permute(1, 2, 0).numpy()
    return image[..., 0] if image.shape[2] == 1 else image


# Depth


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_16_bit_png_are_scaled_by_the_bits_that_the_data_set_uses(tmp_path: Path, bits: int) -> None:
    bright = np.linspace(0, 2**bits - 1, 48).astype(np.uint16).reshape(6, 8)
    dark = np.full((6, 8), 2 ** (bits - 2), np.uint16)
    dataset = read(tmp_path, Image.fromarray(bright), Image.fromarray(dark))
    assert np.abs(pixels(dataset) - bright * (255 / (2**bits - 1))).max() <= 1
    assert pixels(dataset, 1)[0, 0] == 64  # by the same rule: a quarter of white
    assert dataset.conversions == (f"4 images scaled from {bits} to 8 bits",)


@pytest.mark.parametrize("white", [1000, 4095, 65535])
def test_a_pgm_of_16_bits_is_scaled_by_the_white_that_it_declares(tmp_path: Path, white: int) -> None:
    half = np.full((6, 8), white // 2, ">u2")
    for part in ("train", "test"):
        (tmp_path / part / "a").mkdir(parents=True)
        (tmp_path / part / "a" / "0.pgm").write_bytes(b"P5\n8 6\n%d\n" % white + half.tobytes())
    assert abs(int(pixels(load_image_folder(tmp_path))[0, 0]) - 127) <= 1


def test_32_bit_tiff_are_scaled(tmp_path: Path) -> None:
    levels = np.linspace(0, 2**24 - 1, 48).astype(np.int32).reshape(6, 8)
    dataset = read(tmp_path, Image.fromarray(levels), suffix=".tif")
    assert np.abs(pixels(dataset) - levels * (255 / (2**24 - 1))).max() <= 1
    assert dataset.conversions == ("2 images scaled from 24 to 8 bits",)


@pytest.mark.parametrize("dtype", ["u1", "u2"])
def test_a_tiff_whose_0_is_white_is_inverted(tmp_path: Path, dtype: str) -> None:
    bright = GREY.astype(dtype) * (257 if dtype == "u2" else 1)
    for part in ("train", "test"):
        (tmp_path / part / "a").mkdir(parents=True)
        (tmp_path / part / "a" / "0.tif").write_bytes(tiff(bright, photometric=0))
    dataset = load_image_folder(tmp_path)
    assert np.array_equal(pixels(dataset), 255 - GREY)
    told = ("2 images inverted, since 0 is white in their files", "2 images scaled from 16 to 8 bits")
    assert sorted(dataset.conversions) == (sorted(told) if dtype == "u2" else [])


def tiff(array: NDArray[Any], *, photometric: int = 1, sample_format: int = 1) -> bytes:
    """An uncompressed grey TIFF with tags that Pillow would not write."""
    height, width = array.shape
    tags = {256: width, 257: height, 258: array.itemsize * 8, 259: 1, 262: photometric, 273: 8, 277: 1,
            278: height, 279: array.nbytes, 339: sample_format}  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    directory = struct.pack("<H", len(tags)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + array.nbytes) + array.tobytes() + directory


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (tiff(GREY, sample_format=2), "signed integers of 8 bits; save them unsigned"),
        (
            tiff(np.ones((6, 8), "f4"), photometric=0, sample_format=3),
            "floats of which 0 is white; save them inverted",
        ),
    ],
    ids=["signed", "inverted floats"],
)
def test_a_tiff_of_which_the_brightness_is_unclear_is_refused(
    tmp_path: Path, content: bytes, told: str
) -> None:
    folder = folder_of(tmp_path, Image.fromarray(GREY))
    (folder / "train" / "a" / "bad.tif").write_bytes(content)
    with pytest.raises(DataError, match=rf"bad\.tif is not a readable image \({told}"):
        load_image_folder(folder)


def test_a_file_that_declares_its_white_changes_nothing_of_the_others(tmp_path: Path) -> None:
    twelve = np.linspace(0, 4095, 48).astype(np.uint16).reshape(6, 8)
    alone = pixels(read(tmp_path / "alone", Image.fromarray(twelve)))
    folder = folder_of(tmp_path / "both", Image.fromarray(twelve))
    declared = b"P5\n8 6\n4095\n" + twelve.astype(">u2").tobytes()
    for part in ("train", "test"):
        (folder / part / "a" / "1.pgm").write_bytes(declared)
    both = load_image_folder(folder)
    assert np.array_equal(pixels(both), alone)
    assert pixels(both, 1).max() == alone.max() == 255
    assert both.conversions == ("2 images scaled from 12 to 8 bits", "2 images scaled from 16 to 8 bits")


def test_a_transparent_colour_of_16_bits_is_told(tmp_path: Path) -> None:
    deep = np.linspace(0, 65535, 48).astype(np.uint16).reshape(6, 8)
    dataset = read(tmp_path, Image.fromarray(deep), transparency=0)
    assert dataset.conversions == (
        "2 images scaled from 16 to 8 bits", "2 images with a transparent colour, which is shown as it is",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("peak", "white"), [(1.0, 1), (1.0000002, 1), (1.2, 1), (1.5, 1), (1.6, 255), (255.0, 255)]
)
def test_floats_a_little_above_1_are_of_0_to_1(tmp_path: Path, peak: float, white: int) -> None:
    floats = (GREY / np.float32(255)).astype(np.float32)
    floats[0, 0] = peak
    dataset = read(tmp_path, Image.fromarray(floats), suffix=".tiff")
    expected = np.rint(floats.astype(np.float64) * (255 / white)).clip(0, 255).astype(np.uint8)
    assert np.abs(pixels(dataset).astype(int) - expected).max() <= 1
    assert pixels(dataset)[0, 0] == (255 if white == 1 else round(peak))


def progressive(n_more: int, image: Image.Image) -> bytes:
    """A progressive JPEG whose last scan is there so many times more."""
    file = io.BytesIO()
    image.save(file, "JPEG", progressive=True)
    whole = file.getvalue()
    last = whole.rindex(b"\xff\xda")
    return whole[:-2] + whole[last:-2] * n_more + whole[-2:]


def test_a_jpeg_of_many_scans_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = Image.fromarray(GREY).resize((32, 32))
    n_scans = jpeg_scans.count_scans(progressive(0, image))
    assert 5 <= n_scans <= 12
    assert jpeg_scans.count_scans(progressive(7, image)) == n_scans + 7
    (tmp_path / "a.jpg").write_bytes(progressive(MAX_SCANS - n_scans, image))
    assert decoding.read_picture(tmp_path / "a.jpg", Reading()).pixels.shape == (32, 32)
    monkeypatch.setattr(decoding, "_decode", lambda *_: pytest.fail("it is decoded"))
    (tmp_path / "a.jpg").write_bytes(progressive(MAX_SCANS - n_scans + 1, image))
    with pytest.raises(DataError, match="a JPEG of over 100 scans, which takes too long to read"):
        decoding.read_picture(tmp_path / "a.jpg", Reading())


def test_scans_within_the_segments_of_a_jpeg_and_after_its_end_do_not_count() -> None:
    whole = progressive(0, Image.fromarray(GREY))
    n_scans = jpeg_scans.count_scans(whole)
    segment = b"\xff\xe1" + (2 + 300).to_bytes(2, "big") + b"\xff\xda\x00" * 100
    assert jpeg_scans.count_scans(whole[:2] + segment + whole[2:] + b"\xff\xda" * 500) == n_scans
    assert jpeg_scans.count_scans(b"") == jpeg_scans.count_scans(b"\xff\xd8\xff") == 0


@pytest.mark.parametrize("white", [1, 255])
def test_floats_of_0_to_1_or_255_are_scaled(tmp_path: Path, white: int) -> None:
    floats = (GREY / np.float32(255) * white).astype(np.float32)
    dark = (floats / np.float32(300)).astype(np.float32)  # alone it would be of 0 … 1
    dataset = read(tmp_path, Image.fromarray(floats), Image.fromarray(dark), suffix=".tiff")
    assert np.array_equal(pixels(dataset), GREY)
    assert pixels(dataset, 1).max() <= 1
    assert dataset.conversions == (f"4 images of floats scaled from 0 … {white}",)


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (np.full((6, 8), -0.5, np.float32), r"floats of -0\.5 … -0\.5; scale them"),
        (np.full((6, 8), 256, np.float32), r"floats of 256 … 256; scale them"),
        (np.full((6, 8), np.nan, np.float32), r"floats of nan … nan; scale them"),
        (np.full((6, 8), np.inf, np.float32), r"floats of inf … inf; scale them"),
        (np.full((6, 8), -3, np.int32), r"integers from -3; scale them to 0 … 65535"),
    ],
)
def test_values_of_no_known_range_are_refused(tmp_path: Path, array: NDArray[Any], told: str) -> None:
    folder = folder_of(tmp_path, Image.fromarray(GREY))
    Image.fromarray(array).save(folder / "train" / "a" / "bad.tif")
    with pytest.raises(DataError, match=rf"bad\.tif is not a readable image \({told}"):
        load_image_folder(folder)


def test_depth_is_resized_with_the_images(tmp_path: Path) -> None:
    flat = Image.fromarray(np.full((9, 12), 4095, np.uint16))
    folder = folder_of(tmp_path, flat, Image.fromarray(GREY))
    assert load_image_folder(folder, image_size=5).train.images[0].unique().tolist() == [255]


def png_of_16_bit_rgb(level: int) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    row = b"\0" + struct.pack(">H", level) * 3 * 8
    header = struct.pack(">IIBBBBB", 8, 6, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(kind, content)
        for kind, content in ((b"IHDR", header), (b"IDAT", zlib.compress(row * 6)), (b"IEND", b""))
    )


def test_colours_of_16_bits_are_told(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, Image.fromarray(COLOUR))
    (folder / "train" / "a" / "1.png").write_bytes(png_of_16_bit_rgb(0x8000))
    dataset = load_image_folder(folder)
    assert pixels(dataset, 1)[0, 0].tolist() == [128] * 3
    assert dataset.conversions == ("1 image of 16 bits a channel, of which the upper 8 were read",)


# Modes, rotation, transparency


@pytest.mark.parametrize(
    ("mode", "channels"), [("1", 1), ("L", 1), ("LA", 1), ("RGB", 3), ("RGBA", 3), ("P", 3)]
)
def test_opaque_images_of_every_mode_are_as_pillow_shows_them(
    tmp_path: Path, mode: str, channels: int
) -> None:
    image = Image.fromarray(COLOUR).convert(mode)
    dataset = read(tmp_path, image)
    assert np.array_equal(pixels(dataset), np.asarray(image.convert("L" if channels == 1 else "RGB")))
    assert dataset.conversions == ()


def test_cmyk_is_told(tmp_path: Path) -> None:
    image = Image.new("CMYK", (8, 6), (0, 255, 255, 0))
    dataset = read(tmp_path, image, suffix=".tif")
    assert pixels(dataset)[0, 0].tolist() == [255, 0, 0]
    assert dataset.conversions == ("2 images converted from CMYK to RGB",)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_turned_as_their_exif_says(tmp_path: Path, orientation: int) -> None:
    up = Image.fromarray(GREY)
    stored = {  # how a camera stores an image that it wants to be seen upright
        1: up,
        2: up.transpose(Image.Transpose.FLIP_LEFT_RIGHT),
        3: up.transpose(Image.Transpose.ROTATE_180),
        4: up.transpose(Image.Transpose.FLIP_TOP_BOTTOM),
        5: up.transpose(Image.Transpose.TRANSPOSE),
        6: up.transpose(Image.Transpose.ROTATE_90),
        7: up.transpose(Image.Transpose.TRANSVERSE),
        8: up.transpose(Image.Transpose.ROTATE_270),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    dataset = read(tmp_path, stored, exif=exif)
    assert np.array_equal(pixels(dataset), GREY)
    assert dataset.conversions == (("2 images turned as their EXIF says",) if orientation > 1 else ())


def test_damaged_exif_is_as_none(tmp_path: Path) -> None:
    dataset = read(tmp_path, Image.fromarray(COLOUR), exif=b"Exif\0\0MM\0*\xff\xff")
    assert np.array_equal(pixels(dataset), COLOUR)


@pytest.mark.parametrize("channels", [1, 3])
def test_black_on_alpha_is_laid_on_white_and_white_on_black(tmp_path: Path, channels: int) -> None:
    black = read(tmp_path / "black", with_alpha(0, channels=channels))
    white = read(tmp_path / "white", with_alpha(255, channels=channels))
    expected = SHAPE if channels == 1 else np.dstack([SHAPE] * 3)
    assert np.array_equal(pixels(black), 255 - expected)
    assert np.array_equal(pixels(white), expected)
    assert black.conversions == ("2 images with transparency laid on white",)
    assert white.conversions == ("2 images with transparency laid on black",)


@pytest.mark.parametrize("channels", [1, 3])
def test_ink_that_is_nearly_white_is_laid_on_black_and_nearly_black_on_white(
    tmp_path: Path, channels: int
) -> None:
    noise = np.random.default_rng(0).integers(0, 12, SHAPE.shape, dtype=np.uint8)
    for name, ink, background in (("light", 243 + noise, 0), ("dark", noise, 255)):
        image = Image.fromarray(np.dstack([ink] * channels + [SHAPE]), "LA" if channels == 1 else "RGBA")
        other = with_alpha(background, channels=channels)  # one rule for all: two of three decide
        laid = pixels(read(tmp_path / name, image, image, other)).reshape(6, 8, -1)[..., 0]
        assert np.array_equal(laid, np.where(SHAPE, ink, background)), name


def test_one_empty_image_does_not_change_the_background_of_the_others(tmp_path: Path) -> None:
    empty = with_alpha(0, np.zeros_like(SHAPE))
    dataset = read(tmp_path, with_alpha(0), empty)
    assert np.array_equal(pixels(dataset), 255 - SHAPE)
    assert pixels(dataset, 1).min() == 255


def test_half_transparent_pixels_are_mixed(tmp_path: Path) -> None:
    half = with_alpha(100, np.full_like(SHAPE, 51))  # a fifth
    assert pixels(read(tmp_path, half))[0, 0] == 224  # 0.2 · 100 + 0.8 · 255


def test_a_transparent_colour_of_a_palette_is_transparent(tmp_path: Path) -> None:
    image = Image.fromarray((SHAPE > 0).astype(np.uint8), "P")
    image.putpalette([9, 9, 9, 0, 0, 0])
    dataset = read(tmp_path, image, suffix=".gif", transparency=0)
    assert np.array_equal(pixels(dataset)[..., 0], 255 - SHAPE)


@pytest.mark.parametrize("suffix", [".gif", ".webp", ".png", ".tif"])
def test_of_several_frames_the_first_is_read(tmp_path: Path, suffix: str) -> None:
    frames = [Image.fromarray(np.full((6, 8), level, np.uint8)) for level in (50, 100, 200)]
    options: dict[str, Any] = {"lossless": True} if suffix == ".webp" else {}
    dataset = read(tmp_path, frames[0], suffix=suffix, save_all=True, append_images=frames[1:], **options)
    assert dataset.train.images.unique().tolist() == [50]
    assert dataset.conversions == ("2 images of several frames, of which the first was read",)


# What is refused


def test_all_files_that_are_no_images_are_listed_in_one_error(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "data", Image.fromarray(GREY)) / "train" / "a"
    os.mkfifo(folder / "1-pipe.png")
    (folder / "2-loop.png").symlink_to("2-loop.png")
    (folder / "3-folder.png").mkdir()
    (folder / "4-gone.png").symlink_to("nowhere")
    (folder / os.fsdecode(b"5-\xff.png")).write_bytes(b"none")
    for number in range(10):
        (folder / f"6-{number}.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(UnreadableError) as caught:
        load_image_folder(tmp_path / "data")
    told = str(caught.value)
    assert told.startswith(f"15 files in {tmp_path / 'data'} are not readable images: ")
    assert told.endswith(" and 5 more; replace or remove them, or leave them out")
    assert len(caught.value.files) == 15
    assert caught.value.files[-1].startswith("train/a/6-9.jpg (")
    for words in (
        "train/a/1-pipe.png (no regular file)", "train/a/2-loop.png (a broken link)",
        "train/a/3-folder.png (it is a folder)", "train/a/4-gone.png (a broken link)",
        r"train/a/5-\xff.png (cut off, or of no format that is read)", "train/a/6-4.jpg",
    ):  # fmt: skip
        assert words in told
    assert "6-5" not in told
    told.encode()  # can be printed


def test_an_image_whose_name_is_not_utf_8_is_read(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, Image.fromarray(GREY))
    Image.fromarray(GREY).save(folder / "train" / "a" / os.fsdecode(b"\xff.png"))
    assert len(load_image_folder(folder).train) == 2


def test_a_class_whose_name_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    folder_of(tmp_path, Image.fromarray(GREY))
    (tmp_path / "train" / os.fsdecode(b"caf\xe9")).mkdir()
    with pytest.raises(DataError, match=r"train/caf\\xe9 has a name that is not UTF-8; rename the folder"):
        load_image_folder(tmp_path)


def test_a_class_that_is_a_link_to_itself_is_named(tmp_path: Path) -> None:
    folder_of(tmp_path, Image.fromarray(GREY))
    (tmp_path / "train" / "b").symlink_to("b")
    with pytest.raises(DataError, match=r"train/b is a link that leads nowhere; mend or remove it"):
        load_image_folder(tmp_path)


def test_leftovers_of_operating_systems_are_passed_over_and_other_files_told(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, Image.fromarray(GREY))
    for name in ("__MACOSX", ".git"):
        (folder / "train" / name).mkdir()
    for name in ("._0.png", ".DS_Store", "Thumbs.db", "desktop.ini", "notes.txt", "README"):
        (folder / "train" / "a" / name).write_bytes(b"none")
    dataset = load_image_folder(folder)
    assert (dataset.class_names, len(dataset.train)) == (("a",), 1)
    assert dataset.conversions == ("2 files passed over, no images (.txt, no suffix)",)


def claims(width: int, height: int) -> bytes:
    """A bitmap that says how large it is, and has no pixels."""
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 1024, 0, 0, 54 + 1024) + header + bytes(1024)


@pytest.mark.parametrize("side", [8193, 12_000, 30_000])  # below Pillow's own limits, and above each
def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(
    tmp_path: Path, recwarn: pytest.WarningsRecorder, side: int
) -> None:
    folder = folder_of(tmp_path, Image.fromarray(GREY))
    (folder / "train" / "a" / "bomb.bmp").write_bytes(claims(side, side))
    with pytest.raises(DataError, match=rf"bomb\.bmp is not .*{MAX_IMAGE_PIXELS:,}.*replace or remove it"):
        load_image_folder(folder)
    assert not recwarn.list


def test_images_that_exceed_the_memory_together_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(tmp_path, *[Image.fromarray(GREY)] * 3)
    monkeypatch.setattr(pictures, "MAX_DATASET_BYTES", 6 * GREY.nbytes)
    load_image_folder(folder)
    monkeypatch.setattr(pictures, "MAX_DATASET_BYTES", 6 * GREY.nbytes - 1)
    with pytest.raises(DataError, match=r"take over 0 GB in memory; give a smaller image_size"):
        load_image_folder(folder)


def test_grey_images_count_as_the_colour_images_that_they_become(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_of(tmp_path, *[Image.fromarray(GREY)] * 3, Image.fromarray(COLOUR))
    monkeypatch.setattr(splits, "MAX_DATASET_BYTES", 8 * COLOUR.nbytes)
    assert load_image_folder(folder).image_shape == (3, 6, 8)
    monkeypatch.setattr(splits, "MAX_DATASET_BYTES", 8 * COLOUR.nbytes - 1)
    with pytest.raises(DataError, match=r"has 8 images of 0\.0 GB, at most .* are allowed; save fewer"):
        load_image_folder(folder)


def test_only_formats_of_images_are_tried(tmp_path: Path) -> None:
    """Pillow would start a program for PostScript, whatever the file is called."""
    folder = folder_of(tmp_path, Image.fromarray(GREY))
    Image.fromarray(COLOUR).save(folder / "train" / "a" / "x.eps")
    (folder / "train" / "a" / "x.eps").rename(folder / "train" / "a" / "x.png")
    with pytest.raises(DataError, match=r"x\.png is not a readable image \(cut off, or of no format"):
        load_image_folder(folder)


# What looks wrong


FLAT = np.full_like(GREY, 9)


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ([GREY, COLOUR], []),
        ([GREY % 32, GREY % 40], []),
        ([GREY, FLAT], ["1 of 2 {} images have one colour everywhere (number 2)"]),
        ([FLAT, FLAT, GREY], ["2 of 3 {} images have one colour everywhere (the first is number 1)"]),
        ([GREY % 2], ["the brightest pixel of the {} split is 1 of 255, black to a network; if pixels of "
                      "0 … 1 were saved as integers, multiply them by 255 first"]),
        ([GREY % 16], ["the brightest pixel of the {} split is 15 of 255, nearly black; if more than 8 bits "
                       "were cut, scale them to 0 … 255 first"]),
        ([FLAT, FLAT], ["every pixel of the {} split is 9; check how its images were saved"]),
    ],
)  # fmt: skip
def test_what_looks_wrong_is_told(tmp_path: Path, arrays: list[NDArray[Any]], told: list[str]) -> None:
    dataset = read(tmp_path, *map(Image.fromarray, arrays))
    assert dataset_notes(dataset) == [
        "the images are 8×6, not square, and the generator takes square images of an even side; give "
        "image_size to resize them",
        *(note.format(part) for part in ("train", "test") for note in told),
    ]
