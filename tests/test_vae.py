"""The β-VAE: its loss against torch.distributions, its shapes, and training that can be resumed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor
from torch.distributions import Bernoulli, Normal
from torch.distributions import kl_divergence as reference_kl

from defuse_core.base.checkpoints import copy_state
from defuse_core.base.config import PRESETS, VaeConfig, VaeTraining
from defuse_core.base.errors import CheckpointError, DivergenceError
from defuse_core.data.splits import ImageDataset, as_pixels
from defuse_core.method.vae import BetaVAE, decode_images, encode_means, vae_config_for
from defuse_core.method.vae_training import elbo_loss, kl_divergence, kl_weight, train_vae

TINY = VaeConfig(image_size=8, padding=0, hidden_channels=4, depth=2, hidden_units=16, latent_dim=3)
TRAINING = VaeTraining(
    epochs=5, beta=0.3, kl_anneal_steps=20, batch_size=32, learning_rate=3e-3, precision="fp32"
)


def tiny(seed: int = 0, config: VaeConfig = TINY) -> BetaVAE:
    torch.manual_seed(seed)
    return BetaVAE(config)


def same(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    """Whether two states agree bit for bit."""
    return first.keys() == second.keys() and all(
        torch.equal(tensor, second[name]) for name, tensor in first.items()
    )


def stop_after(epoch: int) -> Callable[[int, int, Mapping[str, float]], bool]:
    return lambda done, _of, _metrics: done == epoch


# The loss


@given(seed=st.integers(0, 999), n=st.integers(1, 5), latent_dim=st.integers(1, 6))
def test_kl_divergence_is_that_of_torch_distributions(seed: int, n: int, latent_dim: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    mean, logvar = 3 * torch.randn(2, n, latent_dim, generator=rng, dtype=torch.float64)
    posterior = Normal(mean, (logvar / 2).exp())
    prior = Normal(torch.zeros_like(mean), torch.ones_like(mean))
    expected = reference_kl(posterior, prior).sum(1)
    torch.testing.assert_close(kl_divergence(mean, logvar), expected, rtol=1e-9, atol=1e-9)


def test_the_kl_divergence_of_the_prior_is_zero() -> None:
    assert kl_divergence(torch.zeros(2, 4), torch.zeros(2, 4)).tolist() == [0, 0]


@pytest.mark.parametrize(("beta", "weight"), [(0.0, 1.0), (4.0, 1.0), (0.4, 0.25), (4.0, 0.0)])
def test_the_loss_is_bernoulli_plus_weighted_kl(beta: float, weight: float) -> None:
    rng = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(5, 3, 6, 6, generator=rng)
    images = torch.rand(5, 3, 6, 6, generator=rng)
    mean, logvar = torch.randn(2, 5, 7, generator=rng)
    terms = elbo_loss(logits, images, mean, logvar, beta=beta, weight=weight)
    bernoulli = Bernoulli(logits=logits.double(), validate_args=False)
    reconstruction = -bernoulli.log_prob(images.double()).sum((1, 2, 3))
    posterior = Normal(mean.double(), (logvar.double() / 2).exp())
    kl = reference_kl(posterior, Normal(0.0, 1.0)).sum(1)
    expected = (reconstruction + weight * beta * kl).mean(), reconstruction.mean(), kl.mean()
    for term, value in zip(terms, expected, strict=True):
        assert float(term) == pytest.approx(float(value), rel=1e-5)


def test_the_loss_is_computed_in_float32() -> None:
    logits, images = torch.randn(2, 1, 4, 4), torch.rand(2, 1, 4, 4)
    mean, logvar = torch.randn(2, 2, 3)
    terms = elbo_loss(logits.bfloat16(), images, mean.bfloat16(), logvar.bfloat16(), beta=1.0)
    assert {term.dtype for term in terms} == {torch.float32}


@given(step=st.integers(0, 10**6), steps=st.integers(1, 10**6))
def test_kl_weight_is_linear_and_clipped(step: int, steps: int) -> None:
    weight = kl_weight(step, steps)
    assert 0 <= weight <= 1
    if step >= steps:
        assert weight == 1
    else:
        assert weight * steps == pytest.approx(step)


@given(st.integers(0, 10**6))
def test_kl_weight_is_one_where_there_is_no_annealing(step: int) -> None:
    assert kl_weight(step, 0) == 1


# The network


@pytest.mark.parametrize("name", ["mnist", "svhn", "gtsrb"])
def test_shapes_of_the_presets(name: str) -> None:
    config = PRESETS[name].vae
    vae = tiny(config=config)
    images = torch.zeros(2, config.channels, config.image_size, config.image_size)
    with torch.inference_mode():
        mean, logvar = vae.encode(images)
        pixels = vae.decode(mean)
    assert mean.shape == logvar.shape == (2, config.latent_dim)
    assert vae.latent_dim == config.latent_dim
    assert pixels.shape == images.shape
    assert 0 <= pixels.min() <= pixels.max() <= 1


def figure(channels: int, width: int, depth: int, side: int, latent: int) -> list[tuple[int, ...]]:
    """Shapes of the weights in figures 9 to 14: 256 units are the map that the decoder enlarges to `side`."""
    flat = width * (side // 2**depth) ** 2
    first = 256 // (side // 2 ** (depth + 1)) ** 2
    convolutions = [(width, channels, 4, 4)] + [(width, width, 4, 4)] * (depth - 1)
    encoder = [*convolutions, (256, flat), (256, 256), (2 * latent, 256)]
    decoder = [(256, latent), (256, 256), (256, 256)]
    transposed = [(first, width, 4, 4), *[(width, width, 4, 4)] * (depth - 1), (width, channels, 4, 4)]
    return [*encoder, *decoder, *transposed]


def with_linear_layer(channels: int, width: int, depth: int, side: int) -> list[tuple[int, ...]]:
    """Shapes of the decoder of the demo: a layer from 256 units to a map of the encoder's last size."""
    transposed = [(width, width, 4, 4)] * (depth - 1) + [(width, channels, 4, 4)]
    return [(256, 10), (256, 256), (256, 256), (width * side * side, 256), *transposed]


