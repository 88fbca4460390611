from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from defuse_core import demo
from defuse_core.classifier import Classifier, Preprocessing, predict, train_classifier
from defuse_core.config import (
    PRESETS,
    ClassifierTraining,
    CorrectionConfig,
    DistillationConfig,
    IdentificationConfig,
)
from defuse_core.data import ImageDataset
from defuse_core.demo import Corrected, Labelled, Parts
from defuse_core.evaluation import score_failures, score_split
from defuse_core.labeling import draw_images, failure_instances
from defuse_core.runtime import Callback, describe_device
from defuse_core.vae import BetaVAE
from tests.conftest import TinyNetwork, bars

LAMBDAS = (0.0, 0.1, 10.0)


@contextmanager
def quiet(_name: str) -> Iterator[Callback]:
    yield lambda _step, _of, _metrics: None


@pytest.fixture(scope="module")
def parts(trained_classifier: Classifier, trained_vae: BetaVAE, shapes: ImageDataset) -> Parts:
    """The shapes, with three annotators trained on shapes of their own."""
    annotators = {}
    for seed in range(3):
        torch.manual_seed(seed + 10)
        annotator = Classifier(TinyNetwork(), Preprocessing.of(shapes.train.images))
        config = ClassifierTraining(optimizer="adam", learning_rate=3e-3, epochs=12, batch_size=32)
        train_classifier(annotator, bars(480, 100 + seed), config=config, seed=seed)
        annotators[f"annotator {seed}"] = annotator
    preset = PRESETS["demo"].model_copy(
        update={
            "identification": IdentificationConfig(
                n_perturbations=60, centred=True, noise_scale=2, max_mistakes_per_image=10
            ),
            "distillation": DistillationConfig(n_components=20),
            "correction": CorrectionConfig(lambdas=LAMBDAS, epochs=4, instances_per_region=32),
        }
    )
    return Parts(
        shapes, trained_classifier, trained_vae, annotators, preset, 0, describe_device(torch.device("cpu"))
    )


@pytest.fixture(scope="module")
def labelled(parts: Parts) -> Labelled:
    return demo.find_and_label(parts, quiet)


@pytest.fixture(scope="module")
def corrected(parts: Parts, labelled: Labelled) -> Corrected:
    return demo.correct(parts, labelled, quiet)


def test_failures_are_the_regions_on_which_most_annotators_disagree(parts: Parts, labelled: Labelled) -> None:
    assert labelled.failures
    for region, verdict in zip(labelled.regions, labelled.verdicts, strict=True):
        images = draw_images(parts.vae, region, 10, tau=0.5, seed=0)
        answers = torch.stack([predict(a, images) for a in parts.annotators.values()])
        sure = answers.mode(0).values  # of three, the mode is the majority where there is one
        said = predict(parts.classifier, images)
        if verdict.n_kept == 10 and (answers == sure).all():
            wrong = int((sure != said).sum())
            assert verdict.error.estimate == wrong / 10
            assert verdict.is_failure == (wrong > 5)


def test_draws_tested_on_are_not_those_tuned_on(
    parts: Parts, labelled: Labelled, corrected: Corrected
) -> None:
    tuned = failure_instances(
        parts.vae, labelled.regions, labelled.failures, 32, tau=0.5, seed=0, purpose="tune"
    )
    assert len(tuned) == len(corrected.tested) == 32 * len(labelled.failures)
    distances = torch.cdist(tuned.images.flatten(1).float(), corrected.tested.images.flatten(1).float())
    assert float((distances.amin(0) == 0).float().mean()) < 0.5


