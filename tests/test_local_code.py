"""Networks from a user's own code: only when allowed, and every error is the user's to read."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

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
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("DEFUSE_ALLOW_LOCAL_CODE", "1")
    before = set(sys.modules)
    yield str(tmp_path)
    for name in set(sys.modules) - before:
        if "of_mine" in name:
            del sys.modules[name]


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
        ("json:Net", "a module json is loaded already, .*rename the one in"),
        ("sys:exit", r"a module sys is loaded already, from built in; rename"),
    ],
)
def test_errors_of_the_code_are_told(code: str, spec: str, told: str) -> None:
    with pytest.raises(CheckpointError, match=told):
        import_network(spec, code, n_classes=7, channels=3)


def test_the_folder_comes_before_others(code: str, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "net_of_mine.py").write_text("Net = None\n")
    sys.path.insert(0, str(other))
    network = import_network("net_of_mine:Net", code, n_classes=7, channels=3)
    assert network(torch.rand(2, 3, 2, 2)).shape == (2, 7)


def test_a_missing_folder_is_told(code: str) -> None:
    with pytest.raises(CheckpointError, match=r"gone is no folder; give the one that the module net_of_mine"):
        import_network("net_of_mine:Net", f"{code}/gone", n_classes=7, channels=3)


def test_a_module_of_the_same_name_elsewhere_is_not_taken_for_it(code: str, tmp_path: Path) -> None:
    import_network("net_of_mine:Net", code, n_classes=7, channels=3)
    other = tmp_path / "other"
    other.mkdir()
    (other / "net_of_mine.py").write_text(CODE)
    with pytest.raises(CheckpointError, match="a module net_of_mine is loaded already"):
        import_network("net_of_mine:Net", str(other), n_classes=7, channels=3)
