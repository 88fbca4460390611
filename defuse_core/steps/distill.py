"""The step `distill`: the mixture of the codes of the mistakes, whose components are the regions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from defuse_core.base.config import FITTERS, DistillationConfig
from defuse_core.base.named import load_function
from defuse_core.method.distillation import membership
from defuse_core.steps.base import Item, Merged, Read, Step, progress, tensors_file
from defuse_core.steps.source import Source
from defuse_core.steps.unpacking import unpack_mixture


class Distill(Step):
    """The Dirichlet-process mixture of the mistakes' codes."""

    name = "distill"

    def __init__(self, source: Source, config: DistillationConfig, seed: int) -> None:
        self.config, self.seed, self.mistakes = config, seed, source.mistakes()

    def tasks(self) -> list[str]:
        """One."""
        return ["mixture"]

    def run(self, task: str) -> Iterator[Item]:
        """Fit the mixture, with a point for every iteration."""
        fit = load_function(FITTERS[self.config.method])
        loop = fit(self.mistakes.latents, config=self.config, seed=self.seed)
        mixture = yield from progress(loop, points=True)
        arrays = ("weights", "means", "covariances")
        about = {name: value for name, value in vars(mixture).items() if name not in (*arrays, "kept")}
        yield tensors_file(task, {n: torch.from_numpy(getattr(mixture, n)) for n in arrays}, fit=about)

    def merge(self, done: Sequence[str], read: Read) -> Merged:
        """The regions, each with its weight and its mistakes.

        Parameters
        ----------
        done : sequence of str
        read : Read
        """
        mixture = unpack_mixture(*read(done[0]))
        of_region = membership(mixture, self.mistakes.latents, min_weight=self.config.min_weight)
        regions = [
            {
                "region_id": region.region_id,
                "weight": region.weight,
                "mistakes": int((of_region == region.region_id).sum()),
                "kinds": self.mistakes[of_region == region.region_id].counts(),
            }
            for region in mixture.regions(self.config.min_weight)
        ]
        return Merged({"regions": regions, "converged": mixture.converged, "iterations": mixture.n_iter})
