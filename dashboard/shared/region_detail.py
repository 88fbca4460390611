"""Shows one region: its draws at every τ, its mistakes, and the buttons that edit it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import streamlit as st

from dashboard.components.tau_scrubber import Sprite, tau_scrubber
from dashboard.shared import kept
from dashboard.shared.gallery import Found, read_mistakes, show_gallery, spread_out
from dashboard.shared.region_data import SEED, Regions
from dashboard.shell import store
from dashboard.shell.state import (
    annotator,
    linked_choice,
    linked_number,
    note,
    plain,
    recall,
    refuse,
    remember,
)
from defuse_core.workspace.database import WorkspaceError
from defuse_core.workspace.edits import EditKind, Gaussian, RegionEdit, names, newest_change, taus
from defuse_core.workspace.runs import Run
from defuse_core.workspace.workspace import Project

if TYPE_CHECKING:
    from defuse_core.base.records import Verdict

_SHOWN = 12


def region_name(region_id: int, given: dict[int, str]) -> str:
    """Return a region's number, with the name that people gave it."""
    return f"Region {region_id}" + (f" · {given[region_id]}" if region_id in given else "")


def linked_region(
    ids: Sequence[int], given: dict[int, str], *, key: str = "region", otherwise: int | None = None
) -> int | None:
    """Ask for a region; `otherwise` is the default. The choice is in the URL and the same on every page."""
    options = [str(i) for i in ids]
    stored = recall(key)
    if not recall(f"{key}-known"):  # a new session, as after a restart of the server: read the link
        stored = stored or st.query_params.get(key)
        remember(f"{key}-known", True)
    match = re.match(r"(?:Region )?(\d+)", str(stored or ""))
    known = match.group(1) if match else None  # without the name, which may have changed
    if known not in options:  # it was merged or split since
        known = None if otherwise is None else str(otherwise)
    if recall(key) != known:
        remember(key, known)
    unset = "all" if key == "within" else "the heaviest"
    chosen = linked_choice("Region", options, key=key, show=lambda i: region_name(int(i), given), unset=unset)
    return None if chosen is None else int(chosen)


def chosen_tau(run: Run, region_id: int) -> float:
    """Return the τ chosen for a region; else that of its latest answer; else the project's."""
    workspace = store.workspace()
    if (chosen := taus(workspace.annotations.edits(run.id)).get(region_id)) is not None:
        return chosen
    answers = [e for e in workspace.annotations.counting(run.id) if e.region_id == region_id]
    return answers[-1].tau if answers else kept.labeling(run.id).tau


def choose_tau(run: Run, region_ids: Sequence[int], tau: float) -> None:
    """Store a τ for regions, unless they have it already."""
    for region_id in region_ids:
        if chosen_tau(run, region_id) != tau:
            _store(run, RegionEdit("tau", (region_id,), tau=tau, by=annotator()))


def show_scrubber(
    project: Project, run: Run, regions: Regions, region_id: int, verdict: Verdict | None
) -> None:
    """Show a region at every τ, and store the τ chosen. A fragment, so the slider does not rerun the page."""
    st.fragment(_scrub)(project, run, regions, region_id, verdict)


def _scrub(project: Project, run: Run, regions: Regions, region_id: int, verdict: Verdict | None) -> None:
    sprite = kept.strip(run.id, region_id)
    for neighbour in _next_to(regions.ids, region_id):
        kept.strip.future(run.id, neighbour)
    if sprite is None:
        return
    left, _ = st.columns([1, 3])
    with left:
        purity = linked_number("Purity", 0.5, 1.0, 0.9, key="purity", told=_PURITY)
    key = f"tau-{run.id}-{region_id}"

    def choose() -> None:
        if (tau := recall(key, {}).get("tau")) is not None:
            choose_tau(run, [region_id], tau)

    label = verdict.label if verdict is not None else None
    tau_scrubber(
        sprite, project.class_names, tau=chosen_tau(run, region_id), suggested=_suggest(sprite, purity),
        purity=purity, key=key, label=None if label is None else project.class_names[label],
        on_change=choose,
    )  # fmt: skip
    tau = chosen_tau(run, region_id)
    text, button = st.columns([3, 1], vertical_alignment="center")
    text.caption(
        f"{sprite.predictions.shape[1]} draws z ~ N(μ, τ·Σ), the same at every τ (seed {SEED}). "
        f"Labels of this region are given at τ = {tau:g}."
    )
    with button.popover("All regions …", icon=":material/tune:"):
        st.caption(
            f"Sets the τ of all {len(regions.ids)} regions, whatever was chosen for them. Answers that were "
            "given at another τ stay, and are shown again where that τ is chosen again."
        )
        st.button(f"Use τ = {tau:g} for all", on_click=choose_tau, args=(run, regions.ids, tau))


_PURITY = "The suggested τ is the largest at which this share of the draws gets the same prediction"


def _suggest(sprite: Sprite, purity: float) -> float | None:
    import torch

    from defuse_core.method.labeling import suggest_tau

    return suggest_tau(sprite.taus, torch.from_numpy(sprite.predictions), purity=purity)


def _next_to(ids: Sequence[int], region_id: int, n: int = 2) -> list[int]:
    """Return the regions that the user will most likely look at next."""
    place = ids.index(region_id)
    return list(ids[place + 1 : place + 1 + n])


