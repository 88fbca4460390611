"""The plan of a reproduction: every step with its config, in the paper's length, for two cores, or quick.

`paper` follows sections 4.1 and B.2 to B.5. `cpu` shortens what a core cannot do in one to three hours, and
lowers β where pictures vanish at the paper's after so few steps. `quick` shows within minutes that
everything works, and nothing else. `changes` lists what a plan changes, field by field.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from defuse_core.base.config import PRESETS, Config, CorrectionConfig, Preset, VaeConfig
from defuse_core.data.naming import FROM_TEST, Validation
from defuse_core.reproduction.paper import DatasetName
from defuse_core.workspace.config_checks import check_config
from defuse_core.workspace.configs import (
    AnnotationConfig,
    AnnotatorsConfig,
    EvaluationConfig,
    MapConfig,
    StepName,
    preset_values,
)

_C = TypeVar("_C", bound=Config)

Length = Literal["paper", "cpu", "quick"]

VALIDATION: dict[DatasetName, Validation | None] = {"mnist": None, "svhn": FROM_TEST, "gtsrb": FROM_TEST}
"""Where validation images come from (section 4.1): MNIST has none, and chooses by training accuracy."""

NETWORKS: dict[DatasetName, tuple[str, ...]] = {
    "mnist": ("mnist_cnn", "paper_cnn"),
    "svhn": ("resnet18",),
    "gtsrb": ("resnet18",),
}
"""Classifiers of each data set: the paper names two for MNIST, in section 4.1 and in figure 8."""

_FEW_LAMBDAS = (0.01, 0.1, 1.0, 10.0, 100.0)  # five of the paper's 17


class Plan(Config):
    """All steps of a reproduction for one seed.

    Attributes
    ----------
    annotators : AnnotatorsConfig
        Trained once and shared by all seeds, like the generator.
    """

    preset: Preset
    architecture: str
    pretrained: bool
    annotators: AnnotatorsConfig
    min_probability: float
    evaluation: EvaluationConfig
    map: MapConfig

    def shared(self) -> list[tuple[StepName, dict[str, Any]]]:
        """Steps that run once for all seeds."""
        return [
            ("annotators", self.annotators.model_dump()),
            ("vae", preset_values(self.preset, "vae")),
        ]

    def seeded(self, pretrained: str | None) -> list[tuple[StepName, dict[str, Any]]]:
        """Steps that every seed runs anew, with `pretrained` as `ClassifierConfig` takes it."""
        classifier = {"architecture": self.architecture, "pretrained": pretrained}
        annotation = AnnotationConfig(labeling=self.preset.labeling, min_probability=self.min_probability)
        return [
            ("classifier", {**classifier, **preset_values(self.preset, "classifier")}),
            ("control", {}),
            ("identify", preset_values(self.preset, "identify")),
            ("distill", preset_values(self.preset, "distill")),
            ("annotate", annotation.model_dump()),
            ("correct", preset_values(self.preset, "correct")),
            ("evaluate", self.evaluation.model_dump()),
            ("report", {}),
            ("map", self.map.model_dump()),
        ]


def make_plan(dataset: DatasetName, length: Length = "paper", network: str | None = None) -> Plan:
    """Return the plan of a data set in one of three lengths.

    Parameters
    ----------
    dataset : {"mnist", "svhn", "gtsrb"}
    length : {"paper", "cpu", "quick"}
    network : str, optional
        One of `NETWORKS`, by default the first.

    Raises
    ------
    ValueError
        If the data set has no such network.
    """
    known = NETWORKS[dataset]
    if network is not None and network not in known:
        raise ValueError(f"network of {dataset} must be {' or '.join(known)}, got {network!r}")
    plan = {"paper": _paper, "cpu": _cpu, "quick": _quick}[length](dataset)
    return plan if network is None else _changed(plan, architecture=network)


def results_name(dataset: DatasetName, network: str) -> str:
    """Name the results of a data set with one of its networks.

    Parameters
    ----------
    dataset : {"mnist", "svhn", "gtsrb"}
    network : str

    Examples
    --------
    >>> results_name("mnist", "mnist_cnn"), results_name("mnist", "paper_cnn")
    ('mnist', 'mnist-paper_cnn')
    """
    return dataset if network == NETWORKS[dataset][0] else f"{dataset}-{network}"


def _paper(dataset: DatasetName) -> Plan:
    digits = dataset == "mnist"
    return Plan(
        preset=PRESETS[dataset],
        architecture=NETWORKS[dataset][0],
        pretrained=not digits,
        annotators=AnnotatorsConfig(shipped=digits, own_augmentation=digits),  # elastic spoils photographs
        min_probability=AnnotationConfig().min_probability,
        evaluation=EvaluationConfig(),
        map=MapConfig(n_mistakes=516, in_regions=True),  # B.5, of MNIST: t-SNE, perplexity 30, 10,000 codes
    )


_ON_CPU: dict[DatasetName, dict[str, dict[str, Any]]] = {
    "mnist": {
        "vae_training": {"epochs": 30, "batch_size": 64},  # 28,000 steps; the paper's 800 epochs are 24,000
        "identification": {"n_perturbations": 50, "max_mistakes_per_image": 10, "max_images": 10_000},
        "correction": {"max_images": 10_000},
    },
    "svhn": {
        "vae_training": {"epochs": 70, "batch_size": 32, "beta": 0.02, "kl_anneal_steps": 2_000},
        "classifier_training": {"batch_size": 128, "epochs": 8, "final_learning_rate": 1e-5},
        "identification": {"n_perturbations": 50},
        "correction": {"max_images": 4_000, "epochs": 3, "learning_rate": 1e-4},
    },
    "gtsrb": {
        "vae": {"image_size": 32, "depth": 3},
        "vae_training": {"epochs": 40, "batch_size": 32, "beta": 0.1, "kl_anneal_steps": 2_000},
        "classifier_training": {"batch_size": 128, "epochs": 8, "final_learning_rate": 1e-5},
        "identification": {"n_perturbations": 50},
        "correction": {"max_images": 4_000, "epochs": 3, "learning_rate": 1e-4},
    },
}
"""What two cores change of a preset, by data set. The paper's β stays where pictures survive it, its rate of
correction where tuning on the data alone (λ = 0) costs at most .01 of validation accuracy."""

_ON_CPU_ANNOTATORS: dict[DatasetName, dict[str, Any]] = {
    "svhn": {"epochs": 20, "batch_size": 64, "learning_rate": 0.05},
    "gtsrb": {"epochs": 12, "batch_size": 64, "learning_rate": 0.05},
}


def _cpu(dataset: DatasetName) -> Plan:
    plan = _paper(dataset)
    own = {name: _changed(getattr(plan.preset, name), **values) for name, values in _ON_CPU[dataset].items()}
    preset = _changed(plan.preset, **own)
    training = _changed(plan.annotators.training, **_ON_CPU_ANNOTATORS.get(dataset, {}))
    return _changed(
        plan,
        preset=_changed(
            preset,
            distillation=_changed(preset.distillation, max_codes=20_000),
            correction=_changed(preset.correction, lambdas=_FEW_LAMBDAS, batch_size=128),
        ),
        annotators=_changed(plan.annotators, training=training),
        map=_changed(plan.map, n_codes=5_000),
    )


def _quick(dataset: DatasetName) -> Plan:
    plan = _paper(dataset)
    preset = plan.preset
    vae = VaeConfig(
        channels=preset.vae.channels, image_size=28 if dataset == "mnist" else 32,
        padding=preset.vae.padding, hidden_channels=16, latent_dim=preset.vae.latent_dim,
    )  # fmt: skip
    epochs = 40 if dataset == "gtsrb" else 8  # of fewer images; under fewer epochs all signs look the same
    return _changed(
        plan,
        preset=_changed(
            preset,
            vae=vae,
            vae_training=_changed(
                preset.vae_training, epochs=epochs, batch_size=16, beta=0.1, kl_anneal_steps=0
            ),
            classifier_training=_changed(preset.classifier_training, epochs=2, batch_size=16),
            identification=_changed(preset.identification, n_perturbations=5, max_mistakes_per_image=5),
            distillation=_changed(preset.distillation, n_components=12, max_iter=20),
            correction=CorrectionConfig(
                lambdas=(0.1, 10.0), epochs=1, max_images=128, batch_size=16, instances_per_region=16
            ),
        ),
        annotators=_changed(
            plan.annotators,
            training=_changed(plan.annotators.training, epochs=2, batch_size=16, augmentation="none"),
        ),
        min_probability=0.0,  # no annotator is sure after so little training
        evaluation=EvaluationConfig(noise_images=16),
        map=MapConfig(method="pca", n_codes=200, n_mistakes=200),
    )


def changes(
    dataset: DatasetName, length: Length, ran: Mapping[str, Mapping[str, Any]] | None = None
) -> list[tuple[str, Any, Any]]:
    """Return what a plan, or what really ran, changes: field, the paper's value, the other.

    Parameters
    ----------
    dataset : {"mnist", "svhn", "gtsrb"}
    length : {"paper", "cpu", "quick"}
    ran : mapping of str to mapping, optional
        Configs by step, as results-<dataset>.json has them; by default those of the plan.

    Examples
    --------
    >>> [row for row in changes("mnist", "cpu") if row[0] == "vae.training.epochs"]
    [('vae.training.epochs', 800, 30)]
    """
    was = _flat_steps(make_plan(dataset, "paper"))
    if ran is None:
        now = _flat_steps(make_plan(dataset, length))
    else:
        now = {name: value for step, config in ran.items() for name, value in _flat(step, config).items()}
    return [
        (name, was.get(name), value)
        for name, value in now.items()
        if _as_json(was.get(name)) != _as_json(value)
    ]


def _as_json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _flat_steps(plan: Plan) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for step, config in [*plan.shared(), *plan.seeded("imagenet" if plan.pretrained else None)]:
        values.update(_flat(step, check_config(step, config).model_dump()))
    return values


def _flat(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {name: value}
    return {
        key: each for part, inner in value.items() for key, each in _flat(f"{name}.{part}", inner).items()
    }


def _changed(config: _C, **values: Any) -> _C:
    """A config with other values, checked."""
    return type(config).model_validate({**config.model_dump(), **values})
