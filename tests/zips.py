"""Zip archives whose directory lies."""

from __future__ import annotations

import struct


def moved_member(content: bytes, member: str, offset: int) -> bytes:
    """Return a zip archive whose directory says that a member begins at this offset, of 64 bits.

    Parameters
    ----------
    content : bytes
        Of an archive without a comment.
    member : str
        How the name of the member ends.
    offset : int
    """
    start = at = content.index(b"PK\x01\x02")
    entries = []
    while content[at : at + 4] == b"PK\x01\x02":
        head = bytearray(content[at : at + 46])
        n_name, n_extra, n_comment = struct.unpack("<HHH", head[28:34])
        name, extra = content[at + 46 : at + 46 + n_name], content[at + 46 + n_name :][:n_extra]
        if name.decode().endswith(member):
            head[42:46] = b"\xff" * 4
            extra = struct.pack("<HHQ", 1, 8, offset)
        head[30:34] = struct.pack("<HH", len(extra), 0)
        entries.append(bytes(head) + name + extra)
        at += 46 + n_name + n_extra + n_comment
    directory = b"".join(entries)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, len(entries), len(entries), len(directory), start, 0)
    return content[:start] + directory + end
