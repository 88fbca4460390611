"""The step `annotate`: simulated annotators label draws and single mistakes in place of people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from defuse_core.base.records import Annotation
from defuse_core.base.runtime import numpy_rng
from defuse_core.method.labeling import draw_images, mistake_images, simulate_annotators
from defuse_core.steps.annotators import find_annotators
from defuse_core.steps.base import Item, Merged, Progress, Read, Step, tensors_file
from defuse_core.steps.source import Source
from defuse_core.workspace.configs import AnnotationConfig
from defuse_core.workspace.labels import SINGLE_MISTAKES, LabelEvent


class Annotate(Step):
    """Let five networks label draws and single mistakes, one task per annotator."""

    name = "annotate"

    def __init__(self, source: Source, config: AnnotationConfig, seed: int) -> None:
        self.config, self.seed = config, seed
        self.vae, self.regions, self.mistakes = source.vae(), source.regions(), source.mistakes()
        self.annotators = find_annotators(source)
        n = len(self.regions) * config.labeling.n_samples if config.n_single is None else config.n_single
        drawn = numpy_rng(seed, "baseline").choice(
            len(self.mistakes), min(n, len(self.mistakes)), replace=False
        )
        self.single = torch.from_numpy(drawn)

    def tasks(self) -> list[str]:
        """Names of the annotators."""
        return list(self.annotators)

    def run(self, task: str) -> Iterator[Item]:
        """Answer for every draw of every region, then for every single mistake; -1 is none of the above."""
        labeling = self.config.labeling
        annotator = {task: self.annotators[task]}
        answers: list[Annotation] = []
        for number, region in enumerate(self.regions, 1):
            images = draw_images(self.vae, region, labeling.n_samples, tau=labeling.tau, seed=self.seed)
            answers += simulate_annotators(
                annotator, images, region_id=region.region_id, threshold=self.config.min_probability
            )
            yield Progress(number, len(self.regions) + 1)
        images = mistake_images(self.vae, self.mistakes, self.single)
        answers += simulate_annotators(
            annotator, images, region_id=SINGLE_MISTAKES, threshold=self.config.min_probability
        )
        yield Progress(len(self.regions) + 1, len(self.regions) + 1)
        rows = [(a.region_id, a.sample_id or 0, -1 if a.label is None else a.label) for a in answers]
        yield tensors_file(task, {"answers": torch.tensor(rows, dtype=torch.int64)})  # region, draw, label

    def merge(self, done: Sequence[str], read: Read) -> Merged:
        """Turn the answers into label events, under the annotators' names.

        Parameters
        ----------
        done : sequence of str
        read : Read
        """
        labeling = self.config.labeling
        events = []
        for name in done:
            for region, sample, label in read(name)[0]["answers"].tolist():
                subject = int(self.single[sample]) if region == SINGLE_MISTAKES else sample
                answer = None if label < 0 else label
                events.append(
                    LabelEvent(region, name, answer, subject, labeling.tau, self.seed, labeling.n_samples)
                )
        summary = {"annotators": list(done), "regions": len(self.regions), "single": len(self.single)}
        return Merged(summary, labels=events)
