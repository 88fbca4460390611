"""Pickles put together by opcode, and the containers that torch.save and others put them in.

Functions return the bytes that push one value. A program's payload only creates the trial's marker file.
"""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from tests.campaign.kinds import MARKER

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
DTYPES = {"FloatStorage": 4, "DoubleStorage": 8, "HalfStorage": 2, "LongStorage": 8, "ByteStorage": 1}


def text(value: str) -> bytes:
    """A str."""
    content = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(content)) + content


def raw(value: bytes) -> bytes:
    """A bytes object."""
    return b"B" + struct.pack("<I", len(value)) + value


def whole(value: int) -> bytes:
    """An int of any size."""
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    return pickle.dumps(value, 2)[2:-1]


def several(*parts: bytes) -> bytes:
    """A tuple."""
    return b"(" + b"".join(parts) + b"t"


def listed(*parts: bytes) -> bytes:
    """A list."""
    return b"](" + b"".join(parts) + b"e"


def mapped(*pairs: tuple[bytes, bytes]) -> bytes:
    """A dict."""
    return b"}(" + b"".join(key + value for key, value in pairs) + b"u"


def named(module: str, name: str) -> bytes:
    """A global, by the opcode of protocol 0."""
    return f"c{module}\n{name}\n".encode()


def stacked(module: str, name: str) -> bytes:
    """A global, by the opcode of protocol 4, which takes dots in the name."""
    return text(module) + text(name) + b"\x93"


def called(function: bytes, *arguments: bytes) -> bytes:
    """What a function returns."""
    return function + several(*arguments) + b"R"


def storage(key: str, n: int, kind: str = "FloatStorage", device: str = "cpu") -> bytes:
    """A storage of torch.save, by its persistent id."""
    return several(text("storage"), named("torch", kind), text(key), text(device), whole(n)) + b"Q"


def tensor(
    key: str,
    shape: Sequence[int],
    strides: Sequence[int],
    n: int,
    *,
    offset: int = 0,
    kind: str = "FloatStorage",
) -> bytes:
    """A tensor that claims a view of a storage of `n` elements."""
    rebuild, hooks = named("torch._utils", "_rebuild_tensor_v2"), called(named("collections", "OrderedDict"))
    views = (several(*map(whole, shape)), several(*map(whole, strides)))
    return called(rebuild, storage(key, n, kind), whole(offset), *views, b"\x89", hooks)


def program(content: bytes, protocol: int = 2) -> bytes:
    """A whole pickle that returns one value."""
    return (b"\x80" + bytes([protocol]) if protocol > 1 else b"") + content + b"."


# What a program would run


def payload(rng: Random, folder: Path) -> tuple[str, str, list[bytes]]:
    """A function that creates the marker when it is called: module, name, arguments.

    Parameters
    ----------
    rng : Random
    folder : Path
        Of the trial; it gets the marker, and a script or a second pickle that creates it.
    """
    marker = str(folder / MARKER)
    code = f"open({marker!r}, 'w').close()"
    script, second = folder / "script.py", folder / "second.pkl"
    script.write_text(code)
    inner = program(called(named("builtins", "exec"), text(code)))
    second.write_bytes(inner)
    return rng.choice(
        (
            ("os", "system", [text(f"touch '{marker}'")]),
            ("posix", "system", [text(f"touch '{marker}'")]),
            ("builtins", "exec", [text(code)]),
            ("builtins", "eval", [text(code)]),
            ("__builtin__", "eval", [text(code)]),
            ("builtins", "open", [text(marker), text("w")]),
            ("io", "open", [text(marker), text("w")]),
            ("os", "mkdir", [text(marker)]),
            ("subprocess", "check_call", [listed(text("touch"), text(marker))]),
            ("subprocess", "getoutput", [text(f"touch '{marker}'")]),
            ("runpy", "run_path", [text(str(script))]),
            ("timeit", "timeit", [text(code), text("pass"), named("time", "time"), whole(1)]),
            ("shutil", "copy", [text(str(script)), text(marker)]),
            ("pickle", "loads", [raw(inner)]),
            ("_pickle", "loads", [raw(inner)]),
            ("torch", "load", [text(str(second))]),
            ("torch.serialization", "load", [text(str(second))]),
            ("torch.storage", "_load_from_bytes", [raw(inner)]),
            ("torch", "save", [whole(1), text(marker)]),
            ("torch.serialization", "os.system", [text(f"touch '{marker}'")]),
            ("torch._utils", "sys.modules", []),
            ("torch.jit", "load", [text(str(second))]),
            ("torch.hub", "load_state_dict_from_url", [text(f"file://{second}")]),
            ("torch.hub", "os.system", [text(f"touch '{marker}'")]),
            ("torch", "classes.load_library", [text(str(script))]),
            ("torch._tensor", "_rebuild_from_type_v2", [
                named("os", "mkdir"), named("torch", "Tensor"), several(text(marker)), mapped(),
            ]),
            ("collections", "_sys.modules", []),
            ("numpy", "load", [text(str(second)), b"N", b"\x88"]),
            ("numpy.core.multiarray", "_reconstruct", [named("builtins", "exec"), several(whole(0)),
            raw(b"b")]),
            ("functools", "partial", [named("os", "mkdir"), text(marker)]),
        )
    )  # fmt: skip


