"""The step `annotators`: what is trained, what it is scored by, and who takes it in."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest
from torch import Tensor

from defuse_core.base.checkpoints import load_tensors
from defuse_core.data.sources import load_digits
from defuse_core.data.splits import Split, as_bytes
from defuse_core.exchange.replay.bringing import Bring
from defuse_core.exchange.replay.comparison import compare
from defuse_core.exchange.replay.replay import replay
from defuse_core.extensions.shipped import ANNOTATORS, load_annotators
from defuse_core.jobs import runner
from defuse_core.method.classifier import Classifier, Preprocessing, classifier_epochs
from defuse_core.method.labeling import draw_images
from defuse_core.method.vae import decode_images
from defuse_core.networks.architectures import build_network
from defuse_core.steps import annotators, load_step
from defuse_core.steps.annotators import NONE, TrainAnnotators, find_annotators, vote
from defuse_core.steps.base import File, Point
from defuse_core.steps.source import Source
from defuse_core.workspace.database import WorkspaceError
from defuse_core.workspace.labels import SINGLE_MISTAKES
from defuse_core.workspace.manifest.reading import parse_manifest
from defuse_core.workspace.manifest.writing import make_manifest
from defuse_core.workspace.runs import Run
from tests.conftest import bars
from tests.in_process import add_run, compute_here, done_here, fresh_place, run_here, runs_in_this_process
from tests.test_manifest import SMALL, put
from tests.test_replay import stay
from tests.workspaces import SEARCH, Place, copy_place

EPOCH: dict[str, Any] = {"epochs": 1, "batch_size": 32, "learning_rate": 0.05, "precision": "fp32"}
"""Enough to be right more often than not, too little to be right always."""
THRESHOLD = 0.5
"""Under which an annotator says none of the above."""


def coloured(n: int, seed: int) -> Split:
    """Bars in three channels, the brightest of which says nothing of the class."""
    grey = bars(n, seed)
    shade = torch.rand(n, 3, 1, 1, generator=torch.Generator().manual_seed(seed)) * 0.5 + 0.5
    return Split((grey.images * shade).to(torch.uint8), grey.labels)


def save(path: Path, **parts: Split) -> Path:
    """Write splits as a user would bring them: train, test, val."""
    arrays = {}
    for part, split in parts.items():
        arrays |= {f"x_{part}": split.images.permute(0, 2, 3, 1).numpy(), f"y_{part}": split.labels.numpy()}
    np.savez(path, **arrays)
    return path


PARTS = {"train": coloured(180, 0), "test": coloured(90, 1), "val": coloured(48, 2)}


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A project of coloured bars; tests add runs to it."""
    folder = tmp_path_factory.mktemp("annotators")
    return fresh_place(folder / "home", save(folder / "coloured.npz", **PARTS))


@pytest.fixture(scope="module")
def trained(there: Place) -> Run:
    return done_here(there, "annotators", {"training": EPOCH}, seed=3)


def rebuilt(place: Place, run: Run, name: str) -> Classifier:
    """An annotator from what is stored, by its card of metadata."""
    tensors, told = load_tensors(place.workspace.artifact_path(run.id, f"{name}.safetensors"))
    preprocessing = Preprocessing.of_json(told["preprocessing"])
    network = build_network(
        told["architecture"], n_classes=told["n_classes"], channels=len(preprocessing.mean)
    )
    network.load_state_dict(tensors)
    return Classifier(network, preprocessing).eval()


def shares(annotator: Classifier, images: Tensor) -> list[list[float]]:
    """Probabilities of the classes by one plain forward pass."""
    with torch.inference_mode():
        return torch.nn.functional.softmax(annotator(images), dim=1).tolist()


def best(annotator: Classifier, images: Tensor) -> list[int]:
    """The likeliest class of each image."""
    return [row.index(max(row)) for row in shares(annotator, images)]


