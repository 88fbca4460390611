"""What the figures of a reproduction draw, against numbers worked out from the results of the seeds."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from numpy.typing import NDArray

from defuse_core.report.figures import BLUE, GREY, ORANGE, RED, figure_bytes
from defuse_core.reproduction.figures import (
    draw_agreement_over_seeds,
    draw_kinds,
    draw_map,
    draw_novelty_over_seeds,
    draw_scores_over_seeds,
    draw_trade_off_over_seeds,
)

DRAWN = (
    draw_scores_over_seeds,
    draw_trade_off_over_seeds,
    draw_kinds,
    draw_novelty_over_seeds,
    draw_agreement_over_seeds,
)
LAMBDAS = (0.01, 1.0, 100.0)
DRAWS, REAL = "draws of failure regions", "misclassified test images"


def result(seed: int, *, chosen: float = 1.0) -> dict[str, Any]:
    """results.json of a seed, as much of it as is drawn; no two numbers of it are the same."""
    numbers = iter(np.random.default_rng(seed).permutation(900)[:40] / 1000 + 0.05)

    def scores() -> dict[str, float]:
        return {name: float(next(numbers)) for name in ("validation", "test", "region")}

    def sweep_row(lam: float, repeat: int) -> dict[str, float]:
        return {"lam": lam, "repeat": repeat, **{k: float(next(numbers)) for k in ("test", "region")}}

    def medians(n: int) -> dict[str, Any]:
        return {
            name: {"n": n + i, "median": 9 * float(next(numbers))} for i, name in enumerate((DRAWS, REAL))
        }

    return {
        "seed": seed,
        "before": scores(), "baseline": scores(), "defuse": {**scores(), "lam": chosen},
        "sweep": [sweep_row(lam, repeat) for repeat in (0, 1) for lam in LAMBDAS[::-1]],
        "mistakes": {"dataset": 10 + seed, "reconstruction": 20, "perturbation": 70 + 50 * seed},
        "novelty": {
            "reference": {"images": 5, "misclassified": True}, "pixels": medians(1000 + seed),
            "latent": medians(1000 + seed),
        },
        "agreement": {
            "unanimous": float(next(numbers)), "pairwise": float(next(numbers)), "images": 1200 + seed,
        },
    }  # fmt: skip


SEEDS = [result(0), result(1, chosen=100.0), result(2)]


def over_seeds(values: Sequence[float]) -> tuple[float, float, float]:
    """Mean, lowest, highest."""
    return sum(values) / len(values), min(values), max(values)


def bars(axes: Axes) -> list[tuple[str, float, float]]:
    """Colour, centre and height of every bar, in the order drawn."""
    shown: list[Any] = list(axes.patches)
    return [(to_hex(b.get_facecolor()).upper(), b.get_x() + b.get_width() / 2, b.get_height()) for b in shown]


def whiskers(axes: Axes) -> dict[float, tuple[float, float]]:
    """Lower and upper end of every whisker, by where it stands."""
    bars = [c for c in axes.containers if isinstance(c, ErrorbarContainer) and c.has_yerr]
    lines: list[Any] = [c.lines[2][0] for c in bars]
    ends = [segment for line in lines for segment in line.get_segments()]
    return {round(float(x[0]), 6): (float(y[0]), float(y[1])) for x, y in (end.T for end in ends)}


def names(axes: Axes) -> list[str]:
    """What the legend says."""
    legend = axes.get_legend()
    assert legend is not None
    return [text.get_text() for text in legend.get_texts()]


def caption(figure: Figure) -> str:
    """What stands below a figure."""
    return figure.texts[-1].get_text().replace("\n", " ")


def test_scores_are_means_with_the_range_and_every_seed() -> None:
    axes = draw_scores_over_seeds(SEEDS).axes[0]
    ticks = {t.get_text(): float(x) for t, x in zip(axes.get_xticklabels(), axes.get_xticks(), strict=True)}
    assert list(ticks) == ["validation", "test", "failure regions"]
    assert names(axes) == ["before", "identified mistakes", "Defuse"]
    shown, ranges = iter(bars(axes)), whiskers(axes)
    dots = iter(
        [np.asarray(found.get_offsets()) for found in axes.collections if len(found.get_offsets()) == 3]
    )
    told = iter(text.get_text() for text in axes.texts)
    for side, (model, colour) in enumerate((("before", GREY), ("baseline", ORANGE), ("defuse", BLUE))):
        for group, place in zip(("validation", "test", "region"), ticks.values(), strict=True):
            values = [seed[model][group] for seed in SEEDS]
            mean, low, high = over_seeds(values)
            drawn, x, height = next(shown)
            assert (drawn, height) == (colour.upper(), pytest.approx(mean))
            assert np.sign(round(x - place, 6)) == side - 1  # before, identified mistakes, Defuse
            assert ranges[round(x, 6)] == pytest.approx((low, high))
            found = next(dots)
            assert found[:, 1] == pytest.approx(values)
            assert (abs(found[:, 0] - x) < 0.14).all()  # on its own bar
            assert next(told) == f"{mean:.3f}"
    assert len(ranges) == 9


def test_a_single_seed_has_no_whiskers() -> None:
    figure = draw_scores_over_seeds(SEEDS[:1])
    axes = figure.axes[0]
    assert whiskers(axes) == {}
    assert not axes.collections
    assert [height for _, _, height in bars(axes)] == pytest.approx(
        [SEEDS[0][m][g] for m in ("before", "baseline", "defuse") for g in ("validation", "test", "region")]
    )
    assert caption(figure) == "Seed 0."
    assert caption(draw_scores_over_seeds(SEEDS)).startswith("Mean over seeds 0, 1, 2;")


def without(*, baseline: Sequence[int] = (), validation: bool = True) -> list[dict[str, Any]]:
    """The seeds, of which these have no baseline."""
    seeds = copy.deepcopy(SEEDS)
    for index in baseline:
        seeds[index]["baseline"] = None
    for seed in seeds:
        for model in ("before", "baseline", "defuse"):
            if not validation and seed[model] is not None:
                del seed[model]["validation"]
    return seeds


def test_without_baseline_and_validation_there_is_no_room_for_them() -> None:
    seeds = without(baseline=(0, 1, 2), validation=False)
    axes = draw_scores_over_seeds(seeds).axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["test", "failure regions"]
    assert names(axes) == ["before", "Defuse"]
    expected = [
        over_seeds([seed[model][group] for seed in SEEDS])[0]
        for model in ("before", "defuse")
        for group in ("test", "region")
    ]
    assert [height for _, _, height in bars(axes)] == pytest.approx(expected)
    plane = draw_trade_off_over_seeds(seeds).axes[0]
    assert "identified mistakes" not in names(plane)
    assert "before" in names(plane)


def test_a_baseline_that_some_seeds_lack_is_the_mean_of_the_others() -> None:
    axes = draw_scores_over_seeds(without(baseline=(1,))).axes[0]
    found = [height for colour, _, height in bars(axes) if colour == ORANGE.upper()]
    expected = [
        (SEEDS[0]["baseline"][g] + SEEDS[2]["baseline"][g]) / 2 for g in ("validation", "test", "region")
    ]
    assert found == pytest.approx(expected)


def crosses(axes: Axes, label: str) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Points (n, 2) of what is called so, and the ends of their ranges in x and in y, (n, 2) each."""
    (found,) = [c for c in axes.containers if c.get_label() == label]
    line, _, (across, along) = found.lines  # type: ignore[attr-defined]
    x, y = np.array(across.get_segments())[..., 0], np.array(along.get_segments())[..., 1]
    return line.get_xydata(), x, y


