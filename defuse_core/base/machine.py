"""What a process may use of this machine: cores, the shipped weights, code of users'. Imports no torch."""

from __future__ import annotations

import os
from pathlib import Path

MODELS = Path(__file__).resolve().parents[2] / "models"
"""The weights that ship."""

ALLOW_LOCAL_CODE = "DEFUSE_ALLOW_LOCAL_CODE"
"""Variable of the environment, 1 where networks may be imported from folders of users; runs inherit it."""


def local_code_allowed() -> bool:
    """Return whether networks may be imported from folders of users."""
    return os.environ.get(ALLOW_LOCAL_CODE) == "1"


def available_cores() -> int:
    """Return how many threads a run takes unless told: `DEFUSE_THREADS`, else all cores it may use.

    Not OMP_NUM_THREADS: the dashboard sets that to 1 for itself, and the cores are the runs'.
    """
    asked = os.environ.get("DEFUSE_THREADS", "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (int(asked) if asked.isdecimal() else 0) or cores or 1
