"""The HTML report: what it says is what was measured, it loads nothing, and names stay text."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from defuse_core.base.intervals import Interval
from defuse_core.method.evaluation import Scores
from defuse_core.report.content import Nearest, RegionEntry, ReportContent, Tile
from defuse_core.report.figures import figure_bytes
from defuse_core.report.html import MAX_BYTES, _data, render_report
from defuse_core.report.limits import limits
from defuse_core.report.sprites import make_plot, make_sprite
from defuse_core.report.tables import class_table, control_table, sweep_table
from defuse_core.report.words import change_of_test, summary

EVIL = "<img src=x onerror=alert(1)>"
BEFORE, RIVAL, AFTER = (
    Scores(name, Interval.wilson(test, 1000), Interval.wilson(region, 1536))
    for name, test, region in (("before", 960, 374), ("identified mistakes", 970, 693), ("Defuse", 967, 1523))
)


class Page(HTMLParser):
    """What a browser makes of a page: its elements, and the text outside of styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in ("img", "meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def noise(*shape: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture(scope="module")
def figures() -> dict[str, bytes]:
    drawn = Figure(figsize=(6.4, 3.6))
    drawn.add_subplot().plot([0, 1], [0, 1])
    names = ("figure4-accuracy", "figure5-trade-off", "figure6-nearest", "figure6-novelty")
    names += ("figure7-agreement",)
    kinds = ("svg", "png", "png", "svg", "svg")
    return {name: figure_bytes(drawn, kind) for name, kind in zip(names, kinds, strict=True)}


def tiles(n: int, *shape: int, names: tuple[str, str] = ("7", "1")) -> list[Tile]:
    """Read as the second name before, as the first, which is right, after."""
    return [Tile(noise(*(shape or (28, 28, 1)), seed=i), names[0], names[1], names[0]) for i in range(n)]


def region(region_id: int = 59, **changes: Any) -> RegionEntry:
    shown = tiles(10)
    made = RegionEntry(
        region_id, None, "7", 0.5, Interval.wilson(30, 256), Interval.wilson(250, 256), None,
        held_out=False, tiles=shown, votes=["7"] * 6 + ["9"] * 3 + [None], n_shown=10,
        n_labelled=9, n_fit=6, status="failure, sure",
        annotators=["annotator-a", "annotator-b"], simulated=True,
    )  # fmt: skip
    return replace(made, **changes)


def results(**changes: Any) -> dict[str, Any]:
    return {
        "mistakes": {"dataset": 620, "reconstruction": 460, "perturbation": 15517},
        "scenarios": 45, "failure_regions": 6, "sure_failures": 4,
        "mixture": {"converged": True, "iterations": 22},
        "defuse": {"lam": 1.0, "epoch": 3}, "baseline": {"lam": 1.0, "labelled_images": 404},
        "flips": {"fixed": 12, "broken": 5, "p": 0.143463134765625},
        "still_correct_after_reconstruction": 0.9931, "label_agreement": 0.4368,
        "agreement": {"unanimous": 0.671, "pairwise": 0.8175, "images": 450},
        "seed": 0, "rule": "best selection accuracy", "seconds": 139.7,
        "settings": {"identify": {"n_perturbations": 100}, "vae": {"training": {"beta": 0.4}}},
        **changes,
    }  # fmt: skip


def point(lam: float, test: int, of_regions: int, repeat: int = 0) -> dict[str, Any]:
    def four(k: int, n: int) -> list[float]:
        found = Interval.wilson(k, n)
        return [found.estimate, found.low, found.high, found.n]

    return {"lam": lam, "repeat": repeat, "test": four(test, 1000), "region": four(of_regions, 1536)}


@pytest.fixture(scope="module")
def content(figures: dict[str, bytes]) -> ReportContent:
    return ReportContent(
        project="demo",
        dataset={
            "source": "digits", "sizes": {"train": 4000, "test": 1000}, "image_shape": [1, 28, 28],
            "class_names": [str(i) for i in range(10)],
        },
        measured_on="2026-01-31", results=results(), scores=[BEFORE, RIVAL, AFTER],
        sweep=[point(0.1, 970, 1490), point(1.0, 967, 1523)], baseline_sweep=[point(1.0, 970, 693)],
        regions=[region(59), region(68)], n_tuned=6, n_held_out=0, n_draws=256, n_judged=45, n_labelled=450,
        fixed=tiles(12), broken=tiles(5), figures=figures,
        annotators=["annotator-a", "annotator-b"], simulated=True,
        manifest={"format": "defuse-manifest", "labels": list(range(100)), "note": EVIL},
    )  # fmt: skip


EVERYTHING: dict[str, Any] = {
    "by_class": [
        {"class": "7", "before": [0.5, 0.4, 0.6, 100], "after": [0.75, 0.66, 0.82, 100]},
        {"class": EVIL, "before": [0.9, 0.8, 0.95, 100], "after": [0.8, 0.7, 0.87, 100]},
        {"class": "empty", "before": [None, 0.0, 1.0, 0], "after": [None, 0.0, 1.0, 0]},
    ],
    "controls": {
        "lam=0": {"lam": 0.0, "test": [0.968, 0.95, 0.98, 1000], "region": [0.36, 0.34, 0.38, 1536],
                  "fixed": 9, "broken": 1},
        "random": {"lam": 1.0, "test": [0.966, 0.95, 0.98, 1000], "region": [0.41, 0.38, 0.43, 1536],
                   "fixed": 8, "broken": 2},
    },
    "noise": {
        name: {"images": 256, "codes": 25600, "misclassified": n, "dataset": 1, "reconstruction": 2,
               "perturbation": 3}
        for name, n in (("raw", 6400), ("centred", 256))
    },
    "novelty": {
        "pixels": {"draws": {"n": 1536, "median": 7.8}}, "latent": {"draws": {"n": 1536, "median": 2.9}},
    },
    "nearest": {
        "regions": [{"index": [1, 2, 3], "same_label": 1}, {"index": [2, 5], "same_label": 2}],
        "pooled": {"before": [0.8, 0.7, 0.9, 57], "after": [0.9, 0.8, 0.95, 57]},
    },
    "held_out": {"regions": 2, "before": 0.25, "after": 0.75},
    "seeds": {"identify": 3},
}  # fmt: skip


def whole(content: ReportContent) -> ReportContent:
    """With all that an evaluation may measure."""
    real = Nearest(tiles(10), 8, Interval.wilson(8, 10), Interval.wilson(9, 10))
    entry = region(59, nearest=real, held_out=True, baseline=Interval.wilson(80, 256), name="slanted sevens")
    sweep = [{**p, "held_out": [0.5, 0.4, 0.6, 512], "fixed": 12, "broken": 5} for p in content.sweep]
    return replace(
        content, results=results(**EVERYTHING), regions=[entry, region(68)], n_held_out=2, sweep=sweep
    )


def test_the_summary_says_the_numbers_in_three_sentences(content: ReportContent) -> None:
    found, repaired, elsewhere = (sentence.replace("\xa0", " ") for sentence in summary(content))
    assert "16,597 new pictures" in found
    assert "45 groups" in found
    assert "2 simulated annotators (programs, not people) found 6 failures, 4 of them sure" in found
    assert repaired == (
        "On 256 new pictures of each of 6 failures the model was right 24 % of the time before the repair, "
        "99 % after, by the one label that each failure was given (it fits 44 % of these pictures)."
    )
    assert elsewhere == (
        "On the ordinary test set it was right 96.0 % of the time before and 96.7 % after (12 pictures "
        "fixed, 5 broken; that difference could be chance, p = 0.14)."
    )


@pytest.mark.parametrize(
    ("flips", "told"),
    [
        ((0, 0, 1.0), "(no picture fixed, none broken)"),
        ((1, 1, 1.0), "(1 picture fixed, 1 broken: no difference in all)"),
        ((30, 1, 3e-8), "(30 pictures fixed, 1 broken; that difference is more than chance would explain"),
    ],
)  # fmt: skip
def test_a_change_is_called_what_it_is(
    content: ReportContent, flips: tuple[int, int, float], told: str
) -> None:
    fixed, broken, p = flips
    found = results(flips={"fixed": fixed, "broken": broken, "p": p})
    assert told in change_of_test(replace(content, results=found))


@pytest.mark.parametrize("whole_of_it", [False, True])
def test_the_page_is_sound_and_accessible(content: ReportContent, whole_of_it: bool) -> None:
    page = Page(render_report(whole(content) if whole_of_it else content))
    assert not page.open
    assert dict(page.elements[0][1]) == {"lang": "en"}
    names = {tag for tag, _ in page.elements}
    assert not names & {"script", "link", "iframe", "object", "form"}
    assert {"main", "nav", "header", "footer"} <= names
    policy = next(m for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"] == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    for picture in page.all("img"):
        assert picture["src"].startswith(("data:image/png;base64,", "data:image/svg+xml;base64,"))
        assert picture["alt"]
        assert int(picture["width"]) > 0
        assert int(picture["height"]) > 0
    assert not [a for tag, a in page.elements if any(name.startswith("on") for name in a)]
    assert all(cell.get("scope") in ("col", "row") for cell in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table"))
    levels = [int(tag[1]) for tag, _ in page.elements if tag in ("h1", "h2", "h3")]
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["href"][1:] for a in page.all("a") if a["href"].startswith("#")} <= set(ids)
    assert {a["aria-labelledby"] for _, a in page.elements if "aria-labelledby" in a} <= set(ids)


def test_the_page_says_what_was_not_measured(content: ReportContent) -> None:
    assert Page(render_report(content)).text.count("Left out:") == 3
    page = Page(render_report(whole(content)))
    assert "Left out:" not in page.text
    told = page.text.replace("\xa0", " ")
    assert "reaches 36 %" in told
    assert "reach 41 %" in told
    assert "Median in pixels: 7.8 for draws (n = 1,536)" in told
    assert "Of the 57 real test pictures nearest to them the model read 80 % correctly before" in told
    assert "3 of the 5 nearest pictures have the label of their failure" in told
    assert "2 failures were kept back" in told
    assert "1. slanted sevens · labelled 7" in told
    assert "kept back: the repair never saw it" in told
    assert "n_perturbations 100 · seed 3" in told


def test_names_stay_text(content: ReportContent) -> None:
    evil = replace(
        whole(content), project=EVIL, annotators=[EVIL],
        regions=[region(3, name=EVIL, label=EVIL, annotators=[EVIL], votes=[EVIL] * 10,
                        tiles=tiles(10, names=(EVIL, EVIL)))],
        fixed=tiles(3, names=(EVIL, "'\"><script>alert(1)</script>")),
    )  # fmt: skip
    rendered = render_report(evil)
    page = Page(rendered)
    assert EVIL not in rendered
    assert not page.all("script")
    assert not [picture for picture in page.all("img") if "onerror" in picture or picture["src"] == "x"]
    assert page.text.count(EVIL) > 10


def test_right_and_wrong_differ_by_more_than_colour(content: ReportContent) -> None:
    one = replace(content, regions=[region(1)], fixed=[], broken=[])
    page = Page(render_report(one))
    told = [a for a in page.all("span") if a.get("class", "").startswith("said")]
    assert len(told) == 20
    assert len([a for a in told if "wrong" in a["class"]]) == 10
    assert page.text.count("✗") == 10 + 1  # and once where the page says what it means
    assert page.text.count("wrong: ") == 10


def pixels(url: str) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))))


