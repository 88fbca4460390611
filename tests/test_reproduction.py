"""`defuse reproduce`: a few hundred images of each data set, end to end, and every table recomputed."""

from __future__ import annotations

import json
import platform
import re
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from defuse_core.base.config import CorrectionConfig, IdentificationConfig
from defuse_core.base.errors import CheckpointError
from defuse_core.base.records import FailureInstances
from defuse_core.data.splits import Split, stratified_sample
from defuse_core.extensions.answers import answers_by_region
from defuse_core.extensions.controls import random_regions, sample_split
from defuse_core.jobs import launcher
from defuse_core.method.classifier import predict
from defuse_core.method.correction import apply_point, tune
from defuse_core.method.identification import identify
from defuse_core.method.labeling import draw_images, draw_latents, failure_instances
from defuse_core.method.vae import decode_images, encode_means
from defuse_core.reproduction import results as reproduction_results
from defuse_core.reproduction import run as reproduction
from defuse_core.reproduction.files import write_reproduction, write_results
from defuse_core.reproduction.goals import goals
from defuse_core.reproduction.paper import PAPER, DatasetName
from defuse_core.reproduction.plans import NETWORKS, Length, changes, make_plan, results_name
from defuse_core.reproduction.results import all_seeds, collect, paper_rule, read_results
from defuse_core.reproduction.run import (
    find_data,
    find_pretrained,
    more_annotator_data,
    open_project,
    run_reproduction,
)
from defuse_core.reproduction.tables import over_seeds, write_section
from defuse_core.reproduction.unnormalised import without_normalisation
from defuse_core.steps.source import Source
from defuse_core.workspace.config_checks import check_config
from defuse_core.workspace.configs import STEPS
from defuse_core.workspace.database import WorkspaceError
from defuse_core.workspace.labels import LabelEvent
from defuse_core.workspace.runs import Resources, Run
from defuse_core.workspace.workspace import Workspace
from tests.commands import checked, defuse_here, defuse_process
from tests.in_process import runs_in_this_process
from tests.paper_data import paper_data
from tests.templates import make_once
from tests.workspaces import Place, copy_place

pytestmark = pytest.mark.timeout(900)  # each data set is made once, by some test

DATASETS: tuple[DatasetName, ...] = get_args(DatasetName)
MADE = [pytest.param(name, marks=() if name == "mnist" else pytest.mark.verify) for name in DATASETS]
"""House numbers and signs, in colour and read by a ResNet-18, are made by `make verify`."""


@dataclass(frozen=True)
class Made:
    """A reproduction as a user has it."""

    dataset: DatasetName
    data: Path
    home: Path
    out: Path
    printed: str

    @property
    def command(self) -> tuple[str, ...]:
        where = ("--data", str(self.data), "--out", str(self.out))
        first = ("--network", NETWORKS[self.dataset][0], "--unnormalised")
        return ("reproduce", self.dataset, "--quick", *where, "--threads", "1", *first)

    @property
    def env(self) -> dict[str, str]:
        return {"DEFUSE_HOME": str(self.home), "COLUMNS": "80"}

    def run(self, *words: str) -> str:
        """The command, or with more words; what was printed. That of SVHN, and its runs, are processes."""
        call = defuse_process if self.dataset == "svhn" else defuse_here
        return checked(call(*self.command, *words, cwd=self.home.parent, env=self.env)).stdout

    def copy(self, folder: Path) -> Made:
        """The same for a test that changes it."""
        home = copy_place(self.home, folder / "home").workspace.home
        return replace(self, home=home, out=shutil.copytree(self.out, folder / "out"))

    @property
    def results(self) -> dict[str, Any]:
        path = self.out / f"results-{self.dataset}.json"
        return read_results(path.read_bytes(), source=str(path))

    @property
    def workspace(self) -> Workspace:
        return Workspace(self.home)

    def source(self, step: str, seed: int = 0) -> Source:
        """What the newest run of a step reads, of a seed."""
        (project,) = self.workspace.projects()
        run = [r for r in self.workspace.runs.of_project(project.id, step) if r.seed == seed][-1]
        return Source(self.workspace, run.id)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return paper_data(tmp_path_factory)


