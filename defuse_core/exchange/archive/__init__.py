"""Export a whole project to one file, and import it into another workspace.

The file is a zip archive: `manifest.json` with the project, and size and SHA-256 of every other member;
`rows/` with the rows of the database as lines of JSON; `blobs/<sha256>`; and `runs/<n>/` with the artifacts
and the log of a run. In the file, runs and label events are numbered 1, 2, … in their order. The import
gives them the next free numbers everywhere, so that a run is as stale, and a label as undone, as before.

Not in the file: data sets that are a path or torchvision's (`data_note` says so), and the checkpoints of
interrupted trainings, which start again from zero. An archive is untrusted: no path in it is opened, and
`base.limits` bounds what it may hold. Imports no torch.
"""

from __future__ import annotations

from defuse_core.exchange.archive.data import data_note, missing_data
from defuse_core.exchange.archive.restoring import import_project
from defuse_core.exchange.archive.writing import Exported, export_project

__all__ = ["Exported", "data_note", "export_project", "import_project", "missing_data"]
