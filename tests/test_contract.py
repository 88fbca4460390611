"""The contract test on networks that were really trained: is what they were trained with found out?"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from defuse_core.base.config import ClassifierTraining
from defuse_core.base.intervals import Interval
from defuse_core.data.splits import Split
from defuse_core.extensions.contract import (
    FINALISTS,
    SCREENED_IMAGES,
    STATED,
    Variant,
    by_accuracy,
    check_contract,
    is_worse,
    usual_preprocessings,
)
from defuse_core.method.classifier import Classifier, Preprocessing, accuracy, train_classifier
from tests.conftest import bars

PLAIN = Preprocessing()
COLOUR = Preprocessing((0.0,) * 3, (1.0,) * 3)
Steps = list[tuple[int, int]]


def measure(
    network: nn.Module, stated: Preprocessing, split: Split, *, of_dataset: Preprocessing | None = None
) -> tuple[list[Variant], Steps]:
    """What the contract test finds, and the steps that it told of."""
    usual = of_dataset or Preprocessing.of(split.images)
    variants = usual_preprocessings(stated, usual, channels=len(stated.mean))
    loop, steps = check_contract(network, variants, split), []
    while True:
        try:
            step, of, _ = next(loop)
        except StopIteration as ended:
            return ended.value, steps
        steps.append((step, of))


def train(network: nn.Module, split: Split, preprocessing: Preprocessing, *, epochs: int) -> nn.Module:
    config = ClassifierTraining(optimizer="adam", learning_rate=3e-3, epochs=epochs, batch_size=32)
    train_classifier(Classifier(network, preprocessing), split, config=config, seed=0)
    return network


def named(variants: list[Variant], name: str) -> Variant:
    return next(variant for variant in variants if variant.name == name)


# What is compared


def test_the_usual_normalisations_of_colour_images_come_in_both_orders() -> None:
    of_dataset = Preprocessing((0.2, 0.3, 0.4), (0.1, 0.2, 0.3))
    found = usual_preprocessings(Preprocessing((0.9,) * 3, (0.8,) * 3, 48), of_dataset, channels=3)
    names = ["none, [0, 1]", "data set's mean and std", "ImageNet's mean and std", "±1", "0 … 255"]
    expected = [STATED, *(name + order for name in names for order in ("", ", BGR"))]
    assert [variant.name for variant in found] == expected
    assert len({variant.preprocessing for variant in found}) == len(found)
    assert {variant.preprocessing.image_size for variant in found} == {48}
    assert all(("BGR" in v.name) == (v.preprocessing.channel_order == "bgr") for v in found)
    pixel = np.array([0.0, 0.5, 1.0])
    reaches = {  # what a pixel (0, .5, 1) is once it reaches the network
        "none, [0, 1]": pixel,
        "data set's mean and std": (pixel - [0.2, 0.3, 0.4]) / [0.1, 0.2, 0.3],
        "ImageNet's mean and std": (pixel - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225],
        "±1": 2 * pixel - 1,
        "0 … 255": 255 * pixel,
    }
    image = torch.tensor(pixel, dtype=torch.float32).view(1, 3, 1, 1)
    for variant in found[1:]:
        fed = Classifier(nn.Identity(), Preprocessing(variant.preprocessing.mean, variant.preprocessing.std))
        wanted = reaches[variant.name.removesuffix(", BGR")]
        np.testing.assert_allclose(fed.preprocess(image).flatten().numpy(), wanted, rtol=1e-5, atol=1e-5)


def test_grey_networks_get_one_value_and_no_order() -> None:
    found = usual_preprocessings(
        Preprocessing((0.9,), (0.8,)), Preprocessing((0.2, 0.3, 0.7), (0.1, 0.2, 0.6)), channels=1
    )
    by_name = {variant.name: variant.preprocessing for variant in found}
    assert list(by_name) == [
        STATED, "none, [0, 1]", "data set's mean and std", "ImageNet's mean and std", "±1", "0 … 255",
    ]  # fmt: skip
    assert by_name["data set's mean and std"].mean == pytest.approx((0.4,))
    assert by_name["data set's mean and std"].std == pytest.approx((0.3,))
    assert by_name["ImageNet's mean and std"].mean == pytest.approx((0.449,))
    assert by_name["ImageNet's mean and std"].std == pytest.approx((0.226,))
    assert {preprocessing.channel_order for preprocessing in by_name.values()} == {"rgb"}


def test_grey_data_is_spread_over_the_channels_of_the_network() -> None:
    found = usual_preprocessings(COLOUR, Preprocessing((0.25,), (0.5,)), channels=3)
    assert named(found, "data set's mean and std").preprocessing == Preprocessing((0.25,) * 3, (0.5,) * 3)


@pytest.mark.parametrize("stated", [PLAIN, Preprocessing((0.5,), (0.5,)), Preprocessing((0.25,), (0.5,))])
def test_the_stated_preprocessing_is_not_listed_twice(stated: Preprocessing) -> None:
    found = usual_preprocessings(stated, Preprocessing((0.25,), (0.5,)), channels=1)
    assert [v.name for v in found if v.preprocessing == stated] == [STATED]
    assert len(found) == 5


# What is found


class Loose(nn.Sequential):
    """Takes images of any size: one convolution, averaged over the image."""

    def __init__(self, channels: int = 1, kernel: int = 5, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(channels, 16, kernel, stride), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3),
        )  # fmt: skip


@pytest.fixture(scope="module")
def normalised() -> tuple[nn.Module, Preprocessing]:
    """A network that was trained on shapes in [-1, 1], and the preprocessing of that."""
    torch.manual_seed(0)
    own = Preprocessing((0.5,), (0.5,))
    return train(Loose(), bars(960, 0), own, epochs=8), own


@pytest.mark.usefixtures("small_sizes")
def test_a_network_that_is_fed_otherwise_than_trained_is_found_out(
    normalised: tuple[nn.Module, Preprocessing],
) -> None:
    network, own = normalised
    split = bars(300, 7)
    found, _ = measure(network, Preprocessing((0.0,), (1 / 255,)), split)
    best, stated = found[0], named(found, STATED)
    assert best.accuracy is not None
    assert best.accuracy.estimate == accuracy(Classifier(network, best.preprocessing), split)
    assert best.accuracy.n == 300
    assert best.accuracy.estimate == named(found, "±1").accuracy.estimate
    assert named(found, "±1").preprocessing == own
    assert stated.accuracy is not None
    assert stated.accuracy.n == 300  # measured on all, though it is no finalist
    assert stated.accuracy.estimate == accuracy(Classifier(network, stated.preprocessing), split)
    assert is_worse(stated, best)


@pytest.mark.usefixtures("small_sizes")
def test_a_network_that_is_fed_as_trained_gives_no_alarm(
    normalised: tuple[nn.Module, Preprocessing],
) -> None:
    network, own = normalised
    found, _ = measure(network, own, bars(300, 7))
    assert found[0].name == STATED
    assert not is_worse(found[0], found[0])
    assert {v.accuracy.n for v in found if v.accuracy is not None} == {SCREENED_IMAGES, 300}


def coloured(n: int, seed: int) -> Split:
    """Noisy 8×8 images that are mostly red, green or blue: classes 0, 1, 2."""
    labels = torch.arange(n) % 3
    images = torch.rand(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * 150
    images[torch.arange(n), labels] += 60
    return Split(images.to(torch.uint8), labels)


@pytest.mark.usefixtures("small_sizes")
def test_a_network_that_was_trained_on_bgr_is_recognised() -> None:
    torch.manual_seed(0)
    split = coloured(300, 1)
    own = Preprocessing(*vars(Preprocessing.of(split.images)).values())
    bgr = Preprocessing(own.mean, own.std, None, "bgr")
    network = train(Loose(3, 1), coloured(480, 0), bgr, epochs=10)
    found, _ = measure(network, own, split)
    assert found[0].preprocessing.channel_order == "bgr"
    assert named(found, "data set's mean and std, BGR").accuracy.estimate > 0.9
    stated = named(found, STATED)
    assert stated.accuracy.estimate < 0.5  # red and blue are taken for each other
    assert is_worse(stated, found[0])


def striped(n: int, seed: int) -> Split:
    """Noisy 32×32 images of stripes that repeat every 4, 8 or 16 pixels: classes 0, 1, 2."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    period = (4 * 2**labels).view(n, 1, 1, 1)
    phase = torch.rand(n, 1, 1, 1, generator=rng)
    wave = torch.sin(2 * torch.pi * (torch.arange(32).view(1, 1, 1, 32) / period + phase))
    images = 128 + 80 * wave.expand(n, 1, 32, 32) + 20 * torch.randn(n, 1, 32, 32, generator=rng)
    return Split(images.clamp(0, 255).to(torch.uint8), labels)


