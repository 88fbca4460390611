"""What a label of regions is, as an event; `labels` stores them. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

SIMULATED_PREFIX = "annotator-"
"""How the names of simulated annotators begin; answers of people replace theirs."""

SIMULATED_NAMES = tuple(
    SIMULATED_PREFIX + architecture
    for architecture in ("vgg_small", "wide_kernel", "resnet_small", "mobile_small", "all_convolutional")
)
"""Their names; no person may have one with that prefix."""

BY_ID = "id:"
"""How the name of an event without a key begins."""


@dataclass(frozen=True)
class LabelEvent:
    """One answer, or one undo.

    Attributes
    ----------
    region_id : int
        Of the distill run; `label_rules.SINGLE_MISTAKES` for mistakes that are labelled one by one.
    annotator : str
    label : int or None
        Class index; None is "none of the above".
    sample_id : int or None
    tau : float
        τ at which the draws were shown.
    seed, n_samples : int
        Seed and number of the draws that were shown.
    undoes : int or None
        The event that this one undoes; the other fields of an undo do not count.
    id : int
        Ascending in the order of storing; 0 before that.
    at : float
        Seconds since 1970.
    round : int
        1; 2 and up are further passes over the same draws, which measure the annotator and do not vote.
    seconds : float or None
        Time spent on the answer.
    key : str or None
        The sender's name of the event; unique among those of a run, and does not begin with "id:".
    """

    region_id: int
    annotator: str
    label: int | None
    sample_id: int | None = None
    tau: float = 0.5
    seed: int = 0
    n_samples: int = 10
    undoes: int | None = None
    id: int = 0
    at: float = 0.0
    round: int = 1
    seconds: float | None = None
    key: str | None = None

    @property
    def name(self) -> str:
        """The name that an `Undo` uses: the key, or one built from the id."""
        return self.key or f"{BY_ID}{self.id}"


@dataclass(frozen=True)
class Undo:
    """Undoes the answer whose `LabelEvent.name` is `target`; `key` names the undo itself."""

    target: str
    key: str
