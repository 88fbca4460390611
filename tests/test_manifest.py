"""What a manifest says of a run, and what is refused of one that a stranger wrote."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from defuse_core.base.checkpoints import dump_tensors
from defuse_core.base.limits import MAX_MANIFEST_BYTES
from defuse_core.cli.replay import furthest_run
from defuse_core.exchange.replay.relabeling import store_log
from defuse_core.workspace.database import WorkspaceError
from defuse_core.workspace.edits import Gaussian, RegionEdit
from defuse_core.workspace.labels import LabelEvent
from defuse_core.workspace.manifest.models import Answer, Edit, Log, UndoneEdit
from defuse_core.workspace.manifest.reading import ManifestError, parse_manifest, read_manifest
from defuse_core.workspace.manifest.writing import make_manifest, read_log, tensors_digest
from defuse_core.workspace.runs import Run
from defuse_core.workspace.workspace import Workspace
from tests.in_process import add_run, begin, store_run
from tests.workspaces import ONE_THREAD, SWEEP, Place, copy_place

SMALL = {**SWEEP, "correction": {**SWEEP["correction"], "lambdas": [0.1, 1.0], "epochs": 1}}


@pytest.fixture(scope="module")
def corrected(corrected_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """A workspace that is corrected; read it only."""
    return copy_place(corrected_template, tmp_path_factory.mktemp("manifest") / "home")


@pytest.fixture(scope="module")
def whole(corrected: Place) -> dict[str, Any]:
    """The manifest of the correction."""
    return make_manifest(corrected.workspace, newest(corrected, "correct").id)


def newest(place: Place, step: str) -> Run:
    return place.workspace.runs.of_project(place.project.id, step)[-1]


def test_it_says_what_the_workspace_says(corrected: Place, whole: dict[str, Any]) -> None:
    workspace = corrected.workspace
    assert json.loads(json.dumps(whole, allow_nan=False)) == whole
    left_out = dict.fromkeys(("validation", "fit", "leave_out"))
    assert whole["dataset"] == {**left_out, **corrected.project.dataset}
    assert whole["versions"]["torch"] == torch.__version__.partition("+")[0]
    steps = [run["step"] for run in whole["runs"]]
    assert steps == ["classifier", "vae", "identify", "distill", "correct"]
    for made in whole["runs"]:
        run = newest(corrected, made["step"])
        assert (made["number"], made["seed"], made["config"]) == (run.id, run.seed, run.config)
        assert made["summary"] == run.summary
        assert [whole["runs"][i]["number"] for i in made["stands_on"]] == list(run.upstream)
        sums = {file["name"]: file["sha256"] for file in made["files"]}
        assert sums == {name: a.sha256 for name, a in workspace.runs.artifacts(run.id).items()}
        assert made["found"]["threads"] == ONE_THREAD.threads
    (log,) = whole["logs"]
    assert whole["runs"][log["regions"]]["step"] == "distill"
    answers = workspace.annotations.events(newest(corrected, "distill").id)
    assert [entry["label"] for entry in log["entries"]] == [event.label for event in answers]
    assert "address" not in json.dumps(whole["runs"])


def test_a_file_is_read_as_it_was_written(whole: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(whole))
    read = read_manifest(path)
    again = read.model_dump(mode="json", exclude={"logs"})
    assert again == {name: value for name, value in whole.items() if name != "logs"}
    assert len(read.logs[0].entries) == len(whole["logs"][0]["entries"])


def test_answers_after_a_correction_are_left_out(place: Place) -> None:
    regions = newest(place, "distill")
    run = add_run(place, "correct", {"last_annotation": 3})
    begin(place, run)
    place.workspace.runs.fix_labels(run.id, 3)
    place.workspace.runs.finish(run.id, "done", summary={})
    assert place.workspace.annotations.last_id(regions.id) > 3
    made = make_manifest(place.workspace, run.id)
    assert len(made["logs"][0]["entries"]) == 3
    assert made["runs"][-1]["config"]["last_annotation"] is None  # a number of this workspace


def test_a_log_is_stored_again_with_undos_and_edits(place: Place, tmp_path: Path) -> None:
    workspace, regions = place.workspace, newest(place, "distill")
    annotations = workspace.annotations
    annotations.append(regions.id, [LabelEvent(0, "Grace", None, 2, tau=1.5, seed=7, seconds=2.5, key="k")])
    taken_back = annotations.undo(regions.id, "Grace")
    first, second = (region["region_id"] for region in regions.summary["regions"][:2])
    annotations.edit(regions.id, RegionEdit("rename", (first,), name="slanted", by="Grace"))
    merged = Gaussian(99, 0.5, (0.0,) * 4, tuple(tuple(float(i == j) for j in range(4)) for i in range(4)))
    annotations.edit(regions.id, RegionEdit("merge", (first, second), (merged,), by="Grace"))
    annotations.undo_edit(regions.id)
    entries, ids = read_log(workspace, regions.id)
    log = Log(regions=3, entries=tuple(entries))
    assert [type(entry) for entry in log.entries[-5:]] == [Answer, Answer, Edit, Edit, UndoneEdit]
    assert log.entries[-4].undoes == ids.index(taken_back.id)

    other = copy_place(place.workspace.home, tmp_path / "other")
    fresh = store_run(other, "distill", regions.summary)
    last = store_log(other.workspace, fresh.id, log)
    assert last == other.workspace.annotations.last_id(fresh.id)
    stored = Log(regions=3, entries=tuple(read_log(other.workspace, fresh.id)[0]))
    for was, now in zip(log.entries, stored.entries, strict=True):
        assert now.model_dump(exclude={"at"}) == was.model_dump(exclude={"at"})
    assert [e.label for e in other.workspace.annotations.counting(fresh.id)] == [
        e.label for e in annotations.counting(regions.id)
    ]
    assert [(e.kind, e.undone) for e in other.workspace.annotations.edits(fresh.id)] == [
        ("rename", False), ("merge", True),
    ]  # fmt: skip

    assert store_log(other.workspace, fresh.id, log) == last  # again: nothing is added
    assert other.workspace.annotations.last_id(fresh.id) == last
    other.workspace.annotations.append(fresh.id, [LabelEvent(0, "Eve", 1, 0)])
    assert store_log(other.workspace, fresh.id, log) == last  # later ones do not count
    with pytest.raises(WorkspaceError, match="that the manifest does not have; give another --name"):
        store_log(other.workspace, regions.id, log.model_copy(update={"entries": log.entries[5:]}))


def test_a_second_round_brings_the_first_along(place: Place) -> None:
    first = store_run(place, "correct", {"failures": 1})
    classifier = store_run(place, "classifier", {}, {"weights": f"corrected:{first.id}"})
    store_run(place, "vae", {})
    for step in ("identify", "distill", "correct"):
        last = store_run(place, step, {})
    made = make_manifest(place.workspace, last.id)
    steps = [(run["step"], sorted(run["stands_on"]), run["starts_from"]) for run in made["runs"]]
    assert sorted(steps[:2]) == [("classifier", [], None), ("vae", [], None)]
    vae = steps.index(("vae", [], None))
    assert steps[2:] == [
        ("identify", [0, 1], None), ("distill", [2], None), ("correct", [3], None), ("classifier", [], 4),
        ("identify", [vae, 5], None), ("distill", [6], None), ("correct", [7], None),
    ]  # fmt: skip
    assert made["runs"][5]["number"] == classifier.id
    assert made["runs"][5]["config"]["weights"] is None
    assert [log["regions"] for log in made["logs"]] == [3, 7]
    parse_manifest(made)


def test_only_what_is_done_is_written_down(place: Place) -> None:
    mapped = store_run(place, "map", {})
    with pytest.raises(WorkspaceError, match=f"run {mapped.id} is of step map; a manifest is of annotators"):
        make_manifest(place.workspace, mapped.id)
    run = add_run(place, "correct")
    open_one = make_manifest(place.workspace, run.id)["runs"][-1]
    assert (open_one["done"], open_one["files"], open_one["summary"]) == (False, [], {})
    place.workspace.runs.finish(run.id, "failed", error="no")
    with pytest.raises(WorkspaceError, match=f"is failed; resume it: defuse resume {run.id}"):
        make_manifest(place.workspace, run.id)


def test_annotators_are_written_down_where_they_were_asked_again(place: Place) -> None:
    workspace = place.workspace
    alone = store_run(place, "annotators", {"accuracy": {}}, {"more_data": "torchvision:SVHN-extra"})
    assert furthest_run(workspace, place.project).step == "distill"  # they are no result of the method
    answered = store_run(place, "annotate", {})
    assert alone.id in answered.upstream
    correct = store_run(place, "correct", {})
    assert "annotators" not in {run["step"] for run in make_manifest(workspace, correct.id)["runs"]}
    assert [run["step"] for run in make_manifest(workspace, alone.id)["runs"]] == ["annotators"]
    made = make_manifest(workspace, store_run(place, "evaluate", {}).id)
    by_step = {run["step"]: number for number, run in enumerate(made["runs"])}
    assert list(by_step)[-1] == "evaluate"
    assert set(made["runs"][-1]["stands_on"]) == {by_step["correct"], by_step["annotators"]}
    told = made["runs"][by_step["annotators"]]
    assert (told["number"], told["config"]) == (alone.id, alone.config)
    parse_manifest(made)
    reported = make_manifest(workspace, store_run(place, "report", {}).id)
    assert [run["step"] for run in reported["runs"]] == [*by_step, "report"]
    parse_manifest(reported)

    last, number = len(made["runs"]) - 1, by_step["annotators"]
    for stands_on in ([number], [by_step["correct"], number, number], [by_step["distill"], number]):
        with pytest.raises(ManifestError, match=rf"run {last} \(evaluate\) stands on"):
            parse_manifest(put(made, f"runs.{last}.stands_on", stands_on))
    mapped = put(made, f"runs.{by_step['distill']}.stands_on", [by_step["identify"], 0])
    with pytest.raises(ManifestError, match=r"\(distill\) stands on identify, "):
        parse_manifest(mapped)


def test_uploads_that_training_began_with_are_listed(place: Place) -> None:
    blobs = [place.workspace.add_blob(place.project.id, name, [name.encode()]) for name in ("a", "b", "c")]
    store_run(place, "classifier", {}, {"pretrained": f"blob:{blobs[0].sha256}"})
    store_run(place, "vae", {}, {"weights": f"blob:{blobs[1].sha256}"})
    made = make_manifest(place.workspace, store_run(place, "identify", {}).id)
    assert [(u["name"], u["sha256"]) for u in made["uploads"]] == [(b.name, b.sha256) for b in blobs[:2]]
    parse_manifest(made)


def test_the_furthest_run_is_the_newest_that_is_not_stale(place: Place) -> None:
    old = store_run(place, "correct", {})
    assert furthest_run(place.workspace, place.project).id == old.id
    regions = store_run(place, "distill", {})  # the correction stands on regions that were redone
    assert furthest_run(place.workspace, place.project).id == regions.id


def test_an_empty_project_has_no_manifest(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path / "home")
    project = workspace.create_project("empty", dataset={"source": "digits", "class_names": ["a"]})
    with pytest.raises(WorkspaceError, match="project 'empty' has no run that is done"):
        furthest_run(workspace, project)


def test_a_digest_of_tensors_does_not_depend_on_the_order_of_metadata(tmp_path: Path) -> None:
    tensors, metadata = {"a": torch.arange(3), "b": torch.ones(2, 2)}, {str(i): i for i in range(8)}
    shuffled = dict(reversed(metadata.items()))
    contents = {dump_tensors(tensors, metadata=m) for m in [metadata, shuffled] * 8}
    digests = set()
    for content in contents:
        (tmp_path / "file").write_bytes(content)
        digests.add(tensors_digest(tmp_path / "file"))
    assert len(digests) == 1
    (tmp_path / "file").write_bytes(dump_tensors(tensors, metadata={**metadata, "seconds": 1.5}))
    assert tensors_digest(tmp_path / "file") in digests  # times are not compared
    others = (
        dump_tensors({**tensors, "a": torch.tensor([0, 1, 3])}, metadata=metadata),
        dump_tensors(tensors, metadata={**metadata, "1": 2}),
        safetensors.torch.save({"c": torch.arange(3)}),
    )
    for content in others:
        (tmp_path / "file").write_bytes(content)
        assert tensors_digest(tmp_path / "file") not in digests
    for content in (b"", b"\xff" * 8, b"\x02" + b"\0" * 7 + b"[", b"\xff" * 100):
        (tmp_path / "file").write_bytes(content)
        assert tensors_digest(tmp_path / "file") is None


def put(made: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """The same manifest with another value at a path such as runs.0.seed."""
    changed = copy.deepcopy(made)
    place: Any = changed
    *outer, last = path.split(".")
    for part in outer:
        place = place[int(part) if isinstance(place, list) else part]
    place[int(last) if isinstance(place, list) else last] = value
    return changed


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("version", 2, "has version 2, this Defuse reads 1; upgrade"),
        ("format", "zip", "is no manifest of Defuse"),
        ("project", "a\x1b[2J", r"has control characters in 'a\\x1b\[2J', which a terminal would obey"),
        ("runs.0.summary", {"\x9b2J": 1}, "has control characters"),
        ("runs", [], "runs: Tuple should have at least 1 item"),
        ("runs.0.seed", -1, "runs.0.seed: Input should be greater than or equal to 0"),
        ("runs.0.step", "probe", "runs.0.step: Input should be 'annotators', 'classifier', 'vae'"),
        ("runs.0.extra", 1, "runs.0.extra: Extra inputs are not permitted"),
        ("runs.2.config.noise_a", -1, "identify: noise_a should be greater than 0, got -1"),
        ("runs.2.stands_on", [0], r"run 2 \(identify\) stands on classifier"),
        ("runs.2.stands_on", [0, 3], "run 2 stands on 3, which does not come before it"),
        ("runs.0.starts_from", 0, "run 0 stands on 0, which does not come before it"),
        ("runs.1.starts_from", 0, "run 1 starts from 0, which is no correction"),
        ("runs.0.config.weights", "corrected:1", "run 0 names a run or an answer by a number of another"),
        ("runs.0.config.weights", "blob:" + "a" * 64, "run 0 takes the upload aaaaaaaaaaaa…, which is not"),
        (
            "runs.0.config.pretrained",
            "blob:" + "b" * 64,
            "run 0 takes the upload bbbbbbbbbbbb…, which",
        ),
        (
            "runs.0.config.pretrained",
            "/etc/passwd",
            "classifier: pretrained must be imagenet or blob:",
        ),
        ("dataset.validation", 1.0, "validation.*: Input should be less than 1"),
        ("runs.4.config.last_annotation", 3, "run 4 names a run or an answer by a number of another"),
        ("runs.0.files.0.sha256", "../../etc", "sha256: String should match"),
        ("runs.0.seconds", 1e308, "runs.0.seconds: Input should be less than or equal to 3"),
        ("runs.0.resources.threads", 10**8, "threads: Input should be less than or equal to 4096"),
        ("runs.0.found.threads", 10**8, "threads: Input should be less than or equal to 4096"),
        ("dataset.image_size", 10**8, "image_size: Input should be less than or equal to 4096"),
        ("made_at", 1e308, "made_at: Input should be less than or equal to 3"),
        ("logs", [], "every correction needs the log of its regions"),
        ("logs.0.regions", 2, "every correction needs the log of its regions"),
        ("logs.0.entries.0.label", 3, "an answer of 3 classes: label must be in 0 … 2, got 3"),
        ("logs.0.entries.0.undoes", 5, "entry 0 undoes 5, which is no such entry before it"),
        ("logs.0.entries.0.n_samples", 10**9, "n_samples must be at least 1 and at most 10,000, got"),
        ("logs.0.entries.0.tau", -1.0, "tau must be above 0 and at most 100, got -1"),
        ("logs.0.entries.0.sample_id", -5, "sample must be in 0 … 9, got -5"),
        ("logs.0.entries.0.annotator", " ", "annotator must be named"),
        ("logs.0.entries.0", {"kind": "edit", "edit": "merge"}, "this one does neither"),
        ("logs.0.entries.0", {"kind": "edit", "edit": "rename", "regions": [1, 2]}, "rename is about one"),
        ("dataset.class_names", ["a", "b", "a"], "dataset: classes 0 and 2 are both called 'a'"),
        ("dataset.fingerprint", "0", "dataset.fingerprint: String should match"),
    ],
)
def test_what_is_malformed_is_refused_in_words(
    whole: dict[str, Any], path: str, value: Any, told: str
) -> None:
    with pytest.raises(ManifestError, match=told):
        parse_manifest(put(whole, path, value))


@given(
    st.recursive(st.none() | st.integers() | st.text(), lambda s: st.lists(s) | st.dictionaries(st.text(), s))
)
def test_garbage_is_refused(told: Any) -> None:
    for given_ in (told, {"format": "defuse-manifest", "version": 1, "runs": told}):
        with pytest.raises(ManifestError):
            parse_manifest(given_)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "is no JSON"),
        (b"\xff\xfe", "is no JSON"),
        (b"[" * 100_000, "is no JSON"),
        (b'{"format": "defuse-manifest", "version": 1' + b"0" * 10_000 + b"}", "is no JSON"),
        (b"[]", "is no manifest of Defuse; write one with: defuse manifest"),
        (b" " * (MAX_MANIFEST_BYTES + 1), "is over 16 MB, too large for a manifest"),
    ],
    ids=["empty", "binary", "deep", "long number", "list", "large"],
)
def test_files_that_are_no_manifest(content: bytes, told: str, tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_bytes(content)
    with pytest.raises(ManifestError, match=told):
        read_manifest(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"none\.json does not exist; check the path"):
        read_manifest(tmp_path / "none.json")
