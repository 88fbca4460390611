"""The slides on Python's side: what they say of what was found, and what the browser is given."""

from __future__ import annotations

import dataclasses
import json
import math
import re

import pytest
from scipy.stats import binomtest
from streamlit.testing.v1 import AppTest

from dashboard.components.slides import Figure, Panel, Said, Slide, slides
from dashboard.present.exhibits import Correction, Exhibit, Exhibition
from dashboard.present.presenting import percent, slides_of, tenths
from dashboard.present.survey import Survey, survey_of
from defuse_core.workspace.labels import LabelEvent
from tests.apps import NASTY

NAMES = ["row", "column", NASTY]
SURVEY = Survey(
    (0.96, 0.95, 0.97, 1000), 4000, {"dataset": 20, "perturbation": 3000}, 45, 12, 120, 90.0, False
)
SAID = (1, 1, 1, 0, 2)
EXHIBIT = Exhibit(
    30, 0, (0, 0, 1, 0, None), "sure", ("data:image/png;base64,AA",) * 5, SAID, None,
    was=(0.2, 0.06, 0.51, 10), now=None,
)  # fmt: skip
BETTER = dataclasses.replace(
    EXHIBIT, after=(0, 0, 0, 0, 2), was=(0.125, 0.09, 0.17, 256), now=(0.98, 0.955, 0.992, 256)
)
MADE = Correction(
    1.0, test=((0.96, 0.946, 0.97, 1000), (0.967, 0.954, 0.976, 1000)),
    region=((0.243, 0.223, 0.266, 1536), (0.992, 0.986, 0.995, 1536)), fixed=12, broken=5, p=0.1435,
    reconstruction=0.993, own_label=0.44,
)  # fmt: skip


def told(
    *exhibits: Exhibit, made: Correction | None = None, survey: Survey = SURVEY, stale: bool = False,
    names: dict[int, str] | None = None,
) -> dict[str, Slide]:  # fmt: skip
    """The slides by key, in order."""
    shown = Exhibition(exhibits, made, (len(exhibits), 1))
    slides = slides_of("signs", NAMES, survey, shown, names=names or {}, stale=stale)
    return {slide.key: slide for slide in slides}


def text_of(slide: Slide) -> str:
    """All that can be read on a slide, with ordinary spaces."""
    return json.dumps(dataclasses.asdict(slide), ensure_ascii=False).replace("\u00a0", " ")


def test_the_story_goes_from_the_search_over_the_failures_to_its_limits() -> None:
    assert list(told(EXHIBIT)) == ["title", "found", "region-30", "limits"]
    other = dataclasses.replace(BETTER, region_id=2)
    shown = told(BETTER, other, made=MADE)
    assert list(shown) == ["title", "found", "region-30", "region-2", "trade-off", "cost", "limits"]
    assert [shown[key].over for key in ("region-30", "region-2")] == [
        "Failure 1 of 2 · region 30 · sure", "Failure 2 of 2 · region 2 · sure",
    ]  # fmt: skip


def test_the_first_slides_say_what_was_examined_and_found() -> None:
    shown = told(EXHIBIT)
    assert (shown["title"].title, shown["title"].cover) == ("signs", True)
    assert "96.0 % test accuracy" in text_of(shown["title"])
    assert "4,000 training images" in text_of(shown["title"])
    figures = {figure.label: (figure.value, figure.note) for figure in shown["found"].figures}
    assert {label: value for label, (value, _) in figures.items()} == {
        "mistakes": "3,020", "regions": "45", "labelled": "12", "failures": "1",
    }  # fmt: skip
    assert figures["mistakes"][1].startswith("3,000 of them new")
    assert figures["labelled"][1].startswith("120 answers")


def test_a_region_that_is_not_corrected_has_no_after() -> None:
    slide = told(EXHIBIT)["region-30"]
    assert slide.title == "“row” predicted as “column”"
    assert [(fact.label, fact.value, fact.note) for fact in slide.facts] == [
        ("People say", "row", "3 of 4 draws"),
        ("The classifier says", "column", "3 of 5 draws · row on 1"),
    ]
    (panel,) = slide.panels
    assert (panel.figure.label, panel.figure.value, panel.after) == ("Now", "20\u00a0%", False)
    assert "n = 10 labelled draws, each by its own label; 95 % interval 6 % to 51 %" in text_of(slide)
    assert [(said.text, said.right) for said in panel.said] == [
        ("column", False), ("column", False), ("column", True), ("row", True), (NASTY, None),
    ]  # fmt: skip  # each by its own answer, not by the label of the region
    assert "Nothing is corrected yet" in text_of(told(EXHIBIT)["limits"])


