"""Errors that several rooms raise. Imports nothing."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file and the remedy."""
