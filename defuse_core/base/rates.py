"""How a learning rate falls while a network is trained. Imports no torch."""

from __future__ import annotations

import math


def cosine_rate(first: float, final: float | None, progress: float) -> float:
    """Return the learning rate of a cosine decay (Loshchilov and Hutter 2017), without restarts.

    Parameters
    ----------
    first : float
        Rate at the start.
    final : float or None
        Rate at the end; None keeps the first.
    progress : float
        Share of the steps that are done, in [0, 1].

    Examples
    --------
    >>> cosine_rate(1.0, 0.0, 0.5)
    0.5
    """
    return first if final is None else final + (first - final) * (1 + math.cos(math.pi * progress)) / 2