def says(annotator: Classifier, images: Tensor) -> list[int | None]:
    """The same, and None where it is not likely enough."""
    return [row.index(max(row)) if max(row) >= THRESHOLD else None for row in shares(annotator, images)]


def counted(votes: Sequence[int | None]) -> int | None:
    """The most frequent answer, counted by hand; None where two are."""
    counts = {answer: sum(other == answer for other in votes) for answer in votes}
    most = [answer for answer, count in counts.items() if count == max(counts.values())]
    return most[0] if len(most) == 1 else None


def wilson(hits: int, n: int) -> list[Any]:
    interval = binomtest(hits, n).proportion_ci(method="wilson")
    return [hits / n, pytest.approx(interval.low), pytest.approx(interval.high), n]


def test_scores_are_those_of_the_stored_weights(there: Place, trained: Run) -> None:
    labels = PARTS["test"].labels.tolist()
    said = {}
    assert trained.summary["accuracy"].keys() == ANNOTATORS.keys()
    for name in ANNOTATORS:
        annotator = rebuilt(there, trained, name)
        said[name] = best(annotator, PARTS["test"].images)
        hits = sum(answer == label for answer, label in zip(said[name], labels, strict=True))
        assert trained.summary["intervals"][name] == wilson(hits, 90), name
        assert trained.summary["accuracy"][name] == hits / 90
        stored = there.tensors(trained)[f"{name}.said.safetensors"]
        unsure = [
            NONE if answer is None else answer for answer in says(annotator, PARTS["test"].images)
        ]  # fmt: skip
        assert (stored["predictions"].tolist(), stored["answers"].tolist()) == (said[name], unsure)
        assert stored["labels"].tolist() == labels
    assert max(trained.summary["accuracy"].values()) > 0.5  # they have learnt something
    assert len({tuple(answers) for answers in said.values()}) > 1  # and not all the same


def test_the_majority_is_counted_image_by_image(there: Place, trained: Run) -> None:
    labels = PARTS["test"].labels.tolist()
    said = [says(rebuilt(there, trained, name), PARTS["test"].images) for name in ANNOTATORS]
    voted = [counted(votes) for votes in zip(*said, strict=True)]
    hits = sum(answer == label for answer, label in zip(voted, labels, strict=True))
    assert trained.summary["majority"] == wilson(hits, 90)
    assert trained.summary["none_of_the_above"] == pytest.approx(voted.count(None) / 90)


@given(st.lists(st.lists(st.integers(NONE, 3), min_size=5, max_size=5), min_size=1, max_size=8))
def test_a_vote_is_that_of_the_most(rows: list[list[int]]) -> None:
    answers = {str(i): torch.tensor(column) for i, column in enumerate(zip(*rows, strict=True))}
    for row, found in zip(rows, vote(answers).tolist(), strict=True):
        (label, most), *others = Counter(row).most_common()
        tied = bool(others) and others[0][1] == most
        assert found == (NONE if tied else label)


def test_they_are_trained_on_what_is_no_test_image(there: Place, trained: Run, tmp_path: Path) -> None:
    assert trained.summary["trained_on"] == 180 + 48
    seen = torch.cat([PARTS["train"].images, PARTS["val"].images]).double() / 255
    for name, (architecture, _) in ANNOTATORS.items():
        told = load_tensors(there.workspace.artifact_path(trained.id, f"{name}.safetensors"))[1]
        assert (told["architecture"], told["n_classes"]) == (architecture, 3)
        assert told["preprocessing"]["mean"] == pytest.approx(seen.mean((0, 2, 3)).tolist(), abs=1e-4)
        assert told["preprocessing"]["std"] == pytest.approx(seen.std((0, 2, 3)).tolist(), abs=1e-3)
    path = save(tmp_path / "other.npz", **PARTS | {"test": coloured(30, 9)})
    other = fresh_place(tmp_path / "home", path)
    run = done_here(other, "annotators", {"training": EPOCH}, seed=3)
    assert run.summary["majority"][3] == 30
    for name in ANNOTATORS:
        assert_equal(other.tensors(run)[f"{name}.safetensors"], there.tensors(trained)[f"{name}.safetensors"])


