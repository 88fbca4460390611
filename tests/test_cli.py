"""The command line as people and scripts call it.

Commands and their runs are in this process but where a process is what is tested: that a run lives
on by itself, that it is stopped, and with which code a command exits.
"""

from __future__ import annotations

import base64
import csv
import fcntl
import io
import json
import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from defuse_core.cli import console, main
from defuse_core.cli.main import app
from defuse_core.jobs import launcher
from defuse_core.workspace.config_checks import ConfigError
from defuse_core.workspace.runs import Resources, Run
from defuse_core.workspace.workspace import Workspace
from tests.commands import (
    AROUND,
    Completed,
    checked,
    command,
    defuse_here,
    defuse_process,
    heed_ctrl_c,
)
from tests.in_process import add_run, begin, done_here, run_here, store_run
from tests.workspaces import Place, copy_place, eventually, stop_between_writes

Defuse = Callable[..., Completed]

SEARCH = ("--centred", "--noise-scale", "6", "--max-mistakes-per-image", "4")
ENDLESS = ("--n-perturbations", "30000")
SWEEP = ("--lambdas", "0.1,1", "--epochs", "1", "--instances-per-region", "16", "--baseline-lambdas", "1")


@pytest.fixture
def defuse(place: Place, tmp_path: Path) -> Defuse:
    """Runs `defuse` in the copied workspace."""
    return in_workspace(place, tmp_path)


@pytest.fixture
def process(place: Place, tmp_path: Path) -> Defuse:
    """Runs `defuse` in the copied workspace, as a process of its own."""

    def run(*words: str, code: int = 0) -> Completed:
        return checked(defuse_process(*words, cwd=tmp_path, env=home_of(place)), code)

    return run


def in_workspace(place: Place, folder: Path) -> Defuse:
    def run(*words: str, code: int = 0, stdin: str | bytes | None = None) -> Completed:
        return checked(defuse_here(*words, cwd=folder, env=home_of(place), stdin=stdin), code)

    return run


def home_of(place: Place) -> dict[str, str]:
    return {"DEFUSE_HOME": str(place.workspace.home)}


