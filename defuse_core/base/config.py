"""One validated config for each step, and the presets of the paper.

Configs are frozen and refuse unknown fields. The comment beside a preset's value says where in the
paper it stands; decisions where the paper is silent or contradicts itself say so. Imports no torch,
so that a form or a command line can be checked at once.
"""

from __future__ import annotations

import math
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from defuse_core.base.limits import MAX_SAMPLES, MAX_TAU
from defuse_core.base.named import check_name, named_field

Precision = Literal["auto", "fp32", "bf16"]
Decoder = Literal["linear", "reshape"]

DECODER = (
    "How hidden units become a feature map: reshape adds no layer, as the paper's figures name none, and "
    "needs one transposed convolution more; linear puts a layer between them, for images of any size"
)

BLOCKS = (
    "Residual blocks at every size of encoder and decoder, with smooth activations and learned upsampling; 0 "
    "is the paper's plain stack"
)

PAPER_LAMBDAS: tuple[float, ...] = (
    *(1e-10, 1e-9, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1),
    *(1.0, 2.0, 5.0, 10.0, 20.0, 100.0, 1000.0),
)
"""The sweep of sections B.2 to B.4: 17 values."""


class Config(BaseModel):
    """A frozen config that refuses fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class VaeConfig(Config):
    """Shape of a β-VAE (figures 9–14)."""

    channels: int = Field(1, ge=1, description="Channels of an image")
    image_size: int = Field(28, ge=4, description="Height and width of an image, pixels")
    padding: int = Field(2, ge=0, description="Black pixels added on each side, cropped on decoding")
    hidden_channels: int = Field(32, ge=1, description="Channels of every hidden convolution")
    depth: int = Field(3, ge=1, le=6, description="Number of 4×4 convolutions of stride 2")
    hidden_units: int = Field(256, ge=1, description="Units of every fully connected layer")
    latent_dim: int = Field(10, ge=1, description="Dimensions of z")
    decoder: Decoder = Field("linear", description=DECODER)
    blocks: int = Field(0, ge=0, le=8, description=BLOCKS)

    @property
    def padded_size(self) -> int:
        """Height and width after padding, pixels."""
        return self.image_size + 2 * self.padding

    @property
    def map_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the feature map that the decoder's convolutions begin with."""
        if self.decoder == "linear":
            side = self.padded_size // 2**self.depth
            return self.hidden_channels, side, side
        side = self.padded_size // 2 ** (self.depth + 1)
        return self.hidden_units // max(side * side, 1), side, side

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        multiple = 2**self.depth
        if self.padded_size % multiple:
            extra = -self.image_size % multiple
            remedy = f"set padding={extra // 2}" if extra % 2 == 0 else "resize the images"
            raise ValueError(
                f"image_size + 2·padding must be a multiple of 2^depth = {multiple}, "
                f"got {self.image_size} + 2·{self.padding} = {self.padded_size}; {remedy}"
            )
        channels, side, _ = self.map_shape
        if self.decoder == "reshape" and (
            self.padded_size != side * 2 ** (self.depth + 1)
            or not channels
            or channels * side * side != self.hidden_units
        ):
            raise ValueError(
                f"{self.hidden_units} hidden units cannot be reshaped to a map that {self.depth + 1} "
                f"transposed convolutions enlarge to {self.padded_size} pixels; set decoder=linear"
            )
        return self


class VaeTraining(Config):
    """How a β-VAE is trained (sections B.2 to B.4)."""

    beta: float = Field(0.4, ge=0, description="β, weight of the KL term")
    kl_anneal_steps: int = Field(10_000, ge=0, description="Steps over which the KL weight rises to β")
    epochs: int = Field(200, ge=1, description="Passes over the training images")
    batch_size: int = Field(64, ge=1, description="Images a step")
    learning_rate: float = Field(1e-3, gt=0, description="Of Adam")
    patience: int | None = Field(None, ge=1, description="Epochs without a better loss; None never stops")
    precision: Precision = Field("auto", description="auto takes bf16 where the processor multiplies it")
    final_learning_rate: float | None = Field(
        None, gt=0, description="Cosine decay to this rate; None keeps the rate"
    )
    augmentation: Literal["none", "shift"] = Field(
        "none", description="Distortions of the training images; shift moves, scales and brightens a little"
    )
    consistency_weight: float = Field(
        0.0,
        ge=0,
        description="γ, weight of KL(f(x) ‖ f(decode(z))): how much the generator has to keep what the "
        "classifier predicts; 0 is the paper's",
    )


class NetworkTraining(Config):
    """How a network that classifies is trained."""

    optimizer: Literal["adadelta", "adam", "sgd"] = Field(
        "adadelta", description="sgd has Nesterov momentum .9 and weight decay 5e-4"
    )
    learning_rate: float = Field(1.0, gt=0, description="1 for adadelta, about .001 for adam, .1 for sgd")
    epochs: int = Field(5, ge=1, description="Passes over the training images")
    batch_size: int = Field(64, ge=1, description="Images a step")
    precision: Precision = Field("fp32", description="auto takes bf16 where the processor multiplies it")
    final_learning_rate: float | None = Field(
        None, gt=0, description="Cosine decay to this rate; None keeps the rate"
    )
    augmentation: Literal["none", "affine", "elastic"] = Field(
        "none", description="Distortions of the training images; elastic is affine and smooth displacement"
    )


