"""What a kind of hostile file is, and the ways to damage a good one that all families share."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

MARKER = "code-was-run"
"""Name of the file that code of a trial creates in the trial's folder, if it is run."""


@dataclass(frozen=True)
class Stock:
    """Good files, made once before the first child.

    Attributes
    ----------
    root : Path
        `home` is a workspace with regions and labels, `suite` a regression suite.
    weights : dict of str to bytes
        Checkpoints by format: zip, legacy, safetensors.
    archive : bytes
        An exported project.
    manifest : dict
    npz : bytes
    all_networks : bool
        Whether weights of unknown names are compared with every network.
    """

    root: Path
    weights: dict[str, bytes]
    archive: bytes
    manifest: dict[str, Any]
    npz: bytes
    all_networks: bool = True


Make = Callable[[Random, Path, Stock], Path]
"""Makes the file of a trial in its folder, and returns its path."""


@dataclass(frozen=True)
class Kind:
    """A kind of hostile file.

    Attributes
    ----------
    name : str
    door : str
        A key of `doors.DOORS`.
    make : callable
    share : float
        Trials of the kind, as a multiple of what others have.
    """

    name: str
    door: str
    make: Make
    share: float = 1.0


def write(folder: Path, name: str, content: bytes) -> Path:
    """Write a file of the trial.

    Parameters
    ----------
    folder : Path
    name : str
    content : bytes
    """
    path = folder / name
    path.write_bytes(content)
    return path


def damage(rng: Random, content: bytes, other: bytes = b"") -> bytes:
    """Flip bits, cut, double, splice or lengthen a file.

    Parameters
    ----------
    rng : Random
    content : bytes
    other : bytes
        A second good file to splice with; by default `content` itself.
    """
    how = rng.choice(("flip", "flip", "cut", "tail", "double", "splice", "zero", "numbers"))
    at = rng.randrange(max(len(content), 1))
    if how == "flip":
        changed = bytearray(content)
        for _ in range(rng.choice((1, 1, 2, 8, 64))):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        return bytes(changed)
    if how == "cut":
        return content[:at]
    if how == "tail":
        return content + rng.randbytes(rng.choice((1, 22, 1000)))
    if how == "double":
        return content[:at] + content[at // 2 :]
    if how == "splice":
        second = other or content
        return content[:at] + second[rng.randrange(max(len(second), 1)) :]
    width = rng.choice((1, 4, 8, 64))
    filling = b"\0" if how == "zero" else rng.choice((b"\xff", b"\x7f", b"\x80"))
    return content[:at] + filling * width + content[at + width :]


HOSTILE_NUMBERS: tuple[Any, ...] = (
    0, -1, -5, 1, 99, 2**31, 2**53 + 1, 2**62, 2**63, -(2**63), 2**64, 10**400, 1e308, -1e308, 5e-324, -0.0,
    float("inf"), float("nan"), 0.1, True, None,
)  # fmt: skip
HOSTILE_TEXTS = (
    "", " ", "\0", "\x1b[2J", "../../x", "/etc/passwd", "a" * 10_000, "\ud800", "\u202e", "é", "=1+1",
    "\n", "NaN",
    "1e308", "-0", "9" * 5000, "{}", "corrected:1", "blob:" + "0" * 64, "http://127.0.0.1/", "%s%n",
)  # fmt: skip


def hostile_value(rng: Random, depth: int = 0) -> Any:
    """A value of JSON that nobody expects.

    Parameters
    ----------
    rng : Random
    depth : int
        How deep the value lies already.
    """
    pick = rng.randrange(8 if depth < 3 else 6)
    if pick < 3:
        return rng.choice(HOSTILE_NUMBERS)
    if pick < 6:
        return rng.choice(HOSTILE_TEXTS)
    values = [hostile_value(rng, depth + 1) for _ in range(rng.randrange(4))]
    return values if pick == 6 else {rng.choice(HOSTILE_TEXTS): value for value in values}


def change_json(rng: Random, document: Any, times: int = 1) -> Any:
    """A copy of a document, with values replaced, removed, added or doubled anywhere.

    Parameters
    ----------
    rng : Random
    document : object
    times : int
        How many changes.
    """
    document = json.loads(json.dumps(document))
    for _ in range(times):
        places = list(_places(document))
        if not places:
            return hostile_value(rng)
        holder, key = rng.choice(places)
        how = rng.randrange(6)
        if how == 0 and isinstance(holder, dict):
            del holder[key]
        elif how == 1 and isinstance(holder, dict):
            holder[rng.choice(("code_path", "trust_program", "__class__", "x", ""))] = hostile_value(rng)
        elif how == 2 and isinstance(holder, list):
            holder.append(holder[key])
        else:
            holder[key] = hostile_value(rng)
    return document


def _places(value: Any) -> list[tuple[Any, Any]]:
    keys = range(len(value)) if isinstance(value, list) else list(value) if isinstance(value, dict) else ()
    return [place for key in keys for place in ((value, key), *_places(value[key]))]


def as_json(rng: Random, document: Any) -> bytes:
    """A document as JSON, now and then as no other program would write it.

    Parameters
    ----------
    rng : Random
    document : object
    """
    text = json.dumps(document, ensure_ascii=rng.random() < 0.5)
    how = rng.randrange(24)
    if how == 0:
        text = text.replace("1", "1" * rng.choice((20, 400, 5000)), 3)
    elif how == 1:
        text = "[" * 100_000 + text
    elif how == 2:
        text = text.replace(":", ':{"":' * 2000, 1)
    content = text.encode("utf-8", "surrogatepass")
    return damage(rng, content) if how == 3 else content


def odd_path(rng: Random, folder: Path, suffix: str = "") -> Path:
    """A path that is no usual file: FIFO, folder, link in a circle, device, odd or missing name.

    Parameters
    ----------
    rng : Random
    folder : Path
    suffix : str
        Of the name.
    """
    path = folder / f"odd{suffix}"
    what = rng.choice(
        ("fifo", "folder", "loop", "zero", "null", "missing", "bytes", "long", "escape", "empty")
    )
    if what == "fifo":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    elif what in ("loop", "zero", "null"):
        path.symlink_to({"loop": path, "zero": Path("/dev/zero"), "null": Path("/dev/null")}[what])
    elif what == "long":
        path = folder / f"{'x' * 200}{suffix}"
        path.write_bytes(rng.randbytes(50))
    elif what in ("bytes", "escape"):
        name = b"\xff\xfe\x80" if what == "bytes" else b"\x1b[31m\n"
        path = folder / os.fsdecode(name + suffix.encode())
        path.write_bytes(rng.randbytes(50))
    elif what == "empty":
        path.touch()
    return path
