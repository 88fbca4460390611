"""Kinds of hostile checkpoints that are pickles: code, claims of memory, odd zip files."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from random import Random

import numpy as np

from tests.campaign import pickles as p
from tests.campaign.kinds import Kind, Stock, damage, odd_path, write

_FLOATS = b"\0\0\x80?" * 16


def _pt(folder: Path, content: bytes) -> Path:
    return write(folder, "weights.pt", content)


def code(rng: Random, folder: Path, stock: Stock) -> Path:  # noqa: ARG001
    """A pickle that calls a function, alone or beside weights, in any container."""
    running, good = p.running(rng, folder), (p.text("weight"), p.tensor("0", [16], [1], 16))
    content = rng.choice(
        (
            running,
            p.mapped(good, (p.text("x"), running)),
            p.mapped((p.text("state_dict"), p.mapped(good)), (p.text("args"), running)),
            running + b"0" + p.mapped(good),
            p.mapped((running, p.tensor("0", [16], [1], 16))),
            p.listed(running),
        )
    )
    return _pt(folder, p.in_any(rng, p.program(content, rng.randrange(6)), {"0": _FLOATS}))


def code_in_npz(rng: Random, folder: Path, stock: Stock) -> Path:  # noqa: ARG001
    """An array of objects, whose pickle calls a function, under the name of weights."""
    return _pt(folder, object_npz(rng, folder))


def object_npz(rng: Random, folder: Path) -> bytes:
    """An .npz with an array of objects, whose pickle calls a function.

    Parameters
    ----------
    rng : Random
    folder : Path
        Of the trial.
    """
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117) + b"\n"
    member = (
        b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + p.program(p.running(rng, folder))
    )
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name in ("x_train", "y_train", "x_test", "y_test", "class_names"):
            archive.writestr(f"{name}.npy", member)
    return out.getvalue()


def _huge(rng: Random) -> int:
    return rng.choice((10**9, 2**31, 2**40, 2**62, 2**63 - 1, 2**63, 10**30))


def claims(rng: Random, folder: Path, stock: Stock) -> Path:  # noqa: ARG001
    """Few bytes that claim to be many: expanded tensors, and containers made of them."""
    n = _huge(rng)
    expanded = p.tensor("0", [n], [0], 16)
    ordered, counter = p.named("collections", "OrderedDict"), p.named("collections", "Counter")
    device = p.named("torch._utils", "_rebuild_device_tensor_from_cpu_tensor")
    value = rng.choice(
        (
            lambda: expanded,
            lambda: p.called(p.named("builtins", "set"), expanded),
            lambda: p.called(p.named("__builtin__", "set"), expanded),
            lambda: p.called(counter, expanded),
            lambda: p.called(ordered, p.listed(p.several(expanded, expanded))),
            lambda: p.called(p.named("torch", "Size"), expanded),
            lambda: p.called(device, expanded, p.named("torch", "float64"), p.text("cpu"), b"\x89"),
            lambda: p.called(device, expanded, p.named("torch", "float64"), p.text("meta"), b"\x89"),
            lambda: p.tensor("0", [n, n], [1, 1], 16),
            lambda: p.tensor("0", [16], [1], n),
            lambda: p.tensor("0", [4], [-1], 16, offset=rng.choice((-1, 15, n))),
            lambda: p.tensor("0", [0] * 1000, [1] * 1000, 16),
            lambda: p.tensor("0", [0, n], [n, 1], 16),
            lambda: p.tensor(
                "0", [16], [1], 16, kind=rng.choice(("ComplexDoubleStorage", "QInt8Storage", "X"))
            ),
            lambda: p.called(p.named("builtins", "bytearray"), p.whole(n)),
            lambda: p.called(p.stacked("builtins", "bytearray"), p.whole(n)),
            lambda: b"\x8e" + struct.pack("<Q", min(n, 2**63)) + b"x",
            lambda: b"X\xff\xff\xff\xff",
            lambda: b"\x8b\xff\xff\xff\x7f",
            lambda: p.listed(*[p.whole(1)] * 3) + b"r\xff\xff\xff\xff" + b"j\xff\xff\xff\xff",
        )
    )()
    plain = (p.text("weight"), p.tensor("0", [16], [1], 16))
    content = rng.choice(
        (p.mapped((p.text("weight"), value)), value, p.mapped(plain, (p.text("more"), value)))
    )
    return _pt(folder, p.in_any(rng, p.program(content), {"0": _FLOATS}))


def nested(rng: Random, folder: Path, stock: Stock) -> Path:  # noqa: ARG001
    """Values that are small in the file and large when they are hashed, compared or printed."""
    depth = rng.choice((10, 60, 1000, 100_000))
    doubled = b")" + b"q\x01h\x01\x86" * min(depth, 1000)  # a tuple of itself twice, again and again
    value = rng.choice(
        (
            lambda: p.mapped((doubled, p.tensor("0", [16], [1], 16))),
            lambda: p.mapped((p.text("weight"), doubled)),
            lambda: b"]" * depth + b"a" * (depth - 1),
            lambda: b"(" * depth + b"t" * depth,
            lambda: p.called(p.named("collections", "OrderedDict"), p.listed(p.several(doubled, b"N"))),
            lambda: p.called(p.named("builtins", "set"), p.listed(doubled)),
            lambda: b"}q\x00" + p.text("model") + b"h\x00s",  # a dict that holds itself
            lambda: b"}q\x00" + p.text("state_dict") + b"h\x00s" + p.text("a" * 10**5) + b"h\x00s",
            lambda: p.mapped((p.text("\ud800"), p.tensor("0", [16], [1], 16))),
            lambda: p.mapped(
                (p.text(rng.choice(("\x1b[2J", "a\nb", "", "." * 5000))), p.tensor("0", [4], [1], 16))
            ),
            lambda: b"I" + b"9" * 5000 + b"\n",
        )
    )()
    return _pt(folder, p.in_any(rng, p.program(value), {"0": _FLOATS}))


def attributes(rng: Random, folder: Path, stock: Stock) -> Path:  # noqa: ARG001
    """A tensor that has attributes of its own, named as what a check would ask it."""
    rebuild, of = p.named("torch._tensor", "_rebuild_from_type_v2"), p.named("torch", "Tensor")
    make = p.named("torch._utils", "_rebuild_tensor_v2")
    views = (p.whole(0), p.several(p.whole(10**9)), p.several(p.whole(0)), b"\x89", b"}")
    names = (
        "numel",
        "element_size",
        "shape",
        "dtype",
        "layout",
        "is_meta",
        "is_quantized",
        "detach",
        "clone",
        "__class__",
    )
    own = p.mapped(*((p.text(name), p.whole(1)) for name in rng.sample(names, 3)))
    tricked = p.called(rebuild, make, of, p.several(p.storage("0", 16), *views), own)
    built = p.tensor("0", [10**9], [0], 16) + own + b"b"
    parameter = p.called(
        p.named("torch._utils", "_rebuild_parameter_with_state"),
        p.tensor("0", [16], [1], 16),
        b"\x89",
        b"}",
        own,
    )
    value = rng.choice(
        (tricked, built, parameter, p.called(rebuild, p.named("builtins", "set"), of, p.several(), own))
    )
    return _pt(folder, p.in_zip(p.program(p.mapped((p.text("weight"), value))), {"0": _FLOATS}))


def many_keys(rng: Random, folder: Path, stock: Stock) -> Path:  # noqa: ARG001
    """A third of a million names, of one tensor each or of one tensor for all."""
    n = rng.choice((10_000, 100_000, 300_000))
    shared = p.tensor("0", [1], [1], 16) + b"q\x00"
    pairs = b"".join(p.text(f"layer{i}.weight") + (b"h\x00" if i else shared) for i in range(n))
    return _pt(folder, p.in_zip(p.program(b"}(" + pairs + b"u"), {"0": _FLOATS}))


def many_records(rng: Random, folder: Path, stock: Stock) -> Path:  # noqa: ARG001
    """A zip directory of very many records."""
    records = {str(i): b"" for i in range(rng.choice((1000, 20_000)))}
    pickled = p.program(p.mapped((p.text("weight"), p.tensor("0", [16], [1], 16))))
    return _pt(folder, p.in_zip(pickled, {**records, "0": _FLOATS}))


def contradicting(rng: Random, folder: Path, stock: Stock) -> Path:
    """A zip file that two readers read differently, or that inflates."""
    good, pickled = stock.weights["zip"], p.program(p.mapped((p.text("w"), p.tensor("0", [16], [1], 16))))
    bad = p.in_zip(p.program(p.mapped((p.text("w"), p.tensor("0", [10**9], [0], 16)))), {"0": _FLOATS})
    code = p.in_zip(p.program(p.running(rng, folder)), {"0": _FLOATS})
    inflating = p.in_zip(pickled, {"0": bytes(rng.choice((10**6, 10**8)))}, packed=True)
    how = rng.randrange(7)
    if how == 0:
        content = inflating
    elif how == 1:  # the end of another zip file behind the comment of the first
        content = good + rng.choice((bad, code, inflating))
    elif how == 2:  # a zip64 locator that shows another directory
        content = _two_directories(rng.choice((bad, code, inflating)), good)
    elif how == 3:  # equal names
        content = _doubled_member(good, rng.choice((bad, code)))
    elif how == 4:  # sizes of the directory that differ from those of the member
        content = _claim_sizes(rng, good)
    elif how == 5:
        content = good + rng.randbytes(rng.choice((1, 22, 70_000)))
    else:
        content = rng.choice((b"\0" * 512, b"#!/bin/sh\n", b"PK\x05\x06" + bytes(18))) + good
    return _pt(folder, content)


def _two_directories(hidden: bytes, shown: bytes) -> bytes:
    """A file whose end record shows one directory, and whose zip64 record another."""
    end = shown[-22:]
    entries, length, start = struct.unpack("<HLL", end[10:20])
    record = struct.pack(
        "<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, *(entries, entries), length, len(hidden) + start
    )
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, len(hidden) + len(shown) - 22, 1)
    return hidden + shown[:-22] + record + locator + hidden[-22:]


def _doubled_member(good: bytes, other: bytes) -> bytes:
    out = io.BytesIO(good)
    with zipfile.ZipFile(out, "a") as archive, zipfile.ZipFile(io.BytesIO(other)) as second:
        name = next(info.filename for info in archive.infolist() if info.filename.endswith("data.pkl"))
        info = zipfile.ZipInfo(name)
        archive.writestr(info, second.read("archive/data.pkl"))
    return out.getvalue()


def _claim_sizes(rng: Random, good: bytes) -> bytes:
    """Another size for a record in the zip directory."""
    content = bytearray(good)
    at = content.find(b"PK\x01\x02")
    claimed = rng.choice((0, 1, 2**31, 2**32 - 1))
    field = rng.choice((20, 24, 42))  # packed size, size, offset
    content[at + field : at + field + 4] = struct.pack("<L", claimed)
    return bytes(content)


def damaged(rng: Random, folder: Path, stock: Stock, *, form: str) -> Path:
    """A good file with flipped bits, cut off, or spliced with another."""
    other = stock.weights[rng.choice(sorted(stock.weights))]
    return _pt(folder, damage(rng, stock.weights[form], other))


def damaged_pickle(rng: Random, folder: Path, stock: Stock) -> Path:
    """A good zip file whose pickle has damage that no checksum shows."""
    with zipfile.ZipFile(io.BytesIO(stock.weights["zip"])) as archive:
        members = {info.filename: archive.read(info) for info in archive.infolist()}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, damage(rng, content) if name.endswith("data.pkl") else content)
    return _pt(folder, out.getvalue())


def foreign(rng: Random, folder: Path, stock: Stock) -> Path:
    """A file of another program."""
    array = io.BytesIO()
    np.save(array, np.zeros(3))
    content = rng.choice(
        (
            b"\x89HDF\r\n\x1a\n", b"\x1f\x8b" + zlib.compress(b"x"), b"GGUF\3\0\0\0",
            b"<html>not found</html>",
            b"version https://git-lfs.github.com/spec/v1\n", array.getvalue(), stock.archive, stock.npz,
            b"\x80\x02",
            b"\x80\x05.", b"\x08\x07\x12\x07pytorch", rng.randbytes(1000), b"\0" * 100, b"{", b"PK",
            b"PK\x03\x04",
        )
    )  # fmt: skip
    return _pt(folder, content + rng.randbytes(rng.choice((0, 0, 5, 600))))


def odd(rng: Random, folder: Path, stock: Stock) -> Path:  # noqa: ARG001
    """No usual file at all."""
    return odd_path(rng, folder, ".pt")


def _named(name: str, make: Callable[..., Path], share: float = 1.0) -> Kind:
    return Kind(name, "weights", make, share)


KINDS = (
    _named("pickle-code", code, 4),
    _named("pickle-code-npz", code_in_npz, 0.5),
    _named("pickle-claims", claims, 2),
    _named("pickle-nested", nested),
    _named("pickle-attributes", attributes, 0.5),
    _named("pickle-many-keys", many_keys, 0.1),
    _named("pickle-many-records", many_records, 0.1),
    _named("pickle-zip", contradicting, 2),
    _named("pickle-opcodes", damaged_pickle, 2),
    *(
        _named(f"damaged-{form}", partial(damaged, form=form), 1.5)
        for form in ("zip", "legacy", "safetensors")
    ),
    _named("foreign-weights", foreign, 0.5),
    _named("odd-weights", odd, 0.5),
)