def test_the_decoder_of_the_demo_has_a_linear_layer_before_its_convolutions() -> None:
    vae = tiny(config=PRESETS["demo"].vae)
    shapes = [tuple(p.shape) for name, p in vae.decoder.named_parameters() if name.endswith("weight")]
    assert shapes == with_linear_layer(1, 32, 3, 4)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"image_size": 24, "padding": 0}, "256 hidden units cannot be reshaped .* enlarge to 24 pixels"),
        ({"image_size": 96, "padding": 0}, "set decoder=linear"),
        ({"hidden_units": 250}, "250 hidden units cannot be reshaped"),
        ({"image_size": 8, "padding": 0}, "4 transposed convolutions enlarge to 8 pixels"),
    ],
)
def test_units_that_are_no_map_of_the_images_are_told_the_remedy(changes: dict[str, int], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        VaeConfig(**{**PRESETS["mnist"].vae.model_dump(), **changes})


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mnist", figure(1, 32, 3, 32, 10)),
        ("svhn", figure(3, 64, 3, 32, 10)),
        ("gtsrb", figure(3, 64, 4, 128, 15)),
    ],
)
def test_layers_of_the_presets_are_those_of_the_figures(name: str, expected: list[tuple[int, ...]]) -> None:
    vae = tiny(config=PRESETS[name].vae)
    weights = {key: tuple(p.shape) for key, p in vae.named_parameters() if key.endswith("weight")}
    assert list(weights.values()) == expected
    biases = [key for key, _ in vae.named_parameters() if key.endswith("bias")]
    assert len(biases) == len(expected)
    strides = {m.stride for m in vae.modules() if isinstance(m, torch.nn.modules.conv._ConvNd)}
    assert strides == {(2, 2)}


@given(
    image_size=st.integers(4, 40),
    padding=st.integers(0, 10),
    depth=st.integers(1, 4),
    channels=st.sampled_from([1, 3]),
)
def test_padding_is_reversible_or_refused_with_the_padding_to_set(
    image_size: int, padding: int, depth: int, channels: int
) -> None:
    def build(padding: int) -> VaeConfig:
        return VaeConfig(
            channels=channels, image_size=image_size, padding=padding, depth=depth,
            hidden_channels=2, hidden_units=4, latent_dim=2,
        )  # fmt: skip

    if (image_size + 2 * padding) % 2**depth:
        with pytest.raises(ValidationError) as caught:
            build(padding)
        message = str(caught.value)
        if image_size % 2:
            assert "resize the images" in message
            return
        padding = int(message.split("set padding=")[1].split()[0])
    vae = tiny(config=build(padding))
    images = torch.rand(2, channels, image_size, image_size)
    with torch.inference_mode():
        mean, _ = vae.encode(images)
        assert vae.decode(mean).shape == images.shape


