"""Step `stability`: which regions are found again when the mixture is fitted under other seeds.

The paper tells of one fit. A variational mixture ends in a local optimum that depends on its initialisation,
so a region may come from the mistakes or from the seed. The mistakes stay the same. If there are more than
`max_codes` of them, each fit draws its own sample. Only the fits are compared, without the edits of people.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from defuse_core.base.config import FITTERS, DistillationConfig
from defuse_core.base.named import load_function
from defuse_core.base.runtime import derive_seed
from defuse_core.method.distillation import membership
from defuse_core.method.evaluation import found_again
from defuse_core.steps.base import Item, Merged, Point, Read, Step, progress, tensors_file
from defuse_core.steps.source import Source
from defuse_core.steps.unpacking import unpack_mixture
from defuse_core.workspace.configs import StabilityConfig


class Stability(Step):
    """Fit again, one task per seed, and compare with the distill run by which mistakes lie together."""

    name = "stability"

    def __init__(self, source: Source, config: StabilityConfig, seed: int) -> None:
        self.config, self.seed, self.latents = config, seed, source.mistakes().latents
        self.distillation = DistillationConfig.model_validate(source.upstream("distill").config)
        mixture = unpack_mixture(*source.read("distill", "mixture"))
        min_weight = self.distillation.min_weight
        self.region_ids = [region.region_id for region in mixture.regions(min_weight)]
        self.base = membership(mixture, self.latents, min_weight=min_weight)  # (n_mistakes,)

    def tasks(self) -> list[str]:
        """`seed=1` and so on; each stands for a seed derived from the run's."""
        return [f"seed={index}" for index in range(1, self.config.n_seeds + 1)]

    def run(self, task: str) -> Iterator[Item]:
        """Fit and assign all mistakes, with a point for how far both fits agree."""
        seed = derive_seed(self.seed, "stability", task)
        fit = load_function(FITTERS[self.distillation.method])
        loop = fit(self.latents, config=self.distillation, seed=seed)
        mixture = yield from progress(loop)
        min_weight = self.distillation.min_weight
        other = membership(mixture, self.latents, min_weight=min_weight)
        n_regions = len(mixture.regions(min_weight))
        agreement = self._adjusted_rand(other)
        yield Point(task, {"regions": n_regions, "adjusted_rand": agreement, "converged": mixture.converged})
        yield tensors_file(task, {"membership": other}, n_regions=n_regions)

    def merge(self, done: Sequence[str], read: Read) -> Merged:
        """Agreement by seed, and the share of each region that is found again; None if it has no mistake.

        Parameters
        ----------
        done : sequence of str
        read : Read
        """
        files = [read(task) for task in done]
        others = [tensors["membership"] for tensors, _ in files]
        overlaps = [found_again(self.base, other) for other in others]
        regions = [
            {
                "region_id": region_id,
                "found_again": sum(overlap[region_id] for overlap in overlaps) / len(overlaps)
                if region_id in overlaps[0]
                else None,
            }
            for region_id in self.region_ids
        ]
        return Merged(
            {
                "adjusted_rand": [self._adjusted_rand(other) for other in others],
                "n_regions": [metadata["n_regions"] for _, metadata in files],
                "regions": regions,
            }
        )

    def _adjusted_rand(self, other: Tensor) -> float:
        """1 where both fits group the mistakes alike, about 0 by chance; those in no region are one group."""
        from sklearn.metrics import adjusted_rand_score  # slow to import

        return float(adjusted_rand_score(self.base.numpy(), other.numpy()))
