"""The shell and the overview, empty and filled, without a browser."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from streamlit.testing.v1 import AppTest

from dashboard.components.image_grid import Tile
from dashboard.shared import new_project as new_project_form
from dashboard.shell import store as cache
from defuse_core.jobs import launcher
from defuse_core.reproduction.demo import demo_configs, demo_project
from defuse_core.workspace.config_checks import check_config
from defuse_core.workspace.configs import StepName
from defuse_core.workspace.projects import new_project
from defuse_core.workspace.workspace import Project, Workspace
from tests.apps import (
    NASTY,
    click,
    errors,
    forget_answers,
    has_markup,
    metrics,
    open_page,
    settle,
    toasts,
    told,
    words,
)
from tests.commands import Completed, defuse_here
from tests.conftest import bars
from tests.in_process import add_run, compute_here, done_here, end_all, fresh_place, store_run
from tests.workspaces import Place, eventually


def opened(home: Path, monkeypatch: pytest.MonkeyPatch, **query: str) -> AppTest:
    return open_page(home, monkeypatch, "overview", **query)


def create(app: AppTest, name: str, *, way: str = "Digits", path: str | None = None) -> AppTest:
    """Fill in the form and press Create."""
    app.segmented_control(key="new-way").set_value(way).run()
    app.text_input(key="new-name").set_value(name)
    if path is not None:
        app.text_input(key="new-path").set_value(path)
    return click(app, "Create")


def until_read(app: AppTest) -> AppTest:
    """Run the page until the data set was read, or could not be."""

    def over() -> bool:
        app.run()
        return not any("Reading the data set" in caption.value for caption in app.caption)

    eventually(over, seconds=60)
    return settle(app)


@pytest.fixture
def made_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`defuse new` is called in this process, and has ended when the page goes on."""

    def at_once(function: Callable[..., Any], *args: object) -> Future[Any]:
        made: Future[Any] = Future()
        made.set_result(function(*args))
        return made

    def run(command: list[str], **_: object) -> Completed:
        return defuse_here(*command[command.index("defuse_core.cli") + 1 :], cwd=tmp_path)

    monkeypatch.setattr(cache, "on_thread", at_once)
    monkeypatch.setattr(new_project_form, "subprocess", SimpleNamespace(run=run))


def projects(home: Path) -> list[Project]:
    return Workspace(home).projects()


def test_an_empty_workspace_offers_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = opened(tmp_path / "home", monkeypatch)
    assert [b.label for b in app.button] == ["Preview", "Create", "Open the demo"]
    assert app.sidebar.selectbox[0].disabled
    assert not app.metric


@pytest.mark.timeout(120)
def test_the_demo_is_one_click(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launcher, "_start", lambda *_: None)  # they are computed here, below
    app = click(opened(tmp_path / "home", monkeypatch), "Open the demo")
    workspace = Workspace(tmp_path / "home")
    (project,) = workspace.projects()
    demo = Place(workspace, project)
    assert app.sidebar.selectbox[0].value == "demo"
    click(app, "Open the demo")  # once more does no harm
    runs = workspace.runs.of_project(project.id)
    assert [run.step for run in runs] == ["classifier", "vae", "control"]
    for run in runs[:2]:  # the reconstruction of all digits takes seconds
        compute_here(workspace, run)
    assert [demo.get(run).status for run in runs] == ["done", "done", "queued"]
    app = settle(app.run())
    assert metrics(app)["Test accuracy"] == "0.960"
    assert "Next: identify" in [b.label for b in app.button]
    assert "**Classifier** · done" in told(app)
    assert "**Mistakes** · missing" in told(app)


