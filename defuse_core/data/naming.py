"""Turns the source that a person types into that of a run or of a manifest. Imports no torch."""

from __future__ import annotations

from pathlib import Path


def absolute_source(source: str) -> str:
    """Make the path in a source absolute, since a run starts in a folder of its own.

    Examples
    --------
    >>> absolute_source("digits"), absolute_source("torchvision:SVHN:/data")
    ('digits', 'torchvision:SVHN:/data')
    """
    if source.startswith("torchvision:"):
        kind, name, root = [*source.split(":", 2), ""][:3]
        return f"{kind}:{name}:{Path(root or 'data').resolve()}"
    return source if source == "digits" else str(Path(source).expanduser().resolve())


def without_path(source: str) -> str | None:
    """Remove the folder, which is of another machine, from a source; None if it is only a path."""
    if source.startswith("torchvision:"):
        return ":".join(source.split(":")[:2])
    return source if source == "digits" else None