def mean_of_repeats(seed: dict[str, Any], lam: float, key: str) -> float:
    """The mean over the times that a seed tuned a λ."""
    values = [row[key] for row in seed["sweep"] if row["lam"] == lam]
    assert len(values) == 2
    return sum(values) / 2


@pytest.mark.parametrize("n_seeds", [1, 3])
def test_the_trade_off_has_a_point_a_lambda_with_the_range_over_seeds(n_seeds: int) -> None:
    seeds = SEEDS[:n_seeds]
    axes = draw_trade_off_over_seeds(seeds).axes[0]
    points, across, along = crosses(axes, "Defuse, one λ a point")
    assert len(points) == len(LAMBDAS)
    for index, lam in enumerate(LAMBDAS):  # by λ, whatever the order of the rows
        for axis, (key, ends) in enumerate((("region", across), ("test", along))):
            mean, low, high = over_seeds([mean_of_repeats(seed, lam, key) for seed in seeds])
            assert points[index, axis] == pytest.approx(mean)
            assert ends[index] == pytest.approx((low, high))
    for model, label in (("before", "before"), ("baseline", "identified mistakes")):
        (point,), _, _ = crosses(axes, label)
        expected = [over_seeds([seed[model][key] for seed in seeds])[0] for key in ("region", "test")]
        assert point == pytest.approx(expected)


