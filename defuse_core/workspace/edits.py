"""What people change of the regions that distillation found, as events: appended, undone by an undo.

Regions are never changed in place. An edit takes some away and puts new ones in, whose ids were never
used before, so that labels stay with the region that they were given to, and an undo brings both
back. Names and the τ at which a region is looked at are events, too. Imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

EditKind = Literal["rename", "tau", "merge", "split", "select"]
STRUCTURAL: tuple[EditKind, ...] = ("merge", "split", "select")
"""Edits that change which regions there are."""


@dataclass(frozen=True)
class Gaussian:
    """A region that an edit puts in.

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
        Those taken away; of "rename" and "tau" the one that it is about.
    into : tuple of Gaussian
        Those put in.
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
        Id of the undo that took it back; 0 where it counts.
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
        """Whether it was taken back."""
        return self.undone_by > 0

    def to_json(self) -> str:
        """Write what was changed; who, when and whether it counts stands beside it.

        Raises
        ------
        ValueError
            If a number is not finite: SQLite could not read that again.
        """
        kept = ("kind", "regions", "into", "mistakes", "name", "tau")
        told = {name: value for name, value in asdict(self).items() if name in kept}
        return json.dumps(told, allow_nan=False)

    @staticmethod
    def of_json(text: str, *, by: str, id: int, at: float, undone_by: int) -> RegionEdit:
        """Read what `to_json` wrote."""
        told = json.loads(text)
        into = tuple(
            Gaussian(g["region_id"], g["weight"], tuple(g["mean"]), tuple(map(tuple, g["covariance"])))
            for g in told["into"]
        )
        return RegionEdit(
            told["kind"], tuple(told["regions"]), into, tuple(told["mistakes"]), told["name"], told["tau"],
            by, id, at, undone_by,
        )  # fmt: skip

    def __str__(self) -> str:
        """Say it in words, as one who takes it back wants to read it."""
        named = " and ".join(str(i) for i in self.regions)
        made = " and ".join(str(g.region_id) for g in self.into)
        return {
            "rename": f"region {named} named {self.name!r}"
            if self.name
            else f"name of region {named} removed",
            "tau": f"region {named} at τ = {self.tau:g}" if self.tau is not None else "",
            "merge": f"regions {named} merged into {made}",
            "split": f"region {named} split into {made}",
            "select": f"region {made} made of a selection",
        }[self.kind]


def live_ids(found: Iterable[int], edits: Sequence[RegionEdit]) -> list[int]:
    """Return the ids of the regions there are: those that distillation found, with edits in order.

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
            live |= dict.fromkeys(made.region_id for made in edit.into)
    return list(live)


def ids_ever(found: Iterable[int], edits: Sequence[RegionEdit]) -> list[int]:
    """Return the ids of all regions that there are or were: what labels may be about."""
    return list(dict.fromkeys([*found, *(made.region_id for edit in edits for made in edit.into)]))


def newest_change(edits: Sequence[RegionEdit]) -> int:
    """Return the id of the last edit or undo that changed which regions there are; 0 for none."""
    return max((max(e.id, e.undone_by) for e in edits if e.kind in STRUCTURAL), default=0)


def names(edits: Sequence[RegionEdit]) -> dict[int, str]:
    """Return the names that people gave regions, by region_id."""
    given = {e.regions[0]: e.name for e in edits if e.kind == "rename" and not e.undone}
    return {region_id: name for region_id, name in given.items() if name}


def taus(edits: Sequence[RegionEdit]) -> dict[int, float]:
    """Return the τ chosen last for each region, by region_id."""
    return {e.regions[0]: e.tau for e in edits if e.kind == "tau" and e.tau is not None}
