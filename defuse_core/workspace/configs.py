"""Define the config of each step.

Imports no torch, so that checking a form or a command line takes no time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, Field, field_validator, model_validator

from defuse_core.base.config import (
    BLOCKS,
    DECODER,
    AnnotatorTraining,
    ClassifierTraining,
    Config,
    CorrectionConfig,
    Decoder,
    DistillationConfig,
    IdentificationConfig,
    LabelingConfig,
    Preset,
    VaeConfig,
    VaeTraining,
)
from defuse_core.base.limits import MAX_IMAGE_SIZE
from defuse_core.base.named import check_name, named_field

WEIGHTS = r"^(shipped:[A-Za-z0-9_-]+|blob:[0-9a-f]{64})$"
"""Where weights come from: a shipped model, or an upload of the project."""

CORRECTED = r"^(shipped:[A-Za-z0-9_-]+|blob:[0-9a-f]{64}|corrected:[1-9][0-9]{0,17})$"
"""The same, or the classifier of a correct run of the project, by its number."""

PRETRAINED = r"^(imagenet|blob:[0-9a-f]{64})$"
"""Where the weights come from that training begins with."""


_EITHER = "weights are taken as they are, pretrained is trained further; leave one of them out"


class NetworkConfig(Config):
    """Which network, with which weights, and what it expects of pixels in [0, 1]."""

    architecture: str | None = Field(
        None,
        description="mnist_cnn or paper_cnn (28×28 only), vgg_small, wide_kernel, resnet_small, "
        "mobile_small, all_convolutional, any of torchvision's such as resnet18, or module:Class of your "
        "own; by default what the weights tell, or, to train, mnist_cnn for 28×28 images and resnet_small "
        "for others",
    )
    weights: str | None = Field(
        None,
        pattern=WEIGHTS,
        description="shipped:<name> or blob:<sha256>; by default the network is trained",
    )
    code_path: str | None = Field(None, description="Folder that module:Class is imported from")
    trust_program: bool = Field(
        False, description="Run TorchScript and torch.export files: they are programs, not only weights"
    )
    mean: tuple[float, ...] | None = Field(
        None,
        description="One value a channel, of pixels in [0, 1]; by default what the file of the weights says, "
        "else that of the training images",
    )
    std: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(
        None, description="One value a channel; by default as mean"
    )
    image_size: int | None = Field(
        None,
        ge=1,
        le=MAX_IMAGE_SIZE,
        description="Resize to this many pixels, square; by default as the images are",
    )
    channel_order: Literal["rgb", "bgr"] = Field("rgb", description="In which the network takes colours")

    @model_validator(mode="after")
    def _channels(self) -> Self:
        channels = [len(values) for values in (self.mean, self.std) if values is not None]
        if any(n not in (1, 3) for n in channels) or len(set(channels)) > 1:
            raise ValueError(f"mean and std need 1 or 3 values each, got {self.mean} and {self.std}")
        return self


class ClassifierConfig(NetworkConfig):
    """Train a classifier on the project's data, or bring one."""

    weights: str | None = Field(
        None,
        pattern=CORRECTED,
        description="shipped:<name>, blob:<sha256>, or corrected:<number of a correct run>, for a second "
        "round; by default the network is trained",
    )
    pretrained: str | None = Field(
        None,
        pattern=PRETRAINED,
        description="Weights that training begins with: imagenet (torchvision's, downloaded once) or "
        "blob:<sha256>; layers that have other shapes there, such as the last, begin afresh",
    )
    training: ClassifierTraining = ClassifierTraining()

    @model_validator(mode="after")
    def _trains(self) -> Self:
        if self.weights is not None and self.pretrained is not None:
            raise ValueError(_EITHER)
        return self


class InspectConfig(NetworkConfig):
    """Find the architecture of weights, and the preprocessing they were trained with."""

    n_images: int = Field(
        1000, ge=1, description="Images that preprocessings are compared on, a sample stratified by class"
    )


class ControlConfig(Config):
    """Whether images are still classified correctly after reconstruction alone (ε = 0)."""

    train_reader: bool = Field(
        True,
        description="Where there are no simulated annotators, train a small network that the generator never "
        "saw, to read reconstructions, too",
    )


class ProbeConfig(Config):
    """How fast codes are searched and a classifier is tuned here."""

    seconds: float = Field(2.0, gt=0, le=60, description="How long to measure each")


