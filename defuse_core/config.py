"""One validated config a step, and the presets of the paper.

Configs are frozen and refuse unknown fields. The comment beside a preset's value says where in the
paper it stands; decisions where the paper is silent or contradicts itself say so. Imports no torch,
so that a form or a command line can be checked at once.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Precision = Literal["auto", "fp32", "bf16"]

PAPER_LAMBDAS: tuple[float, ...] = (
    *(1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1),
    *(1.0, 2.0, 5.0, 10.0, 20.0, 100.0, 1000.0),
)
"""The sweep of section B.4: 17 values."""


class _Config(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class VaeConfig(_Config):
    """Shape of a β-VAE (figures 9–14)."""

    channels: int = Field(1, ge=1, description="Channels of an image")
    image_size: int = Field(28, ge=4, description="Height and width of an image, pixels")
    padding: int = Field(2, ge=0, description="Black pixels added on each side, cropped on decoding")
    hidden_channels: int = Field(32, ge=1, description="Channels of every hidden convolution")
    depth: int = Field(3, ge=1, le=6, description="Number of 4×4 convolutions of stride 2")
    hidden_units: int = Field(256, ge=1, description="Units of every fully connected layer")
    latent_dim: int = Field(10, ge=1, description="Dimensions of z")

    @property
    def padded_size(self) -> int:
        """Height and width after padding, pixels."""
        return self.image_size + 2 * self.padding

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        multiple = 2**self.depth
        if self.padded_size % multiple:
            wanted = -(-self.image_size // multiple) * multiple
            extra = wanted - self.image_size
            remedy = f"set padding={extra // 2}" if extra % 2 == 0 else "resize the images"
            raise ValueError(
                f"image_size + 2·padding must be a multiple of 2^depth = {multiple}, "
                f"got {self.image_size} + 2·{self.padding} = {self.padded_size}; {remedy}"
            )
        return self


class VaeTraining(_Config):
    """How a β-VAE is trained (section B.3)."""

    beta: float = Field(0.4, ge=0, description="β, weight of the KL term")
    kl_anneal_steps: int = Field(10_000, ge=0, description="Steps over which the KL weight rises to β")
    epochs: int = Field(200, ge=1)
    batch_size: int = Field(64, ge=1)
    learning_rate: float = Field(1e-3, gt=0)
    patience: int | None = Field(None, ge=1, description="Epochs without a better loss; None never stops")
    precision: Precision = "auto"


class ClassifierTraining(_Config):
    """How a classifier is trained (section B.2)."""

    optimizer: Literal["adadelta", "adam", "sgd"] = "adadelta"
    learning_rate: float = Field(1.0, gt=0)
    epochs: int = Field(5, ge=1)
    batch_size: int = Field(64, ge=1)
    precision: Precision = "fp32"
    final_learning_rate: float | None = Field(
        None, gt=0, description="Cosine decay to this rate; None keeps the rate"
    )
    augmentation: Literal["none", "affine", "elastic"] = "none"


class IdentificationConfig(_Config):
    """Algorithm 1; raw noise is the paper's."""

    n_perturbations: int = Field(500, ge=1, description="Q, perturbed codes an image")
    noise_a: float = Field(50.0, gt=0)
    noise_b: float = Field(50.0, gt=0)
    centred: bool = Field(False, description="Subtract the noise's mean a / (a + b)")
    noise_scale: float = Field(1.0, gt=0, description="Multiplies the noise")
    max_mistakes_per_image: int | None = Field(
        100, ge=1, description="Keep those of smallest ‖ε‖₂; None keeps all"
    )
    batch_size: int = Field(512, ge=1, description="Images decoded and classified at once")
    precision: Precision = "auto"


class DistillationConfig(_Config):
    """The Dirichlet-process Gaussian mixture (section 3.2)."""

    n_components: int = Field(100, ge=1, description="K, at most this many components")
    min_weight: float = Field(0.01, ge=0, lt=1, description="ε, regions weigh more than this")
    max_codes: int = Field(50_000, ge=2, description="A seeded sample of more codes than this")
    max_iter: int = Field(100, ge=1, description="Iterations of variational inference")


