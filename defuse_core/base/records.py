"""The records that pass between the steps of the method. They are frozen; no model runs here.

Images are (n, channels, height, width): uint8 as data, float in [0, 1] as pixels. Latent codes are
(n, latent_dim) float32. Labels and predictions are (n,) int64 class indices.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from defuse_core.base.intervals import Interval


class MistakeKind(IntEnum):
    """Where on the way from x to decode(z) the classifier first fails."""

    DATASET = 0
    """f(x) ≠ y: the real image is already misclassified."""
    RECONSTRUCTION = 1
    """f(x) = y but f(decode(μ)) ≠ y: the generator is the cause, not the perturbation."""
    PERTURBATION = 2
    """Both were right: the mistake is new."""


@dataclass(frozen=True)
class Mistakes:
    """ψ of algorithm 1, as latent codes: those whose decoded image the classifier gets wrong.

    Attributes
    ----------
    latents : (n, latent_dim) float32
    labels, predictions : (n,) int64
        Class of the source image, and the classifier's prediction for the decoded code.
    source_index : (n,) int64
        Index of the source image in the split that was searched; ascending.
    noise_norm : (n,) float32
        ‖ε‖₂, ascending within one source image.
    kind : (n,) int64
        A `MistakeKind`.
    """

    latents: Tensor
    labels: Tensor
    predictions: Tensor
    source_index: Tensor
    noise_norm: Tensor
    kind: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Tensor | slice) -> Mistakes:
        return Mistakes(**{name: value[index] for name, value in vars(self).items()})

    @staticmethod
    def concatenate(parts: Iterable[Mistakes], *, latent_dim: int = 0) -> Mistakes:
        """Join shards in order; no shards give an empty record.

        Of shards that are only iterated over, memory holds no more than one more column at a time.

        Parameters
        ----------
        parts : iterable of Mistakes
        latent_dim : int
            Width of `latents`, (0, latent_dim), where there are no parts; else not used.
        """
        columns: dict[str, list[Tensor]] = {}
        for part in parts:
            for name, value in vars(part).items():
                columns.setdefault(name, []).append(value)
        if not columns:
            empty = torch.zeros(0, dtype=torch.int64)
            return Mistakes(torch.zeros(0, latent_dim), empty, empty, empty, torch.zeros(0), empty)
        return Mistakes(**{name: torch.cat(columns.pop(name)) for name in list(columns)})

    def counts(self) -> dict[str, int]:
        """Count the three kinds: dataset, reconstruction, perturbation."""
        return {kind.name.lower(): int((self.kind == kind).sum()) for kind in MistakeKind}


@dataclass(frozen=True)
class Region:
    """A misclassification region: one component of the mixture (π, μ, Σ).

    Attributes
    ----------
    region_id : int
        Index of the component in its mixture.
    weight : float
        π, in (0, 1].
    mean : (latent_dim,) float64
    covariance : (latent_dim, latent_dim) float64
        Symmetric positive definite.
    """

    region_id: int
    weight: float
    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]


@dataclass(frozen=True)
class Mixture:
    """The fitted Gaussian mixture with all its components.

    Attributes
    ----------
    weights : (n_components,) float64
        π; sums to 1.
    means : (n_components, latent_dim) float64
    covariances : (n_components, latent_dim, latent_dim) float64
    converged : bool
        Whether variational inference met its tolerance within the iterations allowed.
    n_iter : int
    lower_bound : float
        Of the model evidence, at the last iteration.
    n_codes : int
        Number of codes it was fitted to.
    kept : frozenset of int
        Components that a person made: they are regions whatever they weigh.
    """

    weights: NDArray[np.float64]
    means: NDArray[np.float64]
    covariances: NDArray[np.float64]
    converged: bool
    n_iter: int
    lower_bound: float
    n_codes: int
    kept: frozenset[int] = frozenset()

    def are_regions(self, min_weight: float = 0.01) -> NDArray[np.bool_]:
        """Tell which components (n_components,) weigh more than `min_weight`, or were made by a person."""
        return (self.weights > min_weight) | np.isin(np.arange(len(self.weights)), list(self.kept))

    def regions(self, min_weight: float = 0.01) -> list[Region]:
        """Return the components that are regions, heaviest first."""
        is_region = self.are_regions(min_weight)
        order = np.argsort(-self.weights, kind="stable")
        return [
            Region(int(k), float(self.weights[k]), self.means[k], self.covariances[k])
            for k in order
            if is_region[k]
        ]


@dataclass(frozen=True)
class Annotation:
    """One answer of one annotator; the later of two on the same subject counts.

    Attributes
    ----------
    region_id : int
    annotator : str
    label : int or None
        Class index; None is "none of the above".
    sample_id : int or None
        Which draw of the region; None labels every draw that has no answer of its own.
    """

    region_id: int
    annotator: str
    label: int | None
    sample_id: int | None = None


@dataclass(frozen=True)
class Verdict:
    """What the annotators say of a region (section 4.1, algorithm 3).

    Attributes
    ----------
    region_id : int
    is_failure : bool
        More than ρ of the kept images disagree with the classifier.
    label : int or None
        Most frequent label of the kept images; None where none was kept, or where two tie: such a region
        has no label of its own.
    image_labels : tuple of (int or None)
        Majority label of each image; None where it was discarded.
    error : Interval
        Share of the kept images whose label is not the classifier's prediction.
    n_disagreed, n_unanswered : int
        Images without a label because annotators tie, or because nobody answered.
    threshold : float
        ρ, by which it was reached.
    """

    region_id: int
    is_failure: bool
    label: int | None
    image_labels: tuple[int | None, ...]
    error: Interval
    n_disagreed: int = 0
    n_unanswered: int = 0
    threshold: float = 0.5

    @property
    def n_kept(self) -> int:
        """Images with a label."""
        return self.error.n

    @property
    def n_fit(self) -> int:
        """Images that have the region's label themselves."""
        return 0 if self.label is None else self.image_labels.count(self.label)

    @property
    def is_sure(self) -> bool:
        """Whether the interval of the error leaves out ρ: otherwise more answers could turn the verdict."""
        return not self.error.low <= self.threshold <= self.error.high

    def row(self) -> dict[str, Any]:
        """Return it as JSON stores it; ρ is in the config of the run that stores it."""
        row = {**asdict(self), "image_labels": list(self.image_labels)}
        del row["threshold"]
        return row

    @staticmethod
    def of_row(row: Mapping[str, Any], *, threshold: float) -> Verdict:
        """Read a verdict that a correct run stored.

        Parameters
        ----------
        row : mapping
            As `row` returns it.
        threshold : float
            ρ of that run.
        """
        known = {"error": Interval(**row["error"]), "image_labels": tuple(row["image_labels"])}
        return Verdict(**{**row, **known, "threshold": threshold})


