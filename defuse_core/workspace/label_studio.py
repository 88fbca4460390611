"""Read and write labels as JSON of Label Studio: a task per draw of a region, an annotation per answer.

Labels must survive an import into Label Studio and an export from it. Label Studio keeps `data` of a
task, and `result` and `lead_time` of an annotation. It drops an annotation's own `meta` and times, and
refuses a file whose `completed_by` is a user it does not know. The annotator is therefore in the
`meta` of the result; `completed_by` is read, but not written. Imports no torch.

Reference: https://labelstud.io/guide/task_format
"""

from __future__ import annotations

import hashlib
import json
import re
import reprlib
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from xml.sax.saxutils import quoteattr

from defuse_core.data.class_names import NONE_OF_THE_ABOVE
from defuse_core.workspace.database import WorkspaceError
from defuse_core.workspace.label_files import ClassIndex, refuse_many, refuse_unknown
from defuse_core.workspace.label_rules import answer_fault, person_fault
from defuse_core.workspace.labels import LabelEvent

Shown = tuple[int, int, float, int, int]
"""A draw as a person saw it: region, sample, τ, seed, and the number of draws shown."""

_SHOWN = ("region", "sample", "tau", "seed", "n_samples")
_FROM, _TO, _TYPE = "label", "image", "choices"
_TIMES = ("updated_at", "created_at")
_REMEDY = "leave what Defuse wrote as it is, and export from Label Studio as JSON"
_BRIEF = 100  # characters of a value in a message
_NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def label_studio_config(class_names: Sequence[str]) -> str:
    """Return the labelling config to paste into a new project of Label Studio.

    Raises
    ------
    WorkspaceError
        If a name has a character that XML cannot hold.

    Examples
    --------
    >>> print(label_studio_config(["cat"]))
    <View>
      <Image name="image" value="$image"/>
      <Choices name="label" toName="image" choice="single-radio" required="true">
        <Choice value="cat"/>
        <Choice value="none of the above"/>
      </Choices>
    </View>
    """
    if bad := next((name for name in class_names if _NOT_XML.search(name)), None):
        raise WorkspaceError(f"Label Studio cannot show the class name {bad!r}; rename the class")
    choices = [f"    <Choice value={quoteattr(name)}/>" for name in (*class_names, NONE_OF_THE_ABOVE)]
    head = f'  <Choices name="{_FROM}" toName="{_TO}" choice="single-radio" required="true">'
    image = f'  <Image name="{_TO}" value="$image"/>'
    return "\n".join(["<View>", image, head, *choices, "  </Choices>", "</View>"])


def to_label_studio(
    events: Iterable[LabelEvent], class_names: Sequence[str], images: Mapping[Shown, str]
) -> str:
    """Write draws as tasks, with the answers that there are.

    Parameters
    ----------
    events : iterable of LabelEvent
        Those that count. An answer about a whole region is written at each of its draws that this
        annotator did not answer; answers about draws that are not in `images` are left out.
    class_names : sequence of str
    images : mapping of `Shown` to str
        The draws, each a data URL.
    """
    passes: dict[tuple[str, int], dict[tuple[Any, ...], LabelEvent]] = {}
    for e in events:
        subject = (e.region_id, e.sample_id, e.tau, e.seed, e.n_samples)
        passes.setdefault((e.annotator, e.round), {})[subject] = e
    tasks = []
    for draw, url in images.items():
        region, _, *others = draw
        answers = [own.get(draw) or own.get((region, None, *others)) for own in passes.values()]
        tasks.append(
            {
                "data": {"image": url, **dict(zip(_SHOWN, draw, strict=True))},
                "annotations": [_annotation(e, class_names) for e in answers if e],
            }
        )
    return json.dumps(tasks, ensure_ascii=False, indent=1)


