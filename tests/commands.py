"""`defuse` as people and scripts call it: in this process, or, where that is tested, in one of its own."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from defuse_core.cli.main import main
from tests.in_process import runs_in_this_process

Completed = subprocess.CompletedProcess[str]

AROUND = {"COLUMNS": "120", "DEFUSE_THREADS": "1"}
"""Tables are as wide on any terminal, and networks this small are fastest on one thread."""


def command(*words: str) -> list[str]:
    """What starts it in a process of its own."""
    return [sys.executable, "-m", "defuse_core.cli", *words]


def heed_ctrl_c() -> None:
    """Called in a new process: Ctrl-C ends it even where the tests were started in a shell's background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def defuse_process(*words: str, cwd: Path, env: Mapping[str, str] | None = None) -> Completed:
    """Call it in a process of its own, whose runs are processes, too."""
    return subprocess.run(
        command(*words), cwd=cwd, capture_output=True, text=True, check=False,
        env={**os.environ, **AROUND, **(env or {})},
    )  # fmt: skip


def defuse_here(
    *words: str, cwd: Path, env: Mapping[str, str] | None = None, stdin: str | bytes | None = None
) -> Completed:
    """Call it in this process, and let its runs compute here before they are watched.

    What `main` does not turn into a line, the stack trace of a process, is raised.
    """
    given = stdin.encode() if isinstance(stdin, str) else stdin or b""
    out, err = io.BytesIO(), io.BytesIO()
    ended: object = 0
    with pytest.MonkeyPatch.context() as patch, runs_in_this_process():
        patch.setattr(sys, "argv", ["defuse", *words])
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given), "utf-8"))
        patch.chdir(cwd)
        for name, value in {**AROUND, **(env or {})}.items():
            patch.setenv(name, value)
        with redirect_stdout(_text(out)) as text, redirect_stderr(_text(err)) as told:
            try:
                main()
            except SystemExit as exit_:
                ended = exit_.code
            text.flush()
            told.flush()
    code = ended if isinstance(ended, int) else int(ended is not None)
    return Completed(words, code, out.getvalue().decode(), err.getvalue().decode())


def _text(content: io.BytesIO) -> io.TextIOWrapper:
    """A stream of text over one of bytes, as a process has it."""
    return io.TextIOWrapper(content, "utf-8")


def checked(done: Completed, code: int = 0) -> Completed:
    """The command as it ended, which is to be with this code, and in words."""
    assert done.returncode == code, f"{done.args}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done