@pytest.mark.parametrize("channels", [1, 3])
def test_a_sprite_holds_the_pixels_as_they_are(channels: int) -> None:
    images = [noise(28, 28, channels, seed=i) for i in range(7)]
    made = make_sprite(images, side=64)
    assert (made.n, made.side) == (7, 28)
    row = pixels(made.url).reshape(28, 7, 28, channels)
    assert np.array_equal(row.transpose(1, 0, 2, 3), np.stack(images))


def test_larger_images_are_scaled_down_and_none_is_stretched() -> None:
    made = make_sprite([np.full((100, 50, 3), 200, dtype=np.uint8)] * 2, side=40)
    row = pixels(made.url)
    assert row.shape == (40, 80, 3)
    assert (row[:, 10:30] == 200).all()
    assert not row[:, :10].any()
    assert not row[:, 30:40].any()


@pytest.mark.parametrize("images", [[], [noise(8, 8, 1), noise(9, 8, 1)], [noise(8, 8, 2)]])
def test_what_is_no_sheet_of_images_is_refused(images: list[NDArray[np.uint8]]) -> None:
    with pytest.raises(ValueError, match="one shape"):
        make_sprite(images, side=64)


def test_a_figure_keeps_its_size(figures: dict[str, bytes]) -> None:
    for drawn in figures.values():
        made = make_plot(drawn)
        assert (made.width, made.height) == (round(6.4 * 96), round(3.6 * 96))
        assert base64.b64decode(made.url.partition(",")[2]) == drawn
    with pytest.raises(ValueError, match="must be PNG or SVG"):
        make_plot(b"GIF89a")
    with pytest.raises(ValueError, match="in points"):
        make_plot(b"<svg width='10'></svg>")


