"""Exports and imports labels, as CSV and as Label Studio's JSON with its images."""

from __future__ import annotations

from collections.abc import Iterator

import streamlit as st

from dashboard.components.image_grid import png_url
from dashboard.label.simulated import find_simulated
from dashboard.shared import kept
from dashboard.shared.region_data import SEED, Regions
from dashboard.shared.region_detail import chosen_tau
from dashboard.shell import store
from dashboard.shell.jobs_panel import newest, start
from dashboard.shell.state import annotator, note, refuse
from dashboard.shell.uploads import upload_box
from defuse_core.report.numbers import count
from defuse_core.workspace.database import WorkspaceError
from defuse_core.workspace.label_files import decode_labels, from_csv, label_subjects, to_csv
from defuse_core.workspace.labels import LabelEvent
from defuse_core.workspace.runs import Run
from defuse_core.workspace.settings import with_settings
from defuse_core.workspace.workspace import Project


def show_exchange(project: Project, run: Run, regions: Regions, *, n: int) -> None:
    """Offer the labels as files, and import files of labels."""

    def events() -> list[LabelEvent]:
        return store.workspace().annotations.counting(run.id)  # at the click: the board reruns without this

    def as_csv() -> bytes:
        return to_csv(events(), project.class_names).encode()

    def as_tasks() -> bytes:
        from defuse_core.workspace.label_studio import to_label_studio

        answers = events()
        subjects = {(e.region_id, e.tau, e.seed, e.n_samples) for e in answers if e.region_id in regions.ids}
        known = {region_id for region_id, *_ in subjects}
        subjects |= {(i, chosen_tau(run, i), SEED, n) for i in regions.ids if i not in known}
        images, painter = {}, kept.painter(run.id)
        for region_id, tau, seed, n_samples in sorted(subjects):
            if seed == SEED:  # others were labelled outside the dashboard
                draws = painter.draw(region_id, tau, n_samples)  # not kept: a file may ask for many
                for sample, image in enumerate(draws.images):
                    images[region_id, sample, tau, seed, n_samples] = png_url(image)
        return to_label_studio(answers, project.class_names, images).encode()

    def config() -> bytes:
        from defuse_core.workspace.label_studio import label_studio_config

        return label_studio_config(project.class_names).encode()

    row = st.container(horizontal=True)
    row.download_button(
        "Answers as CSV", as_csv, file_name=f"labels-run{run.id}.csv", mime="text/csv",
        on_click="ignore", icon=":material/download:",
    )  # fmt: skip
    row.download_button(
        "Label Studio tasks with images", as_tasks, file_name=f"label-studio-run{run.id}.json",
        mime="application/json", on_click="ignore", icon=":material/download:",
        help="One task a draw, with the answers there are; regions without answers as they are shown here",
    )  # fmt: skip
    row.download_button(
        "Its labelling config", config, file_name="label-studio.xml", mime="application/xml",
        on_click="ignore", icon=":material/download:",
    )  # fmt: skip
    upload_box(
        "Labels as CSV, or as Label Studio's JSON export",
        lambda name, content: _take(project, run, name, content),
        key="labels-file", kind=("csv", "json"),
        told="CSV: region, annotator, label; and sample, tau, seed, n_samples where they differ from the "
        f"whole region, {kept.labeling(run.id).tau:g}, 0 and 10",
    )  # fmt: skip


def show_simulated(project: Project, run: Run) -> None:
    """Offer to have every region labelled by the simulated annotators, as the demo does."""
    simulated = find_simulated(project)
    if simulated is None:
        return
    annotate = newest(project, "annotate")
    if annotate is not None and run.id in annotate.upstream and annotate.live:
        st.caption("The simulated annotators are running; see the sidebar.")
        return
    left, right = st.columns([3, 1], vertical_alignment="center")
    who = str(simulated)
    left.caption(
        f"{who[0].upper()}{who[1:]} can label every region and as many single mistakes, "
        "which the baseline of the correction needs. Where a person has answered, theirs do not count."
    )
    if right.button("Let them label", icon=":material/smart_toy:"):
        start(project, "annotate", with_settings(store.workspace(), project, "annotate", {}), on=[run])
        st.rerun()


def _take(project: Project, run: Run, name: str, content: Iterator[bytes]) -> None:
    """Store the labels of a file, all or none."""
    workspace = store.workspace()
    tau = kept.labeling(run.id).tau
    try:
        ids, n_mistakes = label_subjects(workspace, run)
        text = decode_labels(content, name=name)
        if name.lower().endswith(".json"):
            from defuse_core.workspace.label_studio import from_label_studio

            events = from_label_studio(text, project.class_names, ids, annotator=annotator())
        else:
            events = from_csv(text, project.class_names, ids, n_mistakes=n_mistakes, tau=tau)
        new = workspace.annotations.append_new(run.id, events)
    except WorkspaceError as error:
        refuse(str(error) if str(error).startswith(name) else f"{name}: {error}")
    else:
        known = len(events) - new
        were = "was" if known == 1 else "were"
        note(f"{count(new, 'answer')} stored" + (f", {known:,} {were} known already" if known else ""))
