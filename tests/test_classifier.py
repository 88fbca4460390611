"""Preprocessing, prediction and training of classifiers, and the networks that come with them."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision import models
from torchvision.transforms.v2.functional import resize

from defuse_core.base.config import ClassifierTraining
from defuse_core.base.errors import DivergenceError
from defuse_core.base.limits import MAX_IMAGE_SIZE
from defuse_core.base.runtime import make_optimizer
from defuse_core.data.splits import ImageDataset, Split, as_pixels
from defuse_core.method.augmentation import augment
from defuse_core.method.classifier import (
    Classifier,
    Preprocessing,
    accuracy,
    predict,
    predict_logits,
    train_classifier,
)
from defuse_core.networks.architectures import (
    ARCHITECTURES,
    SIZED,
    ByteDropout,
    MnistCnn,
    build_network,
    imagenet_weights,
)
from defuse_core.steps.feeding import stated_preprocessing
from defuse_core.workspace.configs import NetworkConfig

PLAIN = Preprocessing()


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_images(n: int, channels: int = 1, size: int = 8, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (n, channels, size, size), generator=rng(seed), dtype=torch.uint8)


# Preprocessing


@given(n=st.integers(1, 6), channels=st.sampled_from([1, 3]), seed=st.integers(0, 99))
def test_preprocessing_has_the_mean_and_deviation_of_the_images(n: int, channels: int, seed: int) -> None:
    images = some_images(n, channels, seed=seed)
    pixels = images.numpy().astype(np.float64) / 255
    preprocessing = Preprocessing.of(images)
    assert preprocessing.mean == pytest.approx(pixels.mean((0, 2, 3)), rel=1e-9)
    assert preprocessing.std == pytest.approx(pixels.std((0, 2, 3)), rel=1e-6)


def test_a_constant_channel_gives_finite_pixels() -> None:
    images = torch.full((2, 1, 4, 4), 77, dtype=torch.uint8)
    x = Classifier(nn.Identity(), Preprocessing.of(images)).preprocess(images)
    assert x.isfinite().all()


@pytest.mark.parametrize(
    ("mean", "std", "told"),
    [
        ((0.0, 0.0), (1.0, 1.0), "mean and std need 1 or 3 values each"),
        ((0.0,), (1.0, 1.0, 1.0), "mean and std need 1 or 3 values each"),
        ((), (), "mean and std need 1 or 3 values each"),
        ((0.0,), (0.0,), r"std must be positive, got \(0.0,\); for no scaling give 1"),
        ((0.0,) * 3, (1.0, -1.0, 1.0), "std must be positive"),
        ((0.0,), (float("nan"),), "std must be positive"),
    ],
)
def test_bad_mean_and_std_are_refused(mean: tuple[float, ...], std: tuple[float, ...], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        Preprocessing(mean, std)


@pytest.mark.parametrize("image_size", [0, MAX_IMAGE_SIZE + 1])
def test_a_size_that_no_image_is_resized_to_is_refused(image_size: int) -> None:
    with pytest.raises(ValueError, match=rf"image_size must be 1 to 4096 pixels, got {image_size}; give"):
        Preprocessing(image_size=image_size)


def test_images_are_normalised_by_channel() -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    images = some_images(4, 3)
    expected = (images.numpy() / 255.0 - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    x = Classifier(nn.Identity(), Preprocessing(mean, std)).preprocess(images)
    np.testing.assert_allclose(x.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_grey_images_are_repeated_to_three_channels() -> None:
    preprocessing = Preprocessing((0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    classifier = Classifier(nn.Identity(), preprocessing)
    grey = some_images(2)
    assert torch.equal(classifier.preprocess(grey), classifier.preprocess(grey.expand(2, 3, 8, 8)))


def test_colour_images_for_a_grey_network_are_refused() -> None:
    with pytest.raises(ValueError, match="images have 3 channels, the classifier takes 1; give"):
        Classifier(nn.Identity(), PLAIN).preprocess(some_images(2, 3))


@pytest.mark.parametrize(("size", "to"), [(8, 8), (8, 16), (20, 7)])
def test_images_are_resized_as_torchvision_resizes_them(size: int, to: int) -> None:
    images = some_images(3, 3, size)
    x = Classifier(nn.Identity(), Preprocessing((0.0,) * 3, (1.0,) * 3, to)).preprocess(images)
    torch.testing.assert_close(x, resize(images.float() / 255, [to, to]), rtol=1e-4, atol=1e-5)


def test_bgr_networks_get_blue_first_with_its_own_mean_and_std() -> None:
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    images = some_images(4, 3)
    x = Classifier(nn.Identity(), Preprocessing(mean, std, channel_order="bgr")).preprocess(images)
    turned = images.numpy()[:, ::-1] / 255.0  # blue, green, red
    expected = (turned - np.reshape(mean, (3, 1, 1))) / np.reshape(std, (3, 1, 1))
    np.testing.assert_allclose(x.numpy(), expected, rtol=1e-5, atol=1e-6)


def test_bgr_is_of_three_channels_and_grey_images_have_no_order() -> None:
    with pytest.raises(ValueError, match="channel_order bgr needs three channels"):
        Preprocessing((0.0,), (1.0,), channel_order="bgr")
    grey = some_images(2)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    rgb, bgr = (Classifier(nn.Identity(), Preprocessing(mean, std, None, o)) for o in ("rgb", "bgr"))
    assert torch.equal(rgb.preprocess(grey), bgr.preprocess(grey))


@pytest.mark.parametrize(
    "preprocessing",
    [
        PLAIN,
        Preprocessing((0.1, 0.2, 0.3), (0.5, 0.6, 0.7), 48, "bgr"),
        Preprocessing((0.13066047740239478,), (1 / 255,)),
    ],
)
def test_preprocessing_is_read_back_from_json_bit_by_bit(preprocessing: Preprocessing) -> None:
    again = Preprocessing.of_json(json.loads(json.dumps(vars(preprocessing))))
    assert again == preprocessing
    assert hash(again) == hash(preprocessing)  # of tuples again, not of lists


def test_preprocessing_written_before_there_were_orders_is_rgb() -> None:
    assert Preprocessing.of_json({"mean": [0.5], "std": [0.5], "image_size": None}).channel_order == "rgb"


def test_bytes_and_pixels_reach_the_network_alike(trained_classifier: Classifier) -> None:
    images = some_images(5)
    with torch.inference_mode():
        assert torch.equal(trained_classifier(images), trained_classifier(as_pixels(images)))


# Prediction


@pytest.mark.parametrize("batch_size", [1, 7, 89, 90, 512])
def test_predictions_do_not_depend_on_the_batch_size(
    trained_classifier: Classifier, shapes: ImageDataset, batch_size: int
) -> None:
    images = shapes.test.images
    with torch.inference_mode():
        expected = trained_classifier(images)
    logits = predict_logits(trained_classifier, images, batch_size=batch_size)
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    predictions = predict(trained_classifier, images, batch_size=batch_size)
    assert predictions.dtype == torch.int64
    assert torch.equal(predictions, expected.argmax(1))


def test_no_images_give_no_predictions(trained_classifier: Classifier) -> None:
    assert predict(trained_classifier, some_images(0)).shape == (0,)
    assert predict_logits(trained_classifier, some_images(0)).shape == (0, 3)


class BrightestRow(nn.Module):
    """Answers with the index of the brightest row."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(3).flatten(1)