@pytest.mark.parametrize("size", [64, 160])
def test_a_report_of_large_pictures_stays_under_ten_megabytes(content: ReportContent, size: int) -> None:
    shown = tiles(20, size, size, 3, names=("No passing for vehicles over 3.5 metric tons", "Yield"))
    real = Nearest(shown[:10], 8, Interval.wilson(8, 10), Interval.wilson(9, 10))
    entries = [region(i, tiles=shown, votes=["7"] * 20, nearest=real) for i in range(10)]
    rows = [{**EVERYTHING["by_class"][0], "class": f"class {i}"} for i in range(43)]
    large = replace(
        whole(content), regions=entries, fixed=shown + shown[:4], broken=shown + shown[:4],
        results=results(**{**EVERYTHING, "by_class": rows}),
    )  # fmt: skip
    page = render_report(large)
    assert len(page.encode()) < MAX_BYTES
    assert len(page) > 2_000_000  # pictures of noise are as large as pictures get


def test_pictures_shrink_before_a_report_is_refused(content: ReportContent) -> None:
    shown = replace(content, regions=[region(1, tiles=tiles(20, 96, 96, 3), votes=["7"] * 20)], manifest=None)
    size = len(render_report(shown))
    assert len(render_report(shown, max_bytes=size)) < size
    with pytest.raises(ValueError, match="show fewer than 1 regions"):
        render_report(shown, max_bytes=1000)