def test_the_lambda_that_each_seed_chose_is_ringed_and_named() -> None:
    axes = draw_trade_off_over_seeds(SEEDS).axes[0]
    (rings,) = [line for line in axes.lines if line.get_markeredgecolor() == RED]
    points, _, _ = crosses(axes, "Defuse, one λ a point")
    np.testing.assert_allclose(rings.get_xydata(), points[[1, 2]])
    assert rings.get_markerfacecolor() == "none"
    assert "chosen: λ = 1, 100, 1" in names(axes)


def test_a_seed_that_did_not_tune_a_lambda_does_not_count_for_it() -> None:
    seeds = copy.deepcopy(SEEDS)
    seeds[1]["sweep"] = [row for row in seeds[1]["sweep"] if row["lam"] != 0.01]
    points, _, _ = crosses(draw_trade_off_over_seeds(seeds).axes[0], "Defuse, one λ a point")
    expected = (mean_of_repeats(SEEDS[0], 0.01, "test") + mean_of_repeats(SEEDS[2], 0.01, "test")) / 2
    assert points[0, 1] == pytest.approx(expected)


def test_lambdas_are_written_at_their_points_and_do_not_run_into_each_other() -> None:
    seed = copy.deepcopy(SEEDS[0])
    near = {0.1: 0.9, 1.0: 0.901, 10.0: 0.902}  # far from the point before correction
    seed["before"]["region"], seed["before"]["test"], seed["baseline"] = 0.05, 0.5, None
    rows = [{"lam": lam, "repeat": 0, "test": 0.95, "region": region} for lam, region in near.items()]
    seed["sweep"] = [*rows, {"lam": 1e-5, "repeat": 0, "test": 0.95, "region": 0.2}]
    figure = draw_trade_off_over_seeds([seed])
    axes = figure.axes[0]
    told: dict[str, Any] = {text.get_text(): text for text in axes.texts}
    assert set(told) == {"λ = 1", "λ = 1e-05"}  # the chosen one of three, and the one apart
    assert told["λ = 1"].xy == pytest.approx((0.901, 0.95))
    assert told["λ = 1e-05"].xy == pytest.approx((0.2, 0.95))
    assert told["λ = 1"].get_color() == RED
    figure.draw_without_rendering()
    assert not told["λ = 1"].get_window_extent().overlaps(told["λ = 1e-05"].get_window_extent())


def test_chosen_lambdas_too_near_for_two_labels_share_one() -> None:
    first, second = copy.deepcopy(SEEDS[0]), copy.deepcopy(SEEDS[0])
    rows = [(0.1, 0.901), (1.0, 0.9), (10.0, 0.95), (100.0, 0.7)]
    for seed, lam in ((first, 1.0), (second, 0.1)):
        seed["defuse"]["lam"], seed["baseline"] = lam, None
        seed["sweep"] = [{"lam": each, "repeat": 0, "test": test, "region": 0.95} for each, test in rows]
    axes = draw_trade_off_over_seeds([first, second]).axes[0]
    told = {text.get_text(): text for text in axes.texts}
    assert set(told) == {"λ = 0.1, 1", "λ = 10", "λ = 100"}
    assert [told[name].get_color() for name in ("λ = 0.1, 1", "λ = 10")] == [RED, "black"]


def stacked(axes: Axes) -> NDArray[np.float64]:
    """Left end and width of every bar, (n_kinds, n_rows, 2)."""
    return np.array([[(b.get_x(), b.get_width()) for b in bars] for bars in axes.containers])


