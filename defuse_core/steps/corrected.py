"""Loads a correct run for the steps `evaluate` and `report`."""

from __future__ import annotations

from defuse_core.base.records import FailureInstances
from defuse_core.extensions.answers import answers_by_region
from defuse_core.method.classifier import Classifier
from defuse_core.steps.correct import SETS, read_verdicts
from defuse_core.steps.source import Source


class Corrected:
    """A correct run: its images, its verdicts, and the answers to the regions that still exist."""

    def __init__(self, source: Source) -> None:
        self.source, self.run = source, source.upstream("correct")
        tensors, metadata = source.read("correct", "failures")
        self.verdicts = read_verdicts(metadata, self.run.config["disagreement_threshold"])
        self.sets = {name: FailureInstances.of_file(tensors, name) for name in SETS}
        answers = answers_by_region(source.labels(up_to=self.run.last_annotation))
        live = {region.region_id for region in source.regions()}  # others were merged or split
        self.answers = {region_id: of_region for region_id, of_region in answers.items() if region_id in live}

    def classifier(self, name: str) -> Classifier | None:
        """Load `corrected` or `baseline`; None where it was not computed."""
        if name not in self.run.summary:
            return None
        metadata = self.source.read("classifier", "classifier")[1]
        return self.source.build(self.source.read("correct", name)[0], metadata)
