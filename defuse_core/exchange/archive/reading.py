"""Open an archive that a stranger may have made, and check it before it takes memory or disk.

The sizes in the zip directory are compared first with the size of the file and the free disk. The manifest
must name every member with the same size. A member is read in pieces, up to that size, and must have the
SHA-256 that the manifest states. Nothing is extracted under its own name.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, TypeVar

from pydantic import BaseModel, ValidationError

from defuse_core.base.limits import (
    IMPORT_SPARE_BYTES,
    MAX_DIRECTORY_BYTES,
    MAX_MANIFEST_BYTES,
    MAX_ROW_BYTES,
    MAX_ROWS,
    UNPACK_FREE_BYTES,
    UNPACK_RATIO,
)
from defuse_core.base.texts import find_control, quote
from defuse_core.base.zips import check_offsets
from defuse_core.exchange.archive.rows import FORMAT, TABLES, VERSION, Manifest, Row, Whole
from defuse_core.workspace.database import WorkspaceError, explain_os_error

CHUNK = 2**20
MANIFEST = "manifest.json"
AGAIN = "export the project again"
"""The remedy for an archive that no export makes."""

_END, _END64, _LOCATOR64 = struct.Struct("<4s4H2LH"), struct.Struct("<4sQ2H2L4Q"), struct.Struct("<4sLQL")
_MEMBER = re.compile(r"rows/[a-z]+\.jsonl|blobs/[0-9a-f]{64}|runs/[1-9][0-9]{0,17}/[A-Za-z0-9=_+./-]{1,400}")
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError)
"""All that zipfile raises on a file that is damaged, cut off, encrypted or packed in an unknown way."""

_MAY_HAVE_CONTROL = re.compile(rb"\\[bfru]|\x7f|\xc2")
"""In the bytes of JSON: an escape, DEL, or the first byte of U+0080 to U+00BF."""

AnyRow = TypeVar("AnyRow", bound=Row)
AnyModel = TypeVar("AnyModel", bound=BaseModel)


class Archive:
    """An open archive; its manifest and its zip directory agree."""

    def __init__(self, path: Path, zipped: zipfile.ZipFile, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest
        self._zip = zipped

    def chunks(self, name: str) -> Iterator[bytes]:
        """Read a member in pieces.

        Raises
        ------
        WorkspaceError
            After the last piece, if the content differs from the manifest; sooner, if it is longer.
        """
        member, digest = self.manifest.members[name], hashlib.sha256()
        left = member.size
        with _explained(self.path), self._zip.open(name) as file:
            while chunk := file.read(CHUNK):
                left -= len(chunk)
                if left < 0:
                    break
                digest.update(chunk)
                yield chunk
        if left or digest.hexdigest() != member.sha256:
            raise self.error(f"{name} is not as its checksum says", "copy it again")

    def rows(self, table: str, model: type[AnyRow]) -> Iterator[AnyRow]:
        """Read and check the rows of a table; the checksum is compared after the last one.

        Parameters
        ----------
        table : str
            A key of `TABLES`.
        model : type
            Of its rows.
        """
        name, number, rest = f"rows/{table}.jsonl", 0, b""
        for chunk in self.chunks(name):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in lines:
                number += 1
                if number > MAX_ROWS:
                    raise self.error(f"{name} has over {MAX_ROWS:,} rows, which no export has")
                yield self._row(model, line, f"{name}, line {number}")
            if len(rest) > MAX_ROW_BYTES:
                raise self.error(f"{name}, line {number + 1} has over {MAX_ROW_BYTES:,} bytes")
        if rest:
            raise self.error(f"{name} ends within a line")

    def _row(self, model: type[AnyRow], line: bytes, where: str) -> AnyRow:
        if len(line) > MAX_ROW_BYTES:
            raise self.error(f"{where} has over {MAX_ROW_BYTES:,} bytes")
        row = parse(model, line, where=f"{self.path}: {where}")
        if _MAY_HAVE_CONTROL.search(line):
            _refuse_control(row, f"{self.path}: {where}")
        return row

    def error(self, told: str, remedy: str = AGAIN) -> WorkspaceError:
        """Return an error about this archive, with its remedy."""
        return WorkspaceError(f"{self.path}: {told}; {remedy}")


def parse(model: type[AnyModel], text: bytes | str, *, where: str, remedy: str = AGAIN) -> AnyModel:
    """Read one line.

    Parameters
    ----------
    model : type
        The pydantic model of the line.
    text : bytes or str
        JSON.
    where : str
        Where the line stands; an error begins with it.
    remedy : str
        An error ends with it.

    Raises
    ------
    WorkspaceError
        If the model does not accept the line; the message names the place, the field and the reason.
    """
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        field = ".".join(str(part) for part in first["loc"])[:100]
        told = f"{field + ': ' if field else ''}{quote(first['msg'])}"
        raise WorkspaceError(f"{where}: {told}; {remedy}") from None


def _refuse_control(row: Row, where: str) -> None:
    """Refuse control characters everywhere but in an error, which is cleaned."""
    if bad := find_control(row.model_dump(exclude={"error"})):
        raise WorkspaceError(
            f"{where} has control characters in {bad[:60]!r}, which a terminal would obey; {AGAIN}"
        )


class _Head(BaseModel):
    """What every version of the manifest begins with."""

    format: str
    version: Whole


@contextmanager
def open_archive(path: Path, *, home: Path) -> Iterator[Archive]:
    """Open an archive to be imported into the workspace at `home`.

    Parameters
    ----------
    path : Path
    home : Path
        Folder of the workspace; its disk must have room for the contents.

    Raises
    ------
    WorkspaceError
        If it is no archive of ours, is of a newer format or damaged, would not fit on the disk, or would
        unpack to far more than its own size.
    """
    if not path.is_file():
        raise WorkspaceError(f"{path} is no file; check the path")
    with ExitStack() as opened:
        with _explained(path):
            file = opened.enter_context(path.open("rb"))
            size = _bound_directory(path, file)
            zipped = opened.enter_context(zipfile.ZipFile(file))
            check_offsets(zipped, size)
            infos = {info.filename: info for info in zipped.infolist()}
            if len(infos) != len(zipped.infolist()) or MANIFEST not in infos:
                raise _foreign(path)
            _bound_contents(path, size, infos, home)
            manifest = _read_manifest(path, zipped)
            _check_members(path, manifest, infos)
        yield Archive(path, zipped, manifest)


def _bound_directory(path: Path, file: IO[bytes]) -> int:
    """Refuse a zip directory that would fill the memory; return the size of the file."""
    size = file.seek(0, 2)
    tail_size = _END64.size + _LOCATOR64.size + _END.size
    file.seek(max(size - tail_size, 0))
    tail = file.read(tail_size)
    if len(tail) < _END.size or tail[-_END.size :][:4] != b"PK\x05\x06" or tail[-2:] != b"\0\0":
        raise _foreign(path)
    length = _END.unpack(tail[-_END.size :])[5]
    if len(tail) == tail_size and tail[_END64.size :][:4] == b"PK\x06\x07":  # zip64 has its own record
        length = _END64.unpack(tail[: _END64.size])[8]
    if length > MAX_DIRECTORY_BYTES:
        raise WorkspaceError(f"{path}: its directory has {length:,} bytes, which no export has; {AGAIN}")
    return size


def _bound_contents(path: Path, size: int, infos: dict[str, zipfile.ZipInfo], home: Path) -> None:
    """Refuse an archive that would unpack to more than exports do, or than the disk has free."""
    total = sum(info.file_size for info in infos.values())
    if total > UNPACK_FREE_BYTES + UNPACK_RATIO * size or infos[MANIFEST].file_size > MAX_MANIFEST_BYTES:
        raise WorkspaceError(
            f"{path}: its {size:,} bytes would unpack to {total:,}, which no export does; ask for the file "
            "anew, of somebody whom you trust"
        )
    if total + IMPORT_SPARE_BYTES > (free := shutil.disk_usage(home).free):
        raise WorkspaceError(
            f"{path}: unpacked it takes {total / 2**20:,.0f} MB, and {free / 2**20:,.0f} MB are free on the "
            f"disk of {home}; free disk space, then import again"
        )


def _read_manifest(path: Path, zipped: zipfile.ZipFile) -> Manifest:
    with zipped.open(MANIFEST) as file:
        text = file.read(MAX_MANIFEST_BYTES)
    try:
        head = _Head.model_validate_json(text)
    except ValidationError:
        raise _foreign(path) from None
    if head.format != FORMAT:
        raise _foreign(path)
    if head.version > VERSION:
        raise WorkspaceError(
            f"{path} was exported by a newer Defuse (format {head.version}, this one knows {VERSION}); "
            "upgrade Defuse"
        )
    manifest = parse(Manifest, text, where=f"{path}: {MANIFEST}")
    _refuse_control(manifest.project, f"{path}: {MANIFEST}")
    return manifest


def _check_members(path: Path, manifest: Manifest, infos: dict[str, zipfile.ZipInfo]) -> None:
    """Check that the manifest names every member with its size, and that all are plain files."""
    named = manifest.members.keys() | {MANIFEST}
    row_files = {f"rows/{table}.jsonl" for table in TABLES}
    if (odd := named ^ infos.keys()) or (odd := row_files - named):
        raise WorkspaceError(f"{path}: {min(odd)[:200]!r} is missing, or should not be there; copy it again")
    for name, info in infos.items():
        kind = stat.S_IFMT(info.external_attr >> 16)
        if name != MANIFEST and (
            not _MEMBER.fullmatch(name) or info.file_size != manifest.members[name].size
        ):
            raise WorkspaceError(f"{path}: {name[:200]!r} is not what the manifest says; copy it again")
        packed = info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) and not info.flag_bits & 1
        if not packed or info.is_dir() or kind not in (0, stat.S_IFREG):
            raise WorkspaceError(f"{path}: {name[:200]!r} is no plain file as Defuse packs them; {AGAIN}")


def _foreign(path: Path) -> WorkspaceError:
    return WorkspaceError(
        f"{path} is no project that Defuse exported, or is cut off; make one with: defuse project export FILE"
    )


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn errors of reading into a WorkspaceError that says what to do."""
    try:
        yield
    except WorkspaceError:
        raise
    except OSError as error:
        raise explain_os_error(path, error) from error
    except _DAMAGED as error:
        text = " ".join(str(error).split())[:200]
        raise WorkspaceError(f"{path} is damaged ({text or type(error).__name__}); copy it again") from error