def test_a_corrected_region_shows_the_same_draws_before_and_after() -> None:
    slide = told(BETTER, made=MADE, names={30: "rows at the edge"})["region-30"]
    assert slide.title == "rows at the edge"
    assert slide.facts[2] == dataclasses.replace(
        slide.facts[2], label="Corrected, it says", value="row", note=f"4 of 5 draws · {NASTY} on 1"
    )
    before, after = slide.panels
    assert (before.figure.value, after.figure.value) == ("12\u00a0%", "98\u00a0%")
    assert (before.after, after.after) == (False, True)
    assert before.figure.bars == ((0.125, 0.09, 0.17),)
    assert [said.right for said in after.said] == [True, True, False, True, None]
    assert "n = 256 fresh draws; 95 % interval 96 % to 99 %" in text_of(slide)
    assert "fits 3 of 4 draws" in before.figure.note
    assert before.figure.note.endswith("each by its own: 2 of 4 right")
    assert after.figure.note.endswith("each by its own: 3 of 4 right")


def test_a_tie_is_no_label_of_the_region() -> None:
    """The case 9444999944, all predicted as 9 or 4."""
    tied = dataclasses.replace(
        EXHIBIT, label=None, answers=(1, 0, 0, 0, 1, 1, 1, 1, 0, 0), before=(1,) * 5 + (0, 2, 2, 1, 0),
        sureness="not sure",
    )  # fmt: skip
    slide = told(tied)["region-30"]
    assert slide.title == "Region 30, misclassified"
    assert dataclasses.astuple(slide.facts[0]) == (
        "People say", "column and row", "5 of 10 draws each: no clear majority, so no label",
    )  # fmt: skip
    assert [said.right for said in slide.panels[0].said] == [True, False, False, False, True]


def test_more_draws_than_are_shown_count_and_a_held_out_region_says_so() -> None:
    many = dataclasses.replace(
        BETTER, answers=BETTER.answers * 4, before=SAID * 4, after=(0,) * 20, held_out=True
    )
    slide = told(many, made=MADE)["region-30"]
    assert [len(panel.said) for panel in slide.panels] == [5, 5]
    assert slide.facts[1].note.startswith("12 of 20 draws")
    assert slide.over == "Failure 1 of 1 · region 30 · sure · held out, never tuned on · 5 of 20 draws shown"


def test_a_region_that_the_correction_did_not_measure_counts_the_draws_looked_at() -> None:
    slide = told(dataclasses.replace(EXHIBIT, after=(0, 0, 0, 1, 0)), made=MADE)["region-30"]
    assert [panel.figure.value for panel in slide.panels] == ["20\u00a0%", "2 of 4"]
    assert "did not measure this region" in slide.panels[1].figure.note
    assert slide.panels[1].figure.bars == ()


@pytest.mark.parametrize(
    ("fixed", "broken", "says"),
    [
        (12, 5, "neither gain nor loss (McNemar’s exact test, p = 0.14)"),
        (12, 12, "as many images were fixed as broken, 12 each"),
        (15, 4, "seldom fix 15 and break 4, so this is a gain (McNemar’s exact test, p = 0.019)"),
        (4, 15, "seldom fix 4 and break 15, so this is a loss"),
        (80, 5, "hardly ever fix 80 and break 5, so this is a gain (McNemar’s exact test, p < 0.001)"),
    ],
)
def test_the_trade_off_is_told_in_words(fixed: int, broken: int, says: str) -> None:
    p = float(binomtest(fixed, fixed + broken, 0.5).pvalue)
    shown = told(BETTER, made=dataclasses.replace(MADE, fixed=fixed, broken=broken, p=p))
    assert says in shown["trade-off"].text
    assert [(figure.was, figure.value) for figure in shown["trade-off"].figures] == [
        ("24\u00a0%", "99\u00a0%"), ("96.0\u00a0%", "96.7\u00a0%"),
    ]  # fmt: skip
    assert "n = 1,536 fresh draws" in text_of(shown["trade-off"])
    assert [(figure.value, figure.label) for figure in shown["cost"].figures] == [
        (str(fixed), "fixed"), (str(broken), "broken"),
    ]  # fmt: skip
    assert "Labelling took 90 s for 120 answers." in shown["cost"].text
    assert f"nothing for {1000 - fixed - broken} other test images" in shown["cost"].text


