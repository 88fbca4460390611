"""Shows a grid of tiles of images, with a word in the corner of the last image of each tile."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st
from numpy.typing import NDArray
from PIL import Image

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Tile:
    """Images that belong together.

    Attributes
    ----------
    images : sequence of (height, width, 1 or 3) uint8
    corner : str
        The prediction for the last image.
    wrong : bool
        Whether the prediction is a mistake.
    caption : str
        Lines below.
    alt : sequence of str
        What each image shows, for screen readers.
    """

    images: Sequence[NDArray[np.uint8]]
    corner: str = ""
    wrong: bool = False
    caption: str = ""
    alt: Sequence[str] = field(default_factory=tuple)


_grid = st.components.v2.component(
    "defuse_image_grid",
    html='<div class="above"></div>\n<div class="grid" role="list"></div>',
    css=(_HERE / "image_grid.css").read_text(encoding="utf-8"),
    js=(_HERE / "image_grid.js").read_text(encoding="utf-8"),
)


def image_grid(
    tiles: Sequence[Tile], *, key: str, headings: Sequence[str] = (), min_pixels: int = 56
) -> None:
    """Show tiles in rows that fit the page.

    Parameters
    ----------
    tiles : sequence of Tile
        Up to about a hundred.
    headings : sequence of str
        What the images of every tile are, in order.
    min_pixels : int
        Width on the screen; smaller images are enlarged by a whole factor.
    """
    side = max((tile.images[0].shape[1] for tile in tiles), default=min_pixels)
    size = side * max(1, -(-min_pixels // side))
    data: dict[str, Any] = {
        "tiles": [_tile_json(tile) for tile in tiles], "headings": list(headings), "size": size,
    }  # fmt: skip
    _grid(data=data, key=key)


def _tile_json(tile: Tile) -> dict[str, Any]:
    alt = [*tile.alt, *[""] * (len(tile.images) - len(tile.alt))]
    images = [png_url(image) for image in tile.images]
    return {"images": images, "alt": alt, "corner": tile.corner, "wrong": tile.wrong, "caption": tile.caption}


def png_bytes(image: NDArray[np.uint8], *, level: int = -1) -> bytes:
    """Write an image (height, width, 1 or 3) uint8 as PNG; `level` is zlib's, -1 its default."""
    file, pixels = io.BytesIO(), image[..., 0] if image.shape[2] == 1 else image
    Image.fromarray(pixels).save(file, format="PNG", compress_level=level)
    return file.getvalue()


def png_url(image: NDArray[np.uint8], *, level: int = -1) -> str:
    """Write an image as a data URL, as `png_bytes` does."""
    return "data:image/png;base64," + base64.b64encode(png_bytes(image, level=level)).decode()