def test_results_are_those_of_the_parts(
    parts: Parts, labelled: Labelled, corrected: Corrected, tmp_path: Path
) -> None:
    results = demo.summarise(parts, labelled, corrected, seconds=1.0)
    assert [row["lam"] for row in results["sweep"]] == list(LAMBDAS)
    chosen = next(row for row in results["sweep"] if row["lam"] == results["defuse"]["lam"])
    assert chosen["test"] == results["defuse"]["test"]
    assert chosen["region"] == results["defuse"]["region"]
    assert results["before"]["test"] == score_split(parts.classifier, parts.dataset.test).estimate
    assert results["before"]["region"] == score_failures(parts.classifier, corrected.tested).estimate
    assert results["defuse"]["region"] == score_failures(corrected.classifier, corrected.tested).estimate
    assert sum(results["mistakes"].values()) == len(labelled.mistakes)
    change = results["flips"]["fixed"] - results["flips"]["broken"]
    assert change == round((results["defuse"]["test"] - results["before"]["test"]) * len(parts.dataset.test))
    json.dumps(results)
    paths = demo.write_evidence(parts, labelled, corrected, tmp_path)
    assert all(path.stat().st_size > 100 for path in paths)
    table = (tmp_path / "figure4.md").read_text()
    assert f"| Defuse | {corrected.scores[2].test:.3f} |" in table


def test_correction_repairs_the_regions(corrected: Corrected) -> None:
    before, _, after = corrected.scores
    assert after.region.estimate > before.region.estimate + 0.2


def test_regions_can_be_held_out(parts: Parts, labelled: Labelled) -> None:
    assert len(labelled.failures) >= 2
    config = parts.preset.correction.model_copy(
        update={"held_out_share": 0.5, "lambdas": (1.0,), "epochs": 1}
    )
    held = Parts(**{**vars(parts), "preset": parts.preset.model_copy(update={"correction": config})})
    done = demo.correct(held, labelled, quiet)
    assert done.held_out is not None
    tuned, held_out = set(done.tested.region_ids.tolist()), set(done.held_out.region_ids.tolist())
    assert not tuned & held_out
    assert tuned | held_out == set(labelled.failures)
    assert demo.summarise(held, labelled, done, seconds=0)["held_out"]["regions"] == len(held_out)


def test_no_failure_region_names_the_remedy(parts: Parts, labelled: Labelled) -> None:
    none = Labelled(labelled.mistakes, labelled.mixture, labelled.regions, [], labelled.agreement)
    with pytest.raises(ValueError, match="another seed or more perturbations"):
        demo.correct(parts, none, quiet)


def run_defuse(
    *words: str, cwd: Path, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "defuse_core.cli", *words]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False, env={**os.environ, **(env or {})}
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """results.json of the whole demo, run once as a stranger runs it."""
    folder = tmp_path_factory.mktemp("demo")
    done = run_defuse("demo", "--out", "evidence", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "Figure 4" in done.stdout
    read: dict[str, Any] = json.loads((folder / "evidence" / "results.json").read_text())
    written = {path.name for path in (folder / "evidence").iterdir()}
    assert {
        f"figure{n}.png" for n in ("1-regions", "4-accuracy", "5-trade-off", "6-novelty", "7-agreement")
    } <= written
    return read


@pytest.mark.timeout(900)
def test_the_demo_finds_and_repairs_bugs(results: dict[str, Any]) -> None:
    assert results["failure_regions"] >= 5
    assert results["before"]["region"] < 0.40
    assert results["defuse"]["region"] >= 0.90
    assert results["defuse"]["test"] >= results["before"]["test"] - 0.01
    assert results["defuse"]["region"] > results["baseline"]["region"]
    assert len(results["sweep"]) == 17


@pytest.mark.timeout(900)
def test_the_demo_tells_kinds_of_mistakes_apart(results: dict[str, Any]) -> None:
    counts = results["mistakes"]
    assert set(counts) == {"dataset", "reconstruction", "perturbation"}
    assert min(counts.values()) > 0
    assert counts["perturbation"] > 0.8 * sum(counts.values())
    assert results["still_correct_after_reconstruction"] > 0.95


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("demo", "--device", "quantum"), "device must be auto, cpu, mps, cuda"),
        (("demo", "--device", "cuda:99"), "use --device cpu"),
        (("demo", "--out", "taken"), "taken is a file; give another name"),
    ],
)
def test_errors_are_one_line_with_the_remedy(words: tuple[str, ...], told: str, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    done = run_defuse(*words, cwd=tmp_path)
    assert done.returncode == 1
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_wrong_calls_exit_with_2(tmp_path: Path) -> None:
    assert run_defuse("demo", "--seed", "-1", cwd=tmp_path).returncode == 2
    assert run_defuse("dmeo", cwd=tmp_path).returncode == 2