@pytest.fixture(scope="module")
def doubled() -> nn.Module:
    """A network that was trained on stripes at twice their size, as pixels in [-1, 1]."""
    torch.manual_seed(0)
    own = Preprocessing((0.5,), (0.5,), 64)
    network = train(Loose(1, 7, 2), striped(240, 0), own, epochs=15)
    assert accuracy(Classifier(network, own), striped(120, 1)) > 0.95
    return network


@pytest.mark.usefixtures("small_sizes")
def test_a_network_that_was_trained_at_twice_the_size_is_recognised(doubled: nn.Module) -> None:
    found, _ = measure(doubled, Preprocessing((0.5,), (0.5,)), striped(120, 1))
    assert found[0].preprocessing == Preprocessing((0.5,), (0.5,), 64), "not tried as stated at that size"
    assert found[0].accuracy.estimate > 0.95
    assert is_worse(named(found, STATED), found[0])


def only(size: int, width: int = 1) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(width * size * size, 3))


def test_sizes_that_a_network_does_not_take_come_last_with_the_reason() -> None:
    split = bars(60, 0)
    found, _ = measure(train(only(8), split, PLAIN, epochs=2), PLAIN, split)
    taken = [variant.accuracy is not None for variant in found]
    assert taken == sorted(taken, reverse=True)
    refused = found[sum(taken) :]
    assert {v.preprocessing.image_size for v in refused} == {28, 32, 64, 96, 128, 224, 299}
    for variant in refused:
        assert "shapes cannot be multiplied" in variant.problem
        assert len(variant.problem.splitlines()) == 1
    assert not any(variant.problem for variant in found[: sum(taken)])


