"""Networks as users write them are told by their weights, rebuilt, and answer as the users' own do."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

from defuse_core.base.checkpoints import load_weights
from defuse_core.networks.architectures import ARCHITECTURES, SIZED, build_network
from defuse_core.networks.detection import Fit, describe_misfit, detect
from defuse_core.networks.formats import Weights, read_weights
from tests.tutorial_networks import (
    CifarTutorial,
    LeNet,
    NamedMlp,
    OldPytorchMnist,
    PytorchMnist,
    Quickstart,
    SmallCnn,
    tutorial_3x3,
)

GREY = (1, 28, 28)
COLOUR = (3, 32, 32)


def detect_in(
    path: Path, model: nn.Module, *, n_classes: int = 10, shape: tuple[int, int, int] = GREY
) -> tuple[Weights, list[Fit]]:
    """Save weights as safetensors, whose names are in no order of ours, and detect them."""
    save_file({name: t.contiguous() for name, t in model.state_dict().items()}, path / "weights")
    weights = read_weights(path / "weights")
    return weights, detect(weights, n_classes=n_classes, image_shape=shape)


def rebuild(weights: Weights, fit: Fit, *, n_classes: int = 10) -> nn.Module:
    """Build a network as the documentation of `detect` says."""
    tensors = {fit.prefix + name: tensor for name, tensor in weights.tensors.items()}
    torch.manual_seed(99)
    network = build_network(fit.architecture, n_classes=n_classes, channels=fit.channels, like=tensors)
    load_weights(network, tensors, source="x")
    return network.eval()


def assert_answers_alike(mine: nn.Module, theirs: nn.Module, shape: tuple[int, int, int]) -> None:
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(mine.eval()(x), theirs.eval()(x), rtol=1e-4, atol=1e-5)


def as_weights(model: nn.Module, prefix: str = "") -> Weights:
    return Weights(dict(model.state_dict()), prefix, None, "state_dict")


# Networks of tutorials

TUTORIALS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int, int], str]] = {
    "pytorch mnist": (PytorchMnist, GREY, "mnist_cnn"),
    "pytorch mnist on 32": (lambda: PytorchMnist(32), (1, 32, 32), "mnist_cnn"),
    "pytorch mnist until 2019": (OldPytorchMnist, GREY, "lenet5"),
    "cifar tutorial": (CifarTutorial, COLOUR, "lenet5"),
    "lenet padded": (lambda: LeNet(nn.ReLU, nn.MaxPool2d, padding=2), GREY, "lenet5"),
    "lenet narrow": (lambda: LeNet(nn.ReLU, nn.MaxPool2d, left=4), GREY, "lenet5"),
    "lenet on 32": (lambda: LeNet(nn.ReLU, nn.MaxPool2d), (1, 32, 32), "lenet5"),
    "lenet of 1998": (lambda: LeNet(nn.Tanh, nn.AvgPool2d, c5=True), (1, 32, 32), "lenet5_tanh_avg"),
    "lenet of 1998, padded": (lambda: LeNet(nn.Tanh, nn.AvgPool2d, padding=2, c5=True), GREY,
                              "lenet5_tanh_avg"),
    "lenet tanh max": (lambda: LeNet(nn.Tanh, nn.MaxPool2d, padding=2), GREY, "lenet5_tanh_max"),
    "lenet relu avg": (lambda: LeNet(nn.ReLU, nn.AvgPool2d, left=4), GREY, "lenet5_relu_avg"),
    "lenet of d2l": (lambda: LeNet(nn.Sigmoid, nn.AvgPool2d, padding=2), GREY, "lenet5_sigmoid_avg"),
    "3x3": (tutorial_3x3, GREY, "lenet5"),
    "quickstart": (Quickstart, GREY, "mlp"),
    "logistic regression": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), GREY, "mlp"),
    "one hidden": (lambda: NamedMlp(["hidden", "output"], [784, 50, 10]), GREY, "mlp"),
    "order told by widths": (lambda: NamedMlp(["z", "a", "m"], [784, 60, 40, 10]), GREY, "mlp"),
    "input last in the alphabet": (
        lambda: NamedMlp(["input", "hidden_1", "hidden_2", "final"], [784, 32, 32, 32, 10]), GREY, "mlp"),
    "twelve alike": (lambda: NamedMlp([f"fc{i}" for i in range(1, 13)], [784, *[16] * 11, 10]), GREY, "mlp"),
    "ten wide throughout": (lambda: NamedMlp(["l1", "l2", "l10"], [784, 10, 10, 10]), GREY, "mlp"),
    "without biases": (lambda: NamedMlp(["a", "b"], [784, 32, 10], bias=False), GREY, "mlp"),
    "tanh": (lambda: NamedMlp(["a", "b"], [784, 32, 10], torch.tanh), GREY, "mlp_tanh"),
    "sigmoid": (lambda: NamedMlp(["a", "b"], [784, 32, 10], torch.sigmoid), GREY, "mlp_sigmoid"),
    "mlp in colour": (lambda: NamedMlp(["a", "b"], [3072, 32, 10]), COLOUR, "mlp"),
}  # fmt: skip


@pytest.mark.parametrize("case", TUTORIALS)
def test_a_tutorials_network_is_rebuilt(tmp_path: Path, case: str) -> None:
    make, shape, architecture = TUTORIALS[case]
    torch.manual_seed(0)
    theirs = make().eval()
    weights, fits = detect_in(tmp_path, theirs, shape=shape)
    exact = {fit.architecture: fit for fit in fits if fit.exact}
    assert architecture in exact
    family = {name for name in exact if name.split("_")[0] == architecture.split("_")[0]}
    assert family == exact.keys(), "nothing of another family fits"
    fit = exact[architecture]
    assert (fit.n_classes, fit.channels, fit.image_size, fit.shared) == (10, shape[0], None, 1.0)
    assert_answers_alike(rebuild(weights, fit), theirs, shape)


def test_a_lenet_of_colours_takes_three_channels_of_grey_images(tmp_path: Path) -> None:
    theirs = CifarTutorial()
    weights, fits = detect_in(tmp_path, theirs, shape=(1, 32, 32))
    assert (fits[0].exact, fits[0].channels) == (True, 3)
    assert_answers_alike(rebuild(weights, fits[0]), theirs, COLOUR)


def test_variants_of_a_lenet_differ_in_their_answers(tmp_path: Path) -> None:
    """So the accuracy of each tells which one it was."""
    weights, fits = detect_in(tmp_path, LeNet(nn.Tanh, nn.AvgPool2d, padding=2))
    x = torch.randn(3, *GREY)
    answers = [rebuild(weights, fit)(x) for fit in fits if fit.exact]
    assert len(answers) == 5
    for index, first in enumerate(answers):
        assert all(not torch.allclose(first, second) for second in answers[:index])


def test_a_bare_linear_layer_is_logistic_regression(tmp_path: Path) -> None:
    theirs = nn.Linear(784, 10)
    weights, fits = detect_in(tmp_path, theirs)
    assert fits[0].exact
    assert_answers_alike(rebuild(weights, fits[0]), nn.Sequential(nn.Flatten(), theirs), GREY)


def test_sizes_that_the_images_do_not_have_are_told(tmp_path: Path) -> None:
    _, lenet = detect_in(tmp_path, LeNet(nn.ReLU, nn.MaxPool2d), shape=(1, 50, 50))
    _, mlp = detect_in(tmp_path, NamedMlp(["a", "b"], [400, 32, 10]))
    _, grey_in_colour = detect_in(tmp_path, NamedMlp(["a", "b"], [3 * 784, 32, 10]))
    _, example = detect_in(tmp_path, PytorchMnist(32))
    assert (lenet[0].architecture, lenet[0].image_size) == ("lenet5", 28)
    assert (mlp[0].architecture, mlp[0].channels, mlp[0].image_size) == ("mlp", 1, 20)
    assert (grey_in_colour[0].channels, grey_in_colour[0].image_size) == (3, None)
    assert (example[0].architecture, example[0].image_size) == ("mnist_cnn", 32)


@given(
    widths=st.lists(st.integers(1, 6), min_size=0, max_size=5),
    names=st.lists(
        st.from_regex(r"[a-z]{1,5}(_[0-9]{1,3})?", fullmatch=True), min_size=6, max_size=6, unique=True
    ),
    seed=st.integers(0, 99),
)
def test_layers_of_any_names_are_chained(widths: list[int], names: list[str], seed: int) -> None:
    """Whatever the order found, each layer takes what the one before gives, and all are used."""
    chain = [16, *widths, 3]
    state = {}
    for name, width_in, width in zip(names, chain, chain[1:], strict=False):
        state |= {f"net.{name}.weight": torch.rand(width, width_in), f"net.{name}.bias": torch.rand(width)}
    keys = list(state)
    random.Random(seed).shuffle(keys)
    weights = Weights({key: state[key] for key in keys}, "", None, "state_dict")
    fit = detect(weights, n_classes=3, image_shape=(1, 4, 4))[0]
    assert (fit.architecture, fit.exact) == ("mlp", True)
    mine = rebuild(weights, fit, n_classes=3)
    assert mine(torch.rand(2, 1, 4, 4)).shape == (2, 3)
    if len({16, *widths, 3}) == len(chain):  # one order only: compute it by hand
        x = torch.rand(2, 16)
        expected = x
        for index, name in enumerate(names[: len(chain) - 1]):
            expected = F.linear(expected, state[f"net.{name}.weight"], state[f"net.{name}.bias"])
            expected = F.relu(expected) if index < len(chain) - 2 else expected
        torch.testing.assert_close(mine(x.view(2, 1, 4, 4)), expected)


# Ours and torchvision's


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize(("n_classes", "shape"), [(10, GREY), (4, COLOUR)])
def test_networks_of_ours_are_told_apart(
    tmp_path: Path, name: str, n_classes: int, shape: tuple[int, int, int]
) -> None:
    options = {"image_size": shape[1]} if name in SIZED else {}
    theirs = ARCHITECTURES[name](n_classes=n_classes, channels=shape[0], **options)
    weights, fits = detect_in(tmp_path, theirs, n_classes=n_classes, shape=shape)
    assert [fit.architecture for fit in fits if fit.exact] == [name]
    assert_answers_alike(rebuild(weights, fits[0], n_classes=n_classes), theirs, shape)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("images", [1, 3])
def test_resnet18_is_told_with_its_channels(tmp_path: Path, channels: int, images: int) -> None:
    theirs = models.resnet18(num_classes=7)
    if channels == 1:
        theirs.conv1 = nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    weights, fits = detect_in(tmp_path, theirs, n_classes=7, shape=(images, 32, 32))
    assert (fits[0].architecture, fits[0].exact, fits[0].channels) == ("resnet18", True, channels)
    assert not any(fit.exact for fit in fits[1:])
    assert_answers_alike(rebuild(weights, fits[0], n_classes=7), theirs, (channels, 32, 32))


ON_META = (
    "alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet",
    "inception_v3", "maxvit_t", "mnasnet1_0", "mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large",
    "resnet50", "wide_resnet50_2", "resnext50_32x4d", "shufflenet_v2_x1_0", "squeezenet1_0", "squeezenet1_1",
    "swin_t", "swin_v2_t", "vgg16", "vgg16_bn", "vit_b_16", "vit_b_32",
)  # fmt: skip
SIZES = {"alexnet": 64, "inception_v3": 96, "maxvit_t": 224, "vit_b_16": 224, "vit_b_32": 224}


@pytest.mark.parametrize("name", ON_META)
def test_torchvisions_networks_are_told_apart(name: str) -> None:
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    with torch.device("meta"):
        theirs = models.get_model(name, weights=None, num_classes=10, **options)
    fits = detect(as_weights(theirs), n_classes=10, image_shape=COLOUR)
    assert [fit.architecture for fit in fits if fit.exact] == [name]
    assert (fits[0].n_classes, fits[0].channels, fits[0].image_size) == (10, 3, SIZES.get(name))


def test_regnet_is_told(tmp_path: Path) -> None:
    """It computes its widths with small tensors, so that it cannot be built on the meta device alone."""
    theirs = models.regnet_x_400mf(num_classes=10)
    weights, fits = detect_in(tmp_path, theirs, shape=COLOUR)
    assert (fits[0].architecture, fits[0].exact) == ("regnet_x_400mf", True)
    assert_answers_alike(rebuild(weights, fits[0]), theirs, COLOUR)


@pytest.mark.parametrize("auxiliary", [True, False])
def test_googlenet_is_rebuilt_with_and_without_auxiliary_classifiers(tmp_path: Path, auxiliary: bool) -> None:
    theirs = models.googlenet(num_classes=10, aux_logits=auxiliary, init_weights=False)
    weights, fits = detect_in(tmp_path, theirs, shape=COLOUR)
    assert (fits[0].architecture, fits[0].exact) == ("googlenet", True)
    assert_answers_alike(rebuild(weights, fits[0]), theirs, COLOUR)


# Prefixes


class Wrapped(nn.Module):
    """A network in a network, as Lightning modules are."""

    def __init__(self, inner: nn.Module, name: str) -> None:
        super().__init__()
        self.add_module(name, inner)


@pytest.mark.parametrize(
    ("wrap", "stripped", "put_back"),
    [
        (lambda net: net, "features.", "features."),
        (lambda net: Wrapped(net, "model"), "model.features.", "features."),
        (lambda net: nn.DataParallel(Wrapped(net, "net")), "module.net.features.", "features."),
    ],
)
def test_a_prefix_is_put_back_where_the_network_has_it(
    tmp_path: Path, wrap: Callable[[nn.Module], nn.Module], stripped: str, put_back: str
) -> None:
    """VGG without its classifier shares `features`; here a file of it misses the rest, and says so."""
    theirs = nn.Module()
    theirs.add_module("features", models.vgg11(num_classes=10).features)
    weights, fits = detect_in(tmp_path, wrap(theirs), shape=COLOUR)
    assert weights.prefix == stripped
    assert (fits[0].architecture, fits[0].prefix, fits[0].exact) == ("vgg11", put_back, False)
    assert all(key.startswith("classifier.") for key in fits[0].missing)
    assert not fits[0].unexpected
    assert not fits[0].reshaped


@pytest.mark.parametrize("name", ["net", "model", "0"])
def test_a_wrapped_network_is_rebuilt(tmp_path: Path, name: str) -> None:
    theirs = PytorchMnist()
    weights, fits = detect_in(tmp_path, nn.DataParallel(Wrapped(theirs, name)))
    assert (fits[0].architecture, fits[0].exact, fits[0].prefix) == ("mnist_cnn", True, "")
    assert_answers_alike(rebuild(weights, fits[0]), theirs, GREY)


# What does not fit


def test_a_thousand_classes_for_ten_are_told(tmp_path: Path) -> None:
    _, fits = detect_in(tmp_path, models.resnet18(num_classes=1000), shape=COLOUR)
    best = fits[0]
    assert (best.architecture, best.exact, best.wrong_classes, best.n_classes) == (
        "resnet18",
        False,
        True,
        1000,
    )
    assert "fc.weight: (1000, 512) in the file, (10, 512) in the network" in best.reshaped
    assert not any(fit.wrong_classes for fit in fits[1:])
    told = describe_misfit(fits)
    assert "resnet18 for 1000 classes" in told
    assert "bring the classifier that was trained on this data" in told


@pytest.mark.parametrize(
    ("make", "architecture"),
    [
        (lambda: NamedMlp(["a", "b"], [784, 32, 26]), "mlp"),
        (lambda: LeNet(nn.ReLU, nn.MaxPool2d, padding=2), "lenet5"),
        (PytorchMnist, "mnist_cnn"),
        (lambda: ARCHITECTURES["all_convolutional"](n_classes=9, channels=1), "all_convolutional"),
    ],
)
def test_another_number_of_classes_is_told(
    tmp_path: Path, make: Callable[[], nn.Module], architecture: str
) -> None:
    theirs = make()
    _, fits = detect_in(tmp_path, theirs, n_classes=12)
    assert not any(fit.exact for fit in fits)
    found = {fit.architecture: fit for fit in fits if fit.wrong_classes}
    assert architecture in found
    last = list(theirs.state_dict().values())[-1]
    assert found[architecture].n_classes == last.shape[0]


def test_another_width_inside_is_no_matter_of_classes(tmp_path: Path) -> None:
    theirs = PytorchMnist()
    theirs.fc1, theirs.fc2 = nn.Linear(9216, 100), nn.Linear(100, 10)
    _, fits = detect_in(tmp_path, theirs)
    best = fits[0]
    assert (best.architecture, best.exact, best.wrong_classes) == ("mnist_cnn", False, False)
    assert set(best.reshaped) == {
        "fc1.weight: (100, 9216) in the file, (128, 9216) in the network",
        "fc1.bias: (100,) in the file, (128,) in the network",
        "fc2.weight: (10, 100) in the file, (10, 128) in the network",
    }
    assert best.shared == 5 / 8
    told = describe_misfit(fits)
    assert "the nearest, mnist_cnn, shares 62 % of its weights" in told
    assert "3 of another shape (fc1.weight: (100, 9216) in the file" in told
    assert "TorchScript" in told


def test_a_change_beside_the_classes_is_no_matter_of_classes(tmp_path: Path) -> None:
    theirs = PytorchMnist()
    theirs.conv1, theirs.fc2 = nn.Conv2d(1, 32, 7), nn.Linear(128, 26)
    best = detect_in(tmp_path, theirs)[1][0]
    assert (best.architecture, best.n_classes, best.wrong_classes) == ("mnist_cnn", 26, False)
    narrow = models.resnet18(num_classes=10)
    narrow.fc = nn.Linear(256, 10)
    best = detect_in(tmp_path, narrow, shape=COLOUR)[1][0]
    assert (best.architecture, best.n_classes, best.wrong_classes) == ("resnet18", None, False)
    assert best.reshaped == ("fc.weight: (10, 256) in the file, (10, 512) in the network",)


def test_near_misses_are_few_and_best_first(tmp_path: Path) -> None:
    theirs = models.resnet18(num_classes=10)
    theirs.layer4 = nn.Identity()
    theirs.fc = nn.Linear(256, 10)
    _, fits = detect_in(tmp_path, theirs, shape=COLOUR)
    assert fits[0].architecture == "resnet18"
    assert fits[0].missing[0] == "layer4.0.bn1.bias"
    assert 1 < len(fits) <= 8
    assert [fit.shared for fit in fits] == sorted((fit.shared for fit in fits), reverse=True)


def test_old_files_without_counters_fit(tmp_path: Path) -> None:
    theirs = models.resnet18(num_classes=10)
    state = {k: t for k, t in theirs.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "old.pth")
    weights = read_weights(tmp_path / "old.pth")
    fits = detect(weights, n_classes=10, image_shape=COLOUR)
    assert (fits[0].architecture, fits[0].exact) == ("resnet18", True)
    assert_answers_alike(rebuild(weights, fits[0]), theirs, COLOUR)


STRANGE: dict[str, dict[str, Tensor]] = {
    "scalar": {"x": torch.ones(())},
    "empty names": {"": torch.ones(2), ".": torch.ones(2), "..weight": torch.ones(2, 2)},
    "only biases": {"a.bias": torch.ones(3), "b.bias": torch.ones(3)},
    "empty layers": {"a.weight": torch.ones(0, 784), "b.weight": torch.ones(10, 0)},
    "scalar where a matrix is expected": {"fc1.weight": torch.ones(()), "conv1.weight": torch.ones(2)},
    "names of modules": {"train.weight": torch.ones(8, 784), "forward.weight": torch.ones(10, 8)},
    "a name in a name": {"a.weight": torch.ones(8, 784), "a.weight.weight": torch.ones(10, 8)},
    "loose layers": {"a.weight": torch.ones(8, 784), "b.weight": torch.ones(10, 9)},
    "digits": {f"{'9' * 5000}.weight": torch.ones(8, 784), "1.weight": torch.ones(10, 8)},
    "not from images": {"a.weight": torch.ones(8, 13), "b.weight": torch.ones(10, 8)},
    "with batch-norm": dict(SmallCnn().state_dict()),
    "even kernel": {"a.weight": torch.ones(6, 1, 4, 4), "b.weight": torch.ones(9, 6, 4, 4),
                    "c.weight": torch.ones(10, 144)},
}  # fmt: skip


@pytest.mark.parametrize("case", STRANGE)
def test_strange_weights_fit_nothing_and_say_so(case: str) -> None:
    fits = detect(Weights(STRANGE[case], "", None, "state_dict"), n_classes=10, image_shape=GREY)
    assert not any(fit.exact or fit.wrong_classes for fit in fits)
    assert "of no architecture that is known" in describe_misfit(fits)


def test_layers_of_equal_width_in_a_ring_are_chained() -> None:
    """No width tells where to begin: the order of names does."""
    state = {f"{name}.weight": torch.rand(16, 16) for name in ("b", "a", "c")}
    weights = Weights(state, "", None, "state_dict")
    fit = detect(weights, n_classes=16, image_shape=(1, 4, 4))[0]
    x = torch.rand(2, 16)
    expected = x
    for name in ("a", "b", "c"):
        expected = F.linear(expected, state[f"{name}.weight"])
        expected = F.relu(expected) if name != "c" else expected
    torch.testing.assert_close(rebuild(weights, fit, n_classes=16)(x.view(2, 1, 4, 4)), expected)
