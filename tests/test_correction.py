"""Correction against the formula of the loss, recomputed accuracies, and hand-made points."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from defuse_core.base.config import CorrectionConfig
from defuse_core.base.errors import DivergenceError
from defuse_core.base.records import FailureInstances, SweepPoint
from defuse_core.data.splits import ImageDataset, Split
from defuse_core.method.classifier import Classifier, Preprocessing, accuracy
from defuse_core.method.correction import (
    Rule,
    apply_point,
    choose_point,
    correction_loss,
    find_flips,
    hold_out_regions,
    mistake_instances,
    sweep_lambdas,
    tune,
)

QUICK = CorrectionConfig(lambdas=(0.0, 1.0, 10.0), epochs=2, batch_size=64, precision="fp32")


def changed(config: CorrectionConfig, **changes: object) -> CorrectionConfig:
    return CorrectionConfig(**{**config.model_dump(), **changes})


def same_state(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(value, second[name]) for name, value in first.items()
    )


def as_split(failures: FailureInstances) -> Split:
    return Split(failures.images, failures.labels)


def make_point(lam: float, selection: float, tuned: float) -> SweepPoint:
    return SweepPoint(lam, 1, selection, tuned, {})


def losses_at_rest(
    classifier: Classifier, train: Split, failures: FailureInstances, *, lam: float, batch_size: int
) -> Mapping[str, float]:
    """What one epoch tells of its losses, at a rate of next to nothing."""
    told: list[Mapping[str, float]] = []
    still = changed(QUICK, epochs=1, batch_size=batch_size, learning_rate=1e-12)
    tune(
        classifier, train, failures,
        lam=lam, config=still, seed=0, callback=lambda _epoch, _of, metrics: told.append(metrics),
    )  # fmt: skip
    return told[0]


@pytest.fixture(scope="module")
def failures(shapes: ImageDataset) -> FailureInstances:
    """Negatives of 60 test images with their true labels, which the classifier mostly misclassifies."""
    part = shapes.test[:60]
    return FailureInstances(255 - part.images, part.labels, torch.arange(60) % 4)


@given(
    lam=st.floats(0, 1000),
    n=st.integers(1, 6),
    m=st.integers(1, 6),
    seed=st.integers(0, 10_000),
)
def test_loss_and_gradient_are_the_formula(lam: float, n: int, m: int, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    logits, theirs = (
        (5 * torch.randn(k, 4, generator=rng, dtype=torch.float64)).requires_grad_() for k in (n, m)
    )
    labels, their_labels = (torch.randint(4, (k,), generator=rng) for k in (n, m))
    loss = correction_loss(logits, labels, theirs, their_labels, lam=lam)
    loss.backward()

    def by_hand(values: Tensor, targets: Tensor) -> tuple[float, np.ndarray]:
        x = values.detach().numpy()
        log_softmax = x - np.log(np.exp(x).sum(axis=1, keepdims=True))
        one_hot = np.eye(4)[targets.numpy()]
        return -(log_softmax * one_hot).sum() / len(x), (np.exp(log_softmax) - one_hot) / len(x)

    of_data, data_gradient = by_hand(logits, labels)
    of_failures, failure_gradient = by_hand(theirs, their_labels)
    assert float(loss.detach()) == pytest.approx(of_data + lam * of_failures)
    np.testing.assert_allclose(logits.grad, data_gradient, atol=1e-9)
    np.testing.assert_allclose(theirs.grad, lam * failure_gradient, atol=1e-9)


@given(
    ids=st.lists(st.integers(0, 99), unique=True, min_size=1, max_size=30),
    share=st.floats(0, 0.99),
    seed=st.integers(0, 100),
)
def test_held_out_regions_divide_all(ids: list[int], share: float, seed: int) -> None:
    tuned, held_out = hold_out_regions(ids, share=share, seed=seed)
    assert sorted(tuned + held_out) == sorted(ids)
    assert tuned == sorted(tuned)
    assert held_out == sorted(held_out)
    assert len(tuned) >= 1
    assert len(held_out) == min(round(share * len(ids)), len(ids) - 1)
    assert hold_out_regions(ids[::-1], share=share, seed=seed) == (tuned, held_out)


def test_held_out_regions_depend_on_the_seed() -> None:
    ids = list(range(20))
    chosen = {tuple(hold_out_regions(ids, share=0.5, seed=seed)[1]) for seed in range(10)}
    assert len(chosen) == 10
    assert set().union(*chosen) == set(ids)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_one_region_is_left_to_tune_on(n: int) -> None:
    tuned, held_out = hold_out_regions(range(n), share=0.99, seed=0)
    assert (len(tuned), len(held_out)) == (1, n - 1)


def test_no_regions_hold_nothing_out() -> None:
    assert hold_out_regions([], share=0.5, seed=0) == ([], [])


def test_tune_leaves_the_classifier_as_it_was(
    trained_classifier: Classifier, shapes: ImageDataset, failures: FailureInstances
) -> None:
    classifier = copy.deepcopy(trained_classifier).train()
    generator = torch.random.get_rng_state()
    point = tune(classifier, shapes.train, failures, lam=1.0, config=QUICK, seed=0)
    assert same_state(classifier.state_dict(), trained_classifier.state_dict())
    assert classifier.training
    assert all(p.grad is None and p.requires_grad for p in classifier.parameters())
    assert torch.equal(torch.random.get_rng_state(), generator)
    assert not same_state(point.state, classifier.network.state_dict())


def test_equal_seeds_tune_to_equal_weights(
    trained_classifier: Classifier, shapes: ImageDataset, failures: FailureInstances
) -> None:
    first, again, other = (
        tune(trained_classifier, shapes.train, failures, lam=1.0, config=QUICK, seed=seed)
        for seed in (0, 0, 1)
    )
    assert same_state(first.state, again.state)
    assert replace(first, state={}) == replace(again, state={})
    assert not same_state(first.state, other.state)


@pytest.mark.parametrize(("lam", "ignored"), [(0.0, True), (1.0, False)])
def test_only_lambda_zero_ignores_the_failures(
    trained_classifier: Classifier,
    shapes: ImageDataset,
    failures: FailureInstances,
    lam: float,
    ignored: bool,
) -> None:
    relabelled = FailureInstances(failures.images, (failures.labels + 1) % 3, failures.region_ids)
    first, second = (
        tune(trained_classifier, shapes.train, given, lam=lam, config=QUICK, seed=0)
        for given in (failures, relabelled)
    )
    assert same_state(first.state, second.state) is ignored


def test_lambda_zero_is_plain_fine_tuning(
    trained_classifier: Classifier, shapes: ImageDataset, failures: FailureInstances
) -> None:
    """One step over all of D: Adam on the mean cross-entropy, written out."""
    config = changed(QUICK, epochs=1, batch_size=len(shapes.train), learning_rate=1e-3)
    point = tune(trained_classifier, shapes.train, failures, lam=0.0, config=config, seed=0)
    plain = copy.deepcopy(trained_classifier)
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-3)
    nn.CrossEntropyLoss()(plain(shapes.train.images), shapes.train.labels).backward()
    optimizer.step()
    for name, value in plain.network.state_dict().items():
        torch.testing.assert_close(point.state[name], value, atol=1e-4, rtol=0)


def test_a_large_lambda_repairs_the_failures(
    trained_classifier: Classifier, shapes: ImageDataset, failures: FailureInstances
) -> None:
    before = accuracy(trained_classifier, as_split(failures))
    config = changed(QUICK, epochs=6, learning_rate=5e-3)
    none, much = (
        tune(trained_classifier, shapes.train, failures, lam=lam, config=config, seed=0)
        for lam in (0.0, 100.0)
    )
    assert before < 0.6
    assert much.tuned_accuracy > max(before, none.tuned_accuracy) + 0.2


def test_one_failure_is_in_every_step_and_many_fit_in_one(
    trained_classifier: Classifier, shapes: ImageDataset, failures: FailureInstances
) -> None:
    """Fewer failures than steps, and all of them in a single step, both take effect."""
    one = FailureInstances(failures.images[:1], failures.labels[:1], failures.region_ids[:1])
    before = accuracy(trained_classifier, as_split(failures))
    many_steps = changed(QUICK, epochs=3, batch_size=16, learning_rate=5e-3)
    alone = tune(trained_classifier, shapes.train, one, lam=100.0, config=many_steps, seed=0)
    assert alone.tuned_accuracy == 1.0
    one_step = changed(QUICK, epochs=40, batch_size=240, learning_rate=1e-2)
    together = tune(trained_classifier, shapes.train, failures, lam=100.0, config=one_step, seed=0)
    assert together.tuned_accuracy > before


def test_fewer_failures_than_steps_take_turns(
    trained_classifier: Classifier, shapes: ImageDataset, failures: FailureInstances
) -> None:
    """Two failures and 15 steps: one is in eight of them, the other in seven."""
    two = FailureInstances(failures.images[:2], failures.labels[:2], failures.region_ids[:2])
    told = losses_at_rest(trained_classifier, shapes.train, two, lam=1.0, batch_size=16)
    with torch.no_grad():
        logits = trained_classifier(two.images)
        first, second = nn.CrossEntropyLoss(reduction="none")(logits, two.labels).tolist()
    assert first != pytest.approx(second, rel=0.1)
    means = ((8 * first + 7 * second) / 15, (7 * first + 8 * second) / 15)
    assert any(told["failure_loss"] == pytest.approx(mean, rel=1e-4) for mean in means)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_the_optimizer_is_the_one_that_is_named(
    trained_classifier: Classifier, shapes: ImageDataset, failures: FailureInstances, optimizer: str
) -> None:
    """The first step of Adam is the rate itself, whatever the gradient; that of SGD is not."""
    one_step = changed(QUICK, epochs=1, batch_size=240, learning_rate=1e-3, optimizer=optimizer)
    point = tune(trained_classifier, shapes.train, failures, lam=1.0, config=one_step, seed=0)
    before = trained_classifier.network.state_dict()
    moved = torch.cat([(point.state[name] - before[name]).abs().flatten() for name in before])
    at_the_rate = (moved[moved > 0] - 1e-3).abs() < 1e-5
    assert bool(at_the_rate.all()) == (optimizer == "adam")


@pytest.mark.parametrize("with_selection", [True, False])
@pytest.mark.parametrize(("lam", "learning_rate"), [(0.0, 1e-3), (1.0, 3e-3), (10.0, 0.01), (100.0, 0.03)])
def test_the_first_best_epoch_is_kept(
    trained_classifier: Classifier,
    shapes: ImageDataset,
    failures: FailureInstances,
    with_selection: bool,
    lam: float,
    learning_rate: float,
) -> None:
    record: list[tuple[int, int, float]] = []

    def watch(epoch: int, of: int, metrics: Mapping[str, float]) -> None:
        assert metrics["lam"] == lam
        record.append((epoch, of, metrics["selection_accuracy"]))

    selection = shapes.validation if with_selection else None
    point = tune(
        trained_classifier, shapes.train, failures,
        lam=lam, config=changed(QUICK, epochs=6, learning_rate=learning_rate), seed=0,
        selection=selection, callback=watch,
    )  # fmt: skip
    accuracies = [right for _, _, right in record]
    assert [(epoch, of) for epoch, of, _ in record] == [(e, 6) for e in range(1, 7)]
    assert point.epoch == 1 + accuracies.index(max(accuracies))
    assert point.selection_accuracy == max(accuracies)
    corrected = apply_point(trained_classifier, point)
    chooser = shapes.train if selection is None else selection
    assert point.lam == lam
    assert point.selection_accuracy == accuracy(corrected, chooser)
    assert point.tuned_accuracy == accuracy(corrected, as_split(failures))


def test_the_kept_epoch_has_the_weights_of_a_training_that_ends_there(
    trained_classifier: Classifier, shapes: ImageDataset, failures: FailureInstances
) -> None:
    config = changed(QUICK, epochs=6, learning_rate=0.03)
    points = [
        tune(
            trained_classifier, shapes.train, failures,
            lam=lam, config=config, seed=0, selection=shapes.validation,
        )
        for lam in (0.0, 10.0, 1000.0)
    ]  # fmt: skip
    early = next(point for point in points if point.epoch < 6)
    until = tune(
        trained_classifier, shapes.train, failures,
        lam=early.lam, config=changed(config, epochs=early.epoch), seed=0,
        selection=shapes.validation,
    )  # fmt: skip
    assert until.epoch == early.epoch
    assert same_state(until.state, early.state)


def test_ties_keep_the_earliest_epoch(
    trained_classifier: Classifier, shapes: ImageDataset, failures: FailureInstances
) -> None:
    still = changed(QUICK, epochs=4, learning_rate=1e-12)
    point = tune(trained_classifier, shapes.train, failures, lam=1.0, config=still, seed=0)
    assert point.epoch == 1
    assert point.selection_accuracy == accuracy(trained_classifier, shapes.train)


def test_losses_reported_are_those_of_the_batches(
    trained_classifier: Classifier, shapes: ImageDataset, failures: FailureInstances
) -> None:
    """At a rate of next to nothing, the means over an epoch are those of the whole sets."""
    told = losses_at_rest(trained_classifier, shapes.train, failures, lam=7.0, batch_size=60)
    with torch.no_grad():
        for name, part in (("loss", shapes.train), ("failure_loss", as_split(failures))):
            expected = nn.CrossEntropyLoss()(trained_classifier(part.images), part.labels)
            assert told[name] == pytest.approx(float(expected), rel=1e-4)


def test_callback_stops_a_tuning_with_what_it_has(
    trained_classifier: Classifier, shapes: ImageDataset, failures: FailureInstances
) -> None:
    stopped = tune(
        trained_classifier, shapes.train, failures,
        lam=1.0, config=changed(QUICK, epochs=50), seed=0,
        callback=lambda epoch, _of, _metrics: epoch == 2,
    )  # fmt: skip
    whole = tune(trained_classifier, shapes.train, failures, lam=1.0, config=QUICK, seed=0)
    assert same_state(stopped.state, whole.state)
    assert replace(stopped, state={}) == replace(whole, state={})


def test_the_sweep_is_one_tuning_a_lambda_in_order(
    trained_classifier: Classifier, shapes: ImageDataset, failures: FailureInstances
) -> None:
    config = changed(QUICK, lambdas=(10.0, 0.0, 1.0))
    steps: list[tuple[int, int, float]] = []
    points = list(
        sweep_lambdas(
            trained_classifier, shapes.train, failures,
            config=config, seed=4, selection=shapes.validation,
            callback=lambda step, of, metrics: steps.append((step, of, metrics["lam"])),
        )
    )  # fmt: skip
    assert [point.lam for point in points] == [10.0, 0.0, 1.0]
    lams = [10.0, 10.0, 0.0, 0.0, 1.0, 1.0]
    assert steps == [(done, 6, lam) for done, lam in enumerate(lams, 1)]
    for point in points:
        alone = tune(
            trained_classifier, shapes.train, failures,
            lam=point.lam, config=config, seed=4, selection=shapes.validation,
        )  # fmt: skip
        assert same_state(alone.state, point.state)
        assert replace(alone, state={}) == replace(point, state={})


def test_callback_ends_the_sweep_after_the_lambda_under_way(
    trained_classifier: Classifier, shapes: ImageDataset, failures: FailureInstances
) -> None:
    calls: list[int] = []

    def watch(step: int, _of: int, _metrics: Mapping[str, float]) -> bool:
        calls.append(step)
        return step == 3

    points = list(
        sweep_lambdas(trained_classifier, shapes.train, failures, config=QUICK, seed=0, callback=watch)
    )
    assert calls == [1, 2, 3]
    assert [point.lam for point in points] == [0.0, 1.0]
    one_epoch = changed(QUICK, epochs=1)
    alone = tune(trained_classifier, shapes.train, failures, lam=1.0, config=one_epoch, seed=0)
    assert same_state(points[1].state, alone.state)


def test_the_sweep_is_lazy(
    trained_classifier: Classifier, shapes: ImageDataset, failures: FailureInstances
) -> None:
    calls: list[int] = []
    sweep = sweep_lambdas(
        trained_classifier, shapes.train, failures,
        config=QUICK, seed=0, callback=lambda step, _of, _metrics: calls.append(step),
    )  # fmt: skip
    assert next(sweep).lam == 0.0
    assert calls == [1, 2]


POINTS = [
    make_point(0.0, 0.95, 0.10),
    make_point(0.1, 0.97, 0.40),
    make_point(1.0, 0.96, 0.80),
    make_point(10.0, 0.90, 0.99),
]


@pytest.mark.parametrize(
    ("rule", "before", "max_loss", "expected"),
    [
        ("paper", None, 0.01, 0.1),
        ("paper", 0.5, 1.0, 0.1),  # the paper's rule looks at neither
        ("regions", 0.965, 0.01, 1.0),
        ("regions", 0.97, 0.005, 0.1),
        ("regions", 0.97, 0.5, 10.0),
        ("regions", 0.0, 0.0, 10.0),
        ("regions", 0.96, 0.0, 1.0),  # a loss of exactly `max_loss` is allowed
        ("regions", 0.99, 0.01, 0.1),  # nothing is allowed: as the paper
    ],
)
def test_choose_point(rule: Rule, before: float | None, max_loss: float, expected: float) -> None:
    for points in (POINTS, POINTS[::-1]):
        chosen = choose_point(points, rule=rule, before=before, max_loss=max_loss)
        assert chosen.lam == expected


@pytest.mark.parametrize("rule", ["paper", "regions"])
def test_ties_go_to_the_smaller_lambda(rule: Rule) -> None:
    points = [make_point(lam, 0.9, 0.8) for lam in (2.0, 1e-10, 100.0)]
    assert choose_point(points, rule=rule, before=0.9).lam == 1e-10


def test_the_default_rule_is_the_papers() -> None:
    assert choose_point(POINTS) is POINTS[1]


def test_the_rule_of_regions_allows_a_loss_of_one_percent_by_default() -> None:
    assert choose_point(POINTS, rule="regions", before=0.9699) is POINTS[2]
    assert choose_point(POINTS, rule="regions", before=0.9701) is POINTS[1]


def test_the_rule_of_regions_needs_the_accuracy_before() -> None:
    with pytest.raises(ValueError, match="rule 'regions' needs before"):
        choose_point(POINTS, rule="regions")


@pytest.mark.parametrize("rule", ["paper", "regions"])
def test_there_must_be_a_point(rule: Rule) -> None:
    with pytest.raises(ValueError, match="run the sweep with at least one λ"):
        choose_point([], rule=rule, before=0.9)


def test_apply_point_gives_a_copy_in_evaluation_mode(trained_classifier: Classifier) -> None:
    classifier = copy.deepcopy(trained_classifier).train()
    zeros = {name: torch.zeros_like(t) for name, t in classifier.network.state_dict().items()}
    corrected = apply_point(classifier, SweepPoint(1.0, 1, 0.0, 0.0, zeros))
    assert same_state(corrected.network.state_dict(), zeros)
    assert same_state(classifier.state_dict(), trained_classifier.state_dict())
    assert classifier.training
    assert not corrected.training


def test_mistake_instances_leave_out_what_was_discarded() -> None:
    images = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1)
    found = mistake_instances(images, [2, None, 0, None])
    assert found.images.flatten().tolist() == [0, 2]
    assert found.images.dtype == torch.uint8
    assert found.labels.tolist() == [2, 0]  # 0 is a label, not a missing one
    assert found.region_ids.tolist() == [-1, -1]
    nothing = mistake_instances(images, [None] * 4)
    assert len(nothing) == 0
    assert nothing.images.shape == (0, 1, 1, 1)


@pytest.mark.parametrize("n_labels", [0, 3, 5])
def test_mistake_instances_need_a_label_an_image(n_labels: int) -> None:
    images = torch.zeros(4, 1, 1, 1, dtype=torch.uint8)
    with pytest.raises(ValueError, match=f"labels must be as many as images, got {n_labels} and 4"):
        mistake_instances(images, [1] * n_labels)


def test_many_mistakes_have_a_label_each() -> None:
    assert len(mistake_instances(torch.zeros(300, 1, 1, 1, dtype=torch.uint8), [1] * 300)) == 300


def brighter_than(threshold: float) -> Classifier:
    """Says 1 of a single pixel over the threshold, in [0, 1], else 0."""
    linear = nn.Linear(1, 2)
    linear.load_state_dict({"weight": torch.tensor([[0.0], [1.0]]), "bias": torch.tensor([threshold, 0.0])})
    return Classifier(nn.Sequential(nn.Flatten(), linear), Preprocessing())


def test_flips_hand_worked() -> None:
    pixels = torch.tensor([0, 51, 102, 153, 204, 255], dtype=torch.uint8)  # 0, 0.2, … 1
    split = Split(pixels.view(6, 1, 1, 1), torch.tensor([0, 1, 0, 0, 0, 1]))
    before, after = brighter_than(0.1), brighter_than(0.7)
    # Before says 0 1 1 1 1 1, after 0 0 0 0 1 1.
    flips = find_flips(before, after, split)
    assert flips.fixed.tolist() == [2, 3]
    assert flips.broken.tolist() == [1]
    back = find_flips(after, before, split)
    assert (back.fixed.tolist(), back.broken.tolist()) == ([1], [2, 3])
    same = find_flips(before, before, split)
    assert len(same.fixed) == len(same.broken) == 0
    assert flips.fixed.dtype == torch.int64


def test_flips_account_for_the_change_in_accuracy(
    trained_classifier: Classifier, shapes: ImageDataset, failures: FailureInstances
) -> None:
    config = changed(QUICK, learning_rate=0.02)
    point = tune(trained_classifier, shapes.train, failures, lam=100.0, config=config, seed=0)
    after = apply_point(trained_classifier, point)
    flips = find_flips(trained_classifier, after, as_split(failures))
    gain = accuracy(after, as_split(failures)) - accuracy(trained_classifier, as_split(failures))
    assert len(flips.fixed) > 0
    assert (len(flips.fixed) - len(flips.broken)) / len(failures) == pytest.approx(gain)


def test_tuning_without_failures_is_refused(
    trained_classifier: Classifier, shapes: ImageDataset, failures: FailureInstances
) -> None:
    with pytest.raises(ValueError, match="label at least one failure region"):
        tune(trained_classifier, shapes.train, failures.regions([]), lam=1.0, config=QUICK, seed=0)


@pytest.mark.parametrize("lam", [-1.0, -1e-10, float("nan"), float("inf")])
def test_lambda_must_be_a_number_of_zero_or_more(
    trained_classifier: Classifier, shapes: ImageDataset, failures: FailureInstances, lam: float
) -> None:
    with pytest.raises(ValueError, match="lam of 0 or more"):
        tune(trained_classifier, shapes.train, failures, lam=lam, config=QUICK, seed=0)
    with pytest.raises(ValueError, match="lambdas"):
        changed(QUICK, lambdas=(1.0, lam))


def test_a_loss_that_is_not_finite_names_the_remedy(
    trained_classifier: Classifier, shapes: ImageDataset, failures: FailureInstances
) -> None:
    config = changed(QUICK, learning_rate=1e30)
    with pytest.raises(DivergenceError, match=r"diverged at lam = 1, epoch 1: .*nan.*; lower learning_rate"):
        tune(trained_classifier, shapes.train, failures, lam=1.0, config=config, seed=0)


def test_tuning_needs_images_of_the_failures_shape(
    trained_classifier: Classifier, shapes: ImageDataset, failures: FailureInstances
) -> None:
    wider = FailureInstances(failures.images.repeat(1, 1, 1, 2), failures.labels, failures.region_ids)
    for train, wrong in ((shapes.train, wider), (shapes.train[:0], failures)):
        with pytest.raises(ValueError, match=r"images of the failures' shape.*give the split"):
            tune(trained_classifier, train, wrong, lam=1.0, config=QUICK, seed=0)
