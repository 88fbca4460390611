"""What a process may use of this machine: cores, the shipped weights, users' own code. Imports no torch."""

from __future__ import annotations

import os
from pathlib import Path

MODELS = Path(__file__).resolve().parents[2] / "models"
"""The weights that ship."""

ALLOW_LOCAL_CODE = "DEFUSE_ALLOW_LOCAL_CODE"
"""Environment variable, 1 where networks may be imported from users' folders; runs inherit it."""


def local_code_allowed() -> bool:
    """Return whether networks may be imported from users' folders."""
    return os.environ.get(ALLOW_LOCAL_CODE) == "1"


def available_cores() -> int:
    """Return how many threads a run takes by default: `DEFUSE_THREADS`, else all cores it may use.

    Not OMP_NUM_THREADS: the dashboard sets that to 1 for itself, to leave the cores to the runs.
    """
    setting = os.environ.get("DEFUSE_THREADS", "")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (int(setting) if setting.isdecimal() else 0) or cores or 1
