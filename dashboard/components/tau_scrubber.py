"""Shows a region's draws at many values of τ, with a slider that the browser alone handles.

All draws at all τ are sent once, as one image. Python takes no part while the slider moves; it gets
the chosen value when the slider is released.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from dashboard.components.image_grid import png_url
from defuse_core.data.short_names import short_names

_HERE = Path(__file__).parent
_WIDTH = 10  # characters of a name that fit over a draw
_LONGEST = 32_767  # pixels of a side; browsers decode no more
HTML = """<div class="scrubber">
<div class="controls"><output class="value" aria-live="off"></output>
  <div class="rail"><span class="notch"></span><input class="slider" type="range" aria-label="τ"></div>
  <button class="suggested" type="button"></button>
  <div class="segments" role="group" aria-label="Draws shown"><button class="few" type="button"></button
    ><button class="all" type="button"></button></div></div>
<div class="columns">
  <div class="left"><canvas class="draws" role="img"></canvas><div class="note"></div></div>
  <div class="right"><div class="heading"></div><canvas class="chart" role="img"></canvas>
    <ul class="legend"></ul></div></div></div>"""


@dataclass(frozen=True)
class Sprite:
    """A region's draws at every τ in one image, made by `make_sprite`; keep it between runs.

    Attributes
    ----------
    url : str
        A PNG as data URL: a row a τ, a column a draw.
    height, width : int
        Of a draw, in pixels.
    taus : (n_taus,) float, ascending
    predictions : (n_taus, n_draws) int
    """

    url: str
    height: int
    width: int
    taus: Sequence[float]
    predictions: NDArray[np.int64]


_scrubber = st.components.v2.component(
    "defuse_tau_scrubber",
    html=HTML,
    css=(_HERE / "tau_scrubber.css").read_text(encoding="utf-8"),
    js=(_HERE / "tau_scrubber.js").read_text(encoding="utf-8"),
)


def make_sprite(
    images: NDArray[np.uint8], *, taus: Sequence[float], predictions: NDArray[np.int64]
) -> Sprite:
    """Put the draws of a region into one image, without loss.

    Parameters
    ----------
    images : (n_taus, n_draws, height, width, 1 or 3) uint8
        The same draws at each τ.
    taus : (n_taus,) float, ascending
    predictions : (n_taus, n_draws) int

    Raises
    ------
    ValueError
        If the shapes do not fit each other, or the image would be too large for a browser.

    Examples
    --------
    >>> draws = np.zeros((2, 5, 28, 28, 1), dtype=np.uint8)
    >>> make_sprite(draws, taus=[0.5, 1.0], predictions=np.zeros((2, 5), dtype=np.int64)).url[:22]
    'data:image/png;base64,'
    """
    expected = "uint8 of shape (n_taus, n_draws, height, width, 1 or 3), not empty"
    fine = images.dtype == np.uint8 and images.ndim == 5 and images.shape[4] in (1, 3) and images.size > 0
    _check(fine, "images", expected, f"{images.dtype} {images.shape}", "stack the τ, channels last")
    n_taus, n_draws, height, width, channels = images.shape
    fine = max(n_taus * height, n_draws * width) <= _LONGEST
    _check(fine, "images", f"{_LONGEST:,} pixels side by side at most", images.shape, "pass fewer draws")
    fine = predictions.shape == (n_taus, n_draws)
    _check(fine, "predictions", (n_taus, n_draws), predictions.shape, "classify the images of every τ")
    values = np.asarray(taus, dtype=float)
    fine = values.shape == (n_taus,) and bool(np.isfinite(values).all() and (np.diff(values) > 0).all())
    _check(fine, "taus", f"{n_taus} finite values that ascend", taus, "sort them and the images with them")
    sheet = images.transpose(0, 2, 1, 3, 4)  # (n_taus, height, n_draws, width, channels)
    sheet = sheet.reshape(n_taus * height, n_draws * width, channels)
    url = png_url(sheet, level=1)  # half the time of level 6, a tenth more bytes
    return Sprite(url, height, width, values.tolist(), predictions)


def tau_scrubber(
    sprite: Sprite, class_names: Sequence[str], *, tau: float, suggested: float | None, purity: float,
    key: str, label: str | None = None, n_shown: int = 10, on_change: Callable[[], None] | None = None,
) -> float:  # fmt: skip
    """Show a region's draws at one τ, their predictions over τ, and a slider of τ.

    Parameters
    ----------
    tau : float
        The current choice; the nearest τ of the sprite is shown. The browser keeps its slider where it is
        until it gets another sprite, or a `tau` that it did not choose.
    suggested : float or None
        The largest τ at which at least `purity` of the draws get the same prediction, if there is one.
    purity : float
        In (0, 1].
    key : str
        One per region: the browser's choice is stored under it, as `tau`.
    label : str, optional
        The class that people gave the region; predictions that differ from it stand out.
    n_shown : int
        Draws shown at first; the button beside it shows all.
    on_change : callable, optional
        Called when the browser has a new τ, chosen there or taken from `tau`.

    Returns
    -------
    float
        The τ that the browser sent last, one of the sprite's; before that, the nearest to `tau`.
    """
    fine = sprite.predictions.min() >= 0 and sprite.predictions.max() < len(class_names)
    expected = f"a name for every prediction, {sprite.predictions.min()} to {sprite.predictions.max()}"
    _check(fine, "class_names", expected, f"{len(class_names)} names", "pass those of the classifier")
    _check(label in (None, *class_names), "label", "one of class_names", repr(label), "or pass None")
    _check(n_shown > 0, "n_shown", "1 or more", n_shown, "pass 10, as the paper does")
    _check(0 < purity <= 1, "purity", "in (0, 1]", purity, "pass a share, not a percentage")
    taus = list(sprite.taus)
    chosen = _nearest(taus, tau)
    data: dict[str, Any] = {
        "sprite": sprite.url, "height": sprite.height, "width": sprite.width, "taus": taus,
        "predictions": sprite.predictions.tolist(), "names": list(class_names), "label": label,
        "chosen": chosen, "suggested": None if suggested is None else _nearest(taus, suggested),
        "purity": purity, "shown": n_shown,
    }  # fmt: skip
    if (short := short_names(tuple(class_names), _WIDTH)) != tuple(class_names):
        data["short"] = short
    default, callback = {"tau": taus[chosen]}, on_change or (lambda: None)
    return taus[_nearest(taus, _scrubber(data=data, key=key, default=default, on_tau_change=callback).tau)]


def _nearest(taus: Sequence[float], tau: float) -> int:
    return int(np.abs(np.asarray(taus) - tau).argmin())


def _check(fine: bool, name: str, expected: object, got: object, remedy: str) -> None:
    if not fine:
        raise ValueError(f"{name} must be {expected}, got {got}; {remedy}")