def test_padding_is_black_and_cropped_on_every_side() -> None:
    padded = tiny(config=TINY.model_copy(update={"image_size": 4, "padding": 2}))
    plain = tiny()
    plain.load_state_dict(padded.state_dict())
    images = torch.rand(3, 1, 4, 4)
    framed = torch.zeros(3, 1, 8, 8)
    framed[:, :, 2:6, 2:6] = images
    torch.testing.assert_close(padded.encode(images), plain.encode(framed))
    codes = torch.randn(3, 3)
    torch.testing.assert_close(padded.decode(codes), plain.decode(codes)[:, :, 2:6, 2:6])


@pytest.mark.parametrize("shape", [(2, 1, 9, 8), (2, 1, 16, 16), (2, 3, 8, 8), (1, 8, 8)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"must be \(n, 1, 8, 8\), got .*resize them, or build"):
        tiny().encode(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(2, 4), (3,), (2, 3, 1)])
def test_codes_of_another_dimension_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"latents must be \(n, 3\), got"):
        tiny().decode(torch.zeros(shape))


def test_bytes_and_pixels_are_encoded_alike(shapes: ImageDataset, trained_vae: BetaVAE) -> None:
    images = shapes.test.images[:9]
    with torch.inference_mode():
        torch.testing.assert_close(
            trained_vae.encode(images), trained_vae.encode(images.double().div(255).float())
        )