class ClassifierTraining(NetworkTraining):
    """How the classifier is trained (sections B.2 to B.4)."""

    keep: Literal["last", "best"] = Field(
        "last",
        description="Weights of the last epoch, or of the one of best accuracy on the validation images "
        "(on the training images where there are none)",
    )


class AnnotatorTraining(NetworkTraining):
    """How simulated annotators are trained; the paper's were people."""

    optimizer: Literal["adadelta", "adam", "sgd"] = Field(
        "sgd", description="sgd has Nesterov momentum .9 and weight decay 5e-4"
    )
    learning_rate: float = Field(0.1, gt=0, description="1 for adadelta, about .001 for adam, .1 for sgd")
    epochs: int = Field(20, ge=1, description="Passes over the training images")
    batch_size: int = Field(128, ge=1, description="Images a step")
    precision: Precision = Field("auto", description="auto takes bf16 where the processor multiplies it")
    final_learning_rate: float | None = Field(
        1e-4, gt=0, description="Cosine decay to this rate; None keeps the rate"
    )
    augmentation: Literal["none", "affine", "elastic"] = Field(
        "affine", description="Distortions of the training images; affine suits photographs"
    )


class IdentificationConfig(Config):
    """Algorithm 1; raw noise is the paper's."""

    n_perturbations: int = Field(500, ge=1, description="Q, perturbed codes an image")
    noise_a: float = Field(50.0, gt=0, description="a of the Beta noise; a and b large: little jitter")
    noise_b: float = Field(50.0, gt=0, description="b of the Beta noise; its mean is a / (a + b)")
    centred: bool = Field(False, description="Subtract the noise's mean a / (a + b)")
    noise_scale: float = Field(1.0, gt=0, description="Multiplies the noise")
    max_mistakes_per_image: int | None = Field(
        100, ge=1, description="Keep those of smallest ‖ε‖₂; None keeps all"
    )
    max_images: int | None = Field(
        None,
        ge=1,
        description="Search around a sample of so many training images, stratified; None takes all",
    )
    batch_size: int = Field(512, ge=1, description="Images decoded and classified at once")
    precision: Precision = Field("auto", description="bf16 finds the candidates, fp32 decides them")


FITTERS: dict[str, str] = {"dirichlet_process": "defuse_core.method.distillation:mixture_iterations"}
"""Fits of a mixture to codes: each takes latents, config and seed, and is a `Loop` of a `Mixture`."""


class DistillationConfig(Config):
    """The Dirichlet-process Gaussian mixture (section 3.2)."""

    method: str = named_field(FITTERS, "dirichlet_process", "How the codes are clustered")
    n_components: int = Field(100, ge=1, description="K, at most this many components")
    min_weight: float = Field(0.01, ge=0, lt=1, description="ε, regions weigh more than this")
    max_codes: int = Field(50_000, ge=2, description="A seeded sample of more codes than this")
    max_iter: int = Field(100, ge=1, description="Iterations of variational inference")

    @field_validator("method")
    @classmethod
    def _is_known(cls, name: str) -> str:
        return check_name(name, FITTERS)


class LabelingConfig(Config):
    """Algorithm 3; ten images and ρ are of section 4.1."""

    n_samples: int = Field(10, ge=1, le=MAX_SAMPLES, description="Q of algorithm 3, images a region")
    tau: float = Field(0.5, gt=0, le=MAX_TAU, description="τ, multiplies the covariance of a region")
    disagreement_threshold: float = Field(0.5, ge=0, lt=1, description="ρ")


class CorrectionConfig(Config):
    """Fine-tuning on L(D) + λ·L(D_f) (section 3.3)."""

    lambdas: tuple[float, ...] = Field(PAPER_LAMBDAS, min_length=1, description="λ, weights of the regions")
    epochs: int = Field(3, ge=1, description="Passes over D and D_f for each λ; the best one is kept")
    max_images: int | None = Field(
        None, ge=1, description="D is a sample of so many training images, stratified; None takes all"
    )
    batch_size: int = Field(64, ge=1, description="Images of D a step; D_f is spread over the steps")
    optimizer: Literal["adam", "adadelta", "sgd"] = Field(
        "adam", description="The paper's is adam; sgd has Nesterov momentum .9 and weight decay 5e-4"
    )
    learning_rate: float = Field(1e-3, gt=0, description="About .001 for adam, .01 for sgd, 1 for adadelta")
    instances_per_region: int = Field(256, ge=1, description="Draws to tune on, and as many to test on")
    held_out_share: float = Field(0.0, ge=0, lt=1, description="Share of failure regions never tuned on")
    precision: Precision = "auto"

    @model_validator(mode="after")
    def _lambdas(self) -> Self:
        if not all(0 <= lam < math.inf for lam in self.lambdas) or len(set(self.lambdas)) < len(self.lambdas):
            raise ValueError(f"lambdas must be distinct and 0 or more, got {self.lambdas}")
        return self


