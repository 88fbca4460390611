"""Limits of what a person or a file may ask of a region's draws. Imports nothing."""

from __future__ import annotations

MOST_SAMPLES = 10_000
"""Draws of a region that one answer may be about: every verdict on it draws them again, in memory."""

MOST_TAU = 100.0
"""The largest τ; above it, a region's draws have nothing to do with the region."""