def test_decode_is_the_sigmoid_of_the_logits(trained_vae: BetaVAE) -> None:
    codes = torch.randn(6, 4)
    with torch.inference_mode():
        expected = 1 / (1 + (-trained_vae.decode_logits(codes).double()).exp())
        torch.testing.assert_close(trained_vae.decode(codes).double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("image_size", [8, 28, 30, 32, 64])
@pytest.mark.parametrize("depth", [2, 3, 4])
def test_the_config_for_a_shape_has_the_least_padding(image_size: int, depth: int) -> None:
    config = vae_config_for((3, image_size, image_size), depth=depth, latent_dim=5)
    assert (config.channels, config.image_size, config.latent_dim) == (3, image_size, 5)
    least = min(p for p in range(20) if (image_size + 2 * p) % 2**depth == 0)
    assert config.padding == least


@pytest.mark.parametrize(
    ("shape", "told"),
    [((1, 28, 30), "square images, got 28×30; load the data with image_size"),
     ((1, 29, 29), "multiple of .*resize the images")],
)  # fmt: skip
def test_a_shape_that_does_not_fit_is_told_the_remedy(shape: tuple[int, int, int], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        vae_config_for(shape)


# Training


def test_equal_seeds_give_equal_weights_and_others_do_not(shapes: ImageDataset) -> None:
    states = []
    for seed in (1, 1, 2):
        vae = tiny()
        history = train_vae(
            vae, shapes.train.images, config=TRAINING.model_copy(update={"epochs": 1}), seed=seed
        )
        states.append((vae.state_dict(), history))
    assert same(states[0][0], states[1][0])
    assert states[0][1] == states[1][1]
    assert not same(states[0][0], states[2][0])


def test_training_does_not_touch_the_global_generator(shapes: ImageDataset) -> None:
    vae = tiny()
    before = torch.random.get_rng_state()
    train_vae(vae, shapes.train.images, config=TRAINING.model_copy(update={"epochs": 1}), seed=1)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_the_loss_falls_and_the_weight_rises(shapes: ImageDataset) -> None:
    vae = tiny()
    history = train_vae(vae, shapes.train.images, config=TRAINING, seed=0)
    reconstruction = [epoch["reconstruction"] for epoch in history]
    assert len(history) == 5
    assert reconstruction == sorted(reconstruction, reverse=True)
    assert reconstruction[-1] < 0.95 * reconstruction[0]
    # 8 steps an epoch, the weight reported is that of the last one
    assert [epoch["kl_weight"] for epoch in history] == [7 / 20, 15 / 20, 1, 1, 1]
    for epoch in history:
        assert epoch["monitored"] == pytest.approx(epoch["reconstruction"] + 0.3 * epoch["kl"])
    assert not vae.training


def test_codes_are_drawn_with_the_deviation_of_the_posterior(shapes: ImageDataset) -> None:
    """At mean 0 and sd 6 everywhere, the first loss is that of decoded N(0, 36)."""
    vae = tiny()
    with torch.no_grad():
        vae.encoder[-1].weight.zero_()
        vae.encoder[-1].bias.copy_(torch.tensor([0.0] * 3 + [2 * math.log(6)] * 3))
        for layer in vae.decoder:
            if isinstance(layer, torch.nn.Linear | torch.nn.ConvTranspose2d):
                layer.weight.mul_(3)
        codes = Normal(0.0, 6.0).sample((24_000, 3))
        logits = vae.decode_logits(codes)
    pixels = as_pixels(shapes.train.images).repeat(100, 1, 1, 1)
    bernoulli = Bernoulli(logits=logits, validate_args=False)
    expected = -bernoulli.log_prob(pixels).sum((1, 2, 3))
    config = TRAINING.model_copy(update={"epochs": 1, "batch_size": len(shapes.train)})
    history = train_vae(vae, shapes.train.images, config=config, seed=0)
    error = 5 * float(expected.std()) / math.sqrt(len(shapes.train))
    assert history[0]["reconstruction"] == pytest.approx(float(expected.mean()), abs=error)
    assert history[0]["kl"] == pytest.approx(3 * (36 - 1 - math.log(36)) / 2, rel=1e-4)


def test_a_trained_vae_reconstructs_better_than_the_mean_image(
    shapes: ImageDataset, trained_vae: BetaVAE
) -> None:
    images = as_pixels(shapes.test.images)
    decoded = decode_images(trained_vae, encode_means(trained_vae, shapes.test.images))
    baseline = as_pixels(shapes.train.images).mean(0)
    assert (decoded - images).square().mean() < 0.5 * (baseline - images).square().mean()


def test_a_callback_stops_and_keeps_what_there_is(shapes: ImageDataset) -> None:
    seen: list[tuple[int, int]] = []
    stopped, short = tiny(), tiny()

    def callback(epoch: int, of: int, metrics: Mapping[str, float]) -> bool:
        seen.append((epoch, of))
        assert {"loss", "reconstruction", "kl", "kl_weight", "monitored"} <= metrics.keys()
        return epoch == 2

    history = train_vae(stopped, shapes.train.images, config=TRAINING, seed=0, callback=callback)
    two_epochs = TRAINING.model_copy(update={"epochs": 2})
    expected = train_vae(short, shapes.train.images, config=two_epochs, seed=0)
    assert seen == [(1, 5), (2, 5)]
    assert history == expected
    assert same(stopped.state_dict(), short.state_dict())
    assert not stopped.training


def test_a_loss_that_is_not_finite_is_told_the_remedy(shapes: ImageDataset) -> None:
    config = TRAINING.model_copy(update={"learning_rate": 1e20})
    with pytest.raises(DivergenceError, match=r"diverged at epoch \d: .*; lower learning_rate"):
        train_vae(tiny(), shapes.train.images, config=config, seed=0)


# Resuming


@pytest.mark.parametrize("stop", [1, 2, 4])
def test_a_resumed_training_ends_as_an_undisturbed_one(
    shapes: ImageDataset, tmp_path: Path, stop: int
) -> None:
    path = tmp_path / "vae.safetensors"
    undisturbed, stopped, resumed = tiny(), tiny(), tiny(seed=9)
    images = shapes.train.images
    expected = train_vae(undisturbed, images, config=TRAINING, seed=3)
    train_vae(stopped, images, config=TRAINING, seed=3, callback=stop_after(stop), checkpoint=path)
    seen: list[int] = []
    history = train_vae(
        resumed, images, config=TRAINING, seed=3, checkpoint=path,
        callback=lambda epoch, _of, _metrics: seen.append(epoch),
    )  # fmt: skip
    assert seen == list(range(stop + 1, 6))
    assert history == expected
    assert same(resumed.state_dict(), undisturbed.state_dict())


def test_a_checkpoint_does_not_change_the_training(shapes: ImageDataset, tmp_path: Path) -> None:
    with_file, without = tiny(), tiny()
    config = TRAINING.model_copy(update={"epochs": 2})
    train_vae(with_file, shapes.train.images, config=config, seed=0, checkpoint=tmp_path / "x")
    train_vae(without, shapes.train.images, config=config, seed=0)
    assert same(with_file.state_dict(), without.state_dict())


def test_a_finished_training_is_read_and_not_repeated(shapes: ImageDataset, tmp_path: Path) -> None:
    first, second = tiny(), tiny(seed=9)
    config = TRAINING.model_copy(update={"epochs": 2})
    path = tmp_path / "x"
    expected = train_vae(first, shapes.train.images, config=config, seed=0, checkpoint=path)
    written = path.read_bytes()
    history = train_vae(second, shapes.train.images, config=config, seed=0, checkpoint=path)
    assert history == expected
    assert same(first.state_dict(), second.state_dict())
    assert path.read_bytes() == written


@pytest.fixture
def stopped_checkpoint(shapes: ImageDataset, tmp_path: Path) -> Path:
    path = tmp_path / "stopped.safetensors"
    train_vae(
        tiny(), shapes.train.images, config=TRAINING, seed=0, callback=stop_after(1),
        checkpoint=path,
    )  # fmt: skip
    return path


@pytest.mark.parametrize(
    ("training", "vae", "seed", "n"),
    [
        ({"beta": 0.5}, {}, 0, 240),
        ({"epochs": 6}, {}, 0, 240),
        ({}, {"latent_dim": 5}, 0, 240),
        ({}, {}, 1, 240),
        ({}, {}, 0, 239),
    ],
    ids=["beta", "epochs", "latent_dim", "seed", "images"],
)
def test_a_checkpoint_of_another_training_is_refused(
    shapes: ImageDataset,
    stopped_checkpoint: Path,
    training: dict[str, object],
    vae: dict[str, object],
    seed: int,
    n: int,
) -> None:
    other = tiny(config=TINY.model_copy(update=vae))
    before = copy_state(other)
    config = TRAINING.model_copy(update=training)
    with pytest.raises(ValueError, match=r"stopped\.safetensors belongs to another.*delete it, or"):
        train_vae(other, shapes.train.images[:n], config=config, seed=seed, checkpoint=stopped_checkpoint)
    assert same(other.state_dict(), before)


@pytest.mark.parametrize("keep", [0, 20, 1000, -1])
def test_a_truncated_checkpoint_is_refused(shapes: ImageDataset, stopped_checkpoint: Path, keep: int) -> None:
    stopped_checkpoint.write_bytes(stopped_checkpoint.read_bytes()[:keep])
    vae = tiny()
    before = copy_state(vae)
    with pytest.raises(CheckpointError, match=r"stopped\.safetensors is not a whole .*download"):
        train_vae(vae, shapes.train.images, config=TRAINING, seed=0, checkpoint=stopped_checkpoint)
    assert same(vae.state_dict(), before)


# Patience

PATIENT = TRAINING.model_copy(
    update={"epochs": 40, "patience": 3, "kl_anneal_steps": 0, "learning_rate": 1e-2}
)


def negatives(shapes: ImageDataset) -> Tensor:
    """Images that look worse the better the training images are learnt."""
    assert shapes.validation is not None
    return 255 - shapes.validation.images


def best_epoch(history: list[dict[str, float]]) -> int:
    monitored = [epoch["monitored"] for epoch in history]
    return 1 + monitored.index(min(monitored))


def weights_after(shapes: ImageDataset, epoch: int) -> dict[str, Tensor]:
    """Weights of a training without patience that ends at `epoch`."""
    vae = tiny()
    config = PATIENT.model_copy(update={"patience": None, "epochs": epoch})
    train_vae(vae, shapes.train.images, config=config, seed=0)
    return copy_state(vae)


def test_patience_stops_and_restores_the_best_epoch(shapes: ImageDataset) -> None:
    vae = tiny()
    history = train_vae(vae, shapes.train.images, config=PATIENT, seed=0, validation_images=negatives(shapes))
    best = best_epoch(history)
    assert len(history) == best + 3 < 40
    assert same(vae.state_dict(), weights_after(shapes, best))


@pytest.mark.parametrize("beyond", [0, 1, 2, 3])
def test_patience_holds_across_a_resume(shapes: ImageDataset, tmp_path: Path, beyond: int) -> None:
    images, validation = shapes.train.images, negatives(shapes)
    undisturbed, resumed = tiny(), tiny(seed=9)
    expected = train_vae(undisturbed, images, config=PATIENT, seed=0, validation_images=validation)
    stop, path = best_epoch(expected) + beyond, tmp_path / "vae.safetensors"
    train_vae(
        tiny(), images, config=PATIENT, seed=0, validation_images=validation,
        callback=stop_after(stop), checkpoint=path,
    )  # fmt: skip
    history = train_vae(
        resumed, images, config=PATIENT, seed=0, validation_images=validation, checkpoint=path
    )
    assert history == expected
    assert same(resumed.state_dict(), undisturbed.state_dict())


def test_a_callback_that_stops_a_patient_training_leaves_the_best_epoch(
    shapes: ImageDataset,
) -> None:
    vae = tiny()
    validation = negatives(shapes)
    full = train_vae(tiny(), shapes.train.images, config=PATIENT, seed=0, validation_images=validation)
    best = best_epoch(full)
    train_vae(
        vae, shapes.train.images, config=PATIENT, seed=0, validation_images=validation,
        callback=stop_after(best + 1),
    )  # fmt: skip
    assert same(vae.state_dict(), weights_after(shapes, best))


# Batches


@pytest.mark.parametrize("n", [0, 1, 511, 512, 513, 1030])
def test_codes_do_not_depend_on_where_batches_end(trained_vae: BetaVAE, n: int) -> None:
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (n, 1, 8, 8), generator=rng, dtype=torch.uint8)
    means = encode_means(trained_vae, images)
    assert means.shape == (n, 4)
    with torch.no_grad():
        expected = [trained_vae.encode(part)[0] for part in images.split(37)] if n else []
    torch.testing.assert_close(means, torch.cat(expected) if n else means, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("n", [0, 1, 511, 512, 513, 1030])
def test_decodes_do_not_depend_on_where_batches_end(trained_vae: BetaVAE, n: int) -> None:
    codes = torch.randn(n, 4, generator=torch.Generator().manual_seed(0))
    images = decode_images(trained_vae, codes)
    assert images.shape == (n, 1, 8, 8)
    with torch.no_grad():
        expected = [trained_vae.decode(part) for part in codes.split(37)] if n else []
    torch.testing.assert_close(images, torch.cat(expected) if n else images, rtol=1e-4, atol=1e-5)


def test_results_can_be_trained_on(trained_vae: BetaVAE, shapes: ImageDataset) -> None:
    """Tensors of inference mode could not take part in autograd."""
    for result in (
        encode_means(trained_vae, shapes.test.images),
        decode_images(trained_vae, torch.zeros(2, 4)),
    ):
        weight = torch.ones((), requires_grad=True)
        (result * weight).sum().backward()
        assert weight.grad is not None
        assert float(weight.grad) == pytest.approx(float(result.sum()), rel=1e-5)


def test_resuming_on_other_images_is_refused(shapes: ImageDataset, tmp_path: Path) -> None:
    path, config = tmp_path / "vae.safetensors", VaeTraining(epochs=2, batch_size=32, precision="fp32")
    small = VaeConfig(image_size=8, padding=0, hidden_channels=4, depth=1, hidden_units=8, latent_dim=2)
    images = shapes.train.images
    train_vae(BetaVAE(small), images, config=config, seed=0, checkpoint=path, callback=lambda *_: True)
    with pytest.raises(ValueError, match=r"belongs to another training.*delete it"):
        train_vae(BetaVAE(small), 255 - images, config=config, seed=0, checkpoint=path)


def test_training_on_no_images_names_the_remedy() -> None:
    vae = BetaVAE(VaeConfig(hidden_channels=2, hidden_units=4))
    with pytest.raises(ValueError, match="at least one image, got none; give the training split"):
        train_vae(vae, torch.zeros(0, 1, 28, 28, dtype=torch.uint8), config=VaeTraining(), seed=0)
