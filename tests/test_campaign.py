"""The campaign of hostile files: a small one, and that it notices a door that fails."""

from __future__ import annotations

import os
import pickle
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from random import Random

import pytest

from defuse_core.base import limits
from defuse_core.base.errors import CheckpointError
from tests.campaign import pickles
from tests.campaign.__main__ import KINDS, failures, main, plan, table
from tests.campaign.children import SECONDS, run_trials
from tests.campaign.doors import DOORS, MB, Door, UnusableError
from tests.campaign.kinds import MARKER, Kind, Stock, write
from tests.campaign.stock import make_stock
from tests.campaign.verdicts import Outcome, fault_of_message

FEW = 150
LIMITS = Path(__file__).resolve().parent.parent / "dashboard" / "docs" / "limits.md"
SLOW = "-many-"
"""In the names of kinds that are left to the whole campaign: some take a second."""


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Stock:
    return make_stock(tmp_path_factory.mktemp("stock"), all_networks=False)


def _empty(rng: Random, folder: Path, stock: Stock) -> Path:  # noqa: ARG001
    return write(folder, "file", b"content")


def _outcomes(stock: Stock, open_: Callable[[Path, Path, Stock], None], **options: float) -> list[Outcome]:
    """Three trials of a door."""
    kind, doors = Kind("planted", "planted", _empty), {"planted": Door(open_, peak=64 * MB)}
    return list(run_trials([(kind, seed) for seed in range(3)], stock, doors=doors, **options))


def _endings(stock: Stock, open_: Callable[[Path, Path, Stock], None], **options: float) -> set[str]:
    outcomes = _outcomes(stock, open_, **options)
    assert sorted(outcome.seed for outcome in outcomes) == [0, 1, 2]
    return {outcome.ending for outcome in outcomes}


# The doors


def test_every_good_file_is_taken(stock: Stock, tmp_path: Path) -> None:
    files = {
        "model": stock.weights["safetensors"], "data": stock.npz, "archive": stock.archive,
        "csv": b"region,annotator,label\n0,Ada,class 1\n", "label studio": b"[]",
    }  # fmt: skip
    paths = [(door, write(tmp_path, f"{door}.npz", content)) for door, content in files.items()]
    paths += [("weights", write(tmp_path, name, content)) for name, content in stock.weights.items()]
    paths += [("manifest", stock.root / "manifest.json"), ("suite", stock.root / "suite")]
    for door, path in paths:
        DOORS[door].open(path, tmp_path, stock)
    assert {door for door, _ in paths} == DOORS.keys() - {"resized data"}


def test_no_hostile_file_ends_badly(stock: Stock) -> None:
    kinds = [kind for kind in KINDS if SLOW not in kind.name]
    outcomes = list(run_trials(plan(kinds, FEW, seed=7), stock))
    assert {outcome.kind for outcome in outcomes} == {kind.name for kind in kinds}
    assert not failures(outcomes), "\n".join(failures(outcomes))
    assert Counter(outcome.ending for outcome in outcomes)["refused"] > FEW / 2


def test_a_seed_makes_the_same_file_again(stock: Stock, tmp_path: Path) -> None:
    for kind in [kind for kind in KINDS if kind.door == "csv"]:
        contents = []
        for name in ("a", "b"):
            (folder := tmp_path / f"{kind.name}{name}").mkdir()
            path = kind.make(Random(f"{kind.name}:3"), folder, stock)
            contents.append(path.read_bytes() if path.is_file() else None)
        assert contents[0] == contents[1]


# A door that fails


def _runs_code(path: Path, root: Path, stock: Stock) -> None:  # noqa: ARG001
    (path.parent / MARKER).touch()


def _breaks(path: Path, root: Path, stock: Stock) -> None:  # noqa: ARG001
    raise KeyError("x_train")


def _dies(path: Path, root: Path, stock: Stock) -> None:  # noqa: ARG001
    os.abort()


def _takes_memory(path: Path, root: Path, stock: Stock) -> None:  # noqa: ARG001
    bytearray(200 * MB)


def _takes_all_memory(path: Path, root: Path, stock: Stock) -> None:  # noqa: ARG001
    try:
        bytearray(2**40)
    except MemoryError as error:
        raise CheckpointError("the file cannot be read; save it again") from error


def _tells_nothing(path: Path, root: Path, stock: Stock) -> None:  # noqa: ARG001
    raise CheckpointError("bad file")


def _takes_anything(path: Path, root: Path, stock: Stock) -> None:  # noqa: ARG001
    raise UnusableError("label 99 of 10")


def _refuses(path: Path, root: Path, stock: Stock) -> None:  # noqa: ARG001
    raise CheckpointError(f"{path} is empty; copy it again")


def _hangs(path: Path, root: Path, stock: Stock) -> None:  # noqa: ARG001
    os.read(os.pipe()[0], 1)