def test_kinds_are_shares_of_each_seed_and_their_mean() -> None:
    axes = draw_kinds(SEEDS).axes[0]
    found = stacked(axes)
    counts = np.array([[10, 20, 70], [11, 20, 120], [12, 20, 170]])
    shares = counts / [[100], [151], [202]]
    np.testing.assert_allclose(found[:, :3, 1].T, shares)
    np.testing.assert_allclose(found[:, 3, 1], shares.mean(axis=0))  # not of all counts together
    np.testing.assert_allclose(found[1:, :, 0], np.cumsum(found[:, :, 1], axis=0)[:-1])  # end to end
    np.testing.assert_allclose(found[..., 1].sum(axis=0), 1)
    rows = [tick.get_text() for tick in axes.get_yticklabels()]
    assert rows == ["seed 0\nn = 100", "seed 1\nn = 151", "seed 2\nn = 202", "mean"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first seed on top
    assert names(axes) == [
        f"{kind}: {share:.1%}"
        for kind, share in zip(
            ("dataset", "reconstruction", "perturbation"), shares.mean(axis=0), strict=True
        )
    ]


def test_kinds_of_one_seed_have_no_mean_and_a_seed_without_mistakes_does_not_count() -> None:
    alone = stacked(draw_kinds(SEEDS[:1]).axes[0])
    np.testing.assert_allclose(alone[..., 1], [[0.1], [0.2], [0.7]])
    empty = {**SEEDS[1], "mistakes": dict.fromkeys(("dataset", "reconstruction", "perturbation"), 0)}
    both = stacked(draw_kinds([SEEDS[0], empty]).axes[0])
    np.testing.assert_allclose(both[..., 1], [[0.1, 0, 0.1], [0.2, 0, 0.2], [0.7, 0, 0.7]])


def dots(axes: Axes, marker: str) -> list[list[float]]:
    """Where the points of this form stand, a list a row."""
    return [np.asarray(line.get_xdata()).tolist() for line in axes.lines if line.get_marker() == marker]


def test_novelty_shows_every_median_and_their_mean_in_both_spaces() -> None:
    figure = draw_novelty_over_seeds(SEEDS)
    assert len(figure.axes) == 2
    for axes, space in zip(figure.axes, ("pixels", "latent"), strict=True):
        values = [[seed["novelty"][space][name]["median"] for seed in SEEDS] for name in (DRAWS, REAL)]
        assert dots(axes, "o") == values
        means = [over_seeds(row)[0] for row in values]
        assert [x for (x,) in dots(axes, "|")] == pytest.approx(means)
        assert [text.get_text() for text in axes.texts] == [f"{mean:.2f}" for mean in means]
        assert axes.get_xlim()[0] == 0
        assert axes.get_xlim()[1] > max(map(max, values))
    told = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert told == [f"{DRAWS}\nn = 1,000 / 1,001 / 1,002", f"{REAL}\nn = 1,001 / 1,002 / 1,003"]
    assert "all training images" not in caption(figure)
    assert figure.get_suptitle() == "median ℓ2 distance to the nearest misclassified training image"


def test_novelty_of_one_seed_and_of_images_that_a_seed_lacks() -> None:
    (left, right) = draw_novelty_over_seeds(SEEDS[:1]).axes
    assert (dots(left, "|"), dots(right, "|")) == ([], [])
    seeds = copy.deepcopy(SEEDS)
    for space in ("pixels", "latent"):
        del seeds[0]["novelty"][space][REAL]  # it misclassifies no test image
    seeds[2]["novelty"]["reference"]["misclassified"] = False
    figure = draw_novelty_over_seeds(seeds)
    assert dots(figure.axes[0], "o")[1] == [s["novelty"]["pixels"][REAL]["median"] for s in SEEDS[1:]]
    assert caption(figure).endswith("nearest of all training images, as none is misclassified: seed 2.")
    assert figure.get_suptitle() == "median ℓ2 distance to the nearest training image"


def test_agreement_shows_means_ranges_and_numbers_of_images() -> None:
    figure = draw_agreement_over_seeds(SEEDS)
    axes = figure.axes[0]
    ranges = whiskers(axes)
    for (_, x, height), key in zip(bars(axes), ("unanimous", "pairwise"), strict=True):
        mean, low, high = over_seeds([seed["agreement"][key] for seed in SEEDS])
        assert height == pytest.approx(mean)
        assert ranges[round(x, 6)] == pytest.approx((low, high))
    assert caption(figure).endswith("images: 1,200 / 1,201 / 1,202.")


def test_agreement_that_nobody_measured_is_said_not_drawn() -> None:
    seeds = copy.deepcopy(SEEDS[:2])
    seeds[0]["agreement"]["pairwise"] = None
    assert bars(draw_agreement_over_seeds(seeds).axes[0])[1][2] == SEEDS[1]["agreement"]["pairwise"]
    axes = draw_agreement_over_seeds(seeds[:1]).axes[0]
    told = [text.get_text() for text in axes.texts]
    assert told == [f"{SEEDS[0]['agreement']['unanimous']:.3f}", "not\nmeasured"]


@pytest.mark.parametrize("draw", DRAWN)
def test_no_seed_is_refused_in_words(draw: Callable[[Sequence[Any]], Figure]) -> None:
    with pytest.raises(ValueError, match=r"seeds must hold results.json of at least one seed, got none"):
        draw([])


@pytest.mark.parametrize("n_seeds", [1, 3])
@pytest.mark.parametrize("draw", DRAWN)
def test_what_is_written_lies_on_the_picture_and_captions_stand_free(
    draw: Callable[[Sequence[Any]], Figure], n_seeds: int
) -> None:
    figure = draw(json.loads(json.dumps(SEEDS[:n_seeds])))  # as it comes from a file
    figure.draw_without_rendering()
    for axes in figure.axes:
        box = axes.get_tightbbox()
        assert box is not None
        assert box.x0 >= -1
        assert box.y0 >= -1
        assert box.x1 <= figure.bbox.width + 1
        assert box.y1 <= figure.bbox.height + 1
        if draw is not draw_kinds:  # which has no caption: its rows say which seeds they are
            assert figure.texts[-1].get_window_extent().y1 <= box.y0


def places(n: int, seed: int = 0) -> NDArray[np.float32]:
    """Points in the plane."""
    return np.random.default_rng(seed).standard_normal((n, 2)).astype(np.float32)


@pytest.mark.parametrize("n_classes", [1, 3, 8, 12])
def test_the_map_shows_codes_by_class_and_mistakes_in_black_above(n_classes: int) -> None:
    labels, classes = np.arange(n_classes).repeat(2), [f"class {i}" for i in range(n_classes)]
    figure = draw_map(places(len(labels)), labels, places(4, 1), class_names=classes, title="Codes")
    axes = figure.axes[0]
    codes, mistakes = axes.collections
    np.testing.assert_allclose(np.asarray(codes.get_offsets()), places(len(labels)))
    np.testing.assert_allclose(np.asarray(mistakes.get_offsets()), places(4, 1))
    assert {to_hex(colour) for colour in np.asarray(mistakes.get_facecolor())} == {"#000000"}
    colours = [to_hex(colour) for colour in np.asarray(codes.get_facecolor())]
    assert colours[::2] == colours[1::2]
    assert len({*colours, "#000000"}) == n_classes + 1  # no class is black
    legend = axes.get_legend()
    assert legend is not None
    handles: list[Any] = list(legend.legend_handles)
    assert [to_hex(mark.get_markerfacecolor()) for mark in handles[:-1]] == colours[::2]
    assert names(axes) == [*classes, "mistakes (n = 4)"]
    assert (list(axes.get_xticks()), list(axes.get_yticks())) == ([], [])
    assert axes.get_title(loc="left") == "Codes"


def test_43_classes_have_no_legend_but_a_caption_and_a_small_file() -> None:
    """Codes fill a disc, as those of t-SNE do, every class a part of it; mistakes are all over it."""
    random = np.random.default_rng(0)

    def disc(n: int) -> NDArray[np.float32]:
        radius, angle = np.sqrt(random.uniform(0, 1, n)), random.uniform(0, 2 * np.pi, n)
        return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).astype(np.float32)

    codes, centres = disc(10_000), disc(43)
    labels = np.linalg.norm(codes[:, None] - centres, axis=2).argmin(axis=1)
    class_names = [str(index) for index in range(43)]
    figure = draw_map(codes, labels, disc(10_000), class_names=class_names, title="t-SNE")
    assert names(figure.axes[0]) == ["mistakes (n = 10,000)"]
    assert caption(figure) == "Dots are training codes, coloured by class: 43 classes."
    drawn = np.asarray(figure.axes[0].collections[0].get_facecolor())
    assert len(np.unique(drawn, axis=0)) == 43
    assert len(figure_bytes(figure, "png")) < 400_000


def test_names_and_title_of_a_map_are_plain_text_whatever_they_hold() -> None:
    classes = ["a$b", "$\\frac{$", "<b>&amp;", "_hidden", "x" * 60]
    labels = np.arange(5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        figure = draw_map(places(5), labels, places(0), class_names=classes, title="$\\bad{$ < 1 %")
        figure_bytes(figure, "svg")
    assert names(figure.axes[0]) == [*classes[:4], "x" * 23 + "…", "mistakes (n = 0)"]
    legend = figure.axes[0].get_legend()
    assert legend is not None
    assert not any(text.get_parse_math() for text in legend.get_texts())
    assert figure.axes[0].get_title(loc="left") == "$\\bad{$ < 1 %"


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([0, 1], "labels must be a class from 0 to 1 for each of 3 points, got 2 of"),
        ([0, 1, 2], r"labels must be a class from 0 to 1 .* got 3 of \[0 1 2\]"),
    ],
)
def test_labels_that_do_not_fit_the_codes_are_refused(labels: list[int], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        draw_map(places(3), np.array(labels), places(1), class_names=["a", "b"], title="")