@pytest.fixture(scope="module", params=MADE)
def made(request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Each data set once, from the command line; read it only."""

    def unread(folder: Path) -> Made:
        return Made(request.param, data, folder / "home", folder / "out", "")

    def make(folder: Path) -> None:
        (folder / "printed").write_text(unread(folder).run())

    folder = make_once(tmp_path_factory, f"reproduced-{request.param}", make)
    once = replace(unread(folder), printed=(folder / "printed").read_text())
    assert once.results["seeds"], f"no failure region in {request.param}: lengthen its --quick plan"
    return once


def table(text: str, heading: str) -> dict[str, list[str]]:
    """The rows of the first table under a heading, by their first cell."""
    body = text.split(f"### {heading}")[1].split("\n### ")[0]
    lines = [line.strip("| ").split(" | ") for line in body.splitlines() if line.startswith("|")]
    return {cells[0]: cells[1:] for cells in lines[2:]}


def right(classifier: Any, split: Split) -> float:
    return float((predict(classifier, split.images) == split.labels).double().mean())


def models(made: Made) -> Mapping[str, Any]:
    """Classifiers built anew from the weights that the runs stored."""
    source = made.source("evaluate")
    metadata = source.read("classifier", "classifier")[1]
    stored = {"identified mistakes": "baseline", "Defuse": "corrected"}
    tuned = {name: source.build(source.read("correct", of)[0], metadata) for name, of in stored.items()}
    return {"before": source.classifier(), **tuned}


def answered(source: Source, images: Tensor, *, least: float = 0.5) -> list[list[int | None]]:
    """What each of the five says of every image, None where it is less sure than `least`."""
    said = []
    for name in made_names(source):
        annotator = source.build(*source.read("annotators", name))
        with torch.inference_mode():
            sure, best = torch.cat([annotator(part) for part in images.split(64)]).softmax(1).max(1)
        said.append([b if s >= least else None for s, b in zip(sure.tolist(), best.tolist(), strict=True)])
    return [list(each) for each in zip(*said, strict=True)]


def made_names(source: Source) -> list[str]:
    stored = source.workspace.runs.artifacts(source.upstream("annotators").id)
    return sorted(name.removesuffix(".safetensors") for name in stored if ".said" not in name)


def voted(votes: list[int | None]) -> int | None:
    """The most frequent answer; None where two are."""
    (first, n), *others = Counter(votes).most_common(2)
    return None if others and others[0][1] == n else first


def test_annotators_are_printed_first_and_are_what_they_score(made: Made) -> None:
    lines = made.printed.splitlines()
    (told,) = [i for i, line in enumerate(lines) if line.startswith("annotators on the test images")]
    seed = min(i for i, line in enumerate(lines) if line.startswith("seed 0"))
    assert told < seed
    source = made.source("annotate")
    test = source.dataset.test
    rows = table((made.out / "RESULTS.md").read_text(), "Annotators")
    for name, value in made.results["annotators"]["accuracy"].items():
        annotator = source.build(*source.read("annotators", name))
        assert value == pytest.approx(right(annotator, test))
        assert rows[name] == [f"{value:.3f}"]


def test_figure4_is_what_the_stored_weights_give(made: Made) -> None:
    source = made.source("evaluate")
    drawn = source.read("correct", "failures")[0]
    dataset = source.dataset
    splits = {
        **({} if dataset.validation is None else {"validation": dataset.validation}),
        "test": dataset.test,
        "failure regions": Split(drawn["test.images"], drawn["test.labels"]),
    }
    rows = table((made.out / "RESULTS.md").read_text(), "Figure 4")
    for part, split in splits.items():
        assert rows[part][::2] == [f"{right(model, split):.3f}" for model in models(made).values()]


def test_ours_is_printed_beside_the_papers(made: Made) -> None:
    printed, (seed,) = made.printed, made.results["seeds"]
    paper = PAPER[made.dataset]
    assert f"| the paper | {paper.scenarios} | {paper.failures} |" in printed
    assert f"| seed 0 | {seed['scenarios']} | {seed['failure_regions']} |" in printed
    assert f"| test | {seed['before']['test']:.3f} | " in printed


def test_regions_and_kinds_are_those_of_the_runs(made: Made) -> None:
    source = made.source("correct")
    text = (made.out / "RESULTS.md").read_text()
    regions, mistakes = source.regions(), source.mistakes()
    events = source.labels(up_to=source.run.last_annotation)
    assert answers_by_region(events).keys() == {region.region_id for region in regions}
    failures = source.own("failures")
    assert failures is not None
    n_failures = len(failures[0]["test.ids"].unique())
    rows = table(text, "Scenarios and failure regions")
    paper = PAPER[made.dataset]
    assert rows["the paper"] == [str(paper.scenarios), str(paper.failures)]
    assert rows["seed 0"] == [str(len(regions)), str(n_failures)]
    rows = table(text, "Mistakes")
    assert rows["mistakes"] == [f"{len(mistakes):,}"]
    for number, kind in enumerate(("dataset", "reconstruction", "perturbation")):
        assert rows[f"… of kind {kind}"] == [f"{float((mistakes.kind == number).double().mean()):.3f}"]


def test_the_share_that_is_reconstruction_is_that_of_the_failure_regions(made: Made) -> None:
    source = made.source("correct")
    mistakes, mixture = source.mistakes(), source.mixture()
    failures = source.own("failures")
    assert failures is not None
    density = torch.stack([_log_density(r, mistakes.latents) for r in mixture.regions(0.0)], 1)
    of = torch.tensor([region.region_id for region in mixture.regions(0.0)])[density.argmax(1)]
    inside = torch.isin(of, failures[0]["test.ids"].unique())
    share = float((mistakes.kind[inside] == 1).double().mean())
    rows = table((made.out / "RESULTS.md").read_text(), "Mistakes")
    told = rows["of the mistakes in failure regions, misclassified after reconstruction alone"]
    assert float(told[0]) == pytest.approx(share, abs=0.0006)


def _log_density(region: Any, codes: Tensor) -> Tensor:
    mean = torch.as_tensor(region.mean, dtype=torch.float64)
    covariance = torch.as_tensor(region.covariance, dtype=torch.float64)
    normal = torch.distributions.MultivariateNormal(mean, covariance)
    return normal.log_prob(codes.double()) + torch.log(torch.tensor(region.weight, dtype=torch.float64))


def test_control_is_what_reconstruction_leaves(made: Made) -> None:
    source = made.source("control")
    classifier, vae = source.classifier(), source.vae()
    rows = table((made.out / "RESULTS.md").read_text(), "Mistakes")
    for name, split in (("training", source.dataset.train), ("test", source.dataset.test)):
        read = split[predict(classifier, split.images) == split.labels]
        decoded = decode_images(vae, encode_means(vae, read.images))
        still = float((predict(classifier, decoded) == read.labels).double().mean())
        assert rows[f"ε = 0: of those classified correctly, still classified correctly, {name}"] == [
            f"{still:.3f}"
        ]


def test_their_vote_is_that_of_their_answers(made: Made) -> None:
    source = made.source("annotate")
    images, labels = source.dataset.test.images, source.dataset.test.labels
    said = answered(source, images)
    rows = table((made.out / "RESULTS.md").read_text(), "Annotators")
    votes = [voted(each) for each in said]
    same = sum(vote == label for vote, label in zip(votes, labels.tolist(), strict=True))
    assert rows["**vote of five**"] == [f"**{same / len(votes):.3f}**"]
    told = f"none of the above to {votes.count(None) / len(votes):.1%} of"
    assert told in (made.out / "RESULTS.md").read_text()


def test_null_controls_are_what_tuning_again_gives(made: Made) -> None:
    source = made.source("evaluate")
    before, vae, dataset = source.classifier(), source.vae(), source.dataset
    run = source.upstream("correct")
    config = CorrectionConfig(**run.config["correction"])
    drawn = source.read("correct", "failures")[0]
    failures = FailureInstances.of_file(drawn, "tune")
    tested = Split(drawn["test.images"], drawn["test.labels"])
    wanted = dict(zip(failures.region_ids.tolist(), failures.labels.tolist(), strict=True))
    regions = [region for region in source.regions() if region.region_id in wanted]
    moved, labels = random_regions(
        regions, wanted, classifier=before, vae=vae, train=dataset.train, seed=source.run.seed
    )
    tau = answers_by_region(source.labels(up_to=run.last_annotation))[regions[0].region_id].tau
    random = failure_instances(
        vae, moved, labels, config.instances_per_region, tau=tau, seed=run.seed, purpose="tune"
    )
    chosen = run.summary["corrected"]["chosen"]["lam"]
    sample = stratified_sample(dataset.train.labels, config.max_images or len(dataset.train), seed=run.seed)
    rows = table((made.out / "RESULTS.md").read_text(), "Null controls")
    for name, instances, lam in (
        ("λ = 0: tuned on the data alone", failures, 0.0), ("random regions of equal size", random, chosen),
    ):  # fmt: skip
        point = tune(
            before, dataset.train[sample], instances, lam=lam, config=config, seed=run.seed,
            selection=dataset.selection,
        )  # fmt: skip
        tuned = apply_point(before, point)
        assert rows[name] == [f"{right(tuned, split):.3f}" for split in (dataset.test, tested)]
    assert rows["Defuse"] == [
        f"{right(models(made)['Defuse'], split):.3f}" for split in (dataset.test, tested)
    ]


def test_lambdas_flips_and_label_agreement_are_what_the_models_say(made: Made) -> None:
    source = made.source("evaluate")
    run, dataset = source.upstream("correct"), source.dataset
    metadata = source.read("classifier", "classifier")[1]
    drawn = source.read("correct", "failures")[0]
    tested = Split(drawn["test.images"], drawn["test.labels"])
    by_lam = {
        lam: source.build(source.read("correct", f"lam={lam:g}")[0], metadata)
        for lam in run.config["correction"]["lambdas"]
    }
    rows = table((made.out / "RESULTS.md").read_text(), "Choice of λ")
    first = max(by_lam.values(), key=lambda model: right(model, dataset.selection))  # the smaller of equals
    told = by_lam[float(rows["λ by the paper's rule"][0].removesuffix(" (seed 0)"))]
    assert right(told, dataset.selection) == right(first, dataset.selection)
    assert rows["… region accuracy there"] == [f"{right(told, tested):.3f}"]
    assert rows["… test accuracy there"] == [f"{right(told, dataset.test):.3f}"]
    chosen = by_lam[float(rows["λ chosen"][0].removesuffix(" (seed 0)"))]
    for split, name in ((dataset.test, "test"), (tested, "failure regions")):
        assert right(chosen, split) == right(models(made)["Defuse"], split), name
    was, now = (
        predict(m, dataset.test.images) == dataset.test.labels for m in (models(made)["before"], chosen)
    )
    assert rows["test images fixed"] == [f"{int((~was & now).sum())}"]
    assert rows["test images broken"] == [f"{int((was & ~now).sum())}"]
    least = make_plan(made.dataset, "quick").min_probability  # as when they labelled the regions
    own = [voted(each) for each in answered(source, tested.images, least=least)]
    same = sum(a == b for a, b in zip(own, tested.labels.tolist(), strict=True)) / len(own)
    assert rows["draws whose own label is the region's"] == [f"{same:.3f}"]


def test_agreement_is_that_of_the_label_events(made: Made) -> None:
    source = made.source("correct")
    every: dict[tuple[int, int], list[int | None]] = {}
    for event in source.labels(up_to=source.run.last_annotation):
        assert event.sample_id is not None
        every.setdefault((event.region_id, event.sample_id), []).append(event.label)
    answers = {key: given for key, given in every.items() if key[0] >= 0}
    singles = [given for (region_id, _), given in every.items() if region_id < 0]
    assert {len(given) for given in answers.values()} == {5}
    unanimous = sum(len(set(given)) == 1 for given in answers.values()) / len(answers)
    pairs = [a == b for given in answers.values() for a, b in combinations(given, 2)]
    rows = table((made.out / "RESULTS.md").read_text(), "Choice of λ")
    named = sum(voted(given) is not None for given in singles)
    assert rows["single mistakes that the baseline is tuned on"] == [f"{named:,}"]
    assert rows["images on which all agree"] == [f"{unanimous:.3f}"]
    assert rows["two annotators agree"] == [f"{sum(pairs) / len(pairs):.3f}"]
    failures = source.own("failures")
    assert failures is not None
    repaired = set(failures[0]["test.ids"].tolist())
    rows = table((made.out / "RESULTS.md").read_text(), "Figure 7")
    for words, inside in (("failure regions", (True,)), ("others", (False,)), ("both", (True, False))):
        majority = [
            max(Counter(given).values()) / 5 for (i, _), given in answers.items() if (i in repaired) in inside
        ]
        told = f"{fmean(majority):.3f}" if majority else "–"
        if len(majority) > 1:
            told += f" ± {stdev(majority) / len(majority) ** 0.5:.3f}"
        assert rows[f"draws of {words}"][0] == told


def test_novelty_is_the_distance_to_the_nearest_misread_image(made: Made) -> None:
    source = made.source("evaluate")
    before, vae, dataset = source.classifier(), source.vae(), source.dataset
    missed = {
        name: split[predict(before, split.images) != split.labels]
        for name, split in (("train", dataset.train), ("test", dataset.test))
    }
    reference = missed["train"] if len(missed["train"]) else dataset.train
    run = source.upstream("correct")
    drawn = source.read("correct", "failures")[0]
    regions = {region.region_id: region for region in source.regions()}
    tau = source.labels(up_to=run.last_annotation)[-1].tau
    codes = [
        draw_latents(regions[i], int((drawn["test.ids"] == i).sum()), tau=tau, seed=run.seed, purpose="test")
        for i in drawn["test.ids"].unique_consecutive().tolist()
    ]
    spaces = {
        "pixels": (reference.images / 255, drawn["test.images"] / 255, missed["test"].images / 255),
        "latent": (
            encode_means(vae, reference.images), torch.cat(codes), encode_means(vae, missed["test"].images),
        ),
    }  # fmt: skip
    rows = table((made.out / "RESULTS.md").read_text(), "Choice of λ")
    for space, (known, *groups) in spaces.items():
        for name, group in zip(
            ("draws of failure regions", "misclassified test images"), groups, strict=True
        ):
            apart = [cell for row, cell in rows.items() if row.startswith(f"ℓ2 in {space} ") and name in row]
            assert len(apart) == (1 if len(group) else 0)
            if len(group):
                far = torch.cdist(group.flatten(1).double(), known.flatten(1).double()).amin(1)
                assert float(apart[0][0]) == pytest.approx(float(far.quantile(0.5)), abs=0.0051)


def test_the_nearest_real_images_are_those_of_the_nearest_codes(made: Made) -> None:
    source = made.source("evaluate")
    test, codes = source.dataset.test, encode_means(source.vae(), source.dataset.test.images).double()
    drawn = source.read("correct", "failures")[0]
    wanted = dict(zip(drawn["test.ids"].tolist(), drawn["test.labels"].tolist(), strict=True))
    nearest, same = [], []
    for region in source.regions():
        if region.region_id in wanted:
            off = codes - torch.as_tensor(region.mean, dtype=torch.float64)
            inverse = torch.linalg.inv(torch.as_tensor(region.covariance, dtype=torch.float64))
            found = ((off @ inverse) * off).sum(1).argsort()[:10]
            nearest.append(found)
            same.append((test.labels[found] == wanted[region.region_id]).double())
    near = test[torch.cat(nearest).unique()]
    rows = table((made.out / "RESULTS.md").read_text(), "Choice of λ")
    told = "nearest real test images of the regions: with their label"
    assert rows[told] == [f"{float(torch.cat(same).mean()):.3f}"]
    assert rows["… classified correctly before"] == [f"{right(models(made)['before'], near):.3f}"]
    assert rows["… classified correctly after"] == [f"{right(models(made)['Defuse'], near):.3f}"]


def test_noise_is_what_a_search_of_all_finds(made: Made) -> None:
    source = made.source("evaluate")
    search, seed = source.upstream("identify").config, source.run.seed
    sample = sample_split(source.dataset.train, source.run.config["noise_images"], seed=seed)
    rows = table((made.out / "RESULTS.md").read_text(), "Mistakes")
    for noise in ("raw", "centred"):
        every = {**search, "centred": noise == "centred", "max_mistakes_per_image": None}
        found = identify(
            source.classifier(), source.vae(), sample, config=IdentificationConfig(**every), seed=seed
        )
        share = len(found) / (len(sample) * search["n_perturbations"])
        told = f"codes misclassified around the same {len(sample)} images, {noise} noise"
        assert rows[told] == [f"{share:.3f}"]


def test_times_are_those_of_the_runs(made: Made) -> None:
    source = made.source("map")
    rows = table((made.out / "RESULTS.md").read_text(), "Time")
    for step, run in made.source("report").ancestry.items():
        told = f"{step}, once" if step in ("annotators", "vae") else f"{step}, a seed"
        assert rows[told] == [f"{round(run.seconds, 1):,.0f} s"]
    assert rows["map, a seed"] == [f"{round(source.run.seconds, 1):,.0f} s"]


def test_every_figure_is_there_and_linked(made: Made) -> None:
    text = (made.out / "RESULTS.md").read_text()
    linked = re.findall(r"\]\((figures/[^)]+)\)", text)
    assert {re.search(r"figure(\d)", name)[1] for name in linked if "figure" in Path(name).stem[5:]} >= set(
        "234567"
    )
    for name in linked:
        assert (made.out / name).read_bytes().startswith(b"\x89PNG")


def test_differences_are_told(made: Made) -> None:
    text = (made.out / "RESULTS.md").read_text()
    epochs = {"mnist": ["800", "8"], "svhn": ["400", "8"], "gtsrb": ["800", "40"]}[made.dataset]
    assert table(text, "What `--quick` changes")["`vae.training.epochs`"] == epochs
    rows = table(text, "What differs from the paper")
    people = "the authors" if made.dataset == "gtsrb" else "five workers an image"
    assert rows["annotators"] == [people, "five networks"]
    assert f"| annotators | {people} | five networks |" in made.printed
    assert f"| `vae.training.epochs` | {' | '.join(epochs)} |" in made.printed
    sizes = made.results["data"]["sizes"]
    if made.dataset == "mnist":  # which chooses by training accuracy
        assert rows["training images"][1] == f"{sizes['train']:,}"
    else:
        apart = sizes["validation"]
        assert rows["test images"][1] == f"{sizes['test'] + apart:,}, of which {apart:,} for validation"
    assert str(made.data) not in (made.out / f"results-{made.dataset}.json").read_text()


def test_a_second_time_computes_nothing_and_more_seeds_add(made: Made, tmp_path: Path) -> None:
    if made.dataset != "mnist":
        pytest.skip("the fastest of the three tells")
    made = made.copy(tmp_path)
    (project,) = made.workspace.projects()
    before = [run.id for run in made.workspace.runs.of_project(project.id)]
    first = made.results
    made.run()
    assert [run.id for run in made.workspace.runs.of_project(project.id)] == before
    assert made.results == first
    made.run("--seeds", "2")
    added = [run for run in made.workspace.runs.of_project(project.id) if run.id not in before]
    assert [run.step for run in added] == [step for step, _ in make_plan("mnist", "quick").seeded(None)]
    assert {run.seed for run in added} == {1}
    both = made.results["seeds"]
    assert both[0] == first["seeds"][0]
    assert both[0]["defuse"] != both[1]["defuse"]
    rows = table((made.out / "RESULTS.md").read_text(), "Figure 4")
    for part, name in (("test", "test"), ("region", "failure regions")):
        for cell, model in zip(rows[name][::2], ("before", "baseline", "defuse"), strict=True):
            low, high = sorted(seed[model][part] for seed in both)
            told = f"{(low + high) / 2:.3f}"
            assert cell == (told if f"{low:.3f}" == f"{high:.3f}" else f"{told} ({low:.3f}–{high:.3f})")


def test_results_are_not_overwritten_by_fewer_or_by_others(made: Made, tmp_path: Path) -> None:
    if made.dataset != "mnist":
        pytest.skip("the fastest of the three tells")
    held = json.loads((made.out / "results-mnist.json").read_text())
    for name, change in (("seeds", {"seeds": held["seeds"] * 3}), ("length", {"length": "paper"})):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "results-mnist.json").write_text(json.dumps({**held, **change}))
        words = ("reproduce", "mnist", "--quick", "--out", str(folder))
        done = defuse_here(*words, cwd=tmp_path, env={"DEFUSE_HOME": str(made.home)})
        assert done.returncode == 1
        assert "give another --out" in done.stderr


# What is run, and what is found again


@pytest.fixture
def paper(place: Place, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[Any]]:
    """Runs a reproduction whose steps compute nothing; `ends` says how each ends, done by default.

    The labels of the seeds `without` name no failure region; every search finds so many `mistakes`.
    """
    monkeypatch.setattr(launcher, "_start", lambda *_: None)

    def go(
        *, n_seeds: int, ends: Mapping[str, str] | None = None, without: tuple[int, ...] = (),
        mistakes: int = 2,
    ) -> list[Any]:  # fmt: skip
        monkeypatch.setattr(reproduction, "_is_any_failure", lambda _, run, __: run.seed not in without)

        def watch(run: Run) -> Run:
            status: Any = (ends or {}).get(run.step, "done")
            summary = {"mistakes": {"perturbation": mistakes}} if run.step == "identify" else {}
            place.workspace.runs.finish(run.id, status, summary=summary)
            return place.get(run)

        plan = make_plan("mnist", "quick")
        return list(
            run_reproduction(
                place.workspace,
                place.project,
                plan,
                pretrained=None,
                more_data=None,
                n_seeds=n_seeds,
                resources=Resources(),
                watch=watch,
            )
        )

    return go


def test_each_seed_stands_on_its_own_runs_and_shares_the_generator(paper: Callable[..., list[Any]]) -> None:
    (none, first), (_, shared), *seeds = paper(n_seeds=2)
    assert none is None
    assert list(first) == ["annotators"], "told before the hours that the generator takes"
    assert [seed for seed, _ in seeds] == [0, 1]
    for seed, runs in seeds:
        for step, run in runs.items():
            spec = STEPS[step]
            wanted = {runs[name].id for name in (*spec.needs, *spec.optional) if name in runs}
            assert set(run.upstream) == wanted
            assert run.seed == (0 if step in shared else seed)
    assert seeds[0][1]["vae"].id == seeds[1][1]["vae"].id
    assert seeds[0][1]["classifier"].id != seeds[1][1]["classifier"].id


def test_a_seed_without_a_failure_region_has_nothing_to_correct(paper: Callable[..., list[Any]]) -> None:
    *_, (_, first), (seed, second) = paper(n_seeds=2, without=(0,))
    assert seed == 1, "the next seed is run all the same"
    assert set(second) - set(first) == {"correct", "evaluate", "report"}
    assert all(run.status == "done" for run in first.values())


def test_a_seed_with_a_single_mistake_has_nothing_to_group(paper: Callable[..., list[Any]]) -> None:
    *_, (_, first), (seed, second) = paper(n_seeds=2, mistakes=1)
    assert seed == 1
    for runs in (first, second):
        assert list(runs) == ["annotators", "vae", "classifier", "control", "identify", "map"]
        assert runs["map"].upstream == (runs["identify"].id,)


def test_labels_that_agree_with_the_classifier_name_no_failure(place: Place) -> None:
    plan = make_plan("mnist", "quick")
    distill = place.workspace.runs.latest(place.project.id, "distill", done=True)
    assert distill is not None
    assert reproduction._is_any_failure(place.workspace, distill, plan), "Ada's labels, of the template"
    source = Source(place.workspace, distill.id)
    drawn = {r.region_id: draw_images(source.vae(), r, 10, tau=0.5, seed=0) for r in source.regions()}
    agreeing = [
        LabelEvent(region, "Ada", said, sample)
        for region, images in drawn.items()
        for sample, said in enumerate(predict(source.classifier(), images).tolist())
    ]
    place.workspace.annotations.append(distill.id, agreeing)  # she thought better of them
    assert not reproduction._is_any_failure(place.workspace, distill, plan)


def test_what_such_a_seed_found_is_told(made: Made, tmp_path: Path) -> None:
    if made.dataset != "mnist":
        pytest.skip("the fastest of the three tells")
    workspace = made.workspace
    (project,) = workspace.projects()
    plan = make_plan("mnist", "quick")
    done = list(
        run_reproduction(
            workspace, project, plan, pretrained=None, more_data=None, n_seeds=1,
            resources=Resources(threads=1), watch=pytest.fail,
        )
    )[-1][1]  # fmt: skip
    nothing = {step: run for step, run in done.items() if step not in ("correct", "evaluate", "report")}
    shutil.copytree(made.out, tmp_path, dirs_exist_ok=True)  # with figures of what was found before
    results = collect(workspace, project, "mnist", "quick", [nothing])
    write_reproduction(workspace, results, nothing, tmp_path)
    text = (tmp_path / "RESULTS.md").read_text()
    assert "No failure region, so nothing to correct, on seed 0." in text
    regions, counts = done["distill"].summary["regions"], done["identify"].summary["mistakes"]
    assert table(text, "Scenarios and failure regions")["seed 0"] == [f"{len(regions)}", "0"]
    assert table(text, "Mistakes")["mistakes"] == [f"{sum(counts.values()):,}"]
    before = done["classifier"].summary["accuracy"]["test"]
    assert table(text, "Figure 4")["test"] == [f"{before:.3f}", "0.983", "–", "0.991", "–", "0.991"]
    assert {path.stem for path in (tmp_path / "figures").iterdir()} == {"mnist-figure2-map", "mnist-kinds"}
    assert [goal.answer for goal in goals(results)] == ["open"] * 3

    alone, both = (
        collect(workspace, project, "mnist", "quick", seeds) for seeds in ([done], [nothing, done])
    )
    assert both["seeds"] == alone["seeds"]
    assert [goal.measured for goal in goals(both)] == [goal.measured for goal in goals(alone)]
    assert "on seed 0." in write_section(both)
    assert "on seed 0." not in write_section(alone)


def test_what_a_seed_without_regions_found_is_told(made: Made, tmp_path: Path) -> None:
    if made.dataset != "mnist":
        pytest.skip("the fastest of the three tells")
    made = made.copy(tmp_path)
    workspace = made.workspace
    (project,) = workspace.projects()
    done = {run.step: run for run in workspace.runs.of_project(project.id)}
    plan = dict(make_plan("mnist", "quick").seeded(None))
    with runs_in_this_process():
        done["map"] = launcher.submit(
            workspace, project.id, "map", plan["map"], resources=Resources(threads=1),
            upstream=[done["identify"]],
        )  # fmt: skip
    assert done["map"].status == "done"
    runs = {s: done[s] for s in ("annotators", "vae", "classifier", "control", "identify", "map")}
    results = collect(workspace, project, "mnist", "quick", [runs])
    write_reproduction(workspace, results, runs, made.out)
    text = (made.out / "RESULTS.md").read_text()
    assert table(text, "Scenarios and failure regions")["seed 0"] == ["0", "0"]
    assert {p.stem for p in (made.out / "figures").iterdir()} == {"mnist-figure2-map", "mnist-kinds"}


def test_what_failed_is_gone_on_with(paper: Callable[..., list[Any]]) -> None:
    *_, (seed, runs) = paper(n_seeds=2, ends={"correct": "interrupted"})
    assert (seed, list(runs)[-1]) == (0, "correct")
    again = paper(n_seeds=1)[-1][1]
    assert again["correct"].id == runs["correct"].id
    assert again["correct"].status == "done"
    assert [run.id for run in runs.values()] == [again[step].id for step in runs]
    stopped = paper(n_seeds=1, ends={"vae": "failed"})  # there is one that is done
    assert stopped[-1][0] == 0, "what is done is not run again"


def test_the_network_of_figure_8_stands_on_the_same_generator(made: Made, tmp_path: Path) -> None:
    if made.dataset != "mnist":
        pytest.skip("the paper names two networks for MNIST alone")
    made = made.copy(tmp_path)
    (project,) = made.workspace.projects()
    runs = made.workspace.runs
    generators = [run.id for run in runs.of_project(project.id, "vae")]
    words = [word for word in made.command if word not in ("--network", "mnist_cnn", "--unnormalised")]
    printed = checked(defuse_here(*words, cwd=made.home.parent, env=made.env)).stdout
    assert "MNIST, the network of section 4.1" in printed
    assert "MNIST, the network of figure 8" in printed
    assert [run.id for run in runs.of_project(project.id, "vae")] == generators
    networks = [run.config["architecture"] for run in runs.of_project(project.id, "classifier")]
    assert networks == ["mnist_cnn", "paper_cnn"]
    path = made.out / f"results-{results_name('mnist', 'paper_cnn')}.json"
    other = read_results(path.read_bytes(), source=str(path))
    assert other["configs"]["classifier"]["architecture"] == "paper_cnn"
    text = (made.out / "RESULTS.md").read_text()
    sections = text.split("\n## ")
    assert [s.partition("\n")[0] for s in sections[1:3]] == [
        "MNIST, the network of section 4.1", "MNIST, the network of figure 8"
    ]  # fmt: skip
    assert "| paper_cnn, from random weights |" in sections[2]
    assert "figures/mnist-paper_cnn-kinds.png" in sections[2]
    assert "paper_cnn" not in sections[1].replace("`--network paper_cnn`", "")


def test_a_network_of_another_data_set_is_refused(tmp_path: Path) -> None:
    refused = checked(defuse_here("reproduce", "svhn", "--network", "paper_cnn", cwd=tmp_path), code=1)
    assert "network of svhn must be resnet18, got 'paper_cnn'" in refused.stderr


def test_without_its_normalisation_a_classifier_is_told_apart(made: Made) -> None:
    (told,) = made.results["unnormalised"]
    source, plan = made.source("annotate"), make_plan(made.dataset, "quick")
    kept = source.classifier()
    broken = without_normalisation(kept)
    pixels = source.dataset.test.images[:20].float() / 255
    with torch.inference_mode():
        torch.testing.assert_close(broken(pixels), kept.network(pixels))
        assert not torch.allclose(broken(pixels), kept(pixels))
    found = identify(
        broken, source.vae(), source.dataset.train, config=plan.preset.identification, seed=0
    )  # fmt: skip
    assert (told["seed"], told["mistakes"]) == (0, len(found))
    assert 0 <= told["failure_regions"] <= told["scenarios"]
    rows = table((made.out / "RESULTS.md").read_text(), "The contract broken")
    assert rows["seed 0"][0] == f"{len(found):,}"
    drawn = (made.out / "figures" / f"{made.dataset}-unnormalised.png").is_file()
    assert drawn == bool(told["failure_regions"])


def test_runs_of_others_in_between_change_nothing(place: Place, paper: Callable[..., list[Any]]) -> None:
    first = paper(n_seeds=1)[-1][1]
    other = place.submit("classifier", {"architecture": "vgg_small"})
    place.workspace.runs.finish(other.id, "done", summary={})
    assert {s: r.id for s, r in paper(n_seeds=1)[-1][1].items()} == {s: r.id for s, r in first.items()}


# Plans, data, tables


@pytest.mark.parametrize("dataset", DATASETS)
def test_plans_are_the_papers_and_say_what_they_change(dataset: DatasetName) -> None:
    assert changes(dataset, "paper") == []
    plan = make_plan(dataset)
    steps = dict(plan.seeded("imagenet" if plan.pretrained else None))
    sweep: Any = check_config("correct", steps["correct"])
    assert len(sweep.correction.lambdas) == len(sweep.baseline_lambdas) == 17
    search: Any = check_config("identify", steps["identify"])
    digits = dataset == "mnist"
    assert (search.noise_a, search.n_perturbations) == ((50, 500) if digits else (75, 100))
    assert search.max_mistakes_per_image == {"mnist": 100, "svhn": 10, "gtsrb": None}[dataset]
    groups: Any = check_config("distill", steps["distill"])
    assert (groups.n_components, groups.min_weight) == (100, 0.01)
    shown: Any = check_config("annotate", steps["annotate"])
    assert (shown.labeling.n_samples, shown.labeling.tau) == (10, 0.5 if digits else 0.01)
    assert shown.labeling.disagreement_threshold == sweep.disagreement_threshold == 0.5
    assert sweep.correction.epochs == (3 if digits else 5)
    assert sweep.correction.instances_per_region == 256
    assert (min(sweep.correction.lambdas), max(sweep.correction.lambdas)) == (1e-10, 1000.0)
    vae: Any = check_config("vae", dict(plan.shared())["vae"])
    assert vae.training.epochs == (400 if dataset == "svhn" else 800)
    training: Any = check_config("classifier", steps["classifier"])
    if digits:
        assert (training.architecture, training.pretrained) == ("mnist_cnn", None)
        assert (training.training.optimizer, training.training.epochs) == ("adadelta", 5)
    else:
        assert (training.architecture, training.pretrained) == ("resnet18", "imagenet")
    for length in ("cpu", "quick"):
        told = {name for name, _, _ in changes(dataset, length)}
        assert "vae.training.epochs" in told
        assert not {"identify.noise_a", "identify.noise_b", "identify.centred"} & told
        if length == "cpu":
            assert not {"distill.n_components", "distill.min_weight", "annotate.labeling.tau"} & told
            assert "correct.correction.instances_per_region" not in told


def test_data_is_found_in_the_folder_else_by_torchvision(tmp_path: Path) -> None:
    (tmp_path / "svhn.npz").write_bytes(b"")
    assert find_data("svhn", "paper", tmp_path) == (str(tmp_path / "svhn.npz"), None)
    assert find_data("mnist", "cpu", tmp_path) == (f"torchvision:MNIST:{tmp_path}", None)
    assert find_data("gtsrb", "paper", tmp_path) == (f"torchvision:GTSRB:{tmp_path}", 128)
    assert find_data("gtsrb", "cpu", tmp_path) == (f"torchvision:GTSRB:{tmp_path}", 32)


def test_annotators_of_house_numbers_see_the_extra_split_where_there_is_one(place: Place) -> None:
    project = place.project
    for source, wanted in (
        ("torchvision:SVHN:/there", "torchvision:SVHN-extra:/there"), ("/there/svhn.npz", None),
        ("torchvision:GTSRB:/there", None), ("digits", None),
    ):  # fmt: skip
        found = type(project)(1, "p", {**project.dataset, "source": source}, 0.0)
        assert more_annotator_data(found, "paper") == wanted
        assert more_annotator_data(found, "cpu") is None


def test_a_classifier_begins_with_the_weights_in_the_folder_else_with_torchvisions(
    place: Place, tmp_path: Path
) -> None:
    plan = make_plan("svhn", "quick")
    (tmp_path / "resnet18.npz").write_bytes(b"no weights")

    def found(data: Path | None = tmp_path) -> str | None:
        return find_pretrained(place.workspace, place.project, plan, data)

    assert found(None) == found() == "imagenet"
    assert find_pretrained(place.workspace, place.project, make_plan("mnist", "quick"), tmp_path) is None
    path = tmp_path / "resnet18-f37072fd.pth"  # as torchvision names its download
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7), "fc.bias": torch.zeros(1000)}, path)
    stored = found()
    assert stored is not None
    blob = place.workspace.blob_path(place.project.id, stored.removeprefix("blob:"))
    assert blob.read_bytes() == path.read_bytes()
    torch.save({"conv1.weight": torch.zeros(8, 3, 3, 3), "fc.bias": torch.zeros(1000)}, path)
    with pytest.raises(CheckpointError, match=rf"{path.name} fits no layer of the network"):
        found()
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=rf"{path.name} is empty"):
        found()
    (tmp_path / "resnet18.safetensors").touch()
    with pytest.raises(
        WorkspaceError, match=rf"several files of resnet18's weights \({path.name}, resnet18.saf"
    ):
        found()


def test_a_project_on_other_data_is_not_taken(data: Path, tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "home")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mnist.npz").write_bytes((data / "mnist.npz").read_bytes())
    open_project(workspace, "mnist", "cpu", elsewhere)
    assert open_project(workspace, "mnist", "cpu", None).name == "reproduce-mnist-cpu"
    with pytest.raises(WorkspaceError, match=r"reproduce-mnist-cpu.*leave --data out, or delete it with"):
        open_project(workspace, "mnist", "cpu", data)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("mnist", "--cpu", "--quick"), "leave one of --cpu and --quick out"),
        (("cifar",), "'cifar' is not one of 'mnist', 'svhn', 'gtsrb'"),
        (("mnist", "--data", "absent"), "does not exist"),
        (("mnist", "--seeds", "0"), "greater than or equal to 1"),
        (("mnist", "--out", "file", "--quick"), "--out must be a folder, file is a file"),
    ],
)
def test_wrong_calls_are_refused_in_words(tmp_path: Path, words: tuple[str, ...], told: str) -> None:
    (tmp_path / "file").write_text("")
    done = defuse_here("reproduce", *words, cwd=tmp_path, env={"DEFUSE_HOME": str(tmp_path / "home")})
    assert done.returncode in (1, 2)
    assert told in re.sub(r"[\s│]+", " ", done.stderr)
    assert not (tmp_path / "home").exists()


def test_the_papers_rule_takes_the_best_selection_accuracy() -> None:
    points = [
        {"lam": lam, "repeat": n, "selection": selection, "test": [test], "region": [0.5]}
        for lam, n, selection, test in (
            (0.0, 0, 0.99, 0.1), (10.0, 0, 0.9, 0.2), (1.0, 0, 0.9, 0.3), (0.1, 0, 0.8, 0.4),
            (0.1, 1, 0.95, 0.5),
        )
    ]  # fmt: skip
    assert paper_rule({"corrected": {"points": points}}) == {"lam": 1.0, "test": 0.3, "region": 0.5}


@pytest.mark.parametrize(
    "content", [b"", b"\xff", b"[]", b"{}", b'{"format": "defuse-reproduction", "seeds": []}']
)
def test_results_that_are_none_are_refused_in_words(content: bytes) -> None:
    with pytest.raises(WorkspaceError, match=r"here.json (is not readable JSON|holds no reproduction)"):
        read_results(content, source="here.json")


@pytest.mark.parametrize(
    ("told", "name"),
    [
        (
            "processor\t: 0\nmodel name\t: AMD EPYC 7B13\ncores\t: 2\nmodel name\t: AMD EPYC 7B13\n",
            "AMD EPYC 7B13",
        ),
        ("processor\t: 0\nBogoMIPS\t: 243.75\n", platform.machine()),
        (None, platform.machine()),
    ],
)
def test_the_processor_has_its_name_where_the_system_tells_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: str | None, name: str
) -> None:
    monkeypatch.setattr(reproduction_results, "_CPUINFO", tmp_path / "cpuinfo")
    if told is not None:
        (tmp_path / "cpuinfo").write_text(told)
    assert reproduction_results._processor() == name


def test_goals_are_met_only_where_they_are(made: Made) -> None:
    results = json.loads(json.dumps(made.results))
    (seed,) = results["seeds"]
    wanted = {"mnist": 0.9, "svhn": 0.9, "gtsrb": 0.8}[made.dataset]

    def met(region: float, low: float, test: float, baseline_high: float) -> list[bool]:
        seed["defuse"].update(region=region, region_interval=[low, 1.0], test=test)
        seed["before"]["test"] = 0.95
        seed["baseline"]["region_interval"] = [0.0, baseline_high]
        return [goal.met for goal in goals(results)]

    assert met(wanted, 0.7, 0.945, 0.6) == [True, True, True]
    assert met(wanted - 0.001, 0.7, 0.945, 0.6) == [False, True, True]
    assert met(wanted, 0.7, 0.93, 0.6) == [True, False, True]
    assert met(wanted, 0.6, 0.945, 0.6) == [True, True, False]
    assert "**NOT met**" in write_section(results)
    seed["baseline"] = None
    assert [goal.met for goal in goals(results)][2] is False


def test_a_range_is_of_the_values() -> None:
    assert over_seeds([0.25, None, 0.75, 0.5]) == "0.500 (0.250–0.750)"
    assert over_seeds([1200.0, 1300.0], "{:,.0f}") == "1,250 (1,200–1,300)"


LENGTHS: tuple[Length, ...] = get_args(Length)


@pytest.mark.parametrize("dataset", DATASETS)
@pytest.mark.parametrize("length", LENGTHS)
def test_every_config_of_every_plan_is_accepted(dataset: DatasetName, length: Length) -> None:
    plan = make_plan(dataset, length)
    for step, config in [*plan.shared(), *plan.seeded("imagenet" if plan.pretrained else None)]:
        checked = check_config(step, config)
        assert check_config(step, checked.model_dump(mode="json")) == checked


def test_what_is_published_is_what_its_results_give() -> None:
    folder = Path(__file__).parent / "benchmarks"
    assert (folder / "RESULTS.md").read_text(encoding="utf-8") == write_results(folder)
    for dataset in DATASETS:
        if (folder / f"results-{dataset}.json").is_file():
            results = read_results((folder / f"results-{dataset}.json").read_bytes(), source=dataset)
            assert (results["dataset"], results["length"] != "quick") == (dataset, True)
            for name, _, now in changes(dataset, results["length"]):  # the table is of the plan as it is now
                done = results["configs"]
                for part in name.split("."):
                    done = done[part]
                assert done == (list(now) if isinstance(now, tuple) else now), f"{dataset}: {name}"


def test_the_readme_tells_what_was_measured() -> None:
    root = Path(__file__).parent.parent
    readme = (root / "README.md").read_text(encoding="utf-8")
    for dataset in DATASETS:
        path = root / "tests" / "benchmarks" / f"results-{dataset}.json"
        results = read_results(path.read_bytes(), source=dataset)
        corrected, found = results["seeds"], all_seeds(results)
        scenarios = sorted({seed["scenarios"] for seed in found})
        name = PAPER[dataset].title + (f", {len(found)} seeds" if len(found) > 1 else "")
        row = [
            name, f"{scenarios[0]}–{scenarios[-1]}" if len(scenarios) > 1 else str(scenarios[0]),
            ", ".join(str(seed["failure_regions"]) for seed in found),
            *(
                over_seeds([seed[model]["region"] for seed in corrected])
                for model in ("before", "baseline", "defuse")
            ),
            " → ".join(over_seeds([s[model]["test"] for s in corrected]) for model in ("before", "defuse")),
        ]  # fmt: skip
        assert f"| {' | '.join(row)} |" in readme


def test_notes_are_told_before_there_are_results(tmp_path: Path) -> None:
    (tmp_path / "notes-svhn.md").write_text("Only the generator is made.\n")
    text = write_results(tmp_path)
    assert "Not measured yet: `defuse reproduce svhn`.\n\nOnly the generator is made.\n" in text
    assert text.count("Not measured yet") == 4
