"""Collect what a reproduction measured from the runs of its seeds. Imports no torch."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from defuse_core.data.naming import source_kind
from defuse_core.reproduction.paper import DatasetName
from defuse_core.reproduction.plans import Length
from defuse_core.workspace.configs import StepName
from defuse_core.workspace.database import WorkspaceError
from defuse_core.workspace.results import load_results
from defuse_core.workspace.runs import Run
from defuse_core.workspace.workspace import Project, Workspace

FORMAT = "defuse-reproduction"
_CPUINFO = Path("/proc/cpuinfo")  # Linux

KINDS = ("dataset", "reconstruction", "perturbation")

Runs = Mapping[StepName, Run]


def collect(
    workspace: Workspace, project: Project, dataset: DatasetName, length: Length, seeds: Sequence[Runs]
) -> dict[str, Any]:
    """Return the content of results-<dataset>.json.

    Parameters
    ----------
    seeds : sequence of mapping of str to Run
        Runs of every seed by step, the shared ones included; all are done. A seed without failure regions
        lacks `correct` and what stands on it; one with fewer than two mistakes also lacks `distill` and
        `annotate`.

    Returns
    -------
    dict
        "seeds" lists the content of results.json of each seed, with "control" (ε = 0, by split),
        "failure_kinds" (the mistakes in failure regions, by kind), "paper_rule" (what the paper's choice
        of λ would have given) and "seconds_by_step" added. "without_failures" lists what the seeds with
        nothing to correct have. The rest records data, configs and machines.
    """
    first = max(seeds, key=len)
    source = project.dataset["source"]
    blobs = {f"blob:{blob.sha256}": blob.name for blob in workspace.blobs(project.id)}
    return {
        "format": FORMAT,
        "dataset": dataset,
        "length": length,
        "data": {
            "name": blobs.get(source) or source_kind(source).title(source),
            **{key: project.dataset[key] for key in ("sizes", "image_shape", "fingerprint")},
            "validation": project.dataset.get("validation"),
        },
        "annotators": first["annotators"].summary,
        "configs": {step: _without_folders(run.config) for step, run in first.items()},
        "began_afresh": first["classifier"].summary.get("began_afresh", []),
        "machine": _machines([run for runs in seeds for run in runs.values()]),
        "seconds_shared": {step: round(first[step].seconds, 1) for step in ("annotators", "vae")},
        "seeds": [_of_seed(workspace, runs) for runs in seeds if "report" in runs],
        "without_failures": [_without_failures(runs) for runs in seeds if "report" not in runs],
    }


def _of_seed(workspace: Workspace, runs: Runs) -> dict[str, Any]:
    path = workspace.artifact_path(runs["report"].id, "results.json")
    results: dict[str, Any] = load_results(path, runs["report"].id)
    failures = {row["region_id"] for row in results["by_region"]}
    settings = {step: _without_folders(config) for step, config in results["settings"].items()}
    return {
        **results,
        **_of_search(runs),
        "settings": settings,
        "failure_kinds": _sum_kinds(
            region["kinds"]
            for region in runs["distill"].summary["regions"]
            if region["region_id"] in failures
        ),
        "paper_rule": paper_rule(runs["correct"].summary),
    }


def _without_failures(runs: Runs) -> dict[str, Any]:
    """What results.json would say of a seed that had nothing to correct."""
    return {
        "seed": runs["classifier"].seed,
        "before": runs["classifier"].summary["accuracy"],
        "scenarios": count_scenarios(runs),
        "failure_regions": 0,
        "mistakes": runs["identify"].summary["mistakes"],
        **_of_search(runs),
    }


def count_scenarios(runs: Runs) -> int:
    """How many regions distillation kept; 0 where fewer than two mistakes were found."""
    return len(runs["distill"].summary["regions"]) if "distill" in runs else 0


def _of_search(runs: Runs) -> dict[str, Any]:
    """What every seed has: the control ε = 0 by split, and the time of each step."""
    seconds = {step: round(run.seconds, 1) for step, run in runs.items() if step not in ("annotators", "vae")}
    return {"control": runs["control"].summary["control"], "seconds_by_step": seconds}


def _machines(runs: Sequence[Run]) -> dict[str, Any]:
    """Devices and versions of the runs, each once; processor and cores are those of this machine."""
    attempts = [each for run in runs for each in run.record.get("attempts", ())]
    devices = {a.get("device", {}).get("name", "?") for a in attempts}
    versions = {tuple(sorted(a.get("versions", {}).items())) for a in attempts}
    return {
        "devices": sorted(devices),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "versions": [dict(each) for each in sorted(versions)],
    }


def _processor() -> str:
    """Name of this machine's processor on Linux, else the kind of machine."""
    cpuinfo = _CPUINFO.read_text() if _CPUINFO.is_file() else ""
    model = re.search(r"^model name\s*: (.+)$", cpuinfo, re.MULTILINE)
    return model[1] if model else platform.machine()


def _without_folders(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config whose "more_data" names torchvision's data without the folder on this machine."""
    more = config.get("more_data")
    return dict(config) if more is None else {**config, "more_data": ":".join(more.split(":")[:2])}


def _sum_kinds(counts: Any) -> dict[str, int]:
    totals = dict.fromkeys(KINDS, 0)
    for each in counts:
        for kind in KINDS:
            totals[kind] += each[kind]
    return totals


def paper_rule(sweep: Mapping[str, Any]) -> dict[str, float]:
    """Accuracies at the paper's choice of λ, the one of best selection accuracy; ties go to the smaller λ.

    Parameters
    ----------
    sweep : mapping
        Summary of a correct run.
    """
    points = [p for p in sweep["corrected"]["points"] if not p.get("repeat") and p["lam"]]
    best = max(points, key=lambda p: (p["selection"], -p["lam"]))
    return {"lam": best["lam"], "test": best["test"][0], "region": best["region"][0]}


def all_seeds(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the results of all seeds in order, those without a failure region included."""
    seeds = [*(results.get("seeds") or ()), *(results.get("without_failures") or ())]
    return sorted(seeds, key=lambda seed: seed["seed"])


def read_results(content: bytes, *, source: str) -> dict[str, Any]:
    """Read a results-<dataset>.json.

    Parameters
    ----------
    content : bytes
    source : str
        Name of the file in messages.

    Raises
    ------
    WorkspaceError
        If the content is something else.
    """
    try:
        results = json.loads(content)
    except (ValueError, UnicodeDecodeError) as error:
        raise WorkspaceError(f"{source} is not readable JSON ({error}); make it anew") from error
    if not isinstance(results, dict) or results.get("format") != FORMAT or not all_seeds(results):
        raise WorkspaceError(f"{source} holds no reproduction; make it with: defuse reproduce")
    return results