def rows(*brightest: int) -> Tensor:
    images = torch.zeros(len(brightest), 1, 4, 4, dtype=torch.uint8)
    for index, row in enumerate(brightest):
        images[index, 0, row] = 200
    return images


def test_accuracy_is_the_share_of_hits() -> None:
    classifier = Classifier(BrightestRow(), PLAIN)
    images = rows(0, 1, 2, 3)
    assert predict(classifier, images).tolist() == [0, 1, 2, 3]
    assert accuracy(classifier, Split(images, torch.tensor([0, 1, 2, 3]))) == 1
    assert accuracy(classifier, Split(images, torch.tensor([0, 1, 0, 0]))) == 0.5
    assert accuracy(classifier, Split(images, torch.tensor([3, 2, 1, 0]))) == 0


def test_accuracy_of_nothing_is_refused() -> None:
    split = Split(rows()[:0], torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="accuracy of an empty split is undefined; give at least"):
        accuracy(Classifier(BrightestRow(), PLAIN), split)


def noisy_network() -> nn.Sequential:
    """Dropout and batch normalisation: differs between training and evaluation mode."""
    return nn.Sequential(nn.BatchNorm2d(1), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 3))


@pytest.mark.parametrize("training", [True, False])
def test_prediction_is_in_evaluation_mode_and_restores_the_mode(training: bool) -> None:
    torch.manual_seed(0)
    classifier = Classifier(noisy_network(), PLAIN).train(training)
    images = some_images(20)
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    first, second = (predict_logits(classifier, images, batch_size=6) for _ in range(2))
    assert torch.equal(first, second)
    assert classifier.training is training
    assert {module.training for module in classifier.modules()} == {training}
    for name, tensor in classifier.state_dict().items():
        assert torch.equal(tensor, before[name]), name
    with torch.no_grad():
        reference = copy.deepcopy(classifier).eval()(images)
    torch.testing.assert_close(first, reference)


