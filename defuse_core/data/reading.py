"""How a data set is read: the choices that a project remembers for its runs. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from defuse_core.base.errors import DataError
from defuse_core.base.limits import MAX_IMAGE_SIZE
from defuse_core.data.naming import Validation

Fit = Literal["stretch", "crop", "pad"]
"""How an image that is not square becomes square: all of it stretched, its middle, or all of it on black."""

FITS: tuple[Fit, ...] = get_args(Fit)

READING_FIELDS = ("image_size", "fit", "leave_out", "split_seed", "validation")
"""What `Reading.remembered` may have; of these, a project always has the size."""

TEST_SHARE = 0.2
"""Of the images of a data set without a test split, how many are set apart for one."""


@dataclass(frozen=True)
class Reading:
    """The choices about a data set.

    Attributes
    ----------
    image_size : int or None
        Every image is resized to this many pixels, square.
    fit : {"stretch", "crop", "pad"}
        How, where it is not square.
    leave_out : bool
        Whether files that cannot be read are left out; else they are an error.
    seed : int or None
        Of the division of data without a test split. None takes the last images of every class, in order, as
        projects did that remember no seed.
    validation : float, "from-test" or None
        As `splits.set_validation_apart` takes it.

    Raises
    ------
    DataError
        If the size is out of range, or there is no such fit.
    """

    image_size: int | None = None
    fit: Fit = "stretch"
    leave_out: bool = False
    seed: int | None = 0
    validation: Validation | None = None

    def __post_init__(self) -> None:
        if self.image_size is not None and not 1 <= self.image_size <= MAX_IMAGE_SIZE:
            raise DataError(
                f"image_size must be 1 to {MAX_IMAGE_SIZE} pixels, got {self.image_size}; give another"
            )
        if self.fit not in FITS:
            raise DataError(f"fit must be {', '.join(FITS[:-1])} or {FITS[-1]}, got {self.fit!r}; give one")

    @classmethod
    def of(cls, remembered: Mapping[str, Any]) -> Reading:
        """Return the choices that a project remembers; see `Project.dataset`."""
        return cls(
            remembered.get("image_size"),
            remembered.get("fit") or "stretch",
            bool(remembered.get("leave_out")),
            remembered.get("split_seed"),
            remembered.get("validation"),
        )

    def remembered(self) -> dict[str, Any]:
        """Return the choices as a project remembers them: those that say something, and always the size."""
        stored = {
            "fit": None if self.fit == "stretch" else self.fit,
            "leave_out": self.leave_out or None,
            "split_seed": self.seed,
            "validation": self.validation,
        }
        said = {name: value for name, value in stored.items() if value is not None}
        return {"image_size": self.image_size, **said}
