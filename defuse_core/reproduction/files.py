"""Write the files of a reproduction: results-<dataset>.json, figures, and RESULTS.md of all data sets."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from defuse_core.base.checkpoints import load_artifact
from defuse_core.base.files import write_bytes
from defuse_core.report.figures import figure_bytes
from defuse_core.reproduction.figures import (
    draw_agreement_over_seeds,
    draw_kinds,
    draw_map,
    draw_novelty_over_seeds,
    draw_rows,
    draw_scores_over_seeds,
    draw_trade_off_over_seeds,
)
from defuse_core.reproduction.paper import PAPER, section_title
from defuse_core.reproduction.plans import NETWORKS, results_name
from defuse_core.reproduction.results import Runs, all_seeds, read_results
from defuse_core.reproduction.tables import write_section
from defuse_core.steps.source import open_dataset
from defuse_core.workspace.workspace import Workspace

RESULTS = "RESULTS.md"
_NOT_ALWAYS = {
    "figure3-regions", "figure4-accuracy", "figure5-trade-off", "figure6-nearest", "figure6-novelty",
    "figure7-agreement", "unnormalised",
}  # fmt: skip

_OF_REPORT = {"figure3-regions": "figure1-regions", "figure6-nearest": "figure6-nearest"}
"""Pictures of one seed, by what its report calls them."""

_HEAD = """# The paper's figures on its three data sets

What `defuse reproduce` measured, beside what the paper reports (Slack, Rauschmayr and Kenthapadi,
XAI4Debugging, NeurIPS 2021). This file is written by the command; `notes-<dataset>.md` beside it holds what
people found out. Over seeds: mean (lowest–highest). All numbers: `results-<dataset>.json`.

"""


def write_reproduction(
    workspace: Workspace, results: Mapping[str, Any], runs: Runs, folder: Path, draws: Sequence[Tensor] = ()
) -> None:
    """Write results, figures and tables of one data set, and RESULTS.md of all that are in the folder.

    Parameters
    ----------
    results : mapping
        As `results.collect` returns it.
    runs : mapping of str to Run
        Of the seed that figures 2 and 3 show: one with failure regions, where there is one.
    folder : Path
        Created where it is missing.
    draws : sequence of Tensor
        Of `search_unnormalised`, a row of pictures each.
    """
    name_of, seeds = _name(results), results["seeds"]
    pictures = {
        "figure2-map": figure_bytes(_map(workspace, runs), "png"),
        "kinds": figure_bytes(draw_kinds(all_seeds(results)), "png"),
    }
    if draws:
        pictures["unnormalised"] = figure_bytes(draw_rows(draws), "png")
    if seeds:
        pictures |= {
            name: workspace.artifact_path(runs["report"].id, f"{of_report}.png").read_bytes()
            for name, of_report in _OF_REPORT.items()
        }
        pictures |= {
            "figure4-accuracy": figure_bytes(draw_scores_over_seeds(seeds), "png"),
            "figure5-trade-off": figure_bytes(draw_trade_off_over_seeds(seeds), "png"),
            "figure6-novelty": figure_bytes(draw_novelty_over_seeds(seeds), "png"),
            "figure7-agreement": figure_bytes(draw_agreement_over_seeds(seeds), "png"),
        }
    for name, content in pictures.items():
        write_bytes(folder / "figures" / f"{name_of}-{name}.png", content)
    for name in _NOT_ALWAYS - pictures.keys():  # of an earlier reproduction, which had more
        (folder / "figures" / f"{name_of}-{name}.png").unlink(missing_ok=True)
    text = json.dumps(results, indent=1, allow_nan=False) + "\n"
    write_bytes(folder / f"results-{name_of}.json", text.encode())
    write_bytes(folder / RESULTS, write_results(folder).encode())


def write_results(folder: Path) -> str:
    """Return RESULTS.md of the results-<dataset>.json in a folder."""
    sections = []
    for dataset, network in [(each, network) for each in PAPER for network in NETWORKS[each]]:
        name = results_name(dataset, network)
        path, notes = folder / f"results-{name}.json", folder / f"notes-{name}.md"
        text = notes.read_text(encoding="utf-8") if notes.is_file() else ""
        if path.is_file():
            results = read_results(path.read_bytes(), source=str(path))
            sections.append(write_section(results, text) + "\n" + _figures(folder, name, results))
        else:
            title = f"## {section_title(dataset, network)}"
            unmeasured = f"{title}\n\nNot measured yet: `defuse reproduce {dataset}`.\n"
            sections.append(unmeasured + (f"\n{text}" if text else ""))
    return _HEAD + "\n".join(sections)


def _name(results: Mapping[str, Any]) -> str:
    return results_name(results["dataset"], results["configs"]["classifier"]["architecture"])


def _figures(folder: Path, name: str, results: Mapping[str, Any]) -> str:
    """Links to the pictures of a data set in the folder, and the seed that figures 2 and 3 show."""
    seed = (results["seeds"] or all_seeds(results))[0]["seed"]
    told = f"Figures 2, 3 and the pictures of 6 are of seed {seed}.\n\n"
    caption = told if len(all_seeds(results)) > 1 else ""
    paths = sorted((folder / "figures").glob(f"{name}-[fku]*.png"))  # figure…, kinds, unnormalised
    links = [f"![{p.stem.removeprefix(f'{name}-')}](figures/{p.name})" for p in paths]
    return f"### Figures\n\n{caption}" + "\n\n".join(links) + "\n"


def _map(workspace: Workspace, runs: Runs) -> Any:
    """Figure 2 from a map run: training codes by class, and the mistakes that lie in a region."""
    run = runs["map"]
    method = run.config["method"]
    tensors, _ = load_artifact(workspace.artifact_path(run.id, f"{method}.safetensors"))
    project = workspace.project(run.project_id)
    index = tensors["train_index"]
    labels = open_dataset(workspace, project).train.labels[index]
    points = tensors["points"].numpy()
    in_region = tensors["mistake_region"].numpy() >= 0
    return draw_map(
        points[: len(index)], labels.numpy(), points[len(index) :][in_region],
        class_names=project.class_names,
        title=f"{len(index):,} training codes and {int(in_region.sum()):,} mistakes in regions ({method})",
    )  # fmt: skip
