"""The search for mistakes: what it will cost, how it goes, and what it found."""

from __future__ import annotations

import io
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import streamlit as st
from numpy.typing import NDArray

from dashboard import cache, charts
from dashboard.components.image_grid import Tile, image_grid
from dashboard.jobs_panel import duration, newest, start
from dashboard.reconstruction import as_arrays
from dashboard.state import linked_choice, linked_page
from dashboard.verdicts import confusion
from defuse_core.runs import Run
from defuse_core.workspace import Project

if TYPE_CHECKING:
    from defuse_core.data import ImageDataset
    from defuse_core.vae import BetaVAE

KINDS = ("dataset", "reconstruction", "perturbation")
"""By number, as `MistakeKind` counts them."""

_TOLD = {
    "perturbation": "new: image and reconstruction were both read correctly",
    "reconstruction": "the reconstruction is misread already: the generator's fault",
    "dataset": "the real image is misread already",
}
_IMAGES = ("original", "reconstruction", "mistake")
_PER_PAGE = 24
_STARTUP = 4.0  # seconds that a run takes before it computes


def show_noise(config: dict[str, Any]) -> None:
    """Draw the noise that a config adds to each element of a code."""
    from scipy.stats import beta

    a, b, scale = config["noise_a"], config["noise_b"], config["noise_scale"]
    if not all(value is not None and value > 0 for value in (a, b, scale)):
        return
    mean = a / (a + b) if config["centred"] else 0.0
    shares = np.linspace(0, 1, 401)
    density = beta.pdf(shares, a, b) / scale
    inside = np.isfinite(density)
    figure = charts.noise(scale * (shares[inside] - mean), density[inside], centred=config["centred"])
    st.plotly_chart(figure, key="noise")
    spread = scale * beta.std(a, b)
    moved = 0.0 if config["centred"] else scale * a / (a + b)
    st.caption(
        f"Every element of a code moves by {moved:.2f} on average, and jitters by {spread:.3f} (its standard "
        "deviation)"
        + ("." if config["centred"] else ": raw noise, as in the paper, shifts all codes the same way.")
    )


def show_estimate(project: Project, n_perturbations: int | None, device: str) -> None:
    """Say what a search will cost, by the speed that a probe measured on the device."""
    n_images = project.dataset["sizes"]["train"]
    n_codes = n_images * (n_perturbations or 0)
    speed = _speed(project, device)
    left, right = st.columns([3, 1], vertical_alignment="center")
    if speed is None:
        left.caption(
            f"{n_images:,} images × Q = {n_codes:,} codes. How long that takes here is not known yet."
        )
    else:
        left.markdown(
            f"About **{duration(_STARTUP + n_codes / speed)}**: {n_images:,} images × Q = {n_codes:,} codes, "
            f"{speed:,.0f} a second on this device"
        )
    probe = newest(project, "probe")
    if probe is not None and probe.live:
        right.caption("Measuring …")
    elif right.button("Measure the speed", help="Searches for two seconds, and keeps nothing"):
        start(project, "probe", {}, device=device)
        st.rerun()


def _speed(project: Project, device: str) -> float | None:
    """Codes a second of the newest probe that is not stale, on that device."""
    first = next((found.device for found in cache.devices()), "auto")
    wanted = {device, *({"auto", first} if device in ("auto", first) else ())}
    runs = cache.workspace().runs.of_project(project.id, "probe")
    fitting = [r for r in runs if r.status == "done" and not r.stale and r.resources.device in wanted]
    return fitting[-1].summary["codes_per_second"] if fitting else None


def show_search(project: Project, run: Run) -> None:
    """Show a search that is under way: counts by kind, speed, time left."""
    points = cache.workspace().runs.events(run.id, kind="point")
    found = [event.data for event in points]
    total = project.dataset["sizes"]["train"]
    if not found:
        st.caption("The search waits for its turn …" if run.status == "queued" else "The search begins …")
        return
    searched = np.cumsum([point["images"] for point in found])
    counts = {kind: np.cumsum([point[kind] for point in found]).tolist() for kind in KINDS}
    columns = st.columns(5)
    for column, kind in zip(columns, charts.KINDS, strict=False):
        column.metric(kind, f"{counts[kind][-1]:,}", help=_TOLD[kind])
    recent = [event for event in points if run.attempt_at is not None and event.at >= run.attempt_at]
    spent = (time.time() if run.live else recent[-1].at) - (run.attempt_at or 0.0) if recent else 0.0
    if run.live and recent and spent > 0:
        images = sum(event.data["images"] for event in recent) / spent
        codes = sum(event.data["decoded"] for event in recent) / spent
        told = f"decoded and classified; they lie around {images:,.1f} training images a second"
        columns[3].metric("Images a second", f"{codes:,.0f}", help=told)
        columns[4].metric("Time left", duration((total - searched[-1]) / images))
    st.plotly_chart(charts.kinds_over(searched.tolist(), counts, of=total), key="kinds-over")


@dataclass(frozen=True)
class Found:
    """Mistakes as arrays, one element each."""

    latents: NDArray[np.float32]
    labels: NDArray[np.int64]
    predictions: NDArray[np.int64]
    source_index: NDArray[np.int64]
    noise_norm: NDArray[np.float32]
    kind: NDArray[np.int64]