@pytest.fixture(scope="module")
def swept(corrected_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Home of a workspace with a sweep, its evidence and a run that failed; read it only."""
    place = copy_place(corrected_template, tmp_path_factory.mktemp("swept") / "home")
    assert run_here(place, "vae", {"weights": "blob:" + 64 * "0"}).status == "failed"
    place.workspace.close()
    return place.workspace.home


def newest(place: Place, step: str) -> Run:
    return place.workspace.runs.of_project(place.project.id, step)[-1]


def test_the_whole_method_from_the_command_line(
    template: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("cli")
    place = copy_place(template, folder / "home")
    defuse = in_workspace(place, folder)
    (folder / "data.npz").write_bytes((template.parent / "shapes.npz").read_bytes())
    told = defuse("new", "mine", "--data", "data.npz").stdout  # relative: remembered whole
    assert "1,280 train, 60 validation, 120 test images of 1×8×8, 3 classes" in told
    p = ("-p", "mine")
    training = ("--optimizer", "adam", "--learning-rate", "1e-4", "--epochs", "1")
    defuse("train-classifier", *p, "--architecture", "resnet_small", *training)
    shape = ("--hidden-channels", "16", "--depth", "2")
    defuse(
        "train-vae", *p, *shape, "--latent-dim", "4", "--epochs", "6", "--beta", "0.2", "--batch-size", "32"
    )
    found = json.loads(defuse("identify", *p, "--n-perturbations", "20", *SEARCH, "--json").stdout)
    assert found["status"] == "done"
    assert sum(found["summary"]["mistakes"].values()) > 100
    assert found["config"]["n_perturbations"] == 20
    assert "regions: " in defuse("distill", *p, "--n-components", "12").stdout
    defuse("map", *p, "--method", "pca")
    (mine,) = (q for q in place.workspace.projects() if q.name == "mine")
    regions = place.workspace.runs.latest(mine.id, "distill")
    assert regions is not None
    rows = "".join(f"{r['region_id']},Ada,row\n" for r in regions.summary["regions"])
    assert (
        "labels added" in defuse("label", "import", "-", *p, stdin="region,annotator,label\n" + rows).stdout
    )
    defuse("correct", *p, *SWEEP)
    defuse("evaluate", *p)
    report = defuse("report", *p, "--out", "evidence").stdout
    assert "Figure 4" in report
    results = json.loads((folder / "evidence" / "results.json").read_text())
    assert f"{results['defuse']['test']:.3f} [" in report
    assert (folder / "evidence" / "figure1-regions.png").read_bytes().startswith(b"\x89PNG")
    listed = json.loads(defuse("runs", *p, "--json").stdout)
    assert [r["status"] for r in listed] == ["done"] * 8
    shown = [line for line in defuse("runs", *p).stdout.splitlines() if " mine " in line]
    assert len(shown) == 8


def test_labels_go_out_and_in_as_csv(defuse: Defuse, place: Place) -> None:
    text = defuse("label", "export").stdout
    rows = list(csv.DictReader(io.StringIO(text)))
    regions = newest(place, "distill")
    before = place.workspace.annotations.counting(regions.id)
    assert len(rows) == len(before)
    assert {row["label"] for row in rows} <= {"row", "column", "diagonal"}
    defuse("label", "export", "--out", "labels.csv")
    told = json.loads(defuse("label", "import", "labels.csv", "--json").stdout)
    assert told == {"run": regions.id, "added": 0, "known": len(before)}
    assert place.workspace.annotations.counting(regions.id) == before
    (place.workspace.home / "more.csv").write_text(f"{text}{rows[0]['region']},1,Eve,row\r\n")
    done = defuse("label", "import", str(place.workspace.home / "more.csv"))
    assert f"1 label added to the regions of run {regions.id}; {len(before)} were known" in done.stdout
    assert len(place.workspace.annotations.counting(regions.id)) == len(before) + 1


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("region,annotator\n1,Ada\n", "lacks the columns label"),
        ("region,annotator,label\n4,Ada,circle\n", "line 2: label must be one of row, column, diagonal"),
        ("region,annotator,label\n99,Ada,row\n", "line 2: there is no region 99"),
        ("region,annotator,label\n4,Ada,row\n4,,row\n", "line 3: annotator must be named"),
    ],
)
def test_a_bad_csv_adds_nothing(text: str, told: str, defuse: Defuse, place: Place) -> None:
    before = place.workspace.annotations.last_id(newest(place, "distill").id)
    done = defuse("label", "import", "-", stdin=text, code=1)
    assert told in done.stderr
    assert place.workspace.annotations.last_id(newest(place, "distill").id) == before


def test_a_run_goes_on_when_watching_ends(place: Place, tmp_path: Path) -> None:
    env, before = {**os.environ, **AROUND, **home_of(place)}, newest(place, "identify")
    with (place.workspace.home / "machine.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another run computes: this one waits, and is watched
        watching = subprocess.Popen(
            command("identify", "--n-perturbations", "5", *SEARCH),
            cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True, preexec_fn=heed_ctrl_c,
        )  # fmt: skip
        eventually(lambda: newest(place, "identify").id > before.id, seconds=20)
        eventually(lambda: newest(place, "identify").has_runner, seconds=20)
        watching.send_signal(signal.SIGINT)
        stderr = watching.communicate(timeout=20)[1]
    assert watching.returncode == 130
    run = newest(place, "identify")
    assert f"run {run.id} goes on; stop it with: defuse cancel {run.id}" in stderr
    assert place.wait(run).status == "done"


@pytest.mark.parametrize("moment", ["submitted", "handed over", "watched"])
@pytest.mark.parametrize("words", ["identify", "report", "resume VAE", "extend CORRECT --lambdas 3"])
def test_ctrl_c_tells_what_goes_on_at_any_moment(
    swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, moment: str
) -> None:
    """In this process, where the moment can be chosen; the newest VAE failed."""
    place = copy_place(swept, tmp_path / "home")
    for step in ("vae", "correct"):
        words = words.replace(step.upper(), str(newest(place, step).id))
    live_before = add_run(place, "map")
    begin(place, live_before)

    def end(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    def hand_over(workspace: Workspace, run: Run) -> None:
        workspace.runs.hand_over(run.id, os.getpid())

    monkeypatch.setattr(launcher, "_start", end if moment == "submitted" else hand_over)
    monkeypatch.setattr(console, "make_console" if moment == "handed over" else "watch", end)
    done = CliRunner().invoke(app, words.split(), env=home_of(place))
    assert done.exit_code == 130, done.output
    live = [run for run in place.workspace.runs.of_project(place.project.id) if run.live]
    (run,) = (run for run in live if run.id != live_before.id)
    told = f"run {run.id} goes on; stop it with: defuse cancel {run.id}\n"
    assert done.stderr == (told if run.has_runner else "")


def test_detached_cancelled_and_resumed(process: Defuse, defuse: Defuse, place: Place) -> None:
    told = json.loads(process("correct", *SWEEP, "--detach", "--json").stdout)
    assert told["status"] in ("queued", "running")
    run = place.workspace.runs.get(told["run"])
    eventually(lambda: place.get(run).status == "running", seconds=20)
    stop_between_writes(place.workspace.home, place.get(run).pid)  # lest it end before the other begins
    assert f"run {run.id} is cancelled" in process("cancel", str(run.id)).stdout
    assert f"run {run.id} is cancelled" in defuse("cancel", str(run.id)).stdout  # again: no error
    listed = {r["run"]: r["status"] for r in json.loads(defuse("runs", "--json").stdout)}
    assert listed[run.id] == "cancelled"
    told = process("resume", str(run.id)).stdout  # watched to its end
    assert f"run {run.id} (correct) done in" in told
    assert "100%" in told
    assert place.get(run).status == "done"
    assert "is done; submit the step again" in defuse("resume", str(run.id), code=1).stderr


def test_exit_codes(defuse: Defuse, process: Defuse) -> None:
    assert (
        "noise_a should be greater than 0, got '-1'" in defuse("identify", "--noise-a", "-1", code=2).stderr
    )
    assert "preset must be one of mnist, svhn" in defuse("identify", "--preset", "cifar", code=2).stderr
    defuse("identify", "--seed", "-1", code=2)
    assert "--nonsense" in process("identify", "--nonsense", code=2).stderr
    assert "needs --address" in defuse("identify", "--engine", "ray", code=2).stderr
    assert "must be local or ray" in defuse("identify", "--engine", "dask", code=2).stderr
    assert "stands on correct" in process("evaluate", code=1).stderr
    assert "no Ray cluster answers" in defuse(
        "identify", "--engine", "ray", "--address", "127.0.0.1:9", code=1
    ).stderr  # fmt: skip
    told = json.loads(defuse("cancel", "99", "--json", code=1).stdout)
    assert told == {"error": "there is no run 99; see: defuse runs"}
    failed = defuse("train-vae", "--weights", "shipped:nothing", "--json", code=1)
    assert "lacks nothing.json" in json.loads(failed.stdout)["error"]


def test_a_command_whose_run_is_cancelled_exits_with_3(place: Place, tmp_path: Path) -> None:
    env, n_before = {**os.environ, **AROUND, **home_of(place)}, newest(place, "identify").id
    watching = subprocess.Popen(
        command("identify", *ENDLESS, "--json"), cwd=tmp_path, env=env, stdout=subprocess.PIPE, text=True
    )
    eventually(lambda: newest(place, "identify").id > n_before or watching.poll() is not None, seconds=20)
    run = newest(place, "identify")
    launcher.cancel(place.workspace, run.id)
    stdout = watching.communicate(timeout=20)[0]
    assert watching.returncode == 3
    assert json.loads(stdout)["status"] == "cancelled"


def test_one_run_is_shown_whole(defuse: Defuse, place: Place) -> None:
    run = newest(place, "vae")
    told = json.loads(defuse("runs", str(run.id), "--json").stdout)
    assert told["tasks"][0]["name"] == "vae"
    assert told["record"]["versions"]["torch"]
    assert Path(told["log"]).is_file()
    text = defuse("runs", str(run.id)).stdout
    assert '"latent_dim": 4' in text
    assert "20 of 20" in text


def test_garbage_is_collected_and_projects_deleted(defuse: Defuse, place: Place) -> None:
    litter = place.workspace.run_folder(99) / "half.safetensors"
    litter.parent.mkdir()
    litter.write_bytes(b"x" * 1000)
    os.utime(litter, (0, 0))
    assert json.loads(defuse("gc", "--json").stdout) == {"files": 1, "bytes": 1000}
    place.check_integrity()
    assert json.loads(defuse("projects", "--json").stdout)[0]["name"] == "shapes"
    defuse("delete", "shapes", stdin="n\n", code=1)
    assert place.workspace.projects()
    defuse("delete", "shapes", "--yes")
    assert not place.workspace.projects()
    assert not list((place.workspace.home / "runs").iterdir())
    assert "create one with: defuse new NAME" in defuse("identify", code=1).stderr


def test_several_projects_need_a_choice(defuse: Defuse, place: Place) -> None:
    place.workspace.create_project("other", dataset=place.project.dataset)
    told = defuse("identify", code=1).stderr
    assert "there are 2 projects; choose one with --project: shapes, other" in told
    assert (
        "there is no project 'third'; there are: shapes, other" in defuse("map", "-p", "third", code=1).stderr
    )


def test_a_preset_sets_what_is_not_given(defuse: Defuse) -> None:
    words = ("identify", "--preset", "svhn", "--n-perturbations", "2", "--detach", "--json")
    told: dict[str, Any] = json.loads(defuse(*words).stdout)
    assert (told["config"]["noise_a"], told["config"]["n_perturbations"]) == (75, 2)


def test_notes_on_a_data_set_stand_beside_the_answer(defuse: Defuse, tmp_path: Path) -> None:
    images, labels = np.eye(8, dtype=np.uint8)[None].repeat(4, 0), np.arange(4) % 2
    np.savez(tmp_path / "dark.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    done = defuse("new", "dark", "--data", "dark.npz")
    assert done.stdout.splitlines() == ["project dark: 4 train, 4 test images of 1×8×8, 2 classes"]
    notes = done.stderr.splitlines()
    assert [note.partition(",")[0] for note in notes] == [
        f"note: the brightest pixel of the {part} split is 1 of 255" for part in ("train", "test")
    ]
    told = json.loads(defuse("new", "again", "--data", "dark.npz", "--json").stdout)
    assert [f"note: {note}" for note in told["notes"]] == notes


def test_a_preview_creates_no_project_and_names_all_that_cannot_be_read(
    defuse: Defuse, tmp_path: Path
) -> None:
    for part in ("train", "test"):
        for number in range(12):
            path = tmp_path / "pets" / part / "cat" / f"{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (6, 8), 20 * number).save(path)
    for number in range(11):
        (tmp_path / "pets" / "train" / "cat" / f"{number:02d}.png").write_bytes(b"none")
    before = defuse("projects", "--json").stdout
    words = ("new", "pets", "--data", "pets", "--preview", "pets.png", "--image-size", "8", "--fit", "crop")
    refused = defuse(*words, code=1).stderr.splitlines()
    assert [line.split(" ")[2] for line in refused[1:12]] == [f"train/cat/{n:02d}.png" for n in range(11)]
    assert refused[12] == "to read the other images without them, give --leave-out"
    assert len(json.loads(defuse(*words, "--json", code=1).stdout)["unreadable"]) == 11
    done = defuse(*words, "--leave-out")
    assert [row.split() for row in done.stdout.splitlines() if "cat" in row] == [
        ["│", "cat", "│", "1", "│", "12", "│"]
    ]
    assert "note: 11 files left out, not readable (train/cat/00.png" in done.stderr
    assert Image.open(tmp_path / "pets.png").format == "PNG"
    told = json.loads(defuse(*words[:5], "-", *words[6:], "--leave-out", "--json").stdout)["preview"]
    assert told["counts"] == {"train": [1], "test": [12]}
    image = Image.open(io.BytesIO(base64.b64decode(told["images"][0]["png"])))
    assert (image.size, image.getpixel((0, 0)), told["images"][0]["label"]) == ((8, 8), 220, "cat")
    assert defuse("projects", "--json").stdout == before
    assert "fit" in json.loads(defuse(*words[:4], *words[6:], "--leave-out", "--json").stdout)


def test_bad_data_are_one_line(defuse: Defuse, tmp_path: Path) -> None:
    (tmp_path / "broken.npz").write_bytes(b"no")
    assert "is not a readable .npz" in defuse("new", "x", "--data", "broken.npz", code=1).stderr
    assert "is not a data set" in defuse("new", "x", "--data", "nowhere", code=1).stderr
    assert "the data set is an empty text; give" in defuse("new", "x", "--data", "", code=1).stderr
    assert "there is a project 'shapes' already" in defuse("new", "shapes", "--data", "digits", code=1).stderr


def test_names_and_errors_of_users_are_shown_as_they_are(defuse: Defuse, place: Place) -> None:
    place.workspace.create_project("[/x] [red]", dataset=place.project.dataset)
    assert "[/x] [red]" in defuse("projects").stdout
    failed = defuse("train-vae", "-p", "[/x] [red]", "--weights", "blob:" + "0" * 64, code=1)
    assert "the project has no upload" in failed.stdout
    run = place.workspace.runs.of_project(2)[-1]
    again = json.loads(defuse("resume", str(run.id), "--json", code=1).stdout)
    assert (again["run"], again["status"]) == (run.id, "failed")
    place.workspace.runs.requeue(run.id)
    place.workspace.runs.finish(run.id, "failed", error="[/a] is no [markup]")
    assert "[/a] is no [markup]" in " ".join(defuse("runs").stdout.split())
    defuse("runs", str(run.id))


def test_weights_are_brought_from_a_file(defuse: Defuse, place: Place, tmp_path: Path) -> None:
    trained = newest(place, "classifier")
    path = place.workspace.artifact_path(trained.id, "classifier.safetensors")
    (tmp_path / "mine.safetensors").write_bytes(path.read_bytes())
    words = ("train-classifier", "--architecture", "resnet_small", "--json", "--weights")
    brought = json.loads(defuse(*words, "mine.safetensors").stdout)
    assert brought["summary"] == trained.summary
    assert [blob.name for blob in place.workspace.blobs(place.project.id)] == ["mine.safetensors"]
    assert (
        "nowhere.pt does not exist; check the path"
        in defuse("train-vae", "--weights", "nowhere.pt", code=1).stderr
    )
    told = defuse("train-vae", "--weights", "imagenet", code=2).stderr
    assert "weights must be shipped:<name> or blob:<sha256>, got 'imagenet'" in told


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("folder", "is a folder"),
        ("pipe", "is a pipe or a device"),
        ("loop", "Too many levels of symbolic links"),
    ],
)
def test_weights_that_are_no_file_are_told(
    defuse: Defuse, place: Place, tmp_path: Path, name: str, told: str
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "pipe")
    error = defuse("train-classifier", "--weights", name, code=1).stderr
    assert told in error
    assert "check the path" in error
    assert not place.workspace.blobs(place.project.id)


def test_weights_to_begin_with_are_brought_from_a_file(defuse: Defuse, place: Place, tmp_path: Path) -> None:
    path = place.workspace.artifact_path(newest(place, "classifier").id, "classifier.safetensors")
    (tmp_path / "mine.safetensors").write_bytes(path.read_bytes())
    words = ("train-classifier", "--architecture", "resnet_small", "--epochs", "1", "--json", "--pretrained")
    begun = json.loads(defuse(*words, "mine.safetensors").stdout)
    (blob,) = place.workspace.blobs(place.project.id)
    assert (begun["config"]["pretrained"], blob.name) == (f"blob:{blob.sha256}", "mine.safetensors")
    assert begun["summary"]["began_afresh"] == []
    told = defuse("train-classifier", "--pretrained", "nowhere.pt", code=1).stderr
    assert "nowhere.pt does not exist; check the path" in told
    told = defuse("train-classifier", "--pretrained", "shipped:digits", code=2).stderr
    assert "pretrained must be imagenet or blob:<sha256>, got 'shipped:digits'" in told
    both = ("--pretrained", "mine.safetensors", "--weights", "shipped:demo-classifier")
    assert "pretrained is trained further; leave one" in defuse("train-classifier", *both, code=2).stderr


def test_a_share_is_set_apart_for_validation(defuse: Defuse) -> None:
    said = defuse("new", "divided", "--validation", "0.1").stdout
    assert "3,600 train, 400 validation, 1,000 test" in said
    made = json.loads(defuse("new", "other", "--validation", "0.2", "--json").stdout)
    assert (made["validation"], made["sizes"]["validation"]) == (0.2, 800)
    halved = json.loads(defuse("new", "halved", "--validation", "from-test", "--json").stdout)
    assert halved["validation"] == "from-test"
    assert halved["sizes"] == {"train": 4000, "validation": 500, "test": 500}
    refused = defuse("new", "x", "--validation", "nan", code=1).stderr
    assert "validation must be between 0 and 1, got nan; give 0.1 for a tenth" in refused
    refused = defuse("new", "x", "--validation", "test", code=2).stderr
    assert "must be a share such as 0.1, or from-test, got 'test'" in refused


def test_numbers_that_no_database_holds_are_wrong_calls(defuse: Defuse) -> None:
    defuse("runs", "9" * 20, code=2)
    defuse("identify", "--seed", "9" * 20, code=2)
    defuse("resume", "0", code=2)
    assert "device must be auto" in defuse("identify", "--device", "foo", code=2).stderr
    for words in (("identify",), ("resume", "1"), ("replay", "none.json"), ("reproduce", "mnist")):
        assert "4096" in defuse(*words, "--threads", "4097", code=2).stderr
    with pytest.raises(ConfigError, match="threads must be 0 to 4,096, got 100,000,000; give fewer"):
        launcher.probe(Resources(threads=10**8))


def test_every_error_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise ValueError("red:\x1b[31m\n" + "x" * 1000 + "\nuse another")

    monkeypatch.setattr(main, "app", fail)
    with pytest.raises(SystemExit, match="1"):
        main.main()
    told = capsys.readouterr().err
    assert re.fullmatch(r"defuse: red:.\[31m x+ … x+ use another\n", told)
    assert len(told) < 620


def test_labels_are_read_and_written_while_new_regions_are_made(defuse: Defuse, place: Place) -> None:
    before = defuse("label", "export").stdout
    run = place.workspace.runs.add(
        place.project.id,
        "distill",
        {},
        seed=0,
        resources=Resources(),
        upstream=[newest(place, "identify").id],
    )
    assert run.live
    assert defuse("label", "export").stdout == before


def test_a_stale_ground_is_said(defuse: Defuse, place: Place) -> None:
    done_here(place, "identify", {"n_perturbations": 5}, seed=3)
    done = defuse("stability", "--n-seeds", "2")
    assert "stands on a run that is stale" in done.stderr
    assert "stale: what it stands on, or a label, has been redone since" in done.stdout
    assert "too blurry" not in done.stderr


def test_a_blurry_generator_is_said(defuse: Defuse, place: Place) -> None:
    share = [0.07, 0.0, 1.0, 100]
    store_run(place, "control", {"control": {"train": share}, "by_class": {"train": []}})
    done = defuse("stability", "--n-seeds", "2")
    assert "note: The generator is too blurry" in done.stderr


def test_a_csv_that_is_none_names_the_remedy(defuse: Defuse, tmp_path: Path) -> None:
    (tmp_path / "latin.csv").write_bytes("region,annotator,label\n1,J\xf6rg,row\n".encode("latin-1"))
    told = {"latin.csv": "save it as CSV UTF-8", ".": "give a CSV file", "nowhere.csv": "check the path"}
    for name, remedy in told.items():
        assert remedy in defuse("label", "import", name, code=1).stderr
    assert "the input is not text in UTF-8" in defuse("label", "import", "-", stdin=b"\xff", code=1).stderr


def test_a_task_that_is_done_is_not_cancelled(defuse: Defuse, place: Place) -> None:
    run = newest(place, "identify")
    assert "shard=0000 of run" in defuse("cancel", str(run.id), "--task", "shard=0000").stdout
    assert "is done already" in defuse("cancel", str(run.id), "--task", "shard=0000").stdout
