"""Identification against a naive search, image by image and draw by draw."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn

from defuse_core.base.config import IdentificationConfig
from defuse_core.base.records import MistakeKind, Mistakes
from defuse_core.base.runtime import numpy_rng, supports_bf16
from defuse_core.data.splits import ImageDataset, Split
from defuse_core.method import identification
from defuse_core.method.classifier import Classifier, predict
from defuse_core.method.identification import (
    SHARD_IMAGES,
    identify,
    identify_shard,
    identify_shards,
    sample_beta_noise,
)
from defuse_core.method.vae import BetaVAE, decode_images
from tests.properties import tried

CPU = torch.device("cpu")
SEARCH = IdentificationConfig(
    n_perturbations=12,
    centred=True,
    noise_scale=8.0,
    max_mistakes_per_image=3,
    precision="fp32",
)

needs_bf16 = pytest.mark.skipif(not supports_bf16(CPU), reason="the processor has no bfloat16")


class MemoryLimit(nn.Module):
    """Runs out of memory for batches over `most`, and at the calls whose numbers are given."""

    def __init__(self, network: nn.Module, *, most: int, failing_calls: tuple[int, ...]) -> None:
        super().__init__()
        self.network, self.most, self.failing_calls, self.calls = network, most, failing_calls, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if len(x) > self.most or self.calls in self.failing_calls:
            raise torch.OutOfMemoryError(f"no memory for {len(x)} images")
        logits: Tensor = self.network(x)
        return logits


def mislabel(split: Split, every: int = 5) -> Split:
    """Give every fifth image the next class as its label."""
    labels = split.labels.clone()
    labels[::every] = (labels[::every] + 1) % 3
    return Split(split.images, labels)


def changed(config: IdentificationConfig, **changes: object) -> IdentificationConfig:
    return IdentificationConfig(**{**config.model_dump(), **changes})


def assert_same(found: Mistakes, expected: Mistakes) -> None:
    for name, value in vars(expected).items():
        assert torch.equal(getattr(found, name), value), name


@torch.no_grad()
def naive_search(
    classifier: Classifier, vae: BetaVAE, split: Split, config: IdentificationConfig, seed: int
) -> Mistakes:
    """Algorithm 1 in loops, one code at a time; kinds, limit, shift and scale of the noise are ours."""
    rows: list[tuple[Tensor, int, int, int, float, int]] = []
    for start in range(0, len(split), 64):
        part = split[start : start + 64]
        shape = (len(part), config.n_perturbations, vae.latent_dim)
        noise = numpy_rng(seed, "noise", start // 64).beta(config.noise_a, config.noise_b, shape)
        if config.centred:
            noise = noise - config.noise_a / (config.noise_a + config.noise_b)
        noise = (config.noise_scale * noise).astype(np.float32)
        for offset in range(len(part)):
            image, label = part.images[offset : offset + 1], int(part.labels[offset])
            mean = vae.encode(image)[0]
            if int(classifier(image).argmax()) != label:
                kind = MistakeKind.DATASET
            elif int(classifier(vae.decode(mean)).argmax()) != label:
                kind = MistakeKind.RECONSTRUCTION
            else:
                kind = MistakeKind.PERTURBATION
            found = []
            for draw in noise[offset]:
                code = mean + torch.from_numpy(draw)
                said = int(classifier(vae.decode(code)).argmax())
                if said != label:
                    length = float(np.sqrt((draw.astype(np.float64) ** 2).sum()))
                    found.append((code[0], label, said, start + offset, length, int(kind)))
            rows += sorted(found, key=lambda row: row[4])[: config.max_mistakes_per_image]
    latents, *columns = zip(*rows, strict=True)
    labels, said, source, length, kinds = (torch.tensor(column) for column in columns)
    return Mistakes(torch.stack(latents), labels, said, source, length, kinds)


@pytest.fixture(scope="module")
def split(shapes: ImageDataset) -> Split:
    """130 images, three shards, every fifth label wrong."""
    return mislabel(shapes.train[:130])


@pytest.mark.parametrize(("a", "b"), [(50.0, 50.0), (2.0, 5.0)])
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("scale", [1.0, 0.25, 3.0])
def test_noise_is_the_beta_distribution(a: float, b: float, centred: bool, scale: float) -> None:
    rng = np.random.default_rng(0)
    noise = sample_beta_noise((500, 10), a=a, b=b, rng=rng, centred=centred, scale=scale)
    assert noise.shape == (500, 10)
    assert noise.dtype == np.float32
    location = -scale * a / (a + b) if centred else 0.0
    expected = stats.beta(a, b, loc=location, scale=scale)
    assert stats.kstest(noise.ravel(), expected.cdf).pvalue > 0.01
    assert noise.mean() == pytest.approx(expected.mean(), abs=6 * expected.std() / 5000**0.5)


def test_centring_and_scale_transform_the_same_draws() -> None:
    def draw(centred: bool, scale: float) -> np.ndarray:
        rng = np.random.default_rng(1)
        return sample_beta_noise((40, 3), a=50, b=25, rng=rng, centred=centred, scale=scale)

    np.testing.assert_allclose(draw(True, 4.0), 4 * (draw(False, 1.0) - 50 / 75), atol=1e-6)


@pytest.mark.parametrize(("a", "b"), [(0.0, 1.0), (-2.0, 1.0), (1.0, 0.0), (1.0, -2.0)])
def test_noise_refuses_shapes_that_are_not_positive(a: float, b: float) -> None:
    with pytest.raises(ValueError, match=f"a and b must be positive, got a = {a}, b = {b}"):
        sample_beta_noise((2,), a=a, b=b, rng=np.random.default_rng(0))


@pytest.mark.parametrize(
    "config",
    [
        SEARCH,
        changed(SEARCH, max_mistakes_per_image=None),
        changed(SEARCH, centred=False, noise_scale=1.0, max_mistakes_per_image=1),
        changed(SEARCH, noise_a=2.0, noise_b=3.0, noise_scale=2.0),
    ],
    ids=["capped", "uncapped", "raw", "skewed"],
)
def test_identify_is_the_naive_search(
    trained_classifier: Classifier,
    trained_vae: BetaVAE,
    split: Split,
    config: IdentificationConfig,
) -> None:
    expected = naive_search(trained_classifier, trained_vae, split, config, seed=3)
    found = identify(trained_classifier, trained_vae, split, config=config, seed=3)
    assert len(expected) > 20
    assert found.latents.shape == expected.latents.shape
    for name in ("labels", "predictions", "source_index", "kind"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    torch.testing.assert_close(found.latents, expected.latents, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.noise_norm, expected.noise_norm, atol=1e-5, rtol=1e-5)


def test_every_kept_code_is_a_mistake_in_order(
    trained_classifier: Classifier, trained_vae: BetaVAE, split: Split
) -> None:
    config = changed(SEARCH, precision="auto")
    found = identify(trained_classifier, trained_vae, split, config=config, seed=0)
    said = predict(trained_classifier, decode_images(trained_vae, found.latents))
    assert torch.equal(found.predictions, said)
    assert bool((found.predictions != found.labels).all())
    assert torch.equal(found.labels, split.labels[found.source_index])
    pairs = list(zip(found.source_index.tolist(), found.noise_norm.tolist(), strict=True))
    assert pairs == sorted(pairs)
    assert int(found.source_index.bincount().max()) == config.max_mistakes_per_image
    assert found.latents.dtype == found.noise_norm.dtype == torch.float32


@tried(1 / 3)
@given(batch_size=st.integers(1, 300), cap=st.sampled_from([None, 2]))
@example(batch_size=1, cap=2)
@example(batch_size=300, cap=None)
def test_batch_size_changes_nothing(
    trained_classifier: Classifier,
    trained_vae: BetaVAE,
    split: Split,
    batch_size: int,
    cap: int | None,
) -> None:
    config = changed(SEARCH, max_mistakes_per_image=cap)
    part = split[:70]
    expected = identify(trained_classifier, trained_vae, part, config=config, seed=0)
    other = changed(config, batch_size=batch_size)
    assert_same(identify(trained_classifier, trained_vae, part, config=other, seed=0), expected)


@needs_bf16
@tried(2 / 3)
@given(
    batch_size=st.integers(1, 300),
    cap=st.sampled_from([None, 1, 4]),
    scale=st.floats(1.0, 10.0),
    seed=st.integers(0, 100),
)
@example(batch_size=64, cap=None, scale=4.375, seed=7)  # logits all small, their errors not
def test_bf16_finds_what_fp32_finds(
    trained_classifier: Classifier,
    trained_vae: BetaVAE,
    split: Split,
    batch_size: int,
    cap: int | None,
    scale: float,
    seed: int,
) -> None:
    exact = changed(SEARCH, max_mistakes_per_image=cap, noise_scale=scale)
    fast = changed(exact, precision="bf16", batch_size=batch_size)
    expected = identify(trained_classifier, trained_vae, split[:70], config=exact, seed=seed)
    found = identify(trained_classifier, trained_vae, split[:70], config=fast, seed=seed)
    assert_same(found, expected)


def test_a_wrong_label_makes_dataset_mistakes(
    trained_classifier: Classifier, trained_vae: BetaVAE, shapes: ImageDataset
) -> None:
    images = shapes.train.images[:20]
    said = predict(trained_classifier, images)
    with torch.no_grad():
        decoded = predict(trained_classifier, trained_vae.decode(trained_vae.encode(images)[0]))
    wrong = Split(images, (said + 1) % 3)
    config = changed(SEARCH, noise_scale=1e-4)  # so little that f(decode(z)) = f(decode(μ))
    found = identify(trained_classifier, trained_vae, wrong, config=config, seed=0)
    assert set(found.kind.tolist()) == {MistakeKind.DATASET}
    assert found.counts()["dataset"] == 3 * int((decoded != wrong.labels).sum()) > 0


def test_a_decoder_that_loses_the_class_makes_reconstruction_mistakes(
    trained_classifier: Classifier, trained_vae: BetaVAE, shapes: ImageDataset
) -> None:
    torch.manual_seed(1)
    blind = BetaVAE(trained_vae.config).eval()  # untrained: every code becomes the same grey
    images = shapes.train.images[:30]
    right = Split(images, predict(trained_classifier, images))
    with torch.no_grad():
        seen = predict(trained_classifier, blind.decode(blind.encode(images)[0]))
    lost = torch.nonzero(seen != right.labels).flatten()
    assert 0 < len(lost) < 30
    config = changed(SEARCH, noise_scale=0.01)
    found = identify(trained_classifier, blind, right, config=config, seed=0)
    assert set(found.kind.tolist()) == {MistakeKind.RECONSTRUCTION}
    assert torch.equal(found.source_index.unique(), lost)


def test_images_right_before_the_noise_make_perturbation_mistakes(
    trained_classifier: Classifier, trained_vae: BetaVAE, shapes: ImageDataset
) -> None:
    images = shapes.train.images[:60]
    with torch.no_grad():
        decoded = trained_vae.decode(trained_vae.encode(images)[0])
    said = predict(trained_classifier, images)
    agrees = said == predict(trained_classifier, decoded)
    right = Split(images[agrees], said[agrees])
    found = identify(trained_classifier, trained_vae, right, config=SEARCH, seed=0)
    assert len(found) > 0
    assert set(found.kind.tolist()) == {MistakeKind.PERTURBATION}


@pytest.mark.parametrize("cap", [12, 13, 10_000])
def test_a_cap_of_all_draws_or_more_is_no_cap(
    trained_classifier: Classifier, trained_vae: BetaVAE, split: Split, cap: int
) -> None:
    free = changed(SEARCH, max_mistakes_per_image=None)
    capped = changed(SEARCH, max_mistakes_per_image=cap)
    expected = identify(trained_classifier, trained_vae, split, config=free, seed=0)
    assert int(expected.source_index.bincount().max()) == 12
    assert_same(identify(trained_classifier, trained_vae, split, config=capped, seed=0), expected)


def test_equal_seeds_agree_and_others_differ(
    trained_classifier: Classifier, trained_vae: BetaVAE, split: Split
) -> None:
    first, again, other = (
        identify(trained_classifier, trained_vae, split[:20], config=SEARCH, seed=seed) for seed in (0, 0, 1)
    )
    assert_same(again, first)
    assert first.latents.shape != other.latents.shape or not torch.equal(first.latents, other.latents)
    assert not set(first.noise_norm.tolist()) & set(other.noise_norm.tolist())


def test_shards_have_noise_of_their_own(
    trained_classifier: Classifier, trained_vae: BetaVAE, split: Split
) -> None:
    part = split[:20]
    first, second = (
        identify_shard(trained_classifier, trained_vae, part, shard=n, config=SEARCH, seed=0) for n in (0, 1)
    )
    assert not set(first.noise_norm.tolist()) & set(second.noise_norm.tolist())
    assert int(second.source_index.min()) >= SHARD_IMAGES


def test_later_images_do_not_change_the_first_shard(
    trained_classifier: Classifier, trained_vae: BetaVAE, split: Split
) -> None:
    alone = identify(trained_classifier, trained_vae, split[:64], config=SEARCH, seed=0)
    whole = identify(trained_classifier, trained_vae, split, config=SEARCH, seed=0)
    assert len(whole) > len(alone)
    assert_same(whole[whole.source_index < 64], alone)


def test_callback_counts_and_stops(
    trained_classifier: Classifier, trained_vae: BetaVAE, split: Split
) -> None:
    calls: list[tuple[int, int, Mapping[str, float]]] = []

    def watch(shard: int, of: int, metrics: Mapping[str, float]) -> bool:
        calls.append((shard, of, metrics))
        return shard == 2

    whole = identify(trained_classifier, trained_vae, split, config=SEARCH, seed=0)
    part = identify(trained_classifier, trained_vae, split, config=SEARCH, seed=0, callback=watch)
    assert [(shard, of) for shard, of, _ in calls] == [(1, 3), (2, 3)]
    assert_same(part, whole[whole.source_index < 128])
    for shard, _, metrics in calls:
        so_far = whole[whole.source_index < 64 * shard].counts()
        assert {name: metrics[name] for name in so_far} == so_far
        assert metrics["images_per_second"] > 0


def test_the_speed_is_of_all_codes(
    trained_classifier: Classifier, trained_vae: BetaVAE, split: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[float] = []
    seconds = count()
    monkeypatch.setattr(identification, "time", SimpleNamespace(monotonic=lambda: float(next(seconds))))
    identify(
        trained_classifier, trained_vae, split[:100], config=SEARCH, seed=0,
        callback=lambda _shard, _of, metrics: told.append(metrics["images_per_second"]),
    )  # fmt: skip
    assert told == [64 * SEARCH.n_perturbations, 100 * SEARCH.n_perturbations / 2]


def test_shards_can_start_in_the_middle(
    trained_classifier: Classifier, trained_vae: BetaVAE, split: Split
) -> None:
    whole = identify(trained_classifier, trained_vae, split, config=SEARCH, seed=0)
    shards = dict(
        identify_shards(trained_classifier, trained_vae, split, config=SEARCH, seed=0, first_shard=1)
    )
    assert list(shards) == [1, 2]
    assert_same(Mistakes.concatenate(list(shards.values())), whole[whole.source_index >= 64])
    beyond = identify_shards(trained_classifier, trained_vae, split, config=SEARCH, seed=0, first_shard=3)
    assert list(beyond) == []


@pytest.mark.parametrize("precision", ["fp32", "auto"])
@pytest.mark.parametrize(
    ("most", "failing_calls"),
    [(100, ()), (10_000, (5,)), (10_000, (4, 5, 9)), (10, ())],
    ids=["over 100 images", "once", "three times", "less than a shard"],
)
def test_out_of_memory_halves_the_batch_and_goes_on(
    trained_classifier: Classifier,
    trained_vae: BetaVAE,
    split: Split,
    precision: str,
    most: int,
    failing_calls: tuple[int, ...],
) -> None:
    config = changed(SEARCH, batch_size=256, precision=precision)
    expected = identify(trained_classifier, trained_vae, split, config=config, seed=0)
    limit = MemoryLimit(trained_classifier.network, most=most, failing_calls=failing_calls)
    limited = Classifier(copy.deepcopy(limit), trained_classifier.preprocessing)
    assert_same(identify(limited, trained_vae, split, config=config, seed=0), expected)


def test_out_of_memory_for_one_image_is_an_error(
    trained_classifier: Classifier, trained_vae: BetaVAE, split: Split
) -> None:
    limit = MemoryLimit(trained_classifier.network, most=0, failing_calls=())
    limited = Classifier(copy.deepcopy(limit), trained_classifier.preprocessing)
    with pytest.raises(torch.OutOfMemoryError):
        identify(limited, trained_vae, split[:2], config=SEARCH, seed=0)


@pytest.mark.parametrize("precision", ["fp32", "auto"])
def test_no_mistakes_give_an_empty_record(
    trained_classifier: Classifier, trained_vae: BetaVAE, shapes: ImageDataset, precision: str
) -> None:
    images = shapes.train.images[:30]
    with torch.no_grad():
        codes = trained_vae.encode(images)[0]
        steady = Split(images, predict(trained_classifier, trained_vae.decode(codes)))
    config = changed(SEARCH, noise_scale=1e-6, precision=precision)
    found = identify(trained_classifier, trained_vae, steady, config=config, seed=0)
    assert len(found) == 0
    assert found.latents.shape == (0, trained_vae.latent_dim)
    assert found.counts() == {"dataset": 0, "reconstruction": 0, "perturbation": 0}


def test_empty_split_gives_an_empty_record(
    trained_classifier: Classifier, trained_vae: BetaVAE, shapes: ImageDataset
) -> None:
    found = identify(trained_classifier, trained_vae, shapes.train[:0], config=SEARCH, seed=0)
    assert len(found) == 0
    assert found.latents.shape == (0, trained_vae.latent_dim)


def test_a_shard_over_64_images_is_refused(
    trained_classifier: Classifier, trained_vae: BetaVAE, split: Split
) -> None:
    with pytest.raises(ValueError, match="a shard holds at most 64 images, got 65"):
        identify_shard(trained_classifier, trained_vae, split[:65], shard=0, config=SEARCH, seed=0)


def test_codes_of_a_shard_can_be_trained_on(
    trained_classifier: Classifier, trained_vae: BetaVAE, split: Split
) -> None:
    config = changed(SEARCH, noise_scale=8.0)
    found = next(iter(identify_shards(trained_classifier, trained_vae, split, config=config, seed=0)))[1]
    assert len(found)
    assert not found.latents.is_inference()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_finds_what_the_cpu_finds(
    trained_classifier: Classifier, trained_vae: BetaVAE, split: Split
) -> None:
    """All but codes on the very boundary: the devices round differently in the last bits."""
    on_cpu = identify(trained_classifier, trained_vae, split, config=SEARCH, seed=0)
    models = copy.deepcopy(trained_classifier).cuda(), copy.deepcopy(trained_vae).cuda()
    on_gpu = identify(*models, split, config=SEARCH, seed=0)
    assert abs(len(on_cpu) - len(on_gpu)) <= 0.02 * len(on_cpu)
    assert on_gpu.latents.device.type == "cpu"


@given(cap=st.integers(1, 14))
@tried(1 / 3)
def test_any_cap_keeps_the_smallest_of_the_uncapped(
    trained_classifier: Classifier, trained_vae: BetaVAE, split: Split, cap: int
) -> None:
    every = identify(
        trained_classifier, trained_vae, split, config=changed(SEARCH, max_mistakes_per_image=None), seed=0
    )
    capped = identify(
        trained_classifier, trained_vae, split, config=changed(SEARCH, max_mistakes_per_image=cap), seed=0
    )
    rank = torch.arange(len(every)) - torch.searchsorted(every.source_index, every.source_index)
    expected = every[rank < cap]  # ordered by image, then by norm
    for name, value in vars(expected).items():
        assert torch.equal(value, getattr(capped, name)), name


@given(first=st.integers(0, 10**6), second=st.integers(0, 10**6))
@tried(1 / 3)
def test_results_agree_where_seeds_do(
    trained_classifier: Classifier, trained_vae: BetaVAE, split: Split, first: int, second: int
) -> None:
    config = changed(SEARCH, max_mistakes_per_image=None)
    one, again, other = (
        identify(trained_classifier, trained_vae, split, config=config, seed=seed)
        for seed in (first, first, second)
    )
    assert torch.equal(one.latents, again.latents)
    assert torch.equal(one.latents, other.latents) == (first == second)