def test_the_mode_is_restored_after_an_error() -> None:
    classifier = Classifier(noisy_network(), PLAIN).train()
    with pytest.raises(ValueError, match="images have 3 channels"):
        predict(classifier, some_images(2, 3))
    assert classifier.training


def test_predicted_logits_can_be_trained_on(trained_classifier: Classifier) -> None:
    logits = predict_logits(trained_classifier, some_images(3))
    weight = torch.ones(3, requires_grad=True)
    (logits * weight).sum().backward()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, logits.sum(0))


def test_preprocessing_is_not_part_of_the_weights() -> None:
    classifier = Classifier(noisy_network(), Preprocessing((0.3,), (0.2,)))
    names = {name.removeprefix("network.") for name in classifier.state_dict()}
    assert names == set(noisy_network().state_dict())


# Training


def training_of(**changes: object) -> ClassifierTraining:
    defaults = {"optimizer": "adam", "learning_rate": 3e-3, "epochs": 2, "batch_size": 32}
    return ClassifierTraining.model_validate({**defaults, **changes})


def fresh() -> Classifier:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(144, 3))
    return Classifier(network, Preprocessing((0.2,), (0.3,)))


@pytest.mark.parametrize("augmentation", ["none", "affine", "elastic"])
def test_equal_seeds_give_equal_weights_and_others_do_not(shapes: ImageDataset, augmentation: str) -> None:
    states, histories = [], []
    for index, seed in enumerate((1, 1, 2)):
        classifier = fresh()
        torch.manual_seed(index)  # what else has been drawn does not matter
        config = training_of(augmentation=augmentation, epochs=1)
        histories.append(train_classifier(classifier, shapes.train, config=config, seed=seed))
        states.append(nn.utils.parameters_to_vector(classifier.parameters()))
    assert torch.equal(states[0], states[1])
    assert histories[0] == histories[1]
    assert not torch.equal(states[0], states[2])


def test_training_does_not_touch_the_global_generator(shapes: ImageDataset) -> None:
    classifier = fresh()
    before = torch.random.get_rng_state()
    train_classifier(classifier, shapes.train, config=training_of(), seed=0)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_training_learns_and_ends_in_evaluation_mode(shapes: ImageDataset) -> None:
    classifier = fresh()
    untrained = accuracy(classifier, shapes.test)
    history = train_classifier(classifier, shapes.train, config=training_of(epochs=8), seed=0)
    assert len(history) == 8
    assert history[-1]["loss"] < 0.5 * history[0]["loss"]
    assert history[-1]["accuracy"] > 0.8
    assert accuracy(classifier, shapes.test) > max(0.8, untrained)
    assert not classifier.training


def test_the_first_loss_is_the_cross_entropy_of_the_initial_weights(shapes: ImageDataset) -> None:
    torch.manual_seed(0)
    classifier = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), PLAIN)
    with torch.inference_mode():
        expected = F.cross_entropy(classifier(shapes.train.images), shapes.train.labels)
        hits = (classifier(shapes.train.images).argmax(1) == shapes.train.labels).float().mean()
    config = training_of(epochs=1, batch_size=len(shapes.train))
    history = train_classifier(classifier, shapes.train, config=config, seed=0)
    assert history[0]["loss"] == pytest.approx(float(expected), rel=1e-5)
    assert history[0]["accuracy"] == pytest.approx(float(hits))


