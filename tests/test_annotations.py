"""Labels: never changed, never lost, and the same again after a spreadsheet."""

from __future__ import annotations

import csv
import io
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from defuse_core.base.limits import MAX_LABEL_FILE
from defuse_core.data.class_names import NONE_OF_THE_ABOVE, class_key
from defuse_core.workspace import label_files
from defuse_core.workspace.database import MIGRATIONS, WorkspaceError
from defuse_core.workspace.edits import STRUCTURAL, EditKind, Gaussian, RegionEdit, live_ids, newest_change
from defuse_core.workspace.label_files import (
    CSV_COLUMNS,
    decode_labels,
    from_csv,
    read_label_file,
    to_csv,
)
from defuse_core.workspace.label_rules import count_mistakes
from defuse_core.workspace.labels import (
    SINGLE_MISTAKES,
    Annotations,
    LabelEvent,
    Undo,
)
from defuse_core.workspace.runs import Resources, Run
from defuse_core.workspace.workspace import DATABASE, Workspace
from tests.properties import tried

CLASSES = ("cat", "dog", "bird")
REGIONS = (0, 1, 7)

LABELLER = """
import sys, time
from pathlib import Path
from defuse_core.workspace.labels import LabelEvent
from defuse_core.workspace.workspace import Workspace
annotations = Workspace(Path(sys.argv[1])).annotations
print("ready", flush=True)
sys.stdin.readline()
for number in range(500):
    event = LabelEvent(number // 10, sys.argv[2], number % 3, number % 10, seed=number)
    print(*annotations.append(1, [event]))
    time.sleep(0.001)  # else one is done before the other has waited for the first lock
"""


QUEUE = """
import sys
from pathlib import Path
from defuse_core.workspace.labels import LabelEvent, Undo
from defuse_core.workspace.workspace import Workspace
annotations = Workspace(Path(sys.argv[1])).annotations
queue = [e for n in range(60) for e in (LabelEvent(0, "ann", n, key=f"a{n}"), Undo(f"a{n - n % 2}", f"u{n}"))]
print("ready", flush=True)
sys.stdin.readline()
print(*[i for n in range(0, 120, 5) for i in annotations.append(1, queue[: n + 5])[-5:]])
"""
"""Sends a queue that grows, all of it again every time, as a browser does that was not answered."""


def made_in(folder: Path) -> Annotations:
    """Annotations of a workspace with two distill runs, numbers 1 and 2."""
    workspace = Workspace(folder, durable=False)
    for name in "ab":
        project = workspace.create_project(name, dataset={})
        workspace.runs.add(project.id, "distill", {}, seed=0, resources=Resources())
    return workspace.annotations


@pytest.fixture
def annotations(tmp_path: Path) -> Annotations:
    return made_in(tmp_path / "home")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Annotations:
    return made_in(tmp_path_factory.mktemp("shared"))


