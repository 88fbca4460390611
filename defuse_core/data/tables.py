"""Lists the images of a folder by a table beside them: CSV or Parquet with path, label, split and group."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from defuse_core.base.files import plain
from defuse_core.base.texts import first_names, quote
from defuse_core.data.class_names import class_key
from defuse_core.data.folders import PassedOver, class_folders, entries, list_folder, split_folders
from defuse_core.data.image_index import ImageIndex, same_path
from defuse_core.data.listing import Item, Listing, natural_order, order_note, split_called
from defuse_core.data.splits import DataError
from defuse_core.data.table_files import Table, read_table

CSV_SUFFIXES = frozenset({".csv", ".tsv", ".txt"})
TABLE_SUFFIXES = CSV_SUFFIXES | {".parquet"}
_PREFERRED = frozenset({"labels", "metadata", "annotations"})

ROLES = {
    "path": (
        "path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "image_id",
        "image_name", "img", "img_path",
    ),
    "label": ("label", "labels", "class", "class_name", "class_id", "category", "target", "y"),
    "split": ("split", "set", "subset", "partition"),
    "group": ("group", "group_id", "patient", "patient_id", "subject", "subject_id", "track", "track_id"),
}  # fmt: skip
"""What columns are called, the name that wins over the others first."""


def find_tables(root: Path) -> tuple[list[Path], list[Path]]:
    """Return the tables of a folder that may say what its images are, and those that are left.

    All where they are called after splits, else the one that is called labels, metadata or annotations,
    else the only one.
    """
    found = [path for path in entries(root) if path.suffix.lower() in TABLE_SUFFIXES - {".txt"}]
    if len(found) < 2 or all(split_called(path.stem) for path in found):
        return found, []
    preferred = [path for path in found if path.stem.casefold() in _PREFERRED]
    chosen = preferred if len(preferred) == 1 else []
    return chosen, [path for path in found if path not in chosen]


def list_tables(root: Path, paths: Sequence[Path]) -> Listing | None:
    """List the images that tables name; None if these are no tables of images.

    Parameters
    ----------
    root : Path
        The images lie in it or below.
    paths : sequence of Path
        Tables; several are called after the splits.

    Raises
    ------
    DataError
        If a table cannot be read, columns are ambiguous, or it names an image twice with different labels.
    """
    images = ImageIndex(root)
    listing = Listing([], ())
    unread = []
    for path in paths:
        table = read_table(path)
        columns = _find_columns(path, table, images)
        if columns is None:
            unread.append(path.name)
            continue
        _add_rows(path, table, columns, images, listing, split_called(path.stem) if len(paths) > 1 else None)
    if len(unread) == len(paths):
        return None
    named = first_names([path.name for path in paths if path.name not in unread])
    listing.notes.insert(0, f"classes were read from {named}, not from the names of folders")
    if unread:
        listing.notes.append(f"{first_names(unread)} not read, without columns path and label")
    _check_repeats(root, listing)
    _tidy_numbers(listing)
    if not any(item.split for item in listing.items):
        _split_by_folders(listing)
    names = tuple(natural_order({item.label for item in listing.items}))
    if n := len(images.paths) - len({item.source for item in listing.items}):
        listing.notes.append(
            f"{n:,} {'image' if n == 1 else 'images'} that the table does not name passed over"
        )
    return Listing(listing.items, names, listing.notes + order_note(names), listing.unusable)


def list_images(root: Path, table: Path | None = None) -> Listing:
    """List the images of a folder by a table, where it has one that names them, or by its class folders.

    Folders train/<class>/ go before a table, and a table before folders that might be of classes.

    Parameters
    ----------
    root : Path
    table : Path, optional
        The table that is to be read, in the folder.

    Raises
    ------
    DataError
        If neither says the class of images.
    """
    folders = split_folders(root, PassedOver())
    divided = "train" in folders and bool(class_folders(folders["train"]))
    tables, others = find_tables(root) if table is None else ([table], [])
    classes = class_folders(folders.get("train", root))
    if tables and (table is not None or not divided):
        listing = list_tables(root, tables)
        if listing is not None:
            if others:
                listing.notes.append(f"{_names(others)} not read")
            return listing
        if table is not None or len(classes) < 2:
            raise DataError(
                f"{plain(tables[0])} has no columns called path and label (or what is usual instead), and no "
                "folders name the classes; rename its columns"
            )
    if others and not divided and len(classes) < 2:
        raise DataError(
            f"{plain(root)} has several tables, {_names(others)}; give the path of that of the images"
        )
    listing = list_folder(root)
    if tables or others:
        listing.notes.append(
            f"{_names([*tables, *others])} not read, the folders say the classes; else give its path as the "
            "data set"
        )
    return listing


def _names(paths: Sequence[Path]) -> str:
    return first_names([path.name for path in paths])


def _find_columns(path: Path, table: Table, images: ImageIndex) -> dict[str, int] | None:
    """Return which column has which role, or None where none names images; a table may lack a header."""
    titles = [cell.strip().casefold().replace(" ", "_").replace("-", "_") for cell in table.header]
    columns: dict[str, int] = {}
    for role, names in ROLES.items():
        own = [index for index, title in enumerate(titles) if title in names]
        if len(own) > 1:
            own = [index for index in own if titles[index] == names[0]] or own
        if len(own) > 1:
            both = " and ".join(quote(table.header[index], 40) for index in own[:2])
            raise DataError(f"{plain(path)} has columns {both}; call the one with the {role} {names[0]!r}")
        if own:
            columns[role] = own[0]
    if {"path", "label"} <= columns.keys():
        renamed = [
            f"{quote(table.header[index], 40)} as {role}"
            for role, index in columns.items()
            if titles[index] != role
        ]
        unread = [title for index, title in enumerate(table.header) if index not in columns.values()]
        if renamed:
            table.notes.append(f"columns of {path.name} read: {', '.join(renamed)}")
        if unread:
            table.notes.append(f"columns of {path.name} not read: {first_names(unread)}")
        return columns
    if not columns and len(table.header) > 1 and images.find(table.header[0]):
        table.rows.insert(0, table.header)
        order = dict(zip(ROLES, range(len(table.header)), strict=False))
        table.notes.append(f"{path.name} has no line of titles; its columns were read as {', '.join(order)}")
        return order
    return None


def _add_rows(
    path: Path,
    table: Table,
    columns: dict[str, int],
    images: ImageIndex,
    listing: Listing,
    split: str | None,
) -> None:
    """Add the images of a table to the list; those that are not there or have no label are unusable."""
    listing.notes += table.notes
    n_moved = 0
    for number, row in enumerate(table.rows, start=1):
        cells = {role: row[index] if index < len(row) else "" for role, index in columns.items()}
        name, label = cells["path"], class_key(cells["label"])
        image = images.find(name) if name else None
        if image is None or not label:
            why = "no such image in the folder" if image is None else "no label"
            listing.unusable[f"row {number} of {path.name}: {quote(name, 80)}"] = why
            continue
        relative = plain(image.relative_to(images.root))
        n_moved += not same_path(relative, name)
        listing.items.append(
            Item(relative, image, label, split or _split_of(path, cells), cells.get("group", ""))
        )
    if n_moved:
        listing.notes.append(
            f"{n_moved:,} {'path' if n_moved == 1 else 'paths'} of {path.name} matched in part: they are of "
            "another machine, folder or case, or lack the ending"
        )


def _split_of(path: Path, cells: dict[str, str]) -> str:
    if not cells.get("split"):
        return ""
    if (split := split_called(cells["split"])) is None:
        raise DataError(
            f"{plain(path)} has a split called {quote(cells['split'], 40)!r}; call it train, val or test"
        )
    return split


def _check_repeats(root: Path, listing: Listing) -> None:
    """Keep one of the rows that say the same; refuse those that contradict each other."""
    first: dict[str, Item] = {}
    contradicted = [item.name for item in listing.items if first.setdefault(item.name, item)[2:] != item[2:]]
    if contradicted:
        raise DataError(
            f"the table of {plain(root)} names {first_names(contradicted, 3)} twice, with different labels, "
            "splits or groups; keep one row for each"
        )
    if n := len(listing.items) - len(first):
        listing.items = list(first.values())
        listing.notes.append(f"{n:,} {'row' if n == 1 else 'rows'} that repeat another passed over")


def _tidy_numbers(listing: Listing) -> None:
    """Labels 0.0, 1.0, … are 0, 1, …: a table with a gap was saved as floats."""
    labels = {item.label for item in listing.items}
    if labels and all(_is_whole(label) for label in labels):
        listing.items = [item._replace(label=item.label.partition(".")[0]) for item in listing.items]
        listing.notes.append("labels such as 1.0 read as whole numbers")


def _is_whole(label: str) -> bool:
    whole, point, rest = label.partition(".")
    return bool(point) and whole.isdecimal() and bool(rest) and set(rest) == {"0"}


def _split_by_folders(listing: Listing) -> None:
    """Take the split from the first folder of the paths, where that of every image is called after one."""
    splits = _folder_splits(item.name for item in listing.items)
    if splits is not None:
        listing.items = [item._replace(split=s) for item, s in zip(listing.items, splits, strict=True)]
        listing.notes.append("splits were read from the folders that the images are in")


def _folder_splits(names: Iterable[str]) -> list[str] | None:
    splits = [
        split_called(first) if rest else None for first, _, rest in (name.partition("/") for name in names)
    ]
    known = [split for split in splits if split is not None]
    return known if splits and len(known) == len(splits) else None