def assert_equal(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_every_seed_gives_others(there: Place, trained: Run) -> None:
    other = done_here(there, "annotators", {"training": EPOCH}, seed=4)
    found, before = (there.tensors(run) for run in (other, trained))
    for name in ANNOTATORS:
        weights = (tensors[f"{name}.safetensors"] for tensors in (found, before))
        assert any(not torch.equal(*pair) for pair in zip(*(w.values() for w in weights), strict=True))


def first_epoch(step: TrainAnnotators, task: str) -> None:
    """Train up to the first point, then end as a process that is killed."""
    items = step.run(task)
    while not isinstance(next(items), Point):
        pass
    items.close()  # type: ignore[attr-defined]


def test_a_training_that_was_stopped_goes_on_as_if_it_had_not_been(there: Place, tmp_path: Path) -> None:
    config = {"training": {**EPOCH, "epochs": 2}}
    run = done_here(there, "annotators", config, seed=5)
    task = "annotator-mobile_small"
    for again in range(2):
        step = load_step(there.workspace, run.id)
        assert isinstance(step, TrainAnnotators)
        step.work = tmp_path
        if not again:
            first_epoch(step, task)
            continue
        items = list(step.run(task))
    points = [item.key for item in items if isinstance(item, Point)]
    assert len(points) == 1  # the second epoch alone
    files = {item.name: item.content for item in items if isinstance(item, File)}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        assert_equal(load_tensors(tmp_path / name)[0], there.tensors(run)[name])
    assert files.keys() == {f"{task}.safetensors", f"{task}.said.safetensors"}


def test_a_run_that_was_stopped_trains_only_those_that_are_missing(
    there: Place, trained: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    names, begun = list(ANNOTATORS), []

    def until(n: int) -> Any:
        def stopping(*args: Any, **options: Any) -> Iterator[Any]:
            if len(begun) == n:
                raise OSError("no space left")
            begun.append(args[0].network)
            return classifier_epochs(*args, **options)

        return stopping

    monkeypatch.setattr(annotators, "classifier_epochs", until(2))
    run = run_here(there, "annotators", {"training": EPOCH}, seed=3)
    assert run.status == "failed"
    assert set(there.workspace.runs.artifacts(run.id)) == {
        f"{name}{end}.safetensors" for name in names[:2] for end in ("", ".said")
    }
    monkeypatch.setattr(annotators, "classifier_epochs", until(5))
    compute_here(there.workspace, there.workspace.runs.requeue(run.id))
    assert len(begun) == 5
    assert there.get(run).summary == trained.summary
    found, expected = there.tensors(run), there.tensors(trained)
    assert found.keys() == expected.keys()
    for name, tensors in expected.items():
        assert_equal(found[name], tensors)


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("asked", ["none", "affine", "elastic"])
def test_each_has_an_augmentation_of_its_own_or_all_have_the_one_that_is_asked_for(
    there: Place, trained: Run, monkeypatch: pytest.MonkeyPatch, asked: str, own: bool
) -> None:
    step = load_step(there.workspace, trained.id)
    assert isinstance(step, TrainAnnotators)
    step.config = step.config.model_copy(
        update={
            "training": step.config.training.model_copy(update={"augmentation": asked}),
            "own_augmentation": own,
        }
    )
    given_: dict[str, Any] = {}

    def classifier_epochs(annotator: Classifier, *_: Any, config: Any, **__: Any) -> Iterator[Any]:
        given_[type(annotator.network).__name__ + str(len(given_))] = config
        return iter(())

    monkeypatch.setattr(annotators, "classifier_epochs", classifier_epochs)
    for task in step.tasks():
        list(step.run(task))
    each = [training.augmentation for _, training in ANNOTATORS.values()]
    expected = each if own and asked != "none" else [asked] * 5
    assert [config.augmentation for config in given_.values()] == expected
    assert {config.epochs for config in given_.values()} == {1}
    assert len(set(each)) == 2


# More data


def test_more_data_are_trained_on_and_not_tested_on(there: Place, trained: Run, tmp_path: Path) -> None:
    more = save(tmp_path / "more.npz", train=coloured(60, 7), test=coloured(33, 8))
    run = done_here(there, "annotators", {"training": EPOCH, "more_data": str(more)}, seed=3)
    assert run.summary["trained_on"] == 180 + 48 + 60
    assert run.summary["majority"][3] == 90
    weights = (there.tensors(each)["annotator-vgg_small.safetensors"] for each in (run, trained))
    assert any(not torch.equal(*pair) for pair in zip(*(w.values() for w in weights), strict=True))


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (
            {"train": bars(60, 7), "test": bars(30, 8)},
            "has (1, 8, 8) in 3; give data of the same kind",
        ),
        (
            {part: Split(s.images[..., :6, :6], s.labels) for part, s in PARTS.items()},
            "has (3, 6, 6) in 3; give",
        ),
        ({part: Split(s.images, s.labels % 2) for part, s in PARTS.items()}, "has (3, 8, 8) in 2; give"),
        (None, "is not a data set; give"),
    ],
    ids=["grey", "smaller", "two classes", "absent"],
)
def test_more_data_of_another_kind_are_refused(
    there: Place, tmp_path: Path, more: dict[str, Split] | None, told: str
) -> None:
    path = tmp_path / "none" if more is None else save(tmp_path / "more.npz", **more)
    run = run_here(there, "annotators", {"training": EPOCH, "more_data": str(path)})
    assert run.status == "failed"
    assert told in str(run.error)
    assert str(path) in str(run.error)
    if more is not None:
        assert "more_data must have images of (3, 8, 8) in 3 classes" in str(run.error)