def test_the_learning_rate_decays_by_a_cosine(shapes: ImageDataset) -> None:
    classifier = fresh()
    rates: list[float] = []
    config = training_of(learning_rate=1.0, final_learning_rate=0.2, epochs=4, batch_size=240)
    real = torch.optim.Adam.step

    def recording(optimizer: torch.optim.Adam, *arguments: object) -> object:
        rates.append(optimizer.param_groups[0]["lr"])
        return real(optimizer, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.Adam, "step", recording)
        train_classifier(classifier, shapes.train, config=config, seed=0)
    assert rates == pytest.approx(0.2 + 0.4 * (1 + np.cos(np.pi * np.arange(4) / 4)))


def test_a_callback_stops_and_keeps_what_there_is(shapes: ImageDataset) -> None:
    seen: list[tuple[int, int]] = []

    def callback(epoch: int, of: int, metrics: Mapping[str, float]) -> bool:
        seen.append((epoch, of))
        assert metrics.keys() == {"loss", "accuracy"}
        return epoch == 2

    stopped, short = fresh(), fresh()
    history = train_classifier(stopped, shapes.train, config=training_of(epochs=9), seed=0, callback=callback)
    expected = train_classifier(short, shapes.train, config=training_of(epochs=2), seed=0)
    assert seen == [(1, 9), (2, 9)]
    assert history == expected
    for name, tensor in short.state_dict().items():
        assert torch.equal(stopped.state_dict()[name], tensor)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("adadelta", torch.optim.Adadelta),
        ("adam", torch.optim.Adam),
        ("sgd", torch.optim.SGD),
    ],
)
def test_optimizers_by_name(kind: str, expected: type[torch.optim.Optimizer]) -> None:
    module = nn.Linear(2, 2)
    optimizer = make_optimizer(module, kind, 0.25)
    assert type(optimizer) is expected
    assert optimizer.param_groups[0]["lr"] == 0.25
    held = {id(parameter) for parameter in optimizer.param_groups[0]["params"]}
    assert held == {id(parameter) for parameter in module.parameters()}
    if kind == "sgd":
        group = optimizer.param_groups[0]
        assert (group["momentum"], group["nesterov"]) == (0.9, True)


def test_an_unknown_optimizer_is_told_what_there_is() -> None:
    with pytest.raises(ValueError, match="optimizer must be adadelta, adam or sgd, got 'rmsprop'"):
        make_optimizer(nn.Linear(2, 2), "rmsprop", 0.1)


# Augmentation


def test_no_augmentation_is_the_identity() -> None:
    images = torch.rand(3, 1, 8, 8)
    generator = rng()
    before = generator.get_state()
    assert augment(images, "none", generator) is images
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("kind", ["affine", "elastic"])
@pytest.mark.parametrize("shape", [(5, 1, 28, 28), (4, 3, 32, 32), (1, 1, 8, 8)])
def test_augmentation_keeps_shape_and_range(kind: str, shape: tuple[int, ...]) -> None:
    images = torch.rand(shape, generator=rng())
    before = images.clone()
    distorted = augment(images, kind, rng(1))
    assert distorted.shape == images.shape
    assert distorted.min() >= 0
    assert distorted.max() <= 1 + 1e-5
    assert torch.equal(images, before)
    assert not torch.allclose(distorted, images)


