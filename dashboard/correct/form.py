"""The form of a correction: its regions, λ and settings, the estimated time, and the start."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import streamlit as st

from dashboard.correct.runs import CORRECTION
from dashboard.shared import kept
from dashboard.shared.probe import STARTUP, offer_probe, probed
from dashboard.shared.region_table import fit_of, label_of
from dashboard.shell import store
from dashboard.shell.forms import config_form, device_field
from dashboard.shell.jobs_panel import duration, start
from dashboard.shell.state import forget, plain, project_link, remember
from defuse_core.base.config import PAPER_LAMBDAS
from defuse_core.report.verdicts import count_failures, tell_failures, tell_status
from defuse_core.workspace.edits import names, newest_change
from defuse_core.workspace.labels import SINGLE_MISTAKES
from defuse_core.workspace.runs import Run
from defuse_core.workspace.workspace import Project

if TYPE_CHECKING:
    from defuse_core.base.records import Verdict

_MAIN = (
    "epochs", "max_images", "optimizer", "learning_rate", "held_out_share", "n_seeds",
    "instances_per_region", "rule", "max_loss",
)  # fmt: skip
_OWN = ("lambdas", "baseline_lambdas", "regions", "last_annotation", "disagreement_threshold")
"""Fields that `config_form` leaves out: they have widgets of their own, or none."""


@dataclass(frozen=True)
class Labelled:
    """What people labelled: verdicts by region, the failures among them, and how many single mistakes."""

    verdicts: Mapping[int, Verdict]
    n_single: int

    @property
    def failures(self) -> list[int]:
        """Ids of the failures that have a label, and so can be corrected."""
        return [i for i, v in self.verdicts.items() if v.is_failure and v.label is not None]

    @property
    def told(self) -> str:
        """How many failures there are, and why not all of them can be corrected."""
        n, n_sure = count_failures(self.verdicts.values())
        if not (ties := n - len(self.failures)):
            return f"{tell_failures(n, n_sure)}."
        return (
            f"{tell_failures(n, n_sure)}; {ties} without a label, since the most frequent ones tie: label "
            "more of their draws, or split them on the page Regions."
        )


def read_labels(distill: Run) -> Labelled | None:
    """Read the labels of a distill run; if nothing can be corrected yet, say why and return None."""
    events = store.workspace().annotations.counting(distill.id)
    if not any(event.region_id != SINGLE_MISTAKES for event in events):
        st.info("Label regions first: look at their draws, and say what they show.")
        st.page_link("../pages/label.py", icon=":material/arrow_forward:", query_params=project_link())
        return None
    verdicts = kept.verdicts(distill.id)
    if verdicts is None:
        return None
    single = {e.sample_id for e in events if e.region_id == SINGLE_MISTAKES and e.label is not None}
    labelled = Labelled(verdicts, len(single))
    if not labelled.failures:
        nothing = (
            f"None of the {len(verdicts)} labelled regions is a failure: there is nothing to correct. Label "
            "more regions, or identify with another seed or more perturbations."
        )
        st.info(labelled.told if any(v.is_failure for v in verdicts.values()) else nothing)
        for page in ("label", "identify"):
            st.page_link(f"../pages/{page}.py", icon=":material/arrow_forward:", query_params=project_link())
        return None
    return labelled


def show_form(project: Project, distill: Run, labelled: Labelled) -> None:
    """Show the settings of a correction, what it will cost, and the button that starts it."""
    key = f"correct-{project.id}"
    rho = kept.labeling(distill.id).disagreement_threshold
    st.markdown(f"**{labelled.told}**")
    regions = _choose_regions(project, distill, labelled, rho)
    lambdas = lambdas_field(f"{key}-lambdas", "λ, weights of the regions")
    config = config_form("correct", key=key, main=_MAIN, leave_out=_OWN)
    config["correction"]["lambdas"] = lambdas
    config["baseline_lambdas"] = _choose_baseline(f"{key}-baseline", labelled.n_single, lambdas)
    config["disagreement_threshold"] = rho
    config["regions"] = None if len(regions) == len(labelled.failures) else regions
    left, right, _ = st.columns(3)
    with left:
        device = device_field()
    seed = right.number_input(
        "seed", 0, value=0, step=1, key="correct-seed",
        help="Random seed of the draws and of the held-out regions",
    )  # fmt: skip
    problem = lambdas_problem(lambdas) or lambdas_problem(config["baseline_lambdas"] or ["0"])
    if problem is None:
        _show_estimate(project, config, len(regions), labelled.n_single, device)
    else:
        st.error(plain(problem))
    if not regions:
        st.caption("Select at least one region.")
    ready = bool(regions) and problem is None
    if st.button("Start", type="primary", icon=":material/play_arrow:", disabled=not ready):
        if start(project, "correct", config, seed=int(seed), device=device, on=[distill]) is not None:
            forget(CORRECTION)  # the page shows the new run
        st.rerun()


def _choose_regions(project: Project, distill: Run, labelled: Labelled, rho: float) -> list[int]:
    """Show the failure regions, all ticked; return those that stay ticked."""
    annotations = store.workspace().annotations
    edits, failures = annotations.edits(distill.id), labelled.failures
    custom_names = names(edits)
    table = pd.DataFrame(
        {
            "goes in": True,
            "region": failures,
            "name": [custom_names.get(i, "") for i in failures],
            "label": [label_of(labelled.verdicts[i], project.class_names) for i in failures],
            "label fits": [fit_of(labelled.verdicts[i]) for i in failures],
            "error": [labelled.verdicts[i].error.estimate for i in failures],
            "95 % interval": [_interval(labelled.verdicts[i]) for i in failures],
            "n": [labelled.verdicts[i].error.n for i in failures],
            "status": [tell_status(labelled.verdicts[i]) for i in failures],
        }
    )
    if not any(table["name"]):
        table = table.drop(columns="name")
    edited = st.data_editor(
        table, hide_index=True, disabled=[name for name in table if name != "goes in"],
        key=f"correct-regions-{distill.id}-{newest_change(edits)}-{annotations.last_id(distill.id)}",
        column_config={"error": st.column_config.NumberColumn("error", format="percent")},
        height=min(300, 38 + 35 * len(table)), alt="Failure regions, and whether each is tuned on",
    )  # fmt: skip
    others = [verdict for verdict in labelled.verdicts.values() if not verdict.is_failure]
    if others:
        statuses = [tell_status(verdict) for verdict in others]
        counts = "; ".join(f"{statuses.count(status)} {status}" for status in sorted({*statuses}))
        st.caption(
            f"{len(others)} more regions are labelled, and stay out: at most ρ = {rho:g} of their draws are "
            f"misclassified, or none has an answer ({counts})."
        )
    return [int(i) for i in edited.loc[edited["goes in"], "region"]]


def _interval(verdict: Verdict) -> str:
    return f"{verdict.error.low:.2f} … {verdict.error.high:.2f}"


def lambdas_field(key: str, label: str, default: Sequence[float] = PAPER_LAMBDAS) -> list[str]:
    """Ask for values of λ, separated by commas; return them as they were typed."""
    left, right = st.columns([4, 1], vertical_alignment="bottom")
    text = ", ".join(f"{lam:g}" for lam in default)
    with left:
        typed = st.text_input(
            label, text, key=key, persist_state="session",
            help="Separated by commas; 0 tunes on the training images alone",
        )  # fmt: skip
    if default == PAPER_LAMBDAS:
        right.button("The paper's 17", on_click=remember, args=(key, text), width="stretch")
    return read_lambdas(typed)


def read_lambdas(typed: str) -> list[str]:
    """Split what was typed into values; the config checks whether they are numbers.

    Examples
    --------
    >>> read_lambdas("0.1, 1; 10 ,")
    ['0.1', '1', '10']
    """
    return [part for part in typed.replace(";", ",").replace(",", " ").split() if part]


def lambdas_problem(typed: Sequence[str]) -> str | None:
    """Say what is wrong with values of λ; None if nothing is.

    Examples
    --------
    >>> lambdas_problem(["0.1", "-1"])
    'λ must be a number from 0 up, got -1.'
    >>> lambdas_problem(["0.1", "1"]) is None
    True
    """
    if not typed:
        return "Give at least one λ."
    for part in typed:
        try:
            fits = 0 <= float(part) < math.inf
        except ValueError:
            fits = False
        if not fits:
            return f"λ must be a number from 0 up, got {part}."
    if len({float(part) for part in typed}) < len(typed):
        return "A λ is given twice; with a decimal comma 0,1 reads as two of them: write 0.1."
    return None


def _choose_baseline(key: str, n_single: int, lambdas: list[str]) -> list[str]:
    """Ask whether to compute the baseline, and with which λ, by default those of the regions; none if not."""
    left, right = st.columns([1, 2], vertical_alignment="bottom")
    enabled = left.toggle(
        "Baseline", n_single > 0, key=f"{key}-{n_single > 0}", disabled=not n_single,
        persist_state="session", help="Fine-tunes on labelled single mistakes instead of regions",
    )  # fmt: skip
    if not n_single:
        right.caption(
            "The baseline tunes on single mistakes, of which none is labelled. Import labels of them, or let "
            "simulated annotators label some (page Label); on images other than digits, train such first: "
            "defuse train-annotators."
        )
        return []
    typed = right.text_input(
        f"λ of the baseline, on {n_single:,} single mistakes", key=f"{key}-lambdas",
        placeholder="as for the regions", disabled=not enabled, persist_state="session",
        help="Empty: those of the regions, so that both are searched equally",
    )  # fmt: skip
    return (read_lambdas(typed) or lambdas) if enabled else []


@dataclass(frozen=True)
class Speeds:
    """Images a second that a probe measured."""

    tuned: float
    classified: float


def sweep_seconds(
    sizes: Mapping[str, int], speeds: Speeds, config: Mapping[str, Any], *, n_regions: int, n_single: int
) -> float:
    """Estimate the computing time of a sweep, in seconds.

    Parameters
    ----------
    sizes : mapping of str to int
        Images of train, test, and validation where there is that split.
    speeds : Speeds
    config : mapping
        As `SweepConfig` takes it.
    n_regions, n_single : int
        Failure regions that go in, and labelled single mistakes.
    """
    tuning, repeats = config["correction"], config["n_seeds"]
    n_train, n_validation = sizes["train"], sizes.get("validation", 0)
    n_data = min(tuning.get("max_images") or n_train, n_train)
    steps = -(-n_data // tuning["batch_size"])
    held_out = min(round(tuning["held_out_share"] * n_regions), max(n_regions - 1, 0))
    draws = n_regions * tuning["instances_per_region"]
    measured = sizes["test"] + n_validation + draws

    def of_lambda(n_failures: int) -> float:
        tuned = (n_data + max(n_failures, steps)) / speeds.tuned
        selected = (n_validation or n_train) / speeds.classified
        return float(tuning["epochs"] * (tuned + selected) + measured / speeds.classified)

    n_tuned = (n_regions - held_out) * tuning["instances_per_region"]
    regions = len(tuning["lambdas"]) * of_lambda(n_tuned)
    return repeats * (regions + len(config["baseline_lambdas"]) * of_lambda(n_single))


def _show_estimate(
    project: Project, config: Mapping[str, Any], n_regions: int, n_single: int, device: str
) -> None:
    """Say what the sweep will cost, by the speeds that a probe measured on the device."""
    tuning, baseline = config["correction"], config["baseline_lambdas"]
    left, right = st.columns([3, 1], vertical_alignment="center")
    needed = ("epochs", "batch_size", "instances_per_region", "held_out_share")
    if all(tuning[name] is not None for name in needed) and config["n_seeds"] is not None:
        n = config["n_seeds"] * (len(tuning["lambdas"]) + len(baseline))
        what = f"{len(tuning['lambdas'])} λ" + (f" and {len(baseline)} of the baseline" if baseline else "")
        what += f" × {config['n_seeds']} seeds" if config["n_seeds"] > 1 else ""
        work = f"{what}: {n} times {tuning['epochs']} epochs on {n_regions} regions"
        probe = probed(project, device) or {}
        if "tuned_per_second" not in probe:
            left.caption(f"{work}. How long that takes here is not known yet.")
        else:
            speeds = Speeds(probe["tuned_per_second"], probe["classified_per_second"])
            seconds = sweep_seconds(
                project.dataset["sizes"], speeds, config, n_regions=n_regions, n_single=n_single
            )
            left.markdown(
                f"About **{duration(STARTUP + seconds)}**: {work}, {speeds.tuned:,.0f} images a second tuned "
                f"and {speeds.classified:,.0f} classified on this device"
            )
    with right:
        offer_probe(project, device)
