"""Tests compute on one thread: their workers fill the cores, and threads that wait for a core spin.

Read by the libraries when they are imported, so it is set before.
"""

import os

for name in ("OMP", "MKL", "OPENBLAS", "NUMBA"):
    os.environ.setdefault(f"{name}_NUM_THREADS", "1")