class LabelingConfig(_Config):
    """Algorithm 3."""

    n_samples: int = Field(10, ge=1, description="Q of algorithm 3, images a region")
    tau: float = Field(0.5, gt=0, description="τ, multiplies the covariance of a region")
    disagreement_threshold: float = Field(0.5, ge=0, lt=1, description="ρ")


class CorrectionConfig(_Config):
    """Fine-tuning on L(D) + λ·L(D_f) (section 3.3)."""

    lambdas: tuple[float, ...] = Field(PAPER_LAMBDAS, min_length=1)
    epochs: int = Field(3, ge=1)
    batch_size: int = Field(64, ge=1, description="Images of D a step; D_f is spread over the steps")
    learning_rate: float = Field(1e-3, gt=0)
    instances_per_region: int = Field(256, ge=1, description="Draws to tune on, and as many to test on")
    held_out_share: float = Field(0.0, ge=0, lt=1, description="Share of failure regions never tuned on")
    precision: Precision = "auto"

    @model_validator(mode="after")
    def _lambdas(self) -> Self:
        if not all(0 <= lam < math.inf for lam in self.lambdas) or len(set(self.lambdas)) < len(self.lambdas):
            raise ValueError(f"lambdas must be distinct and 0 or more, got {self.lambdas}")
        return self


class ClassifierConfig(_Config):
    """Train a classifier on the project's data, or bring one."""

    architecture: str | None = Field(
        None, description="Network; by default mnist_cnn for 28×28 images, else resnet_small"
    )
    weights: str | None = Field(
        None, description="shipped:<name> or blob:<sha256>; by default the network is trained"
    )
    mean: tuple[float, ...] | None = Field(
        None, description="One value a channel, of pixels in [0, 1]; by default that of the training images"
    )
    std: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(
        None, description="One value a channel; by default that of the training images"
    )
    image_size: int | None = Field(
        None, ge=1, description="Resize to this many pixels, square; by default as the images are"
    )
    training: ClassifierTraining = ClassifierTraining()

    @model_validator(mode="after")
    def _channels(self) -> Self:
        given = [values for values in (self.mean, self.std) if values is not None]
        if any(len(values) not in (1, 3) for values in given) or len({len(v) for v in given}) > 1:
            raise ValueError(f"mean and std need 1 or 3 values each, got {self.mean} and {self.std}")
        return self


class GeneratorConfig(_Config):
    """Train a β-VAE on the project's training images, whose size and channels it takes, or bring one."""

    weights: str | None = Field(
        None, description="shipped:<name> or blob:<sha256>; by default the generator is trained"
    )
    latent_dim: int = Field(10, ge=1, description="Dimensions of z")
    hidden_channels: int = Field(32, ge=1, description="Channels of every hidden convolution")
    hidden_units: int = Field(256, ge=1, description="Units of every fully connected layer")
    depth: int = Field(3, ge=1, le=6, description="Number of 4×4 convolutions of stride 2")
    training: VaeTraining = VaeTraining()


class MapConfig(_Config):
    """Training codes and mistakes in the plane (figure 2)."""

    method: Literal["tsne", "umap", "pca"] = "tsne"
    n_codes: int = Field(10_000, ge=4, description="Training codes, a sample stratified by class")
    n_mistakes: int = Field(10_000, ge=0, description="Mistakes, a seeded sample")
    perplexity: float = Field(30.0, gt=0, description="Of t-SNE")
    n_neighbors: int = Field(15, ge=2, description="Of UMAP")


class DrawConfig(_Config):
    """The frozen draws of every region at many τ."""

    taus: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        tuple(round(0.1 * step, 1) for step in range(21)), min_length=1, description="Values of τ"
    )
    n_draws: int = Field(64, ge=1, description="Draws a region, the same at every τ")
    region_ids: tuple[int, ...] | None = Field(None, description="By default all regions")


