"""Count the scans of a JPEG before it is decoded: each takes as long as the whole image.

A scan of a few bytes, repeated, makes a small file that takes hours.
"""

from __future__ import annotations

import re
from pathlib import Path

from defuse_core.base.limits import MAX_SCANS
from defuse_core.data.splits import DataError

_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")
"""A marker that ends the data of a scan: not an escaped byte, nor a restart."""

_SCAN, _END, _ALONE = 0xDA, 0xD9, (0x01, 0xD8)


def refuse_many_scans(source: Path | bytes) -> None:
    """Raise DataError, the reason alone, if a JPEG has more scans than `MAX_SCANS`.

    Parameters
    ----------
    source : Path or bytes
        A JPEG, or its content; of several images in it, the first counts.
    """
    content = source if isinstance(source, bytes) else source.read_bytes()
    if count_scans(content) > MAX_SCANS:
        raise DataError(f"a JPEG of over {MAX_SCANS} scans, which takes too long to read; save it again")


def count_scans(content: bytes) -> int:
    """Count the scans of a JPEG up to its end; what its segments hold, such as previews, is skipped."""
    n_scans, at = 0, 0
    while match := _MARKER.search(content, at):
        kind, at = match[1][0], match.end()
        if kind == _END:
            break
        if kind in _ALONE:
            continue
        n_scans += kind == _SCAN
        at += max(2, int.from_bytes(content[at : at + 2], "big"))
    return n_scans