# The shipped ones


def test_the_shipped_ones_can_be_a_run(tmp_path: Path) -> None:
    digits = load_digits()
    train, test = digits.train[torch.arange(0, 4000, 100)], digits.test[torch.arange(0, 1000, 7)]
    place = fresh_place(tmp_path / "home", save(tmp_path / "few.npz", train=train, test=test))
    run = done_here(place, "annotators", {"shipped": True})
    files = place.tensors(run)
    for name, shipped in load_annotators().items():
        assert_equal(files[f"{name}.safetensors"], shipped.network.state_dict())
        answers = best(shipped, test.images)
        hits = sum(answer == label for answer, label in zip(answers, test.labels.tolist(), strict=True))
        assert run.summary["intervals"][name] == wilson(hits, len(test))
    assert run.summary["trained_on"] is None
    assert place.workspace.runs.events(run.id, kind="point") == []  # nothing was trained


def test_the_shipped_ones_know_digits_only(there: Place) -> None:
    run = run_here(there, "annotators", {"shipped": True})
    assert run.status == "failed"
    assert "the shipped simulated annotators know 28×28 digits only; train some with" in str(run.error)


# Who takes them in


@pytest.fixture(scope="module")
def voted(template: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Regions that nobody but annotators trained here has labelled, corrected and evaluated."""
    place = copy_place(template, tmp_path_factory.mktemp("voted") / "home")
    generator = place.workspace.artifact_path(newest(place, "vae").id, "vae.safetensors").read_bytes()
    blob = place.workspace.add_blob(place.project.id, "vae.safetensors", [generator])
    done_here(place, "vae", {"weights": f"blob:{blob.sha256}"})  # brought, so that no replay trains it
    done_here(place, "identify", {**SEARCH, "max_images": 320})
    done_here(place, "distill", {"n_components": 12}, seed=1)
    done_here(place, "annotators", {"training": {**EPOCH, "batch_size": 64}}, seed=2)
    done_here(place, "annotate", seed=4)
    done_here(place, "correct", SMALL)
    done_here(place, "evaluate", {"controls": False, "noise_images": 0})
    return place


def newest(place: Place, step: str) -> Run:
    return place.workspace.runs.of_project(place.project.id, step)[-1]


def test_the_trained_ones_label_the_regions(voted: Place) -> None:
    made, run, regions = (newest(voted, step) for step in ("annotators", "annotate", "distill"))
    assert set(run.upstream) == {made.id, regions.id}
    source = Source(voted.workspace, run.id)
    vae, mistakes = source.vae(), source.mistakes()
    events = voted.workspace.annotations.events(regions.id)
    assert {event.annotator for event in events} == ANNOTATORS.keys()
    for name in ANNOTATORS:
        annotator, mine = rebuilt(voted, made, name), [e for e in events if e.annotator == name]
        for region in source.regions():
            told = {e.sample_id: e.label for e in mine if e.region_id == region.region_id}
            images = draw_images(vae, region, 10, tau=0.5, seed=4)
            assert [told[i] for i in range(10)] == says(annotator, images), (name, region.region_id)
        single = [e for e in mine if e.region_id == SINGLE_MISTAKES]
        index = torch.tensor([e.sample_id for e in single])
        assert [e.label for e in single] == says(
            annotator, as_bytes(decode_images(vae, mistakes.latents[index]))
        )


def test_the_trained_ones_are_asked_of_the_draws_tested_on(voted: Place) -> None:
    made, run, corrected = (newest(voted, step) for step in ("annotators", "evaluate", "correct"))
    assert set(run.upstream) == {made.id, corrected.id}
    results = json.loads(voted.workspace.artifact_path(run.id, "results.json").read_text())
    failures = voted.tensors(corrected)["failures.safetensors"]
    said = [says(rebuilt(voted, made, name), failures["test.images"]) for name in ANNOTATORS]
    own = [counted(votes) for votes in zip(*said, strict=True)]
    same = sum(label == wanted for label, wanted in zip(own, failures["test.labels"].tolist(), strict=True))
    assert results["label_agreement"] == same / len(own)
    assert results["settings"]["annotators"] == made.config
    assert results["seeds"]["annotators"] == 2


def test_annotators_trained_again_make_what_stands_on_them_stale(voted: Place, tmp_path: Path) -> None:
    place = copy_place(voted.workspace.home, tmp_path / "home")
    assert not newest(place, "evaluate").stale
    done_here(place, "annotators", {"training": EPOCH}, seed=9)
    assert newest(place, "evaluate").stale
    assert newest(place, "annotate").stale


def test_labels_are_judged_by_those_who_gave_them(voted: Place, tmp_path: Path) -> None:
    place = copy_place(voted.workspace.home, tmp_path / "home")
    done_here(place, "annotators", {"training": EPOCH}, seed=9)
    again = done_here(place, "evaluate", {"controls": False, "noise_images": 0})
    was, now = (
        json.loads(place.workspace.artifact_path(run, "results.json").read_text())
        for run in (newest(voted, "evaluate").id, again.id)
    )
    assert now["label_agreement"] == was["label_agreement"]
    assert not newest(place, "distill").stale


def test_labels_are_judged_as_they_were_given(voted: Place, tmp_path: Path) -> None:
    """Who is asked again since, and answers every image, does not count; for a new correction they do."""
    place = copy_place(voted.workspace.home, tmp_path / "home")
    config = {"controls": False, "noise_images": 0}
    done_here(place, "annotate", {"min_probability": 0.0}, seed=4)

    def agreement(of: Place) -> float:
        path = of.workspace.artifact_path(newest(of, "evaluate").id, "results.json")
        return json.loads(path.read_text())["label_agreement"]

    done_here(place, "evaluate", config)
    assert newest(voted, "correct").id in newest(place, "evaluate").upstream
    assert agreement(place) == agreement(voted)
    done_here(place, "correct", SMALL)
    done_here(place, "evaluate", config)
    tested = place.tensors(newest(place, "correct"))["failures.safetensors"]
    trained = newest(place, "annotators")
    said = [best(rebuilt(place, trained, name), tested["test.images"]) for name in ANNOTATORS]
    own = [counted(votes) for votes in zip(*said, strict=True)]
    same = [label == wanted for label, wanted in zip(own, tested["test.labels"].tolist(), strict=True)]
    assert agreement(place) == sum(same) / len(same)


def test_those_that_were_cancelled_do_not_vote(there: Place, trained: Run) -> None:
    workspace, kept = there.workspace, list(ANNOTATORS)[1:4]
    run = add_run(there, "annotators", {"training": EPOCH}, seed=3)
    workspace.runs.hand_over(run.id, os.getpid())
    guard = runner.Guard(workspace, run.id)
    guard.cancelled = frozenset(ANNOTATORS.keys() - set(kept))
    merged, done = runner._compute(workspace, run, guard)
    assert merged is not None
    workspace.runs.finish(run.id, "done", summary=merged.summary)
    assert done == list(merged.summary["accuracy"]) == kept
    assert set(merged.summary["missing"]) == guard.cancelled
    said = [there.tensors(trained)[f"{name}.said.safetensors"]["answers"].tolist() for name in kept]
    voted = [counted(votes) for votes in zip(*said, strict=True)]
    hits = sum(answer == label for answer, label in zip(voted, PARTS["test"].labels.tolist(), strict=True))
    assert merged.summary["majority"] == wilson(hits, 90)
    found = find_annotators(Source(workspace, run.id))
    assert list(found) == kept
    for name, annotator in found.items():
        assert_equal(annotator.network.state_dict(), there.tensors(trained)[f"{name}.safetensors"])


# Made again from the manifest


def test_a_replay_trains_the_annotators_again(voted: Place, tmp_path: Path) -> None:
    place = copy_place(voted.workspace.home, tmp_path / "home")
    manifest = parse_manifest(make_manifest(voted.workspace, newest(voted, "evaluate").id))
    steps = ["annotators", "classifier", "correct", "distill", "evaluate", "identify", "vae"]
    assert sorted(run.step for run in manifest.runs) == steps
    with runs_in_this_process():
        found = replay(place.workspace, manifest, name="again", watch=stay)
    assert found.done
    compared = compare(place.workspace, manifest, found.runs)
    assert compared.same, [run for run in compared.runs if not run.same]
    by_step = {run.step: run for run in found.runs}
    assert set(by_step["evaluate"].upstream) == {by_step["annotators"].id, by_step["correct"].id}
    again, before = (
        json.loads(place.workspace.artifact_path(run.id, "results.json").read_text())
        for run in (by_step["evaluate"], newest(voted, "evaluate"))
    )
    assert again["label_agreement"] == before["label_agreement"] is not None


def test_a_replay_reads_more_data_from_where_the_user_says(there: Place, tmp_path: Path) -> None:
    more = save(tmp_path / "more.npz", train=coloured(60, 7), test=coloured(33, 8))
    run = done_here(there, "annotators", {"training": EPOCH, "more_data": str(more)}, seed=3)
    told = make_manifest(there.workspace, run.id)
    moved = parse_manifest(put(told, "runs.0.config.more_data", "/theirs/more.npz"))
    place = copy_place(there.workspace.home, tmp_path / "home")
    with runs_in_this_process():
        with pytest.raises(WorkspaceError, match=r"trained on /theirs/more\.npz, too, .* by --more-data"):
            replay(place.workspace, moved, name="again", watch=stay)
        assert [project.name for project in place.workspace.projects()] == ["fresh"]
        bring = Bring(more_data=str(more))
        found = replay(place.workspace, moved, name="again", watch=stay, bring=bring)
        assert compare(place.workspace, moved, found.runs).same
        assert found.runs[0].config["more_data"] == str(more)
        second = replay(place.workspace, moved, name="again", watch=stay, bring=bring)
        assert [each.id for each in second.runs] == [each.id for each in found.runs]
