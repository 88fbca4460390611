"""Say whether a generator is sharp enough for what a search with it finds. No torch.

Measured is the share of correctly classified training images that still are once the generator has redrawn
them, unperturbed (ε = 0).
"""

from __future__ import annotations

from defuse_core.report.numbers import percent
from defuse_core.workspace.runs import Run
from defuse_core.workspace.workspace import Workspace

SHARP = 0.95
"""Below this share, some of what looks like mistakes of the classifier is blur of the generator."""

USABLE = 0.8
"""Below this share, most of it may be: a search has to be confirmed, and all its results carry a mark."""


DECEPTION = 0.05
"""Over this difference, a generator pleases the classifier more than it keeps what others see."""


def still_correct(store: Workspace, classifier: Run | None, generator: Run | None) -> float | None:
    """Return the share that was measured of a classifier and a generator; None where it was not.

    Of a corrected classifier, which is not measured by itself, it is that of its generator with another one.

    Parameters
    ----------
    store : Workspace
    classifier, generator : Run or None
    """
    if classifier is None or generator is None:
        return None
    runs = store.runs.of_project(generator.project_id, "control")
    mine = [run for run in runs if run.status == "done" and generator.id in run.upstream]
    mine.sort(key=lambda run: (classifier.id in run.upstream, run.id))
    shares = mine[-1].summary["control"] if mine else {}
    return float(shares["train"][0]) if "train" in shares else None


def mark_of(store: Workspace, run: Run) -> str:
    """Return the mark that the results of a run carry, in words; empty where the generator is usable.

    Parameters
    ----------
    store : Workspace
    run : Run
        Of the search, or of a step that stands on it.
    """
    ground = store.runs.ancestry(run.id)
    return tell_unusable(still_correct(store, ground.get("classifier"), ground.get("vae")))


def tell_unusable(share: float | None) -> str:
    """Say that a generator is too blurry to search with, and what to do; empty where it is not.

    Parameters
    ----------
    share : float or None
        Of correctly classified training images that still are once redrawn; None where it is not known.

    Examples
    --------
    >>> tell_unusable(0.94), tell_unusable(None)
    ('', '')
    >>> tell_unusable(0.07)[:63]
    'The generator is too blurry: of the images classified correctly'
    """
    if share is None or share >= USABLE:
        return ""
    return (
        f"The generator is too blurry: of the images classified correctly, {percent(share)} still are once "
        f"it has redrawn them. Under {percent(USABLE)}, most of what a search finds may be its blur, not "
        "mistakes of the classifier. Train it longer, lower β or give it more dimensions, then search again."
    )


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
