"""Draw the figures of the page Evidence for files: hand its records to the core, which uses matplotlib."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from dashboard.shared.charts import KINDS
from defuse_core.report.evidence import Distances, Evidence, Near, control_rows
from defuse_core.report.sweep import Change

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from defuse_core.method.evaluation import Scores


def accuracies_picture(found: Evidence) -> Figure:
    """Draw figure 4."""
    from defuse_core.report.figures import draw_scores

    return draw_scores(_rows(found, controls=False))


def controls_picture(found: Evidence) -> Figure:
    """Draw models and controls."""
    from defuse_core.report.evidence_figures import draw_controls

    return draw_controls(_rows(found, controls=True))


def _rows(evidence: Evidence, *, controls: bool) -> list[Scores]:
    from defuse_core.method.evaluation import Scores

    rows = control_rows(evidence) if controls else evidence.models
    return [
        Scores(row.name, row.scores["test"], row.scores["region"], row.scores.get("validation"))
        for row in rows
    ]


def changes_picture(changes: Sequence[Change]) -> Figure:
    """Draw accuracies before and after, for a file."""
    from defuse_core.report.evidence_figures import draw_before_after

    return draw_before_after(changes)


def novelty_picture(distances: Distances, x: str) -> Figure:
    """Draw the distances in one space."""
    from defuse_core.report.figures import draw_novelty

    return draw_novelty(distances, x=x)


def agreement_picture(found: Evidence) -> Figure:
    """Draw the agreement."""
    from defuse_core.report.evidence_figures import draw_shares

    return draw_shares(found.share)


def noises_picture(counts: Mapping[str, Mapping[str, int]]) -> Figure:
    """Draw raw against centred noise."""
    from defuse_core.report.evidence_figures import draw_noises

    return draw_noises(counts, list(KINDS))


def real_images_picture(near: Near, title: str) -> Figure:
    """Draw real images near a region."""
    from defuse_core.report.evidence_figures import RealImage, draw_real_images

    unknown: Sequence[str | None] = [None] * len(near.index)
    before, after = (unknown if classes is None else classes for classes in (near.before, near.after))
    rows = zip(near.images, near.labels, before, after, strict=True)
    return draw_real_images([RealImage(*row) for row in rows], title=title)