def test_the_manifest_can_be_saved_and_read(content: ReportContent) -> None:
    page = Page(render_report(content))
    (link,) = (a for a in page.all("a") if a.get("download") == "manifest.json")
    kind, _, body = link["href"].partition(",")
    assert kind == "data:application/json;base64"
    assert json.loads(base64.b64decode(body)) == content.manifest
    assert "… 88 more" in page.text
    large = render_report(replace(content, manifest={"labels": [{"text": "x" * 1000}] * 3000}))
    assert "Save manifest.json" not in large
    assert len(large) < 2_000_000
    assert "How to make it again" not in render_report(replace(content, manifest=None))


def titles(content: ReportContent, **changes: Any) -> str:
    return " | ".join(limit.title for limit in limits(replace(content, **changes))).replace("\xa0", " ")


def test_the_limits_follow_from_the_numbers(content: ReportContent) -> None:
    told = titles(content)
    assert "One label fits 44 % of the pictures" in told
    assert "Nobody looked at the pictures" in told
    assert "No validation set" in told
    assert "No failure was kept back" in told
    assert "Some mistakes are the generator's" in told
    assert "The generator is blurry" not in told
    assert "Not every group was looked at" not in told
    changed = titles(
        content, simulated=False, annotators=["Ada"], n_held_out=1, n_judged=12,
        dataset={**content.dataset, "sizes": {"train": 9, "validation": 9, "test": 9}},
        results=results(still_correct_after_reconstruction=0.8, label_agreement=None,
                        mixture={"converged": False, "iterations": 100}),
    )  # fmt: skip
    assert "One label for all pictures" in changed
    assert "One person labelled" in changed
    assert "The generator is blurry" in changed
    assert "Not every group was looked at" in changed
    assert "The grouping did not settle" in changed
    for absent in ("Nobody looked", "No validation set", "kept back", "Some mistakes are the generator's"):
        assert absent not in changed
    two = {"simulated": False, "annotators": ["Ada", "Bob"]}
    assert "The annotators disagree" in titles(content, **two)
    agreeing = results(agreement={"unanimous": 0.9, "pairwise": 0.9, "images": 10})
    assert "The annotators disagree" not in titles(content, **two, results=agreeing)