def show_mistakes(project: Project, run: Run) -> None:
    """Show what a search found: by kind, from which class to which, and the images."""
    counts = run.summary["mistakes"]
    columns = st.columns(4)
    columns[0].metric(
        "Mistakes kept", f"{sum(counts.values()):,}", help=f"around {run.summary['searched']:,} images"
    )
    for column, kind in zip(columns[1:], charts.KINDS, strict=True):
        column.metric(kind, f"{counts[kind]:,}", help=_TOLD[kind])
    if not sum(counts.values()):
        st.info(
            "No mistake was found. Search wider: a larger scale of the noise, or more perturbations an image."
        )
        return
    found = Found(**cache.arrays(run.id, "mistakes"))  # type: ignore[arg-type]  # names and types are the step's
    names = project.class_names
    numbers = [str(i) for i in range(len(names))]
    row = st.columns([2, 2, 2, 1])
    with row[0]:
        kind = linked_choice("Kind", list(charts.KINDS), key="kind")
    with row[1]:
        label = linked_choice("True class", numbers, key="label", show=lambda i: names[int(i)])
    with row[2]:
        said = linked_choice("Prediction", numbers, key="said", show=lambda i: names[int(i)])
    keep = np.ones(len(found.labels), dtype=bool)
    keep &= True if kind is None else found.kind == KINDS.index(kind)
    of_kind = keep.copy()
    keep &= True if label is None else found.labels == int(label)
    keep &= True if said is None else found.predictions == int(said)
    chosen = _spread_out(np.nonzero(keep)[0])
    with row[3]:
        shown = chosen[linked_page(len(chosen), _PER_PAGE, key="page")]
    flow = confusion(found.labels[of_kind], found.predictions[of_kind], len(names))
    row = st.container(horizontal=True)  # one under the other where the window is narrow
    with row.container(width=360):
        st.plotly_chart(charts.matrix(flow, names, title="Who is taken for whom"), key="flow")
    with row.container(width=590):
        st.caption(f"{len(shown)} of {len(chosen):,}, in an order that mixes the source images")
        _show_gallery(project, run, found, shown)
        _export(project, run, found, np.sort(chosen), shown)


def _spread_out(chosen: NDArray[np.int64]) -> NDArray[np.int64]:
    """Mistakes of one image come together; mix them, always the same way."""
    return np.random.default_rng(0).permutation(chosen)


def _show_gallery(project: Project, run: Run, found: Found, shown: NDArray[np.int64]) -> None:
    triples = _triples(project, run, found, shown)
    if triples is None:
        return
    names = project.class_names
    tiles = [
        Tile(
            list(images), names[found.predictions[i]], True,
            f"{names[found.labels[i]]} → {names[found.predictions[i]]}\n{KINDS[found.kind[i]]}",
            [names[found.labels[i]], "reconstruction", f"read as {names[found.predictions[i]]}"],
        )
        for i, images in zip(shown.tolist(), triples, strict=True)
    ]  # fmt: skip
    image_grid(tiles, key="mistakes", headings=_IMAGES)


def _models(project: Project, run: Run) -> tuple[BetaVAE, ImageDataset] | None:
    vae = cache.generator(cache.workspace().runs.ancestry(run.id)["vae"].id)
    dataset = cache.dataset(project)
    return None if vae is None or dataset is None else (vae, dataset)


def _triples(project: Project, run: Run, found: Found, shown: NDArray[np.int64]) -> NDArray[np.uint8] | None:
    """Original, reconstruction and mistake, (n, 3, height, width, channels) uint8."""
    import torch

    from defuse_core.vae import decode_images, encode_means

    models = _models(project, run)
    if models is None or not len(shown):
        return None
    vae, dataset = models
    sources = dataset.train.images[torch.from_numpy(found.source_index[shown])]
    originals = sources.permute(0, 2, 3, 1).numpy()
    decoded = as_arrays(decode_images(vae, encode_means(vae, sources)))
    mistakes = as_arrays(decode_images(vae, torch.from_numpy(found.latents[shown])))
    return np.stack([originals, decoded, mistakes], axis=1)


def mistakes_table(project: Project, found: Found, chosen: NDArray[np.int64]) -> pd.DataFrame:
    """Mistakes as a table, by number."""
    names = np.array(project.class_names)
    return pd.DataFrame(
        {
            "mistake": chosen,
            "source_image": found.source_index[chosen],
            "label": names[found.labels[chosen]],
            "prediction": names[found.predictions[chosen]],
            "kind": np.array(KINDS)[found.kind[chosen]],
            "noise_norm": found.noise_norm[chosen],
        }
    )


def mistakes_npz(table: pd.DataFrame, triples: NDArray[np.uint8]) -> bytes:
    """Write a table of mistakes with their images, (n, 3, height, width, channels), as an .npz of arrays."""
    images = {f"{name}_image": triples[:, i] for i, name in enumerate(_IMAGES)}
    columns = {name: np.array(values) for name, values in table.to_dict("list").items()}
    written = io.BytesIO()
    np.savez_compressed(written, **columns, **images)
    return written.getvalue()


def _export(
    project: Project, run: Run, found: Found, chosen: NDArray[np.int64], shown: NDArray[np.int64]
) -> None:
    def table() -> bytes:
        return mistakes_table(project, found, chosen).to_csv(index=False).encode()

    def images() -> bytes:
        triples = _triples(project, run, found, shown)
        assert triples is not None  # the page shows them
        return mistakes_npz(mistakes_table(project, found, shown), triples)

    row = st.container(horizontal=True)
    row.download_button(
        f"Table of these {len(chosen):,} as CSV", table, file_name=f"mistakes-run{run.id}.csv",
        mime="text/csv", on_click="ignore", icon=":material/download:",
    )  # fmt: skip
    row.download_button(
        f"The {len(shown)} images shown as npz", images, file_name=f"mistakes-run{run.id}.npz",
        mime="application/octet-stream", on_click="ignore", icon=":material/download:",
        disabled=not len(shown),
    )  # fmt: skip