class GeneratorConfig(Config):
    """Train a β-VAE on the project's training images, whose size and channels it takes, or bring one."""

    weights: str | None = Field(
        None,
        pattern=WEIGHTS,
        description="shipped:<name> or blob:<sha256>; by default the generator is trained",
    )
    pretrained: str | None = Field(
        None,
        pattern=WEIGHTS,
        description="Weights that training begins with: shipped:<name> or blob:<sha256>, such as those of a "
        "generator that was not trained long enough; their shape is taken",
    )
    latent_dim: int = Field(10, ge=1, description="Dimensions of z")
    hidden_channels: int = Field(32, ge=1, description="Channels of every hidden convolution")
    hidden_units: int = Field(256, ge=1, description="Units of every fully connected layer")
    depth: int = Field(3, ge=1, le=6, description="Number of 4×4 convolutions of stride 2")
    decoder: Decoder = Field("linear", description=DECODER)
    blocks: int = Field(0, ge=0, le=8, description=BLOCKS)
    training: VaeTraining = VaeTraining()

    @model_validator(mode="after")
    def _trains(self) -> Self:
        if self.weights is not None and self.pretrained is not None:
            raise ValueError(_EITHER)
        return self

    @property
    def asks_readers(self) -> bool:
        """Whether it is trained with the classifier in the loop."""
        return self.weights is None and self.training.consistency_weight > 0


PROJECTIONS: dict[str, str] = {
    name: f"defuse_core.extensions.projection:{name}_steps" for name in ("tsne", "umap", "pca")
}
"""Projections: each takes codes (n, latent_dim), seed and `MapConfig`, and is a `Loop` of a `Projection`."""


class MapConfig(Config):
    """Training codes and mistakes in the plane (figure 2)."""

    method: str = named_field(PROJECTIONS, "tsne", "How codes are projected to the plane")
    n_codes: int = Field(10_000, ge=4, description="Training codes, a sample stratified by class")
    n_mistakes: int = Field(10_000, ge=0, description="Mistakes, a seeded sample")
    in_regions: bool = Field(
        False, description="Leave out mistakes that lie in no region; figure 2 leaves out outliers"
    )
    perplexity: float = Field(30.0, gt=0, description="Of t-SNE")
    n_neighbors: int = Field(15, ge=2, description="Of UMAP")

    @field_validator("method")
    @classmethod
    def _is_known(cls, name: str) -> str:
        return check_name(name, PROJECTIONS)


class StabilityConfig(Config):
    """Which regions are found again when the mixture is fitted under other seeds."""

    n_seeds: int = Field(5, ge=2, le=20, description="Other seeds to fit with")


class AnnotatorsConfig(Config):
    """Train the five networks that stand in for annotators, on training and validation images."""

    training: AnnotatorTraining = AnnotatorTraining()
    own_augmentation: bool = Field(
        True,
        description="Each annotator distorts the images in its own way, unless augmentation is none; else "
        "all as augmentation says",
    )
    shipped: bool = Field(False, description="Take the shipped ones, which know 28×28 digits, instead")
    more_data: str | None = Field(
        None,
        min_length=1,
        description="Data whose training images they are trained on, too, such as torchvision:SVHN-extra; "
        "the less they share with the classifier, the more their labels are worth",
    )


class AnnotationConfig(Config):
    """Simulated annotators in place of people (algorithm 3): those trained here, else the shipped ones."""

    labeling: LabelingConfig = LabelingConfig()
    min_probability: float = Field(
        0.5, ge=0, le=1, description='An annotator less sure than this says "none of the above"'
    )
    n_single: int | None = Field(
        None, ge=0, description="Single mistakes to label for the baseline; by default as many as draws"
    )


def _lambdas_of_regions(values: dict[str, Any]) -> tuple[float, ...]:
    """Return the λ of the regions: an equal search, unless the baseline is given λ of its own."""
    lambdas: tuple[float, ...] = values["correction"].lambdas
    return lambdas


class SweepConfig(Config):
    """Correction over all λ, of the regions and of the baseline."""

    correction: CorrectionConfig = CorrectionConfig()
    disagreement_threshold: float = Field(0.5, ge=0, lt=1, description="ρ, over which a region is a failure")
    baseline_lambdas: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        default_factory=_lambdas_of_regions,
        description="λ of the baseline, by default those of the regions; none leaves it out",
    )
    regions: tuple[Annotated[int, Field(ge=0)], ...] | None = Field(
        None, min_length=1, description="Failure regions that go in; by default all there are"
    )
    n_seeds: int = Field(
        1, ge=1, le=20, description="Times that every λ is tuned, under seeds of their own, for bands"
    )
    rule: Literal["paper", "regions"] = Field(
        "regions",
        description="How λ is chosen: paper takes the best accuracy on the validation images (training where "
        "there are none); regions the best on the tuning draws within max_loss of that",
    )
    max_loss: float = Field(
        0.01, ge=0, le=1, description="Accuracy that rule regions may give up, a share of the images"
    )
    last_annotation: int | None = Field(
        None, ge=0, description="Labels up to this one count; by default those there are at the start"
    )


