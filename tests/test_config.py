"""Configs: frozen, strict, and the numbers of the paper."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ValidationError

from defuse_core.config import (
    PAPER_LAMBDAS,
    PRESETS,
    ClassifierTraining,
    CorrectionConfig,
    DistillationConfig,
    IdentificationConfig,
    LabelingConfig,
    Preset,
    VaeConfig,
    VaeTraining,
)

STEPS: tuple[type[BaseModel], ...] = (
    VaeConfig,
    VaeTraining,
    ClassifierTraining,
    IdentificationConfig,
    DistillationConfig,
    LabelingConfig,
    CorrectionConfig,
)
DATA_SETS = ("mnist", "svhn", "gtsrb")


@pytest.mark.parametrize("step", STEPS)
def test_a_config_is_frozen(step: type[BaseModel]) -> None:
    config = step()
    before = config.model_dump()
    for field in step.model_fields:
        with pytest.raises(ValidationError, match="frozen"):
            setattr(config, field, 1)
    assert config.model_dump() == before


@pytest.mark.parametrize("step", STEPS)
def test_a_config_refuses_a_field_it_does_not_know(step: type[BaseModel]) -> None:
    with pytest.raises(ValidationError, match=r"epocs\s+Extra inputs are not permitted"):
        step.model_validate({"epocs": 3})


def test_a_preset_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        PRESETS["mnist"].vae = VaeConfig()


@pytest.mark.parametrize("step", STEPS)
def test_a_config_survives_json(step: type[BaseModel]) -> None:
    assert step.model_validate_json(step().model_dump_json()) == step()


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_json(name: str) -> None:
    preset = PRESETS[name]
    assert Preset.model_validate_json(preset.model_dump_json()) == preset


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("vae.channels", (1, 3, 3)),
        ("vae.padded_size", (32, 32, 128)),
        ("vae.hidden_channels", (32, 64, 64)),
        ("vae.depth", (3, 3, 4)),
        ("vae.hidden_units", (256, 256, 256)),
        ("vae.latent_dim", (10, 10, 15)),
        ("vae_training.beta", (0.4, 4.0, 4.0)),
        ("vae_training.learning_rate", (1e-3, 1e-3, 1e-3)),
        ("classifier_training.optimizer", ("adadelta", "adam", "adam")),
        ("identification.n_perturbations", (500, 100, 100)),
        ("identification.noise_a", (50.0, 75.0, 75.0)),
        ("identification.noise_b", (50.0, 75.0, 75.0)),
        ("identification.max_mistakes_per_image", (100, 10, None)),
        ("identification.centred", (False, False, False)),
        ("identification.noise_scale", (1.0, 1.0, 1.0)),
        ("distillation.n_components", (100, 100, 100)),
        ("distillation.min_weight", (0.01, 0.01, 0.01)),
        ("distillation.max_codes", (50_000, 50_000, 50_000)),
        ("labeling.n_samples", (10, 10, 10)),
        ("labeling.tau", (0.5, 0.01, 0.01)),
        ("labeling.disagreement_threshold", (0.5, 0.5, 0.5)),
        ("correction.lambdas", (PAPER_LAMBDAS,) * 3),
        ("correction.epochs", (3, 5, 5)),
        ("correction.learning_rate", (1e-3, 1e-3, 1e-3)),
        ("correction.instances_per_region", (256, 256, 256)),
    ],
)
def test_presets_are_those_of_the_paper(path: str, expected: tuple[object, ...]) -> None:
    step, field = path.split(".")
    assert tuple(getattr(getattr(PRESETS[name], step), field) for name in DATA_SETS) == expected


def test_mnist_is_padded_from_28_to_32() -> None:
    assert (PRESETS["mnist"].vae.image_size, PRESETS["mnist"].vae.padding) == (28, 2)


def test_the_sweep_has_the_17_lambdas_of_the_paper() -> None:
    powers = [10.0**exponent for exponent in range(-10, 0)]
    assert list(PAPER_LAMBDAS) == pytest.approx([*powers, 1, 2, 5, 10, 20, 100, 1000], rel=1e-12)
    assert len(PAPER_LAMBDAS) == 17


@pytest.mark.parametrize(
    ("step", "field", "value"),
    [
        (VaeConfig, "channels", 0),
        (VaeConfig, "depth", 0),
        (VaeConfig, "depth", 7),
        (VaeConfig, "padding", -1),
        (VaeConfig, "latent_dim", 0),
        (VaeTraining, "beta", -0.1),
        (VaeTraining, "beta", float("nan")),
        (VaeTraining, "beta", float("inf")),
        (VaeTraining, "kl_anneal_steps", -1),
        (VaeTraining, "epochs", 0),
        (VaeTraining, "patience", 0),
        (VaeTraining, "precision", "fp16"),
        (ClassifierTraining, "optimizer", "rmsprop"),
        (ClassifierTraining, "learning_rate", 0.0),
        (ClassifierTraining, "learning_rate", float("inf")),
        (ClassifierTraining, "final_learning_rate", 0.0),
        (ClassifierTraining, "augmentation", "flip"),
        (ClassifierTraining, "batch_size", 0),
        (IdentificationConfig, "n_perturbations", 0),
        (IdentificationConfig, "n_perturbations", 1.5),
        (IdentificationConfig, "noise_a", 0.0),
        (IdentificationConfig, "noise_b", -1.0),
        (IdentificationConfig, "noise_scale", 0.0),
        (IdentificationConfig, "max_mistakes_per_image", 0),
        (DistillationConfig, "n_components", 0),
        (DistillationConfig, "min_weight", 1.0),
        (DistillationConfig, "min_weight", -0.01),
        (DistillationConfig, "max_codes", 1),
        (LabelingConfig, "n_samples", 0),
        (LabelingConfig, "tau", 0.0),
        (LabelingConfig, "tau", float("nan")),
        (LabelingConfig, "disagreement_threshold", 1.0),
        (CorrectionConfig, "lambdas", ()),
        (CorrectionConfig, "lambdas", (0.1, -1.0)),
        (CorrectionConfig, "lambdas", (0.1, 0.1)),
        (CorrectionConfig, "lambdas", (float("nan"),)),
        (CorrectionConfig, "lambdas", (float("inf"),)),
        (CorrectionConfig, "epochs", 0),
        (CorrectionConfig, "instances_per_region", 0),
        (CorrectionConfig, "held_out_share", 1.0),
    ],
)
def test_a_bad_value_is_an_error_that_names_the_field(
    step: type[BaseModel], field: str, value: object
) -> None:
    with pytest.raises(ValidationError, match=field):
        step.model_validate({field: value})


@pytest.mark.parametrize(
    ("image_size", "depth", "remedy"),
    [(28, 3, "set padding=2"), (20, 4, "set padding=6"), (27, 3, "resize the images")],
)
def test_padding_that_does_not_divide_is_refused_with_the_padding_to_set(
    image_size: int, depth: int, remedy: str
) -> None:
    with pytest.raises(ValidationError, match=rf"multiple of 2\^depth = {2**depth}.*{remedy}"):
        VaeConfig(image_size=image_size, depth=depth, padding=0)
