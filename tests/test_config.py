"""Configs: frozen, strict, and the numbers of the paper."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from defuse_core.base.config import (
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
from defuse_core.method.vae import vae_config_for
from defuse_core.workspace import configs as step_configs
from defuse_core.workspace.config_checks import ConfigError, check_config
from defuse_core.workspace.configs import StepName, SweepConfig, preset_values
from tests.properties import tried

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


PAPER_SETTINGS: list[tuple[str, str, tuple[object, ...]]] = [
    # where the paper says so, for MNIST, SVHN and the signs; then the field, and what it says
    ("4.1; MNIST padded from 28 to 32", "vae.padded_size", (32, 32, 128)),
    ("figures 9, 13, 11", "vae.hidden_channels", (32, 64, 64)),
    ("figures 9, 13; 12 less one", "vae.depth", (3, 3, 4)),
    ("figures 9 to 14", "vae.hidden_units", (256, 256, 256)),
    ("4.1, B.2, B.3, B.4", "vae.latent_dim", (10, 10, 15)),
    ("figures 10, 14, 12 name no layer between", "vae.decoder", ("reshape", "reshape", "reshape")),
    ("B.2 (and 4), B.4, B.3", "vae_training.beta", (0.4, 4.0, 4.0)),
    ("B.2, B.4, B.3", "vae_training.epochs", (800, 400, 800)),
    ("B.2, B.4, B.3", "vae_training.batch_size", (2048, 2048, 2048)),
    ("B.2, B.4, B.3", "vae_training.learning_rate", (1e-3, 1e-3, 1e-3)),
    ("B.2, B.4, B.3", "vae_training.kl_anneal_steps", (500, 5000, 500)),
    ("B.2, B.4, B.3", "classifier_training.optimizer", ("adadelta", "adam", "adam")),
    ("B.2, B.4, B.3", "classifier_training.learning_rate", (1.0, 1e-3, 1e-3)),
    ("B.2, B.4, B.3", "classifier_training.epochs", (5, 10, 20)),
    ("B.2, B.4, B.3", "classifier_training.batch_size", (64, 2048, 256)),
    ("B.2 names no choice; B.4, B.3", "classifier_training.keep", ("last", "best", "best")),
    ("B.2, B.4, B.3", "identification.n_perturbations", (500, 100, 100)),
    ("4.1, B.2, B.4, B.3", "identification.noise_a", (50.0, 75.0, 75.0)),
    ("4.1, B.2, B.4, B.3", "identification.noise_b", (50.0, 75.0, 75.0)),
    ("B.2, B.4; B.3 names none", "identification.max_mistakes_per_image", (100, 10, None)),
    ("algorithm 1", "identification.centred", (False, False, False)),
    ("algorithm 1", "identification.noise_scale", (1.0, 1.0, 1.0)),
    ("3.1, B.2: all training images", "identification.max_images", (None, None, None)),
    ("4.1, B.2, B.4, B.3", "distillation.n_components", (100, 100, 100)),
    ("4.1, B.2, B.4, B.3", "distillation.min_weight", (0.01, 0.01, 0.01)),
    ("4.1", "distillation.max_codes", (50_000, 50_000, 50_000)),
    ("4.1", "labeling.n_samples", (10, 10, 10)),
    ("4.1, B.2, B.4, B.3", "labeling.tau", (0.5, 0.01, 0.01)),
    ("4.1", "labeling.disagreement_threshold", (0.5, 0.5, 0.5)),
    ("B.2, B.4, B.3", "correction.lambdas", (PAPER_LAMBDAS,) * 3),
    ("4.1, B.2, B.4, B.3", "correction.epochs", (3, 5, 5)),
    ("B.2, B.4, B.3", "correction.batch_size", (256, 2048, 256)),
    ("B.2, B.4, B.3", "correction.optimizer", ("adam", "adam", "adam")),
    ("B.2, B.4, B.3", "correction.learning_rate", (1e-3, 1e-3, 1e-3)),
    ("4.1", "correction.instances_per_region", (256, 256, 256)),
]


@pytest.mark.parametrize(("section", "path", "expected"), PAPER_SETTINGS)
def test_presets_are_those_of_the_paper(section: str, path: str, expected: tuple[object, ...]) -> None:
    step, field = path.split(".")
    found = tuple(getattr(getattr(PRESETS[name], step), field) for name in DATA_SETS)
    assert found == expected, section


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


RUNS = step_configs.STEPS  # the steps that can be a run; STEPS here are the configs of the paper


def test_every_step_is_known_and_stands_on_steps_before_it() -> None:
    assert tuple(RUNS) == get_args(StepName)
    for index, spec in enumerate(RUNS.values()):
        assert {*spec.needs, *spec.needs_if, *spec.optional} <= set(list(RUNS)[:index])


@pytest.mark.parametrize("step", RUNS)
def test_no_values_are_the_defaults_and_survive_json(step: StepName) -> None:
    config = check_config(step, {})
    assert config == RUNS[step].config()
    assert check_config(step, config.model_dump(mode="json")) == config


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("step", RUNS)
def test_what_a_preset_sets_is_taken_by_every_step(step: StepName, preset: str) -> None:
    values = preset_values(PRESETS[preset], step)
    config = check_config(step, values)
    dumped = config.model_dump()
    assert {name: dumped[name] for name in values} == values
    assert check_config(step, config.model_dump(mode="json")) == config


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_reaches_the_steps_with_nothing_left_out(name: str) -> None:
    preset = PRESETS[name]
    for step, path, expected in (
        ("classifier", "training", preset.classifier_training),
        ("vae", "latent_dim", preset.vae.latent_dim),
        ("vae", "hidden_channels", preset.vae.hidden_channels),
        ("vae", "hidden_units", preset.vae.hidden_units),
        ("vae", "depth", preset.vae.depth),
        ("vae", "training", preset.vae_training),
        ("annotate", "labeling", preset.labeling),
        ("correct", "correction", preset.correction),
        ("correct", "disagreement_threshold", preset.labeling.disagreement_threshold),
        ("identify", "", preset.identification),
        ("distill", "", preset.distillation),
    ):
        config = check_config(step, preset_values(preset, step))
        assert (getattr(config, path) if path else config) == expected, (step, path)
    shape = preset_values(preset, "vae")
    assert shape.pop("training")
    size = preset.vae.image_size
    assert vae_config_for((preset.vae.channels, size, size), **shape) == preset.vae, "the data give the rest"
    without = [
        "inspect", "annotators", "control", "probe", "map", "stability", "evaluate", "report",
    ]  # fmt: skip
    assert [step for step in RUNS if not preset_values(preset, step)] == without


@pytest.mark.parametrize(
    ("step", "values", "told"),
    [
        ("identify", {"noise_a": -1}, "identify: noise_a should be greater than 0, got -1"),
        ("identify", {"noise_a": "nan"}, "identify: noise_a should be a finite number, got 'nan'"),
        ("identify", {"n_perturbations": 1.5}, "identify: n_perturbations should be a valid integer, "),
        ("identify", {"n_perturbations": None}, "n_perturbations should be a valid integer, got None"),
        ("identify", {"precision": "fp16"}, "precision should be 'auto', 'fp32' or 'bf16', got 'fp16'"),
        ("identify", {"centred": "maybe"}, "centred should be a valid boolean"),
        ("distill", {"min_weight": 1}, "distill: min_weight should be less than 1, got 1"),
        (
            "vae",
            {"training": {"beta": -1}},
            "vae: training.beta should be greater than or equal to 0, got -1",
        ),
        (
            "vae",
            {"training": 3},
            "vae: training should be a valid dictionary or instance of VaeTraining, got 3",
        ),
        ("vae", {"depth": 7}, "vae: depth should be less than or equal to 6, got 7"),
        ("vae", {"depth": 0}, "vae: depth should be greater than or equal to 1, got 0"),
        ("vae", {"latent_dim": 0}, "vae: latent_dim should be greater than or equal to 1, got 0"),
        ("vae", {"hidden_channels": 0}, "vae: hidden_channels should be greater than or equal to 1, got 0"),
        ("vae", {"hidden_units": 0}, "vae: hidden_units should be greater than or equal to 1, got 0"),
        (
            "correct",
            {"correction": {"lambdas": [1, 1]}},
            "correction: lambdas must be distinct and 0 or more",
        ),
        ("correct", {"correction": {"lambdas": [0.1, "x"]}}, "correction.lambdas.1 should be a valid number"),
        (
            "correct",
            {"baseline_lambdas": [1, -2]},
            "baseline_lambdas.1 should be greater than or equal to 0, ",
        ),
        ("correct", {"rule": "best"}, "correct: rule should be 'paper' or 'regions', got 'best'"),
        (
            "stability",
            {"n_seeds": 1},
            "stability: n_seeds should be greater than or equal to 2, got 1",
        ),
        ("stability", {"n_seeds": 21}, "stability: n_seeds should be less than or equal to 20, got 21"),
    ],
)
def test_a_config_is_refused_with_the_field_what_it_takes_and_what_came(
    step: str, values: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        check_config(step, values)
    assert str(refused.value).startswith(f"{step}: ")
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_every_field_that_is_wrong_is_named_at_once() -> None:
    with pytest.raises(ConfigError) as refused:
        check_config("identify", {"noise_a": 0, "noise_b": "b", "n_pertubations": 3})
    assert str(refused.value) == (
        "identify: noise_a should be greater than 0, got 0; noise_b should be a valid number, unable to "
        "parse string as a number, got 'b'; n_pertubations is not a field; did you mean n_perturbations?"
    )


@pytest.mark.parametrize(
    ("step", "values", "told"),
    [
        ("identify", {"n_pertubations": 3}, "n_pertubations is not a field; did you mean n_perturbations?"),
        ("vae", {"trainig": {}}, "trainig is not a field; did you mean training?"),
        ("vae", {"latentdim": 3}, "vae: latentdim is not a field; did you mean latent_dim?"),
        (
            "vae",
            {"vae": {"latent_dim": 3}},
            "vae: vae is not a field; there are: weights, pretrained, latent_dim, hidden_channels, ",
        ),
        ("vae", {"training": {"epoch": 3}}, "training.epoch is not a field; did you mean epochs?"),
        (
            "classifier",
            {"men": [0]},
            "classifier: men is not a field; did you mean mean?",
        ),
        (
            "classifier",
            {"preprocessing": {"mean": [0]}},
            "preprocessing is not a field; there are: architecture, weights, code_path, trust_program, mean,",
        ),
        (
            "correct",
            {"correction": {"lambda": [1]}},
            "correction.lambda is not a field; did you mean lambdas?",
        ),
        ("report", {"colour": "red"}, "colour is not a field; there are: n_regions"),
        ("control", {"colour": "red"}, "colour is not a field; there are: train_reader"),
        ("annotate", {"labeling": {"zzz": 1}}, "there are: n_samples, tau, disagreement_threshold"),
    ],
)
def test_a_field_that_is_not_known_is_told_with_its_likely_name(
    step: str, values: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        check_config(step, values)
    assert told in str(refused.value)


def test_a_step_that_does_not_exist_is_told_with_those_that_do() -> None:
    with pytest.raises(
        ConfigError, match=r"step must be one of inspect, classifier, vae, .*report, got 'identfy'"
    ):
        check_config("identfy", {})


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(data=st.data(), step=st.sampled_from(list(RUNS)))
@tried(6)
def test_whatever_comes_is_taken_or_refused_in_words(data: st.DataObject, step: StepName) -> None:
    """No value breaks the check itself, and what it takes it takes again from JSON."""
    fields = st.sampled_from([*RUNS[step].config.model_fields, "x"])
    values = data.draw(st.dictionaries(fields, VALUES, max_size=3))
    refused = ""
    try:
        config = check_config(step, values)
    except ConfigError as error:
        refused = str(error)
    if refused:
        assert refused.startswith(f"{step}: ")
        assert any(name in refused for name in values)
    else:
        assert check_config(step, config.model_dump(mode="json")) == config


COUNT = "mean and std need 1 or 3 values each, got "


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"std": [0.0]}, "std.0 should be greater than 0, got 0.0"),
        ({"std": [1.0, 1.0, -1.0]}, "std.2 should be greater than 0, got -1.0"),
        ({"std": [float("inf")]}, "std.0 should be a finite number, got inf"),
        ({"mean": [float("nan")]}, "mean.0 should be a finite number, got nan"),
        ({"mean": [0.0, 0.0]}, COUNT + "(0.0, 0.0) and None"),
        ({"std": [1.0] * 4}, COUNT + "None and (1.0, 1.0, 1.0, 1.0)"),
        ({"mean": [], "std": []}, COUNT + "() and ()"),
        ({"mean": []}, COUNT + "() and None"),
        ({"mean": [0.0], "std": [1.0, 1.0, 1.0]}, COUNT + "(0.0,) and (1.0, 1.0, 1.0)"),
        ({"mean": [0.0, 0.0], "std": [1.0, 1.0]}, COUNT + "(0.0, 0.0) and (1.0, 1.0)"),
        ({"image_size": 0}, "image_size should be greater than or equal to 1, got 0"),
        ({"image_size": 4097}, "image_size should be less than or equal to 4096, got 4097"),
    ],
)
def test_preprocessing_that_no_network_can_use_is_refused_before_the_run(
    values: dict[str, Any], told: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        check_config("classifier", values)
    assert str(refused.value) == f"classifier: {told}"


@pytest.mark.parametrize("n", [1, 3])
def test_preprocessing_is_given_for_one_channel_or_three_and_else_that_of_the_images(n: int) -> None:
    mean, std = (0.0, -0.5, 2.0)[:n], (1e-3, 0.25, 4.0)[:n]
    for values in ({}, {"mean": mean}, {"std": std}, {"mean": mean, "std": std, "image_size": 1}):
        config = check_config("classifier", values)
        expected = {"mean": None, "std": None, "image_size": None, **values}
        assert config.model_dump(include={"mean", "std", "image_size"}) == expected


def test_lambdas_that_are_refused_are_one_problem() -> None:
    with pytest.raises(ConfigError) as refused:
        check_config("correct", {"correction": {"lambdas": [1, 1]}})
    assert str(refused.value) == "correct: correction: lambdas must be distinct and 0 or more, got (1.0, 1.0)"


def test_the_baseline_is_searched_as_the_regions_are() -> None:
    for preset in PRESETS.values():
        sweep = SweepConfig.model_validate(preset_values(preset, "correct"))
        assert sweep.baseline_lambdas == sweep.correction.lambdas == preset.correction.lambdas
    assert SweepConfig().baseline_lambdas == PAPER_LAMBDAS
    assert SweepConfig(baseline_lambdas=()).baseline_lambdas == ()