class AnnotationConfig(_Config):
    """Simulated annotators in place of people (algorithm 3); works on digits only."""

    labeling: LabelingConfig = LabelingConfig()
    min_probability: float = Field(
        0.5, ge=0, le=1, description='An annotator less sure than this says "none of the above"'
    )
    n_single: int | None = Field(
        None, ge=0, description="Single mistakes to label for the baseline; by default as many as draws"
    )


class SweepConfig(_Config):
    """Correction over all λ, of the regions and of the baseline."""

    correction: CorrectionConfig = CorrectionConfig()
    disagreement_threshold: float = Field(0.5, ge=0, lt=1, description="ρ, over which a region is a failure")
    baseline_lambdas: tuple[Annotated[float, Field(ge=0)], ...] = Field(
        (0.1, 1.0, 10.0), description="λ of the baseline; none leaves it out"
    )
    rule: Literal["paper", "regions"] = Field("regions", description="How λ is chosen")
    max_loss: float = Field(0.01, ge=0, le=1, description="Of selection accuracy, for rule regions")
    last_annotation: int | None = Field(
        None, ge=0, description="Labels up to this one count; by default those there are at the start"
    )


class EvaluationConfig(_Config):
    """Evidence: what the correction changed."""


class ReportConfig(_Config):
    """Figures and tables."""

    n_regions: int = Field(3, ge=1, description="Regions shown before and after")


class Preset(_Config):
    """All steps for one data set."""

    vae: VaeConfig
    vae_training: VaeTraining
    classifier_training: ClassifierTraining
    identification: IdentificationConfig
    distillation: DistillationConfig
    labeling: LabelingConfig
    correction: CorrectionConfig


PRESETS: dict[str, Preset] = {
    "mnist": Preset(
        vae=VaeConfig(),  # figures 9, 10; 28×28 padded to 32×32
        vae_training=VaeTraining(epochs=800, beta=0.4),  # B.3; stated as 4 and .4: digits blur at 4
        classifier_training=ClassifierTraining(),  # B.2: Adadelta, 5 epochs
        identification=IdentificationConfig(),  # B.4: a = b = 50, Q = 500, cap 100
        distillation=DistillationConfig(),  # 4.1: K = 100, weight > .01
        labeling=LabelingConfig(),  # 4.1: τ = .5, ρ = .5, ten images
        correction=CorrectionConfig(),  # 4.3: 17 λ, 3 epochs, 256 + 256 draws
    ),
    "svhn": Preset(
        vae=VaeConfig(channels=3, image_size=32, padding=0, hidden_channels=64),  # figures 11, 12
        vae_training=VaeTraining(epochs=800, beta=4.0),
        classifier_training=ClassifierTraining(optimizer="adam", learning_rate=1e-3),
        identification=IdentificationConfig(
            n_perturbations=100, noise_a=75, noise_b=75, max_mistakes_per_image=10
        ),
        distillation=DistillationConfig(),
        labeling=LabelingConfig(tau=0.01),
        correction=CorrectionConfig(epochs=5),
    ),
    "gtsrb": Preset(
        vae=VaeConfig(
            channels=3, image_size=128, padding=0, hidden_channels=64, depth=4, latent_dim=15
        ),  # figures 13, 14: one more transposed convolution; load the signs with image_size=128
        vae_training=VaeTraining(epochs=800, beta=4.0),
        classifier_training=ClassifierTraining(optimizer="adam", learning_rate=1e-3),
        identification=IdentificationConfig(
            n_perturbations=100, noise_a=75, noise_b=75, max_mistakes_per_image=None
        ),
        distillation=DistillationConfig(),
        labeling=LabelingConfig(tau=0.01),
        correction=CorrectionConfig(epochs=5),
    ),
    "demo": Preset(  # MNIST's, shortened for 4,000 digits on two cores
        vae=VaeConfig(),
        vae_training=VaeTraining(epochs=200, beta=0.4, kl_anneal_steps=2_000),
        classifier_training=ClassifierTraining(),
        identification=IdentificationConfig(n_perturbations=100, max_mistakes_per_image=20),
        distillation=DistillationConfig(max_codes=15_000),
        labeling=LabelingConfig(),
        correction=CorrectionConfig(),
    ),
}
"""The paper's settings by data set, and the demo's."""


