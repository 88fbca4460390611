"""Import modules from a user's folder, under names that no other code imports.

With the folder in `sys.path`, libraries that import `yaml` or `random` later would get the user's file of
that name. Here the modules of a folder belong to a package of its own, `_user_code_<n>`. Their `import`
statements look into the folder first, as in a script there, also within functions that are called later.
`importlib.import_module("sibling")` is no import statement, and does not find the sibling.

A folder of which a loaded file has changed gets a new package; what was built of the old one stays as it is.
"""

from __future__ import annotations

import builtins
import importlib
import importlib.util
import sys
import threading
from collections.abc import Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

_PREFIX = "_user_code_"
_LOCK = threading.Lock()


class UserFolder:
    """A folder of modules, as they were when the first of them was loaded.

    Attributes
    ----------
    path : Path
    package : str
        That its modules belong to.
    """

    def __init__(self, path: Path, package: str) -> None:
        self.path, self.package = path, package
        self._loaded: dict[str, tuple[int, int] | None] = {}
        module = ModuleType(package)
        module.__path__ = [str(path)]
        sys.modules[package] = module

    def load(self, name: str) -> ModuleType:
        """Import a module of the folder. THIS RUNS ITS CODE.

        Parameters
        ----------
        name : str
            Such as "models.lenet".
        """
        return importlib.import_module(f"{self.package}.{name}")

    def loading(self, path: str) -> None:
        """Remember how a file is that will be loaded."""
        self._loaded[path] = _state(path)

    def changed(self) -> bool:
        """Tell whether a file that was loaded is no longer as it was."""
        return any(_state(path) != state for path, state in self._loaded.items())

    def import_statement(
        self, name: str, globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None, fromlist: Sequence[str] | None = (), level: int = 0,
    ) -> ModuleType:  # fmt: skip
        """Do what an import statement in the folder means; as `builtins.__import__`."""
        top = name.partition(".")[0]
        if level or not self._has(top):
            return builtins.__import__(name, globals, locals, fromlist or (), level)
        self.load(name)
        if not fromlist:
            return sys.modules[f"{self.package}.{top}"]
        return builtins.__import__(f"{self.package}.{name}", globals, locals, fromlist, 0)

    def _has(self, name: str) -> bool:
        """Whether a script in the folder would import this name from there."""
        if name in sys.builtin_module_names:
            return False
        spec = PathFinder.find_spec(name, [str(self.path)])
        if spec is None or spec.origin is not None:
            return spec is not None
        try:  # a folder without __init__.py comes after all packages
            return importlib.util.find_spec(name) is None
        except ValueError:
            return False


class _Loader(SourceFileLoader):
    """Runs a module with the import statement of its folder; never from, or into, a cache."""

    def __init__(self, folder: UserFolder, name: str, path: str) -> None:
        super().__init__(name, path)
        self._folder = folder

    def get_code(self, fullname: str) -> CodeType:
        path = self.get_filename(fullname)
        self._folder.loading(path)
        code: CodeType = self.source_to_code(self.get_data(path), path)
        return code

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__["__builtins__"] = {
            **vars(builtins), "__import__": self._folder.import_statement,
        }  # fmt: skip
        super().exec_module(module)


class _Finder(MetaPathFinder):
    """Finds the modules of all folders, and no others."""

    def __init__(self) -> None:
        self.current: dict[Path, UserFolder] = {}
        self.by_package: dict[str, UserFolder] = {}

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        folder = self.by_package.get(fullname.partition(".")[0])
        spec = None if folder is None else PathFinder.find_spec(fullname, path, target)
        if folder is not None and spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(folder, fullname, spec.loader.path)
        return spec


_FINDER = _Finder()


def user_folder(path: Path) -> UserFolder:
    """Return the modules of a folder, anew where one that was loaded has changed.

    Parameters
    ----------
    path : Path
        Absolute.
    """
    with _LOCK:
        importlib.invalidate_caches()
        folder = _FINDER.current.get(path)
        if folder is None or folder.changed():
            folder = _FINDER.current[path] = _add(path, f"{_PREFIX}{len(_FINDER.by_package) + 1}")
        return folder


def known_folders() -> dict[str, str]:
    """Return the folders of this process by package, for a process that unpickles what was built of them."""
    return {folder.package: str(folder.path) for folder in _FINDER.by_package.values()}


def adopt_folders(folders: Mapping[str, str]) -> None:
    """Let this process find the modules that the names in a pickle of another process mean.

    Parameters
    ----------
    folders : mapping of str to str
        As `known_folders` returned them there.
    """
    with _LOCK:
        for package, path in folders.items():
            if package not in _FINDER.by_package:
                _add(Path(path), package)


def _add(path: Path, package: str) -> UserFolder:
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)
    folder = _FINDER.by_package[package] = UserFolder(path, package)
    return folder


def _state(path: str) -> tuple[int, int] | None:
    """When a file was last written to, and its size; None where it is gone."""
    try:
        stat = Path(path).stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size
