"""Computes regions, draws and verdicts for the pages, on a thread; `kept` caches them.

All draws have the same seed, so that people label the images that they looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dashboard.components.tau_scrubber import Sprite, make_sprite
from defuse_core.workspace.labels import LabelEvent
from defuse_core.workspace.workspace import Workspace

if TYPE_CHECKING:
    from defuse_core.base.records import Mixture, Region, Verdict
    from defuse_core.method.classifier import Classifier
    from defuse_core.method.vae import BetaVAE

SEED = 0
TAUS = (
    0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4,
    0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.2, 1.4, 1.6, 1.8, 2.0,
)  # fmt: skip
"""Dense near the values of the paper: .01 for SVHN and signs, .5 for MNIST."""

_N_DRAWS = 64
_FEWER = 16  # draws of images that are larger than 64 pixels


@dataclass(frozen=True)
class Regions:
    """The regions of a distill run, as people edited them.

    Attributes
    ----------
    mixture : Mixture
    found : list of Region
        Heaviest first.
    membership : (n_mistakes,) int64
        Region of each mistake, -1 for none.
    """

    mixture: Mixture
    found: Sequence[Region]
    membership: NDArray[np.int64]

    @property
    def ids(self) -> list[int]:
        """Ids of the regions, heaviest first."""
        return [region.region_id for region in self.found]

    def __getitem__(self, region_id: int) -> Region:
        return next(region for region in self.found if region.region_id == region_id)


@dataclass(frozen=True)
class Draws:
    """Draws of a region.

    Attributes
    ----------
    images : (n, height, width, 1 or 3) uint8
    predictions : (n,) int64
    """

    images: NDArray[np.uint8]
    predictions: NDArray[np.int64]


def find_regions(store: Workspace, run_id: int) -> Regions:
    """Return the regions of a distill run, and which mistakes each contains."""
    from defuse_core.steps.source import Source

    source = Source(store, run_id)
    mixture = source.mixture()
    return Regions(mixture, mixture.regions(source.run.config["min_weight"]), source.region_of_mistakes())


@dataclass(frozen=True)
class Painter:
    """Draws regions and judges them. Its methods wait for the models: call them on a thread."""

    classifier: Future[Classifier]
    vae: Future[BetaVAE]
    regions: Future[Regions]

    def make_strip(self, region_id: int) -> Sprite:
        """Draw a region at every τ of `TAUS`."""
        from defuse_core.method.labeling import draw_strip

        vae, region = self.vae.result(), self.regions.result()[region_id]
        n = _N_DRAWS if vae.config.image_size <= 64 else _FEWER
        images, predictions = draw_strip(self.classifier.result(), vae, region, taus=TAUS, n=n, seed=SEED)
        channels_last = images.permute(0, 1, 3, 4, 2).numpy()
        return make_sprite(channels_last, taus=TAUS, predictions=predictions.numpy())

    def draw(self, region_id: int, tau: float, n: int) -> Draws:
        """Draw n images of a region."""
        from defuse_core.method.classifier import predict
        from defuse_core.method.labeling import draw_images

        images = draw_images(self.vae.result(), self.regions.result()[region_id], n, tau=tau, seed=SEED)
        return Draws(images.permute(0, 2, 3, 1).numpy(), predict(self.classifier.result(), images).numpy())

    def reach_verdicts(self, events: Sequence[LabelEvent], *, rho: float) -> dict[int, Verdict]:
        """Return the verdict on every labelled region by the project's ρ, by region id."""
        from defuse_core.extensions.answers import answers_by_region, judge

        verdicts = judge(
            self.classifier.result(), self.vae.result(), self.regions.result().found,
            answers_by_region(events), disagreement_threshold=rho,
        )  # fmt: skip
        return {verdict.region_id: verdict for verdict in verdicts}


def ask_annotators(
    store: Workspace, run_id: int, trained: int | None, draws: Future[Draws]
) -> list[list[int | None]]:
    """Return the answers on draws of a distill run by the annotators of run `trained`; None: the shipped."""
    import torch

    from defuse_core.extensions.shipped import load_annotators
    from defuse_core.steps.annotators import Labelled, find_annotators, min_probability_of
    from defuse_core.steps.source import Source

    annotators = load_annotators() if trained is None else find_annotators(Source(store, trained))
    images = torch.from_numpy(draws.result().images).permute(0, 3, 1, 2)
    return Labelled(annotators, min_probability_of(store, store.runs.get(run_id))).votes(images)
