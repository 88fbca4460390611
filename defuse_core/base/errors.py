"""Errors that several rooms raise. Imports nothing."""

from __future__ import annotations


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file and the remedy."""


class DivergenceError(RuntimeError):
    """A training whose loss or weights are not finite any more; the message names the remedy."""
