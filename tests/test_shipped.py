"""The shipped weights are what their cards say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from defuse_core.base.config import ClassifierTraining
from defuse_core.base.errors import CheckpointError
from defuse_core.base.machine import MODELS
from defuse_core.data.sources import load_digits, load_npz
from defuse_core.data.splits import ImageDataset
from defuse_core.extensions.shipped import (
    ANNOTATORS,
    CLASSIFIER,
    VAE,
    load_annotators,
    load_shipped_classifier,
    load_shipped_vae,
    make_classifier,
    read_card,
)
from defuse_core.method.classifier import accuracy, predict
from defuse_core.method.evaluation import reconstruction_control


@pytest.fixture(scope="module")
def digits() -> ImageDataset:
    return load_digits()


def test_models_stay_small() -> None:
    assert sum(file.stat().st_size for file in MODELS.iterdir()) < 16e6
    assert not list(MODELS.glob("*.py"))


def test_every_model_has_a_card_with_a_command() -> None:
    for name in (CLASSIFIER, VAE, *ANNOTATORS):
        assert f"--only {name} --seed" in read_card(name)["command"]


def test_classifier_scores_what_its_card_says(digits: ImageDataset) -> None:
    card, classifier = read_card(CLASSIFIER), load_shipped_classifier()
    assert digits.fingerprint == card["data"]["fingerprint"]
    assert accuracy(classifier, digits.test) == pytest.approx(card["accuracy"]["test"], abs=0.0011)


def test_vae_reconstructs_what_its_card_says(digits: ImageDataset) -> None:
    control = reconstruction_control(load_shipped_classifier(), load_shipped_vae(), digits.test)
    stated = read_card(VAE)["still_correct_after_reconstruction"]["test"]
    assert control.estimate == pytest.approx(stated, abs=0.005)


def test_annotators_are_independent_networks_above_99_percent() -> None:
    cards = [read_card(name) for name in ANNOTATORS]
    assert min(card["accuracy"]["test"] for card in cards) >= 0.99
    assert {card["data"]["train"] for card in cards} == {60_000}
    assert len({card["architecture"] for card in cards}) == 5
    assert read_card(CLASSIFIER)["architecture"] not in {card["architecture"] for card in cards}


def test_annotators_read_the_embedded_digits(digits: ImageDataset) -> None:
    for name, annotator in load_annotators().items():
        assert accuracy(annotator, digits.test) >= 0.985, name


@pytest.mark.slow
def test_annotators_score_what_their_cards_say(development_data: Path) -> None:
    test = load_npz(development_data / "mnist.npz").test
    for name, annotator in load_annotators().items():
        assert accuracy(annotator, test) == pytest.approx(read_card(name)["accuracy"]["test"], abs=2e-4)


def test_making_a_model_writes_weights_that_load_again(shapes: ImageDataset, tmp_path: Path) -> None:
    config = ClassifierTraining(optimizer="adam", learning_rate=1e-2, epochs=2)
    card = make_classifier("small", shapes, "all_convolutional", config, seed=1, models=tmp_path)
    loaded = load_shipped_classifier("small", models=tmp_path)
    assert accuracy(loaded, shapes.test) == card["accuracy"]["test"]
    again = make_classifier("small", shapes, "all_convolutional", config, seed=1, models=tmp_path)
    assert again["sha256"] == card["sha256"]
    other = make_classifier("small", shapes, "all_convolutional", config, seed=2, models=tmp_path)
    assert other["sha256"] != card["sha256"]


def test_weights_that_are_not_the_cards_are_refused(tmp_path: Path) -> None:
    for suffix in ("json", "safetensors"):
        shutil.copy(MODELS / f"{CLASSIFIER}.{suffix}", tmp_path)
    card = json.loads((tmp_path / f"{CLASSIFIER}.json").read_text())
    (tmp_path / f"{CLASSIFIER}.json").write_text(json.dumps({**card, "sha256": "0" * 64}))
    with pytest.raises(CheckpointError, match="not the file its card describes; check it out again"):
        load_shipped_classifier(models=tmp_path)


def test_a_missing_model_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"python -m defuse_core\.extensions\.shipped"):
        load_shipped_vae(models=tmp_path)


def test_shipped_models_do_not_depend_on_the_batch(digits: ImageDataset) -> None:
    images, classifier = digits.test.images[::9], load_shipped_classifier()
    whole = predict(classifier, images)
    np.testing.assert_array_equal(torch.cat([predict(classifier, i[None]) for i in images]), whole)
