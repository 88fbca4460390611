"""Kinds of hostile safetensors files: headers that lie, and metadata that Defuse reads."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from random import Random
from typing import Any

from tests.campaign.kinds import Kind, Stock, as_json, change_json, hostile_value, write

_DTYPES = ("F32", "F16", "BF16", "F64", "I64", "U8", "BOOL", "F8_E4M3", "F8_E5M2", "F4", "C64", "X", "")


def _safetensors(folder: Path, header: bytes, data: bytes, *, length: int | None = None) -> Path:
    head = struct.pack("<Q", len(header) if length is None else length)
    return write(folder, "weights.safetensors", head + header + data)


def split_header(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file and its data.

    Parameters
    ----------
    content : bytes
    """
    (length,) = struct.unpack("<Q", content[:8])
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def headers(rng: Random, folder: Path, stock: Stock) -> Path:
    """A good file with values of its header changed."""
    header, data = split_header(stock.weights["safetensors"])
    return _safetensors(folder, as_json(rng, change_json(rng, header, rng.choice((1, 1, 3)))), data)


def lies(rng: Random, folder: Path, stock: Stock) -> Path:
    """Offsets that overlap or lie outside, huge shapes and lengths, numbers and brackets by the thousand."""
    header, data = split_header(stock.weights["safetensors"])
    weight = header["fc1.weight"]
    how = rng.randrange(8)
    if how == 0:
        lengths = (0, 1, 2**31, 2**62, 2**63, 2**64 - 1, len(data))
        return _safetensors(folder, json.dumps(header).encode(), data, length=rng.choice(lengths))
    if how == 1:
        weight["shape"] = rng.choice(
            ([10**9, 10**9], [2**63, 2], [0, 2**62], [1] * 2000, [-1, -6272], [], [8.5, 784])
        )
    elif how == 2:
        starts = rng.choice(((0, 10), (10, 0), (0, 2**63), (2**63, 2**64), (-1, 5), (0, len(data) + 1)))
        weight["data_offsets"] = list(starts)
    elif how == 3:
        header["fc2.weight"]["data_offsets"] = weight["data_offsets"]
        header["fc2.weight"]["shape"] = weight["shape"]
    elif how == 4:
        weight["dtype"] = rng.choice(_DTYPES)
    elif how == 5:
        text = json.dumps(header).replace("784", "7" * 5000 if rng.random() < 0.5 else "7.84e2")
        return _safetensors(folder, text.encode(), data)
    elif how == 6:
        return _safetensors(folder, b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", data)
    else:
        text = json.dumps(header)[:-1] + ', "fc1.weight": ' + json.dumps(header["fc2.bias"]) + "}"
        return _safetensors(folder, text.encode(), data)
    return _safetensors(folder, json.dumps(header).encode(), data)


def many_keys(rng: Random, folder: Path, stock: Stock) -> Path:  # noqa: ARG001
    """Very many names of tensors without elements."""
    n = rng.choice((1000, 100_000, 300_000))
    empty = {f"layer{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(n)}
    return _safetensors(folder, json.dumps(empty).encode(), b"")


def numbers(rng: Random, folder: Path, stock: Stock) -> Path:
    """Weights that are not finite, or are no numbers of a network that is known."""
    header, data = split_header(stock.weights["safetensors"])
    special = struct.pack("<f", rng.choice((float("nan"), float("inf"), -float("inf"), 3e38)))
    at = 4 * rng.randrange(len(data) // 4)
    names = {
        name: rng.choice((name, name, "x" * 300, "\x1b[2J", "", "é", f"module.{name}")) for name in header
    }
    renamed = {names[name] if name != "__metadata__" else name: value for name, value in header.items()}
    return _safetensors(folder, json.dumps(renamed).encode(), data[:at] + special + data[at + 4 :])


def metadata(rng: Random, folder: Path, stock: Stock) -> Path:
    """A good network with metadata that Defuse reads: names of classes, architecture, preprocessing."""
    header, data = split_header(stock.weights["safetensors"])
    about = header["__metadata__"]
    name = rng.choice(sorted(about))
    how = rng.randrange(6)
    if how == 0:
        about[name] = json.dumps(hostile_value(rng))
    elif how == 1:
        about[name] = rng.choice(("[" * 100_000, "1" * 5000, "NaN", "{", "\0", '"\\ud800"'))
    elif how == 2:
        about["architecture"] = json.dumps(
            rng.choice(("os:system", "torchscript", "resnet152", "\x1b[2J", "../x:Y"))
        )
    elif how == 3:
        fed = {"mean": [0.1], "std": [0.3], "image_size": None, "channel_order": "rgb"}
        about["preprocessing"] = json.dumps(change_json(rng, fed, 2))
    else:
        about[name] = json.dumps(change_json(rng, json.loads(about[name])))
    content = json.dumps(header)
    return _safetensors(folder, content.encode("utf-8", "surrogatepass"), data)


KINDS = (
    Kind("safetensors-header", "weights", headers, 2),
    Kind("safetensors-lies", "weights", lies, 2),
    Kind("safetensors-numbers", "weights", numbers),
    Kind("safetensors-many-keys", "weights", many_keys, 0.1),
    Kind("model-metadata", "model", metadata, 2),
    Kind("model-header", "model", headers, 0.5),
    Kind("model-lies", "model", lies, 0.5),
    Kind("model-numbers", "model", numbers, 0.5),
    Kind("model-many-keys", "model", many_keys, 0.1),
)