class EvaluationConfig(Config):
    """Evidence: what the correction changed, and what would have changed without it."""

    controls: bool = Field(True, description="Tune with λ = 0, and on random regions of equal size, too")
    n_nearest: int = Field(10, ge=1, description="Real test images nearest to each failure region")
    noise_images: int = Field(
        256,
        ge=0,
        description="Training images searched around with raw and with centred noise; 0 leaves it out",
    )


class ReportConfig(Config):
    """Figures and tables."""

    n_regions: int = Field(3, ge=1, description="Regions shown before and after in figure 1")
    n_worst: int = Field(10, ge=1, description="Worst regions shown in report.html")


StepName = Literal[
    "inspect", "classifier", "vae", "annotators", "control", "probe", "identify", "distill", "map",
    "stability", "annotate", "correct", "evaluate", "report",
]  # fmt: skip


@dataclass(frozen=True)
class StepSpec:
    """The properties of a step that need no torch.

    Attributes
    ----------
    config : type
    needs : tuple of str
        Steps whose runs it stands on directly.
    optional : tuple of str
        Steps whose runs it uses, too, where they exist and stand on no other runs than it does.
    needs_if : mapping of str to callable
        Steps that it stands on, too, where the callable says so of its config.
    shares_machine : bool
        Whether it is light enough to run beside another.
    takes_labels : bool
        Whether it uses the labels that regions have when it starts.
    may_grow : tuple of str
        Dotted names of fields that may grow or change after a run is done; its results so far stay.
    """

    config: type[Config]
    needs: tuple[StepName, ...] = ()
    optional: tuple[StepName, ...] = ()
    needs_if: Mapping[StepName, Callable[[Any], bool]] = field(default_factory=dict)
    shares_machine: bool = False
    takes_labels: bool = False
    may_grow: tuple[str, ...] = ()

    def needed(self, config: BaseModel) -> tuple[StepName, ...]:
        """Return the steps whose runs a run of this config stands on; the optional ones not included.

        Parameters
        ----------
        config : Config
            Of this step.
        """
        return (*self.needs, *(step for step, is_needed in self.needs_if.items() if is_needed(config)))

    def may_stand_on(self, config: BaseModel, steps: Sequence[str]) -> bool:
        """Tell whether a run of this config can stand on runs of these steps, one of each.

        Parameters
        ----------
        config : Config
            Of this step.
        steps : sequence of str
        """
        return sorted(steps) == sorted({*self.needed(config), *({*steps} & {*self.optional})})


STEPS: dict[StepName, StepSpec] = {
    "inspect": StepSpec(InspectConfig),
    "classifier": StepSpec(ClassifierConfig),
    "vae": StepSpec(GeneratorConfig, needs_if={"classifier": lambda config: config.asks_readers}),
    "annotators": StepSpec(AnnotatorsConfig),
    "control": StepSpec(ControlConfig, ("classifier", "vae"), optional=("annotators",)),
    "probe": StepSpec(ProbeConfig, ("classifier", "vae")),
    "identify": StepSpec(IdentificationConfig, ("classifier", "vae")),
    "distill": StepSpec(DistillationConfig, ("identify",)),
    "map": StepSpec(MapConfig, ("identify",), optional=("distill",)),
    "stability": StepSpec(StabilityConfig, ("distill",)),
    "annotate": StepSpec(AnnotationConfig, ("distill",), optional=("annotators",), shares_machine=True),
    "correct": StepSpec(
        SweepConfig,
        ("distill",),
        takes_labels=True,
        may_grow=("correction.lambdas", "baseline_lambdas", "n_seeds", "rule", "max_loss"),
    ),
    "evaluate": StepSpec(EvaluationConfig, ("correct",), optional=("annotators",)),
    "report": StepSpec(ReportConfig, ("evaluate",), shares_machine=True),
}
"""Every step that can be a run, in the order of the method."""


def preset_values(preset: Preset, step: StepName) -> dict[str, Any]:
    """Return the fields of a step's config that a preset sets, with their values.

    Parameters
    ----------
    preset : Preset
    step : StepName
    """
    values: dict[StepName, dict[str, Any]] = {
        "classifier": {"training": preset.classifier_training.model_dump()},
        "vae": {
            **preset.vae.model_dump(include=set(GeneratorConfig.model_fields) & set(VaeConfig.model_fields)),
            "training": preset.vae_training.model_dump(),
        },
        "identify": preset.identification.model_dump(),
        "distill": preset.distillation.model_dump(),
        "annotate": {"labeling": preset.labeling.model_dump()},
        "correct": {
            "correction": preset.correction.model_dump(),
            "disagreement_threshold": preset.labeling.disagreement_threshold,
        },
    }
    return values.get(step, {})
