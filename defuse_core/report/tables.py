"""Make the tables of the HTML report: rows in the order shown, and sentences about them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from defuse_core.base.intervals import Interval
from defuse_core.report.content import ReportContent
from defuse_core.report.numbers import count, percent
from defuse_core.workspace.configs import STEPS

_MAX_CLASSES = 50
_NAMES = {"lam=0": "training pictures alone (λ = 0)", "random": "as many pictures of random places"}


def sweep_table(content: ReportContent) -> dict[str, Any]:
    """Return `rows` by λ, the `parts` that have a column, `n_repeats` per λ, and whether `flips` are known.

    A row has the `point` of the first repeat, whether it is `chosen`, and the `ranges` of its shares over
    all repeats.
    """
    parts = ["test", "region", *(["held_out"] if content.n_held_out else [])]
    rows = []
    for first in (p for p in content.sweep if not p.get("repeat")):
        same = [p for p in content.sweep if p["lam"] == first["lam"]]
        values = {part: [p[part][0] for p in same] for part in parts}
        ranges = {part: f"{percent(min(v), 1)} to {percent(max(v), 1)}" for part, v in values.items()}
        chosen = first["lam"] == content.results["defuse"]["lam"]
        rows.append({"point": first, "chosen": chosen, "ranges": ranges})
    flips = any("fixed" in row["point"] for row in rows)
    n_repeats = len({p.get("repeat", 0) for p in content.sweep})
    return {"rows": rows, "parts": parts, "n_repeats": n_repeats, "flips": flips}


def class_table(by_class: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return accuracy by class as `rows`, the largest change first, and how many are `left_out`.

    Examples
    --------
    >>> rows = [{"class": "a", "before": [1.0, 0.5, 1.0, 4], "after": [0.75, 0.3, 0.9, 4]}]
    >>> class_table(rows)["rows"][0]["change"]
    '−25.0'
    """
    measured = [row for row in by_class if row["before"][3]]
    changes = [row["after"][0] - row["before"][0] for row in measured]
    order = sorted(range(len(measured)), key=lambda i: (-abs(changes[i]), changes[i], i))
    rows = [{**measured[i], "change": _points(changes[i])} for i in order[:_MAX_CLASSES]]
    return {"rows": rows, "left_out": len(measured) - len(rows)}


def _points(change: float) -> str:
    points = f"{change * 100:+.1f}".replace("-", "−")
    return "0.0" if points in ("+0.0", "−0.0") else points


def control_table(content: ReportContent) -> dict[str, Any]:
    """Return controls, baseline and Defuse as `rows`, and a text about them as `told`; both may be empty."""
    controls = content.results.get("controls") or {}
    if not controls:
        return {"rows": [], "told": ""}
    before, after = content.scores[0], content.scores[-1]
    rows = [_row("nothing (before the repair)", "–", before.test, before.region)]
    for key, name in _NAMES.items():
        if key in controls:
            rows.append(_control_row(name, controls[key]))
    if len(content.scores) == 3:
        rival = content.results["baseline"]
        of = count(rival["labelled_images"], "single labelled mistake")
        chosen = [p for p in content.baseline_sweep if p["lam"] == rival["lam"] and not p.get("repeat")]
        row = _row(of, f"{rival['lam']:g}", content.scores[1].test, content.scores[1].region)
        rows.append({**row, **{name: p[name] for p in chosen for name in ("fixed", "broken") if name in p}})
    flips = {name: content.results["flips"][name] for name in ("fixed", "broken")}
    lam = f"{content.results['defuse']['lam']:g}"
    rows.append({**_row("pictures of the failures (Defuse)", lam, after.test, after.region), **flips})
    return {"rows": rows, "told": _compare_controls(content, controls)}


def _row(name: str, lam: str, test: Interval, region: Interval) -> dict[str, Any]:
    intervals = {"test": test, "region": region}
    shares = {part: [i.estimate, i.low, i.high, i.n] for part, i in intervals.items()}
    return {"name": name, "lam": lam, "fixed": "–", "broken": "–", **shares}


def _control_row(name: str, control: Mapping[str, Any]) -> dict[str, Any]:
    flips = {key: control.get(key, "–") for key in ("fixed", "broken")}
    shares = {part: control[part] for part in ("test", "region")}
    return {"name": name, "lam": f"{control['lam']:g}", **shares, **flips}


def _compare_controls(content: ReportContent, controls: Mapping[str, Any]) -> str:
    """Say what the controls reach, and whether the failures explain the repair."""
    after = content.scores[-1].region
    text = f"After the repair the model is right on {percent(after.estimate)} of the pictures of failures."
    if "lam=0" in controls:
        text += f" Training as long without them reaches {percent(controls['lam=0']['region'][0])}."
    if "random" in controls:
        text += (
            f" As many generated pictures from around random training pictures of the same classes reach "
            f"{percent(controls['random']['region'][0])}."
        )
    measured = [row["region"] for row in controls.values() if row["region"][0] is not None]
    if not measured:
        return text
    rival = max(measured, key=lambda row: float(row[0]))
    if rival[2] < after.low:
        return text + " So it is the failures that matter: the intervals do not meet."
    if rival[1] > after.high:
        return text + " So the repair is not owed to the failures: a control without them does better."
    return text + " The intervals meet: what the repair owes to the failures cannot be told from that."


def novelty_told(found: Mapping[str, Any] | None) -> str:
    """Say the medians of the curves, in pixels and in codes; empty if they were not measured."""
    if not found or "pixels" not in found:
        return ""
    sentences = []
    for space, name in (("pixels", "pixels"), ("latent", "codes of the generator")):
        curves = [
            f"{curve['median']:.1f} for {what} (n = {curve['n']:,})"
            for what, curve in found.get(space, {}).items()
        ]
        if curves:
            sentences.append(f"Median in {name}: {', '.join(curves)}.")
    return " ".join(sentences)


def settings_rows(
    settings: Mapping[str, Mapping[str, Any]], seeds: Mapping[str, int]
) -> list[tuple[str, str]]:
    """Return every step's settings and seed on one line, in the order of the method.

    Parameters
    ----------
    settings : mapping of str to mapping
        By step; may be nested. None values are left out.
    seeds : mapping of str to int
        By step.

    Examples
    --------
    >>> settings_rows({"distill": {"n_components": 100, "more": {"tau": 0.5}}}, {"distill": 0})
    [('distill', 'n_components 100 · more.tau 0.5 · seed 0')]
    """
    return [
        (step, " · ".join([*_flat(settings[step]), *_flat({"seed": seeds.get(step)})]))
        for step in STEPS
        if step in settings
    ]


def _flat(config: Mapping[str, Any], path: str = "") -> list[str]:
    lines: list[str] = []
    for name, value in config.items():
        if isinstance(value, Mapping):
            lines += _flat(value, f"{path}{name}.")
        elif value is not None:
            lines.append(f"{path}{name} {_text(value)}")
    return lines


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(_text(of) for of in value) or "none"
    return value if isinstance(value, str) else json.dumps(value)
