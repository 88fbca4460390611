"""How often a property is tried: as the profile says, or a share or a multiple of that."""

from __future__ import annotations

from typing import Any

from hypothesis import settings


def tried(times: float, **options: Any) -> settings:
    """`times` the examples of the profile: fewer where one takes long, more where it takes no time."""
    default = settings.default
    assert default is not None
    return settings(max_examples=round(times * default.max_examples), **options)