@pytest.mark.parametrize("kind", ["affine", "elastic"])
def test_augmentation_is_seeded_and_differs_by_image(kind: str) -> None:
    images = torch.rand(1, 1, 16, 16, generator=rng()).repeat(3, 1, 1, 1)
    first, again, other = (augment(images, kind, rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert not torch.allclose(first[0], first[1])


def test_affine_augmentation_moves_a_centred_disc_but_a_little() -> None:
    axis = torch.linspace(-1, 1, 28)
    disc = ((axis[:, None] ** 2 + axis[None] ** 2) < 0.25).float().expand(200, 1, 28, 28)
    moved = augment(disc, "affine", rng())
    mass = moved.sum((1, 2, 3))
    centre = (moved.sum((1, 2)) * axis).sum(1) / mass
    assert centre.abs().max() < 0.25  # 7 % of the width is 0.14, over the least scale
    assert centre.abs().max() > 0.08
    assert centre.mean().abs() < 0.03
    ratio = mass / disc[0].sum()
    assert ratio.min() > 0.7
    assert ratio.max() < 1.4


def test_an_unknown_augmentation_is_refused() -> None:
    with pytest.raises(ValueError, match="flip"):
        augment(torch.rand(1, 1, 8, 8), "flip", rng())


# Architectures


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize(("n_classes", "channels"), [(10, 1), (4, 3)])
def test_every_architecture_gives_logits(name: str, n_classes: int, channels: int) -> None:
    network = build_network(name, n_classes=n_classes, channels=channels).eval()
    x = torch.rand(2, channels, 28, 28)
    with torch.inference_mode():
        logits = network(x)
        alone = network(x[1:])
    assert logits.shape == (2, n_classes)
    assert logits.isfinite().all()
    torch.testing.assert_close(logits[1:], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_weight_of_an_architecture_is_trained(name: str) -> None:
    torch.manual_seed(0)
    network = build_network(name, n_classes=3, channels=1)
    F.cross_entropy(network(torch.rand(4, 1, 28, 28)), torch.tensor([0, 1, 2, 0])).backward()
    still = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert not still


class PytorchExample(nn.Module):
    """The network of PyTorch's MNIST example, written as it is there."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3, 1)
        self.conv2 = nn.Conv2d(32, 64, 3, 1)
        self.dropout1 = nn.Dropout(0.25)
        self.dropout2 = nn.Dropout(0.5)
        self.fc1 = nn.Linear(9216, 128)
        self.fc2 = nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv2(F.relu(self.conv1(x))))
        x = torch.flatten(self.dropout1(F.max_pool2d(x, 2)), 1)
        return self.fc2(self.dropout2(F.relu(self.fc1(x))))


def test_mnist_cnn_is_that_of_pytorchs_example() -> None:
    network, example = MnistCnn().eval(), PytorchExample().eval()
    assert {name: tuple(p.shape) for name, p in network.named_parameters()} == {
        "conv1.weight": (32, 1, 3, 3),
        "conv1.bias": (32,),
        "conv2.weight": (64, 32, 3, 3),
        "conv2.bias": (64,),
        "fc1.weight": (128, 9216),
        "fc1.bias": (128,),
        "fc2.weight": (10, 128),
        "fc2.bias": (10,),
    }
    network.load_state_dict(example.state_dict())
    x = torch.randn(3, 1, 28, 28)
    with torch.inference_mode():
        torch.testing.assert_close(network(x), example(x), rtol=1e-4, atol=1e-5)


def test_paper_cnn_is_that_of_figure_8_with_ten_outputs() -> None:
    network = build_network("paper_cnn", n_classes=10, channels=1)
    assert [tuple(p.shape) for p in network.parameters() if p.ndim > 1] == [
        (64, 1, 4, 4), (256, 64 * 13 * 13), (256, 256), (10, 256)
    ]  # fmt: skip
    assert [type(m).__name__ for m in network.children()] == [
        "Conv2d", "ReLU", "Flatten", "Linear", "ReLU", "Linear", "ReLU", "Linear"
    ]  # fmt: skip
    assert network(torch.rand(2, 1, 28, 28)).shape == (2, 10)


def test_an_unknown_architecture_is_told_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"must be one of mnist_cnn, .*resnet18, got 'resnet999'"):
        build_network("resnet999", n_classes=10, channels=1)


@pytest.mark.parametrize("name", ["lenet5", "lenet5_tanh_avg", "mlp"])
def test_networks_that_take_their_sizes_from_weights_need_them(name: str) -> None:
    with pytest.raises(ValueError, match=rf"{name} takes its sizes from weights; give like"):
        build_network(name, n_classes=10, channels=1)


@pytest.mark.parametrize(
    ("name", "image_size", "width"),
    [
        ("mnist_cnn", 28, 9216),
        ("mnist_cnn", 32, 12544),
        ("mnist_cnn", 29, 9216),
        ("paper_cnn", 28, 10816),
        ("paper_cnn", 32, 14400),
        ("paper_cnn", 29, 10816),
    ],
)
def test_networks_of_one_image_size_take_it_from_weights(name: str, image_size: int, width: int) -> None:
    like = ARCHITECTURES[name](image_size=image_size).state_dict()
    assert like[SIZED[name]].shape[1] == width
    network = build_network(name, n_classes=10, channels=1, like=like)
    network.load_state_dict(like)
    assert network(torch.rand(2, 1, image_size, image_size)).shape == (2, 10)


# torchvision's


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1", "shufflenet_v2_x0_5"])
@pytest.mark.parametrize("channels", [1, 3])
def test_torchvisions_networks_take_grey_images_too(name: str, channels: int) -> None:
    torch.manual_seed(0)
    network = build_network(name, n_classes=4, channels=channels)
    x = torch.rand(3, channels, 64, 64)
    assert network.eval()(x).shape == (3, 4)
    F.cross_entropy(network.train()(x), torch.tensor([0, 1, 2])).backward()
    first = next(module for module in network.modules() if isinstance(module, nn.Conv2d))
    assert first.weight.shape[1] == channels
    assert first.weight.grad.abs().sum() > 0
    reference = models.get_model(name, weights=None, num_classes=4)
    other = next(module for module in reference.modules() if isinstance(module, nn.Conv2d))
    for option in ("stride", "padding", "kernel_size", "out_channels"):
        assert getattr(first, option) == getattr(other, option)
    assert (first.bias is None) == (other.bias is None)


def test_resnet18_is_torchvisions() -> None:
    network = build_network("resnet18", n_classes=7, channels=3)
    reference = models.resnet18(weights=None, num_classes=7)
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    assert shapes == {name: tensor.shape for name, tensor in reference.state_dict().items()}


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_auxiliary_classifiers_do_not_reach_the_classifiers_logits(name: str) -> None:
    """In training mode these networks return a tuple; fine-tuning wants its first element."""
    like = {"aux1.fc1.weight": torch.ones(1)} if name == "googlenet" else {"AuxLogits.fc.bias": torch.ones(1)}
    network = build_network(name, n_classes=4, channels=3, like=like)
    size = 32 if name == "googlenet" else 299
    classifier = Classifier(network, Preprocessing((0.5,) * 3, (0.5,) * 3, size)).train()
    images = torch.rand(2, 3, 32, 32)
    assert classifier(images).shape == (2, 4)
    assert classifier.eval()(images).shape == (2, 4)
    assert any(key.lower().startswith("aux") for key in network.state_dict())
    assert not any(
        key.lower().startswith("aux") for key in build_network(name, n_classes=4, channels=3).state_dict()
    )


# ImageNet's weights


@pytest.fixture
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of weights, and a downloader that finds no network."""

    def offline(*_: object, **__: object) -> None:
        raise OSError("network is unreachable")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    monkeypatch.setattr("torch.hub._hub_dir", None)
    return tmp_path / "hub" / "checkpoints"


@pytest.mark.parametrize(
    ("name", "file"),
    [("resnet18", "resnet18-f37072fd.pth"), ("squeezenet1_1", "squeezenet1_1-b8a52dc0.pth")],
)
def test_imagenet_weights_that_cannot_be_had_are_told_the_remedy(
    no_network: Path, name: str, file: str
) -> None:
    with pytest.raises(RuntimeError, match="network is unreachable") as caught:
        imagenet_weights(name)
    message = str(caught.value)
    assert message.startswith(f"ImageNet weights of {name} could not be downloaded")
    assert "connect to the network" in message
    assert f"put {file} into {no_network}" in message
    assert message.endswith("or begin with random weights")


def test_imagenet_weights_in_the_cache_are_loaded_without_a_network(no_network: Path) -> None:
    torch.manual_seed(0)
    stored = models.resnet18(weights=None).state_dict()
    no_network.mkdir(parents=True)
    torch.save(stored, no_network / "resnet18-f37072fd.pth")
    found = imagenet_weights("resnet18")
    assert found.keys() == stored.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in stored.items())


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"PK\3\4 cut off"])
def test_unreadable_imagenet_weights_are_told_the_remedy(no_network: Path, content: bytes) -> None:
    no_network.mkdir(parents=True)
    (no_network / "resnet18-f37072fd.pth").write_bytes(content)
    with pytest.raises(RuntimeError, match=r"put resnet18-f37072fd\.pth into .*begin with random weights"):
        imagenet_weights("resnet18")


