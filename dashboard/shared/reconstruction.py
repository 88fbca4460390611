"""Shows a generator: its losses while it trains, then reconstructions, samples and a traversal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import streamlit as st
from numpy.typing import NDArray

from dashboard.components.image_grid import Tile, image_grid
from dashboard.shared import charts, kept
from dashboard.shell import store
from dashboard.shell.jobs_panel import newest, start, tell_begin
from defuse_core.report.generator import DECEPTION, SHARP, deceives, tell_unusable
from defuse_core.report.numbers import count
from defuse_core.workspace.runs import Run
from defuse_core.workspace.workspace import Project

if TYPE_CHECKING:
    from torch import Tensor

    from defuse_core.data.splits import ImageDataset
    from defuse_core.method.vae import BetaVAE

_SHOWN = 10


def show_losses(run: Run) -> None:
    """Draw the loss of a generator and its parts over the epochs."""
    points = [event.data for event in store.workspace().runs.events(run.id, kind="point")]
    if not points:
        if run.live:
            begins = "Training begins …" if run.config["weights"] is None else "Reading the weights …"
            st.caption(tell_begin(run, begins))
        return
    training = run.config["training"]
    beta, gamma = training["beta"], training.get("consistency_weight", 0.0)
    losses = [
        {
            **point,
            "weighted": point["kl"] * beta * point["kl_weight"],
            "differ": gamma * point.get("consistency", 0.0),
        }
        for point in points
    ]
    of = training["epochs"]
    _show_kept(points)
    left, right = st.columns(2)
    left.plotly_chart(
        charts.curves(
            losses, {"reconstruction": "reconstruction"}, title="Reconstruction", y="nats an image", of=of
        ),
        key="g-reconstruction",
    )
    series = {"kl": "KL", "weighted": "βw·KL"} | ({"differ": "γ·consistency"} if gamma else {})
    right.plotly_chart(charts.curves(losses, series, title="KL", y="nats an image", of=of), key="g-kl")


def show_training(project: Project, run: Run) -> None:
    """Show a generator that is being trained: reconstructions as they are by now, and its losses."""
    _show_unfinished(project, run)
    show_losses(run)


def train_further(project: Project, run: Run) -> None:
    """Offer to train a generator that is done for more epochs, as a new run that begins with its weights."""
    with st.popover("Train it further", icon=":material/fast_forward:"):
        st.caption(
            "A new run begins with the weights of this one; its losses start where these end. The regions "
            "found so far stay with this generator: search again afterwards."
        )
        before = run.config["training"]["epochs"]
        epochs = st.number_input("More epochs", 1, value=before, step=1, key=f"further-{run.id}")
        if st.button("Train on", type="primary", key=f"train-on-{run.id}"):
            workspace = store.workspace()
            with workspace.artifact_path(run.id, "vae.safetensors").open("rb") as file:
                name = f"generator of run {run.id}.safetensors"
                blob = workspace.add_blob(project.id, name, iter(lambda: file.read(2**20), b""))
            training = {**run.config["training"], "epochs": epochs, "kl_anneal_steps": 0}
            config = {
                **run.config,
                "weights": None,
                "pretrained": f"blob:{blob.sha256}",
                "training": training,
            }
            if start(project, "vae", config, seed=run.seed) is not None:
                if newest(project, "classifier") is not None:
                    start(project, "control", {})
                st.rerun()


def _show_kept(points: Sequence[Mapping[str, float]]) -> None:
    """Draw ε = 0 over the epochs at which it was measured on a few images."""
    looked = [(epoch, point["kept"]) for epoch, point in enumerate(points, 1) if "kept" in point]
    if not looked:
        return
    epochs, shares = zip(*looked, strict=True)
    st.plotly_chart(
        charts.line(
            epochs, shares, title="Still classified correctly after reconstruction (ε = 0)", x="epoch",
            y="share of up to 500 images",
        ),
        key="g-kept",
    )  # fmt: skip
    st.caption(_meaning(shares[-1]))


def _meaning(share: float) -> str:
    """What a share at ε = 0 means for what follows."""
    if share >= SHARP:
        return f"By now {share:.0%}: what a search finds is nearly all the classifier's doing."
    return (
        f"By now {share:.0%}: around {1 - share:.0%} of the images a search would find “mistakes” that are "
        "blur of the generator. While the curve still rises, more epochs help."
    )


@lru_cache(maxsize=1)
def _unfinished(path: Path, written: int) -> tuple[BetaVAE, int]:
    """A generator in training, read once an epoch, though the page looks every second."""
    del written
    from defuse_core.method.vae_training import load_unfinished

    return load_unfinished(path)


def _show_unfinished(project: Project, run: Run) -> None:
    dataset = kept.dataset(project.id)
    if dataset is None:
        return
    from defuse_core.base.errors import DefuseError
    from defuse_core.steps.vae import TRAINING

    path = store.workspace().run_folder(run.id) / "work" / TRAINING
    try:
        vae, epochs = _unfinished(path, path.stat().st_mtime_ns)
    except (DefuseError, OSError):  # no epoch is done, or the run ended meanwhile, and its folder is gone
        return
    st.markdown(f"Originals and their reconstructions after {count(epochs, 'epoch')}")
    part = "validation" if dataset.validation is not None else "train"
    chosen = np.linspace(0, len(dataset.splits()[part]) - 1, _SHOWN).astype(int)
    _show_pairs(project, dataset, vae, part, chosen, key="unfinished")


def show_control(project: Project) -> None:
    """Show the ε = 0 control, the figure that says whether the generator is good enough."""
    run = newest(project, "control")
    st.subheader("Is it sharp enough?")
    if run is not None and run.live:
        st.caption(tell_begin(run, "Every image is reconstructed and classified …"))
        return
    usable = run is not None and run.status == "done" and not run.stale
    if usable and run is not None:
        _show_shares(run.summary["control"])
        _show_readers(run.summary)
        with st.expander("By class"):
            part = next(iter(run.summary["by_class"]))
            figure = charts.by_class(
                project.class_names, run.summary["by_class"][part], title=f"{part} images, worst first",
                x="still classified correctly",
            )  # fmt: skip
            st.plotly_chart(figure, key="control-by-class")
        return
    st.caption(
        "Of the images that are classified correctly: how many still are once they went through the "
        "generator, unperturbed (ε = 0)? The others would be blamed on the classifier."
    )
    if newest(project, "classifier") is None:
        st.info("Needs a classifier.")
    elif st.button("Measure it", icon=":material/straighten:"):
        start(project, "control", {})
        st.rerun()


def _show_shares(shares: dict[str, list[float]]) -> None:
    columns = st.columns(max(4, len(shares)))
    for column, (part, (estimate, low, high, n)) in zip(columns, shares.items(), strict=False):
        details = f"[{low:.3f}, {high:.3f}] of {n:,} images classified correctly, at ε = 0"
        column.metric(f"Still correct, {part}", f"{estimate:.1%}", help=details)
    if "train" in shares and (told := tell_unusable(shares["train"][0])):
        st.error(told, icon=":material/blur_on:")
        return
    poor = [part for part, share in shares.items() if share[0] < SHARP]
    if poor:
        st.warning(
            f"Under {SHARP:.0%} on {' and '.join(poor)} images: around those, what looks like mistakes of "
            "the classifier is often blur of the generator. Train it longer, lower β, or give it more "
            "dimensions. Mistakes found where this happens are of the kind “reconstruction”.",
            icon=":material/blur_on:",
        )
    else:
        st.success(f"At least {SHARP:.0%} everywhere: the generator is good enough.")


def _show_readers(summary: Mapping[str, Any]) -> None:
    """Show the same share as readers measure it that the generator never saw, and warn of deception."""
    by_readers = {part: share for part, share in summary.get("by_readers", {}).items() if share}
    if not by_readers:
        return
    columns = st.columns(max(4, len(by_readers)))
    for column, (part, (estimate, low, high, n)) in zip(columns, by_readers.items(), strict=False):
        details = f"[{low:.3f}, {high:.3f}] of {n:,} images that they classify correctly, at ε = 0"
        column.metric(f"By other networks, {part}", f"{estimate:.1%}", help=details)
    st.caption(f"Other networks, which the generator never saw: {', '.join(summary['readers'])}.")
    by_classifier = summary["control"]
    deceived = [part for part in by_readers if deceives(by_classifier[part][0], by_readers[part][0])]
    if deceived:
        st.warning(
            f"On {' and '.join(deceived)} images the classifier still classifies more reconstructions "
            f"correctly than other networks do, by over {DECEPTION:.0%}: part of what the generator learned "
            "pleases this classifier alone, and a person may see something else. Look at the pictures below; "
            "train longer, or lower γ.",
            icon=":material/visibility_off:",
        )


def show_generator(project: Project, run: Run) -> None:
    """Show reconstructions of real images, samples from the prior, and a traversal of each dimension."""
    vae, dataset = kept.generator(run.id), kept.dataset(project.id)
    if vae is None or dataset is None:
        return
    st.subheader("What it makes")
    left, right, _ = st.columns(3)
    part = left.selectbox("Split", list(dataset.splits()), key="images-of", bind="query-params")
    seed = int(
        right.number_input("Draw", 0, value=0, step=1, key="draw", bind="query-params", help="Other images")
    )
    n = len(dataset.splits()[part])
    chosen = np.random.default_rng(seed).choice(n, min(_SHOWN, n), replace=False)
    st.markdown("Originals and their reconstructions")
    _show_pairs(project, dataset, vae, part, chosen)
    st.markdown("Samples from the prior, z ~ N(0, I)")
    _show_samples(vae, seed)
    st.markdown("A traversal: the first image above, one dimension of z at a time from −3 to 3")
    _show_traversal(vae, dataset.splits()[part].images[int(chosen[0])])


def as_arrays(pixels: Tensor) -> NDArray[np.uint8]:
    """Turn pixels in [0, 1] (n, channels, h, w) into images (n, h, w, channels) uint8."""
    from defuse_core.data.splits import as_bytes

    return as_bytes(pixels).permute(0, 2, 3, 1).numpy()


def _show_pairs(
    project: Project, dataset: ImageDataset, vae: BetaVAE, part: str, index: NDArray[Any], key: str = "pairs"
) -> None:
    from defuse_core.method.vae import decode_images, encode_means

    split = dataset.splits()[part][_tensor(index)]
    originals = split.images.permute(0, 2, 3, 1).numpy()
    decoded = as_arrays(decode_images(vae, encode_means(vae, split.images)))
    names = [project.class_names[label] for label in split.labels.tolist()]
    tiles = [
        Tile([a, b], caption=name, alt=[f"{name}, original", f"{name}, reconstruction"])
        for a, b, name in zip(originals, decoded, names, strict=True)
    ]
    image_grid(tiles, key=key, headings=("original", "reconstruction"))


def _tensor(index: NDArray[Any]) -> Tensor:
    import torch

    return torch.from_numpy(index)


def _show_samples(vae: BetaVAE, seed: int) -> None:
    from defuse_core.method.vae import decode_images

    rng = np.random.default_rng(seed)
    codes = _tensor(rng.standard_normal((2 * _SHOWN, vae.latent_dim)).astype(np.float32))
    image_grid([Tile([image]) for image in as_arrays(decode_images(vae, codes))], key="prior")


def _show_traversal(vae: BetaVAE, image: Tensor) -> None:
    import torch

    from defuse_core.method.vae import decode_images, encode_means

    steps = torch.linspace(-3, 3, 9)
    codes = encode_means(vae, image[None]).repeat(vae.latent_dim, len(steps), 1)  # (dim, steps, dim)
    for dimension in range(vae.latent_dim):
        codes[dimension, :, dimension] = steps
    decoded = as_arrays(decode_images(vae, codes.flatten(0, 1)))
    rows = decoded.reshape(vae.latent_dim, len(steps), *decoded.shape[1:])
    image_grid([Tile(list(row), caption=f"z{i + 1}") for i, row in enumerate(rows)], key="traversal")
