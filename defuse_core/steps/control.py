"""The step `control`: does reconstruction alone (ε = 0) already mislead the classifier?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from defuse_core.base.intervals import Interval
from defuse_core.method.evaluation import reconstruction_control
from defuse_core.steps.base import Item, Merged, Progress, Read, Step, interval_json, tensors_file
from defuse_core.steps.source import Source
from defuse_core.workspace.configs import ControlConfig


class Control(Step):
    """The share of correctly classified images that are still correct after reconstruction (ε = 0)."""

    name = "control"

    def __init__(self, source: Source, config: ControlConfig, seed: int) -> None:
        del config, seed
        self.classifier, self.vae, self.dataset = source.classifier(), source.vae(), source.dataset

    def tasks(self) -> list[str]:
        """One per split."""
        return list(self.dataset.splits())

    def run(self, task: str) -> Iterator[Item]:
        """Measure one split, as a whole and by class."""
        split = self.dataset.splits()[task]
        by_class = [
            reconstruction_control(
                self.classifier, self.vae, split[torch.nonzero(split.labels == label)[:, 0]]
            )
            for label in range(self.dataset.n_classes)
        ]
        n = sum(interval.n for interval in by_class)
        whole = Interval.wilson(sum(round(f.estimate * f.n) for f in by_class if f.n), n)
        yield Progress(1, 1)
        yield tensors_file(
            task, {}, control=interval_json(whole),
            by_class=[interval_json(interval) if interval.n else None for interval in by_class],
        )  # fmt: skip

    def merge(self, done: Sequence[str], read: Read) -> Merged:
        """The control by split, and by class.

        Parameters
        ----------
        done : sequence of str
        read : Read
        """
        files = {name: read(name)[1] for name in done}
        return Merged({part: {name: files[name][part] for name in done} for part in ("control", "by_class")})
