"""Tell the format of a checkpoint by its content, never by its name; nothing is run or unpickled.

Imports no torch, so that the answer comes at once.
"""

from __future__ import annotations

import errno
import struct
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from defuse_core.base.errors import CheckpointError
from defuse_core.base.files import open_file
from defuse_core.base.limits import MAX_HEADER_BYTES
from defuse_core.base.zips import bounded_zip

CheckpointFormat = Literal["safetensors", "state_dict", "torchscript", "exported"]

PROGRAMS: tuple[CheckpointFormat, ...] = ("torchscript", "exported")
"""Formats that run code of their own."""

SAVE_WEIGHTS = 'torch.save(model.state_dict(), "weights.pt")'
"""The remedy for most files: the weights alone."""

_LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""0x1950a86a20f9469cfc6c as pickled; torch.save wrote it first before 1.6."""
_FOREIGN = {
    b"\x89HDF\r\n\x1a\n": "an HDF5 file, which Keras and TensorFlow write",
    b"\x1f\x8b": "a gzip archive; unpack it first",
    b"BZh": "a bzip2 archive; unpack it first",
    b"\xfd7zXZ\x00": "an xz archive; unpack it first",
    b"\x93NUMPY": "a NumPy array",
    b"GGUF": "a GGUF file of a language model",
    b"version https://git-lfs": "a pointer that Git LFS left in place of the file; run git lfs pull",
    b"<": "a web page or XML; the download went wrong",
}
_TAR_MAGIC = slice(257, 262)


_OF_ZIPFILE = (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError, struct.error)


@contextmanager
def open_zip(path: Path) -> Iterator[zipfile.ZipFile]:
    """Open a zip archive with a directory of at most `MAX_ZIP_DIRECTORY` bytes.

    Raises
    ------
    CheckpointError
        If it is cut off or damaged; also for damage that is met inside the context.
    """
    try:
        with bounded_zip(path) as archive:
            yield archive
    except CheckpointError:
        raise
    except (*_OF_ZIPFILE, OSError) as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise  # of the disk; the others are of an offset that no file has
        raise CheckpointError(
            f"{path} is a zip archive (as torch.save writes) that is cut off or damaged ({error}); copy or "
            "download it again"
        ) from error


def sniff_format(path: str | Path) -> CheckpointFormat:
    """Tell the format of a checkpoint from its first bytes, or from the directory of its zip archive.

    Returns
    -------
    {"safetensors", "state_dict", "torchscript", "exported"}
        The last two are programs, to be opened by `load_program` with the user's consent.

    Raises
    ------
    CheckpointError
        If the file is missing, empty, cut off or of another kind; the message says which.
    """
    path = Path(path)
    with open_file(path) as file:
        head = file.read(512)
    size = path.stat().st_size
    if not head:
        raise CheckpointError(f"{path} is empty; copy or download it again")
    if head.startswith(b"PK"):
        return _sniff_zip(path)
    if head.startswith(b"\x80") and _LEGACY_MAGIC in head[:32]:
        return "state_dict"
    if head[8:9] == b"{":
        return _sniff_safetensors(path, int.from_bytes(head[:8], "little"), size)
    raise CheckpointError(_foreign(path, head))


def _foreign(path: Path, head: bytes) -> str:
    """Say what a file is that is no checkpoint."""
    remedy = f"bring a PyTorch checkpoint: {SAVE_WEIGHTS}, or safetensors"
    for magic, what in _FOREIGN.items():
        if head.startswith(magic):
            return f"{path} is {what}; {remedy}"
    if head[_TAR_MAGIC] == b"ustar":
        return f"{path} is a tar archive (PyTorch 0.1 wrote such, too); unpack it, or {remedy}"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return (
            f"{path} is a pickle that torch.save did not write: a program that would run when opened, so it "
            f"was not opened; in the program that made it: {SAVE_WEIGHTS}, and upload that"
        )
    return (
        f"{path} is no checkpoint of a kind that is known: neither safetensors nor written by PyTorch (ONNX, "
        f"TensorFlow, a file that is cut off?); {remedy}"
    )


def _sniff_safetensors(path: Path, header_size: int, size: int) -> CheckpointFormat:
    if 8 + header_size > size:
        raise CheckpointError(
            f"{path} looks like safetensors, but its header of {header_size} bytes is cut off at {size} "
            "bytes; copy or download it again"
        )
    if header_size > MAX_HEADER_BYTES:
        raise CheckpointError(
            f"{path} has a safetensors header of {header_size:,} bytes, more than the {MAX_HEADER_BYTES:,} "
            "that are read; bring one network's weights alone"
        )
    return "safetensors"


def _sniff_zip(path: Path) -> CheckpointFormat:
    with open_zip(path) as archive:
        names = archive.namelist()
    inside = {name.partition("/")[2] for name in names}  # below the one folder that torch writes
    exported = any(name.startswith("models/") and name.endswith(".json") for name in inside)
    if "serialized_exported_program.json" in names or ("archive_format" in inside and exported):
        return "exported"
    if "constants.pkl" in inside or any(name.startswith("code/") for name in inside):
        return "torchscript"
    if "data.pkl" in inside:
        return "state_dict"
    raise CheckpointError(
        f"{path} is {_foreign_zip(names, inside)}; bring a PyTorch checkpoint: {SAVE_WEIGHTS}"
    )


def _foreign_zip(names: list[str], inside: set[str]) -> str:
    """Say what a zip archive is that torch did not write."""
    if not names:
        return "an empty zip archive"
    if any(name.startswith("data/aotinductor/") for name in inside):
        return "a model compiled for one kind of machine (AOTInductor)"
    if any(name.endswith((".h5", ".keras")) for name in names) or "metadata.json" in names:
        return "a Keras model"
    if all(name.endswith(".npy") for name in names):
        return "a set of NumPy arrays (.npz)"
    some = ", ".join(name[:60] for name in names[:3])
    return f"a zip archive that PyTorch did not write (it holds {some}); unpack it if a checkpoint is in it"
