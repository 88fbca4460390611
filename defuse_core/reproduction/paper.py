"""What the paper reports on its three data sets, to compare with what is measured here.

Slack, Rauschmayr and Kenthapadi, *Defuse: Training More Robust Models through Creation and Correction of
Novel Model Errors*, XAI4Debugging workshop, NeurIPS 2021. Sections and figures are its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

DatasetName = Literal["mnist", "svhn", "gtsrb"]

Model = Literal["before", "baseline", "defuse"]
"""Rows of figure 4: before fine-tuning, fine-tuned on identified mistakes, by Defuse."""

Part = Literal["validation", "test", "region"]
"""Its columns: the validation images, the test images, the draws of misclassification regions."""


@dataclass(frozen=True)
class PaperResult:
    """One data set of the paper.

    Attributes
    ----------
    title : str
    n_train, n_test : int
        Images (section 4.1).
    image_size : int
        Pixels, square.
    scenarios, failures : int
        Regions that distillation kept, and those that annotators called failures (appendix B).
    classifier : str
    annotators, chosen_by : str
        Who labelled the regions, and the split whose accuracy chose λ (section 4.1).
    accuracy : mapping of str to mapping of str to float
        Figure 4, by model and part, in [0, 1]; what it leaves blank is missing.
    agreement : mapping of str to (float, float)
        Figure 7: share of the annotators who voted for the majority label, mean and standard error over
        images, in [0, 1], by "failure", "other" and "all"; empty where nobody measured it.
    """

    title: str
    n_train: int
    n_test: int
    image_size: int
    scenarios: int
    failures: int
    classifier: str
    accuracy: Mapping[Model, Mapping[Part, float]]
    agreement: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    annotators: str = "five workers an image"
    chosen_by: str = "validation"


PAPER: dict[DatasetName, PaperResult] = {
    "mnist": PaperResult(
        "MNIST", 60_000, 10_000, 32, 44, 19, "a CNN, Adadelta, 5 epochs",
        accuracy={
            "before": {"test": 0.983, "region": 0.291},
            "baseline": {"test": 0.991, "region": 0.583},
            "defuse": {"test": 0.991, "region": 0.964},
        },
        agreement={"failure": (0.789, 0.054), "other": (0.872, 0.032), "all": (0.852, 0.001)},
        chosen_by="training",
    ),  # the first is printed as 78.9.3
    "svhn": PaperResult(
        "SVHN", 73_257, 26_032, 32, 32, 6, "ResNet-18, from ImageNet's weights, Adam, 10 epochs",
        accuracy={
            "before": {"validation": 0.936, "test": 0.932, "region": 0.312},
            "baseline": {"validation": 0.931, "test": 0.929, "region": 0.654},
            "defuse": {"validation": 0.930, "test": 0.928, "region": 0.999},
        },
        agreement={"failure": (0.666, 0.084), "other": (0.832, 0.041), "all": (0.821, 0.013)},
    ),
    "gtsrb": PaperResult(
        "German signs", 26_640, 12_630, 128, 38, 8, "ResNet-18, from ImageNet's weights, Adam, 20 epochs",
        accuracy={
            "before": {"validation": 0.988, "test": 0.987, "region": 0.278},
            "defuse": {"validation": 0.981, "test": 0.977, "region": 0.856},
        },
        annotators="the authors",
    ),
}  # fmt: skip
"""By the name that `defuse reproduce` takes."""

_ALL: tuple[DatasetName, ...] = ("mnist", "svhn", "gtsrb")
_PHOTOGRAPHS: tuple[DatasetName, ...] = ("svhn", "gtsrb")

DECISIONS: tuple[tuple[tuple[DatasetName, ...], str, str, str], ...] = (
    (
        ("mnist",),
        "network of the classifier",
        "figure 8, printed, and PyTorch's MNIST example, named in 4.1",
        "both, each in a section of its own",
    ),
    (("mnist",), "last layer of figure 8's network", "printed as 10 × 2", "10 outputs"),
    (("mnist",), "β", "printed as 4 and as 0.4 (B.2)", "0.4: at 4 digits blur away"),
    (("mnist",), "dimensions of z", "10 (4.1), printed as 15 in figure 9", "10"),
    (
        ("mnist",),
        "images",
        "32×32 (4.1)",
        "28×28, as MNIST has them; padded for the generator, and what it draws is cropped",
    ),
    (
        ("gtsrb",),
        "encoder",
        "one convolution is printed (figure 11), and five transposed ones (figure 12)",
        "four convolutions: one fewer than the decoder has, as in figures 9, 10, 13 and 14",
    ),
    (("mnist",), "end of the decoder", "32 channels, sigmoid (figure 10)", "one, as the images; sigmoid"),
    (
        _PHOTOGRAPHS,
        "end of the decoder",
        "64 channels, sigmoid (figures 12 and 14)",
        "three, as the images; sigmoid",
    ),
    (_ALL, "loss of the reconstruction", "not stated", "Bernoulli, summed over pixels"),
    (_ALL, "initialisation of the generator", "not stated", "Kaiming's"),
    (_ALL, "normalisation of decoded images", "not stated", "as that of real images"),
    (
        _ALL,
        "images of the baseline",
        "not stated how many",
        "as many shown singly as in regions; the regions are tuned on 256 draws each",
    ),
    (("gtsrb",), "baseline", "none: no labels of single mistakes", "as for the other data sets"),
    (
        ("mnist",),
        "limit on mistakes",
        "ψ of at most 100 (B.2); which are kept is not stated",
        "for each image; those of smallest ‖ε‖₂ are kept",
    ),
    (
        ("svhn",),
        "limit on mistakes",
        "ψ of at most 10 (B.4); which are kept is not stated",
        "for each image; those of smallest ‖ε‖₂ are kept",
    ),
    (("gtsrb",), "limit on mistakes", "none is stated", "none"),
)
"""Where the paper is silent or contradicts itself: data sets, subject, what it says, what was decided."""


def section_title(dataset: DatasetName, network: str) -> str:
    """Name the section of a data set, with its network where the paper names two.

    Parameters
    ----------
    dataset : {"mnist", "svhn", "gtsrb"}
    network : str
        One of `plans.NETWORKS`.
    """
    which = {"mnist_cnn": ", the network of section 4.1", "paper_cnn": ", the network of figure 8"}
    return PAPER[dataset].title + which.get(network, "")