def in_processes(code: str, *arguments: Sequence[str]) -> list[list[int]]:
    """Run code once for each list of arguments, begun together; the numbers that each of them prints."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for words in arguments
    ]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    return [[int(word) for word in process.communicate()[0].split()] for process in processes]


def bare(events: Sequence[LabelEvent]) -> list[LabelEvent]:
    """Without what storing adds."""
    return [replace(event, id=0, at=0.0) for event in events]


# Events


def test_labels_come_back_as_they_were_in_the_order_of_storing(annotations: Annotations) -> None:
    events = [
        LabelEvent(7, "Ann", 2, 3, tau=0.1, seed=9, n_samples=64),
        LabelEvent(0, "日本", None),
        LabelEvent(SINGLE_MISTAKES, "Ann", 0, 12345),
    ]
    before = time.time()
    ids = annotations.append(1, iter(events[:2]))
    ids += annotations.append(1, events[2:])
    assert ids == sorted(set(ids))
    found = annotations.events(1)
    assert bare(found) == events
    assert [event.id for event in found] == ids
    assert all(before <= event.at <= time.time() for event in found)
    assert annotations.counting(1) == found
    assert annotations.last_id(1) == ids[-1]
    assert annotations.append(1, []) == []
    assert (annotations.events(2), annotations.last_id(2), annotations.last_id(99)) == ([], 0, 0)


@pytest.mark.parametrize(
    ("run_id", "bad", "told"),
    [
        (1, LabelEvent(0, "", 1), "annotator must be named; correct it"),
        (1, LabelEvent(0, " \t", 1), "annotator must be named; correct it"),
        (1, LabelEvent(0, "ann", -2), "label must be in 0 … 99999, got -2"),
        (1, LabelEvent(0, "ann", 1, 10), "sample must be in 0 … 9, got 10"),
        (1, LabelEvent(0, "ann", 1, n_samples=2**62), "n_samples must be at least 1 and at most 10,000"),
        (1, LabelEvent(0, "ann", 1, tau=1e308), "tau must be above 0 and at most 100"),
        (1, LabelEvent(0, "ann", 1, key="k" * 201), "key must have at most 200 characters, got 201"),
        (1, LabelEvent(0, "ann", 1, key="a\x1b[2J"), "key has control characters"),
        (1, LabelEvent(0, "ann", 1, round=1001), "round must be at least 1 and at most 1,000, got 1001"),
        (
            1,
            LabelEvent(0, "ann", 1, seconds=1e308),
            "seconds must be 0 or more and at most 10,000,000, got 1e",
        ),
        (1, LabelEvent(-1, "ann", 1), "sample must be the number of a mistake where region is -1, got none"),
        (99, LabelEvent(0, "ann", 1), "run 99 does not exist"),
        (1, LabelEvent(0, "ann", 1, undoes=12345), "does not exist"),
        (1, LabelEvent(0, "ann", 1, undoes=1), "undone already"),
    ],
)
def test_labels_are_stored_all_or_none(
    annotations: Annotations, run_id: int, bad: LabelEvent, told: str
) -> None:
    annotations.append(1, [LabelEvent(0, "ann", 0)])
    annotations.undo(1, "ann")
    before = annotations.events(1)
    with pytest.raises(WorkspaceError, match=told):
        annotations.append(run_id, [LabelEvent(1, "ann", 1), bad, LabelEvent(2, "ann", 1)])
    assert annotations.events(1) == before
    assert annotations.events(99) == []


def test_a_label_is_of_a_class_of_the_project(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path, durable=False)
    workspace.create_project("a", dataset={"class_names": ["cat", "dog"]})
    workspace.runs.add(1, "distill", {}, seed=0, resources=Resources())
    with pytest.raises(WorkspaceError, match="label must be in 0 … 1, got 2"):
        workspace.annotations.append(1, [LabelEvent(0, "ann", 1), LabelEvent(0, "ann", 2)])
    assert workspace.annotations.events(1) == []


@pytest.mark.parametrize(
    "beyond",
    [{"n_samples": 2**62}, {"n_samples": 0}, {"tau": 1e308}, {"tau": -1.0}, {"label": 99}, {"sample_id": -5}],
    ids=str,
)
def test_what_an_older_version_stored_beyond_the_limits_counts_no_longer(
    tmp_path: Path, beyond: dict[str, Any]
) -> None:
    workspace = Workspace(tmp_path, durable=False)
    workspace.create_project("a", dataset={"class_names": ["cat", "dog"]})
    workspace.runs.add(1, "distill", {}, seed=0, resources=Resources())
    good = LabelEvent(0, "ann", 1, 3)
    workspace.annotations.append(1, [good, LabelEvent(0, "ann", 0, 4), good])
    workspace.annotations.undo(1, "ann")
    with closing(sqlite3.connect(tmp_path / DATABASE)) as database, database:
        columns = ", ".join(f"{name} = ?" for name in beyond)
        database.execute(f"UPDATE annotations SET {columns} WHERE id = 2", [*beyond.values()])
    assert bare(workspace.annotations.counting(1)) == [good]
    assert [event.id for event in workspace.annotations.events(1)] == [1, 3, 4]


def test_the_later_of_two_answers_is_left_to_the_reader(annotations: Annotations) -> None:
    """Both are told, in order; what is undone gives way to the answer before it."""
    annotations.append(1, [LabelEvent(0, "ann", 0, 3), LabelEvent(0, "ann", 1, 3)])
    assert [event.label for event in annotations.counting(1)] == [0, 1]
    undone = annotations.undo(1, "ann")
    assert undone is not None
    assert undone.label == 1
    assert [event.label for event in annotations.counting(1)] == [0]


def test_an_undo_is_an_event_that_says_what_it_takes_back(annotations: Annotations) -> None:
    (first,) = annotations.append(1, [LabelEvent(4, "ann", 2, 5, tau=0.3, seed=8, n_samples=20)])
    undone = annotations.undo(1, "ann")
    answer, undo = annotations.events(1)
    assert undone == answer
    assert bare([undo]) == [replace(bare([answer])[0], undoes=first)]
    assert undo.id > answer.id
    assert annotations.last_id(1) == undo.id
    assert annotations.counting(1) == []
    assert annotations.undo(1, "ann") is None
    assert len(annotations.events(1)) == 2


def test_one_takes_back_only_ones_own_answers_about_the_same_run(annotations: Annotations) -> None:
    annotations.append(1, [LabelEvent(0, "ann", 0), LabelEvent(0, "bob", 1)])
    annotations.append(2, [LabelEvent(0, "ann", 2)])
    assert annotations.undo(1, "eve") is None
    undone = annotations.undo(1, "ann")
    assert undone is not None
    assert (undone.annotator, undone.label) == ("ann", 0)
    assert [event.annotator for event in annotations.counting(1)] == ["bob"]
    assert [event.annotator for event in annotations.counting(2)] == ["ann"]


@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["ann", "bob"]), st.lists(st.integers(0, 2), max_size=3) | st.none()),
        max_size=15,
    )
)
def test_answers_count_as_on_one_pile_an_annotator_now_and_at_every_time_before(
    shared: Annotations, steps: list[tuple[str, list[int] | None]]
) -> None:
    """Answers are laid on the annotator's pile, an undo takes the topmost; None stands for an undo."""
    while shared.undo(1, "ann") or shared.undo(1, "bob"):
        pass
    piles: dict[str, list[int]] = {"ann": [], "bob": []}
    then: list[tuple[int, list[int]]] = []
    for annotator, labels in steps:
        if labels is None:
            undone = shared.undo(1, annotator)
            assert (undone and undone.id) == (piles[annotator].pop() if piles[annotator] else None)
        else:
            piles[annotator] += shared.append(1, [LabelEvent(0, annotator, label) for label in labels])
        then.append((shared.last_id(1), sorted(piles["ann"] + piles["bob"])))
    for last, counting in then:
        assert [event.id for event in shared.counting(1, up_to=last)] == counting
        assert [event.id for event in shared.events(1, up_to=last)] == [
            event.id for event in shared.events(1) if event.id <= last
        ]
    assert shared.counting(1, up_to=0) == []