@pytest.mark.parametrize("name", ["mnist_cnn", "resnet_small", "resnet999", "maskrcnn_resnet50_fpn"])
def test_there_are_imagenet_weights_for_torchvisions_classifiers_only(no_network: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"for torchvision's models only, got '{name}'"):
        imagenet_weights(name)
    assert not no_network.exists()


@pytest.mark.usefixtures("no_network")
def test_a_model_without_imagenet_weights_of_its_own_is_told() -> None:
    with pytest.raises(ValueError, match="no weights of vit_h_14 trained on ImageNet alone"):
        imagenet_weights("vit_h_14")


def test_a_last_batch_of_one_image_is_left_out(shapes: ImageDataset) -> None:
    """Batch-norm on a single value has no variance, and torch refuses it."""
    n_classes = shapes.n_classes
    networks = []
    for split in (shapes.train[:17], shapes.train[:16]):
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Flatten(), nn.Linear(64, 4), nn.BatchNorm1d(4), nn.Linear(4, n_classes)
        )  # fmt: skip
        classifier = Classifier(network, PLAIN)
        config = ClassifierTraining(optimizer="sgd", learning_rate=0.1, epochs=1, batch_size=8)
        (history,) = train_classifier(classifier, split, config=config, seed=0)
        assert math.isfinite(history["loss"])
        networks.append(network)
    assert networks[0][2].num_batches_tracked == networks[1][2].num_batches_tracked == 2