def _annotation(e: LabelEvent, class_names: Sequence[str]) -> dict[str, Any]:
    label = NONE_OF_THE_ABOVE if e.label is None else class_names[e.label]
    subject = (e.region_id, e.sample_id, e.tau, e.seed, e.n_samples)
    name = _digest("answer", subject, e.annotator, label, e.round, e.id, e.at)
    origin = {
        "annotator": e.annotator, "label": label, "whole_region": e.sample_id is None,
        "round": e.round, "key": e.key or name,
    }  # fmt: skip
    result = {
        "id": name[-10:], "from_name": _FROM, "to_name": _TO, "type": _TYPE,
        "value": {_TYPE: [label]}, "meta": {"defuse": origin},
    }  # fmt: skip
    return {
        "result": [result],
        "was_cancelled": False,
        "ground_truth": False,
        "lead_time": e.seconds,
        "created_at": datetime.fromtimestamp(e.at, UTC).isoformat(timespec="microseconds"),
    }


def from_label_studio(
    text: str, class_names: Sequence[str], region_ids: Iterable[int], *, annotator: str
) -> list[LabelEvent]:
    """Read Label Studio's JSON export of tasks that `to_label_studio` wrote, in the order of answering.

    An answer that nobody changed comes back with its key, so that it is not stored twice. A changed
    answer is a new one of the same pass, by the person who changed it. Tasks without an annotation, cancelled
    annotations and those in which nothing was chosen are skipped.

    Parameters
    ----------
    text : str
        In the export format "JSON", not "JSON-MIN".
    class_names : sequence of str
    region_ids : iterable of int
        Those that exist.
    annotator : str
        Of annotations that name none; a user of Label Studio with only a number is "user 7".

    Raises
    ------
    WorkspaceError
        If any task is malformed; the message names the task, counted from 1, and the field, and
        nothing is returned.
    """
    try:
        tasks = json.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as error:
        raise WorkspaceError(f"the file is not JSON ({error}); export from Label Studio as JSON") from None
    if not isinstance(tasks, list):
        raise WorkspaceError(
            f"the file must hold a list of tasks, got {_brief(tasks)}; export from Label Studio as JSON"
        )
    known, classes = frozenset(region_ids), ClassIndex(class_names)
    by_key: dict[str | None, LabelEvent] = {}
    for number, task in enumerate(tasks, 1):
        for event in _Task(f"task {number}", classes, known, annotator).read(task):
            by_key.setdefault(event.key, event)
            refuse_many(len(by_key), where=f"task {number}")
    return sorted(by_key.values(), key=lambda event: event.at)


