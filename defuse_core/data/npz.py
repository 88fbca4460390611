"""Reads arrays of an `.npz`, each only after its header, its size and the limits agree.

An `.npz` is a zip of `.npy` files. `numpy.load` allocates whatever a header claims, and leaves what is wrong
with the zip to a dozen kinds of exception; here all of them are one `DataError`.
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from defuse_core.base.limits import MAX_DATASET_BYTES, MAX_EXPANSION, SMALL_BYTES
from defuse_core.data.splits import DataError

_ENCRYPTED = 0x1  # bit of a member's flags
_VERSION = (1, 0)  # of the format .npy; others are for arrays of records, with headers of up to 4 GB


@dataclass(frozen=True)
class ArrayHeader:
    """What an `.npz` says of one of its arrays."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)


Headers = Mapping[str, ArrayHeader]


def read_npz(
    path: Path, wanted: Iterable[str], check: Callable[[Headers, list[str]], None]
) -> Iterator[tuple[str, NDArray[Any]]]:
    """Yield arrays of an `.npz` one by one, so that no two have to be in memory.

    Parameters
    ----------
    path : Path
    wanted : iterable of str
        Names of the arrays; those that the file lacks are left out, all others in it are not read.
    check : function of headers and names
        Gets the headers of the arrays wanted, and the names of all arrays in the file, before any array is
        read. It raises a `DataError` if it does not want them.

    Raises
    ------
    DataError
        If the file is missing, no regular file, damaged, encrypted, or compressed in an unusual way; if an
        array is there twice, holds objects, is not of the size that its header says, or exceeds a limit.
    """
    if not path.is_file():
        if path.exists():
            raise DataError(f"{path} is no regular file; give an .npz file")
        raise DataError(f"{path} does not exist; check the path")
    with _explained(path), zipfile.ZipFile(path) as archive:
        members = _members(archive)
        chosen = [name for name in wanted if name in members]
        _check_size(path, [members[name] for name in chosen])
        headers = {name: _read_header(archive, members[name]) for name in chosen}
        check(headers, list(members))
        for name in headers:
            yield name, _read_array(archive, members[name])  # no local name would keep it in memory


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Raise whatever goes wrong inside as a `DataError` with the remedy."""
    try:
        yield
    except DataError:
        raise
    except PermissionError as error:
        raise DataError(f"{path} may not be read ({error.strerror}); change its permissions") from error
    except MemoryError as error:
        raise DataError(f"{path} does not fit into memory; save fewer or smaller images") from error
    except Exception as error:  # numpy, zlib and zipfile raise a dozen kinds for a damaged file
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise DataError(
            f"{path} is not a readable .npz of plain arrays ({reason}); "
            "write it again with numpy.savez and no object arrays"
        ) from error


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The arrays of a zip by name."""
    members: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        name = member.filename.removesuffix(".npy")
        if name in members:
            raise ValueError(f"it holds {name[:50]} twice")
        members[name] = member
    return members


def _read_header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> ArrayHeader:
    name = member.filename
    if member.flag_bits & _ENCRYPTED:
        raise ValueError(f"{name} is encrypted")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is compressed in another way than numpy does")
    with archive.open(member) as file:
        if (version := npy.read_magic(file)) != _VERSION:
            raise ValueError(f"{name} is of the format {version}, which is none of plain arrays")
        shape, _, dtype = npy.read_array_header_1_0(file)
        n_bytes = member.file_size - file.tell()
    if dtype.hasobject or any(length < 0 for length in shape):
        raise ValueError(f"{name} holds {dtype} of shape {shape}")
    if n_bytes != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name} has {n_bytes:,} bytes, not those of {dtype} {shape}")
    return ArrayHeader(shape, dtype)


def _read_array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    with archive.open(member) as file:
        array: NDArray[Any] = npy.read_array(file, allow_pickle=False)
        file.read(1)  # the end, where the checksum is compared
    return array


def _check_size(path: Path, members: list[zipfile.ZipInfo]) -> None:
    """Check what the members unpack to against the limits."""
    total = sum(member.file_size for member in members)
    if total > MAX_DATASET_BYTES:
        raise DataError(
            f"{path} unpacks to {total / 2**30:.1f} GB, at most {MAX_DATASET_BYTES / 2**30:.0f} GB are read; "
            "save fewer or smaller images"
        )
    for member in members:
        if member.file_size > max(SMALL_BYTES, MAX_EXPANSION * member.compress_size):
            raise DataError(
                f"{path}: {member.filename} unpacks {member.compress_size / 2**20:.1f} MB to "
                f"{member.file_size / 2**20:,.0f} MB, more than {MAX_EXPANSION}-fold as no images do; check "
                "what is in it, and save it with numpy.savez"
            )