def test_a_thousand_labels_of_two_processes_are_all_kept_in_their_order(tmp_path: Path) -> None:
    annotations = made_in(tmp_path / "home")
    told = in_processes(LABELLER, *([str(tmp_path / "home"), annotator] for annotator in ("ann", "bob")))
    found = annotations.events(1)
    assert len(found) == 1000
    assert annotations.counting(1) == found
    for annotator, ids in zip(("ann", "bob"), told, strict=True):
        own = [event for event in found if event.annotator == annotator]
        assert [event.id for event in own] == ids
        assert bare(own) == [
            LabelEvent(n // 10, annotator, n % 3, n % 10, seed=n) for n in range(500)
        ]  # fmt: skip
    changes = sum(a.annotator != b.annotator for a, b in pairwise(found))
    assert changes > 100, "the processes never met"


# Keys


def test_an_event_with_a_key_is_stored_once_and_keeps_its_id(annotations: Annotations) -> None:
    queue = [LabelEvent(0, "ann", 1, 3, key="a"), LabelEvent(0, "ann", 2, 4, key="b", round=2, seconds=1.5)]
    ids = annotations.append(1, queue)
    assert annotations.append(1, [*queue, LabelEvent(0, "bob", 0, key="c"), queue[0]]) == [
        *ids, annotations.last_id(1), ids[0]
    ]  # fmt: skip
    assert bare(annotations.events(1)) == [*queue, LabelEvent(0, "bob", 0, key="c")]
    assert annotations.append(1, [LabelEvent(7, "eve", None, key="a")]) == ids[:1], "the key alone tells"
    assert len(annotations.append(2, queue)) == 2
    assert bare(annotations.events(2)) == queue, "of each run its own keys"


def test_a_file_that_is_imported_twice_adds_nothing(annotations: Annotations) -> None:
    file = [
        LabelEvent(0, "ann", 0, 1),
        LabelEvent(0, "ann", 1, 1),
        LabelEvent(0, "bob", None),
        LabelEvent(7, "ann", 0),
    ]
    assert [annotations.append_new(1, file) for _ in range(2)] == [4, 0]
    assert bare(annotations.counting(1)) == file
    annotations.append(1, [LabelEvent(7, "ann", 2)])  # changed since: the file says it again
    assert [annotations.append_new(1, file) for _ in range(2)] == [1, 0]
    again = [replace(file[-1], round=2), replace(file[-1], tau=0.1), replace(file[-1], annotator="bob")]
    assert [annotations.append_new(1, again) for _ in range(2)] == [3, 0]
    with pytest.raises(WorkspaceError, match="label must be"):
        annotations.append_new(1, [LabelEvent(1, "ann", 0), LabelEvent(1, "ann", -7)])
    assert len(annotations.counting(1)) == 9


def test_without_a_key_the_same_is_stored_again(annotations: Annotations) -> None:
    for key in (None, None, "", ""):
        annotations.append(1, [LabelEvent(0, "ann", 1, key=key)])
    assert bare(annotations.events(1)) == 4 * [LabelEvent(0, "ann", 1)]


def test_a_key_that_looks_like_the_name_of_another_event_is_refused(annotations: Annotations) -> None:
    (first,) = annotations.append(1, [LabelEvent(0, "ann", 1)])
    for bad in (LabelEvent(0, "ann", 2, key=f"id:{first}"), Undo("a", f"id:{first}")):
        with pytest.raises(WorkspaceError, match=f"must not begin with 'id:', got 'id:{first}'"):
            annotations.append(1, [LabelEvent(0, "ann", 0, key="b"), bad])
    assert [event.id for event in annotations.events(1)] == [first]


@pytest.mark.parametrize("key", ["a", None], ids=["by key", "by id"])
def test_an_undo_takes_back_the_event_of_that_name_once(annotations: Annotations, key: str | None) -> None:
    annotations.append(1, [LabelEvent(0, "ann", 1, key=key), LabelEvent(0, "bob", 2, key="other")])
    target, other = annotations.counting(1)
    assert target.name == (key or f"id:{target.id}")
    (undo,) = annotations.append(1, [Undo(target.name, "u")])
    assert annotations.counting(1) == [other]
    assert bare(annotations.events(1)[2:]) == [replace(bare([target])[0], undoes=target.id, key="u")]
    assert annotations.append(1, [Undo(target.name, "u")]) == [undo], "sent again"
    assert annotations.append(1, [Undo(target.name, "v")]) == [0], "undone already"
    assert len(annotations.events(1)) == 3


@pytest.mark.parametrize(
    "target", ["b", "id:1", "id:99", "id:", "id:x", "id:²", f"id:{10**30}", "u", "", "edit", "far", "id:5"]
)
def test_an_undo_of_what_is_not_there_is_nothing(annotations: Annotations, target: str) -> None:
    """Event 1 has a key and no other name, u is an undo, id:3 an edit, far and id:5 are of another run."""
    annotations.append(1, [LabelEvent(0, "ann", 1, key="a"), LabelEvent(0, "ann", 0)])
    annotations.edit(1, RegionEdit("rename", (0,), name="edit"))
    annotations.append(2, [LabelEvent(0, "ann", 1, key="far"), LabelEvent(0, "ann", 1)])
    annotations.append(1, [Undo("id:2", "u")])
    before, elsewhere = annotations.events(1), annotations.events(2)
    assert [e.id for e in before] + [e.id for e in elsewhere] == [1, 2, 6, 4, 5]
    assert annotations.append(1, [Undo(target, "w"), Undo("id:3", "x")]) == [0, 0]
    assert (annotations.events(1), annotations.events(2)) == (before, elsewhere)


def test_answers_and_undos_of_one_batch_are_stored_in_order(annotations: Annotations) -> None:
    first, second = (LabelEvent(0, "ann", n, 3, key=key) for n, key in ((1, "a"), (2, "b")))
    assert annotations.append(1, [first, Undo("a", "u"), second]) == [1, 2, 3]
    assert [(e.label, e.undoes) for e in annotations.events(1)] == [(1, None), (1, 1), (2, None)]
    assert [e.key for e in annotations.counting(1)] == ["b"]
    assert annotations.append(1, [Undo("c", "v"), LabelEvent(0, "ann", 0, key="c")]) == [0, 4], "too early"
    assert [e.key for e in annotations.counting(1)] == ["b", "c"]
    assert annotations.undo(1, "ann") == annotations.events(1)[3], "undone without a key, too"
    assert annotations.append(1, [Undo("c", "v")]) == [0]


@given(sent=st.lists(st.tuples(st.sampled_from("abc"), st.booleans()), max_size=12), data=st.data())
def test_a_queue_sent_in_any_pieces_is_stored_as_it_would_be_at_once(
    shared: Annotations, sent: list[tuple[str, bool]], data: st.DataObject
) -> None:
    """Every piece begins with the queue's first item; what is undone was answered before, or never is."""
    mark = f"{shared.last_id(1)}/"
    queue: list[LabelEvent | Undo] = []
    counts: dict[str, int] = {}  # by key: the label that counts, stored once and undone for good
    answered: set[str] = set()
    for n, (letter, undo) in enumerate(sent):
        key = mark + letter
        if undo:
            queue.append(Undo(key if key in answered else f"{mark}nothing", f"{mark}u{n}"))
            counts.pop(key, None)
        else:
            queue.append(LabelEvent(0, "ann", n, key=key))
            counts |= {} if key in answered else {key: n}
            answered.add(key)
    for end in sorted(data.draw(st.lists(st.integers(0, len(queue)), max_size=4))):
        shared.append(1, queue[:end])
    ids = shared.append(1, queue)
    assert shared.append(1, queue) == ids
    mine = [e for e in shared.counting(1) if (e.key or "").startswith(mark)]
    assert {e.key: e.label for e in mine} == counts


@pytest.mark.parametrize("n", [1, 8])
def test_threads_that_send_the_same_queue_store_it_once(annotations: Annotations, n: int) -> None:
    queue = [LabelEvent(0, "ann", number % 3, number, n_samples=40, key=f"k{number}") for number in range(40)]
    with ThreadPoolExecutor(n) as pool:
        told = list(pool.map(lambda end: annotations.append(1, queue[:end]), [*range(5, 45, 5)] * 2))
    ids = annotations.append(1, queue)
    assert all(found == ids[: len(found)] for found in told)
    assert bare(annotations.events(1)) == queue


def test_processes_that_send_the_same_queue_store_it_once(tmp_path: Path) -> None:
    annotations = made_in(tmp_path / "home")
    told = in_processes(QUEUE, *3 * [[str(tmp_path / "home")]])
    found = annotations.events(1)
    assert [event.key for event in found if event.undoes is None] == [f"a{n}" for n in range(60)]
    assert len(found) == 90, "every other undo is of what is undone already"
    assert [event.label for event in annotations.counting(1)] == list(range(1, 60, 2))
    ids = {event.id for event in found}
    assert all(len(row) == 120 and set(row) - {0} == ids for row in told)


# Edits


def an_edit(kind: EditKind, *regions: int, into: Sequence[int] = (), **told: Any) -> RegionEdit:
    made = tuple(Gaussian(i, 0.1, (0.0,), ((1.0,),)) for i in into)
    return RegionEdit(kind, regions, made, **told)


def test_an_edit_is_not_an_answer(annotations: Annotations) -> None:
    told = an_edit("rename", 3, name="loops", by="ann")
    annotations.append(1, [LabelEvent(0, "ann", 1)])
    before = (annotations.events(1), annotations.counting(1))
    number = annotations.edit(1, told)
    assert (annotations.events(1), annotations.counting(1)) == before
    assert annotations.last_id(1) == number, "one id names a state of answers and edits"
    (found,) = annotations.edits(1)
    assert found == replace(told, id=number, at=found.at)
    assert abs(found.at - time.time()) < 5
    annotations.undo(1, "ann")
    assert annotations.undo(1, "ann") is None
    assert annotations.edits(1) == [found], "an answer's undo leaves edits alone"
    assert annotations.undo_edit(1) == found
    assert [e.label for e in annotations.events(1)] == [1, 1]
    assert annotations.edits(2) == []


def test_an_edit_of_regions_that_were_changed_since_is_refused(annotations: Annotations) -> None:
    annotations.edit(1, an_edit("merge", 0, 1, into=[5]), after=0)
    seen = newest_change(annotations.edits(1))
    annotations.edit(1, an_edit("rename", 5, name="loops"), after=seen)
    annotations.edit(1, an_edit("tau", 5, tau=0.3), after=seen)
    annotations.append(1, [LabelEvent(5, "ann", 1)])
    annotations.edit(1, an_edit("split", 5, into=[6, 7]), after=seen)
    for late in (an_edit("merge", 2, 3, into=[8]), an_edit("rename", 5, name="late")):
        with pytest.raises(WorkspaceError, match="regions were changed in another tab or terminal; look aga"):
            annotations.edit(1, late, after=seen)
    split = newest_change(annotations.edits(1))
    annotations.undo_edit(1)
    with pytest.raises(WorkspaceError, match="look again"):
        annotations.edit(1, an_edit("merge", 2, 3, into=[8]), after=split)
    assert [edit.kind for edit in annotations.edits(1)] == ["merge", "rename", "tau", "split"]


def test_ids_of_regions_are_put_in_once(annotations: Annotations) -> None:
    annotations.edit(1, an_edit("merge", 0, 1, into=[5]))
    annotations.undo_edit(1)
    with pytest.raises(WorkspaceError, match="look again"):
        annotations.edit(1, an_edit("merge", 0, 2, into=[5]))
    assert annotations.edit(2, an_edit("merge", 0, 2, into=[5])), "of each run its own ids"
    with pytest.raises(WorkspaceError, match="run 99 does not exist"):
        annotations.edit(99, an_edit("merge", 0, 2, into=[5]))


@given(steps=st.lists(st.sampled_from([*STRUCTURAL, "rename", "tau", "undo"]), max_size=10))
def test_edits_are_undone_the_last_first_and_told_as_they_were_at_every_time(
    tmp_path_factory: pytest.TempPathFactory, steps: list[Any]
) -> None:
    annotations = made_in(tmp_path_factory.mktemp("edits") / "home")
    pile: list[int] = []
    then: list[tuple[int, list[int]]] = [(0, [])]
    every: list[int] = []
    for n, step in enumerate(steps):
        if step == "undo":
            undone = annotations.undo_edit(1)
            assert (undone and undone.id) == (pile.pop() if pile else None)
        else:
            into = [10 * n, 10 * n + 1] if step in STRUCTURAL else []
            every.append(annotations.edit(1, an_edit(step, 3, into=into, tau=0.1, name="x")))
            pile += every[-1:] if step != "tau" else []
        then.append((annotations.last_id(1), list(pile)))
    for last, counting in then:
        found = annotations.edits(1, up_to=last)
        assert [edit.id for edit in found] == [i for i in every if i <= last]
        assert [edit.id for edit in found if not edit.undone and edit.kind != "tau"] == counting
        assert all(edit.undone_by <= last for edit in found)
    assert annotations.edits(1, up_to=annotations.last_id(1)) == annotations.edits(1)
    assert annotations.undo_edit(2) is None


def test_labels_of_the_first_schema_are_kept_and_take_keys(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    with closing(sqlite3.connect(home / "defuse.sqlite")) as old:
        old.executescript(f"{MIGRATIONS[0]}; PRAGMA user_version = 1")
        old.execute("INSERT INTO projects VALUES (1, 'old', '{}', 0)")
        old.execute(
            "INSERT INTO runs (project_id, step, config, seed, resources, status, created_at, pid,"
            " pid_started, heartbeat_at) VALUES (1, 'distill', '{}', 0, '{}', 'done', 0, 1, 0, 0)"
        )
        rows = [
            (1, 1, 7, 3, "Ada", 2, 0.1, 9, 64, None, 11.0),
            (2, 1, 0, None, "日本", None, 0.5, 0, 10, None, 12.0),
            (3, 1, 0, None, "日本", None, 0.5, 0, 10, 2, 13.0),
        ]  # fmt: skip
        old.executemany("INSERT INTO annotations VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
        old.commit()
    annotations = Workspace(home, durable=False).annotations
    kept = LabelEvent(7, "Ada", 2, 3, 0.1, 9, 64, id=1, at=11.0)
    gone = LabelEvent(0, "日本", None, id=2, at=12.0)
    assert annotations.events(1) == [kept, gone, replace(gone, undoes=2, id=3, at=13.0)]
    assert annotations.counting(1) == [kept]
    assert annotations.append(1, 2 * [LabelEvent(0, "Ada", 1, key="k")]) == [4, 4]
    assert annotations.append(1, [Undo("id:1", "u")]) == [5]
    assert [event.key for event in annotations.counting(1)] == ["k"]


# What makes a correction stale


def corrected(workspace: Workspace) -> Run:
    """A correction on the labels and edits that there are of run 1, done."""
    newest = workspace.annotations.last_id(1)
    given = {"seed": 0, "resources": Resources(), "upstream": [1], "last_annotation": newest}
    run = workspace.runs.add(1, "correct", {}, **given)
    workspace.runs.finish(run.id, "done")
    assert not workspace.runs.get(run.id).stale
    return run


@pytest.mark.parametrize(
    ("change", "stale"),
    [
        (LabelEvent(0, "ann", 2), True),
        (LabelEvent(0, "ann", 2, round=2), False),
        (an_edit("merge", 0, 1, into=[5]), True),
        (an_edit("split", 0, into=[5, 6]), True),
        (an_edit("select", into=[5]), True),
        (an_edit("rename", 0, name="loops"), False),
        (an_edit("tau", 0, tau=0.3), False),
    ],
    ids=lambda value: value.kind if isinstance(value, RegionEdit) else None,
)
def test_what_changes_a_verdict_makes_a_correction_stale_and_so_does_its_undo(
    tmp_path: Path, change: LabelEvent | RegionEdit, stale: bool
) -> None:
    annotations = made_in(tmp_path / "home")
    workspace = Workspace(tmp_path / "home", durable=False)
    workspace.runs.finish(1, "done")
    annotations.append(1, [LabelEvent(0, "ann", 1)])
    first = corrected(workspace)
    if isinstance(change, RegionEdit):
        annotations.edit(1, change)
    else:
        annotations.append(1, [change])
    assert workspace.runs.get(first.id).stale is stale
    second = corrected(workspace)
    undone = annotations.undo_edit(1) if isinstance(change, RegionEdit) else annotations.undo(1, "ann")
    assert (undone is None) == (isinstance(change, RegionEdit) and change.kind == "tau")
    assert workspace.runs.get(second.id).stale is stale
    assert live_ids([0, 1], annotations.edits(1)) == [0, 1]


# CSV

TEXTS = st.text(
    st.characters(exclude_categories=["Cc", "Cf", "Cs", "Zl", "Zp"], exclude_characters="\ufffe\uffff"),
    min_size=1, max_size=200,
).filter(lambda text: text.strip())  # fmt: skip
ODD = ("=1+1", "a,b", 'say "no"', "'", "日本", "@x", "-1", "None", ",,", '""', "ﬁ", "cat", " dog", "'=1+1",
       "''", "'cat", "+", " =1", "＝1", "'' =")  # fmt: skip
WORDS = (st.sampled_from(ODD) | TEXTS).filter(lambda text: text == text.strip())
NAMES = st.lists(st.sampled_from(ODD) | TEXTS, min_size=1, max_size=6, unique_by=class_key).filter(
    lambda names: NONE_OF_THE_ABOVE not in map(class_key, names)
)


@st.composite
def labelled(draw: st.DrawFn) -> tuple[list[str], list[LabelEvent]]:
    """Class names, and answers about regions 0, 1, 7 and about 30 single mistakes."""
    names = draw(NAMES)
    events = []
    for _ in range(draw(st.integers(0, 6))):
        region, n_samples = draw(st.sampled_from([*REGIONS, SINGLE_MISTAKES])), draw(st.integers(1, 99))
        most = 30 if region == SINGLE_MISTAKES else n_samples
        events.append(
            LabelEvent(
                region,
                draw(WORDS),
                draw(st.none() | st.integers(0, len(names) - 1)),
                draw(
                    st.integers(0, most - 1)
                    if region == SINGLE_MISTAKES
                    else st.none() | st.integers(0, most - 1)
                ),
                draw(st.floats(0, 100, exclude_min=True)),
                draw(st.integers(0, 2**62)),
                n_samples,
                round=draw(st.integers(1, 3)),
                seconds=draw(st.none() | st.floats(0, 1e6)),
            )
        )
    return names, events


@given(told=labelled(), bom=st.booleans(), ends=st.sampled_from(["\n", "\r\n", "\r"]))
@tried(6)
def test_labels_survive_a_csv(told: tuple[list[str], list[LabelEvent]], bom: bool, ends: str) -> None:
    names, events = told
    text = to_csv(events, names)
    assert text.endswith("\r\n")
    assert from_csv("\ufeff" * bom + text.replace("\r\n", ends), names, REGIONS, n_mistakes=30) == events


@given(told=labelled())
@tried(3)
def test_other_programs_read_the_csv_as_it_is_meant(told: tuple[list[str], list[LabelEvent]]) -> None:
    names, events = told
    rows = list(csv.DictReader(io.StringIO(to_csv(events, names), newline="")))
    assert len(rows) == len(events)
    for row, event in zip(rows, events, strict=True):
        assert tuple(row) == CSV_COLUMNS
        for cell, name in (
            (row["label"], NONE_OF_THE_ABOVE if event.label is None else names[event.label]),
            (row["annotator"], event.annotator),
        ):
            assert cell[0] not in "=+-@"
            assert cell in (name, f"'{name}")
        assert (int(row["region"]), int(row["seed"]), float(row["tau"])) == (
            event.region_id,
            event.seed,
            event.tau,
        )
        assert row["sample"] == ("" if event.sample_id is None else str(event.sample_id))


def test_labels_with_none_has_its_heading_only() -> None:
    assert to_csv([], CLASSES) == "region,sample,annotator,label,tau,seed,n_samples,at,round,seconds\r\n"
    assert from_csv(to_csv([], CLASSES), CLASSES, REGIONS) == []


def test_rows_without_end_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "region,annotator,label\n" + f"0,Ada,{CLASSES[0]}\n" * 3
    monkeypatch.setattr(label_files, "MAX_ANSWERS", 3)
    assert len(from_csv(text, CLASSES, REGIONS)) == 3
    monkeypatch.setattr(label_files, "MAX_ANSWERS", 2)
    with pytest.raises(WorkspaceError, match="line 4: a file may have 2 answers; import it in several parts"):
        from_csv(text, CLASSES, REGIONS)


def test_a_line_is_compared_once_and_not_with_every_class(monkeypatch: pytest.MonkeyPatch) -> None:
    names, compared = [f"class {n}" for n in range(200)], []
    was = class_key

    def counted(name: str) -> str:
        compared.append(name)
        return was(name)

    monkeypatch.setattr(label_files, "class_key", counted)
    lines = "".join(f"0,Ada,class {n} \n" for n in range(200))  # a space after the name
    events = from_csv("region,annotator,label\n" + lines, names, REGIONS)
    assert [event.label for event in events] == [*range(200)]
    assert len(compared) <= 3 * 200


def test_formulas_are_written_as_text_and_come_back() -> None:
    names = ["=cmd|' /C calc'!A0", "'=1", "'", "dog"]
    events = [LabelEvent(0, name, label) for label, name in enumerate(names)]
    text = to_csv(events, names)
    assert [row["label"] for row in csv.DictReader(io.StringIO(text))] == [
        *(f"'{n}" for n in names[:3]),
        "dog",
    ]
    assert from_csv(text, names, REGIONS) == events
    older = "region,annotator,label\n0,=1+1,'=1\n"  # before apostrophes were written
    assert from_csv(older, ["'=1", "cat"], REGIONS) == [LabelEvent(0, "=1+1", 0)]


def test_labels_are_compared_as_people_see_them() -> None:
    text = "region,annotator,label\n0,ann, cafe\u0301\n0,ann,\tcat \n0,ann, none of the above \n"
    assert [event.label for event in from_csv(text, ["caf\u00e9", " cat"], REGIONS)] == [0, 1, None]


@pytest.mark.parametrize(
    ("classes", "label", "told"),
    [
        (["cat", "dog", "cat"], "cat", "line 2: label 'cat' is the name of classes 0 and 2"),
        (["cat", ""], "", "line 2: label must be one of cat, .*got ''"),
    ],
)
def test_class_names_of_older_projects_are_not_mistaken(classes: list[str], label: str, told: str) -> None:
    with pytest.raises(WorkspaceError, match=told):
        from_csv(f"region,annotator,label\n0,ann,{label}\n", classes, REGIONS)


def test_a_csv_of_a_person_needs_three_columns_in_any_order() -> None:
    text = "label,comment,annotator,region\n dog ,sure,Ann , 7\n\nnone of the above,,Bob,0\n"
    assert from_csv(text, CLASSES, REGIONS) == [LabelEvent(7, "Ann", 1), LabelEvent(0, "Bob", None)]
    for ends in ("\r\n", "\r"):
        again = from_csv("\ufeff" + text.replace("\n", ends), CLASSES, REGIONS)
        assert again == from_csv(text, CLASSES, REGIONS)


@pytest.mark.parametrize("kinds", [None, [3], {"flip": "3"}, {"flip": -3}, {"flip": 3.0}, {"flip": True}, {}])
def test_mistakes_that_a_stranger_counted_are_numbers_or_unknown(kinds: object) -> None:
    assert count_mistakes({"mistakes": kinds}) is None


def test_case_and_spaces_around_the_names_of_columns_do_not_count() -> None:
    text = "Region, SAMPLE ,Annotator,label, Tau,N_Samples,,\n0,11,Ann,dog,2,12,,\n"
    assert from_csv(text, CLASSES, REGIONS) == [LabelEvent(0, "Ann", 1, 11, tau=2.0, n_samples=12)]


GOOD = "region,sample,annotator,label,tau,seed,n_samples\n0,0,ann,cat,0.5,0,10\n"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "",
            r"lacks the columns region, annotator, label; its first line is '', and should be region,sample,",
        ),
        ("region,label\n0,cat\n", r"lacks the columns annotator; its first line is 'region,label'"),
        ("0,0,ann,cat\n", r"lacks the columns region, annotator, label; its first line is '0,0,ann,cat'"),
        ("region;annotator;label\n0;ann;cat\n", r"lacks the columns .*'region;annotator;label'"),
        (GOOD + "0,0,ann,cow\n", "line 3: label must be one of cat, dog, bird, none of the above, got 'cow'"),
        (GOOD + "0,0,ann,Cat\n", "line 3: label must be one of .*got 'Cat'"),
        (GOOD + "0,0,ann,\n", "line 3: label must be one of .*got ''"),
        (GOOD + "0,0,ann,1\n", "line 3: label must be one of .*got '1'"),
        (GOOD + "2,0,ann,cat\n", "line 3: there is no region 2; there are: 0, 1, 7"),
        (GOOD + "-1,0,ann,cat\n", "line 3: there is no region -1; there are: 0, 1, 7"),
        (GOOD + "x,0,ann,cat\n", "line 3: region must be a whole number from -1 up, got 'x'"),
        (GOOD + ",0,ann,cat\n", "line 3: region must be a whole number from -1 up, got ''; correct it"),
        (GOOD + "-2,0,ann,cat\n", "line 3: region must be a whole number from -1 up, got '-2'"),
        (GOOD + "-,0,ann,cat\n", "line 3: region must be a whole number from -1 up, got '-'"),
        (GOOD + "²,0,ann,cat\n", "line 3: region must be a whole number from -1 up, got '²'"),
        pytest.param(
            GOOD + "--1,0,ann,cat\n",
            "line 3: region must be a whole number from -1 up, got '--1'",
        ),
        (GOOD + "0,1.5,ann,cat\n", "line 3: sample must be a whole number from 0 up, got '1.5'"),
        (GOOD + "0,10,ann,cat\n", r"line 3: sample must be in 0 … 9, got 10"),
        (GOOD + "0,-1,ann,cat\n", r"line 3: sample must be a whole number from 0 up, got '-1'"),
        (GOOD + "0,20,ann,cat,0.5,0,20\n", r"line 3: sample must be in 0 … 19, got 20"),
        (GOOD + "0,0, ,cat\n", "line 3: annotator must be named; say who"),
        (GOOD + "0,0,ann,cat,0\n", "line 3: tau must be above 0 and at most 100, got 0"),
        (GOOD + "0,0,ann,cat,-1\n", "line 3: tau must be above 0 and at most 100, got -1"),
        (GOOD + "0,0,ann,cat,nan\n", "line 3: tau must be above 0 and at most 100, got nan"),
        (GOOD + "0,0,ann,cat,inf\n", "line 3: tau must be above 0 and at most 100, got inf"),
        (GOOD + "0,0,ann,cat,1e308\n", r"line 3: tau must be above 0 and at most 100, got 1e\+308"),
        (GOOD + "0,0,ann,cat,half\n", "line 3: tau must be a number, got 'half'"),
        (
            GOOD + f"0,,ann,cat,0.5,0,{2**62}\n",
            "line 3: n_samples must be at least 1 and at most 10,000, got",
        ),
        (GOOD + "0,,ann,cat,0.5,0,10001\n", "line 3: n_samples must be at least 1 and at most 10,000, got 1"),
        (GOOD + f"0,0,{'a' * 201},cat\n", "line 3: the annotator's name has 201 characters, at most 200 are"),
        (GOOD + "0,0,a\x1b[2J,cat\n", "line 3: the annotator's name has control characters"),
        (GOOD + "0,0,ann,cat,0.5,-1\n", "line 3: seed must be a whole number from 0 up, got '-1'"),
        (GOOD + "0,,ann,cat,0.5,0,0\n", "line 3: n_samples must be a whole number from 1 up, got '0'"),
        (GOOD + "0,,ann,cat,0.5,0,many\n", "line 3: n_samples must be a whole number from 1 up, got 'many'"),
        (GOOD + "0,0,a\u200bnn,cat\n", "line 3: the annotator's name has characters that are not shown"),
        (GOOD + "0,0,annotator-eve,cat\n", "line 3: names that begin with annotator- are .*; rename the ann"),
        (GOOD + "0,0,ann,cat,0.5,0,10,,cat\n", "line 3 has more cells than there are columns; check its "),
        ("region,annotator,label,\n0,ann,cat,5\n", "line 2 has more cells than there are columns"),
        (
            GOOD.replace("sample", "samples", 1),
            "there is no column 'samples', did you mean sample or n_samples",
        ),
        (
            GOOD.replace("n_samples", "samples"),
            "there is no column 'samples', did you mean sample or n_samples",
        ),
        (GOOD.replace("n_samples", "NSamples"), "there is no column 'NSamples', did you mean n_samples"),
        (GOOD.replace("tau", "Label "), "line 1: the column 'label' is there twice; remove or rename one"),
        (GOOD + "0\n", "line 3: annotator must be named"),
        (GOOD + "0,0,ann\n", "line 3: label must be one of"),
        ('region,annotator,label,note\n0,ann,cat,"two\nlines"\n0,ann,cow\n', "line 4: label must be one of"),
        (
            GOOD + "0,1,ann,cat\n" * 50 + "0,0,ann,cow\n" + "0,1,ann,cat\n" * 5,
            "line 53: label must be one of",
        ),
    ],
)
def test_a_bad_csv_is_refused_as_a_whole_and_the_line_is_named(
    annotations: Annotations, text: str, told: str
) -> None:
    with pytest.raises(WorkspaceError, match=told):
        annotations.append(1, from_csv(text, CLASSES, REGIONS))
    assert annotations.events(1) == []
    assert len(from_csv(GOOD, CLASSES, REGIONS)) == 1