@dataclass(frozen=True)
class FailureInstances:
    """D_f: images of the failure regions with the label a person gave them.

    Attributes
    ----------
    images : (n, channels, height, width) uint8
        Quantised like data, so that they reach the classifier the way data does.
    labels, region_ids : (n,) int64
    """

    images: Tensor
    labels: Tensor
    region_ids: Tensor

    @staticmethod
    def of_file(tensors: Mapping[str, Tensor], name: str) -> FailureInstances:
        """Read one set of a correct run's file, whose tensors are called `<name>.images` and so on.

        Parameters
        ----------
        tensors : mapping of str to Tensor
            Content of the file.
        name : str
            Of the set, such as "tune".
        """
        return FailureInstances(*(tensors[f"{name}.{part}"] for part in ("images", "labels", "ids")))

    def __len__(self) -> int:
        return len(self.labels)

    def regions(self, region_ids: Sequence[int]) -> FailureInstances:
        """Keep the instances of these regions."""
        keep = torch.isin(self.region_ids, torch.tensor(region_ids, dtype=torch.int64))
        return FailureInstances(self.images[keep], self.labels[keep], self.region_ids[keep])


@dataclass(frozen=True)
class SweepPoint:
    """One λ of the sweep, with the network of its best epoch.

    Attributes
    ----------
    lam : float
        λ, 0 or more.
    epoch : int
        The epoch kept, from 1.
    selection_accuracy : float
        Accuracy on the split that chose the epoch (validation, or training where there is none),
        in the precision of the config; figures of record are measured again in float32.
    tuned_accuracy : float
        Accuracy on the failure instances tuned on, likewise.
    state : mapping of str to Tensor
        Weights of the classifier's network.
    """

    lam: float
    epoch: int
    selection_accuracy: float
    tuned_accuracy: float
    state: Mapping[str, Tensor]
