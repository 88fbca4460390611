"""The map's page, empty and filled, without a browser; what a lasso picks stands in the session."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import multivariate_normal
from streamlit.testing.v1 import AppTest
from torch import Tensor

from dashboard.map import latent_map
from dashboard.map import view as map_view
from dashboard.map.chart import palette
from dashboard.map.latent_map import Selection
from dashboard.shared import charts
from defuse_core.base.checkpoints import dump_tensors
from defuse_core.base.records import MistakeKind, Mistakes
from defuse_core.data.splits import as_bytes
from defuse_core.extensions.regions import select as select_core
from defuse_core.method.classifier import predict, predict_logits
from defuse_core.method.vae import decode_images, encode_means
from defuse_core.report import map_figures
from defuse_core.steps.source import Source
from defuse_core.workspace.config_checks import check_config
from defuse_core.workspace.configs import MapConfig, StepName
from defuse_core.workspace.edits import Gaussian, RegionEdit
from defuse_core.workspace.runs import Run
from tests.apps import (
    NASTY,
    click,
    errors,
    figure,
    give_nasty_names,
    has_markup,
    keep_downloads,
    latest,
    open_page,
    opener,
    settle,
    tiles,
    toasts,
    told,
    words,
)
from tests.in_process import add_run, begin, done_here, fresh_place
from tests.test_charts import all_text
from tests.test_map_chart import colours_of, restyled
from tests.workspaces import Place

pytestmark = pytest.mark.usefixtures("runs_wait")
opened = opener("map")

KINDS = [kind.name.lower() for kind in MistakeKind]
PER_PAGE = 12

Numbers = NDArray[np.int64]
Downloads = dict[str, Callable[[], bytes]]


@pytest.fixture
def downloads(monkeypatch: pytest.MonkeyPatch) -> Downloads:
    """What makes each download, by file name."""
    return keep_downloads(monkeypatch)


# What is stored


def mistakes_of(place: Place) -> Mistakes:
    return Mistakes(**place.tensors(latest(place, "identify"))["mistakes.safetensors"])


def source_of(place: Place) -> Source:
    return Source(place.workspace, latest(place, "identify").id)


def membership_of(place: Place) -> Numbers:
    """Region of every mistake, -1 for none, by its density under every component as fitted."""
    distill = latest(place, "distill")
    fit = {n: t.numpy() for n, t in place.tensors(distill)["mixture.safetensors"].items()}
    latents = mistakes_of(place).latents.double().numpy()
    parts = zip(fit["weights"], fit["means"], fit["covariances"], strict=True)
    densities = [np.log(w) + multivariate_normal.logpdf(latents, mean, cov) for w, mean, cov in parts]
    best = np.stack(densities).argmax(0)
    return np.where(fit["weights"][best] > distill.config["min_weight"], best, -1)


def mapped(place: Place, **config: Any) -> Run:
    return done_here(place, "map", {"method": "pca", **config}, seed=3)


def stored_points(place: Place, run: Run) -> dict[str, NDArray[Any]]:
    """What a map holds, its points apart."""
    found = {n: t.numpy() for n, t in place.tensors(run)[f"{run.config['method']}.safetensors"].items()}
    n = len(found["train_index"])
    return {**found, "codes": found["points"][:n], "mistakes": found["points"][n:]}


def store_files(
    place: Place, step: StepName, files: Mapping[str, bytes], summary: Mapping[str, Any],
    config: Mapping[str, Any] | None = None, *, seed: int = 0,
) -> Run:  # fmt: skip
    """A run that is done and left these files, without having computed."""
    run, workspace = add_run(place, step, config, seed=seed), place.workspace
    begin(place, run)
    for name, content in files.items():
        workspace.runs.name_artifact(run.id, workspace.store_artifact(run.id, name, content))
    workspace.runs.finish(run.id, "done", summary=summary)
    return place.get(run)


def papers_map(place: Place, *, n_codes: int, n_mistakes: int, seed: int) -> Run:
    """A map as the paper's config makes it, but for the time: its points are at random."""
    rng = np.random.default_rng(0)
    total = len(mistakes_of(place))
    tensors = {
        "points": torch.from_numpy(rng.normal(size=(n_codes + n_mistakes, 2)).astype(np.float32)),
        "train_index": torch.from_numpy(np.sort(rng.choice(1280, n_codes, replace=False))),
        "mistake_index": torch.from_numpy(np.sort(rng.choice(total, n_mistakes, replace=False))),
        "mistake_region": torch.full((n_mistakes,), -1),
    }
    source = source_of(place)
    latents = encode_means(source.vae(), source.dataset.train.images)
    summary = {
        "method": "tsne", "codes": n_codes, "codes_of": 1280, "mistakes": n_mistakes, "mistakes_of": total,
    }  # fmt: skip
    files = {
        "tsne.safetensors": dump_tensors(tensors, metadata={}),
        "codes.safetensors": dump_tensors({"latents": latents}, metadata={}),
    }
    return store_files(place, "map", files, summary, seed=seed)


def only_heavy(place: Place) -> None:
    """Distill to the same components again, of which those that weigh over a tenth are regions."""
    fitted, name = latest(place, "distill"), "mixture.safetensors"
    content = place.workspace.artifact_path(fitted.id, name).read_bytes()
    regions = [region for region in fitted.summary["regions"] if region["weight"] > 0.1]
    config = {"n_components": 12, "min_weight": 0.1}
    store_files(place, "distill", {name: content}, {**fitted.summary, "regions": regions}, config)


# What is shown


def select(app: AppTest, key: str, *, codes: Sequence[int] = (), mistakes: Sequence[int] = ()) -> AppTest:
    """Select points, by number, as the callback of the chart stores them; AppTest cannot draw a lasso."""
    chosen = Selection(*(np.array(sorted(numbers), dtype=np.int64) for numbers in (codes, mistakes)))
    app.session_state["map-selection"] = (key, chosen)
    return settle(app.run())