def test_the_field_that_is_malformed_is_named() -> None:
    """Here it is of no use whether the sample exists."""
    for n_samples in ("0", "many"):
        with pytest.raises(WorkspaceError, match=r"^line 3: n_samples must be a whole number from 1 up, got"):
            from_csv(f"{GOOD}0,0,ann,cat,0.5,0,{n_samples}\n", CLASSES, REGIONS)


TOO_LONG = "field larger than field limit .*; check the quotes, and save the file as CSV again"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        pytest.param(f"{2**63},0,ann,cat", "region must be a whole number from -1 up", id="region"),
        pytest.param(f"0,{10**30},ann,cat", "sample must be a whole number from 0 up", id="sample"),
        pytest.param(f"0,0,ann,cat,0.5,{10**30},10", "seed must be a whole number from 0 up", id="seed"),
        pytest.param(f"0,0,ann,cat,0.5,{2**63},10", "seed must be a whole number from 0 up", id="one over"),
        pytest.param(
            f"0,,ann,cat,0.5,0,{10**30}", "n_samples must be a whole number from 1 up", id="n_samples"
        ),
        pytest.param(
            f"0,0,ann,cat,0.5,{'9' * 5000},10",
            "seed must be a whole number from 0 up",
            id="5000 digits",
        ),
        pytest.param(f"0,0,{'a' * 200_000},cat,0.5,0,10", TOO_LONG, id="a field too long"),
        pytest.param('0,0,"' + "ann,cat\n" * 50_000, TOO_LONG, id="a quote that never ends"),
    ],
)
def test_values_beyond_all_measure_are_refused_in_words(
    annotations: Annotations, line: str, told: str
) -> None:
    with pytest.raises(WorkspaceError, match=f"^line 3: {told}"):
        annotations.append(1, from_csv(f"{GOOD}{line}\n", CLASSES, REGIONS))
    assert annotations.events(1) == []


