"""Label Studio's JSON: the same answers again after it went there, and its own exports as they look."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from defuse_core.base.records import Annotation
from defuse_core.data.class_names import NONE_OF_THE_ABOVE
from defuse_core.method.labeling import collect_votes
from defuse_core.workspace import label_files
from defuse_core.workspace.database import WorkspaceError
from defuse_core.workspace.label_studio import Shown, from_label_studio, label_studio_config, to_label_studio
from defuse_core.workspace.labels import Annotations, LabelEvent
from tests.test_annotations import NAMES, WORDS, made_in

CLASSES = ("cat", "dog", "bird")
REGIONS = (0, 1, 7)
N = 3
IMAGES: dict[Shown, str] = {
    (region, sample, tau, 0, N): f"data:image/png;base64,{region}{sample}"
    for region, tau, sample in product(REGIONS, (0.1, 0.5), range(N))
}

EXPORT = Path(__file__).parent / "label_studio_export.json"
"""As Label Studio 1.23.2 wrote it: what `to_label_studio` made, imported, then answered there."""


@pytest.fixture
def annotations(tmp_path: Path) -> Annotations:
    return made_in(tmp_path / "home")


def read(tasks: Any, *, annotator: str = "Ada") -> list[LabelEvent]:
    return from_label_studio(json.dumps(tasks), CLASSES, REGIONS, annotator=annotator)


def bare(events: Sequence[LabelEvent]) -> list[LabelEvent]:
    """Without what tells one file from another."""
    return [replace(event, id=0, at=0.0, key=None) for event in events]


def through_label_studio(text: str, *, importer: int = 1) -> str:
    """What Label Studio stores of an import, as it exports it again; seen to with its version 1.23.2.

    After BaseTaskSerializerBulk of its label_studio/tasks/serializers.py: `completed_by` must be known,
    times are those of the import, and an annotation's `meta` and unknown fields are dropped.
    """
    tasks = []
    for number, task in enumerate(json.loads(text), 1):
        annotations: list[dict[str, Any]] = []
        for answer in task["annotations"]:
            assert "completed_by" not in answer, "refused: nobody of this name"
            annotations.append(
                {
                    "id": 100 * number + len(annotations), "completed_by": importer,
                    "result": answer["result"],
                    "was_cancelled": answer["was_cancelled"], "ground_truth": answer["ground_truth"],
                    "created_at": "2026-11-24T12:00:00.000000Z", "updated_at": "2026-11-24T12:00:00.000000Z",
                    "draft_created_at": None, "lead_time": answer["lead_time"], "prediction": {},
                    "result_count": 1, "unique_id": f"unique {number} {len(annotations)}",
                    "import_id": None, "last_action": None, "task": number, "project": 1, "updated_by": None,
                }
            )  # fmt: skip
        tasks.append(
            {
                "id": number, "annotations": annotations, "drafts": [], "predictions": [],
                "data": task["data"],
                "meta": {}, "created_at": "2026-11-24T12:00:00.000000Z", "inner_id": number, "project": 1,
                "total_annotations": len(annotations), "cancelled_annotations": 0, "file_upload": "f.json",
            }
        )  # fmt: skip
    return json.dumps(tasks)


@st.composite
def labelled(draw: st.DrawFn) -> tuple[list[str], list[LabelEvent]]:
    """Class names, and answers that count, in the order of their ids."""
    names = draw(NAMES)
    annotators = draw(st.lists(WORDS, min_size=1, max_size=2, unique=True))
    events = []
    for number in range(1, draw(st.integers(0, 8)) + 1):
        events.append(
            LabelEvent(
                draw(st.sampled_from(REGIONS)), draw(st.sampled_from(annotators)),
                draw(st.none() | st.integers(0, len(names) - 1)), draw(st.none() | st.integers(0, N - 1)),
                draw(st.sampled_from([0.1, 0.5])), draw(st.sampled_from([0, 0, 1])), N,
                id=number, at=float(number), round=draw(st.integers(1, 2)),
                seconds=draw(st.none() | st.floats(0, 1e6)), key=draw(st.none() | st.just(f"k{number}")),
            )
        )  # fmt: skip
    return names, events


def votes_of(events: Sequence[LabelEvent], region: int, tau: float, round_: int) -> list[list[int | None]]:
    """The answers on the draws of seed 0."""
    said = [
        Annotation(region, e.annotator, e.label, e.sample_id)
        for e in events
        if (e.region_id, e.tau, e.seed, e.round) == (region, tau, 0, round_)
    ]
    return collect_votes(said, N)


@given(told=labelled(), away=st.booleans())
def test_what_is_said_of_every_draw_is_the_same_after_label_studio(
    told: tuple[list[str], list[LabelEvent]], away: bool
) -> None:
    names, events = told
    text = to_label_studio(events, names, IMAGES)
    text = through_label_studio(text) if away else text
    found = from_label_studio(text, names, REGIONS, annotator="nobody")
    for region, tau, round_ in product(REGIONS, (0.1, 0.5), (1, 2)):
        assert votes_of(found, region, tau, round_) == votes_of(events, region, tau, round_)
    assert {repr(e) for e in bare(found)} <= {repr(e) for e in bare(events)}, "nothing is made up"
    assert {e.key for e in events if e.key} >= {e.key for e in found if (e.key or "").startswith("k")}
    assert len({e.key for e in found}) == len(found)
    if not away:
        assert [e.at for e in found] == sorted(e.at for e in found)


def test_every_draw_is_a_task_with_the_answers_to_it() -> None:
    events = [
        LabelEvent(0, "Ada", 1, None, 0.1, 0, N, id=1, at=1.5, seconds=9.0, key="whole"),
        LabelEvent(0, "Ada", None, 2, 0.1, 0, N, id=2, at=2.5, seconds=0.5, key="own"),
        LabelEvent(0, "Bob", 2, 2, 0.1, 0, N, id=3, at=3.5),
        LabelEvent(0, "Bob", 0, 2, 0.1, 9, N, id=4),  # of draws that are not shown
    ]
    images = {shown: url for shown, url in IMAGES.items() if (shown[0], shown[2]) == (0, 0.1)}
    tasks = json.loads(to_label_studio(events, CLASSES, images))
    assert [task["data"] for task in tasks] == [
        {"image": f"data:image/png;base64,0{sample}", "region": 0, "sample": sample, "tau": 0.1, "seed": 0,
         "n_samples": N}
        for sample in range(N)
    ]  # fmt: skip
    said = [
        [
            (r["meta"]["defuse"]["annotator"], r["value"]["choices"], a["lead_time"])
            for a in task["annotations"]
            for r in a["result"]
        ]
        for task in tasks
    ]
    whole = ("Ada", ["dog"], 9.0)
    assert said == [[whole], [whole], [("Ada", [NONE_OF_THE_ABOVE], 0.5), ("Bob", ["bird"], None)]]
    (answer, _) = tasks[2]["annotations"]
    assert answer["created_at"] == "1970-01-01T00:00:02.500000+00:00"
    assert {name: answer["result"][0][name] for name in ("from_name", "to_name", "type")} == {
        "from_name": "label", "to_name": "image", "type": "choices",
    }  # fmt: skip
    assert json.loads(to_label_studio([], CLASSES, images)) == [
        {"data": task["data"], "annotations": []} for task in tasks
    ]
    assert to_label_studio(events, CLASSES, {}) == "[]"


def test_what_comes_back_unchanged_is_stored_already(annotations: Annotations) -> None:
    """Also where its author has answered otherwise since: the file does not win over that."""
    annotations.append(
        1,
        [
            LabelEvent(0, "Ada", 1, None, 0.1, 0, N, key="a"),
            LabelEvent(0, "Ada", 2, 0, 0.1, 0, N, key="b"),
        ],
    )
    text = through_label_studio(to_label_studio(annotations.counting(1), CLASSES, IMAGES))
    annotations.append(1, [LabelEvent(0, "Ada", 0, None, 0.1, 0, N, key="c")])
    before = annotations.events(1)
    for _ in range(2):
        annotations.append(1, from_label_studio(text, CLASSES, REGIONS, annotator="Eve"))
        assert annotations.events(1) == before


def test_an_apostrophe_in_the_name_of_a_class_is_a_part_of_it() -> None:
    names = ["=x", "'=x", "bird"]
    answer = LabelEvent(0, "Ada", 1, 0, 0.1, 0, N, id=1, at=1.0)
    text = to_label_studio([answer], names, IMAGES)
    assert [e.label for e in from_label_studio(text, names, REGIONS, annotator="Eve")] == [1]


def test_answers_without_end_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [LabelEvent(0, "Ada", 1, sample, 0.1, 0, N, id=sample + 1) for sample in range(2)]
    text = to_label_studio(answers, CLASSES, IMAGES)
    monkeypatch.setattr(label_files, "MAX_ANSWERS", 2)
    assert len(from_label_studio(text, CLASSES, REGIONS, annotator="Eve")) == 2
    monkeypatch.setattr(label_files, "MAX_ANSWERS", 1)
    with pytest.raises(WorkspaceError, match="task 2: a file may have 1 answers; import it in several parts"):
        from_label_studio(text, CLASSES, REGIONS, annotator="Eve")


@pytest.mark.parametrize("key", ["a", None])
def test_what_was_changed_in_label_studio_is_an_answer_of_who_changed_it(key: str | None) -> None:
    whole = LabelEvent(0, "Ada", 1, None, 0.1, 0, N, id=1, at=1.0, key=key, round=2)
    tasks = json.loads(through_label_studio(to_label_studio([whole], CLASSES, IMAGES), importer=7))
    tasks[1]["annotations"][0]["result"][0]["value"]["choices"] = ["bird"]
    tasks[1]["annotations"][0] |= {"updated_at": "2026-11-24T13:00:00Z"}
    found = read(tasks)
    assert bare(found) == bare([whole, LabelEvent(0, "user 7", 2, 1, 0.1, 0, N, round=2)])
    assert found[0].key == key or key is None
    tasks[1]["annotations"][0]["updated_at"] = "2026-11-24T14:00:00Z"
    assert read(tasks)[1].key != found[1].key, "changed again: a later version is another answer"


# What Label Studio exports


def test_an_export_of_label_studio_is_read() -> None:
    """In it, draw 0 was changed from dog to cat, draw 2 skipped, and region 1 answered; region 7 was not."""
    found = from_label_studio(EXPORT.read_text(), CLASSES, REGIONS, annotator="Eve")
    shown: Mapping[str, Any] = {"tau": 0.1, "seed": 0, "n_samples": 3}
    assert bare(found) == [
        LabelEvent(0, "Ada", 2, 1, **shown),
        LabelEvent(0, "日本", None, 1, **shown, round=2, seconds=1.25),
        LabelEvent(0, "Ada", 1, None, **shown, seconds=4.5),
        LabelEvent(0, "Bob", 0, 2, **shown),
        LabelEvent(1, "user 1", 0, 0, **shown, seconds=3.5),
        LabelEvent(0, "user 1", 0, 0, **shown, seconds=4.5),
    ]
    assert [event.key for event in found if event.annotator == "Ada"] == ["k2", "k1"]
    assert [event.at for event in found] == sorted(event.at for event in found)


def answered(choice: str = "dog", **told: Any) -> list[dict[str, Any]]:
    """One task with one annotation."""
    data = {"image": "data:,", "region": 0, "sample": 0, "tau": 0.5, "seed": 0, "n_samples": 10}
    result = {"from_name": "label", "to_name": "image", "type": "choices", "value": {"choices": [choice]}}
    return [{"data": data, "annotations": [{"id": 5, "result": [result], **told}]}]


@pytest.mark.parametrize(
    ("completed_by", "name"),
    [
        (None, "Ada"),
        (3, "user 3"),
        ("Bob", "Bob"),
        (" Bob ", "Bob"),
        (" ", "Ada"),
        ({"id": 3, "email": "bob@example.com", "first_name": "Bob"}, "bob@example.com"),
        ({"id": 3, "email": "", "first_name": "Bob", "last_name": "Roe"}, "Bob Roe"),
        ({"id": 3, "first_name": "Bob", "last_name": None}, "Bob"),
        ({"id": 3}, "user 3"),
        ({}, "Ada"),
        ("\ud800x", "?x"),  # half of a pair, which no database takes
    ],
)
def test_the_annotator_is_who_label_studio_names(
    annotations: Annotations, completed_by: Any, name: str
) -> None:
    found = read(answered(completed_by=completed_by))
    assert [event.annotator for event in found] == [name]
    annotations.append(1, found)
    assert annotations.events(1)[0].annotator == name
    del (tasks := answered())[0]["annotations"][0]["id"]
    assert [event.annotator for event in read(tasks)] == ["Ada"]


def test_an_import_twice_is_stored_once_and_a_new_version_again(annotations: Annotations) -> None:
    for version, stored in ((1, 1), (1, 1), (2, 2), (1, 2)):
        tasks = answered(updated_at=f"2026-11-24T12:00:0{version}Z")
        annotations.append(1, read(tasks))
        assert len(annotations.events(1)) == stored
    for told in ({"id": 6}, {"unique_id": "u"}, {"completed_by": "Bob"}):
        assert read(answered(**told))[0].key != read(answered())[0].key
    assert read(answered("cat"))[0].key != read(answered())[0].key
    (first, again) = (read(answered(), annotator=name)[0] for name in ("Ada", "Eve"))
    assert (first.key, again.annotator) == (again.key, "Eve")


def test_answers_are_told_in_the_order_of_their_times() -> None:
    times = ["2026-11-24T12:00:02Z", "2026-11-24T12:00:01.5+00:00", None, "2026-11-24T13:00:01+01:00"]
    tasks = [answered(id=n, created_at=at, lead_time=n)[0] for n, at in enumerate(times)]
    assert [event.seconds for event in read(tasks)] == [2, 3, 1, 0]


@pytest.mark.parametrize(
    "told",
    [
        {"was_cancelled": True},
        {"result": []},
        {"result": [answered()[0]["annotations"][0]["result"][0] | {"value": {"choices": []}}]},
    ],
    ids=["cancelled", "empty", "nothing chosen"],
)
def test_what_is_no_answer_is_skipped(told: Mapping[str, Any]) -> None:
    assert read(answered(**told) + answered(id=7)) == read(answered(id=7))
    nothing: tuple[Any, ...] = ([], None)
    for none in nothing:
        others = [{"data": {"any": "thing"}, "annotations": none}, {"data": {}}]
        assert read([*others, *answered()]) == read(answered())


def test_other_parts_of_a_result_are_left_alone() -> None:
    tasks = answered()
    box = {"from_name": "box", "to_name": "image", "type": "rectanglelabels", "value": {"x": 1}}
    comment = {"from_name": "why", "to_name": "image", "type": "choices", "value": {"choices": ["unsure"]}}
    tasks[0]["annotations"][0]["result"] += [box, comment]
    tasks[0]["annotations"][0]["result"][0]["meta"] = {"text": ["a note"]}
    assert read(tasks) == read(answered())


# Bad input


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "the file is not JSON .*; export from Label Studio as JSON"),
        ("region,label\n0,cat\n", "the file is not JSON"),
        ("[" * 100_000, "the file is not JSON"),
        ("{}", r"the file must hold a list of tasks, got \{\}; export"),
        ('"tasks"', "the file must hold a list of tasks, got 'tasks'"),
        ("[5]", "task 1: the task must be an object, got 5"),
        ('[{"data": 5}]', "task 1: data must be an object, got 5; export as JSON, not as JSON-MIN"),
        ('[{"image": "data:,", "id": 1, "label": "cat", "annotator": 1}]', "task 1: data must be an object"),
        ('[{"data": {}, "annotations": 5}]', "task 1: annotations must be a list of objects, got 5"),
        (
            '[{"data": {}}, {"data": {}, "annotations": [5]}]',
            r"task 2: annotations must be a list of objects, got \[5\]",
        ),
    ],
)
def test_what_is_no_export_is_refused_in_words(text: str, told: str) -> None:
    with pytest.raises(WorkspaceError, match=f"^{told}"):
        from_label_studio(text, CLASSES, REGIONS, annotator="Ada")


@pytest.mark.parametrize(
    ("field", "bad", "told"),
    [
        ("region", None, "region must be a whole number from 0 up, got None; leave what Defuse wrote"),
        ("region", "0", "region must be a whole number from 0 up, got '0'"),
        ("region", True, "region must be a whole number from 0 up, got True"),
        ("region", -1, "region must be a whole number from 0 up, got -1"),
        ("region", 2, "there is no region 2; there are: 0, 1, 7"),
        ("sample", 0.5, "sample must be a whole number from 0 up, got 0.5"),
        ("sample", 10, r"sample must be in 0 … 9, got 10"),
        ("seed", 2**63, "seed must be a whole number from 0 up, got 92233"),
        ("n_samples", 0, "n_samples must be a whole number from 1 up, got 0"),
        ("tau", "0.5", "tau must be a number from 0 up, got '0.5'"),
        ("tau", float("nan"), "tau must be a number from 0 up, got nan"),
        ("tau", float("inf"), "tau must be a number from 0 up, got inf"),
        ("tau", 10**400, "tau must be a number from 0 up, got 1000"),
        ("tau", -0.1, "tau must be a number from 0 up, got -0.1"),
        ("tau", 0, "tau must be above 0 and at most 100, got 0; leave what Defuse wrote"),
        ("tau", 1e308, r"tau must be above 0 and at most 100, got 1e\+308; leave what Defuse wrote"),
        ("n_samples", 3_000_000, "n_samples must be at least 1 and at most 10,000, got 3000000; leave"),
        ("tau", False, "tau must be a number from 0 up, got False"),
    ],
)
def test_a_bad_draw_is_refused_and_task_and_field_are_named(
    annotations: Annotations, field: str, bad: object, told: str
) -> None:
    tasks = answered() + answered(id=6)
    tasks[1]["data"][field] = bad
    with pytest.raises(WorkspaceError, match=f"^task 2: {told}"):
        annotations.append(1, read(tasks))
    assert annotations.events(1) == []


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"result": None}, "result must be a list of objects, got None"),
        ({"result": [5]}, r"result must be a list of objects, got \[5\]"),
        (
            {"result": [{}]},
            r"result must be one of the choices of 'label', got \[\{\}\]; use the labelling conf",
        ),
        ({"result": 2 * answered()[0]["annotations"][0]["result"]}, "result must be one of the choices of"),
        ({"lead_time": "4"}, "lead_time must be a number from 0 up, got '4'"),
        ({"lead_time": -1}, "lead_time must be a number from 0 up, got -1"),
        ({"completed_by": 1.5}, "completed_by must be a name, a number or a user, got 1.5"),
        ({"completed_by": ["Ada"]}, "completed_by must be a name, a number or a user, got"),
        ({"completed_by": {"email": 5.5}}, "completed_by must be a name, a number or a user, got 5.5"),
        ({"completed_by": True}, "completed_by must be a name, a number or a user, got True"),
        ({"updated_at": "yesterday"}, "updated_at must be a time like 2026-01-31T12:00:00Z, got 'yesterday'"),
        ({"created_at": 5}, "updated_at must be a time like 2026-01-31T12:00:00Z, got 5"),
    ],
)
def test_a_bad_annotation_is_refused_and_task_and_field_are_named(
    told: Mapping[str, Any], message: str
) -> None:
    with pytest.raises(WorkspaceError, match=f"^task 3: {message}"):
        read([*answered(), {"data": {}}, *answered(**told)])


@pytest.mark.parametrize("value", [None, 5, {}, {"choices": "dog"}, {"choices": ["cat", "dog"]},
                                   {"choices": [["dog"]]}, {"choices": [5]}, {"choices": {}}])  # fmt: skip
def test_a_bad_choice_is_refused(value: Any) -> None:
    tasks = answered()
    tasks[0]["annotations"][0]["result"][0]["value"] = value
    with pytest.raises(WorkspaceError, match=r"^task 1: result must be one of the choices of 'label', got"):
        read(tasks)


def test_a_choice_that_is_no_class_is_refused_and_classes_are_named() -> None:
    told = "^task 1: choices must be one of cat, dog, bird, none of the above, got 'cow'"
    with pytest.raises(WorkspaceError, match=told):
        read(answered("cow"))
    with pytest.raises(
        WorkspaceError, match=r"^task 1: data must be an object, got None; .* not as JSON-MIN"
    ):
        read([{"annotations": answered()[0]["annotations"]}])


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"annotator": 1.5}, "annotator must be a name"),
        ({"round": 0}, "round must be a whole number from 1 up, got 0"),
        ({"round": "1"}, "round must be a whole number from 1 up, got '1'"),
    ],
)
def test_what_stands_beside_a_choice_is_checked(told: Mapping[str, Any], message: str) -> None:
    tasks = answered()
    meta = {"annotator": "Bob", "label": "dog", "whole_region": False, "round": 2, "key": None}
    tasks[0]["annotations"][0]["result"][0]["meta"] = {"defuse": meta}
    (found,) = read(tasks)
    assert (found.annotator, found.round) == ("Bob", 2)
    assert found.key
    meta |= told
    with pytest.raises(WorkspaceError, match=f"^task 1: {message}"):
        read(tasks)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@given(data=st.data(), junk=JSON)
def test_any_part_may_be_anything_and_is_read_or_refused_in_words(data: st.DataObject, junk: Any) -> None:
    tasks = json.loads(to_label_studio([LabelEvent(0, "Ada", 1, 0, 0.1, 0, N)], CLASSES, IMAGES))[:1]
    tasks[0]["annotations"][0] |= {"completed_by": {"email": "a@b"}, "updated_at": "2026-11-24T12:00:00Z"}
    node: Any = tasks
    while True:
        place = data.draw(st.sampled_from(list(range(len(node)) if isinstance(node, list) else node)))
        if not isinstance(node[place], list | dict) or not node[place] or data.draw(st.booleans()):
            break
        node = node[place]
    node[place] = junk
    try:
        found = read(tasks)
    except WorkspaceError as error:
        words = str(error)
    else:
        words = ""
        assert all(event.region_id in REGIONS and event.key and event.annotator for event in found)
    assert len(words) < 300  # whatever the value, a line or two


# The labelling config


@given(names=NAMES)
def test_the_config_shows_every_class_and_none_of_the_above(names: list[str]) -> None:
    if any(not (c in "\t\n\r" or c >= " ") or c in "\ufffe\uffff" for name in names for c in name):
        with pytest.raises(WorkspaceError, match=r"cannot show the class name .*; rename the class"):
            label_studio_config(names)
        return
    root = ET.fromstring(label_studio_config(names))
    assert [choice.get("value") for choice in root.iter("Choice")] == [*names, NONE_OF_THE_ABOVE]


def test_the_config_names_what_tasks_and_answers_name() -> None:
    root = ET.fromstring(label_studio_config(CLASSES))
    image, choices = root.find("Image"), root.find("Choices")
    assert image is not None
    assert choices is not None
    answer = LabelEvent(0, "Ada", 1, 0, 0.1, 0, N)
    (task, *_) = json.loads(to_label_studio([answer], CLASSES, IMAGES))
    (result,) = task["annotations"][0]["result"]
    assert image.get("value") == "$image"
    assert "image" in task["data"]
    assert (result["from_name"], result["to_name"]) == (choices.get("name"), choices.get("toName"))
    assert image.get("name") == result["to_name"]
