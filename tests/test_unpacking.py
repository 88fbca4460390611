"""Files of runs that anybody may have made: refused in words, and before memory is taken."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from defuse_core.base.config import VaeConfig
from defuse_core.base.errors import CheckpointError
from defuse_core.base.limits import MAX_CLASSES
from defuse_core.method.vae import BetaVAE
from defuse_core.networks.architectures import build_network
from defuse_core.steps import unpacking
from defuse_core.steps.unpacking import (
    build_checked,
    read_stated,
    unpack_mistakes,
    unpack_mixture,
    unpack_vae,
)

SMALL = VaeConfig(channels=1, image_size=8, padding=0, hidden_channels=2, hidden_units=4, latent_dim=2)
FED = {"mean": [0.1], "std": [0.3], "image_size": None, "channel_order": "rgb"}
ABOUT = {"architecture": "mnist_cnn", "n_classes": 3, "preprocessing": FED}
COLUMN = torch.zeros(3, dtype=torch.int64)
MISTAKES = {
    "latents": torch.zeros(3, 2), "labels": COLUMN, "predictions": COLUMN, "source_index": COLUMN,
    "noise_norm": torch.zeros(3), "kind": COLUMN,
}  # fmt: skip
MIXTURE = {
    "weights": torch.ones(2) / 2,
    "means": torch.zeros(2, 3),
    "covariances": torch.eye(3).repeat(2, 1, 1),
}
FIT = {"fit": {"converged": True, "n_iter": 1, "lower_bound": 0.0, "n_codes": 5}}


def test_what_a_run_wrote_is_read_again() -> None:
    vae = BetaVAE(SMALL)
    read = unpack_vae(vae.state_dict(), {"config": SMALL.model_dump()})
    assert read.config == SMALL
    assert all(torch.equal(a, b) for a, b in zip(vae.parameters(), read.parameters(), strict=True))
    assert len(unpack_mistakes(MISTAKES)) == 3
    assert unpack_mixture(MIXTURE, FIT).n_codes == 5
    name, n_classes, fed = read_stated(ABOUT)
    assert (name, n_classes, fed.mean) == ("mnist_cnn", 3, (0.1,))
    network = build_network("mnist_cnn", n_classes=3, channels=1, like={})
    assert type(build_checked(name, network.state_dict(), n_classes=3, channels=1)) is type(network)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"hidden_units": 10**6}, "does not fit"),
        ({"hidden_units": 10**12}, "does not fit|the shape of no generator"),
        ({"latent_dim": 10**9}, "does not fit"),
        ({"hidden_channels": 10**5}, "does not fit"),
        ({"padding": 2**30}, "does not fit|the shape of no generator"),
        ({"depth": 0}, "vae.safetensors is damaged .*depth.*run the step again"),
        ({"unknown": 1}, "vae.safetensors is damaged .*unknown"),
    ],
)
def test_a_generator_of_another_size_is_refused_before_it_takes_memory(
    change: dict[str, Any], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = BetaVAE(SMALL).state_dict()
    allocated: list[bool] = []
    was = torch.nn.init.kaiming_uniform_

    def spied(tensor: torch.Tensor, **options: Any) -> Any:
        allocated.append(tensor.device.type != "meta")
        return was(tensor, **options)

    monkeypatch.setattr(torch.nn.init, "kaiming_uniform_", spied)
    with pytest.raises(CheckpointError, match=told):
        unpack_vae(state, {"config": SMALL.model_dump() | change})
    assert not any(allocated)


def test_a_network_of_more_classes_is_refused_before_it_takes_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    state = build_network("mnist_cnn", n_classes=3, channels=1, like={}).state_dict()

    def allocates(*_: object, **__: object) -> None:
        raise AssertionError("memory is taken")

    monkeypatch.setattr(unpacking, "build_network", allocates)
    with pytest.raises(CheckpointError, match=r"classifier\.safetensors does not fit"):
        build_checked("mnist_cnn", state, n_classes=MAX_CLASSES, channels=1)


@pytest.mark.parametrize(
    ("read", "told"),
    [
        (lambda: unpack_vae({}, {}), "vae.safetensors is damaged .it lacks 'config'.; run the step again"),
        (lambda: unpack_vae({}, {"config": 3}), "vae.safetensors is damaged"),
        (lambda: unpack_mistakes({}), "mistakes.safetensors is damaged"),
        (lambda: unpack_mistakes({**MISTAKES, "odd": COLUMN}), "odd is missing, or should not be there"),
        (lambda: unpack_mistakes({**MISTAKES, "latents": COLUMN}), "latents has 1 dimensions"),
        (lambda: unpack_mistakes({**MISTAKES, "kind": COLUMN[:2]}), "of different lengths"),
        (lambda: unpack_mixture(MIXTURE, {}), "mixture.safetensors is damaged .it lacks 'fit'"),
        (lambda: unpack_mixture(MIXTURE, {"fit": {"odd": 1}}), "mixture.safetensors is damaged"),
        (lambda: unpack_mixture({**MIXTURE, "covariances": torch.zeros(2, 2, 3)}, FIT), "different shapes"),
        (lambda: read_stated({}), "classifier.safetensors is damaged .it lacks 'architecture'"),
        (lambda: read_stated({**ABOUT, "n_classes": MAX_CLASSES + 1}), "n_classes must be 1 to 100,000"),
        (lambda: read_stated({**ABOUT, "n_classes": True}), "n_classes must be 1 to 100,000"),
        (lambda: read_stated({**ABOUT, "architecture": ["a"]}), "architecture is no name"),
        (lambda: read_stated({**ABOUT, "preprocessing": {}}), "classifier.safetensors is damaged"),
        (
            lambda: read_stated({**ABOUT, "preprocessing": {**FED, "mean": 3}}),
            "classifier.safetensors is dam",
        ),
    ],
)
def test_a_damaged_file_says_what_to_do(read: Callable[[], object], told: str) -> None:
    with pytest.raises(CheckpointError, match=told):
        read()