def test_batches_of_one_train_where_that_is_asked(shapes: ImageDataset) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, shapes.n_classes))
    was = copy.deepcopy(network.state_dict())
    config = ClassifierTraining(optimizer="sgd", learning_rate=0.1, epochs=1, batch_size=1)
    (history,) = train_classifier(Classifier(network, PLAIN), shapes.train[:5], config=config, seed=0)
    assert history["loss"] > 0
    assert not torch.equal(network.state_dict()["1.weight"], was["1.weight"])


def test_training_with_a_last_batch_of_one_goes_on_where_it_was(shapes: ImageDataset, tmp_path: Path) -> None:
    """The rate decays by the step, which a batch left out counts, too."""
    config = ClassifierTraining(
        optimizer="sgd", learning_rate=0.1, final_learning_rate=1e-3, epochs=3, batch_size=8
    )

    def network() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, shapes.n_classes))

    split, path = shapes.train[:33], tmp_path / "training.safetensors"
    undisturbed, begun, resumed = network(), network(), network()
    train_classifier(Classifier(undisturbed, PLAIN), split, config=config, seed=0)
    train_classifier(
        Classifier(begun, PLAIN), split, config=config, seed=0, checkpoint=path, callback=lambda *_: True
    )
    train_classifier(Classifier(resumed, PLAIN), split, config=config, seed=0, checkpoint=path)
    for name, tensor in undisturbed.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


@pytest.mark.parametrize("stop_after", [None, 2, 5])
def test_a_training_that_selects_ends_with_its_best_epoch(
    shapes: ImageDataset, tmp_path: Path, stop_after: int | None
) -> None:
    """The first of equals, on labels that cannot be learned; also where it stopped before or after it."""
    assert shapes.validation is not None
    labels = torch.randint(3, (60,), generator=torch.Generator().manual_seed(2))
    selection = Split(shapes.validation.images, labels)
    config = ClassifierTraining(optimizer="sgd", learning_rate=0.01, epochs=6, batch_size=32)
    path = tmp_path / "training.safetensors"
    reached: list[float] = []
    weights: list[Mapping[str, Tensor]] = []

    def train(*, stop: int | None) -> Classifier:
        torch.manual_seed(0)
        classifier = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, shapes.n_classes)), PLAIN)

        def keep(epoch: int, _: int, metrics: Mapping[str, float]) -> bool:
            reached.append(metrics["selection"])
            weights.append(copy.deepcopy(classifier.state_dict()))
            return epoch == stop

        train_classifier(
            classifier, shapes.train, config=config, seed=0, selection=selection, callback=keep,
            checkpoint=path,
        )  # fmt: skip
        return classifier

    if stop_after is not None:
        train(stop=stop_after)
    classifier = train(stop=None)
    best = reached.index(max(reached))
    assert (best, reached.count(reached[best])) == (3, 2)
    assert accuracy(classifier, selection) == reached[best]
    for name, tensor in weights[best].items():
        assert torch.equal(tensor, classifier.state_dict()[name]), name