def test_the_size_that_a_network_takes_is_found_where_the_stated_one_is_not_taken() -> None:
    small = bars(150, 0)
    own = Preprocessing((0.5,), (0.5,), 28)
    network = train(only(28), small, own, epochs=3)
    found, _ = measure(network, PLAIN, small)
    assert found[0].accuracy is not None, "no size but the stated one was tried"
    assert found[0].preprocessing.image_size == 28


class Asserting(nn.Module):
    """Refuses whatever it does not know without a word, as a user's own code may."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[-1] == 8
        return self.fc(x.flatten(1))


def test_an_error_without_a_message_is_an_answer_too() -> None:
    found, _ = measure(Asserting(), PLAIN, bars(30, 0))
    refused = [variant for variant in found if variant.accuracy is None]
    assert {v.preprocessing.image_size for v in refused} == {28, 32, 64, 96, 128, 224, 299}
    assert all("AssertionError" in variant.problem for variant in refused)


class Constant(nn.Module):
    """Says class 0 of everything, whatever it is fed."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([1.0, 0.0, 0.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(len(x), 3)


def test_ties_go_to_the_stated_one() -> None:
    found, _ = measure(Constant(), Preprocessing((0.3,), (0.7,)), bars(90, 0))
    assert {variant.accuracy.estimate for variant in found} == {1 / 3}
    assert found[0].name == STATED
    assert not any(is_worse(found[0], other) for other in found)


