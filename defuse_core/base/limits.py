"""Limits on what comes from outside, and on what is kept back; one block a subject. Imports nothing."""

from __future__ import annotations

# Disk space that is kept back (workspace.reserve)

RESERVE_BYTES = 2**20
"""Set aside in the workspace, so that runs can be listed, ended and deleted on a full disk."""

RESERVE_PIECE_BYTES = 2**18
"""Given up at once; half of it must be free for a change that ends a run or frees space."""

RESERVE_LEAST_FREE_BYTES = 64 * 2**20
"""Nothing is set aside on a disk with less free than this."""

# Garbage (workspace.garbage)

GARBAGE_BATCH = 500
"""Files that are set aside while the database is locked; they are deleted once it is free again."""
