"""What reconstruction alone (ε = 0) says of a generator. Imports no torch."""

from __future__ import annotations

DECEPTION = 0.05
"""Over this difference, a generator pleases the classifier more than it keeps what others see."""


def deceives(by_classifier: float | None, by_readers: float | None) -> bool:
    """Tell whether a generator keeps for the classifier clearly more than for readers it never saw.

    Parameters
    ----------
    by_classifier, by_readers : float or None
        Shares still classified correctly after reconstruction, in [0, 1]; None where nobody measured it.

    Examples
    --------
    >>> deceives(0.97, 0.61), deceives(0.85, 0.81), deceives(0.9, None)
    (True, False, False)
    """
    if by_classifier is None or by_readers is None:
        return False
    return by_classifier - by_readers > DECEPTION