def show_mistakes(project: Project, run: Run, regions: Regions, region_id: int, found: Found) -> None:
    """Show some of the mistakes that lie in a region."""
    inside = np.nonzero(regions.membership == region_id)[0]
    if not len(inside):
        st.caption("No mistake belongs to it.")
        return
    sample = spread_out(inside)[:_SHOWN]
    st.caption(f"{len(sample)} of {len(inside):,} mistakes in it")
    identify = store.workspace().runs.ancestry(run.id)["identify"]
    show_gallery(project, identify, found, sample, key="region-mistakes")


def show_actions(run: Run, regions: Regions, region_id: int, chosen: Sequence[int]) -> None:
    """Show the buttons that rename and split a region, merge those chosen in the table, and undo."""
    edits = store.workspace().annotations.edits(run.id)
    seen = newest_change(edits)
    row = st.container(horizontal=True)
    renamed = max((max(e.id, e.undone_by) for e in edits if e.kind == "rename"), default=0)
    with row.popover("Rename", icon=":material/edit:"):
        key = f"name-{region_id}-{renamed}"  # a new key makes a new field, which shows the stored name
        st.text_input(
            "Name", names(edits).get(region_id, ""), max_chars=60, key=key,
            on_change=_rename, args=(run, region_id, key), placeholder="4 with an open top",
        )  # fmt: skip
    row.button(
        "Split", icon=":material/call_split:", on_click=_split, args=(run, regions, region_id, seen),
        help="Into two, fitted to its mistakes",
    )  # fmt: skip
    several = [i for i in chosen if i in regions.ids]
    row.button(
        "Merge " + (" and ".join(map(str, several)) if len(several) > 1 else "…"),
        icon=":material/call_merge:", on_click=_merge, args=(run, regions, several, seen),
        disabled=len(several) < 2, help="The regions whose rows are selected in the table",
    )  # fmt: skip
    last = next((e for e in reversed(edits) if e.kind != "tau" and not e.undone), None)
    if last is not None:
        row.button(
            "Undo", icon=":material/undo:", on_click=_undo, args=(run,), help=plain(f"Takes back: {last}")
        )


def _rename(run: Run, region_id: int, key: str) -> None:
    name = " ".join(str(recall(key, "")).split())
    _store(run, RegionEdit("rename", (region_id,), name=name, by=annotator()))


def _split(run: Run, regions: Regions, region_id: int, seen: int) -> None:
    import torch

    from defuse_core.extensions.regions import split

    latents = read_mistakes(store.workspace().runs.ancestry(run.id)["identify"].id).latents
    inside = torch.from_numpy(latents[regions.membership == region_id])

    def make() -> Sequence[Gaussian]:
        return split(regions.mixture, regions[region_id], inside, seed=SEED)

    _replace(run, "split", [region_id], make, seen)


def _merge(run: Run, regions: Regions, chosen: Sequence[int], seen: int) -> None:
    from defuse_core.extensions.regions import merge

    _replace(run, "merge", chosen, lambda: (merge(regions.mixture, [regions[i] for i in chosen]),), seen)


def select(run: Run, regions: Regions, mistakes: np.ndarray[tuple[int], np.dtype[np.int64]]) -> None:
    """Make a region of mistakes, given by index."""
    import torch

    from defuse_core.extensions.regions import select as make

    latents = read_mistakes(store.workspace().runs.ancestry(run.id)["identify"].id).latents
    chosen = torch.from_numpy(latents[mistakes])
    seen = newest_change(store.workspace().annotations.edits(run.id))

    def gaussians() -> Sequence[Gaussian]:
        return (make(regions.mixture, chosen, of=len(latents)),)

    _replace(run, "select", [], gaussians, seen, mistakes=mistakes.tolist())


def _replace(
    run: Run, kind: EditKind, gone: Sequence[int], make: Callable[[], Sequence[Gaussian]], seen: int, *,
    mistakes: Sequence[int] = (),
) -> None:  # fmt: skip
    """Store an edit that replaces the regions `gone` by those that `make` returns; show the first of them."""
    try:
        edit = RegionEdit(kind, tuple(gone), tuple(make()), tuple(mistakes), by=annotator())
    except ValueError as error:
        refuse(str(error))
        return
    labelled = {event.region_id for event in store.workspace().annotations.counting(run.id)} & {*gone}
    if _store(run, edit, after=seen):
        remember("region", str(edit.into[0].region_id))
        if labelled:
            note(f"{_sentence(edit)}. Their labels stay with them: label what is new, or undo.")


def _sentence(edit: RegionEdit) -> str:
    text = str(edit)
    return text[:1].upper() + text[1:]


def _undo(run: Run) -> None:
    try:
        undone = store.workspace().annotations.undo_edit(run.id)
    except WorkspaceError as error:
        refuse(str(error))
        return
    if undone is not None:
        note(f"Taken back: {undone}")
        if undone.regions:
            remember("region", str(undone.regions[0]))


def _store(run: Run, edit: RegionEdit, *, after: int | None = None) -> bool:
    try:
        store.workspace().annotations.edit(run.id, edit, after=after)
    except WorkspaceError as error:
        refuse(str(error))
        return False
    if edit.kind != "tau":
        note(_sentence(edit))
    return True
