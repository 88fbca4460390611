"""Step `report`: the paper's figures, its table, one HTML page to share, and the manifest."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from matplotlib.figure import Figure
from torch import Tensor

from defuse_core.base.intervals import Interval
from defuse_core.extensions.answers import failing
from defuse_core.method.classifier import predict
from defuse_core.method.evaluation import Agreement, Scores, score_regions
from defuse_core.method.labeling import draw_images
from defuse_core.report.content import ReportContent
from defuse_core.report.figures import (
    RegionPicture,
    TradeOff,
    draw_agreement,
    draw_novelty,
    draw_regions,
    draw_scores,
    draw_side_by_side,
    draw_trade_off,
    figure_bytes,
)
from defuse_core.report.html import render_report
from defuse_core.report.verdicts import tell_fit
from defuse_core.steps.base import File, Item, Merged, Progress, Read, Step
from defuse_core.steps.corrected import Corrected
from defuse_core.steps.report_pictures import Gallery
from defuse_core.steps.source import Source
from defuse_core.workspace.configs import ReportConfig
from defuse_core.workspace.manifest.writing import make_manifest
from defuse_core.workspace.results import load_results


class Report(Step):
    """Figures 1/3, 4, 5, 6 and 7 as PNG and SVG, figure 4 as a table, report.html and manifest.json."""

    name = "report"

    def __init__(self, source: Source, config: ReportConfig, seed: int) -> None:
        self.config, self.seed = config, seed
        done = Corrected(source)
        corrected = done.classifier("corrected")
        assert corrected is not None
        self.before, self.corrected, self.vae = source.classifier(), corrected, source.vae()
        self.sets, self.verdicts, self.answers = done.sets, done.verdicts, done.answers
        self.sweep = done.run.summary
        self.regions = {region.region_id: region for region in source.regions()}
        self.project = source.workspace.project(source.run.project_id)
        self.class_names = self.project.class_names
        self.test = source.dataset.test
        self.tensors, self.metadata = source.read("evaluate", "evidence")
        self.scores = [_scores(row) for row in self.metadata["scores"]]
        evaluation = source.upstream("evaluate")
        path = source.workspace.artifact_path(evaluation.id, "results.json")
        self.results = path.read_bytes()
        scored, chosen = (
            load_results(path, evaluation.id)["defuse"]["lam"],
            self.sweep["corrected"]["chosen"]["lam"],
        )
        if scored != chosen:  # pictures would be of one classifier, numbers of another
            raise ValueError(
                f"evaluation {evaluation.id} is of λ = {scored:g}, and correction {done.run.id} has chosen "
                f"λ = {chosen:g} since; evaluate again, then make the report"
            )
        self.measured_on = datetime.fromtimestamp(evaluation.finished_at or 0.0, UTC).date().isoformat()
        self.manifest = make_manifest(source.workspace, source.run.id)

    def tasks(self) -> list[str]:
        """One."""
        return ["figures"]

    def run(self, task: str) -> Iterator[Item]:
        """Draw every figure, then the page that shows them."""
        del task
        yield File("results.json", self.results)
        yield File("manifest.json", (json.dumps(self.manifest, indent=2) + "\n").encode())
        yield File("figure4.md", scores_table(self.scores).encode())
        embedded: dict[str, bytes] = {}
        for number, (name, draw) in enumerate(FIGURES.items(), 1):
            drawn = draw(self)
            png, svg = figure_bytes(drawn, "png"), figure_bytes(drawn, "svg")
            yield File(f"{name}.png", png)
            yield File(f"{name}.svg", svg)
            embedded[name] = min(svg, png, key=len)
            yield Progress(number, len(FIGURES) + 1)
        yield File("report.html", render_report(self.content(embedded)).encode())
        yield Progress(len(FIGURES) + 1, len(FIGURES) + 1)

    def draw_trade_off(self) -> Figure:
        """Figure 5."""
        points = [
            TradeOff(p["lam"], Interval(*p["test"]), Interval(*p["region"]))
            for p in self.sweep["corrected"]["points"]
            if not p["repeat"]
        ]
        return draw_trade_off(
            points, before=self.scores[0], baseline=self.scores[1] if len(self.scores) == 3 else None,
            chosen=self.sweep["corrected"]["chosen"]["lam"],
        )  # fmt: skip

    def draw_side_by_side(self) -> Figure:
        """Figure 6, in pictures."""
        said = [
            [self.class_names[c] for c in self.tensors[f"figure6.{row}.predictions"].tolist()]
            for row in ("draws", "known")
        ]
        is_wrong = json.loads(self.results)["novelty"]["reference"]["misclassified"]
        return draw_side_by_side(
            self.tensors["figure6.draws"], self.tensors["figure6.known"], (said[0], said[1]),
            known_as=f"the nearest {'misclassified ' if is_wrong else ''}training image",
        )  # fmt: skip

    def draw_novelty(self) -> Figure:
        """Figure 6, in numbers: beyond the paper."""
        return draw_novelty(
            {
                name.removeprefix("novelty."): values.numpy()
                for name, values in self.tensors.items()
                if name.startswith("novelty.")
            }
        )

    def draw_agreement(self) -> Figure:
        """Beside figure 7."""
        share, (unanimous, pairwise) = self.tensors["agreement.share"].numpy(), self.metadata["agreement"]
        agreed = Agreement(share, Interval(*unanimous), pairwise)
        return draw_agreement(agreed)

    @property
    def annotators(self) -> list[str]:
        """Names of all annotators whose answers count."""
        return sorted({a.annotator for answers in self.answers.values() for a in answers.annotations})

    def content(self, figures: Mapping[str, bytes]) -> ReportContent:
        """Collect the content of the page."""
        results: dict[str, Any] = json.loads(self.results)
        gallery = Gallery(
            before=self.before, corrected=self.corrected, vae=self.vae, regions=self.regions,
            answers=self.answers, verdicts=self.verdicts, test=self.test, class_names=self.class_names,
        )  # fmt: skip
        tested, held_out = self.sets["test"], self.sets["held_out"]
        n_tuned = len(tested.region_ids.unique())
        rows = results["by_region"]
        nearest = {row["region_id"]: row for row in results["nearest"]["regions"]}
        fixed, broken = gallery.flips()
        entries = [gallery.region(row, nearest.get(row["region_id"])) for row in rows[: self.config.n_worst]]
        return ReportContent(
            project=self.project.name, dataset=self.project.dataset, measured_on=self.measured_on,
            results=results, scores=self.scores, sweep=self.sweep["corrected"]["points"],
            baseline_sweep=self.sweep.get("baseline", {}).get("points", ()), regions=entries,
            n_tuned=n_tuned, n_held_out=len(held_out.region_ids.unique()), n_draws=len(tested) // n_tuned,
            n_judged=len(self.verdicts), n_labelled=sum(v.n_kept for v in self.verdicts),
            fixed=fixed, broken=broken, figures=figures,
            annotators=self.annotators, simulated=gallery.simulated(self.annotators),
            manifest=self.manifest,
        )  # fmt: skip

    def pictures(self) -> list[RegionPicture]:
        """The failure regions of different labels on which annotators agree the most."""
        labels, agreeing = failing(self.verdicts), {v.region_id: v.n_fit for v in self.verdicts}
        tested = self.sets["test"]
        was, now = (score_regions(c, tested) for c in (self.before, self.corrected))
        best = sorted(was, key=lambda i: (-agreeing[i], was[i].estimate))
        unseen = {labels[i]: i for i in reversed(best)}.values()  # the best of every label
        order = [i for i in best if i in unseen] + [i for i in best if i not in unseen]
        return [
            self._picture(i, labels[i], was[i].estimate, now[i].estimate)
            for i in order[: self.config.n_regions]
        ]

    def _picture(self, region_id: int, label: int, was: float, now: float) -> RegionPicture:
        answers = self.answers[region_id]
        images: Tensor = draw_images(
            self.vae, self.regions[region_id], answers.n_samples, tau=answers.tau, seed=answers.seed
        )
        names = self.class_names
        said = [[names[p] for p in predict(c, images)] for c in (self.before, self.corrected)]
        verdict = next(v for v in self.verdicts if v.region_id == region_id)
        title = (
            f"region {region_id}: annotators say {names[label]}, which "
            f"{tell_fit(verdict.n_fit, verdict.n_kept)}; on new ones {was:.0%} → {now:.0%}"
        )
        own = [None if c is None else names[c] for c in verdict.image_labels]
        return RegionPicture(title, images, own, *said)

    def merge(self, done: Sequence[str], read: Read) -> Merged:
        """The content of results.json.

        Parameters
        ----------
        done : sequence of str
        read : Read
        """
        del done, read
        return Merged({"results": json.loads(self.results)})


FIGURES: dict[str, Callable[[Report], Figure]] = {
    "figure1-regions": lambda report: draw_regions(report.pictures()),
    "figure4-accuracy": lambda report: draw_scores(report.scores),
    "figure5-trade-off": Report.draw_trade_off,
    "figure6-nearest": Report.draw_side_by_side,
    "figure6-novelty": Report.draw_novelty,
    "figure7-agreement": Report.draw_agreement,
}
"""What is drawn, as PNG and SVG beside the report."""


def scores_table(scores: Sequence[Scores]) -> str:
    """Figure 4 as a Markdown table with 95 % Wilson intervals."""
    rows = ["| model | test accuracy | region accuracy |", "|---|---|---|"]
    rows += [f"| {s.model} | {s.test:.3f} | {s.region:.3f} |" for s in scores]
    return "\n".join(rows) + "\n"


def _scores(row: Mapping[str, Any]) -> Scores:
    validation = None if row["validation"] is None else Interval(*row["validation"])
    return Scores(row["model"], Interval(*row["test"]), Interval(*row["region"]), validation)