def test_a_correction_that_counted_no_flips_has_no_slide_of_its_cost() -> None:
    shown = told(BETTER, made=dataclasses.replace(MADE, fixed=None, broken=None, p=None))
    assert list(shown) == ["title", "found", "region-30", "trade-off", "limits"]
    assert shown["trade-off"].text == ""


def test_the_limits_say_who_looked_and_what_has_changed_since() -> None:
    plain = told(BETTER, made=MADE)["limits"]
    assert "3 of the 4 labelled draws" in plain.points[2]
    assert "44 %" in text_of(plain)
    assert "99 % of what was classified correctly" in text_of(plain)
    near = dataclasses.replace(MADE, real=((0.8, 0.7, 0.9, 57), (0.95, 0.9, 0.99, 57)))
    assert (
        "The 57 real test images nearest to these regions: 80 % classified correctly before, 95 % after"
        in text_of(told(BETTER, made=near)["limits"])
    )
    assert "nearest" not in text_of(plain)
    assert not any("networks" in point or "since the correction" in point for point in plain.points)
    simulated = told(BETTER, made=MADE, survey=dataclasses.replace(SURVEY, simulated=True), stale=True)
    assert any("networks stood in for people" in point for point in simulated["limits"].points)
    assert any("changed since the correction" in point for point in simulated["limits"].points)
    assert simulated["region-30"].facts[0].label == "Simulated annotators say"


def test_the_survey_counts_answers_of_the_first_pass_on_regions_that_are_there() -> None:
    events = [
        LabelEvent(1, "Ada", 0, 0, seconds=2.0), LabelEvent(1, "Ada", 1, 1, seconds=3.0),
        LabelEvent(2, "annotator-x", 1, 0), LabelEvent(9, "Ada", 1, 0), LabelEvent(-1, "Ada", 1, 0),
        LabelEvent(1, "Ada", 1, 0, round=2),
    ]  # fmt: skip
    classifier = {"intervals": {"test": [0.9, 0.8, 0.95, 50]}}
    identify = {"searched": 7, "mistakes": {"dataset": 1}}
    found = survey_of(classifier, identify, ids=[1, 2, 3], events=events)
    assert (found.regions, found.labelled, found.answers, found.seconds) == (3, 2, 3, 5.0)
    assert not found.simulated
    assert survey_of(classifier, identify, ids=[2], events=events).simulated


@pytest.mark.parametrize("n", [7, 200, 256, 1536])
def test_no_share_is_written_as_all_or_nothing_unless_it_is(n: int) -> None:
    for right in (0, 1, n // 2, n - 1, n):
        text = percent(right / n).replace("\u00a0", " ")
        assert (text == "100 %") == (right == n)
        assert (text == "0 %") == (right == 0)
        assert abs(float(text.strip("<> %")) - 100 * right / n) <= 0.5
    assert percent(math.nan) == tenths(math.nan) == "–"


# What the browser is given


def show(*shown: Slide) -> AppTest:
    """Show slides in an app of their own."""

    def script(shown: tuple) -> None:  # it runs without this file's imports
        from dashboard.components.slides import slides

        slides(shown, about="signs", key="show")

    return AppTest.from_function(script, kwargs={"shown": shown}).run()


def test_the_browser_gets_every_word_as_it_is() -> None:
    shown = list(told(BETTER, made=MADE, names={30: NASTY}).values())
    app = show(*shown)
    assert not app.exception
    (found,) = [e.proto for e in app.get("bidi_component") if e.key == "show"]
    given = json.loads(found.json)
    assert given["about"] == "signs"
    assert [slide["key"] for slide in given["slides"]] == [slide.key for slide in shown]
    assert given["slides"][2]["title"] == NASTY
    assert given["slides"][2]["panels"][0]["said"][4] == {"text": NASTY, "right": None}


@pytest.mark.parametrize(
    ("shown", "message"),
    [
        ([], "shown must be one slide or more, got none"),
        ([Slide("a", "A"), Slide("a", "B")], "a key of its own a slide, got ['a'] twice"),
        (
            [Slide("a", "A", images=("x", "y"), panels=(Panel(Figure("1", "A"), (Said("1", True),)),))],
            "must read each of its 2 images, got [1] readings",
        ),
    ],
)
def test_what_cannot_be_shown_is_refused(shown: list[Slide], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        slides(shown, about="", key="refused")
