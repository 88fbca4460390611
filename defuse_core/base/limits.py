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

# Archives and manifests, which strangers may have made (exchange.archive, workspace.manifest)

MOST_ROW_BYTES = 8 * 2**20
"""One row of an archive as JSON; in memory it takes up to 37 times as much, 300 MB."""

MOST_MANIFEST_BYTES = 16 * 2**20
"""The manifest of an archive or of a run; that of the demo has less than 1 MB."""

MOST_DIRECTORY_BYTES = 8 * 2**20
"""The directory of an archive, some 75,000 files."""

MOST_RUNS = 10_000
"""Runs of an archive: each becomes a folder."""

MOST_NAME = 1_000
"""Characters of a name in an archive: of a class, a task, a point, an annotator, a region."""

MOST_SOURCE = 4_096
"""Characters of a text in a config, and of the source of a data set, such as a path."""

MOST_ERROR = 100_000
"""Characters of an error in an archive; a longer one is cut where it is exported."""

MOST_SIDE = 2**20
"""Pixels of a side of the images of an archive's project, and its channels."""

MOST_THREADS = 4_096
"""Threads that a run of an archive computed with, and would be resumed with."""

MOST_SAMPLES = 100_000
"""Most draws that one label event of an archive may have: they are drawn again in memory."""

UNPACK_FREE_BYTES = 64 * 2**20
UNPACK_RATIO = 100
"""An archive may unpack to `UNPACK_FREE_BYTES` plus this many times its own size; exports keep to that."""

IMPORT_SPARE_BYTES = 64 * 2**20
"""Disk space that an import leaves free."""
