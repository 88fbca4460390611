"""Reads Parquet where pyarrow is installed: texts, and image files as Hugging Face stores them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from defuse_core.base.files import plain
from defuse_core.base.limits import MAX_DATASET_BYTES, MAX_IMAGES
from defuse_core.base.texts import quote
from defuse_core.data.class_names import class_key
from defuse_core.data.listing import Item, Listing, natural_order, order_note, split_called
from defuse_core.data.splits import DataError

_LABELS = ("label", "labels", "class", "target", "fine_label")


def _pyarrow(path: Path) -> Any:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(
            f"{plain(path)} is Parquet, which takes pyarrow; install it with: pip install 'defuse[parquet]'"
        ) from error
    return pyarrow.parquet


def _read(path: Path, columns: Sequence[str] | None = None) -> Any:
    try:
        return _pyarrow(path).read_table(str(path), columns=columns)
    except DataError:
        raise
    except Exception as error:  # pyarrow has a dozen kinds for a damaged file
        raise DataError(f"{plain(path)} is no readable Parquet ({quote(error)}); save it again") from error


def _schema(path: Path) -> Any:
    try:
        return _pyarrow(path).read_schema(str(path))
    except DataError:
        raise
    except Exception as error:
        raise DataError(f"{plain(path)} is no readable Parquet ({quote(error)}); save it again") from error


def read_parquet_texts(path: Path) -> tuple[list[str], list[list[str]]]:
    """Return the titles and the rows of a table, every cell as text.

    Parameters
    ----------
    path : Path
    """
    table = _read(path)
    columns = [["" if cell is None else str(cell) for cell in column.to_pylist()] for column in table.columns]
    return list(table.column_names), [list(row) for row in zip(*columns, strict=True)]


def image_column(path: Path) -> str | None:
    """Return the column of a table that holds image files: {bytes, path}, or bytes; None if none does.

    Parameters
    ----------
    path : Path

    Raises
    ------
    DataError
        If several do.
    """
    found = [field.name for field in _schema(path) if _holds_images(field.type)]
    if len(found) > 1:
        raise DataError(f"{plain(path)} has images in columns {' and '.join(found[:2])}; keep one of them")
    return found[0] if found else None


def _holds_images(kind: Any) -> bool:
    import pyarrow as pa

    if pa.types.is_struct(kind):
        return any(kind.field(index).name == "bytes" for index in range(kind.num_fields))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def list_parquet(paths: Sequence[Path]) -> Listing:
    """List the images that Parquet files hold; splits are in their names: train-00000-of-00002.parquet.

    Parameters
    ----------
    paths : sequence of Path

    Raises
    ------
    DataError
        If a file has no labels, or all of them exceed a limit.
    """
    size = sum(path.stat().st_size for path in paths)
    if size > MAX_DATASET_BYTES:
        raise DataError(f"{plain(paths[0].parent)} has {size / 2**30:.1f} GB of Parquet; save fewer images")
    listing = Listing([], ())
    names: list[str] = []
    for path in paths:
        image, label, own_names = _columns(path)
        if names and own_names and own_names != names:
            raise DataError(f"{plain(path)} names other classes than {plain(paths[0])}; save them alike")
        names = names or own_names
        _add(path, _read(path, [image, label]), image, label, names, listing)
    if len(listing.items) > MAX_IMAGES:
        raise DataError(f"the Parquet files have over {MAX_IMAGES:,} images; leave some out")
    shown = names or natural_order({item.label for item in listing.items})
    listing.notes += [] if names else order_note(shown)
    return Listing(listing.items, tuple(shown), listing.notes, listing.unusable)


def _columns(path: Path) -> tuple[str, str, list[str]]:
    """The columns of images and labels, and the names of the classes where the file has them."""
    schema = _schema(path)
    image = image_column(path)
    about = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    features: Mapping[str, Any] = about.get("info", {}).get("features", {})
    of_classes = [name for name, own in features.items() if isinstance(own, dict) and "names" in own]
    usual = [name for name in schema.names if name.casefold() in _LABELS]
    exact = [name for name in usual if name == _LABELS[0]]
    labels = exact or (usual if len(usual) == 1 else []) or (of_classes if len(of_classes) == 1 else [])
    if image is None or not labels:
        raise DataError(
            f"{plain(path)} has no column of images with one called label; it has {', '.join(schema.names)}"
        )
    own = features.get(labels[0], {})
    return image, labels[0], [class_key(str(name)) for name in own.get("names", [])]


def _add(path: Path, table: Any, image: str, label: str, names: Sequence[str], listing: Listing) -> None:
    split = split_called(path.name.partition("-")[0].partition(".")[0]) or ""
    rows = zip(table.column(image), table.column(label).to_pylist(), strict=True)
    for number, (cell, own) in enumerate(rows, start=1):
        title = f"{path.name} row {number}"
        content = cell.as_py()
        content = content.get("bytes") if isinstance(content, dict) else content
        if names and isinstance(own, int):
            own = names[own] if 0 <= own < len(names) else None
        if not content or own is None:
            listing.unusable[title] = "no label" if content else "no bytes of an image"
            continue
        listing.items.append(Item(title, content, class_key(str(own)), split))
