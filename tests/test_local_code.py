"""Networks from a user's own code: only when allowed, and every error is the user's to read."""

from __future__ import annotations

import importlib
import math
import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from defuse_core.base import user_modules
from defuse_core.base.errors import CheckpointError
from defuse_core.networks.local_code import import_network

CODE = """
from torch import nn
from helper_of_mine import WIDTH

class Net(nn.Module):
    def __init__(self, in_channels, num_classes=10):
        super().__init__()
        self.fc = nn.Linear(in_channels * WIDTH, num_classes)

    def forward(self, x):
        return self.fc(x.flatten(1))

class Plain(nn.Linear):
    def __init__(self):
        super().__init__(4, 10)

def make(n_classes, channels, **options):
    assert not options
    return nn.Conv2d(channels, n_classes, 1)

def fails(n_classes):
    raise RuntimeError("no such backbone")

def leaves():
    raise SystemExit(3)

def needs(depth):
    return nn.Linear(depth, 2)

def text():
    return "network"

number = 3
"""


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A folder with a user's code, which is allowed; Python forgets it afterwards."""
    package = tmp_path / "models_of_mine"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "nets.py").write_text(CODE)
    (tmp_path / "net_of_mine.py").write_text(CODE)
    (tmp_path / "helper_of_mine.py").write_text("WIDTH = 4\n")
    (tmp_path / "broken_of_mine.py").write_text("import a_library_that_is_not_here\n")
    (tmp_path / "leaving_of_mine.py").write_text("import sys; sys.exit('bye')\n")
    (tmp_path / "json.py").write_text(CODE)
    monkeypatch.setenv("DEFUSE_ALLOW_LOCAL_CODE", "1")
    path, before = [*sys.path], {name for name in sys.modules if not name.startswith("_user_code_")}
    yield str(tmp_path)
    assert sys.path == path
    assert not [name for name in set(sys.modules) - before if name.partition(".")[0].endswith("of_mine")]


@pytest.mark.parametrize("module", ["net_of_mine", "models_of_mine.nets"])
def test_a_class_is_built_with_what_it_takes(code: str, module: str) -> None:
    network = import_network(f"{module}:Net", code, n_classes=7, channels=3)
    assert network(torch.rand(2, 3, 2, 2)).shape == (2, 7)
    plain = import_network(f"{module}:Plain", code, n_classes=7, channels=3)
    assert plain.out_features == 10
    made = import_network(f"{module}:make", code, n_classes=5, channels=1)
    assert isinstance(made, nn.Conv2d)
    assert (made.in_channels, made.out_channels) == (1, 5)


@pytest.mark.parametrize("value", [None, "", "0", "true"])
def test_code_does_not_run_unless_allowed(
    code: str, monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    if value is None:
        monkeypatch.delenv("DEFUSE_ALLOW_LOCAL_CODE")
    else:
        monkeypatch.setenv("DEFUSE_ALLOW_LOCAL_CODE", value)
    told = r"not allowed; start with `defuse dashboard --allow-local-code`, or set DEFUSE_ALLOW_LOCAL_CODE=1"
    with pytest.raises(CheckpointError, match=told):
        import_network("net_of_mine:Net", code, n_classes=7, channels=3)
    assert "net_of_mine" not in sys.modules
    assert code not in sys.path


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ("net_of_mine", "is no module:Class; give one such as"),
        ("net_of_mine:", "is no module:Class"),
        ("../net_of_mine:Net", "is no module:Class"),
        ("net_of_mine:Net()", "is no module:Class"),
        ("gone_of_mine:Net", "gone_of_mine could not be imported .*ModuleNotFoundError"),
        ("broken_of_mine:Net", "ModuleNotFoundError: No module named 'a_library.*install what it needs"),
        ("leaving_of_mine:Net", "SystemExit: bye"),
        ("net_of_mine:Gone", "has no class or function Gone; it has Net, Plain, make, fails"),
        ("net_of_mine:number", "has no class or function number"),
        ("net_of_mine:fails", r"could not be built \(RuntimeError: no such backbone\); .*with n_classes"),
        ("net_of_mine:leaves", r"could not be built \(SystemExit: 3\); it is called with no arguments"),
        ("net_of_mine:needs", r"TypeError: needs\(\) missing .*'depth'.*give its other parameters defaults"),
        ("net_of_mine:text", "gave a str, not an nn.Module"),
        ("sys:exit", r"sys could not be imported .*ModuleNotFoundError: No module named 'sys'"),
    ],
)
def test_errors_of_the_code_are_told(code: str, spec: str, told: str) -> None:
    with pytest.raises(CheckpointError, match=told):
        import_network(spec, code, n_classes=7, channels=3)


