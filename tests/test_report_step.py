"""The page of a real report run: regions held out and named, pictures and the manifest."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from defuse_core.method.classifier import predict
from defuse_core.method.labeling import draw_images
from defuse_core.steps import load_step
from defuse_core.steps.report import Report
from defuse_core.steps.source import Source
from defuse_core.workspace.edits import RegionEdit
from defuse_core.workspace.runs import Run
from tests.in_process import done_here, run_here
from tests.workspaces import SWEEP, Place, copy_place

EVIL = "<img src=x onerror=alert(1)>"


@dataclass(frozen=True)
class Made:
    """A report run of a workspace in which a region is held out, and all regions have a name."""

    place: Place
    run: Run

    def text(self, name: str) -> str:
        return self.place.workspace.artifact_path(self.run.id, name).read_text()

    def step(self) -> Report:
        found = load_step(self.place.workspace, self.run.id)
        assert isinstance(found, Report)
        return found


@pytest.fixture(scope="module")
def made(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    place = copy_place(template, tmp_path_factory.mktemp("report") / "home")
    regions = place.workspace.runs.latest(place.project.id, "distill")
    assert regions is not None
    for region in Source(place.workspace, regions.id).regions():
        name = f"{EVIL} {region.region_id}"
        place.workspace.annotations.edit(regions.id, RegionEdit("rename", (region.region_id,), name=name))
    done_here(place, "correct", {**SWEEP, "correction": {**SWEEP["correction"], "held_out_share": 0.4}})
    done_here(place, "evaluate", {"controls": False, "noise_images": 0, "n_nearest": 4})
    return Made(place, done_here(place, "report", {"n_worst": 3}))


def test_the_page_shows_the_worst_regions_by_name(made: Made) -> None:
    rows = json.loads(made.text("results.json"))["by_region"]
    page = made.text("report.html")
    assert EVIL not in page
    found = re.findall(r'<h3 id="region-(\d+)">\d\. (.*?) ·', page)
    assert [int(number) for number, _ in found] == [row["region_id"] for row in rows[:3]]
    assert all(name.startswith("&lt;img src=x") and name.endswith(number) for number, name in found)
    held_out = sum(row["held_out"] for row in rows)
    assert held_out > 0
    assert f"{held_out} failure" in page
    assert page.count("kept back: the repair never saw it") == sum(row["held_out"] for row in rows[:3])


def test_pictures_are_the_draws_that_were_labelled(made: Made) -> None:
    source, content = Source(made.place.workspace, made.run.id), made.step().content({})
    regions = {region.region_id: region for region in source.regions()}
    before = source.classifier()
    for entry in content.regions:
        images = draw_images(source.vae(), regions[entry.region_id], 10, tau=0.5, seed=0)
        shown = torch.stack([torch.from_numpy(tile.image).permute(2, 0, 1) for tile in entry.tiles])
        assert torch.equal(shown, images)
        said = [content.dataset["class_names"][i] for i in predict(before, images)]
        assert [tile.before for tile in entry.tiles] == said
        assert entry.annotators == ["Ada"]
        assert entry.nearest is not None
        assert len(entry.nearest.tiles) == 4


def test_numbers_of_another_lambda_make_no_report(made: Made, tmp_path: Path) -> None:
    place = copy_place(made.place.workspace.home, tmp_path / "home")
    correct = place.workspace.runs.latest(place.project.id, "correct")
    assert correct is not None
    lam = correct.summary["corrected"]["chosen"]["lam"]
    other = next(p for p in correct.summary["corrected"]["points"] if p["lam"] not in (0.0, lam))
    summary = {**correct.summary, "corrected": {**correct.summary["corrected"], "chosen": other}}
    place.workspace.runs.requeue(correct.id, config=correct.config)
    place.workspace.runs.finish(correct.id, "done", summary=summary)
    ended = run_here(place, "report")
    assert ended.status == "failed"
    assert f"is of λ = {lam:g}, and correction {correct.id} has chosen λ = {other['lam']:g} since" in str(
        ended.error
    )


def test_the_manifest_is_beside_the_page_and_in_it(made: Made) -> None:
    manifest = json.loads(made.text("manifest.json"))
    assert manifest["runs"][-1]["step"] == "report"
    assert manifest["runs"][-2]["step"] == "evaluate"
    assert "Save manifest.json" in made.text("report.html")