@pytest.mark.parametrize(
    ("door", "ending"),
    [
        (_runs_code, "code run"), (_breaks, "crash"), (_dies, "crash"), (_takes_memory, "memory"),
        (_takes_all_memory, "memory"), (_tells_nothing, "no remedy"), (_takes_anything, "unusable"),
        (_refuses, "refused"),
    ],
)  # fmt: skip
def test_what_a_door_does_is_noticed(
    stock: Stock, door: Callable[[Path, Path, Stock], None], ending: str
) -> None:
    assert _endings(stock, door) == {ending}


def test_a_door_that_unpickles_runs_the_code(stock: Stock, monkeypatch: pytest.MonkeyPatch) -> None:
    def make(rng: Random, folder: Path, stock: Stock) -> Path:  # noqa: ARG001
        return write(folder, "x.pkl", pickles.program(pickles.running(rng, folder)))

    def unpickles(path: Path, root: Path, stock: Stock) -> None:  # noqa: ARG001
        pickle.loads(path.read_bytes())

    monkeypatch.setenv("TORCH_HOME", str(stock.root))
    kind, doors = Kind("planted", "planted", make), {"planted": Door(unpickles)}
    outcomes = list(run_trials([(kind, seed) for seed in range(24)], stock, doors=doors))
    assert Counter(outcome.ending for outcome in outcomes)["code run"] > 6


def test_a_door_that_hangs_is_noticed(stock: Stock) -> None:
    assert _endings(stock, _hangs, seconds=0.05, jobs=3) == {"hang"}


def test_trials_of_a_batch_that_died_are_run_alone(stock: Stock) -> None:
    def dies_once(path: Path, root: Path, stock: Stock) -> None:  # noqa: ARG001
        if path.parent.name == "planted-1":
            os.abort()

    outcomes = _outcomes(stock, dies_once)
    assert {o.seed: o.ending for o in outcomes} == {0: "taken", 1: "crash", 2: "taken"}
    assert "SIGABRT" in next(outcome.message for outcome in outcomes if outcome.seed == 1)


# What the documentation says


def _rows(heading: str) -> list[list[str]]:
    """Cells of the table under a heading of limits.md."""
    section = LIMITS.read_text().split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def _value(text: str) -> float:
    number, _, unit = text.replace(",", "").partition(" ")
    return float(number) * {"": 1, "MB": MB}[unit]


def test_every_door_is_documented_with_its_bounds() -> None:
    rows = {name: (_value(memory), time) for name, _, _, memory, time in _rows("The doors")}
    assert rows == {name: (door.peak, f"{SECONDS:g} s") for name, door in DOORS.items()}


@pytest.mark.parametrize("row", _rows("The limits"), ids=lambda row: row[3].strip("`").rpartition(".")[2])
def test_a_documented_limit_is_that_of_the_code(row: list[str]) -> None:
    doors, _, value, home = row
    module, _, name = home.strip("`").rpartition(".")
    unit = MB if name.endswith("_MB") else 1
    assert getattr(import_module(module), name) * unit == _value(value)
    assert doors == "every upload" or set(doors.split(", ")) <= DOORS.keys()


def test_every_limit_of_the_core_is_documented() -> None:
    documented = {row[3].strip("`").rpartition(".")[2] for row in _rows("The limits")}
    kept_back = {"RESERVE_BYTES", "RESERVE_PIECE_BYTES", "RESERVE_LEAST_FREE_BYTES", "GARBAGE_BATCH"}
    assert {name for name in vars(limits) if name.isupper()} - kept_back <= documented


# What it prints


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("x.pt is empty; copy it again", None),
        ("line 3: tau must be a positive number, got 'x'", None),
        ("x.pt is bad", "names no remedy"),
        ("", "is empty"),
        ("use " + "x" * 600, "has 604 characters"),
        ("use x\x1b[2J", "has characters that a terminal obeys, or line ends"),
        ("Use a. Use b. Use c. Use d.", "has over 3 sentences"),
    ],
)
def test_a_message_names_a_remedy_and_is_short(text: str, fault: str | None) -> None:
    assert fault_of_message(text) == fault


def test_a_failure_is_printed_with_the_command_that_repeats_it() -> None:
    outcomes = [
        Outcome("planted", 17, "crash", "KeyError: 'x'"),
        Outcome("planted", 18, "taken", seconds=2.5),
    ]
    assert failures(outcomes)[-1].strip() == "python -m tests.campaign --kind planted --only-seed 17"
    *_, last = table(outcomes, [Kind("planted", "data", _empty)]).splitlines()
    assert last.split()[:6] == ["all", "2", "1", "0", "0", "1"]


def test_trials_are_divided_by_share() -> None:
    kinds = [Kind("a", "data", _empty, 3), Kind("b", "data", _empty), Kind("c", "data", _empty, 0.001)]
    counts = Counter(kind.name for kind, _ in plan(kinds, 100, seed=5))
    assert counts == {"a": 75, "b": 25, "c": 1}
    assert min(seed for _, seed in plan(kinds, 100, seed=5)) == 5


def test_kinds_have_names_of_their_own_and_doors() -> None:
    assert len({kind.name for kind in KINDS}) == len(KINDS)
    assert {kind.door for kind in KINDS} == DOORS.keys()


def test_an_unknown_kind_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--kind", "nothing-like-it"])
    assert "there are pickle-code, " in capsys.readouterr().err
