"""Kinds of hostile label files: CSV, and JSON of Label Studio."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

from tests.campaign.kinds import (
    HOSTILE_NUMBERS,
    HOSTILE_TEXTS,
    Kind,
    Stock,
    as_json,
    change_json,
    damage,
    odd_path,
    write,
)

COLUMNS = ("region", "sample", "annotator", "label", "tau", "seed", "n_samples", "at", "round", "seconds")
_GOOD = {
    "region": "0", "sample": "1", "annotator": "Ada", "label": "class 1", "tau": "0.5", "seed": "3",
    "n_samples": "10", "at": "1.0", "round": "1", "seconds": "1.5",
}  # fmt: skip
_NUMERIC = ("region", "sample", "tau", "seed", "n_samples", "at", "round", "seconds")
_ENCODINGS = ("utf-16", "utf-32", "cp1252", "utf-7", "utf-8-sig", "cp037", "shift_jis")


def _csv(rows: list[dict[str, str]], columns: tuple[str, ...] = COLUMNS) -> str:
    lines = [",".join(columns), *(",".join(row.get(name, "") for name in columns) for row in rows)]
    return "\n".join(lines) + "\n"


def _save(folder: Path, content: str | bytes) -> Path:
    encoded = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    return write(folder, "labels.csv", encoded)


def _hostile_number(rng: Random) -> str:
    written = (
        "1e308",
        "-0",
        "0x10",
        "١",
        "1_000",
        "+1",
        " 1 ",
        "1.0",
        "NaN",
        "inf",
        "-inf",
        "1e-400",
        "²",
        "1,5",
    )
    value = rng.choice((*HOSTILE_NUMBERS, *written))
    return "" if value is None else str(value)


def csv_numbers(rng: Random, folder: Path, stock: Stock) -> Path:  # noqa: ARG001
    """Numbers of every kind in every numeric column."""
    row = dict(_GOOD)
    for name in rng.sample(_NUMERIC, rng.choice((1, 1, 2, 8))):
        row[name] = _hostile_number(rng)
    return _save(folder, _csv([_GOOD, row]))


def csv_texts(rng: Random, folder: Path, stock: Stock) -> Path:  # noqa: ARG001
    """Texts of every kind in every column: formulas, controls, empty cells, halves of pairs."""
    row = dict(_GOOD)
    for name in rng.sample(COLUMNS, rng.choice((1, 1, 2))):
        row[name] = rng.choice(
            (*HOSTILE_TEXTS, "=cmd|' /C calc'!A0", "@SUM(1)", "none of the above", "class 99")
        )
    return _save(folder, _csv([row, _GOOD]))


def csv_form(rng: Random, folder: Path, stock: Stock) -> Path:  # noqa: ARG001
    """Quotes that do not end; columns twice, missing or a million; other separators, encodings, line ends."""
    good = _csv([_GOOD] * 5)
    content = rng.choice(
        (
            lambda: good.replace("Ada", '"Ada', 1),
            lambda: good.replace("Ada", '"Ada"b"', 1),
            lambda: good.replace(",", rng.choice((";", "\t", "|", ",,"))),
            lambda: ",".join(["region"] * 10**6) + "\n",
            lambda: good + "," * 10**6 + "\n",
            lambda: good.replace("\n", rng.choice(("\r", "\r\n", "\n\n", "\x0b", "\u2028"))),
            lambda: _csv([_GOOD], tuple(rng.sample(COLUMNS, rng.randrange(len(COLUMNS))))),
            lambda: _csv([_GOOD], (*COLUMNS, rng.choice(COLUMNS), "other")),
            lambda: good.replace("Ada", "A" * 200_000, 1),
            lambda: good[: rng.randrange(len(good))],
            lambda: good.replace("class 1", "class\0 1"),
            lambda: good.upper(),
            lambda: "\ufeff" * rng.choice((1, 2)) + good,
            lambda: good.encode(rng.choice(_ENCODINGS)),
            lambda: b"\xff" + good.encode(),
            lambda: _csv([_GOOD] * 5000),
            lambda: "",
        )
    )()
    return _save(folder, content)


def csv_damaged(rng: Random, folder: Path, stock: Stock) -> Path:
    """A good file with flipped bits, or spliced with another."""
    return _save(folder, damage(rng, _csv([_GOOD] * 3).encode(), stock.npz))


def csv_odd(rng: Random, folder: Path, stock: Stock) -> Path:  # noqa: ARG001
    """No usual file at all."""
    return odd_path(rng, folder, ".csv")


def _task() -> dict[str, Any]:
    meta = {"annotator": "Ada", "label": "class 1", "whole_region": False, "round": 1, "key": "k"}
    result = {
        "id": "1", "from_name": "label", "to_name": "image", "type": "choices",
        "value": {"choices": ["class 1"]}, "meta": {"defuse": meta},
    }  # fmt: skip
    data = {
        "image": "data:image/png;base64,",
        "region": 0,
        "sample": 1,
        "tau": 0.5,
        "seed": 3,
        "n_samples": 10,
    }
    annotation = {
        "result": [result], "was_cancelled": False, "lead_time": 1.5, "completed_by": {"id": 7,
        "email": "a@b"},
        "created_at": "2026-01-31T12:00:00Z", "id": 5,
    }  # fmt: skip
    return {"data": data, "annotations": [annotation]}


def studio_values(rng: Random, folder: Path, stock: Stock) -> Path:  # noqa: ARG001
    """Wrong types and values anywhere in an export."""
    tasks = change_json(rng, [_task(), _task()], rng.choice((1, 1, 2, 5)))
    return write(folder, "labels.json", as_json(rng, tasks))


def studio_numbers(rng: Random, folder: Path, stock: Stock) -> Path:  # noqa: ARG001
    """Numbers of every kind in every numeric field."""
    task = _task()
    for name in rng.sample(("region", "sample", "tau", "seed", "n_samples"), rng.choice((1, 1, 2))):
        task["data"][name] = rng.choice(HOSTILE_NUMBERS)
    annotation = task["annotations"][0]
    if rng.random() < 0.4:
        annotation["lead_time"] = rng.choice(HOSTILE_NUMBERS)
    if rng.random() < 0.4:
        times = (
            "0001-01-01T00:00:00+14:00",
            "9999-12-31T23:59:59-14:00",
            "2026-02-30",
            "now",
            1e308,
            "",
            "10000-01-01",
        )
        annotation["created_at"] = rng.choice(times)
    if rng.random() < 0.3:
        annotation["result"][0]["meta"]["defuse"]["round"] = rng.choice(HOSTILE_NUMBERS)
    return write(folder, "labels.json", json.dumps([task], ensure_ascii=rng.random() < 0.5).encode())


def studio_form(rng: Random, folder: Path, stock: Stock) -> Path:  # noqa: ARG001
    """What is no export: other encodings, numbers of 5,000 digits, nesting, damage."""
    good = json.dumps([_task()])
    content = rng.choice(
        (
            lambda: b"[" * 100_000,
            lambda: b"[" + b"9" * 5000 + b"]",
            lambda: good.replace("1", "9" * 5000, 1).encode(),
            lambda: (b'{"data":' * 50_000) + b"1",
            lambda: good.encode(rng.choice(_ENCODINGS)),
            lambda: b"\xef\xbb\xbf" * 2 + good.encode(),
            lambda: good.replace("Ada", "\\ud800").encode(),
            lambda: good.replace("null", "NaN").replace("1.5", "Infinity").encode(),
            lambda: damage(rng, good.encode()),
            lambda: damage(rng, good.encode()),
            lambda: json.dumps([_task()] * 5000).encode(),
            lambda: good.replace('"k"', json.dumps("k" * 10**6)).encode(),
        )
    )()
    return write(folder, "labels.json", content)


KINDS = (
    Kind("csv-numbers", "csv", csv_numbers, 3),
    Kind("csv-texts", "csv", csv_texts, 2),
    Kind("csv-form", "csv", csv_form, 2),
    Kind("csv-damaged", "csv", csv_damaged, 2),
    Kind("csv-odd", "csv", csv_odd, 0.5),
    Kind("studio-values", "label studio", studio_values, 3),
    Kind("studio-numbers", "label studio", studio_numbers, 3),
    Kind("studio-form", "label studio", studio_form),
)
