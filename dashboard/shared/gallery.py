"""Shows mistakes beside their original and reconstruction, and exports them."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import streamlit as st
from numpy.typing import NDArray

from dashboard.components.image_grid import Tile, image_grid
from dashboard.shared import kept
from dashboard.shared.reconstruction import as_arrays
from dashboard.shared.table_csv import table_csv
from dashboard.shell import store
from defuse_core.workspace.runs import Run
from defuse_core.workspace.workspace import Project

if TYPE_CHECKING:
    from defuse_core.data.splits import ImageDataset
    from defuse_core.method.vae import BetaVAE

KINDS = ("dataset", "reconstruction", "perturbation")
"""Names of the kinds, in the order of `MistakeKind`."""

_IMAGES = ("original", "reconstruction", "mistake")


@dataclass(frozen=True)
class Found:
    """Mistakes as arrays, with one element per mistake."""

    latents: NDArray[np.float32]
    labels: NDArray[np.int64]
    predictions: NDArray[np.int64]
    source_index: NDArray[np.int64]
    noise_norm: NDArray[np.float32]
    kind: NDArray[np.int64]


def read_mistakes(run_id: int) -> Found:
    """Read the mistakes of a search. The arrays are shared: do not change them."""
    return Found(**store.arrays(run_id, "mistakes"))  # the step writes these names and types


def spread_out(chosen: NDArray[np.int64]) -> NDArray[np.int64]:
    """Shuffle mistakes, always the same way: those of one image are neighbours."""
    return np.random.default_rng(0).permutation(chosen)


def show_gallery(
    project: Project, run: Run, mistakes: Found, indices: NDArray[np.int64], *, key: str = "mistakes"
) -> None:
    """Show mistakes, given by index, as tiles of three images."""
    triples = _triples(project, run, mistakes, indices)
    if triples is None:
        return
    names = project.class_names
    tiles = [
        Tile(
            list(images), names[mistakes.predictions[i]], True,
            f"{names[mistakes.labels[i]]} → {names[mistakes.predictions[i]]}\n{KINDS[mistakes.kind[i]]}",
            [names[mistakes.labels[i]], "reconstruction", f"predicted as {names[mistakes.predictions[i]]}"],
        )
        for i, images in zip(indices.tolist(), triples, strict=True)
    ]  # fmt: skip
    image_grid(tiles, key=key, headings=_IMAGES)


def _models(project: Project, run: Run) -> tuple[BetaVAE, ImageDataset] | None:
    vae = kept.generator(store.workspace().runs.ancestry(run.id)["vae"].id)
    dataset = kept.dataset(project.id)
    return None if vae is None or dataset is None else (vae, dataset)


def _triples(
    project: Project, run: Run, mistakes: Found, rows: NDArray[np.int64]
) -> NDArray[np.uint8] | None:
    """Return original, reconstruction and mistake, (n, 3, height, width, channels) uint8."""
    import torch

    from defuse_core.method.vae import decode_images, encode_means

    models = _models(project, run)
    if models is None or not len(rows):
        return None
    vae, dataset = models
    sources = dataset.train.images[torch.from_numpy(mistakes.source_index[rows])]
    originals = sources.permute(0, 2, 3, 1).numpy()
    reconstructions = as_arrays(decode_images(vae, encode_means(vae, sources)))
    perturbed = as_arrays(decode_images(vae, torch.from_numpy(mistakes.latents[rows])))
    return np.stack([originals, reconstructions, perturbed], axis=1)


def mistakes_table(project: Project, mistakes: Found, chosen: NDArray[np.int64]) -> pd.DataFrame:
    """Return mistakes, given by index, as a table."""
    names = np.array(project.class_names)
    return pd.DataFrame(
        {
            "mistake": chosen,
            "source_image": mistakes.source_index[chosen],
            "label": names[mistakes.labels[chosen]],
            "prediction": names[mistakes.predictions[chosen]],
            "kind": np.array(KINDS)[mistakes.kind[chosen]],
            "noise_norm": mistakes.noise_norm[chosen],
        }
    )


def mistakes_npz(table: pd.DataFrame, triples: NDArray[np.uint8]) -> bytes:
    """Write a table of mistakes with their images, (n, 3, height, width, channels), as an .npz of arrays."""
    images = {f"{name}_image": triples[:, i] for i, name in enumerate(_IMAGES)}
    columns = {name: np.array(values) for name, values in table.to_dict("list").items()}
    written = io.BytesIO()
    np.savez_compressed(written, **columns, **images)  # type: ignore[arg-type]  # not allow_pickle
    return written.getvalue()


def export(
    project: Project, run: Run, mistakes: Found, chosen: NDArray[np.int64], indices: NDArray[np.int64]
) -> None:
    """Offer the chosen mistakes as a table, and the shown ones with their images."""

    def table() -> bytes:
        return table_csv(mistakes_table(project, mistakes, chosen))

    def images() -> bytes:
        triples = _triples(project, run, mistakes, indices)
        assert triples is not None  # the page shows the same images
        return mistakes_npz(mistakes_table(project, mistakes, indices), triples)

    row = st.container(horizontal=True)
    row.download_button(
        f"Table of these {len(chosen):,} as CSV", table, file_name=f"mistakes-run{run.id}.csv",
        mime="text/csv", on_click="ignore", icon=":material/download:",
    )  # fmt: skip
    row.download_button(
        f"The {len(indices)} images shown as npz", images, file_name=f"mistakes-run{run.id}.npz",
        mime="application/octet-stream", on_click="ignore", icon=":material/download:",
        disabled=not len(indices),
    )  # fmt: skip