def test_the_folder_comes_before_others(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "net_of_mine.py").write_text("Net = None\n")
    with monkeypatch.context() as patched:
        patched.setattr(sys, "path", [str(other), *sys.path])
        network = import_network("net_of_mine:Net", code, n_classes=7, channels=3)
    assert network(torch.rand(2, 3, 2, 2)).shape == (2, 7)


def test_a_missing_folder_is_told(code: str) -> None:
    with pytest.raises(CheckpointError, match=r"gone is no folder; give the one that the module net_of_mine"):
        import_network("net_of_mine:Net", f"{code}/gone", n_classes=7, channels=3)


def test_modules_of_the_same_name_do_not_meet(code: str, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "net_of_mine.py").write_text("from torch import nn\nclass Net(nn.Identity): pass\n")
    first, second, third = (
        type(import_network("net_of_mine:Net", folder, n_classes=7, channels=3))
        for folder in (code, str(other), code)
    )
    assert first is third
    assert [kind.__base__ for kind in (first, second)] == [nn.Module, nn.Identity]


SHADOWS = """
import json, random, yaml
from torch import nn

class Net(nn.Identity):
    own = (json.OWN, random.OWN, yaml.OWN)

    def forward(self, x):
        import late_of_mine
        from models_of_mine import late
        import models_of_mine.late as same
        import math
        assert late is same
        return late_of_mine.VALUE, late.VALUE, math.pi
"""


def test_names_of_the_folder_are_for_its_own_code_alone(code: str) -> None:
    """Even in functions that are called when the folder is long forgotten."""
    import random

    folder = Path(code)
    for name in ("json", "random", "yaml", "torch_of_mine"):
        (folder / f"{name}.py").write_text("OWN = 'mine'\n")
    (folder / "torch").mkdir()  # no package, only a folder of data
    (folder / "late_of_mine.py").write_text("VALUE = 1\n")
    (folder / "models_of_mine" / "late.py").write_text("from .later import VALUE\n")
    (folder / "models_of_mine" / "later.py").write_text(
        "import late_of_mine\nVALUE = late_of_mine.VALUE + 1\n"
    )
    (folder / "shadows_of_mine.py").write_text(SHADOWS)
    network = import_network("shadows_of_mine:Net", code, n_classes=7, channels=3)
    assert vars(type(network))["own"] == ("mine",) * 3
    assert network(None) == (1, 2, math.pi)
    assert sys.modules["random"] is random
    assert "OWN" not in vars(importlib.import_module("json"))
    for name in ("late_of_mine", "torch_of_mine"):
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(name)


def test_code_that_was_edited_is_imported_anew(code: str) -> None:
    """Its neighbours, too; a network that was built before stays as it was."""
    before = import_network("net_of_mine:Net", code, n_classes=7, channels=3)
    assert type(import_network("net_of_mine:Net", code, n_classes=7, channels=3)) is type(before)
    helper = Path(code) / "helper_of_mine.py"
    then = helper.stat()
    helper.write_text("WIDTH = 9\n")  # as long as it was
    os.utime(helper, ns=(then.st_atime_ns, then.st_mtime_ns + 1))
    after = import_network("net_of_mine:Net", code, n_classes=7, channels=3)
    assert [network.fc.in_features for network in (before, after)] == [12, 27]
    assert before(torch.rand(2, 3, 2, 2)).shape == (2, 7)
    assert not list(Path(code).rglob("__pycache__"))
    helper.unlink()
    with pytest.raises(CheckpointError, match="No module named 'helper_of_mine'"):
        import_network("net_of_mine:Net", code, n_classes=7, channels=3)


def test_a_network_travels_to_another_process(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    network = import_network("net_of_mine:Net", code, n_classes=7, channels=3)
    pickled, folders = pickle.dumps(network), user_modules.known_folders()
    for name in [name for name in sys.modules if name.startswith("_user_code_")]:  # as it is there
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(user_modules, "_FINDER", user_modules._Finder())
    monkeypatch.setattr(sys, "meta_path", [f for f in sys.meta_path if "_Finder" not in repr(f)])
    with pytest.raises(ModuleNotFoundError, match="_user_code_"):
        pickle.loads(pickled)
    user_modules.adopt_folders(folders)
    assert pickle.loads(pickled)(torch.rand(2, 3, 2, 2)).shape == (2, 7)
