"""Stored results that are damaged tell what to do; whole ones are as JSON has them."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, dataclass
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import pytest

from defuse_core.workspace.database import WorkspaceError
from defuse_core.workspace.results import Results, load_results, region_ids
from defuse_core.workspace.workspace import Workspace
from tests.in_process import store_run
from tests.workspaces import Place

WHOLE = {"regions": [{"region_id": 3}, {"region_id": 1}], "corrected": {"chosen": {"lam": 0.5}}}


@dataclass(frozen=True)
class Holder:
    held: dict[str, Any]


def test_whole_results_are_as_json_has_them() -> None:
    results = Results(WHOLE, where="here")
    assert results == WHOLE
    assert results["corrected"]["chosen"]["lam"] == 0.5
    assert results.get("mistakes") is None
    assert region_ids(results) == [3, 1]
    assert json.loads(json.dumps(results)) == WHOLE
    assert copy.deepcopy(results) == asdict(Holder(results))["held"] == WHOLE


@pytest.mark.parametrize(
    ("path", "told"),
    [(["mistakes"], "mistakes"), (["corrected", "chosen", "epoch"], "corrected.chosen.epoch")],
)
def test_a_number_that_is_missing_is_told_with_the_run(tmp_path: Path, path: list[str], told: str) -> None:
    workspace = Workspace(tmp_path)
    place = Place(workspace, workspace.create_project("shapes", dataset={}))
    value: Any = store_run(place, "inspect", WHOLE).summary
    with pytest.raises(WorkspaceError, match=rf"run 1 \(inspect\) is damaged: it lacks {told}; run the step"):
        reduce(getitem, path, value)


@pytest.mark.parametrize("regions", [3, [1], [{}], [{"region_id": "x"}]])
def test_regions_without_ids_are_told(regions: Any) -> None:
    with pytest.raises(WorkspaceError, match="the regions is damaged: they have no ids; run the step again"):
        region_ids(Results({"regions": regions}, where="here"))


@pytest.mark.parametrize("content", [b"", b"[]", b"3", b"\xff", b"[" * 10**5])
def test_a_file_that_holds_no_results_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(WorkspaceError, match=r"results\.json of run 7 is damaged: it is no .*; run the step"):
        load_results(tmp_path / "results.json", 7)
