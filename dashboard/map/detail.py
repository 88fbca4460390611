"""Show one code of the map: its decoded image, the prediction, and the nearest training images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from dashboard.components.image_grid import Tile, image_grid
from dashboard.map.latent_map import manifold_of
from dashboard.shared import charts, kept
from dashboard.shared.gallery import KINDS, Found
from dashboard.shared.reconstruction import as_arrays
from dashboard.shell import store
from dashboard.shell.state import plain
from defuse_core.workspace.runs import Run
from defuse_core.workspace.workspace import Project

if TYPE_CHECKING:
    from defuse_core.extensions.manifold import Manifold

_NEAREST = 8
_TOP = 5


def show_code(project: Project, identify: Run, found: Found, number: int, *, is_mistake: bool) -> None:
    """Show a mistake, or a training image, by number."""
    import torch

    from defuse_core.method.classifier import predict_logits
    from defuse_core.method.vae import decode_images, encode_means

    runs = store.workspace().runs
    vae = kept.generator(runs.ancestry(identify.id)["vae"].id)
    classifier, dataset = kept.classifier(identify.id), kept.dataset(project.id)
    if vae is None or classifier is None or dataset is None:
        return
    source = int(found.source_index[number]) if is_mistake else number
    image = dataset.train.images[source : source + 1]
    latent = torch.from_numpy(found.latents[number : number + 1]) if is_mistake else encode_means(vae, image)
    decoded = decode_images(vae, latent)
    # as bytes, like everything that is shown and labelled
    pixels = as_arrays(decoded)[0]
    probabilities = predict_logits(classifier, decoded).softmax(1)[0].double().numpy()
    names = project.class_names
    label, prediction = int(dataset.train.labels[source]), int(probabilities.argmax())
    what = f"Mistake {number:,}, {KINDS[found.kind[number]]}" if is_mistake else f"Training image {number:,}"
    st.markdown(f"**{what}** · true class {plain(names[label])}")
    image_grid(
        [
            Tile(
                [image[0].permute(1, 2, 0).numpy(), pixels], names[prediction], prediction != label,
                alt=[f"{names[label]}, original", f"decoded code, predicted as {names[prediction]}"],
            )
        ],
        key="code", headings=("source image" if is_mistake else "image", "decoded code"), min_pixels=112,
    )  # fmt: skip
    top = np.argsort(-probabilities, kind="stable")[:_TOP]
    st.plotly_chart(
        charts.bars([names[c] for c in top], probabilities[top], title="Predicted probabilities"),
        key="probabilities",
    )
    _show_neighbours(project, identify, latent.numpy(), dataset.train.labels.numpy())


def _show_neighbours(
    project: Project, identify: Run, latent: NDArray[np.float32], labels: NDArray[np.int64]
) -> None:
    runs = store.workspace().runs
    run = runs.latest(project.id, "map", done=True)
    if run is None or runs.ancestry(run.id)["vae"].id != runs.ancestry(identify.id)["vae"].id:
        st.caption("The nearest training images appear once the map is made.")
        return
    manifold, dataset = manifold_of(run.id), kept.dataset(project.id)
    if manifold is None or dataset is None:
        return
    distances, index = manifold.nearest(latent, min(_NEAREST, manifold.n_codes))
    _warn(manifold, float(distances[0, 0]), bool(manifold.is_off(latent)[0]))
    st.markdown("Nearest training images in latent space")
    images = dataset.train.images[index[0]].permute(0, 2, 3, 1).numpy()
    image_grid(_tiles(images, index[0], labels, distances[0], project.class_names), key="nearest")


def _tiles(
    images: NDArray[np.uint8], index: NDArray[np.int64], labels: NDArray[np.int64],
    distances: NDArray[np.float64], names: Sequence[str],
) -> list[Tile]:  # fmt: skip
    return [
        Tile([image], caption=f"{names[labels[i]]}\n{distance:.2f} away", alt=[names[labels[i]]])
        for image, i, distance in zip(images, index.tolist(), distances, strict=True)
    ]


def _warn(manifold: Manifold, distance: float, is_off: bool) -> None:
    rule = (
        f"Its nearest training code is {distance:.2f} away; for {manifold.share:.0%} of the training codes "
        f"another one is within {manifold.radius:.2f}."
    )
    if is_off:
        st.warning(f"Off the manifold: no real image may look like this. {rule}")
    else:
        st.caption(rule)