class Preset(Config):
    """All steps for one data set."""

    vae: VaeConfig
    vae_training: VaeTraining
    classifier_training: ClassifierTraining
    identification: IdentificationConfig
    distillation: DistillationConfig
    labeling: LabelingConfig
    correction: CorrectionConfig


_DEMO_LAMBDAS = (1e-10, 1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 1000.0)  # nine of the paper's 17

PRESETS: dict[str, Preset] = {
    "mnist": Preset(
        vae=VaeConfig(decoder="reshape"),  # figures 9, 10; 28×28 padded to 32×32
        vae_training=VaeTraining(  # B.2; β is printed as 4, too: digits blur at 4
            epochs=800, batch_size=2048, beta=0.4, kl_anneal_steps=500
        ),
        classifier_training=ClassifierTraining(),  # B.2: Adadelta at 1, 5 epochs, batch 64
        identification=IdentificationConfig(),  # B.2: a = b = 50, Q = 500, ψ at most 100: read as of an image
        distillation=DistillationConfig(),  # 4.1: K = 100, weight > .01, 50,000 codes
        labeling=LabelingConfig(),  # 4.1: τ = .5, ρ = .5, ten images
        correction=CorrectionConfig(batch_size=256),  # B.2: 17 λ, 3 epochs, 256 + 256 draws
    ),
    "svhn": Preset(
        vae=VaeConfig(
            channels=3, image_size=32, padding=0, hidden_channels=64, decoder="reshape"
        ),  # figures 13, 14
        vae_training=VaeTraining(epochs=400, batch_size=2048, beta=4.0, kl_anneal_steps=5_000),  # B.4
        classifier_training=ClassifierTraining(  # B.4
            optimizer="adam", learning_rate=1e-3, epochs=10, batch_size=2048, keep="best"
        ),
        identification=IdentificationConfig(  # B.4
            n_perturbations=100, noise_a=75, noise_b=75, max_mistakes_per_image=10
        ),
        distillation=DistillationConfig(),  # B.4
        labeling=LabelingConfig(tau=0.01),  # B.4
        correction=CorrectionConfig(epochs=5, batch_size=2048),  # B.4
    ),
    "gtsrb": Preset(
        vae=VaeConfig(
            channels=3,
            image_size=128,
            padding=0,
            hidden_channels=64,
            depth=4,
            latent_dim=15,
            decoder="reshape",
        ),  # figures 11, 12; figure 11 prints one convolution, figure 12 five: load with image_size=128
        vae_training=VaeTraining(epochs=800, batch_size=2048, beta=4.0, kl_anneal_steps=500),  # B.3
        classifier_training=ClassifierTraining(  # B.3
            optimizer="adam", learning_rate=1e-3, epochs=20, batch_size=256, keep="best"
        ),
        identification=IdentificationConfig(  # B.3, which names no cap
            n_perturbations=100, noise_a=75, noise_b=75, max_mistakes_per_image=None
        ),
        distillation=DistillationConfig(),  # B.3
        labeling=LabelingConfig(tau=0.01),  # B.3
        correction=CorrectionConfig(epochs=5, batch_size=256),  # B.3
    ),
    "demo": Preset(  # MNIST's, shortened for 4,000 digits on two cores
        vae=VaeConfig(),
        vae_training=VaeTraining(epochs=200, beta=0.4, kl_anneal_steps=2_000),
        classifier_training=ClassifierTraining(),
        identification=IdentificationConfig(n_perturbations=100, max_mistakes_per_image=20),
        distillation=DistillationConfig(max_codes=15_000),
        labeling=LabelingConfig(),
        correction=CorrectionConfig(lambdas=_DEMO_LAMBDAS),
    ),
    "photographs": Preset(  # beyond the paper: colour images of 32 to 128 pixels
        vae=VaeConfig(channels=3, image_size=32, padding=0, hidden_channels=64, latent_dim=32, blocks=1),
        vae_training=VaeTraining(
            epochs=40,
            beta=0.5,
            kl_anneal_steps=500,
            final_learning_rate=1e-5,
            augmentation="shift",
            consistency_weight=50.0,
        ),
        classifier_training=ClassifierTraining(
            optimizer="adam",
            learning_rate=1e-3,
            epochs=20,
            batch_size=128,
            keep="best",
            final_learning_rate=1e-5,
            augmentation="affine",
        ),
        identification=IdentificationConfig(
            n_perturbations=100, centred=True, noise_scale=4.0, max_mistakes_per_image=20
        ),
        distillation=DistillationConfig(max_codes=20_000),
        labeling=LabelingConfig(),
        correction=CorrectionConfig(epochs=5, batch_size=256, learning_rate=1e-4),
    ),
}
"""The paper's settings by data set, the demo's, and those for photographs."""