@pytest.mark.parametrize("line", [f"0,0,{'a' * 200_000},cat,0.5,0,10", '0,0,"' + "ann,cat\n" * 50_000])
def test_what_is_no_csv_is_refused_in_words(line: str) -> None:
    with pytest.raises(WorkspaceError, match=rf"^line \d+: {TOO_LONG}$"):
        from_csv(f"{GOOD}{line}\n", CLASSES, REGIONS)


def test_a_heading_that_is_no_csv_is_refused_in_words() -> None:
    with pytest.raises(WorkspaceError, match=r"^line 1: field larger .*; the first line should be region,"):
        from_csv(f"region,annotator,label,{'a' * 200_000}\n", CLASSES, REGIONS)


def test_the_largest_seed_that_can_be_stored_is_taken(annotations: Annotations) -> None:
    annotations.append(1, from_csv(f"{GOOD}0,0,ann,cat,0.5,{2**63 - 1},10\n", CLASSES, REGIONS))
    assert [event.seed for event in annotations.events(1)] == [0, 2**63 - 1]


@pytest.mark.parametrize(
    ("sample", "told"),
    [
        ("0", None),
        ("29", None),
        ("30", "line 2: sample must be in 0 … 29, got 30"),
        ("-1", "line 2: sample must be a whole number from 0 up, got '-1'"),
    ],
)
def test_single_mistakes_are_counted_by_how_many_there_are(sample: str, told: str | None) -> None:
    text = f"region,sample,annotator,label\n-1,{sample},ann,cat\n"
    if told is None:
        found = from_csv(text, CLASSES, REGIONS, n_mistakes=30)
        assert found == [LabelEvent(SINGLE_MISTAKES, "ann", 0, int(sample))]
    else:
        with pytest.raises(WorkspaceError, match=told):
            from_csv(text, CLASSES, REGIONS, n_mistakes=30)