def running(rng: Random, folder: Path) -> bytes:
    """Push what calls a payload, by one of the ways that pickle has."""
    module, name, arguments = payload(rng, folder)
    function = rng.choice((named, stacked))(module, name)
    ways: tuple[Callable[[], bytes], ...] = (
        lambda: called(function, *arguments),
        lambda: function + several(*arguments) + b"\x81",  # NEWOBJ
        lambda: function + several(*arguments) + b"}\x92",  # NEWOBJ_EX
        lambda: b"(" + b"".join(arguments) + f"i{module}\n{name}\n".encode(),  # INST
        lambda: b"(" + function + b"".join(arguments) + b"o",  # OBJ
        lambda: b"(" + b"".join(arguments) + b"t" + b"\x940" + function + b"h\x00R",  # from the memo
        lambda: function + b"q\x05h\x05" + several(*arguments) + b"R",
        lambda: text("x") + b"0" + called(function, *arguments) + b"0N",  # and the result is dropped
        lambda: called(named("torch", "Tensor")) + mapped((text("__setstate__"), function)) + b"b",
        lambda: called(named("collections", "OrderedDict")) + called(function, *arguments) + b"b",
        lambda: (
            rng.choice((b"\x82\x01", b"\x83\x01\x01", b"\x84\x01\x00\x00\x01")) + several(*arguments) + b"R"
        ),
        lambda: called(stacked("builtins", "getattr"), named("os", "path"), text("os")) + b"0" + several(),
        lambda: called(named("collections", "Counter"), called(function, *arguments)),
    )
    return rng.choice(ways)()


# Containers


def in_zip(
    pickled: bytes, storages: dict[str, bytes], *, root: str = "archive", packed: bool = False
) -> bytes:
    """A file of torch.save since 1.6."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as archive:
        archive.writestr(f"{root}/data.pkl", pickled)
        archive.writestr(f"{root}/byteorder", b"little")
        for key, content in storages.items():
            archive.writestr(f"{root}/data/{key}", content)
        archive.writestr(f"{root}/version", b"3\n")
    return out.getvalue()


def in_legacy(pickled: bytes, storages: dict[str, bytes]) -> bytes:
    """A file of torch.save before 1.6."""
    about = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
    head = [pickle.dumps(each, 2) for each in (LEGACY_MAGIC, 1001, about)]
    contents = [struct.pack("<q", len(content) // 4) + content for content in storages.values()]
    own = pickled.replace(b"tQ", b"NtQ")  # a persistent id has one entry more, of views
    return b"".join([*head, own, pickle.dumps(list(storages), 2), *contents])


def in_tar(pickled: bytes) -> bytes:
    """A file of torch.save before 0.2."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            content = pickled if name == "pickle" else program(mapped())
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def in_any(rng: Random, pickled: bytes, storages: dict[str, bytes]) -> bytes:
    """One of the containers, the zip file most often."""
    how = rng.randrange(8)
    if how < 5:
        return in_zip(pickled, storages)
    if how < 7:
        return in_legacy(pickled, storages)
    return rng.choice((pickled, in_tar(pickled)))
