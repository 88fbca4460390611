"""Files of weights: whole or absent, and checked before a network sees them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from defuse_core.base.checkpoints import (
    copy_state,
    load_artifact,
    load_tensors,
    load_weights,
    save_tensors,
)
from defuse_core.base.errors import CheckpointError
from defuse_core.base.files import write_bytes


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype, name
        assert torch.equal(tensor, second[name]), name


def test_tensors_and_metadata_come_back_as_they_were(tmp_path: Path) -> None:
    tensors = {
        "float": torch.randn(3, 4),
        "half": torch.randn(2).bfloat16(),
        "bytes": torch.arange(256, dtype=torch.uint8),
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 5),
        "transposed": torch.randn(4, 6).T,
        "channels_last": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "needs_grad": nn.Parameter(torch.randn(2)),
    }
    metadata = {"name": "β-VAE", "n": 3, "nested": {"list": [1, 2.5, None, True]}}
    checksum = save_tensors(tmp_path / "new" / "x.safetensors", tensors, metadata=metadata)
    loaded, told = load_tensors(tmp_path / "new" / "x.safetensors")
    assert_same({name: tensor.detach() for name, tensor in tensors.items()}, loaded)
    assert told == metadata
    content = (tmp_path / "new" / "x.safetensors").read_bytes()
    assert checksum == hashlib.sha256(content).hexdigest()


def test_equal_tensors_give_equal_files(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(4.0), "a": torch.ones(2, 2)}
    save_tensors(tmp_path / "first", tensors, metadata={"seed": 1})
    save_tensors(tmp_path / "second", tensors, metadata={"seed": 1})
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_a_file_is_readable_by_safetensors_itself(tmp_path: Path) -> None:
    state = network().state_dict()
    save_tensors(tmp_path / "x.safetensors", state)
    assert_same(dict(state), safetensors.torch.load_file(tmp_path / "x.safetensors"))


def test_a_file_of_another_program_keeps_its_plain_metadata(tmp_path: Path) -> None:
    """Hugging Face writes {"format": "pt"}, which is not JSON."""
    path = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"a": torch.ones(2)}, path, metadata={"format": "pt"})
    tensors, metadata = load_tensors(path)
    assert torch.equal(tensors["a"], torch.ones(2))
    assert metadata == {"format": "pt"}


@pytest.mark.parametrize("value", ["9" * 5000, "[" * 100_000, "{'single': 'quotes'}"])
def test_metadata_that_cannot_be_parsed_are_text(tmp_path: Path, value: str) -> None:
    path = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"a": torch.ones(2)}, path, metadata={"note": value})
    assert load_tensors(path)[1] == {"note": value}


def test_weights_that_share_memory_are_saved(tmp_path: Path) -> None:
    """Networks with tied weights have two names for one tensor."""
    shared = torch.randn(3, 3)
    save_tensors(tmp_path / "tied", {"encoder": shared, "decoder": shared})
    assert_same({"encoder": shared, "decoder": shared}, load_tensors(tmp_path / "tied")[0])


def test_a_crash_while_writing_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"a": torch.zeros(2)})
    before = path.read_bytes()

    def crash(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(OSError, match="no space left"):
        save_tensors(path, {"a": torch.ones(2)})
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_keyboard_interrupt_while_writing_leaves_no_temporary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(tmp_path / "x", b"half")
    assert not list(tmp_path.iterdir())


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"gone\.safetensors does not exist; check the path"):
        load_tensors(tmp_path / "gone.safetensors")


@pytest.mark.parametrize("keep", [0, 4, 40, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "half.safetensors"
    save_tensors(path, {"a": torch.randn(100)})
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"half\.safetensors is not a whole .*download it"):
        load_tensors(path)


def test_a_damaged_file_of_a_run_is_written_again_by_its_step(tmp_path: Path) -> None:
    (tmp_path / "x.safetensors").write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match=r"copy or download it again$"):
        load_tensors(tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"not a whole safetensors file .*; run the step again$"):
        load_artifact(tmp_path / "x.safetensors")


def test_a_pickled_file_is_refused(tmp_path: Path) -> None:
    torch.save(network(), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"model\.pt is not a whole safetensors file"):
        load_tensors(tmp_path / "model.pt")


def test_load_weights_copies_every_value() -> None:
    source, target = network(), network()
    load_weights(target, source.state_dict(), source="x")
    assert_same(dict(source.state_dict()), dict(target.state_dict()))
    with torch.no_grad():
        source[0].weight.add_(1)
    assert not torch.equal(source[0].weight, target[0].weight)


def test_load_weights_keeps_the_type_of_the_network() -> None:
    target = network()
    halves = {
        name: tensor.bfloat16() if tensor.is_floating_point() else tensor
        for name, tensor in network().state_dict().items()
    }
    load_weights(target, halves, source="x")
    assert target[0].weight.dtype == torch.float32
    assert torch.equal(target[0].weight, halves["0.weight"].float())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"3.bias": None}, r"missing 3\.bias"),
        ({"4.weight": torch.ones(2)}, r"unexpected 4\.weight"),
        ({"3.weight": torch.ones(5, 8)}, r"3\.weight: \(5, 8\) in the file, \(3, 8\) in the"),
        (
            {"3.bias": None, "head.bias": torch.ones(3)},
            r"missing 3\.bias; unexpected head\.bias",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named_and_nothing_is_copied(
    change: dict[str, Tensor | None], told: str
) -> None:
    target = network()
    before = copy_state(target)
    changed = {**network().state_dict(), **change}
    weights = {name: tensor for name, tensor in changed.items() if tensor is not None}
    with pytest.raises(CheckpointError, match=rf"x\.pt does not fit.*{told}.*Choose the archit"):
        load_weights(target, weights, source="x.pt")
    assert_same(before, dict(target.state_dict()))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_named_and_nothing_is_copied(value: float) -> None:
    target = network()
    before = copy_state(target)
    weights = copy_state(network())
    weights["3.weight"][1, 2] = value
    with pytest.raises(CheckpointError, match=r"x\.pt .*not finite: 3\.weight.*earlier checkp"):
        load_weights(target, weights, source="x.pt")
    assert_same(before, dict(target.state_dict()))


def test_copy_state_gives_independent_copies() -> None:
    module = network()
    before = copy_state(module)
    reference = {name: tensor.numpy().copy() for name, tensor in before.items()}
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.add_(1)
    for name, tensor in before.items():
        assert (tensor.numpy() == reference[name]).all(), name
        assert not tensor.requires_grad
    before["0.weight"].zero_()
    assert module[0].weight.abs().sum() > 0
