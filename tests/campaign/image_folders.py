"""Kinds of hostile folders of images."""

from __future__ import annotations

import io
import os
import struct
import zlib
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image

from tests.campaign.data_sets import zeros
from tests.campaign.kinds import Kind, Stock, damage, odd_path

_NAMES = ("a", "b")


def _picture(kind: str = "PNG", mode: str = "L", size: tuple[int, int] = (8, 8)) -> bytes:
    out = io.BytesIO()
    Image.new(mode, size, 100 if mode in ("L", "I;16", "F", "P") else None).save(out, kind)
    return out.getvalue()


def _folder(folder: Path, odd: dict[str, bytes], *, part: str = "train") -> Path:
    """A folder of good pictures with some of its own in a class."""
    root = folder / "images"
    for where in ("train", "test"):
        for name in _NAMES:
            (root / where / name).mkdir(parents=True)
            for number in range(2):
                (root / where / name / f"{number}.png").write_bytes(_picture())
    for name, content in odd.items():
        (root / part / "a" / name).write_bytes(content)
    return root


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">L", len(content)) + name + content + struct.pack(">L", zlib.crc32(name + content))


def png(width: int, height: int, n_bytes: int, *, bits: int = 8, colour: int = 0) -> bytes:
    """A PNG of zeros that claims a size and inflates to about so many bytes.

    Parameters
    ----------
    width, height : int
    n_bytes : int
    bits, colour : int
        Of its header.
    """
    head = struct.pack(">2L5B", width, height, bits, colour, 0, 0, 0)
    data = b"\x78\xda" + b"".join(zeros(n_bytes)) + bytes(4)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def bombs(rng: Random, folder: Path, stock: Stock) -> Path:  # noqa: ARG001
    """Pictures of 60,000 by 60,000 pixels, of none, or with texts and profiles that inflate."""
    side = rng.choice((0, 1, 9000, 13_000, 20_000, 60_000, 2**31 - 1))
    text = _chunk(b"zTXt", b"k\0\0\x78\xda" + b"".join(zeros(2**28)) + bytes(4))
    good = _picture()
    content = rng.choice(
        (
            lambda: png(side, side, min(side * side, 2**28)),
            lambda: png(
                side,
                rng.choice((0, 1, side)),
                2**20,
                bits=rng.choice((1, 8, 16)),
                colour=rng.choice((0, 2, 6)),
            ),
            lambda: good[:33] + text + good[33:],
            lambda: b"BM" + struct.pack("<3L3L2H6L", 54, 0, 54, 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0),
            lambda: f"P5 {side} {side} 255\n".encode() + bytes(1000),
            lambda: b"GIF89a" + struct.pack("<2H", side % 65536, side % 65536) + b"\x80\0\0" + bytes(50),
            lambda: _gif_of_many_frames(),
        )
    )()
    names = ("0.png", "z.png", "z.bmp", "z.pgm", "z.gif")
    return _folder(folder, {rng.choice(names): content}, part=rng.choice(("train", "test")))


def _gif_of_many_frames() -> bytes:
    out = io.BytesIO()
    frames = [Image.new("L", (8, 8), i % 250) for i in range(300)]
    frames[0].save(out, "GIF", save_all=True, append_images=frames[1:])
    return out.getvalue()


def modes(rng: Random, folder: Path, stock: Stock) -> Path:  # noqa: ARG001
    """16 bits, floats, palettes, transparency, CMYK, EXIF, other sizes, in formats that match no suffix."""
    kind, mode = rng.choice(
        (
            ("PNG", "I;16"), ("TIFF", "F"), ("TIFF", "I;16"), ("PNG", "P"), ("PNG", "RGBA"), ("PNG", "LA"),
            ("PNG", "1"), ("JPEG", "CMYK"), ("JPEG", "L"), ("WEBP", "RGBA"), ("TIFF", "CMYK"), ("BMP", "1"),
        )
    )  # fmt: skip
    size = rng.choice(((8, 8), (8, 8), (1, 1), (9, 8), (300, 2)))
    content = _picture(kind, mode, size)
    if kind == "JPEG" and rng.random() < 0.7:
        exif = Image.Exif()
        exif[0x0112] = rng.choice((0, 3, 6, 8, 99))
        out = io.BytesIO()
        Image.new("L", size).save(out, "JPEG", exif=exif)
        content = out.getvalue()
    names = ("0.png", "2.png", "2.jpg", "2.webp", "2.gif", "2.ppm", "2.tif", "2.TIFF")
    return _folder(folder, {rng.choice(names): content}, part=rng.choice(("train", "test")))


def damaged(rng: Random, folder: Path, stock: Stock) -> Path:
    """Pictures that are damaged, are text, or are of another kind than their name."""
    kind = rng.choice(("PNG", "JPEG", "GIF", "BMP", "WEBP", "PPM"))
    content = _picture(kind, "L" if kind != "PPM" else "RGB", (8, 8))
    noise = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (8, 8)).astype(np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, "PNG")
    other = rng.choice(
        (b"no picture", b"", b"<svg/>", b"%!PS-Adobe-3.0 EPSF-3.0\n", out.getvalue(), stock.npz)
    )
    suffix = {"JPEG": "jpg"}.get(kind, kind.lower())
    broken = damage(rng, content, other) if rng.random() < 0.8 else other
    return _folder(folder, {f"2.{suffix}": broken}, part=rng.choice(("train", "test")))


def names(rng: Random, folder: Path, stock: Stock) -> Path:  # noqa: ARG001
    """FIFOs, links in a circle, devices, odd names, empty and missing folders."""
    root = _folder(folder, {})
    inside = root / rng.choice(("train/a", "train", "test", "test/b", "."))
    odd_path(rng, inside, rng.choice((".png", "", ".jpg")))
    how = rng.randrange(6)
    if how == 0:
        (root / "train" / os.fsdecode(rng.choice((b"\xff\xfe", b"\x1b[2J", b" ", b"c\nd")))).mkdir()
    elif how == 1:
        (root / "val").mkdir()
        (root / "validation").mkdir()
    elif how == 2:
        (root / "train" / "b" / "more").symlink_to(root)
    elif how == 3:
        (root / "test" / "a").rename(root / "test" / "other")
    elif how == 4:
        (root / "train" / "c").symlink_to(root / "train" / "a", target_is_directory=True)
    return root


def many_classes(rng: Random, folder: Path, stock: Stock) -> Path:  # noqa: ARG001
    """Very many folders, with a picture each or none."""
    root, picture = folder / "images", _picture()
    for number in range(rng.choice((50, 1000))):
        (root / f"{number}").mkdir(parents=True)
        if rng.random() < 0.9:
            (root / f"{number}" / "0.png").write_bytes(picture)
    return root


KINDS = tuple(
    Kind(f"{name}{suffix}", door, make, share)
    for suffix, door in (("", "data"), ("-resized", "resized data"))
    for name, make, share in (
        ("images-bombs", partial(bombs), 0.3),
        ("images-modes", partial(modes), 1),
        ("images-damaged", partial(damaged), 1),
        ("images-names", partial(names), 1),
        ("images-classes", partial(many_classes), 0.1),
    )
)
