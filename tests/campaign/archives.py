"""Kinds of hostile archives of projects: members, rows and manifests that no export writes."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from tests.campaign.data_sets import packed_member
from tests.campaign.kinds import Kind, Stock, as_json, change_json, damage, hostile_value, odd_path, write

_NAMES = (
    "../evil", "/tmp/evil", "runs/1/../../evil.json", "blobs/../x", "runs/1/config.json",
    "runs/1/log.txt/x.json",
    "runs/1/work/x.json", "runs/99/x.json", "rows/other.jsonl", "C:\\x", "runs/1/a.py", "runs/1/\x00.json",
    "é", "",
    "runs/1/" + "a/" * 150 + "b.json", "manifest.json",
)  # fmt: skip
_ROWS = ("blobs", "runs", "tasks", "events", "artifacts", "annotations")


def members(stock: Stock) -> dict[str, bytes]:
    """The members of the good archive.

    Parameters
    ----------
    stock : Stock
    """
    with zipfile.ZipFile(io.BytesIO(stock.archive)) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def pack(content: dict[str, bytes], *, sealed: bool = True) -> bytes:
    """Write members to an archive.

    Parameters
    ----------
    content : dict of str to bytes
    sealed : bool
        Give the manifest their sizes and checksums, as if Defuse had written them.
    """
    if sealed:
        manifest = json.loads(content["manifest.json"])
        manifest["members"] = {
            name: {"size": len(each), "sha256": hashlib.sha256(each).hexdigest()}
            for name, each in content.items()
            if name != "manifest.json"
        }
        content = {**content, "manifest.json": json.dumps(manifest).encode()}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, each in content.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = 0o100644 << 16
            archive.writestr(info, each)
    return out.getvalue()


def _save(folder: Path, content: bytes) -> Path:
    return write(folder, "project.defuse.zip", content)


def _lines(content: bytes) -> list[Any]:
    return [json.loads(line) for line in content.splitlines()]


def rows(rng: Random, folder: Path, stock: Stock) -> Path:
    """A row with any value changed, and all checksums as they should be."""
    content = members(stock)
    table = rng.choice([name for name in _ROWS if content[f"rows/{name}.jsonl"]])
    parsed = _lines(content[f"rows/{table}.jsonl"])
    at = rng.randrange(len(parsed))
    how = rng.randrange(8)
    if how == 0:
        parsed.append(parsed[at])
    elif how == 1:
        del parsed[at]
    elif how == 2:
        rng.shuffle(parsed)
    else:
        parsed[at] = change_json(rng, parsed[at], rng.choice((1, 1, 3)))
    lines = [
        as_json(rng, row) if number == at else json.dumps(row).encode() for number, row in enumerate(parsed)
    ]
    content[f"rows/{table}.jsonl"] = b"".join(line + b"\n" for line in lines)
    return _save(folder, pack(content))


def answers(rng: Random, folder: Path, stock: Stock) -> Path:
    """Answers that no person can have given: label 99 of 10, sample −5, τ −1; and configs that run code."""
    content = members(stock)
    parsed, runs = _lines(content["rows/annotations.jsonl"]), _lines(content["rows/runs.jsonl"])
    name, value = rng.choice(
        (
            ("label", 99), ("label", -1), ("label", 10), ("label", 2**62), ("sample_id", -5), ("sample_id",
            10**9),
            ("tau", -1.0), ("tau", 0.0), ("tau", 1e300), ("region_id", 99), ("region_id", -2),
            ("n_samples", 100_000),
            ("n_samples", 0), ("seed", 2**62), ("round", 2**62), ("seconds", -1.0), ("seconds", 1e308),
            ("at", 1e308),
            ("annotator", ""), ("annotator", "\x1b[2J"), ("annotator", "a" * 10**6), ("key", ""),
            ("undoes", 1),
            ("at", -1e308), ("run", 1),
        )
    )  # fmt: skip
    parsed[rng.randrange(len(parsed))][name] = value
    if rng.random() < 0.4:
        run = rng.choice(runs)
        key, told = rng.choice(
            (
                ("code_path", "/tmp"), ("trust_program", True), ("weights", "corrected:99"), ("weights",
                "blob:" + "0" * 64),
                ("pretrained", "blob:" + "f" * 64), ("architecture", "os:system"), ("n_components", 10**9),
                ("tau", -1),
                ("last_annotation", 10**6), ("beyond", 1),
            )
        )  # fmt: skip
        run["config"][key] = told
    content["rows/annotations.jsonl"] = b"".join(json.dumps(row).encode() + b"\n" for row in parsed)
    content["rows/runs.jsonl"] = b"".join(json.dumps(row).encode() + b"\n" for row in runs)
    return _save(folder, pack(content))


def manifests(rng: Random, folder: Path, stock: Stock) -> Path:
    """Another manifest."""
    content = members(stock)
    manifest = json.loads(content["manifest.json"])
    if rng.random() < 0.5:
        manifest["project"] = change_json(rng, manifest["project"], rng.choice((1, 2)))
        changed = json.dumps(manifest).encode()
    else:
        changed = as_json(rng, change_json(rng, manifest))
    return _save(folder, pack({**content, "manifest.json": changed}, sealed=False))


def member_names(rng: Random, folder: Path, stock: Stock) -> Path:
    """Members outside, absolute, twice, as links, or that no row names."""
    content = members(stock)
    out, name = io.BytesIO(pack(content, sealed=rng.random() < 0.9)), rng.choice(_NAMES)
    if rng.random() < 0.5 and name:
        return _save(folder, pack({**content, name: b"{}"}))
    with zipfile.ZipFile(out, "a") as archive:
        info = zipfile.ZipInfo(rng.choice((name or "x", *content)))
        info.external_attr = rng.choice((0o120777, 0o010644, 0o040755, 0o100644, 0o020644)) << 16
        archive.writestr(info, rng.choice((b"/etc/passwd", b"", bytes(10**6))))
    return _save(folder, out.getvalue())


def checksums(rng: Random, folder: Path, stock: Stock) -> Path:
    """A member that is not what the manifest says."""
    content = members(stock)
    name = rng.choice(sorted(set(content) - {"manifest.json"}))
    how = rng.randrange(3)
    if how == 0:
        del content[name]
    else:
        content[name] = damage(rng, content[name]) if content[name] and how == 1 else content[name] + b"x"
    return _save(folder, pack(content, sealed=False))


def uploads(rng: Random, folder: Path, stock: Stock) -> Path:
    """An upload of another name or content, with its row: programs, bombs, odd names."""
    content = members(stock)
    row = _lines(content["rows/blobs.jsonl"])[0]
    old = row["sha256"]
    new = rng.choice((stock.weights["zip"], b"", stock.archive, rng.randbytes(100), bytes(10**7)))
    sha256 = hashlib.sha256(new).hexdigest()
    names = ("..", ".", "", "x" * 201, "\x1b[2J", "a\nb", "\u202e", "con", "~", "-rf", "é" * 150)
    row |= {"sha256": sha256, "size": len(new), "name": rng.choice(names)}
    del content[f"blobs/{old}"]
    content = {name: each.replace(old.encode(), sha256.encode()) for name, each in content.items()}
    content["rows/blobs.jsonl"] = json.dumps(row).encode() + b"\n"
    return _save(folder, pack({**content, f"blobs/{sha256}": new}))


def bombs(rng: Random, folder: Path, stock: Stock) -> Path:  # noqa: ARG001
    """A manifest or a row that inflates to a gigabyte."""
    head, n = (
        rng.choice((b'{"format": "defuse project", "version": 1, "x": "', b"[" * 1000, b"")),
        rng.choice((2**26, 2**30)),
    )
    return _save(folder, packed_member(rng.choice(("manifest.json", "rows/runs.jsonl")), head, n))


def long_rows(rng: Random, folder: Path, stock: Stock) -> Path:
    """Very many rows, or one of megabytes."""
    content = members(stock)
    answer = _lines(content["rows/annotations.jsonl"])[0]
    row = json.dumps({**answer, "key": None}).encode() + b"\n"
    make: Callable[[], bytes] = rng.choice(
        (
            lambda: row * 20_000,
            lambda: json.dumps({**answer, "annotator": "a" * 10**7}).encode() + b"\n",
            lambda: b"[" * 10**6 + b"\n",
            lambda: b"\n" * 10**5,
            lambda: row.rstrip(),
            lambda: json.dumps(hostile_value(rng)).encode("utf-8", "surrogatepass") + b"\n",
        )
    )
    return _save(folder, pack({**content, "rows/annotations.jsonl": make()}))


def damaged(rng: Random, folder: Path, stock: Stock) -> Path:
    """A good archive with flipped bits, cut off, or spliced with another zip file."""
    return _save(
        folder, damage(rng, stock.archive, rng.choice((stock.npz, stock.weights["zip"], stock.archive)))
    )


def odd(rng: Random, folder: Path, stock: Stock) -> Path:  # noqa: ARG001
    """No usual file at all."""
    return odd_path(rng, folder, ".zip")


KINDS = tuple(
    Kind(f"archive-{name}", "archive", make, share)
    for name, make, share in (
        ("rows", rows, 3),
        ("answers", answers, 2),
        ("manifest", manifests, 1.5),
        ("members", member_names, 1),
        ("checksums", checksums, 0.5),
        ("uploads", uploads, 0.5),
        ("bombs", bombs, 0.2),
        ("long-rows", long_rows, 0.3),
        ("damaged", damaged, 2),
        ("odd", odd, 0.5),
    )
)
