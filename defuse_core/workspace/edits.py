"""Describe people's edits of the regions that distillation found, as events.

Regions are never changed in place. An edit removes some and adds new ones with ids that were never
used before. So labels stay with the region that they are about, and an undo restores both. A name
or τ that a person sets is an event, too. Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, Protocol

from defuse_core.base.limits import MAX_TAU

EditKind = Literal["rename", "tau", "merge", "split", "select"]
STRUCTURAL: tuple[EditKind, ...] = ("merge", "split", "select")
"""Edits that change which regions there are."""

_ROUNDING = 1e-6  # sums of weights may exceed 1 by this, and covariances be asymmetric


@dataclass(frozen=True)
class Gaussian:
    """A region that an edit adds.

    Attributes
    ----------
    region_id : int
    weight : float
        π, in (0, 1].
    mean : tuple of float
        (latent_dim,)
    covariance : tuple of tuple of float
        (latent_dim, latent_dim), positive definite.
    """

    region_id: int
    weight: float
    mean: tuple[float, ...]
    covariance: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class RegionEdit:
    """One edit.

    Attributes
    ----------
    kind : {"rename", "tau", "merge", "split", "select"}
        "select" makes a region of mistakes that a person chose.
    regions : tuple of int
        Those removed; of "rename" and "tau" the one that it is about.
    into : tuple of Gaussian
        Those added.
    mistakes : tuple of int
        Numbers of those that a person chose, for "select".
    name : str
        The new name, "" for none.
    tau : float or None
    by : str
        Who did it.
    id : int
        Ascending in the order of storing; 0 before that.
    at : float
        Seconds since 1970.
    undone_by : int
        Id of its undo; 0 where it counts.
    """

    kind: EditKind
    regions: tuple[int, ...] = ()
    into: tuple[Gaussian, ...] = ()
    mistakes: tuple[int, ...] = ()
    name: str = ""
    tau: float | None = None
    by: str = ""
    id: int = 0
    at: float = 0.0
    undone_by: int = 0

    @property
    def undone(self) -> bool:
        """Whether an undo took it back."""
        return self.undone_by > 0

    def to_json(self) -> str:
        """Return the change as JSON, without author, time and undo: these are columns of the log.

        Raises
        ------
        ValueError
            If a number is not finite; SQLite could not read it again.
        """
        stored = ("kind", "regions", "into", "mistakes", "name", "tau")
        values = {name: value for name, value in asdict(self).items() if name in stored}
        return json.dumps(values, allow_nan=False)

    @staticmethod
    def of_json(text: str, *, by: str, id: int, at: float, undone_by: int) -> RegionEdit:
        """Build an edit from what `to_json` wrote.

        Parameters
        ----------
        text : str
        by, id, at, undone_by
            As in `RegionEdit`.
        """
        values = json.loads(text)
        into = tuple(
            Gaussian(g["region_id"], g["weight"], tuple(g["mean"]), tuple(map(tuple, g["covariance"])))
            for g in values["into"]
        )
        return RegionEdit(
            values["kind"], tuple(values["regions"]), into, tuple(values["mistakes"]),
            values["name"], values["tau"], by, id, at, undone_by,
        )  # fmt: skip

    def __str__(self) -> str:
        """Describe the edit in words, for a person who may undo it."""
        old = " and ".join(str(i) for i in self.regions)
        new = " and ".join(str(g.region_id) for g in self.into)
        return {
            "rename": f"region {old} named {self.name!r}" if self.name else f"name of region {old} removed",
            "tau": f"region {old} at τ = {self.tau:g}" if self.tau is not None else "",
            "merge": f"regions {old} merged into {new}",
            "split": f"region {old} split into {new}",
            "select": f"region {new} made of a selection",
        }[self.kind]


class GaussianFields(Protocol):
    """What a `Gaussian` and its rows in files have in common."""

    @property
    def region_id(self) -> int: ...
    @property
    def weight(self) -> float: ...
    @property
    def mean(self) -> Sequence[float]: ...
    @property
    def covariance(self) -> Sequence[Sequence[float]]: ...


def gaussian_fault(region: GaussianFields) -> str | None:
    """Say why nothing can be drawn from a region that an edit adds, in words; None where it can.

    Parameters
    ----------
    region : Gaussian, or a row of a file
    """
    import numpy as np  # slow to import, and most commands see no edit

    dim = len(region.mean)
    if not 0 < region.weight <= 1 + _ROUNDING:
        return f"weight must be above 0 and at most 1, got {region.weight:g}"
    if not dim or {len(region.covariance), *map(len, region.covariance)} != {dim}:
        return "covariance must be square, with as many rows as the mean has values"
    covariance = np.array(region.covariance, dtype=np.float64)  # (latent_dim, latent_dim)
    if not np.isfinite(region.mean).all() or not np.isfinite(covariance).all():
        return "mean and covariance must be finite"
    with np.errstate(all="ignore"):
        if not np.allclose(covariance, covariance.T, rtol=_ROUNDING, atol=0.0):
            return "covariance must be symmetric"
        try:
            definite = bool(np.isfinite(np.linalg.cholesky(covariance)).all())
        except np.linalg.LinAlgError:
            definite = False
    return None if definite else "covariance must be positive definite"


def fit_fault(
    removed: Sequence[int], added: Sequence[GaussianFields], *, n_components: int, latent_dim: int
) -> str | None:
    """Say why an edit was made for another mixture, in words; None where it fits.

    Parameters
    ----------
    removed : sequence of int
        Ids of the regions that the edit is about.
    added : sequence of Gaussian, or of rows of a file
    n_components : int
        Of the mixture, those of earlier edits included.
    latent_dim : int
        Of the mixture.
    """
    new_ids = [region.region_id for region in added]
    if any(i >= n_components for i in removed) or new_ids != [
        *range(n_components, n_components + len(added))
    ]:
        return f"it does not fit a mixture of {n_components} components"
    if other := next((len(region.mean) for region in added if len(region.mean) != latent_dim), None):
        return f"its mean has {other} values, the mixture has {latent_dim} dimensions"
    return None


def live_ids(found: Iterable[int], edits: Sequence[RegionEdit]) -> list[int]:
    """Return the ids of the regions that there are after these edits, in order.

    Parameters
    ----------
    found : iterable of int
        Ids of the regions that distillation found.
    edits : sequence of RegionEdit

    Examples
    --------
    >>> live_ids([0, 1, 2], [RegionEdit("merge", (0, 2), (Gaussian(9, 0.5, (0.0,), ((1.0,),)),))])
    [1, 9]
    """
    live = dict.fromkeys(found)
    for edit in edits:
        if edit.kind in STRUCTURAL and not edit.undone:
            for gone in edit.regions:
                live.pop(gone, None)
            live |= dict.fromkeys(region.region_id for region in edit.into)
    return list(live)


def ids_ever(found: Iterable[int], edits: Sequence[RegionEdit]) -> list[int]:
    """Return the ids of all regions that there are or were, which labels may be about.

    Parameters
    ----------
    found : iterable of int
        Ids of the regions that distillation found.
    edits : sequence of RegionEdit
    """
    return list(dict.fromkeys([*found, *(region.region_id for edit in edits for region in edit.into)]))


def newest_change(edits: Sequence[RegionEdit]) -> int:
    """Return the id of the last edit or undo that changed which regions there are; 0 for none."""
    return max((max(e.id, e.undone_by) for e in edits if e.kind in STRUCTURAL), default=0)


def names(edits: Sequence[RegionEdit]) -> dict[int, str]:
    """Return the names that people gave regions, by region_id."""
    latest = {e.regions[0]: e.name for e in edits if e.kind == "rename" and not e.undone}
    return {region_id: name for region_id, name in latest.items() if name}


def taus(edits: Sequence[RegionEdit]) -> dict[int, float]:
    """Return the τ chosen last for each region, by region_id; one that cannot be drawn at is left out."""
    chosen = ((e.regions[0], e.tau) for e in edits if e.kind == "tau")
    return {region_id: tau for region_id, tau in chosen if tau is not None and 0 < tau <= MAX_TAU}