def test_many_classes_are_not_all_listed() -> None:
    names = [f"class {number}" for number in range(1000)]
    with pytest.raises(WorkspaceError, match="class 19, none of the above, got 'x'") as told:
        from_csv("region,annotator,label\n0,ann,x\n", names, REGIONS)
    assert len(str(told.value)) < 400


def stored_and_exported(annotations: Annotations, events: Sequence[LabelEvent]) -> Any:
    annotations.append(1, events)
    return from_csv(to_csv(annotations.counting(1), CLASSES), CLASSES, REGIONS)


def test_what_counts_is_exported_and_nothing_else(annotations: Annotations) -> None:
    events = [LabelEvent(0, "ann", 0, 1), LabelEvent(0, "ann", 1, 2), LabelEvent(7, "bob", None)]
    annotations.append(1, [LabelEvent(1, "ann", 2)])
    annotations.undo(1, "ann")
    assert stored_and_exported(annotations, events) == events


# Files


def test_a_file_of_labels_is_read_as_text(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_bytes("\ufeffregion,annotator,label\n0,Zoë,cat\n".encode())
    assert from_csv(read_label_file(tmp_path / "l.csv"), CLASSES, REGIONS) == [LabelEvent(0, "Zoë", 0)]


def test_what_is_no_file_of_labels_is_refused_in_words(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "latin.csv").write_bytes("region,annotator,label\n0,Zoë,cat\n".encode("latin-1"))
    with (tmp_path / "huge.csv").open("wb") as file:
        file.truncate(MAX_LABEL_FILE + 1)
    for name, told in {
        ".": "is a folder; give a CSV file",
        "pipe": "pipe is not a plain file; give a CSV file, or - to read from a pipe",
        "none.csv": r"none.csv cannot be read \(No such file or directory\); check the path",
        "n\0.csv": "cannot be read",
        "latin.csv": r"latin.csv is not text in UTF-8 \(line 2: invalid .*\); save it as CSV UTF-8",
        "huge.csv": "huge.csv is over 64 MB, too much for labels; divide it into several files",
    }.items():
        with pytest.raises(WorkspaceError, match=told):
            read_label_file(tmp_path / name)


def test_no_more_than_the_limit_is_held() -> None:
    pieces = iter([b"x" * MAX_LABEL_FILE, b"xx", b"never asked for"])
    with pytest.raises(WorkspaceError, match="upload is over 64 MB"):
        decode_labels(pieces, name="upload")
    assert list(pieces) == [b"never asked for"]