StepName = Literal[
    "classifier", "vae", "identify", "distill", "map", "draw", "annotate", "correct", "evaluate", "report"
]


@dataclass(frozen=True)
class StepSpec:
    """What can be said of a step without importing torch.

    Attributes
    ----------
    config : type
    needs : tuple of str
        Steps whose runs it stands on; it stands on what those stand on, too.
    optional : tuple of str
        Steps whose runs it takes in where there are any on the same ground.
    shares_machine : bool
        Whether it is light enough to run beside another.
    """

    config: type[_Config]
    needs: tuple[StepName, ...] = ()
    optional: tuple[StepName, ...] = ()
    shares_machine: bool = False


STEPS: dict[StepName, StepSpec] = {
    "classifier": StepSpec(ClassifierConfig),
    "vae": StepSpec(GeneratorConfig),
    "identify": StepSpec(IdentificationConfig, ("classifier", "vae")),
    "distill": StepSpec(DistillationConfig, ("identify",)),
    "map": StepSpec(MapConfig, ("identify",), optional=("distill",)),
    "draw": StepSpec(DrawConfig, ("distill",), shares_machine=True),
    "annotate": StepSpec(AnnotationConfig, ("distill",), shares_machine=True),
    "correct": StepSpec(SweepConfig, ("distill",)),
    "evaluate": StepSpec(EvaluationConfig, ("correct",)),
    "report": StepSpec(ReportConfig, ("evaluate",), shares_machine=True),
}
"""Every step that can be a run, in the order of the method."""


def preset_values(preset: Preset, step: StepName) -> dict[str, Any]:
    """Return the fields of a step's config that a preset sets."""
    values: dict[StepName, dict[str, Any]] = {
        "classifier": {"training": preset.classifier_training.model_dump()},
        "vae": {
            **preset.vae.model_dump(include={"latent_dim", "hidden_channels", "hidden_units", "depth"}),
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


def config_within(annotation: Any) -> type[BaseModel] | None:
    """Return the config that a field of this type holds, if it holds one."""
    options = get_args(annotation) or (annotation,)
    return next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)


class ConfigError(ValueError):
    """A config that a step refuses; the message names the fields and what they take."""


def check_config(step: str, values: Mapping[str, Any]) -> BaseModel:
    """Validate the config of a step.

    Raises
    ------
    ConfigError
        If the step is unknown or a value is refused, in words for people: the field, what it
        takes, and what came.

    Examples
    --------
    >>> check_config("identify", {"noise_a": -1})
    Traceback (most recent call last):
    defuse_core.config.ConfigError: identify: noise_a should be greater than 0, got -1
    """
    if step not in STEPS:
        raise ConfigError(f"step must be one of {', '.join(STEPS)}, got {step!r}")
    model = STEPS[step].config
    try:
        return model.model_validate(dict(values))
    except ValidationError as error:
        told = "; ".join(_tell(model, dict(problem)) for problem in error.errors())
        raise ConfigError(f"{step}: {told}") from None


def _tell(model: type[BaseModel], problem: dict[str, Any]) -> str:
    """One problem of pydantic's in words."""
    field = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        for part in problem["loc"][:-1]:
            model = config_within(model.model_fields[part].annotation) or model
        near = difflib.get_close_matches(str(problem["loc"][-1]), model.model_fields, n=1)
        known = ", ".join(model.model_fields) or "none"
        return f"{field} is not a field; " + (f"did you mean {near[0]}?" if near else f"there are: {known}")
    if problem["type"] == "value_error":
        return f"{field + ': ' if field else ''}{problem['ctx']['error']}"
    message = problem["msg"].removeprefix("Input ")
    return f"{field} {message[:1].lower()}{message[1:]}, got {problem['input']!r}"
