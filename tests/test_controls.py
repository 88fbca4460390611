"""Controls against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from defuse_core.base.config import IdentificationConfig
from defuse_core.base.records import Region
from defuse_core.base.runtime import derive_seed, follow
from defuse_core.data.splits import ImageDataset, Split
from defuse_core.extensions.controls import compare_noise, random_regions, sample_split
from defuse_core.method.classifier import Classifier, predict
from defuse_core.method.identification import identify
from defuse_core.method.labeling import failure_instances, standard_normals
from defuse_core.method.vae import BetaVAE

REGIONS = [
    Region(region_id, 0.1, np.full(4, float(region_id)), np.diag([1.0, 0.5, 0.1, 0.2]) / region_id)
    for region_id in (9, 2, 5)
]
LABELS = {9: 0, 2: 2, 5: 0}


def moved(
    classifier: Classifier, vae: BetaVAE, train: Split, *, seed: int = 0, regions: list[Region] = REGIONS
) -> tuple[list[Region], dict[int, int]]:
    return random_regions(regions, LABELS, classifier=classifier, vae=vae, train=train, seed=seed)


def images_in_the_middle(vae: BetaVAE, train: Split, regions: list[Region]) -> list[int]:
    """The training images whose codes the means are: exactly one each."""
    with torch.inference_mode():
        codes = vae.encode(train.images)[0].double().numpy()
    distances = np.array([np.linalg.norm(codes - region.mean, axis=1) for region in regions])
    assert (distances.min(1) < 1e-5).all()
    return [int(i) for i in distances.argmin(1)]


def test_a_random_region_is_its_failure_region_elsewhere(
    trained_classifier: Classifier, trained_vae: BetaVAE, shapes: ImageDataset
) -> None:
    train = shapes.train
    wrong = torch.arange(len(train)) % 4 == 0  # these labels the classifier cannot get right
    train = Split(train.images, torch.where(wrong, (train.labels + 1) % 3, train.labels))
    regions, labels = moved(trained_classifier, trained_vae, train)
    assert labels == LABELS
    for region, was, index in zip(
        regions, REGIONS, images_in_the_middle(trained_vae, train, regions), strict=True
    ):
        assert (region.region_id, region.weight) == (was.region_id, was.weight)
        np.testing.assert_array_equal(region.covariance, was.covariance)
        assert int(train.labels[index]) == LABELS[region.region_id]
        assert int(predict(trained_classifier, train.images[index : index + 1])) == train.labels[index]


def test_draws_of_a_random_region_are_the_same_normals(
    trained_classifier: Classifier, trained_vae: BetaVAE, shapes: ImageDataset
) -> None:
    regions, labels = moved(trained_classifier, trained_vae, shapes.train)
    for region, was in zip(regions, REGIONS, strict=True):
        np.testing.assert_array_equal(
            standard_normals(region, 5, seed=0, purpose="tune"),
            standard_normals(was, 5, seed=0, purpose="tune"),
        )
    drawn = failure_instances(trained_vae, regions, labels, 4, tau=0.5, seed=0, purpose="tune")
    assert drawn.region_ids.tolist() == [9] * 4 + [2] * 4 + [5] * 4
    assert drawn.labels.tolist() == [0] * 4 + [2] * 4 + [0] * 4


def test_random_regions_depend_on_the_seed_and_the_region_alone(
    trained_classifier: Classifier, trained_vae: BetaVAE, shapes: ImageDataset
) -> None:
    first, _ = moved(trained_classifier, trained_vae, shapes.train)
    again, _ = moved(trained_classifier, trained_vae, shapes.train, regions=REGIONS[1:])
    np.testing.assert_allclose([r.mean for r in again], [r.mean for r in first[1:]], atol=1e-5)
    by_seed = {
        tuple(r.mean.tobytes() for r in moved(trained_classifier, trained_vae, shapes.train, seed=seed)[0])
        for seed in range(5)
    }
    assert len(by_seed) == 5


def test_without_an_image_that_is_read_right_one_of_the_class_or_any_is_taken(
    trained_classifier: Classifier, trained_vae: BetaVAE, shapes: ImageDataset
) -> None:
    said = predict(trained_classifier, shapes.train.images)
    train = Split(shapes.train.images, torch.where(said == 1, 1, 2 - said))  # class 1 is right, others never
    regions, labels = moved(trained_classifier, trained_vae, train)
    middle = images_in_the_middle(trained_vae, train, regions)
    assert labels == LABELS
    assert train.labels[middle].tolist() == [0, 2, 0]
    only_ones = train[train.labels == 1]
    regions, labels = moved(trained_classifier, trained_vae, only_ones)
    images_in_the_middle(trained_vae, only_ones, regions)
    assert labels == {9: 1, 2: 1, 5: 1}  # called what it is, not what the region was called


def test_a_sample_is_of_distinct_images(shapes: ImageDataset) -> None:
    numbered = Split(torch.arange(240, dtype=torch.uint8).view(-1, 1, 1, 1), shapes.train.labels)
    found = sample_split(numbered, 100, seed=0)
    index = found.images.flatten().long()
    assert len(index.unique()) == 100
    assert torch.equal(found.labels, numbered.labels[index])
    assert torch.equal(index, sample_split(numbered, 100, seed=0).images.flatten().long())
    assert not torch.equal(index, sample_split(numbered, 100, seed=1).images.flatten().long())
    assert sample_split(numbered, 999, seed=0).images.flatten().sort().values.tolist() == list(range(240))


@pytest.mark.parametrize("cap", [3, None])
def test_noise_finds_what_the_search_and_a_plain_loop_find(
    trained_classifier: Classifier, trained_vae: BetaVAE, shapes: ImageDataset, cap: int | None
) -> None:
    config = IdentificationConfig(
        n_perturbations=20, noise_a=8.0, noise_b=2.0, noise_scale=2.0, max_mistakes_per_image=cap,
        precision="fp32",
    )  # fmt: skip
    split = shapes.train[:150]
    found = follow(compare_noise(trained_classifier, trained_vae, split, config=config, seed=3))
    assert list(found) == ["raw", "centred"]
    rngs = [np.random.default_rng(derive_seed(3, "noise", shard)) for shard in range(3)]
    beta = np.concatenate([r.beta(8, 2, (n, 20, 4)) for r, n in zip(rngs, (64, 64, 22), strict=True)])
    with torch.inference_mode():
        means = trained_vae.encode(split.images)[0]
        for name, shift in (("raw", 0.0), ("centred", 0.8)):
            noise = torch.from_numpy(2 * (beta - shift)).float()
            said = trained_classifier(trained_vae.decode((means[:, None] + noise).flatten(0, 1))).argmax(1)
            misclassified = int((said.view(150, 20) != split.labels[:, None]).sum())
            searched = identify(
                trained_classifier, trained_vae, split,
                config=config.model_copy(update={"centred": name == "centred"}), seed=3,
            )  # fmt: skip
            assert found[name] == {
                "images": 150, "codes": 3000, "misclassified": misclassified, **searched.counts(),
            }  # fmt: skip
            assert misclassified >= len(searched) > 0
            assert (misclassified == len(searched)) == (cap is None)
    assert (
        found["raw"]["misclassified"] > 1.2 * found["centred"]["misclassified"]
    )  # the shift finds mistakes of its own