def test_a_filled_project_is_shown_in_numbers(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    app = click(opened(place.workspace.home, monkeypatch), "Open")
    shown = metrics(app)
    classifier, mistakes, regions = (
        place.workspace.runs.of_project(place.project.id, step)[-1]
        for step in ("classifier", "identify", "distill")
    )
    assert shown["Test accuracy"] == f"{classifier.summary['accuracy']['test']:.3f}"
    assert shown["Mistakes"] == f"{sum(mistakes.summary['mistakes'].values()):,}"
    n = len(regions.summary["regions"])
    assert shown["Regions labelled"] == f"{n} of {n}"
    assert shown["Regions after correction"] == "–"
    assert "**Labels** · done" in told(app)
    assert "Next: correct" in [b.label for b in app.button]


@pytest.mark.parametrize(
    ("step", "summary"),
    [
        ("classifier", {"accuracy": {"test": "high"}}),
        ("identify", {"mistakes": [1]}),
        ("distill", {"regions": "x"}),
        ("correct", {"corrected": {"chosen": {}}}),
    ],
)
def test_a_project_with_damaged_results_can_be_deleted_and_takes_no_other_with_it(
    step: StepName, summary: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = damaged_place(tmp_path, step, summary)
    whole = place.workspace.create_project("whole", dataset=place.project.dataset)
    app = opened(tmp_path, monkeypatch)
    assert not app.exception
    assert [warning.value for warning in app.warning] == [
        "Its results are damaged. Run its steps again, or delete it."
    ]
    app.button(key=f"delete-{place.project.id}").click().run()
    assert projects(tmp_path) == [whole]


def damaged_place(home: Path, step: StepName, summary: dict[str, Any]) -> Place:
    """A project whose steps up to this one are done, and this one found what no step finds."""
    workspace = Workspace(home)
    about = {
        "source": "digits", "image_size": None, "fingerprint": "ab" * 32, "class_names": ["a", "b"],
        "image_shape": [1, 8, 8], "sizes": {"train": 10, "test": 2},
    }  # fmt: skip
    place = Place(workspace, workspace.create_project("damaged", dataset=about))
    steps: tuple[StepName, ...] = ("classifier", "vae", "identify", "distill", "correct")
    for each in steps[: steps.index(step) + 1]:
        store_run(place, each, summary if each == step else {})
    return place


def test_a_run_is_cancelled_and_resumed_in_the_sidebar(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    run = place.submit("correct")
    eventually(lambda: place.get(run).status == "running", seconds=30)
    app = opened(place.workspace.home, monkeypatch, project="shapes")
    assert "**Correction** · running" in told(app)
    app = click(app, "Cancel")
    assert place.get(run).status == "cancelled"
    assert "**Correction** · cancelled" in told(app)
    app = click(app, "Resume")
    assert place.get(run).live
    click(app, "Cancel")
    assert not place.get(run).live


def stored_up_to(place: Place, *steps: StepName) -> Place:
    """A project whose runs are done, without having computed."""
    for step in steps:
        store_run(place, step, {"mistakes": {"dataset": 9}, "regions": []})
    return place


def go_on(app: AppTest, step: StepName) -> str:
    """Take the next step; the title of the page it leads to. AppTest would run the page before it again."""
    (button,) = [button for button in app.button if button.label == f"Next: {step}"]
    button.click().run()
    assert not app.exception, app.exception[0].value
    (title,) = [title.value for title in app.title]
    return str(title)


def test_regions_are_asked_for_on_their_page(
    tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fresh = fresh_place(tmp_path / "home", template.parent / "shapes.npz")
    stored_up_to(fresh, "classifier", "vae", "identify")
    app = opened(tmp_path / "home", monkeypatch)
    assert go_on(app, "distill") == "Regions"
    assert app.sidebar.selectbox[0].value == fresh.project.name
    assert "Start" in [button.label for button in app.button]
    assert not fresh.workspace.runs.of_project(fresh.project.id, "distill")


def test_a_correction_is_set_up_on_its_page(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    assert go_on(opened(place.workspace.home, monkeypatch), "correct") == "Correct"
    assert not place.workspace.runs.of_project(place.project.id, "correct")


def test_labels_are_given_on_their_page_by_a_person(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    forget_answers(place)
    app = opened(place.workspace.home, monkeypatch)
    assert go_on(app, "annotate") == "Label"
    assert app.sidebar.selectbox[0].value == place.project.name
    assert not place.workspace.runs.of_project(place.project.id, "annotate")


def test_the_demo_distills_at_once_and_leaves_the_labels_to_a_person(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "_start", lambda *_: None)  # the run waits
    workspace = Workspace(tmp_path / "home")
    demo = Place(workspace, demo_project(workspace))
    stored_up_to(demo, "classifier", "vae", "identify")
    assert go_on(opened(tmp_path / "home", monkeypatch), "distill") == "Regions"
    (run,) = workspace.runs.of_project(demo.project.id, "distill")
    assert run.live
    expected = check_config("distill", dict(demo_configs())["distill"])
    assert run.config == expected.model_dump(mode="json")
    end_all(demo)
    stored_up_to(demo, "distill")
    app = opened(tmp_path / "home", monkeypatch)
    assert go_on(app, "annotate") == "Label"
    assert app.sidebar.selectbox[0].value == demo.project.name
    assert not workspace.runs.of_project(demo.project.id, "annotate")


def test_the_project_that_is_open_stands_in_the_link(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "**Mistakes** · done" not in told(opened(place.workspace.home, monkeypatch))
    app = opened(place.workspace.home, monkeypatch, project="shapes")
    assert app.sidebar.selectbox[0].value == "shapes"
    assert "**Mistakes** · done" in told(app)


def test_a_project_stays_open_until_another_is_chosen(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tab that goes on before its page has loaded sends an empty choice, and no query parameter."""
    new_project(place.workspace, "other", str(place.project.dataset["source"]))
    app = opened(place.workspace.home, monkeypatch, project="shapes")
    choice = app.sidebar.selectbox[0]
    assert choice.set_value(None).run().sidebar.selectbox[0].value == "shapes"
    del app.query_params["project"]
    assert app.run().sidebar.selectbox[0].value == "shapes"
    assert app.query_params["project"] == "shapes"
    assert choice.set_value("other").run().sidebar.selectbox[0].value == "other"


def test_what_was_redone_below_reads_as_stale(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    done_here(place, "classifier", {"architecture": "resnet_small", "training": {"epochs": 1}})
    app = opened(place.workspace.home, monkeypatch, project="shapes")
    assert "**Classifier** · done" in told(app)
    assert "**Mistakes** · stale" in told(app)
    assert "Next: identify" in [b.label for b in app.button]


# A new project


def test_a_project_is_created_and_opened_by_whatever_name(
    tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = template.parent / "shapes.npz"
    app = create(opened(tmp_path / "home", monkeypatch), f" {NASTY} ", way="Path", path=str(path))
    app = until_read(app)
    (project,) = projects(tmp_path / "home")
    assert project.name == NASTY
    assert project.dataset["source"] == str(path)
    assert project.dataset["sizes"] == {"train": 1280, "validation": 60, "test": 120}
    assert app.sidebar.selectbox[0].value == NASTY
    assert not app.error
    assert not has_markup(app)
    assert NASTY not in told(app)  # escaped, so that it is shown as it is


@pytest.mark.usefixtures("made_here")
def test_a_project_is_created_on_an_upload(
    tmp_path: Path, template: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = (template.parent / "shapes.npz").read_bytes()
    app = opened(tmp_path / "home", monkeypatch)
    app.segmented_control(key="new-way").set_value("Upload").run()
    app.text_input(key="new-name").set_value("mine")
    app.file_uploader[0].upload("../my shapes.npz", content).run()
    app = until_read(click(app, "Create"))
    (project,) = projects(tmp_path / "home")
    (blob,) = Workspace(tmp_path / "home").blobs(project.id)
    assert (blob.name, blob.size) == ("my shapes.npz", len(content))
    assert project.dataset["source"] == f"blob:{blob.sha256}"
    assert app.sidebar.selectbox[0].value == "mine"


@pytest.mark.usefixtures("made_here")
@pytest.mark.parametrize(
    ("chosen", "share", "sizes"),
    [
        ("those of the data set, if any", None, {"train": 4000, "test": 1000}),
        ("a share of the training images", 0.25, {"train": 3000, "validation": 1000, "test": 1000}),
        ("a random half of the test images", None, {"train": 4000, "validation": 500, "test": 500}),
    ],
)
def test_validation_images_come_from_where_one_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: str, share: float | None, sizes: dict[str, int]
) -> None:
    app = opened(tmp_path / "home", monkeypatch)
    app.selectbox(key="new-validation").select(chosen).run()
    if share is not None:
        app.number_input(key="new-share").set_value(share)
    until_read(create(app, "mine"))
    (project,) = projects(tmp_path / "home")
    assert project.dataset["sizes"] == sizes


@pytest.mark.usefixtures("made_here")
def test_data_with_a_validation_split_has_none_set_apart(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = opened(place.workspace.home, monkeypatch)
    app.selectbox(key="new-validation").select("a share of the training images").run()
    app = until_read(create(app, "mine", way="Path", path=place.project.dataset["source"]))
    assert ["has a validation split of its own" in error for error in errors(app)] == [True]
    assert len(place.workspace.projects()) == 1


@pytest.mark.usefixtures("made_here")
@pytest.mark.parametrize(
    ("name", "path", "message"),
    [
        ("--help", "/nowhere.npz", "/nowhere.npz does not exist; check the path"),
        ("shapes", "SHAPES", "there is a project 'shapes' already; give another name"),
    ],
)
def test_a_project_that_cannot_be_is_told_in_one_message(
    place: Place, monkeypatch: pytest.MonkeyPatch, name: str, path: str, message: str
) -> None:
    real = path.replace("SHAPES", place.project.dataset["source"])
    app = create(opened(place.workspace.home, monkeypatch), name, way="Path", path=real)
    app = until_read(app)
    (error,) = errors(app)
    assert message in error
    assert len(place.workspace.projects()) == 1


@pytest.mark.usefixtures("made_here")
def test_a_preview_shows_what_would_be_made_and_files_are_left_out_on_one_tick(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part in ("train", "val"):
        for label, name in enumerate(("cat", "dog")):
            for number in range(4):
                path = tmp_path / "pets" / part / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", (6, 9), 100 * label + 20 * number).save(path)
    for number in range(3):
        (tmp_path / "pets" / "train" / "cat" / f"{number}.png").write_bytes(b"![a](b)")
    shown: list[list[Tile]] = []
    monkeypatch.setattr(new_project_form, "image_grid", lambda tiles, **_: shown.append(tiles))
    app = opened(tmp_path / "home", monkeypatch)
    app.segmented_control(key="new-way").set_value("Path").run()
    app.text_input(key="new-path").set_value(str(tmp_path / "pets")).run()
    app.number_input(key="new-size").set_value(8).run()
    app.selectbox(key="new-fit").select("padded with black")
    app = until_read(click(app, "Preview"))
    assert "3 files in" in errors(app)[0]
    assert [row.split(" ")[0] for row in app.dataframe[0].value["file"]] == [
        f"train/cat/{number}.png" for number in range(3)
    ]
    app.checkbox(key="new-leave-out").check()
    app = until_read(click(app, "Preview"))
    assert not app.error
    assert not projects(tmp_path / "home")
    assert [tile.caption for tile in shown[-1]] == ["cat", *["dog"] * 4]
    assert shown[-1][0].images[0].shape == (8, 8, 3)
    assert app.dataframe[0].value["train"].tolist() == [1, 4]
    assert app.dataframe[0].value["test"].tolist() == [4, 4]
    notes = " ".join(words(caption.value) for caption in app.caption)
    assert "the validation split is the test split" in notes
    assert "3 files left out, not readable" in notes
    assert "13 images resized to 8×8, 13 of them not square and padded with black" in notes
    app.text_input(key="new-name").set_value("pets").run()
    until_read(click(app, "Create"))
    (project,) = projects(tmp_path / "home")
    assert project.dataset["fit"] == "pad"
    assert project.dataset["leave_out"] is True
    assert project.dataset["sizes"] == {"train": 5, "test": 8}


@pytest.mark.usefixtures("made_here")
def test_an_upload_that_is_no_data_set_is_told_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = opened(tmp_path / "home", monkeypatch)
    app.segmented_control(key="new-way").set_value("Upload").run()
    app.text_input(key="new-name").set_value("mine")
    np.savez(tmp_path / "x.npz", x_train=np.zeros(3))
    app.file_uploader[0].upload("signs.npz", (tmp_path / "x.npz").read_bytes()).run()
    app = until_read(click(app, "Create"))
    assert [error.partition(";")[0] for error in errors(app)] == ["signs.npz lacks y_train"]
    assert str(tmp_path) not in told(app)
    assert not projects(tmp_path / "home")


@pytest.mark.parametrize(
    ("name", "way"), [("", "Digits"), ("  ", "Digits"), ("mine", "Path"), ("mine", "Upload")]
)
def test_a_form_that_is_not_filled_in_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, way: str
) -> None:
    app = create(opened(tmp_path / "home", monkeypatch), name, way=way)
    assert errors(app) == ["Give a name and a data set."]


@pytest.mark.usefixtures("made_here")
def test_what_was_refused_is_forgotten_once_another_way_is_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = until_read(create(opened(tmp_path / "home", monkeypatch), "signs", way="Path", path="/nowhere.npz"))
    assert len(errors(app)) == 1
    app.segmented_control(key="new-way").set_value("Digits").run()
    assert not errors(app)


# Deleting


def test_a_project_is_deleted(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    app = click(opened(place.workspace.home, monkeypatch, project="shapes"), "Delete it")
    assert not place.workspace.projects()
    assert not list((place.workspace.home / "runs").iterdir())
    assert app.sidebar.selectbox[0].disabled


def test_a_project_with_a_live_run_is_not_deleted(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    run = add_run(place, "vae")
    app = click(opened(place.workspace.home, monkeypatch), "Delete it")
    assert [text.partition(";")[0] for text in toasts(app)] == [f"run {run.id} is live"]
    assert [project.name for project in place.workspace.projects()] == ["shapes"]


def test_a_workspace_that_cannot_be_used_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "defuse.sqlite").write_bytes(b"no database at all" * 100)
    app = opened(tmp_path / "home", monkeypatch)
    assert "is damaged" in errors(app)[0]
    assert not app.title


def test_a_data_set_that_is_gone_is_told_as_plain_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture in Markdown would be fetched from wherever it says."""
    name = "x ![a](http://127.0.0.1:9/a.png)"
    split = bars(90, 0)
    arrays = {"x_train": split.images[:, 0].numpy(), "y_train": split.labels.numpy()}
    path = tmp_path / "gone.npz"
    np.savez(path, x_test=arrays["x_train"], y_test=arrays["y_train"], **arrays)
    gone = fresh_place(tmp_path / "home", path, name=name)
    path.unlink()
    app = open_page(gone.workspace.home, monkeypatch, "classifier", project=name)
    app.session_state["look"] = True
    settle(app.run())
    assert "gone.npz" in words(app.error[0].value)
    assert not any("![" in e.value for e in [*app.error, *app.markdown, *app.caption, *app.warning])


def test_who_logs_in_names_no_data_of_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(new_project_form, "is_shared", lambda: True)
    app = open_page(tmp_path / "home", monkeypatch, "overview")
    assert app.segmented_control(key="new-way").options == ["Digits", "torchvision", "Upload"]


def test_notes_on_the_data_set_stand_beside_it_as_plain_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The suffix of a file that was passed over is text of the user's."""
    folder = tmp_path / "data"
    for part in ("train", "test"):
        for name in ("a", "b"):
            (folder / part / name).mkdir(parents=True)
            Image.fromarray(bars(1, 0).images[0, 0].numpy() // 255).save(folder / part / name / "0.png")
    (folder / "train" / "a" / "x.![a](b)").touch()
    noted = fresh_place(tmp_path / "home", folder)
    app = open_page(noted.workspace.home, monkeypatch, "classifier", project=noted.project.name)
    (caption,) = [c.value for c in app.caption if c.value.startswith(":material/info:")]
    first, *others = words(caption).removeprefix(":material/info: ").split(" · ")
    assert first == "1 file passed over, no image (.![a](b))"
    assert [other.split(";")[0] for other in others] == [
        f"every pixel of the {part} split is 0" for part in ("train", "test")
    ]
    assert not has_markup(app)
