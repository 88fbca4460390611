"""`defuse` as people and scripts call it: in this process, or, where that is tested, in one of its own."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from defuse_core.cli import main
from tests.in_process import runs_in_this_process

Completed = subprocess.CompletedProcess[str]


def defuse_process(*words: str, cwd: Path, env: Mapping[str, str] | None = None) -> Completed:
    """Call it in a process of its own, whose runs are processes, too."""
    return subprocess.run(
        [sys.executable, "-m", "defuse_core.cli", *words], cwd=cwd, capture_output=True, text=True,
        check=False, env={**os.environ, **(env or {})},
    )  # fmt: skip


def defuse_here(
    *words: str, cwd: Path, env: Mapping[str, str] | None = None, stdin: str | None = None
) -> Completed:
    """Call it in this process, and let its runs compute here before they are watched."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, runs_in_this_process():
        patch.setattr(sys, "argv", ["defuse", *words])
        patch.setattr(sys, "stdin", io.StringIO(stdin or ""))
        patch.chdir(cwd)
        for name, value in (env or {}).items():
            patch.setenv(name, value)
        with redirect_stdout(out), redirect_stderr(err):
            try:
                main()
                code: object = 0
            except SystemExit as ended:
                code = ended.code
    return Completed(words, int(code or 0), out.getvalue(), err.getvalue())  # type: ignore[call-overload]