@pytest.mark.parametrize("p", [0.25, 0.5])
def test_byte_dropout_drops_a_share_of_p_and_keeps_the_mean(p: float) -> None:
    units = torch.ones(1000, 1001, requires_grad=True)  # not a multiple of eight
    torch.manual_seed(0)
    out = ByteDropout(p)(units)
    assert float((out == 0).double().mean()) == pytest.approx(p, abs=0.003)  # six standard deviations
    assert out.unique().tolist() == pytest.approx([0, 1 / (1 - p)])
    out.sum().backward()
    torch.testing.assert_close(units.grad, out.detach())
    torch.manual_seed(0)
    torch.testing.assert_close(ByteDropout(p)(units), out)
    assert not torch.equal(ByteDropout(p)(units), out)


def test_byte_dropout_at_the_ends_and_in_evaluation_is_torchs() -> None:
    units = torch.rand(5, 7)
    assert torch.equal(ByteDropout(0.0)(units), units)
    assert torch.equal(ByteDropout(1.0)(units), torch.zeros(5, 7))
    assert torch.equal(ByteDropout(0.5).eval()(units), units)


@pytest.mark.parametrize(
    ("std", "batch_size", "told"),
    [(1e-30, 8, "epoch 1: loss .*"), (1e-30, 480, r"epoch 1: .*weight is not finite")],
    ids=["loss", "weights"],
)
def test_a_training_that_diverges_fails_and_keeps_the_last_good_epoch(
    shapes: ImageDataset, tmp_path: Path, std: float, batch_size: int, told: str
) -> None:
    """With one batch an epoch the loss is that of the weights before; only they show it."""
    path = tmp_path / "training.safetensors"
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, shapes.n_classes))
    config = ClassifierTraining(optimizer="sgd", learning_rate=1e10, epochs=3, batch_size=batch_size)
    with pytest.raises(DivergenceError, match=f"diverged at {told}; lower learning_rate, and check"):
        train_classifier(
            Classifier(network, Preprocessing(std=(std,))), shapes.train[:480],
            config=config, seed=0, checkpoint=path,
        )  # fmt: skip
    assert not path.exists()


@pytest.mark.parametrize(
    ("mean", "std", "told"),
    [
        ((0.5,), (0.5, 0.5, 0.5), "mean and std need 1 or 3 values each"),
        ((0.5, 0.5), (0.5, 0.5), "mean and std need 1 or 3 values each"),
        ((), (), "mean and std need 1 or 3 values each"),
        ((0.5,), (0.0,), "std must be positive"),
        ((0.5,), (-1.0,), "std must be positive"),
        ((0.5,), (math.nan,), "std must be positive"),
        ((0.5,), (1e-50,), "std must be positive, got .1e-50"),
        ((math.nan,), (1.0,), "mean must be finite"),
        ((1e300,), (1.0,), "mean must be finite"),
    ],
)
def test_a_mean_or_std_that_no_network_could_take_is_refused(
    mean: tuple[float, ...], std: tuple[float, ...], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        Preprocessing(mean, std)


def test_a_mean_and_a_std_of_other_lengths_are_refused_as_stated(shapes: ImageDataset) -> None:
    for mean, std in (((0.5,), (0.5,) * 3), ((0.5,) * 3, (0.5,))):
        with pytest.raises(ValueError, match="mean and std need 1 or 3 values each"):
            NetworkConfig(mean=mean, std=std)
        unchecked = NetworkConfig.model_construct(mean=mean, std=std, image_size=None, channel_order="rgb")
        with pytest.raises(ValueError, match="mean and std need 1 or 3 values each"):
            stated_preprocessing(unchecked, shapes)
    assert len(stated_preprocessing(NetworkConfig(mean=(0.5,) * 3), shapes).std) == 3
