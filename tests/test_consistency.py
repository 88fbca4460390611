"""A generator trained with the classifier in the loop: the term, its readers, and what others see."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defuse_core.base.checkpoints import copy_state, save_tensors
from defuse_core.base.config import PRESETS, VaeConfig, VaeTraining
from defuse_core.base.errors import CheckpointError
from defuse_core.base.intervals import Interval
from defuse_core.data.splits import ImageDataset, as_pixels
from defuse_core.extensions.consistency import ReaderConsistency, control_by_readers
from defuse_core.method.augmentation import move
from defuse_core.method.classifier import Classifier, Preprocessing
from defuse_core.method.evaluation import reconstruction_control
from defuse_core.method.vae import BetaVAE, vae_config_for
from defuse_core.method.vae_training import load_unfinished, train_vae
from defuse_core.report.generator import deceives
from defuse_core.steps.source import Source
from defuse_core.workspace.configs import GeneratorConfig
from defuse_core.workspace.database import WorkspaceError
from tests.in_process import done_here, fresh_place, run_here, store_run
from tests.workspaces import Place

TINY = VaeConfig(image_size=8, padding=0, hidden_channels=4, depth=2, hidden_units=16, latent_dim=3)
ASKING = VaeTraining(
    epochs=3, beta=0.5, kl_anneal_steps=5, batch_size=32, precision="fp32", consistency_weight=20.0,
    final_learning_rate=1e-5, augmentation="shift",
)  # fmt: skip


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tiny(seed: int = 0, config: VaeConfig = TINY) -> BetaVAE:
    torch.manual_seed(seed)
    return BetaVAE(config)


# The term


def test_the_term_is_the_mean_kl_divergence_of_what_readers_say_of_both_moved_alike(
    trained_classifier: Classifier, shapes: ImageDataset
) -> None:
    other = copy.deepcopy(trained_classifier)
    for parameter in other.parameters():
        parameter.data *= 0.5
    images = as_pixels(shapes.train.images[:6])
    decoded = as_pixels(shapes.train.images[6:12])
    got = ReaderConsistency([trained_classifier, other])(images, decoded, rng(3))
    stream = rng(3)
    moved = move(torch.cat([images, decoded], 1), stream)
    noise = 0.03 * torch.randn(images.shape, generator=stream)
    expected = []
    for reader in (trained_classifier, other):
        wanted, said = (reader(part + noise).softmax(1) for part in moved.chunk(2, 1))
        expected.append((wanted * (wanted.log() - said.log())).sum(1).mean())
    torch.testing.assert_close(got, torch.stack(expected).mean())
    assert got > 1e-3


def test_an_image_agrees_with_itself_and_only_the_decoded_one_gets_a_gradient(
    trained_classifier: Classifier, shapes: ImageDataset
) -> None:
    reader = copy.deepcopy(trained_classifier)
    reader.zero_grad()
    term = ReaderConsistency([reader])
    images = as_pixels(shapes.train.images[:4])
    assert float(term(images, images, rng())) == pytest.approx(0, abs=1e-6)
    real, decoded = images.clone().requires_grad_(), images.flip(0).requires_grad_()
    term(real, decoded, rng()).backward()
    assert decoded.grad is not None
    assert decoded.grad.abs().sum() > 0
    assert real.grad is None or not real.grad.any()
    assert all(p.grad is None for p in reader.parameters())
    assert all(p.requires_grad for p in reader.parameters())


def test_nobody_to_ask_is_refused(shapes: ImageDataset) -> None:
    with pytest.raises(ValueError, match="give the classifier under test"):
        ReaderConsistency([])
    with pytest.raises(ValueError, match="consistency_weight is 20, and nobody reads the images"):
        train_vae(tiny(), shapes.train.images, config=ASKING, seed=0)


# Training


def test_without_weight_the_term_changes_nothing_and_is_not_asked(shapes: ImageDataset) -> None:
    def never(*_: Any) -> Tensor:
        raise AssertionError("asked")

    plain = ASKING.model_copy(update={"consistency_weight": 0.0, "augmentation": "none"})
    first, second = tiny(), tiny()
    train_vae(first, shapes.train.images, config=plain, seed=0)
    train_vae(second, shapes.train.images, config=plain, seed=0, consistency=never)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_the_loss_holds_the_term_with_its_weight(
    trained_classifier: Classifier, shapes: ImageDataset
) -> None:
    term = ReaderConsistency([trained_classifier])
    for metrics in train_vae(tiny(), shapes.train.images, config=ASKING, seed=0, consistency=term):
        assert metrics["consistency"] > 0
        if metrics["kl_weight"] == 1:  # all steps of the epoch have the same weight
            expected = metrics["reconstruction"] + 0.5 * metrics["kl"] + 20 * metrics["consistency"]
            assert metrics["loss"] == pytest.approx(expected, rel=1e-4)
            assert metrics["monitored"] == pytest.approx(expected, rel=1e-4)


def test_the_generator_keeps_more_of_what_the_classifier_sees(
    trained_classifier: Classifier, shapes: ImageDataset
) -> None:
    shape = TINY.model_copy(update={"hidden_channels": 8, "hidden_units": 32, "latent_dim": 4})
    config = ASKING.model_copy(
        update={"epochs": 30, "beta": 1.0, "learning_rate": 5e-3, "augmentation": "none"}
    )
    kept = []
    for gamma in (0.0, 100.0):
        vae = tiny(config=shape)
        train_vae(
            vae, shapes.train.images, config=config.model_copy(update={"consistency_weight": gamma}), seed=0,
            consistency=ReaderConsistency([trained_classifier]),
        )  # fmt: skip
        kept.append(reconstruction_control(trained_classifier, vae, shapes.test).estimate)
    assert kept[0] < 0.5 < 0.9 < kept[1], kept  # β alone leaves nothing


def test_a_training_with_readers_is_resumed_to_the_same_weights_and_can_be_looked_at(
    trained_classifier: Classifier, shapes: ImageDataset, tmp_path: Path
) -> None:
    term, images = ReaderConsistency([trained_classifier]), shapes.train.images
    whole, stopped, path = tiny(), tiny(), tmp_path / "training.safetensors"
    train_vae(whole, images, config=ASKING, seed=0, consistency=term)
    train_vae(
        stopped, images, config=ASKING, seed=0, consistency=term, checkpoint=path,
        callback=lambda epoch, *_: epoch == 2,
    )  # fmt: skip
    unfinished, epochs = load_unfinished(path)
    assert epochs == 2
    assert all(torch.equal(t, stopped.state_dict()[name]) for name, t in copy_state(unfinished).items())
    assert not unfinished.training
    resumed = tiny(1)
    train_vae(resumed, images, config=ASKING, seed=0, consistency=term, checkpoint=path)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_what_is_no_checkpoint_of_a_generator_is_refused(tmp_path: Path) -> None:
    save_tensors(tmp_path / "other.safetensors", {"weight": torch.zeros(2)})
    for name in ("other.safetensors", "missing.safetensors"):
        with pytest.raises(CheckpointError, match=name):
            load_unfinished(tmp_path / name)


# Residual blocks


@pytest.mark.parametrize("decoder", ["linear", "reshape"])
@pytest.mark.parametrize("blocks", [1, 3])
def test_blocks_keep_shapes_and_begin_as_nothing(blocks: int, decoder: Any) -> None:
    config = vae_config_for(
        (3, 16, 16), depth=2, hidden_channels=8, hidden_units=32, decoder=decoder, blocks=blocks
    )
    vae = tiny(config=config)
    images = torch.rand(2, 3, 16, 16, generator=rng())
    mean, logvar = vae.encode(images)
    assert mean.shape == logvar.shape == (2, 10)
    assert vae.decode(mean).shape == images.shape
    residuals = [module for module in vae.modules() if type(module).__name__ == "_Residual"]
    assert len(residuals) == blocks * (2 + (1 if decoder == "linear" else 2))
    x = torch.randn(1, 8, 4, 4, generator=rng())
    assert all(torch.equal(module(x), x) for module in residuals)


def test_a_file_of_before_there_were_blocks_is_read_as_it_was_built() -> None:
    stated = {name: value for name, value in TINY.model_dump().items() if name != "blocks"}
    names = [name for name, _ in BetaVAE(VaeConfig(**stated)).named_parameters()]
    assert names[0] == "encoder.0.weight"
    assert names == [name for name, _ in tiny().named_parameters()]


# Readers that the generator never saw


class Says(nn.Module):
    """Says the class of the brightest of three pixels, sure to a degree."""

    def __init__(self, order: tuple[int, int, int], sure: float) -> None:
        super().__init__()
        self.order, self.sure = order, sure

    def forward(self, x: Tensor) -> Tensor:
        return self.sure * x[:, 0, 0, list(self.order)]


def test_readers_decide_together(trained_vae: BetaVAE, shapes: ImageDataset) -> None:
    plain = Preprocessing((0.0,), (1.0,))
    loud, quiet = Classifier(Says((0, 1, 2), 30.0), plain), Classifier(Says((2, 1, 0), 0.1), plain)
    together = control_by_readers([quiet, loud], trained_vae, shapes.test, seed=0)
    assert together == control_by_readers([loud], trained_vae, shapes.test, seed=0)
    assert together == reconstruction_control(loud, trained_vae, shapes.test)
    assert together != control_by_readers([quiet], trained_vae, shapes.test, seed=0)


@pytest.mark.parametrize(
    ("mine", "theirs", "expected"),
    [
        (0.97, 0.61, True), (0.9, 0.84, True), (0.9, 0.86, False), (0.6, 0.9, False), (None, 0.5, False),
        (0.9, None, False),
    ],
)  # fmt: skip
def test_a_generator_deceives_where_it_keeps_clearly_more_for_the_classifier(
    mine: float | None, theirs: float | None, expected: bool
) -> None:
    assert deceives(mine, theirs) is expected


# The steps


ASK: dict[str, Any] = {
    "latent_dim": 3, "hidden_channels": 4, "hidden_units": 16, "depth": 2,
    "training": {"epochs": 2, "batch_size": 64, "consistency_weight": 20.0},
}  # fmt: skip


def test_a_generator_that_asks_stands_on_the_classifier_and_others_do_not(place: Place) -> None:
    run = done_here(place, "vae", ASK)
    classifier = place.workspace.runs.latest(place.project.id, "classifier")
    assert classifier is not None
    assert list(run.upstream) == [classifier.id]
    source = Source(place.workspace, run.id)
    points = [event.data for event in place.workspace.runs.events(run.id, kind="point")]
    assert [point["consistency"] > 0 for point in points] == [True, True]
    shares = [point["kept"] for point in points]
    split = source.dataset.validation or source.dataset.train
    assert shares[-1] == reconstruction_control(source.classifier(), source.vae(), split).estimate
    plain = done_here(place, "vae", {**ASK, "training": {"epochs": 1}})
    assert not plain.upstream
    assert "kept" in place.workspace.runs.events(plain.id, kind="point")[0].data  # watched all the same


def test_without_a_classifier_there_is_nobody_to_ask(tmp_path: Path, template: Path) -> None:
    place = fresh_place(tmp_path / "home", template.parent / "shapes.npz")
    with pytest.raises(WorkspaceError, match="vae stands on classifier, of which no run is done"):
        run_here(place, "vae", ASK)
    assert not GeneratorConfig(weights="shipped:demo-vae", training=ASKING).asks_readers


def test_of_a_step_that_is_met_twice_the_nearer_run_counts(place: Place) -> None:
    """A second round searches another classifier with a generator that stands on the first one."""
    vae = store_run(place, "vae", {}, ASK)
    first = place.workspace.runs.ancestry(vae.id)["classifier"]
    second = store_run(place, "classifier", dict(first.summary), dict(first.config))
    search = store_run(place, "identify", {"mistakes": {}})
    assert set(search.upstream) == {vae.id, second.id}
    ancestry = place.workspace.runs.ancestry(search.id)
    assert (ancestry["classifier"].id, ancestry["vae"].id) == (second.id, vae.id)
    assert place.workspace.runs.ancestry(vae.id)["classifier"].id == first.id


def test_the_control_asks_a_network_of_its_own_where_there_are_no_annotators(place: Place) -> None:
    run = done_here(place, "control")
    assert run.summary["readers"] == ["all_convolutional"]  # the classifier is a resnet_small
    source = Source(place.workspace, run.id)
    for part, split in source.dataset.splits().items():
        share = Interval(*run.summary["by_readers"][part])
        assert 0 < share.n <= len(split)
        assert 0 <= share.estimate <= 1
    without = done_here(place, "control", {"train_reader": False}).summary
    assert without["readers"] == []
    assert set(without["by_readers"].values()) == {None}
    assert without["control"] == run.summary["control"]


def test_the_preset_for_photographs_asks_the_classifier() -> None:
    preset = PRESETS["photographs"]
    assert preset.vae_training.consistency_weight > 0
    assert all(
        PRESETS[name].vae_training.consistency_weight == 0 for name in ("mnist", "svhn", "gtsrb", "demo")
    )
    assert all(PRESETS[name].vae.blocks == 0 for name in ("mnist", "svhn", "gtsrb", "demo"))


def test_moves_repeat_the_edges_and_move_each_image_its_own_way() -> None:
    ramp = torch.linspace(0, 1, 32).expand(50, 1, 32, 32)
    moved = move(ramp, rng())
    assert moved.shape == ramp.shape
    assert moved.min() >= 0
    assert moved.max() <= 1
    assert len({round(float(image.mean()), 5) for image in moved}) > 40
    offset = (moved[:, 0, 16, 16] - ramp[:, 0, 16, 16]).abs()
    assert offset.max() < 0.07  # 6 % of the width
    assert F.l1_loss(move(ramp, rng()), moved) == 0


def test_a_generator_is_trained_further_from_where_it_ended(place: Place) -> None:
    """Under the same seed the first loss of the new run is below the last one of the old run's start."""
    short = {**ASK, "training": {"epochs": 4, "batch_size": 32, "kl_anneal_steps": 0, "learning_rate": 5e-3}}
    first = done_here(place, "vae", short)
    stored = place.workspace.artifact_path(first.id, "vae.safetensors").read_bytes()
    blob = place.workspace.add_blob(place.project.id, "mine.safetensors", [stored])
    further = done_here(place, "vae", {**short, "latent_dim": 9, "pretrained": f"blob:{blob.sha256}"})
    losses = [
        [event.data["loss"] for event in place.workspace.runs.events(run.id, kind="point")]
        for run in (first, further)
    ]
    assert losses[1][0] < losses[0][1]
    assert losses[1][-1] < losses[0][-1]
    assert further.summary["latent_dim"] == 3  # the shape of what it began with


def test_weights_and_what_training_begins_with_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="leave one of them out"):
        GeneratorConfig(weights="shipped:demo-vae", pretrained="shipped:demo-vae")
