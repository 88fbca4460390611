"""Makes the pictures of the HTML report, each with its prediction before and after correction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from defuse_core.base.intervals import Interval
from defuse_core.base.records import Region, Verdict
from defuse_core.data.splits import Split
from defuse_core.extensions.answers import Answers
from defuse_core.method.classifier import Classifier, predict
from defuse_core.method.correction import find_flips
from defuse_core.method.labeling import draw_images
from defuse_core.method.vae import BetaVAE
from defuse_core.report.content import Nearest, RegionEntry, Tile
from defuse_core.report.verdicts import tell_status
from defuse_core.workspace.labels import SIMULATED_PREFIX

MAX_DRAWS = 20
MAX_FLIPS = 24


@dataclass(frozen=True)
class Gallery:
    """The networks, regions and answers from which the pictures are made.

    Attributes
    ----------
    before, corrected : Classifier
    vae : BetaVAE
    regions : mapping of int to Region
    answers : mapping of int to Answers
        The answers to each region, and the draws that were shown.
    verdicts : sequence of Verdict
        Those of the correct run.
    test : Split
    class_names : sequence of str
    """

    before: Classifier
    corrected: Classifier
    vae: BetaVAE
    regions: Mapping[int, Region]
    answers: Mapping[int, Answers]
    verdicts: Sequence[Verdict]
    test: Split
    class_names: Sequence[str]

    def tiles(self, images: Tensor, wanted: Sequence[int | None]) -> list[Tile]:
        """Pictures, each with its label and its predictions before and after.

        Parameters
        ----------
        images : (n, channels, height, width) uint8
        wanted : sequence of (int or None)
            Class that each should be predicted as; None where nobody says.
        """
        if not len(images):
            return []
        said = [predict(model, images).tolist() for model in (self.before, self.corrected)]
        pixels = images.permute(0, 2, 3, 1).numpy()
        names = self.class_names
        return [
            Tile(image, None if label is None else names[label], names[was], names[now])
            for image, label, was, now in zip(pixels, wanted, *said, strict=True)
        ]

    def flips(self) -> tuple[list[Tile], list[Tile]]:
        """The first test images that were fixed, and the first that were broken."""
        flips = find_flips(self.before, self.corrected, self.test)
        fixed, broken = (self._real(index[:MAX_FLIPS]) for index in (flips.fixed, flips.broken))
        return fixed, broken

    def _real(self, index: Tensor) -> list[Tile]:
        return self.tiles(self.test.images[index], self.test.labels[index].tolist())

    def region(self, row: Mapping[str, Any], nearest: Mapping[str, Any] | None) -> RegionEntry:
        """Show a failure region.

        Parameters
        ----------
        row : mapping
            Of results.json, "by_region".
        nearest : mapping or None
            Of results.json, "nearest".
        """
        region_id, label = row["region_id"], row["label"]
        answers = self.answers[region_id]
        verdict = next(v for v in self.verdicts if v.region_id == region_id)
        n = min(answers.n_samples, MAX_DRAWS)
        images = draw_images(self.vae, self.regions[region_id], n, tau=answers.tau, seed=answers.seed)
        names, said = self.class_names, verdict.image_labels
        annotators = sorted({a.annotator for a in answers.annotations})
        return RegionEntry(
            region_id, row["name"], names[label], answers.tau,
            Interval(*row["before"]), Interval(*row["after"]),
            None if row["baseline"] is None else Interval(*row["baseline"]), row["held_out"],
            tiles=self.tiles(images, said[:n]), votes=[None if v is None else names[v] for v in said[:n]],
            n_shown=len(said), n_labelled=verdict.n_kept, n_fit=verdict.n_fit, status=tell_status(verdict),
            annotators=annotators,
            simulated=self.simulated(annotators), nearest=None if nearest is None else self._nearest(nearest),
        )  # fmt: skip

    def _nearest(self, row: Mapping[str, Any]) -> Nearest:
        tiles = self._real(torch.tensor(row["index"], dtype=torch.int64)[:MAX_DRAWS])
        return Nearest(tiles, row["same_label"], Interval(*row["before"]), Interval(*row["after"]))

    @staticmethod
    def simulated(annotators: Sequence[str]) -> bool:
        """Whether all annotators are programs; False if there are none."""
        return bool(annotators) and all(name.startswith(SIMULATED_PREFIX) for name in annotators)
