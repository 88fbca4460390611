"""Finds the images of a folder as tables name them, which were often written on another machine."""

from __future__ import annotations

import unicodedata
from pathlib import Path, PurePosixPath

from defuse_core.data.folders import walk_images


class ImageIndex:
    """Finds images below a folder as tables name them: by any end of the path, case and accents alike."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.paths = list(walk_images(root))
        self._by_key: dict[str, list[Path]] = {}
        self._by_name: dict[str, list[Path]] = {}
        for path in self.paths:
            relative = PurePosixPath(path.relative_to(root))
            for whole in (relative, relative.with_suffix("")):  # a column image_id has no suffixes
                key = _path_key(str(whole))
                self._by_key.setdefault(key, []).append(path)
                self._by_name.setdefault(key.rpartition("/")[2], []).append(path)

    def find(self, name: str) -> Path | None:
        """Return the image that a cell names: a path from the folder, or one of another machine or system."""
        key = _path_key(name)
        alone = [] if "/" in key else self._by_name.get(key, [])
        while key:
            found = self._by_key.get(key, [])
            exact = [path for path in found if unicodedata.normalize("NFC", str(path)).endswith(name)]
            for several in (found, exact):  # exact: names that differ in case alone
                if len(several) == 1:
                    return several[0]
            _, _, key = key.partition("/")
        return alone[0] if len(alone) == 1 else None


def same_path(one: str, other: str) -> bool:
    return unicodedata.normalize("NFC", one) == unicodedata.normalize("NFC", other).replace(
        "\\", "/"
    ).removeprefix("./")


def _path_key(name: str) -> str:
    parts = unicodedata.normalize("NFC", name).replace("\\", "/").casefold().split("/")
    return "/".join(part for part in parts if part not in ("", "."))
