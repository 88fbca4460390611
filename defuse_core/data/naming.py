"""How a data set is named: what a person types, a manifest holds and a run is given. Imports no torch."""

from __future__ import annotations

from pathlib import Path


def absolute_source(source: str) -> str:
    """Return the same source for a run, which starts in a folder of its own.

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
    """Return a source without the folder of the other machine; None where it is nothing but a path."""
    if source.startswith("torchvision:"):
        return ":".join(source.split(":")[:2])
    return source if source == "digits" else None