def counts(app: AppTest) -> tuple[int, int]:
    """Mistakes and training codes that are shown, as the page says."""
    (line,) = [m.value for m in app.markdown if "mistakes** shown" in m.value]
    mistakes, codes = (
        re.findall(r"[\d,]+", line.replace("**", ""))[:1],
        re.findall(r"([\d,]+) training", line),
    )
    return int(mistakes[0].replace(",", "")), int(codes[0].replace(",", ""))


def selected_counts(app: AppTest) -> tuple[int, int]:
    """Mistakes selected, of those shown, as the page says."""
    return _numbers(app, r"\*\*([\d,]+) of ([\d,]+)\*\* mistakes selected")


def _numbers(app: AppTest, pattern: str) -> tuple[int, int]:
    (found,) = [match for m in app.markdown if (match := re.fullmatch(pattern, m.value))]
    first, second = (int(number.replace(",", "")) for number in found.groups())
    return first, second


def drawn_points(app: AppTest, key: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Where codes and mistakes are drawn."""
    codes, mistakes = figure(app, key)["data"][:2]
    return tuple(np.stack([part["x"], part["y"]], axis=1) for part in (codes, mistakes))  # type: ignore[return-value]


def spec(app: AppTest, key: str) -> str:
    """The figure byte by byte."""
    (found,) = [e.proto.spec for e in app.get("plotly_chart") if e.proto.id.endswith(f"-{key}")]
    return str(found)


def progress(app: AppTest) -> list[tuple[int, str]]:
    """The bars of the page itself."""
    return [(bar.proto.value, bar.proto.text) for bar in app.main.get("progress")]


def as_images(pixels: Tensor) -> NDArray[np.uint8]:
    return as_bytes(pixels).permute(0, 2, 3, 1).numpy()


# Empty


def test_without_mistakes_the_page_says_what_it_needs(
    tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = opened(fresh_place(tmp_path / "home", template.parent / "shapes.npz"), monkeypatch)
    assert [info.value for info in app.info] == ["Needs mistakes first."]
    assert [link.proto.page for link in app.page_link] == ["identify"]
    assert not app.button
    assert not app.get("plotly_chart")


def test_a_search_that_found_nothing_leaves_the_codes(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = Mistakes.concatenate([], latent_dim=4)
    summary = {"mistakes": dict.fromkeys(KINDS, 0), "searched": 1280, "images": 1280}
    content = dump_tensors(vars(nothing), metadata={})
    run = store_files(place, "identify", {"mistakes.safetensors": content}, summary)
    app = opened(place, monkeypatch)
    assert "1,280 of 1,280 training codes and 0 of 0 mistakes" in told(app)
    assert counts(app) == (0, 1280)
    codes, mistakes = drawn_points(app, f"preview-{run.id}")
    assert (len(codes), len(mistakes)) == (1280, 0)


# A first picture, and the form


@pytest.mark.parametrize("most", [2000, 300])
def test_before_any_map_there_is_a_first_picture(
    place: Place, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(latent_map, "_PREVIEW", most)
    identify = latest(place, "identify")
    app = opened(place, monkeypatch)
    n, m, total = min(most, 1280), min(most, len(mistakes_of(place))), len(mistakes_of(place))
    assert (
        f"A first picture: PCA of {n:,} of 1,280 training codes and {m:,} of {total:,} mistakes. "
        "The map replaces it." in told(app)
    )
    assert counts(app) == (m, n)
    expected = latent_map.make_preview(place.workspace, identify.id)
    codes, mistakes = drawn_points(app, f"preview-{identify.id}")
    np.testing.assert_array_equal(codes, expected.codes)
    np.testing.assert_array_equal(mistakes, expected.mistakes)
    assert "Figure 2" not in [button.label for button in app.button]


def test_start_submits_what_is_shown(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    app = opened(place, monkeypatch)
    kinds = (app.number_input, app.selectbox, app.toggle)
    shown = {w.key: w.value for kind in kinds for w in kind if (w.key or "").startswith("map-1-")}
    assert shown == {f"map-1-{name}": value for name, value in MapConfig().model_dump().items()}
    app.selectbox(key="map-1-method").set_value("pca")
    app.number_input(key="map-1-n_codes").set_value(123)
    app.number_input(key="map-1-n_mistakes").set_value(45)
    app.number_input(key="map-1-perplexity").set_value(7.5)
    app.number_input(key="map-1-n_neighbors").set_value(6)
    app.toggle(key="map-1-in_regions").set_value(True)
    app.number_input(key="map-seed").set_value(11)
    app.run()
    app = click(app, "Start")
    run = latest(place, "map")
    assert run.live
    values = {
        "method": "pca", "n_codes": 123, "n_mistakes": 45, "in_regions": True, "perplexity": 7.5,
        "n_neighbors": 6,
    }  # fmt: skip
    assert run.config == check_config("map", values).model_dump(mode="json") == values
    assert (run.seed, run.resources.device) == (11, "auto")
    assert place.workspace.runs.ancestry(run.id)["identify"].id == latest(place, "identify").id
    app = click(app, "Start")  # one at a time
    assert len(errors(app)) == 1
    assert f"run {run.id}" in errors(app)[0]
    assert len(place.workspace.runs.of_project(place.project.id, "map")) == 1


@pytest.mark.parametrize(("field", "value"), [("n_codes", None), ("n_codes", 3), ("perplexity", 0.0)])
def test_what_cannot_be_is_told_in_one_message(
    place: Place, monkeypatch: pytest.MonkeyPatch, field: str, value: float | None
) -> None:
    app = opened(place, monkeypatch)
    app.number_input(key=f"map-1-{field}").set_value(value).run()
    app = click(settle(app), "Start")
    assert len(errors(app)) == 1
    assert errors(app)[0].startswith(f"map: {field}")
    assert not place.workspace.runs.of_project(place.project.id, "map")


def test_a_map_under_way_is_told_beside_the_first_picture(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = add_run(place, "map")
    preview = f"preview-{latest(place, 'identify').id}"
    app = opened(place, monkeypatch)
    assert progress(app) == [(0, "It is waiting for another run …")]
    begin(place, run)
    place.workspace.runs.plan_tasks(run.id, ["tsne"])
    assert progress(opened(place, monkeypatch)) == [(0, "The map is made …")]
    place.workspace.runs.report_progress(run.id, "tsne", 12, 100, {})
    assert progress(opened(place, monkeypatch)) == [(12, "The map is made …")]
    place.workspace.runs.report_progress(run.id, "tsne", 60, 100, {"kl": 1.2345})
    app = opened(place, monkeypatch)
    assert progress(app) == [(60, "tsne, Kullback–Leibler divergence 1.23")]
    assert len(drawn_points(app, preview)[1]) == len(mistakes_of(place))
    assert "A first picture" in told(app)
    place.workspace.runs.finish(run.id, "cancelled")
    app = opened(place, monkeypatch)
    assert "Map was cancelled" in app.warning[0].value
    assert not progress(app)
    assert "A first picture" in told(app)


def test_a_map_that_waits_is_told_and_is_of_the_mistakes_that_are_shown(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown, search = latest(place, "identify"), add_run(place, "identify")
    app = click(opened(place, monkeypatch), "Start")
    assert shown.id in latest(place, "map").upstream
    assert search.id not in latest(place, "map").upstream
    assert progress(app) == [(0, "It is waiting for another run …")]
    assert "A first picture" in told(app)  # of the mistakes there are


def test_a_map_that_failed_says_why_beside_the_first_picture(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = add_run(place, "map")
    place.workspace.runs.finish(run.id, "failed", error=f"not enough memory {NASTY}; use fewer codes")
    app = opened(place, monkeypatch)
    assert errors(app) == [f"not enough memory {NASTY}; use fewer codes"]
    assert NASTY not in told(app)  # as markup
    assert len(drawn_points(app, f"preview-{latest(place, 'identify').id}")[0]) == 1280


# A map


def test_a_map_is_drawn_as_stored_and_told(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    run = mapped(place, n_codes=700, n_mistakes=600)
    app = opened(place, monkeypatch)
    total = len(mistakes_of(place))
    assert (
        f"pca of 700 of 1,280 training codes, stratified by class, and 600 of {total:,} mistakes; seed 3."
        in told(app)
    )
    assert counts(app) == (600, 700)
    stored = stored_points(place, run)
    codes, mistakes = drawn_points(app, f"map-{run.id}")
    np.testing.assert_array_equal(codes, stored["codes"])
    np.testing.assert_array_equal(mistakes, stored["mistakes"])
    assert "A first picture" not in told(app)
    assert not progress(app)


def test_points_are_coloured_by_what_they_are(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    only_heavy(place)
    run = mapped(place, n_codes=700, n_mistakes=600)
    shown = figure(opened(place, monkeypatch), f"map-{run.id}")
    stored, found, source = stored_points(place, run), mistakes_of(place), source_of(place)
    train = source.dataset.train[torch.from_numpy(stored["train_index"])]
    index = stored["mistake_index"]
    of_region = membership_of(place)[index]
    heaviest_first = [
        region.region_id for region in Source(place.workspace, latest(place, "distill").id).regions()
    ]
    classes, regions = palette(3), dict(zip(heaviest_first, palette(len(heaviest_first)), strict=True))
    grey = "#9a9a9a"
    expected = {
        "class": ([classes[i] for i in train.labels], [classes[i] for i in found.labels[index]]),
        "prediction": (
            [classes[i] for i in predict(source.classifier(), train.images)],
            [classes[i] for i in found.predictions[index]],
        ),
        "kind": ([grey] * 700, [charts.KINDS[KINDS[i]] for i in found.kind[index]]),
        "region": ([grey] * 700, [regions.get(i, grey) for i in of_region.tolist()]),
    }
    assert [b["label"] for b in shown["layout"]["updatemenus"][0]["buttons"]] == list(expected)
    for label, colours in expected.items():
        data = restyled(shown, label)
        assert tuple(colours_of(trace["marker"]) for trace in data[:2]) == colours
    assert (tuple(colours_of(trace["marker"]) for trace in shown["data"][:2])) == expected["class"]
    assert 0 < (of_region == -1).sum() < len(of_region)


@pytest.mark.parametrize(
    "by", [["kind"], ["label"], ["said"], ["within"], ["label", "said"], ["kind", "label", "said", "within"]]
)
def test_a_link_opens_what_was_filtered(
    place: Place, monkeypatch: pytest.MonkeyPatch, by: Sequence[str]
) -> None:
    run = mapped(place, n_codes=300, n_mistakes=900)
    stored, found, names = stored_points(place, run), mistakes_of(place), place.project.class_names
    index = stored["mistake_index"]
    values = {
        "kind": found.kind.numpy()[index], "label": found.labels.numpy()[index],
        "said": found.predictions.numpy()[index], "within": membership_of(place)[index],
    }  # fmt: skip
    one = int(np.nonzero(values["within"] >= 0)[0][7])  # by what it is, others are found, too
    wanted = {name: int(values[name][one]) for name in by}
    words_of: dict[str, Callable[[int], str]] = {
        "kind": KINDS.__getitem__, "label": names.__getitem__, "said": names.__getitem__,
        "within": "Region {}".format,
    }  # fmt: skip
    app = opened(place, monkeypatch, **{name: words_of[name](value) for name, value in wanted.items()})
    keep = [all(values[name][row] == value for name, value in wanted.items()) for row in range(len(index))]
    assert 1 < sum(keep) < len(keep)
    codes, mistakes = drawn_points(app, f"map-{run.id}")
    np.testing.assert_array_equal(mistakes, stored["mistakes"][keep])
    np.testing.assert_array_equal(codes, stored["codes"])
    assert counts(app) == (sum(keep), 300)


def test_filters_may_leave_nothing(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    run = mapped(place, n_codes=50, n_mistakes=100)
    app = opened(place, monkeypatch, label="row", said="row")  # no mistake is of its own class
    assert counts(app) == (0, 50)
    assert len(drawn_points(app, f"map-{run.id}")[1]) == 0
    assert selected_counts(select(app, f"map-{run.id}", codes=[1], mistakes=[0, 1])) == (0, 0)


@pytest.mark.parametrize(
    "query", [{"kind": "none"}, {"label": NASTY}, {"said": "99"}, {"within": "Region 99"}, {"sort": "x"}]
)
def test_a_link_to_what_is_not_there_opens_all(
    place: Place, monkeypatch: pytest.MonkeyPatch, query: dict[str, str]
) -> None:
    mapped(place, n_codes=50, n_mistakes=100)
    app = opened(place, monkeypatch, **query)
    assert counts(app) == (100, 50)
    assert NASTY not in told(app)


def test_of_more_points_than_pan_smoothly_a_sample_is_drawn(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = mapped(place)
    for module in (latent_map, map_view):
        monkeypatch.setattr(module, "MOST_POINTS", 500)
    total = len(mistakes_of(place))
    n, m = int(1280 * 500 / (1280 + total)), int(total * 500 / (1280 + total))
    app = opened(place, monkeypatch)
    assert (
        f"{n:,} of 1,280 training codes and {m:,} of {total:,} mistakes are drawn: a sample of 500 points."
        in told(app)
    )
    assert counts(app) == (m, n)
    codes, mistakes = drawn_points(app, f"map-{run.id}")
    assert (len(codes), len(mistakes)) == (n, m)
    stored = stored_points(place, run)
    places = {tuple(p): i for i, p in enumerate(stored["mistakes"].tolist())}
    numbers = stored["mistake_index"][[places[tuple(p)] for p in mistakes.tolist()]]
    app.selectbox(key="label").set_value("2").run()
    of_class = mistakes_of(place).labels.numpy()[numbers] == 2
    np.testing.assert_array_equal(drawn_points(app, f"map-{run.id}")[1], mistakes[of_class])
    assert counts(app) == (int(of_class.sum()), n)


def test_a_map_of_other_mistakes_is_not_shown(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    old = mapped(place, n_codes=50, n_mistakes=40)
    done_here(place, "identify", {"n_perturbations": 3})
    app, total = opened(place, monkeypatch), len(mistakes_of(place))
    assert f"and {total:,} of {total:,} mistakes. The map replaces it." in told(app)
    assert counts(app) == (total, 1280)
    assert not [e for e in app.get("plotly_chart") if e.proto.id.endswith(f"-map-{old.id}")]
    buttons = figure(app, f"preview-{latest(place, 'identify').id}")["layout"]["updatemenus"]
    assert [[b["label"] for b in menu["buttons"]] for menu in buttons] == [["class", "prediction", "kind"]]
    assert app.selectbox(key="within").options == []  # and the regions were of the others, too
    new = mapped(place, n_codes=50, n_mistakes=40)
    assert len(drawn_points(opened(place, monkeypatch), f"map-{new.id}")[1]) == 40


def test_outlines_go_around_the_regions_by_names_of_their_own(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, distill = mapped(place), latest(place, "distill")
    for region_id in (3, 4):  # two that a person calls the same, and the name of a third
        place.workspace.annotations.edit(distill.id, RegionEdit("rename", (region_id,), name="5", by="Ada"))
    shown = figure(opened(place, monkeypatch), f"map-{run.id}")
    lines = {trace["name"]: trace for trace in shown["data"] if trace["mode"] == "lines"}
    membership = membership_of(place)[stored_points(place, run)["mistake_index"]]
    outlined = [i for i in np.unique(membership[membership >= 0]).tolist() if (membership == i).sum() >= 8]
    called = {i: f"{i} · 5" if i in (3, 4) else str(i) for i in outlined}
    assert list(lines) == list(called.values())
    points = stored_points(place, run)["mistakes"]
    for region_id, name in called.items():
        corners = np.stack([lines[name]["x"], lines[name]["y"]], axis=1)[:-1]
        mine = points[membership == region_id].astype(np.float64)
        assert (np.abs(corners[:, None] - mine[None]).sum(2).min(1) < 1e-6).all()  # of its own mistakes
    entries = [trace["name"] for trace in shown["data"] if trace.get("name", "").startswith("Region")]
    assert {"Region 3 · 5", "Region 4 · 5", "Region 5"} <= {*entries}


# A selection


@pytest.fixture
def sampled(place: Place) -> tuple[Run, Numbers]:
    """A map of a sample, and 30 of its mistakes at random."""
    run = mapped(place, n_codes=1280, n_mistakes=600)
    numbers = stored_points(place, run)["mistake_index"]
    return run, np.sort(np.random.default_rng(1).choice(numbers, 30, replace=False))


def in_order(place: Place, chosen: Numbers, sort: str) -> list[int]:
    """Mistakes as a sort puts them, equal ones by number."""
    found = mistakes_of(place)
    values = {
        "distance": found.noise_norm.tolist(), "class": found.labels.tolist(),
        "prediction": found.predictions.tolist(), "region": membership_of(place).tolist(),
    }[sort]  # fmt: skip
    return sorted(chosen.tolist(), key=lambda number: (values[number], number))


def check_tiles(place: Place, shown: Sequence[Mapping[str, Any]], numbers: Sequence[int]) -> None:
    """The tiles are these mistakes, in this order."""
    found, source, names = mistakes_of(place), source_of(place), place.project.class_names
    assert len(shown) == len(numbers)
    originals = source.dataset.train.images[found.source_index[list(numbers)]]
    decoded = as_images(decode_images(source.vae(), found.latents[list(numbers)])).astype(int)
    means = as_images(decode_images(source.vae(), encode_means(source.vae(), originals))).astype(int)
    for row, (tile, number) in enumerate(zip(shown, numbers, strict=True)):
        original, reconstruction, mistake = tile["images"]
        np.testing.assert_array_equal(original, originals[row].permute(1, 2, 0).numpy())
        assert np.abs(decoded[row] - mistake).max() <= 1
        assert np.abs(means[row] - reconstruction).max() <= 1
        label, said = names[found.labels[number]], names[found.predictions[number]]
        assert (tile["corner"], tile["wrong"]) == (said, True)
        assert tile["caption"] == f"{label} → {said}\n{KINDS[found.kind[number]]}"


def table_of(place: Place, app: AppTest, downloads: Downloads, *, n: int) -> list[dict[str, str]]:
    """The rows of the table that a button offers, of n mistakes."""
    assert f"Table of these {n:,} as CSV" in [button.label for button in app.download_button]
    content = downloads[f"mistakes-run{latest(place, 'identify').id}.csv"]()
    return list(csv.DictReader(io.StringIO(content.decode())))


def test_a_selection_is_counted_and_shown(
    place: Place, monkeypatch: pytest.MonkeyPatch, sampled: tuple[Run, Numbers]
) -> None:
    run, chosen = sampled
    app = select(opened(place, monkeypatch), f"map-{run.id}", codes=[4, 7, 1279], mistakes=chosen.tolist())
    assert selected_counts(app) == (30, 600)
    assert "and 3 of 1,280 training codes" in told(app)
    assert app.number_input(key="page").max == 3
    app = select(app, f"map-{run.id}", codes=[4, 7])
    assert selected_counts(app) == (0, 600)
    assert not [b for b in app.get("bidi_component") if b.proto.id.endswith("-selected")]
    app = select(app, f"map-{run.id}")
    assert counts(app) == (600, 1280)
    app = select(app, "map-999", mistakes=chosen.tolist())  # of another map
    assert counts(app) == (600, 1280)


@pytest.mark.parametrize("sort", ["distance", "class", "prediction", "region"])
def test_a_selection_is_sorted_shown_and_exported(
    place: Place, monkeypatch: pytest.MonkeyPatch, sampled: tuple[Run, Numbers], sort: str,
    downloads: Downloads,
) -> None:  # fmt: skip
    run, chosen = sampled
    only_heavy(place)
    app = select(opened(place, monkeypatch, sort=sort), f"map-{run.id}", mistakes=chosen.tolist())
    assert app.segmented_control(key="sort").value == sort
    order = in_order(place, chosen, sort)
    check_tiles(place, tiles(app, "selected"), order[:PER_PAGE])
    app.number_input(key="page").set_value(3).run()
    check_tiles(place, tiles(settle(app), "selected"), order[2 * PER_PAGE :])
    found, names = mistakes_of(place), place.project.class_names
    rows = table_of(place, app, downloads, n=30)
    assert [int(row["mistake"]) for row in rows] == order
    for row, number in zip(rows, order, strict=True):
        assert int(row["source_image"]) == int(found.source_index[number])
        assert row["label"] == names[found.labels[number]]
        assert row["prediction"] == names[found.predictions[number]]
        assert row["kind"] == KINDS[found.kind[number]]
        assert float(row["noise_norm"]) == pytest.approx(float(found.noise_norm[number]))
    assert "The 6 images shown as npz" in [button.label for button in app.download_button]
    content = downloads[f"mistakes-run{latest(place, 'identify').id}.npz"]()
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        last = order[2 * PER_PAGE :]
        assert stored["mistake"].tolist() == last
        assert stored["label"].tolist() == [names[i] for i in found.labels[last]]
        triples = np.stack([tile["images"] for tile in tiles(app, "selected")])
        for i, name in enumerate(("original", "reconstruction", "mistake")):
            np.testing.assert_array_equal(stored[f"{name}_image"], triples[:, i])


def test_a_selection_comes_mixed_and_always_alike(
    place: Place, monkeypatch: pytest.MonkeyPatch, sampled: tuple[Run, Numbers],
    downloads: Downloads,
) -> None:  # fmt: skip
    run, chosen = sampled

    def order(app: AppTest) -> list[int]:
        rows = table_of(place, app, downloads, n=30)
        return [int(row["mistake"]) for row in rows]

    app = select(opened(place, monkeypatch), f"map-{run.id}", mistakes=chosen.tolist())
    assert app.segmented_control(key="sort").value == "mixed"
    mixed = order(app)
    assert sorted(mixed) == chosen.tolist() != mixed
    check_tiles(place, tiles(app, "selected"), mixed[:PER_PAGE])
    app.segmented_control(key="sort").set_value("class").run()
    assert order(settle(app)) == in_order(place, chosen, "class")
    again = select(opened(place, monkeypatch), f"map-{run.id}", mistakes=chosen.tolist())
    assert order(again) == mixed


def test_filters_narrow_a_selection(
    place: Place, monkeypatch: pytest.MonkeyPatch, sampled: tuple[Run, Numbers],
    downloads: Downloads,
) -> None:  # fmt: skip
    run, chosen = sampled
    key, found = f"map-{run.id}", mistakes_of(place)
    index = stored_points(place, run)["mistake_index"]
    app = select(opened(place, monkeypatch), key, codes=[0, 5], mistakes=chosen.tolist())
    app.number_input(key="page").set_value(3).run()
    app.selectbox(key="kind").set_value("perturbation").run()
    visible = index[found.kind.numpy()[index] == MistakeKind.PERTURBATION]
    left = [number for number in chosen.tolist() if number in visible]
    assert selected_counts(settle(app)) == (len(left), len(visible))
    assert 0 < len(left) < 30
    assert app.number_input(key="page").value == (3 if len(left) > 2 * PER_PAGE else 1)
    rows = table_of(place, app, downloads, n=len(left))
    assert sorted(int(row["mistake"]) for row in rows) == left
    codes, drawn = figure(app, key)["data"][:2]
    marked = [int(visible[i]) for i in drawn["selectedpoints"]]  # the figure changed: it marks them anew
    assert marked == left
    assert codes["selectedpoints"] == [0, 5]
    app.selectbox(key="kind").set_value(None).run()
    assert selected_counts(settle(app)) == (30, 600)  # nothing was forgotten


def test_a_selection_leaves_the_figure_as_it_is(
    place: Place, monkeypatch: pytest.MonkeyPatch, sampled: tuple[Run, Numbers]
) -> None:
    """Another figure would lose the zoom."""
    run, chosen = sampled
    key = f"map-{run.id}"
    app = opened(place, monkeypatch)
    before = spec(app, key)
    assert "selectedpoints" not in before
    for mistakes in (chosen.tolist(), chosen[:5].tolist(), chosen[:0].tolist()):
        assert spec(select(app, key, mistakes=mistakes), key) == before
    select(app, key, mistakes=chosen.tolist())
    app.segmented_control(key="sort").set_value("region").run()
    app.number_input(key="page").set_value(2).run()
    assert spec(settle(app), key) == before


def test_who_comes_back_to_the_page_sees_what_is_selected(
    place: Place, monkeypatch: pytest.MonkeyPatch, sampled: tuple[Run, Numbers]
) -> None:
    run, chosen = sampled
    key = f"map-{run.id}"
    app = select(opened(place, monkeypatch), key, mistakes=chosen.tolist())
    app.switch_page("../pages/overview.py").run()
    app.switch_page("../pages/map.py").run()
    assert selected_counts(settle(app)) == (30, 600)
    index = stored_points(place, run)["mistake_index"]
    marked = figure(app, key)["data"][1]["selectedpoints"]
    assert [int(index[i]) for i in marked] == chosen.tolist()


# A region of a selection


@pytest.mark.parametrize("kind", [None, "perturbation"])
def test_a_selection_becomes_a_region_and_is_labelled(
    place: Place, monkeypatch: pytest.MonkeyPatch, sampled: tuple[Run, Numbers], kind: str | None
) -> None:
    run, chosen = sampled
    distill, found = latest(place, "distill"), mistakes_of(place)
    query = {} if kind is None else {"kind": kind}
    app = select(opened(place, monkeypatch, **query), f"map-{run.id}", codes=[1], mistakes=chosen.tolist())
    if kind is not None:
        chosen = chosen[found.kind.numpy()[chosen] == KINDS.index(kind)]
    assert "Label region" not in str([link.proto.label for link in app.page_link])
    (button,) = [button for button in app.button if button.label == "Make a region of them"]
    toast = toasts(button.click().run())  # before the page runs again to show what it loads
    settle(app)
    (edit,) = place.workspace.annotations.edits(distill.id)
    mixture = Source(place.workspace, distill.id).upstream("distill")
    n_fitted = len(place.tensors(mixture)["mixture.safetensors"]["weights"])
    new = str(n_fitted)
    assert (edit.kind, edit.regions, [g.region_id for g in edit.into]) == ("select", (), [n_fitted])
    assert edit.mistakes == tuple(chosen.tolist())
    assert edit.by
    fitted = Source(place.workspace, distill.id).mixture()
    expected = select_core(fitted, found.latents[chosen], of=len(found))
    made = edit.into[0]
    assert made.weight == pytest.approx(len(chosen) / len(found))
    np.testing.assert_allclose(made.mean, found.latents[chosen].double().mean(0), atol=1e-6)
    np.testing.assert_allclose(made.covariance, expected.covariance)
    assert toast == [f"Region {new} made of a selection"]
    assert selected_counts(app)[0] == len(chosen)
    (link,) = [found.proto for found in app.page_link if found.proto.label.startswith("Label region")]
    assert (link.page, words(link.label)) == ("label", f"Label region {new}")
    label = open_page(place.workspace.home, monkeypatch, "label", **dict(parse_qsl(link.query_string)))
    assert label.selectbox(key="region").value == new
    assert label.selectbox(key="project").value == place.project.name


@pytest.mark.parametrize("name", ["", "open & top"])
def test_the_region_that_is_looked_at_is_labelled_by_a_link(
    place: Place, monkeypatch: pytest.MonkeyPatch, sampled: tuple[Run, Numbers], name: str
) -> None:
    run, _ = sampled
    distill = latest(place, "distill").id
    region = Source(place.workspace, distill).regions()[1].region_id  # a link without one leads to the first
    place.workspace.annotations.edit(distill, RegionEdit("rename", (region,), name=name, by="Ada"))
    index = stored_points(place, run)["mistake_index"]
    inside = index[membership_of(place)[index] == region][:3].tolist()
    shown = f"Region {region} · {name}" if name else f"Region {region}"
    app = select(opened(place, monkeypatch, within=shown), f"map-{run.id}", mistakes=inside)
    (link,) = [found.proto for found in app.page_link if found.proto.label.startswith("Label region")]
    label = open_page(place.workspace.home, monkeypatch, "label", **dict(parse_qsl(link.query_string)))
    assert label.selectbox(key="region").value == str(region)


def test_a_region_takes_two_mistakes(
    place: Place, monkeypatch: pytest.MonkeyPatch, sampled: tuple[Run, Numbers]
) -> None:
    run, chosen = sampled
    app = select(opened(place, monkeypatch), f"map-{run.id}", codes=[1], mistakes=chosen[:1].tolist())
    (make,) = [button for button in app.button if button.label == "Make a region of them"]
    assert make.disabled


def test_where_regions_were_changed_elsewhere_a_selection_is_refused(
    place: Place, monkeypatch: pytest.MonkeyPatch, sampled: tuple[Run, Numbers]
) -> None:
    run, chosen = sampled
    distill = latest(place, "distill")
    app = select(opened(place, monkeypatch), f"map-{run.id}", mistakes=chosen.tolist())
    n = len(Source(place.workspace, distill.id).mixture().weights)
    eye = tuple(tuple(row) for row in np.eye(4).tolist())
    other = RegionEdit("select", (), (Gaussian(n, 0.1, (0.0,) * 4, eye),), by="Grace")
    place.workspace.annotations.edit(distill.id, other)
    app = click(app, "Make a region of them")
    assert errors(app) == ["the regions were changed in another tab or terminal; look again"]
    assert len(place.workspace.annotations.edits(distill.id)) == 1
    app = click(app, "Make a region of them")  # they were looked at again
    assert [e.into[0].region_id for e in place.workspace.annotations.edits(distill.id)] == [n, n + 1]
    assert f"Label region {n + 1}" in [words(link.proto.label) for link in app.page_link]


def test_without_regions_there_is_none_to_make(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    done_here(place, "identify", {"n_perturbations": 3})
    app = select(opened(place, monkeypatch), f"preview-{latest(place, 'identify').id}", mistakes=[0, 1, 2])
    assert selected_counts(app)[0] == 3
    assert "Make a region of them" not in [button.label for button in app.button]
    app.segmented_control(key="sort").set_value("region").run()
    check_tiles(place, tiles(settle(app), "selected"), [0, 1, 2])


# One code


def distances_of(place: Place, latents: Tensor) -> NDArray[np.float64]:
    """Every distance between codes and the training codes."""
    source = source_of(place)
    codes = encode_means(source.vae(), source.dataset.train.images).double().numpy()
    asked = latents.double().numpy()
    return np.asarray(np.sqrt(((asked[:, None] - codes[None]) ** 2).sum(2)))


def radius_of(place: Place) -> float:
    """The smallest distance within which 99 % of the training codes have another one."""
    source = source_of(place)
    every = distances_of(place, encode_means(source.vae(), source.dataset.train.images))
    np.fill_diagonal(every, np.inf)
    return float(np.sort(every.min(1))[int(np.ceil(0.99 * len(every))) - 1])


def check_code(place: Place, app: AppTest, latent: Tensor, image: int, *, heading: str) -> None:
    """The page shows this code: beside the image, with what the classifier says of it."""
    source, names = source_of(place), place.project.class_names
    decoded = decode_images(source.vae(), latent)
    (tile,) = tiles(app, "code")
    original, shown = tile["images"]
    np.testing.assert_array_equal(original, source.dataset.train.images[image].permute(1, 2, 0).numpy())
    np.testing.assert_array_equal(shown, as_images(decoded)[0])
    shares = predict_logits(source.classifier(), decoded).softmax(1)[0]
    order = shares.argsort(descending=True).tolist()
    label = int(source.dataset.train.labels[image])
    assert (tile["corner"], tile["wrong"]) == (names[order[0]], order[0] != label)
    assert f"{heading} · true class {names[label]}" in words(told(app))
    drawn = figure(app, "probabilities")
    np.testing.assert_allclose(drawn["data"][0]["x"], shares[order], atol=1e-6)
    assert drawn["layout"]["yaxis"]["ticktext"] == [names[c] for c in order]


def check_nearest(place: Place, app: AppTest, latent: Tensor) -> None:
    source, names = source_of(place), place.project.class_names
    train, every = source.dataset.train, distances_of(place, latent)[0]
    order = np.argsort(every, kind="stable")[:8]
    shown = tiles(app, "nearest")
    assert len(shown) == 8
    for tile, index in zip(shown, order.tolist(), strict=True):
        np.testing.assert_array_equal(tile["images"][0], train.images[index].permute(1, 2, 0).numpy())
        name, told_distance = tile["caption"].splitlines()
        assert name == names[train.labels[index]]
        assert float(told_distance.removesuffix(" away")) == pytest.approx(every[index], abs=0.0051)


@pytest.mark.parametrize("off", [True, False])
def test_a_single_mistake_is_looked_at(
    place: Place, monkeypatch: pytest.MonkeyPatch, sampled: tuple[Run, Numbers], off: bool
) -> None:
    run, _ = sampled
    numbers, found = stored_points(place, run)["mistake_index"], mistakes_of(place)
    nearest, radius = distances_of(place, found.latents[numbers]).min(1), radius_of(place)
    place_of = nearest.argmax() if off else nearest.argmin()
    number, distance = int(numbers[place_of]), float(nearest[place_of])
    assert (distance > radius) is off
    app = select(opened(place, monkeypatch), f"map-{run.id}", mistakes=[number])
    latent = found.latents[number : number + 1]
    kind = KINDS[found.kind[number]]
    check_code(place, app, latent, int(found.source_index[number]), heading=f"**Mistake {number:,}, {kind}**")
    check_nearest(place, app, latent)
    rule = (
        f"Its nearest training code is {distance:.2f} away; for 99% of the training codes another one "
        f"is within {radius:.2f}."
    )
    if off:
        (warning,) = app.warning
        assert warning.value.startswith("Off the manifold")
        assert warning.value.endswith(rule)
    else:
        assert not app.warning
        assert rule in [caption.value for caption in app.caption]


def test_a_single_training_image_is_looked_at(
    place: Place, monkeypatch: pytest.MonkeyPatch, sampled: tuple[Run, Numbers]
) -> None:
    run, _ = sampled
    app = select(opened(place, monkeypatch), f"map-{run.id}", codes=[1003])
    source = source_of(place)
    latent = encode_means(source.vae(), source.dataset.train.images[1003:1004])
    check_code(place, app, latent, 1003, heading="**Training image 1,003**")
    check_nearest(place, app, latent)
    first = tiles(app, "nearest")[0]
    np.testing.assert_array_equal(first["images"][0], tiles(app, "code")[0]["images"][0])  # itself
    assert first["caption"].endswith("0.00 away")
    assert not app.warning


def test_before_a_map_a_code_has_no_neighbours(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    app = select(opened(place, monkeypatch), f"preview-{latest(place, 'identify').id}", mistakes=[17])
    found = mistakes_of(place)
    check_code(
        place, app, found.latents[17:18], int(found.source_index[17]),
        heading=f"**Mistake 17, {KINDS[found.kind[17]]}**",
    )  # fmt: skip
    assert "The nearest training images appear once the map is made." in told(app)
    assert not app.warning


@pytest.mark.parametrize("latent_dim", [3, 4])
def test_neighbours_are_not_sought_among_the_codes_of_another_generator(
    place: Place, monkeypatch: pytest.MonkeyPatch, latent_dim: int
) -> None:
    mapped(place, n_codes=50, n_mistakes=40)
    tiny = {"hidden_channels": 4, "depth": 1, "hidden_units": 8, "latent_dim": latent_dim}
    done_here(place, "vae", {**tiny, "training": {"epochs": 1}}, seed=1)
    done_here(place, "identify", {"n_perturbations": 3})
    app = select(opened(place, monkeypatch), f"preview-{latest(place, 'identify').id}", mistakes=[2])
    assert "The nearest training images appear once the map is made." in told(app)
    found = mistakes_of(place)
    check_code(
        place, app, found.latents[2:3], int(found.source_index[2]),
        heading=f"**Mistake 2, {KINDS[found.kind[2]]}**",
    )  # fmt: skip


def test_names_that_are_markup_are_shown_as_text(
    place: Place, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nasty, found = give_nasty_names(place, tmp_path), mistakes_of(place)
    distill = latest(nasty, "distill").id
    region = Source(nasty.workspace, distill).regions()[0].region_id
    nasty.workspace.annotations.edit(distill, RegionEdit("rename", (region,), name=NASTY, by="Ada"))
    key = f"map-{mapped(nasty).id}"
    one = int(np.nonzero(found.labels.numpy() == 0)[0][0])
    app = opened(nasty, monkeypatch, within=f"Region {region} · {NASTY}", label=NASTY)
    inside = (membership_of(nasty) == region) & (found.labels.numpy() == 0)
    assert counts(app) == (int(inside.sum()), 1280)
    for chosen in ([one], [0, 1, 2]):
        app = select(opened(nasty, monkeypatch), key, mistakes=chosen)
        assert not has_markup(app)
        assert NASTY not in told(app)
        for chart in (key, *(["probabilities"] if len(chosen) == 1 else [])):
            texts = all_text(figure(app, chart))
            assert not [text for text in texts if "<img" in text]
            assert any("&lt;img" in text for text in texts)
    app = select(opened(nasty, monkeypatch), key, mistakes=[one])
    assert f"true class {NASTY}" in words(told(app))


# Figure 2


def test_figure_2_is_the_paper_s_map_which_a_button_makes(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    mapped(place, n_codes=50, n_mistakes=40)
    app = opened(place, monkeypatch)
    assert not app.download_button
    click(app, "Figure 2")
    run = latest(place, "map")
    assert run.live
    assert run.config == MapConfig().model_dump(mode="json")
    assert (run.config["method"], run.config["perplexity"], run.config["n_codes"]) == ("tsne", 30, 10_000)
    assert run.seed == 3  # that of the map that is looked at


def svg_texts(content: bytes) -> list[str]:
    """What an SVG says: matplotlib draws letters as paths and leaves the words in a comment."""
    assert ElementTree.fromstring(content).tag.endswith("svg")
    return re.findall(r"<!-- (.*?) -->", content.decode())


@pytest.mark.parametrize("with_regions", [True, False])
def test_figure_2_is_offered_where_the_map_is_the_paper_s(
    place: Place, monkeypatch: pytest.MonkeyPatch, downloads: Downloads,
    with_regions: bool,
) -> None:  # fmt: skip
    if with_regions:
        only_heavy(place)
    else:
        done_here(place, "identify", {"n_perturbations": 3})
    n = min(800, len(mistakes_of(place)))
    run = papers_map(place, n_codes=300, n_mistakes=n, seed=7)
    app = opened(place, monkeypatch)
    assert f"tsne of 300 of 1,280 training codes, stratified by class, and {n:,} of" in told(app)
    assert "Figure 2" not in [button.label for button in app.button]
    drawn = "the mistakes that lie in regions" if with_regions else "all mistakes"
    assert f"t-SNE, perplexity 30; diamonds are {drawn}, by their true class." in told(app)
    assert [b.label for b in app.download_button] == ["PNG", "SVG"]
    png = downloads[f"figure2-run{run.id}.png"]()
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    with Image.open(io.BytesIO(png)) as image:
        image.load()
        assert image.width >= 1000  # of a size for print
        assert len(image.convert("RGB").getcolors(maxcolors=2**24) or []) > 20
    index = stored_points(place, run)["mistake_index"]
    inside = int((membership_of(place)[index] >= 0).sum()) if with_regions else n
    assert (0 < inside < n) is with_regions
    given: list[tuple[Any, ...]] = []
    draw = map_figures.draw_map

    def draw_and_tell(*parts: Any, **options: Any) -> Figure:
        given.append(parts)
        return draw(*parts, **options)

    monkeypatch.setattr(map_figures, "draw_map", draw_and_tell)
    texts = svg_texts(downloads[f"figure2-run{run.id}.svg"]())
    assert f"tsne, 300 training codes, {inside:,} mistakes, seed 7" in texts
    assert {*place.project.class_names} <= {*texts}
    stored, labels = stored_points(place, run), source_of(place).dataset.train.labels.numpy()
    keep = membership_of(place)[index] >= 0 if with_regions else np.ones(n, dtype=bool)
    wanted = (
        stored["codes"], labels[stored["train_index"]], place.project.class_names,
        stored["mistakes"][keep], mistakes_of(place).labels.numpy()[index][keep],
    )  # fmt: skip
    for part, expected in zip(given[0], wanted, strict=True):
        np.testing.assert_array_equal(part, expected)
