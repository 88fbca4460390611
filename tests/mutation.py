"""`python -m tests.mutation`: do the tests notice when a line of the method is changed?

Cosmic Ray changes one operator, number or condition at a time (a mutant) in a copy of the tree, and runs
the module's own tests. A seeded sample of each module has to be noticed ("killed") to at least `LEAST`.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODULES = {
    "method.identification": ("tests/test_identification.py",),
    "method.distillation": ("tests/test_distillation.py",),
    "method.labeling": ("tests/test_labeling.py",),
    "method.correction": ("tests/test_correction.py",),
    "method.evaluation": ("tests/test_evaluation.py",),
    "method.novelty": ("tests/test_evaluation.py",),
    "workspace.labels": ("tests/test_annotations.py",),
    "workspace.run_store": ("tests/test_run_store.py",),
    "workspace.run_reading": ("tests/test_run_store.py",),
    "workspace.task_store": ("tests/test_run_store.py",),
}
"""Modules of defuse_core and the test files that are their own."""

SAMPLE, SEED, LEAST = 60, 0, 0.85
_COPIED = ("defuse_core", "dashboard", "pages", "models", "tests", "pyproject.toml", "README.md")
_TESTS = ("-x", "-q", "-n0", "-p", "no:cacheprovider", "--hypothesis-profile=mutation", "-m", "not verify")


def annotation_spans(source: str) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Return where annotations begin and end, (line, column) each: nothing evaluates them.

    Examples
    --------
    >>> annotation_spans("def f(a: int | None) -> str: ...")
    [((1, 9), (1, 19)), ((1, 24), (1, 27))]
    """
    found: list[ast.expr] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.arg | ast.AnnAssign) and node.annotation is not None:
            found.append(node.annotation)
        elif isinstance(node, ast.FunctionDef) and node.returns is not None:
            found.append(node.returns)
    spans = [((e.lineno, e.col_offset), (e.end_lineno or 0, e.end_col_offset or 0)) for e in found]
    return sorted(spans)


def mutate_module(name: str) -> bool:
    """Sample the mutants of a module in this folder and run its tests on each; tell which survive."""
    from cosmic_ray.commands import execute, init
    from cosmic_ray.config import ConfigDict
    from cosmic_ray.testing import run_tests
    from cosmic_ray.work_db import use_db
    from cosmic_ray.work_item import TestOutcome

    path = Path("defuse_core", *name.split(".")).with_suffix(".py")
    command = shlex.join([sys.executable, "-m", "pytest", *_TESTS, str(path), *MODULES[name]])
    started = time.monotonic()
    outcome, output = run_tests(command, timeout=600)  # as on every mutant
    if outcome != TestOutcome.SURVIVED:
        raise SystemExit(f"{name}: its tests fail without a mutant\n{output}")
    lasted = time.monotonic() - started
    with use_db(f"{name}.sqlite") as session:
        init([path], session, {})
        spans = annotation_spans(path.read_text(encoding="utf-8"))
        items = sorted(
            (item for item in session.work_items if not _inside(item.mutations[0].start_pos, spans)),
            key=lambda item: (item.mutations[0].operator_name, item.mutations[0].occurrence),
        )
        sample = random.Random(SEED).sample(items, min(SAMPLE, len(items)))
        session.clear()
        session.add_work_items(sample)
        config = {"test-command": command, "timeout": 3 * lasted + 30, "distributor": {"name": "local"}}
        execute(session, ConfigDict(config))
        results = [result for _, result in session.results]
        survivors = [each.diff for each in results if each.test_outcome == TestOutcome.SURVIVED]
    killed = sum(each.test_outcome == TestOutcome.KILLED for each in results) / len(sample)
    print(f"{name}: {killed:.0%} of {len(sample)} mutants killed, of {len(items)} in all")
    for diff in survivors:
        print("\n".join(line for line in diff.splitlines() if line[:1] in "+-@"), end="\n\n")
    return killed >= LEAST


def _inside(place: tuple[int, int], spans: list[tuple[tuple[int, int], tuple[int, int]]]) -> bool:
    return any(begin <= place < end for begin, end in spans)


def _in_copy(name: str) -> bool:
    """Test a module in a copy of the tree, which the mutants are written to."""
    with tempfile.TemporaryDirectory() as folder:
        for each in _COPIED:
            copy = shutil.copytree if (ROOT / each).is_dir() else shutil.copy
            copy(ROOT / each, Path(folder) / each)
        done = subprocess.run(
            [sys.executable, "-m", "tests.mutation", "--here", name], cwd=folder, capture_output=True,
            text=True, check=False, env={**os.environ, "PYTHONPATH": folder, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    print(done.stdout or done.stderr, flush=True)
    return done.returncode == 0


def main() -> int:
    """Test the modules, one on each core; return 1 where too many mutants of one survive."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(MODULES), help="Modules, by default all")
    parser.add_argument("--here", action="store_true", help="Change the files of this very folder")
    given = parser.parse_args()
    if given.here:
        return 0 if all(mutate_module(name) for name in given.names) else 1
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return 0 if all(list(pool.map(_in_copy, given.names))) else 1


if __name__ == "__main__":
    sys.exit(main())
