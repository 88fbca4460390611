"""The cards of the page Evidence that limit what the others mean: novelty, agreement, noise, generator."""

from __future__ import annotations

import streamlit as st

from dashboard.evidence import charts as evidence_charts
from dashboard.evidence.cards import Card, beside, bordered, side_by_side
from dashboard.evidence.pictures import agreement_picture, noises_picture, novelty_picture
from dashboard.evidence.tables import agreement_table, noise_table, novelty_table
from dashboard.shared import charts
from dashboard.shell import store
from dashboard.shell.state import plain
from defuse_core.report.evidence import Distances, tell_taus
from defuse_core.report.generator import SHARP
from defuse_core.report.numbers import interval, percent


def show_novelty(card: Card) -> None:
    """Show the distances of novelty, in pixels and in latent space."""
    evidence = card.found
    note = (
        "Distance to the nearest misclassified training image, whose picture figure 6 of the paper shows; "
        "0 would be a copy."
    )
    with bordered("How new the draws are", note):
        for column, (space, title) in zip(side_by_side(), _SPACES.items(), strict=True):
            with column:
                _show_distances(card, space, title)
        if "misclassified test images" not in evidence.novelty["pixels"]:
            st.caption("No test image is misclassified: there is nothing real to compare the draws with.")


def _show_distances(card: Card, space: str, title: str) -> None:
    distances: Distances = card.found.novelty[space]
    st.markdown(f"**{title}**")
    reference = card.found.results["novelty"]["reference"]
    nearest = "the nearest misclassified training image"
    if not reference["misclassified"]:
        st.caption("No training image is misclassified: distances are to the nearest of all of them.")
        nearest = "the nearest training image"
    n = ", ".join(f"n = {len(far):,} {name}" for name, far in distances.items())
    of = f"{reference['images']:,} reference images"
    x = f"ℓ2 to {nearest}" + (", between codes" if space == "latent" else "")
    card.show(
        f"novelty-{space}", evidence_charts.novelty(distances, x=x),
        card.told(n, of, tell_taus(card.found.results)),
        lambda: novelty_picture(distances, x), lambda: novelty_table(distances), alt=f"{title}: {x}",
    )  # fmt: skip


_SPACES = {"pixels": "In pixels", "latent": "In latent space"}


def show_agreement(card: Card) -> None:
    """Show how far the annotators agree."""
    evidence = card.found
    unanimous, pairwise = evidence.unanimous, evidence.pairwise
    note = "How far those who labelled agree, draw by draw; figure 7 of the paper has the mean"
    with bordered("Agreement", note):
        if unanimous is None or pairwise is None:
            st.info(
                "No two annotators have answered the same draw, so there is no agreement to measure. "
                "Let others label, too."
            )
            return
        left, right = beside()
        with left:
            card.show(
                "figure7", charts.agreement(evidence.share),
                card.told(f"n = {unanimous.n:,} draws with two answers or more", tell_taus(evidence.results)),
                lambda: agreement_picture(evidence), lambda: agreement_table(evidence),
                alt="On how many draws which share of the annotators gave the most frequent answer",
            )  # fmt: skip
        right.markdown(
            f"**All agree on {percent(unanimous.estimate)}** of the draws ({interval(unanimous, 0)}); "
            f"{percent(pairwise)} of all pairs of answers are alike."
        )
        right.caption("“None of the above” is an answer like others; a draw with one answer does not count.")


def show_noise(card: Card) -> None:
    """Show raw against centred noise: how many mistakes each finds, and of which kind."""
    counts = card.found.results.get("noise")
    note = "The same search around the same images: with the paper's raw noise, and with its mean subtracted"
    with bordered("Raw against centred noise", note):
        if counts is None:
            st.info("Not measured: measure with noise images to see this.")
            return
        search = card.found.results["settings"]["identify"]
        noise = f"Beta({search['noise_a']:g}, {search['noise_b']:g}) × {search['noise_scale']:g}"
        limit = search["max_mistakes_per_image"]
        left, right = beside()
        with left:
            card.show(
                "noise", evidence_charts.noises(counts),
                card.told(
                    f"n = {counts['raw']['images']:,} training images, Q = {search['n_perturbations']}",
                    noise,
                    "all mistakes kept" if limit is None else f"at most {limit} mistakes kept an image",
                ),
                lambda: noises_picture(counts), lambda: noise_table(counts),
                alt="Mistakes by kind that raw and centred noise find",
            )  # fmt: skip
        raw, centred = (counts[name]["misclassified"] / counts[name]["codes"] for name in ("raw", "centred"))
        right.markdown(
            f"Of {counts['raw']['codes']:,} codes **{percent(raw, 1)} are misclassified with raw noise, "
            f"{percent(centred, 1)} with centred**. What raw noise finds beyond centred is found by moving "
            "all codes the same way."
        )
        right.caption("There is no interval: codes around one image go together.")


def show_limits(card: Card) -> None:
    """Show two numbers that limit what all others mean."""
    results = card.found.results
    still, fits = results["still_correct_after_reconstruction"], results["label_agreement"]
    with bordered("Limits of these numbers", "Two shares that limit what the other numbers mean"):
        left, right = side_by_side()
        with left:
            st.metric("Still classified correctly after reconstruction", percent(still, 1))
            if still is not None and still < SHARP:
                st.warning(
                    f"Under {percent(SHARP)}, the generator is too blurry to blame the classifier for what "
                    "it misclassifies: train the generator further first."
                )
            ground = store.workspace().runs.ancestry(card.run.id)["classifier"]
            share, *_, n_train = ground.summary["intervals"]["train"]
            st.caption(
                plain(
                    f"Of n = {round(share * n_train):,} training images that are classified correctly before "
                    f"the correction, once they are encoded and decoded; {card.told()}"
                )
            )
        with right:
            st.metric("Draws whose own label is the region's", percent(fits))
            n = card.found.models[0].scores["region"].n
            st.caption(
                "Only simulated annotators can be asked for that many labels; here, people labelled."
                if fits is None
                else f"By the simulated annotators' own majority, draw by draw; n = {n:,} draws. Accuracy on "
                "the regions means that the classifier says the region's label: right for this share of them."
            )