@dataclass(frozen=True)
class _Task:
    """Reads one task; `where` begins the message of every error."""

    where: str
    classes: ClassIndex
    region_ids: Collection[int]
    annotator: str

    def read(self, task: Any) -> Iterator[LabelEvent]:
        if not isinstance(task, dict):
            raise self._error("the task", "an object", task)
        if not isinstance(data := task.get("data"), dict):
            raise self._error("data", "an object", data, "export as JSON, not as JSON-MIN")
        annotations = task.get("annotations") or []
        if not isinstance(annotations, list) or not all(isinstance(a, dict) for a in annotations):
            raise self._error("annotations", "a list of objects", annotations)
        for annotation in annotations:
            if not annotation.get("was_cancelled") and (chosen := self._chosen(annotation)) is not None:
                yield self._event(self._shown(data), annotation, *chosen)

    def _event(self, draw: Shown, annotation: dict[str, Any], label: str, meta: Any) -> LabelEvent:
        index = self.classes.read(label, where=f"{self.where}: choices")
        spent = annotation.get("lead_time")
        seconds = None if spent is None else self._number("lead_time", spent)
        region, sample, *others = draw
        if isinstance(meta, dict) and meta.get("label") == label:  # our own, and nobody changed it
            name, key = self._name("annotator", meta.get("annotator")), meta.get("key")
            part = None if meta.get("whole_region") is True else sample
            round_ = self._whole(meta, "round", 1)
            if not isinstance(key, str) or not key:
                key = _digest("answer", (region, part, *others), name, label, round_)
        else:
            name = self._name("completed_by", annotation.get("completed_by"))
            version = [annotation.get(name) for name in ("unique_id", "id", *_TIMES)]
            version = [part for part in version if isinstance(part, str | int)]
            part, key = sample, _digest("annotation", version, draw, name, label)
            ours = isinstance(meta, dict) and "round" in meta  # a pass stays one, whoever changes its answer
            round_ = self._whole(meta, "round", 1) if ours else 1
        event = LabelEvent(
            region, name or self.annotator, index, part, *draw[2:],
            at=self._moment(annotation), round=round_, seconds=seconds, key=_storable(key),
        )  # fmt: skip
        if fault := person_fault(event.annotator) or answer_fault(event, n_classes=len(self.classes)):
            raise WorkspaceError(f"{self.where}: {fault}; {_REMEDY}")
        return event

    def _chosen(self, annotation: dict[str, Any]) -> tuple[str, Any] | None:
        """The choice and what `to_label_studio` wrote beside it; None where nothing is chosen."""
        result = annotation.get("result")
        if not isinstance(result, list) or not all(isinstance(item, dict) for item in result):
            raise self._error("result", "a list of objects", result)
        mine = [item for item in result if (item.get("type"), item.get("from_name")) == (_TYPE, _FROM)]
        item = mine[0] if len(mine) == 1 else {}
        value, meta = item.get("value"), item.get("meta")
        choices = value.get(_TYPE) if isinstance(value, dict) else None
        if not result or choices == []:
            return None
        if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], str):
            raise self._error(
                "result", f"one of the choices of {_FROM!r}", result, "use the labelling config of Defuse"
            )
        return choices[0], meta.get("defuse") if isinstance(meta, dict) else None

    def _shown(self, data: dict[str, Any]) -> Shown:
        region, seed = self._whole(data, "region", 0), self._whole(data, "seed", 0)
        sample, n_samples = self._whole(data, "sample", 0), self._whole(data, "n_samples", 1)
        tau = self._number("tau", data.get("tau"))
        refuse_unknown(region, self.region_ids, where=self.where)
        return region, sample, tau, seed, n_samples

    def _whole(self, fields: dict[str, Any], name: str, lowest: int) -> int:
        value = fields.get(name)
        if type(value) is not int or not lowest <= value < 2**63:  # bool is no number here
            raise self._error(name, f"a whole number from {lowest} up", value)
        return value

    def _number(self, name: str, value: Any) -> float:
        if type(value) not in (int, float) or not 0 <= value <= sys.float_info.max:
            raise self._error(name, "a number from 0 up", value)
        return float(value)

    def _moment(self, annotation: dict[str, Any]) -> float:
        """When the annotation was last changed, in seconds since 1970; 0 where it does not say."""
        value = next((annotation[name] for name in _TIMES if annotation.get(name)), None)
        try:
            at = datetime.fromisoformat(value) if value else datetime.fromtimestamp(0, UTC)
            return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
        except (TypeError, ValueError, OverflowError):
            raise self._error(_TIMES[0], "a time like 2026-01-31T12:00:00Z", value) from None

    def _name(self, field: str, who: Any) -> str:
        """The annotator's name, from a name, a number, or the fields of a user; "" for none."""
        if isinstance(who, dict):
            full = f"{who.get('first_name') or ''} {who.get('last_name') or ''}".strip()
            who = who.get("email") or full or who.get("id")
        if type(who) is int:
            return f"user {who}"
        if who is not None and not isinstance(who, str):
            raise self._error(field, "a name, a number or a user", who)
        return _storable(who or "").strip()

    def _error(self, field: str, expected: str, got: Any, remedy: str = "") -> WorkspaceError:
        return WorkspaceError(
            f"{self.where}: {field} must be {expected}, got {_brief(got)}; {remedy or _REMEDY}"
        )


def _brief(got: Any) -> str:
    """A value as a message shows it; `reprlib` alone does not cut nested ones short enough."""
    text = reprlib.repr(got)
    return text if len(text) <= _BRIEF else f"{text[: _BRIEF - 1]}…"


def _digest(*parts: object) -> str:
    return f"label-studio:{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]}"


def _storable(text: str) -> str:
    """Replace halves of surrogate pairs, which JSON can hold and UTF-8 cannot."""
    return text.encode("utf-8", "replace").decode()