def test_those_measured_on_a_few_images_do_not_win_over_those_measured_on_all() -> None:
    """The first few may be easier than the rest; only what was measured on all can be the best."""
    easy, hard = torch.zeros(SCREENED_IMAGES), torch.ones(400)
    labels = torch.cat([easy, hard]).long()
    split = Split(torch.zeros(len(labels), 1, 8, 8, dtype=torch.uint8), labels)
    found, _ = measure(Constant(), PLAIN, split, of_dataset=Preprocessing((0.3,), (0.2,)))
    assert {variant.accuracy.n for variant in found} == {SCREENED_IMAGES, len(labels)}
    assert found[0].accuracy.n == len(labels)
    assert [v.accuracy.n for v in found[:FINALISTS]] == [len(labels)] * FINALISTS


# How it goes


@pytest.mark.parametrize("stated", [PLAIN, Preprocessing((0.0,), (1 / 255,)), Preprocessing(image_size=32)])
def test_its_steps_ascend_by_one_and_end_at_the_last(
    normalised: tuple[nn.Module, Preprocessing], stated: Preprocessing
) -> None:
    _, steps = measure(normalised[0], stated, bars(30, 7))
    assert [step for step, _ in steps] == list(range(1, len(steps) + 1))
    shares = [step / of for step, of in steps]
    assert shares == sorted(shares)
    assert all(step <= of for step, of in steps)
    assert steps[-1][0] == steps[-1][1]


@pytest.mark.usefixtures("small_sizes")
def test_batch_norm_is_in_evaluation_mode_and_stays_as_it_was() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5), Loose(4, 3))
    train(network, bars(240, 0), PLAIN, epochs=2)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    split = bars(70, 3)
    expected = accuracy(Classifier(network.eval(), PLAIN), split)
    network.train()
    found, _ = measure(network, PLAIN, split)
    assert named(found, STATED).accuracy.estimate == expected
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert F.cross_entropy(network.eval()(split.images[:1] / 255), split.labels[:1]).isfinite()


# What is made of it


def shared(right: int, n: int, name: str = "x") -> Variant:
    return Variant(name, PLAIN, Interval.wilson(right, n))


def test_sorting_by_accuracy() -> None:
    refused = Variant("refused", PLAIN, None, "no")
    low, high, stated = shared(1, 10, "low"), shared(9, 10, "high"), shared(9, 10, STATED)
    more = shared(90, 100, "more")
    assert by_accuracy([refused, low, high, more, stated]) == [stated, more, high, low, refused]
    assert by_accuracy([]) == []


def test_worse_is_more_than_chance() -> None:
    refused = Variant("refused", PLAIN, None, "no")
    assert is_worse(shared(80, 100), shared(95, 100))
    assert not is_worse(shared(80, 100), shared(95, 100), n_tried=200)
    assert not is_worse(shared(90, 100), shared(92, 100))
    assert is_worse(shared(900, 1000), shared(930, 1000))
    assert not is_worse(shared(95, 100), shared(80, 100))
    assert is_worse(refused, shared(1, 10))
    assert not is_worse(shared(1, 10), refused)
    assert not is_worse(refused, refused)


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
@pytest.mark.parametrize(("n_others", "n"), [(1, 300), (25, 300), (25, 1000)])
def test_equally_good_variants_seldom_give_an_alarm(share: float, n_others: int, n: int) -> None:
    """The best of many is compared: without a correction for their number most checks would."""
    right = np.random.default_rng(0).binomial(n, share, (1000, n_others + 1)).tolist()
    pairs = [(shared(stated, n), shared(max(others), n)) for stated, *others in right]
    alarms = [is_worse(stated, best, n_tried=n_others) for stated, best in pairs]
    assert np.mean(alarms) < 0.065  # .05, and three standard errors of 1,000 trials are .02
    if n_others > 1:
        assert np.mean([is_worse(*pair) for pair in pairs]) > 0.2
