"""Open a file of torch.save, zip or of before 1.6, without torch: its pickle, the bytes of its storages."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from defuse_core.base.errors import CheckpointError
from defuse_core.base.limits import MAX_PICKLE_BYTES
from defuse_core.networks.pickles import PickleError, Storage, admitted, read_pickle
from defuse_core.networks.sniffing import SAVE_WEIGHTS, open_zip

_AGAIN = "copy or download it again"
_N_LEGACY_PICKLES = 5  # magic number, protocol, facts of the machine, content, keys of storages

ReadStorage = Callable[[Storage], bytes]


@dataclass(frozen=True)
class TorchFile:
    """A file of torch.save.

    Attributes
    ----------
    content : object
        As `pickles.read_pickle` gives it.
    read : callable
        Gives the bytes of a storage, no fewer than it claims.
    big_endian : bool
        Whether numbers have their highest byte first.
    """

    content: object
    read: ReadStorage
    big_endian: bool = False


def check_pickles(path: Path) -> None:
    """Walk through the pickles of a file; see `pickles.admitted`.

    Parameters
    ----------
    path : Path

    Raises
    ------
    CheckpointError
        If it is damaged, or compressed.
    PickleError
        If a pickle is not admitted.
    """
    if _is_zip(path):
        with open_zip(path) as archive:
            streams = [_pickle_in(archive, path)]
    else:
        streams = [_head(path)] * _N_LEGACY_PICKLES
    for stream in streams:
        for _ in admitted(stream):
            pass


@contextmanager
def open_torch_file(path: Path) -> Iterator[TorchFile]:
    """Read the pickles of a file; its storages can be read inside the context.

    Parameters
    ----------
    path : Path

    Raises
    ------
    CheckpointError
        If it is damaged, or compressed; also inside the context.
    PickleError
        If a pickle is not admitted.
    """
    if _is_zip(path):
        with open_zip(path) as archive:
            yield _in_zip(archive, path)
        return
    stream = _head(path)
    for _ in range(_N_LEGACY_PICKLES - 2):
        read_pickle(stream)
    content, storages = read_pickle(stream)
    keys, _ = read_pickle(stream)
    with path.open("rb") as file:
        file.seek(stream.tell())
        places = _places(file, keys, storages, path)

        def read(storage: Storage) -> bytes:
            place, n_bytes = places.get(storage.key, (0, -1))
            if n_bytes < storage.n_bytes:
                raise _lacking(path, storage.key)
            file.seek(place)
            return file.read(n_bytes)

        yield TorchFile(content, read)


def _is_zip(path: Path) -> bool:
    """As `sniff_format` tells it: a file of before 1.6 may end as a zip archive does."""
    with path.open("rb") as file:
        return file.read(2) == b"PK"


def _head(path: Path) -> io.BytesIO:
    with path.open("rb") as file:
        return io.BytesIO(file.read(MAX_PICKLE_BYTES))


def _places(
    file: BinaryIO, keys: object, storages: Mapping[str, Storage], path: Path
) -> dict[str, tuple[int, int]]:
    """Where each storage is, and how many bytes it has: a number of elements stands before each."""
    places: dict[str, tuple[int, int]] = {}
    size = path.stat().st_size
    for key in keys if isinstance(keys, list) else []:
        length, storage = file.read(8), storages.get(key) if isinstance(key, str) else None
        if storage is None or len(length) < 8:
            raise _lacking(path, key)
        n_bytes = int.from_bytes(length, "little") * storage.item_size
        places[storage.key] = (file.tell(), n_bytes)
        if file.tell() + n_bytes > size:
            raise _lacking(path, key)
        file.seek(n_bytes, io.SEEK_CUR)
    return places


def _lacking(path: Path, key: object) -> CheckpointError:
    return CheckpointError(
        f"{path} is cut off or damaged: it lacks the content of storage {str(key)[:40]}; {_AGAIN}"
    )


def _in_zip(archive: zipfile.ZipFile, path: Path) -> TorchFile:
    content, _ = read_pickle(_pickle_in(archive, path))
    root = _root(archive, path)

    def read(storage: Storage) -> bytes:
        try:
            record = archive.getinfo(f"{root}data/{storage.key}")
        except KeyError:
            raise _lacking(path, storage.key) from None
        if record.file_size < storage.n_bytes:
            raise _lacking(path, storage.key)
        return archive.read(record)  # raises where the checksum is wrong

    big_endian = f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") == b"big"
    return TorchFile(content, read, big_endian)


def _root(archive: zipfile.ZipFile, path: Path) -> str:
    """The folder around the pickle, with a slash."""
    found = [name for name in archive.namelist() if name.partition("/")[2] == "data.pkl"]
    if len(found) != 1:
        raise CheckpointError(
            f"{path} holds {len(found)} files of torch.save; bring one network's weights: {SAVE_WEIGHTS}"
        )
    return found[0].removesuffix("data.pkl")


def _pickle_in(archive: zipfile.ZipFile, path: Path) -> io.BytesIO:
    """The pickle of an archive that claims no more than it holds."""
    entries, size = archive.infolist(), path.stat().st_size
    packed = [entry.filename[:60] for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise CheckpointError(
            f"{path} is compressed ({packed[0]}), which torch.save never does; unpack it and save it again: "
            f"{SAVE_WEIGHTS}"
        )
    if any(entry.flag_bits & 1 for entry in entries):
        raise CheckpointError(f"{path} is encrypted, which torch.save never does; save it: {SAVE_WEIGHTS}")
    claimed = sum(entry.file_size for entry in entries)
    if claimed > size:
        raise CheckpointError(f"{path} claims {claimed} bytes of content in a file of {size}; {_AGAIN}")
    record = archive.getinfo(f"{_root(archive, path)}data.pkl")
    if record.file_size > MAX_PICKLE_BYTES:
        raise PickleError(f"its pickle takes more than {MAX_PICKLE_BYTES:,} bytes")
    return io.BytesIO(archive.read(record))