def test_classes_are_ordered_by_change_and_cut() -> None:
    made = class_table(EVERYTHING["by_class"])
    assert [(row["class"], row["change"]) for row in made["rows"]] == [("7", "+25.0"), (EVIL, "−10.0")]
    many = [{**EVERYTHING["by_class"][0], "class": str(i)} for i in range(60)]
    made = class_table(many)
    assert (len(made["rows"]), made["left_out"]) == (50, 10)


def test_repeats_are_a_range_of_the_same_row(content: ReportContent) -> None:
    sweep = [point(1.0, 967, 1523), point(1.0, 950, 1500, repeat=1), point(2.0, 960, 1490)]
    made = sweep_table(replace(content, sweep=sweep))
    assert [(row["point"]["lam"], row["chosen"]) for row in made["rows"]] == [(1.0, True), (2.0, False)]
    assert made["rows"][0]["ranges"]["test"] == "95.0\xa0% to 96.7\xa0%"
    assert made["n_repeats"] == 2


def test_controls_that_do_as_well_are_called_so(content: ReportContent) -> None:
    made = control_table(whole(content))
    assert [row["fixed"] for row in made["rows"]] == ["–", 9, 8, "–", 12]
    assert "The intervals meet" not in made["told"]
    rival = {**EVERYTHING["controls"]["random"], "region": [0.99, 0.985, 0.995, 1536]}
    found = results(**{**EVERYTHING, "controls": {"random": rival}})
    made = control_table(replace(content, results=found))
    assert "The intervals meet" in made["told"]
    assert len(made["rows"]) == 4
    assert control_table(content)["rows"] == []


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("digits", "digits"), ("torchvision:SVHN:/home/ada", "SVHN"), ("/home/ada/signs.npz", "signs.npz"),
        ("/home/ada/signs", "signs"), (f"blob:{'0' * 64}", "uploaded data"),
    ],
)  # fmt: skip
def test_the_data_set_is_named_without_the_folders_of_this_machine(source: str, name: str) -> None:
    about = {"source": source, "sizes": {"train": 3}, "image_shape": [1, 8, 8], "class_names": ["a", "b"]}
    assert _data(about) == f"{name}: 3 train pictures of 2 classes, 8×8, grey"


@pytest.mark.parametrize(("share", "marked"), [(0.07, True), (0.8, False), (None, False)])
def test_what_a_blurry_generator_found_is_marked_above_all(
    content: ReportContent, share: float | None, marked: bool
) -> None:
    page = render_report(replace(content, results=results(still_correct_after_reconstruction=share)))
    assert ('<p class="mark"><strong>The generator is too blurry' in page) is marked
