"""The search's page, empty and filled, without a browser."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import trapezoid
from sklearn.metrics import confusion_matrix
from streamlit.testing.v1 import AppTest

from dashboard.shared.gallery import Found, mistakes_npz, mistakes_table
from dashboard.shell import store as cache
from defuse_core.base.config import PRESETS, IdentificationConfig
from defuse_core.base.records import MistakeKind, Mistakes
from defuse_core.data.splits import as_bytes
from defuse_core.method.vae import decode_images, encode_means
from defuse_core.steps.source import Source
from defuse_core.workspace.config_checks import check_config
from defuse_core.workspace.config_fields import walk_fields
from defuse_core.workspace.runs import Resources
from tests.apps import NASTY, click, errors, figure, has_markup, latest, metrics, opener, settle, tiles, told
from tests.conftest import bars
from tests.in_process import add_run, begin, done_here, end_all, fresh_place, store_run
from tests.workspaces import Place, eventually

opened = opener("identify")

KINDS = [kind.name.lower() for kind in MistakeKind]


def mistakes_of(place: Place) -> Mistakes:
    return Mistakes(**place.tensors(latest(place, "identify"))["mistakes.safetensors"])


def count(app: AppTest) -> int:
    """How many mistakes the filters leave, as the page says."""
    (line,) = [c.value for c in app.caption if "in mixed order" in c.value]
    return int(line.partition(" of ")[2].partition(", in")[0].replace(",", ""))


def as_images(pixels: torch.Tensor) -> np.ndarray[Any, Any]:
    return as_bytes(pixels).permute(0, 2, 3, 1).numpy()


def test_without_runs_the_page_says_what_it_needs(
    tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = opened(fresh_place(tmp_path / "home", template.parent / "shapes.npz"), monkeypatch)
    assert [info.value for info in app.info] == ["Needs a classifier and a generator first."]
    (start,) = [button for button in app.button if button.label == "Start"]
    assert start.disabled
    assert [link.proto.page for link in app.page_link] == ["classifier", "generator"]
    assert not app.metric


def test_what_was_found_is_told_as_stored(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    mistakes, names = mistakes_of(place), place.project.class_names
    app = opened(place, monkeypatch)
    counts = np.bincount(mistakes.kind, minlength=3)
    expected = {kind: f"{n:,}" for kind, n in zip(KINDS, counts.tolist(), strict=True)}
    assert metrics(app) == {"Mistakes kept": f"{len(mistakes):,}", **expected}
    assert count(app) == len(mistakes)
    flow = confusion_matrix(mistakes.labels, mistakes.predictions, labels=range(3))
    (shown,) = figure(app, "flow")["data"]
    np.testing.assert_array_equal(shown["customdata"], flow)
    assert figure(app, "flow")["layout"]["xaxis"]["ticktext"] == names


def test_the_gallery_shows_original_reconstruction_and_mistake(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    mistakes, names = mistakes_of(place), place.project.class_names
    source = Source(place.workspace, latest(place, "distill").id)
    vae, images = source.vae(), source.dataset.train.images
    shown = tiles(opened(place, monkeypatch), "mistakes")
    assert len(shown) == 24
    decoded = as_images(decode_images(vae, mistakes.latents)).astype(int)
    originals = images[mistakes.source_index].permute(0, 2, 3, 1).numpy()
    found = set()
    for tile in shown:
        original, reconstruction, mistake = tile["images"]
        same = np.nonzero((originals == original).all((1, 2, 3)))[0]
        index = min(same, key=lambda i: np.abs(decoded[i] - mistake).max())
        assert np.abs(decoded[index] - mistake).max() <= 1
        mean = encode_means(vae, images[mistakes.source_index[index]][None])
        assert np.abs(as_images(decode_images(vae, mean))[0].astype(int) - reconstruction).max() <= 1
        label, said = names[mistakes.labels[index]], names[mistakes.predictions[index]]
        assert (tile["corner"], tile["wrong"]) == (said, True)
        assert tile["caption"] == f"{label} → {said}\n{KINDS[mistakes.kind[index]]}"
        assert tile["alt"] == [label, "reconstruction", f"predicted as {said}"]
        found.add(index)
    assert len(found) == 24
    assert len({int(mistakes.source_index[i]) for i in found}) > 12  # those of one image are not together


def test_filters_narrow_what_is_shown(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    mistakes = mistakes_of(place)
    app = opened(place, monkeypatch)
    app.selectbox(key="kind").set_value("perturbation").run()
    of_kind = mistakes.kind == MistakeKind.PERTURBATION
    assert count(settle(app)) == int(of_kind.sum())
    flow = confusion_matrix(mistakes.labels[of_kind], mistakes.predictions[of_kind], labels=range(3))
    np.testing.assert_array_equal(figure(app, "flow")["data"][0]["customdata"], flow)
    assert {tile["caption"].splitlines()[1] for tile in tiles(app, "mistakes")} == {"perturbation"}
    app.selectbox(key="label").set_value("1").run()
    of_label = of_kind & (mistakes.labels == 1)
    assert count(settle(app)) == int(of_label.sum())
    np.testing.assert_array_equal(figure(app, "flow")["data"][0]["customdata"], flow)  # of all classes
    app.selectbox(key="said").set_value("0").run()
    both = of_label & (mistakes.predictions == 0)
    assert count(settle(app)) == int(both.sum()) > 0
    assert {tile["caption"] for tile in tiles(app, "mistakes")} == {"column → row\nperturbation"}
    assert f"Table of these {int(both.sum()):,} as CSV" in [b.label for b in app.download_button]
    app.selectbox(key="said").set_value("1").run()  # no mistake is of its own class
    assert count(settle(app)) == 0
    assert not [b for b in app.get("bidi_component") if b.proto.id.endswith("-mistakes")]
    assert app.download_button[1].proto.disabled


def test_a_link_opens_what_was_filtered(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    mistakes = mistakes_of(place)
    query = {"kind": "dataset", "label": "column", "said": "row"}
    keep = (mistakes.kind == 0) & (mistakes.labels == 1) & (mistakes.predictions == 0)
    n = int(keep.sum())
    first = opened(place, monkeypatch, **query)
    assert count(first) == n
    second = opened(place, monkeypatch, **query, page="2")
    assert second.number_input(key="page").value == 2
    assert second.number_input(key="page").max == -(-n // 24)
    for app, size in ((first, min(24, n)), (second, min(24, n - 24))):
        assert len(tiles(app, "mistakes")) == size
        assert {tile["caption"] for tile in tiles(app, "mistakes")} == {"column → row\ndataset"}
    pages = [{tile["images"][2].tobytes() for tile in tiles(app, "mistakes")} for app in (first, second)]
    assert not pages[0] & pages[1]


@pytest.mark.parametrize(
    "query",
    [{"kind": "none such"}, {"label": NASTY}, {"said": "99"}, {"page": "999"}, {"page": "0"}, {"page": "x"}],
)
def test_a_link_to_what_is_not_there_opens_all(
    place: Place, monkeypatch: pytest.MonkeyPatch, query: dict[str, str]
) -> None:
    app = opened(place, monkeypatch, **query)
    assert count(app) == len(mistakes_of(place))
    assert app.number_input(key="page").value == 1
    assert NASTY not in told(app)


def test_the_table_names_what_the_arrays_number(place: Place) -> None:
    mistakes, names = mistakes_of(place), place.project.class_names
    found = Found(**{name: tensor.numpy() for name, tensor in vars(mistakes).items()})
    chosen = np.array([0, 5, len(mistakes) - 1])
    rows = mistakes_table(place.project, found, chosen).to_dict("records")
    assert rows == [
        {
            "mistake": i,
            "source_image": int(mistakes.source_index[i]),
            "label": names[mistakes.labels[i]],
            "prediction": names[mistakes.predictions[i]],
            "kind": KINDS[mistakes.kind[i]],
            "noise_norm": pytest.approx(float(mistakes.noise_norm[i])),
        }
        for i in chosen.tolist()
    ]


# The form


def fields(app: AppTest) -> dict[str, Any]:
    """Values of the form's widgets by field."""
    kinds = (app.number_input, app.selectbox, app.text_input, app.toggle)
    found = {w.key: w.value for kind in kinds for w in kind if w.key and w.key.startswith("identify-1-")}
    return {k.removeprefix("identify-1-"): v for k, v in found.items() if not k.endswith("-preset")}


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_fills_every_field(place: Place, monkeypatch: pytest.MonkeyPatch, preset: str) -> None:
    app = opened(place, monkeypatch)
    app.number_input(key="identify-1-noise_scale").set_value(9.0).run()
    app.selectbox(key="identify-1-preset").set_value(preset).run()
    expected = PRESETS[preset].identification
    assert fields(app) == expected.model_dump()
    n_codes = 1280 * expected.n_perturbations
    assert f"1,280 images × Q = {n_codes:,} codes" in told(app)


