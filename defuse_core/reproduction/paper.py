"""What the paper reports on its three data sets, to compare with what is measured here.

Slack, Rauschmayr and Kenthapadi, *Defuse: Training More Robust Models through Creation and Correction of
Novel Model Errors*, XAI4Debugging workshop, NeurIPS 2021. The bars of its figure 4 are not included: where a
table compares accuracies, the paper's column says "figure 4" and the reader looks there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DatasetName = Literal["mnist", "svhn", "gtsrb"]


@dataclass(frozen=True)
class PaperResult:
    """One data set of the paper.

    Attributes
    ----------
    title : str
    n_train, n_test : int
        Images.
    image_size : int
        Pixels, square.
    scenarios, failures : int
        Regions that distillation kept, and those that annotators called failures (section 4.2).
    classifier : str
    """

    title: str
    n_train: int
    n_test: int
    image_size: int
    scenarios: int
    failures: int
    classifier: str


PAPER: dict[DatasetName, PaperResult] = {
    "mnist": PaperResult("MNIST", 60_000, 10_000, 28, 44, 19, "the CNN of figure 8, Adadelta, 5 epochs"),
    "svhn": PaperResult("SVHN", 73_257, 26_032, 32, 32, 6, "ResNet-18, fine-tuned"),
    "gtsrb": PaperResult("German signs", 26_640, 12_630, 128, 38, 8, "ResNet-18, fine-tuned"),
}
"""By the name that `defuse reproduce` takes."""

_ALL: tuple[DatasetName, ...] = ("mnist", "svhn", "gtsrb")

DECISIONS: tuple[tuple[tuple[DatasetName, ...], str, str, str], ...] = (
    (("mnist",), "β", "stated as 4 and as 0.4", "0.4: at 4 digits blur away"),
    (
        ("mnist",),
        "images",
        "at 32×32",
        "28×28; padded for the generator, and what it draws is cropped",
    ),
    (
        _ALL,
        "decoder",
        "three fully connected layers of 256, then transposed convolutions",
        "a linear layer between them, which makes the feature map",
    ),
    (_ALL, "initialisation of the generator", "not stated", "Kaiming's"),
    (
        _ALL,
        "decoded images",
        "go to the classifier as they are",
        "are normalised as real ones are",
    ),
    (
        _ALL,
        "codes that the mixture is fitted to",
        "not stated",
        "a sample, 50,000 in the paper's length",
    ),
    (_ALL, "validation images", "not stated which", "the last tenth of every class"),
    (_ALL, "λ of the baseline", "not stated", "as many as the regions get"),
    (
        _ALL,
        "images of the baseline",
        "not stated how many",
        "as many shown singly as in regions; the regions are tuned on 256 draws each",
    ),
    (
        ("svhn", "gtsrb"),
        "batch and rate of ResNet-18",
        "not stated",
        "64 and 0.001, Adam, 5 epochs in the paper's length",
    ),
    (("gtsrb",), "cap of mistakes an image", "not stated", "none"),
)
"""Where the paper is silent or contradicts itself: data sets, subject, what it says, what was decided."""
