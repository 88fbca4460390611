"""Run the campaign: `python -m tests.campaign`; exits with 1 where any trial ends badly.

A trial that ended badly is run again alone by `--kind NAME --only-seed N`, as it is printed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from tests.campaign import (
    archives,
    checkpoints,
    data_sets,
    documents,
    image_folders,
    label_files,
    safetensors_files,
)
from tests.campaign.children import Trial, run_trials
from tests.campaign.kinds import Kind
from tests.campaign.stock import make_stock
from tests.campaign.verdicts import COLUMNS, GOOD, Outcome

KINDS: tuple[Kind, ...] = (
    *checkpoints.KINDS, *safetensors_files.KINDS, *data_sets.KINDS, *image_folders.KINDS, *label_files.KINDS,
    *archives.KINDS, *documents.KINDS,
)  # fmt: skip
TRIALS = 10_000
_SHOWN = 3  # trials that ended badly, of each kind and ending
_ROOMY = 4 * 2**30  # bytes that must be free in memory's own file system to be used


def plan(kinds: Sequence[Kind], n: int, *, seed: int) -> list[Trial]:
    """Divide trials among kinds by their shares, at least one each.

    Parameters
    ----------
    kinds : sequence of Kind
    n : int
        Trials in all, about.
    seed : int
        Of the first trial of each kind; the others count up from it.
    """
    total = sum(kind.share for kind in kinds)
    counts = {kind.name: max(round(n * kind.share / total), 1) for kind in kinds}
    return [(kind, seed + i) for kind in kinds for i in range(counts[kind.name])]


def table(outcomes: Iterable[Outcome], kinds: Sequence[Kind]) -> str:
    """Count the endings of each kind, with the longest time and the largest memory.

    Parameters
    ----------
    outcomes : iterable of Outcome
    kinds : sequence of Kind
    """
    by_kind: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        by_kind[outcome.kind].append(outcome)
    names = [kind.name for kind in kinds if kind.name in by_kind]
    lines = [
        f"{'kind':22}{'trials':>8}"
        + "".join(f"{name:>11}" for name in COLUMNS)
        + f"{'most s':>9}{'most MB':>9}"
    ]
    for name in [*names, "all"]:
        mine = by_kind[name] if name != "all" else [each for group in by_kind.values() for each in group]
        counts = Counter(outcome.ending for outcome in mine)
        most = max((o.seconds for o in mine), default=0), max((o.peak for o in mine), default=0) / 2**20
        cells = "".join(f"{counts[column]:>11}" for column in COLUMNS)
        lines.append(f"{name:22}{len(mine):>8}{cells}{most[0]:>9.2f}{most[1]:>9.0f}")
    return "\n".join(lines)


def failures(outcomes: Iterable[Outcome]) -> list[str]:
    """Trials that ended badly, a few of each kind and ending, with the command that runs each again.

    Parameters
    ----------
    outcomes : iterable of Outcome
    """
    groups: dict[tuple[str, str], list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        if outcome.ending not in GOOD:
            groups[outcome.kind, outcome.ending].append(outcome)
    lines = []
    for (kind, ending), group in sorted(groups.items()):
        different = list({outcome.message[:60]: outcome for outcome in reversed(group)}.values())
        lines.append(f"{kind}: {ending}, {len(group)} times")
        for outcome in different[:_SHOWN]:
            again = f"python -m tests.campaign --kind {kind} --only-seed {outcome.seed}"
            lines += [f"  {outcome.message[:300]!r}", f"    {again}"]
    return lines


def _root() -> str | None:
    """The file system in memory, where it has room: the campaign writes much and keeps nothing."""
    shared = Path("/dev/shm")
    roomy = shared.is_dir() and os.access(shared, os.W_OK) and shutil.disk_usage(shared).free > _ROOMY
    return str(shared) if roomy else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the trials that the command line asks for; return 0 if all ended well."""
    parser = argparse.ArgumentParser(prog="python -m tests.campaign", description=__doc__)
    parser.add_argument("--kinds", "--kind", nargs="*", help="Names, or how they begin; by default all")
    parser.add_argument("--trials", type=int, default=TRIALS)
    parser.add_argument("--seed", type=int, default=0, help="Of the first trial of each kind")
    parser.add_argument("--only-seed", type=int, help="Run one trial of each kind")
    parser.add_argument("--jobs", type=int, default=min(os.cpu_count() or 1, 8), help="Children at a time")
    given = parser.parse_args(arguments)
    kinds = [kind for kind in KINDS if not given.kinds or kind.name.startswith(tuple(given.kinds))]
    if not kinds:
        parser.error(f"no kind is called that; there are {', '.join(kind.name for kind in KINDS)}")
    trials = plan(kinds, given.trials, seed=given.seed)
    if given.only_seed is not None:
        trials = [(kind, given.only_seed) for kind in kinds]
    torch.set_num_threads(1)  # a process of one thread can be forked
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="campaign-", dir=_root()) as folder:
        tempfile.tempdir, outcomes = folder, []  # what libraries leave behind goes with it
        (stock := Path(folder) / "stock").mkdir()
        for outcome in run_trials(trials, make_stock(stock), jobs=given.jobs):
            outcomes.append(outcome)
            if not len(outcomes) % 1000:
                print(f"{len(outcomes)} of {len(trials)} trials", file=sys.stderr, flush=True)
    tempfile.tempdir = None
    print(table(outcomes, kinds), *failures(outcomes), sep="\n")
    if given.only_seed is not None:
        print(*(f"{o.kind}, seed {o.seed}: {o.ending}: {o.message}" for o in outcomes), sep="\n")
    print(f"{len(outcomes)} trials in {time.monotonic() - started:.0f} s")
    return 0 if all(outcome.ending in GOOD for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
