from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from defuse_core.evaluation import Scores, agreement
from defuse_core.figures import (
    RegionPicture,
    TradeOff,
    draw_agreement,
    draw_novelty,
    draw_regions,
    draw_scores,
    draw_trade_off,
    save_figure,
)
from defuse_core.records import Interval

BEFORE = Scores("before", Interval.wilson(95, 100), Interval.wilson(20, 100))
BASELINE = Scores("identified mistakes", Interval.wilson(94, 100), Interval.wilson(60, 100))
DEFUSE = Scores("Defuse", Interval.wilson(95, 100), Interval.wilson(90, 100))


def test_scores_have_a_bar_of_each_height() -> None:
    axes = draw_scores([BEFORE, BASELINE, DEFUSE]).axes[0]
    heights = sorted(round(patch.get_height(), 4) for patch in axes.patches)  # type: ignore[attr-defined]
    assert heights == [0.2, 0.6, 0.9, 0.94, 0.95, 0.95]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["test", "regions"]


def test_scores_show_validation_where_all_have_it() -> None:
    share = Interval.wilson(9, 10)
    figure = draw_scores([Scores("before", share, share, share), Scores("Defuse", share, share, share)])
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == [
        "validation",
        "test",
        "regions",
    ]


def test_trade_off_draws_every_lambda_where_it_was_measured() -> None:
    points = [
        TradeOff(lam, Interval.wilson(90 + i, 100), Interval.wilson(30 * i, 100))
        for i, lam in enumerate((1, 0.1, 1e-5))
    ]
    axes = draw_trade_off(points, before=BEFORE, baseline=BASELINE, chosen=0.1).axes[0]
    line = axes.containers[0].lines[0]  # type: ignore[attr-defined]
    np.testing.assert_allclose(line.get_xdata(orig=False), [0.6, 0.3, 0.0])  # by λ
    np.testing.assert_allclose(line.get_ydata(orig=False), [0.92, 0.91, 0.90])
    assert {text.get_text() for text in axes.texts} == {"λ = 0.1", "λ = 1", "λ = 1e-05"}


def test_labels_of_lambdas_do_not_run_into_each_other() -> None:
    points = [TradeOff(lam, Interval.wilson(95, 100), Interval.wilson(90, 100)) for lam in (1.0, 2.0, 5.0)]
    far = TradeOff(1e-3, Interval.wilson(80, 100), Interval.wilson(10, 100))
    axes = draw_trade_off([*points, far], before=BEFORE, baseline=BASELINE, chosen=2.0).axes[0]
    assert {text.get_text() for text in axes.texts} == {"λ = 2", "λ = 0.001"}


def test_novelty_shares_sum_to_one() -> None:
    axes = draw_novelty({"draws": np.linspace(1, 8, 50), "test": np.linspace(2, 9, 20)}).axes[0]
    filled = axes.containers[0]
    assert sum(bar.get_height() for bar in filled) == pytest.approx(1)  # type: ignore[attr-defined]


def test_agreement_counts_images() -> None:
    found = agreement([[1, 1, 1, 1, 1], [1, 1, 1, 2, 3], [0, 0, 0, 0, 0], []])
    axes = draw_agreement(found, n_annotators=5).axes[0]
    assert [bar.get_height() for bar in axes.containers[0]] == pytest.approx([0, 0, 1 / 3, 0, 2 / 3])  # type: ignore[attr-defined]


@pytest.mark.parametrize("channels", [1, 3])
def test_regions_show_all_images_with_predictions_as_plain_text(channels: int, tmp_path: Path) -> None:
    images = torch.randint(0, 256, (4, channels, 8, 8), dtype=torch.uint8)
    picture = RegionPicture("region 3", images, "a$b", ["a$b", "c", "c", "c"], ["a$b"] * 4)
    figure = draw_regions([picture, picture])
    assert len(figure.axes) == 2 * 2 * 4
    texts = [axes.texts[0].get_text() for axes in figure.axes]
    assert texts.count("✗c") == 6
    assert texts.count("a$b") == 10
    shown = figure.axes[1].images[0].get_array()
    expected = images[1, 0] if channels == 1 else images[1].permute(1, 2, 0)
    np.testing.assert_array_equal(np.asarray(shown), expected.numpy())
    path = save_figure(figure, tmp_path / "new" / "regions.png")
    with Image.open(path) as written:
        assert written.width > 500
    assert path.with_suffix(".svg").stat().st_size > 1000