def test_a_sample_is_searched_around_as_the_estimate_says(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = opened(place, monkeypatch)
    app.number_input(key="identify-1-max_images").set_value(50)
    app.number_input(key="identify-1-n_perturbations").set_value(3)
    assert "50 images × Q = 150 codes" in told(app.run())
    app.number_input(key="identify-1-max_images").set_value(100_000)
    assert "1,280 images × Q = 3,840 codes" in told(app.run())


def test_start_submits_what_is_shown(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    app = opened(place, monkeypatch)
    assert fields(app) == IdentificationConfig().model_dump()
    assert fields(app).keys() == {path[0] for path, _, _ in walk_fields(IdentificationConfig())}
    app.number_input(key="identify-1-n_perturbations").set_value(33)
    app.number_input(key="identify-1-max_mistakes_per_image").set_value(None)
    app.number_input(key="identify-1-noise_scale").set_value(1.5)
    app.toggle(key="identify-1-centred").set_value(True)
    app.selectbox(key="identify-1-precision").set_value("bf16")
    app.number_input(key="identify-seed").set_value(11)
    app.run()
    app = click(app, "Start")
    run = latest(place, "identify")
    assert run.live
    values = {
        "n_perturbations": 33, "max_mistakes_per_image": None, "noise_scale": 1.5, "centred": True,
        "precision": "bf16",
    }  # fmt: skip
    assert run.config == check_config("identify", values).model_dump(mode="json")
    assert (run.seed, run.resources.device) == (11, "auto")
    click(app, "Start")  # a second one waits for nobody: it is refused, and said so
    assert len(place.workspace.runs.of_project(place.project.id, "identify")) == 2


def test_a_second_search_is_refused_in_one_message(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    run = add_run(place, "identify")
    app = click(opened(place, monkeypatch), "Start")
    assert len(errors(app)) == 1
    assert f"run {run.id}" in errors(app)[0]
    assert len(place.workspace.runs.of_project(place.project.id, "identify")) == 2


@pytest.mark.parametrize("field", ["noise_a", "noise_b", "noise_scale"])
@pytest.mark.parametrize("value", [0.0, -1.0, None])
def test_noise_that_cannot_be_is_told_in_one_message(
    place: Place, monkeypatch: pytest.MonkeyPatch, field: str, value: float | None
) -> None:
    app = opened(place, monkeypatch)
    app.number_input(key=f"identify-1-{field}").set_value(value).run()
    app = click(settle(app), "Start")
    assert len(errors(app)) == 1
    assert errors(app)[0].startswith(f"identify: {field}")
    assert len(place.workspace.runs.of_project(place.project.id, "identify")) == 1


@pytest.mark.parametrize(
    ("a", "b", "centred", "scale"), [(50, 50, False, 1), (2, 6, True, 3), (1, 1, False, 2)]
)
def test_the_noise_is_drawn_and_told_as_it_is(
    place: Place, monkeypatch: pytest.MonkeyPatch, a: float, b: float, centred: bool, scale: float
) -> None:
    app = opened(place, monkeypatch)
    for name, value in (("noise_a", a), ("noise_b", b), ("noise_scale", scale)):
        app.number_input(key=f"identify-1-{name}").set_value(float(value))
    app.toggle(key="identify-1-centred").set_value(centred)
    app = settle(app.run())
    mean, spread = a / (a + b), (a * b / ((a + b) ** 2 * (a + b + 1))) ** 0.5
    moved = 0.0 if centred else scale * mean
    assert f"moves by {moved:.2f} on average, and jitters by {scale * spread:.3f}" in told(app)
    assert ("raw noise, as in the paper" in told(app)) is not centred
    line = figure(app, "noise")["data"][0]
    grid, density = np.asarray(line["x"]), np.asarray(line["y"])
    assert trapezoid(density, grid) == pytest.approx(1, abs=0.01)
    assert trapezoid(density * grid, grid) == pytest.approx(moved, abs=0.01)
    wanted = (scale * spread) ** 2
    assert trapezoid(density * (grid - moved) ** 2, grid) == pytest.approx(wanted, abs=0.02 * scale**2)


# What it will cost, and how it goes


def test_the_time_is_estimated_by_the_newest_probe(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    app = opened(place, monkeypatch)
    assert "1,280 images × Q = 640,000 codes. How long that takes here is not known yet." in told(app)
    click(app, "Measure the speed")
    run = latest(place, "probe")
    assert (run.live, run.config) == (True, {"seconds": 2.0})
    assert "Measuring …" in told(app)
    end_all(place)
    for speed in (1.0, 10_000.0):
        done = store_run(place, "probe", {"codes_per_second": speed})
    assert done.resources.device == "cpu"
    eventually(lambda: bool(cache.devices()), seconds=60)
    same = cache.devices()[0].device == "cpu"  # where "auto" takes another device, its speed is not known
    assert ("10,000 a second" in told(opened(place, monkeypatch))) == same
    done_here(place, "classifier", {"training": {"epochs": 1}, "architecture": "resnet_small"})
    assert "is not known yet" in told(opened(place, monkeypatch))


def test_the_estimate_is_codes_over_speed(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream = [latest(place, step).id for step in ("classifier", "vae")]
    run = place.workspace.runs.add(
        place.project.id, "probe", {"seconds": 2.0}, seed=0, resources=Resources(), upstream=upstream
    )
    begin(place, run)
    place.workspace.runs.finish(run.id, "done", summary={"codes_per_second": 1000.0})
    assert "About **10.7 min**: 1,280 images × Q = 640,000 codes, 1,000 a second" in told(
        opened(place, monkeypatch)
    )  # 640 s, and four to start
    app = opened(place, monkeypatch)
    app.number_input(key="identify-1-n_perturbations").set_value(5).run()
    assert "About **10 s**: 1,280 images × Q = 6,400 codes" in told(app)
    app.number_input(key="identify-1-n_perturbations").set_value(None).run()
    assert not app.exception


def test_a_search_under_way_is_counted_by_kind(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    run = add_run(place, "identify")
    assert "The search is waiting for another run …" in told(opened(place, monkeypatch))
    begin(place, run)
    assert "The search begins …" in told(opened(place, monkeypatch))
    names = [f"shard={i:04d}" for i in range(20)]
    place.workspace.runs.plan_tasks(run.id, names)
    for i, (new, blurred, old) in enumerate(((3, 1, 0), (4, 0, 2))):
        point = {"perturbation": new, "reconstruction": blurred, "dataset": old, "images": 64, "decoded": 640}
        place.workspace.runs.add_point(run.id, names[i], names[i], point)
        place.workspace.runs.finish_task(run.id, names[i], "done")
    app = opened(place, monkeypatch)
    shown = metrics(app)
    assert {kind: shown[kind] for kind in KINDS} == {
        "perturbation": "7",
        "reconstruction": "1",
        "dataset": "2",
    }
    assert {"Images a second", "Time left"} <= shown.keys()
    assert "**Mistakes** · running 10%" in told(app)
    drawn = {line["name"]: line for line in figure(app, "kinds-over")["data"]}
    assert list(drawn["perturbation"]["y"]) == [3, 7]
    assert list(drawn["dataset"]["y"]) == [0, 2]
    assert list(drawn["dataset"]["x"]) == [64, 128]
    assert figure(app, "kinds-over")["layout"]["xaxis"]["range"] == [0, 1280]
    place.workspace.runs.finish(run.id, "cancelled")
    app = opened(place, monkeypatch)
    assert "Mistakes was cancelled. What it had done is kept" in app.warning[0].value
    assert {kind: metrics(app)[kind] for kind in KINDS} == {k: shown[k] for k in KINDS}
    assert "Time left" not in metrics(app)


def test_a_search_that_failed_says_why(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    run = add_run(place, "identify")
    place.workspace.runs.finish(run.id, "failed", error="not enough memory; use a smaller batch_size")
    app = opened(place, monkeypatch)
    assert errors(app) == ["not enough memory; use a smaller batch_size"]


def test_a_search_that_found_nothing_says_what_to_do(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    store_run(place, "identify", {"mistakes": dict.fromkeys(KINDS, 0), "searched": 1280, "images": 1280})
    app = opened(place, monkeypatch)
    assert metrics(app)["Mistakes kept"] == "0"
    assert "No mistake was found. Search wider" in app.info[0].value
    assert not app.download_button


def test_mistakes_of_an_older_classifier_read_as_stale(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    done_here(place, "classifier", {"training": {"epochs": 1}, "architecture": "resnet_small"})
    app = opened(place, monkeypatch)
    assert "**Mistakes** · stale" in told(app)
    assert count(app) == len(mistakes_of(place))


def test_names_that_are_markup_are_shown_as_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = bars(90, 0)
    arrays = {"x_train": split.images[:, 0].numpy(), "y_train": split.labels.numpy()}
    arrays |= {"x_test": arrays["x_train"], "y_test": arrays["y_train"]}
    np.savez(tmp_path / "n.npz", class_names=np.array([NASTY, "**b**", "[c](http://x)"]), **arrays)
    nasty = fresh_place(tmp_path / "home", tmp_path / "n.npz", name=NASTY)
    tiny = {"hidden_channels": 4, "depth": 1, "hidden_units": 8, "latent_dim": 2}
    done_here(nasty, "classifier", {"architecture": "resnet_small", "training": {"epochs": 1}})
    done_here(nasty, "vae", {**tiny, "training": {"epochs": 1}})
    done_here(nasty, "identify", {"n_perturbations": 2})
    for query in ({}, {"label": NASTY}):
        app = opened(nasty, monkeypatch, **query)
        assert app.sidebar.selectbox[0].value == NASTY
        assert not has_markup(app)
        shown = tiles(app, "mistakes")
        assert any(tile["caption"].startswith(NASTY) for tile in shown)
        ticks = figure(app, "flow")["layout"]["xaxis"]["ticktext"]
        assert not any("<" in tick for tick in ticks)
        assert NASTY not in told(app)
    mistakes = mistakes_of(nasty)
    assert count(app) == int((mistakes.labels == 0).sum())


def test_exported_images_stand_beside_the_numbers_of_their_mistakes(place: Place) -> None:
    tensors = place.tensors(latest(place, "identify"))["mistakes.safetensors"]
    found = Found(**{name: tensor.numpy() for name, tensor in tensors.items()})
    shown = np.array([3, 1, 7])
    triples = np.arange(3 * 3 * 8 * 8, dtype=np.uint64).astype(np.uint8).reshape(3, 3, 8, 8, 1)
    content = mistakes_npz(mistakes_table(place.project, found, shown), triples)
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        assert stored["mistake"].tolist() == [3, 1, 7]
        names = np.array(place.project.class_names)
        assert stored["prediction"].tolist() == names[found.predictions[shown]].tolist()
        for i, name in enumerate(("original", "reconstruction", "mistake")):
            np.testing.assert_array_equal(stored[f"{name}_image"], triples[:, i])
