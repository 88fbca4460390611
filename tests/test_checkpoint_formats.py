"""Checkpoints of strangers: every format is told and read, nothing in it is run, all else is refused."""

from __future__ import annotations

import contextlib
import copy
import io
import os
import pickle
import struct
import tarfile
import warnings
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import Tensor, nn

from defuse_core.base import checkpoints
from defuse_core.base.checkpoints import load_metadata, load_tensors, load_weights
from defuse_core.base.errors import CheckpointError
from defuse_core.base.limits import MAX_HEADER_BYTES, MAX_PICKLE_OPCODES, MAX_TENSORS, MAX_ZIP_DIRECTORY
from defuse_core.method.classifier import Classifier, Preprocessing, predict_logits
from defuse_core.networks import conversion, formats
from defuse_core.networks.conversion import rewrite
from defuse_core.networks.formats import (
    Program,
    Weights,
    load_program,
    read_weights,
    sniff_format,
)
from tests.tutorial_networks import SmallCnn
from tests.zips import moved_member

REMEDY = r"torch\.save\(model\.state_dict\(\), \"weights\.pt\"\)"
BATCH = {0: torch.export.Dim("batch")}


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of many files: a process for each costs a tenth of a second."""
    monkeypatch.setattr(formats, "convert", rewrite)


each_file = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def network(seed: int = 0) -> SmallCnn:
    """A network whose batch-norm has seen images."""
    torch.manual_seed(seed)
    made = SmallCnn()
    made(images())
    return made.eval()


def images(n: int = 4) -> Tensor:
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def assert_same(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype, name
        assert torch.equal(tensor, second[name]), name


def save(path: Path, content: object, how: str = "zip") -> Path:
    """Write a checkpoint as a user would."""
    if how == "safetensors":
        safetensors.torch.save_file(content, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=how == "zip")
    return path


def save_program(path: Path, model: nn.Module, how: str, x: Tensor | None = None) -> Path:
    """Write a TorchScript or torch.export program as a user would."""
    x = images() if x is None else x
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if how == "exported":
            torch.export.save(torch.export.export(model, (x,), dynamic_shapes=(BATCH,)), path)
        else:
            (torch.jit.script(model) if how == "script" else torch.jit.trace(model, x)).save(path)
    return path


# Which format


@pytest.mark.parametrize(
    ("how", "expected"), [("zip", "state_dict"), ("legacy", "state_dict"), ("safetensors", "safetensors")]
)
@pytest.mark.parametrize("name", ["weights", "weights.onnx", "modell mit Ümläuten.safetensors"])
def test_weights_are_told_by_content(tmp_path: Path, how: str, expected: str, name: str) -> None:
    assert sniff_format(save(tmp_path / name, network().state_dict(), how)) == expected


@pytest.mark.parametrize(
    ("how", "expected"), [("script", "torchscript"), ("trace", "torchscript"), ("exported", "exported")]
)
def test_programs_are_told_by_content(tmp_path: Path, how: str, expected: str) -> None:
    path = save_program(tmp_path / "x.pt2", network(), how)
    moved = path.rename(tmp_path / "weights.safetensors")
    assert sniff_format(moved) == expected
    with pytest.raises(CheckpointError, match=rf"is a program.*load_program.*{REMEDY}"):
        read_weights(moved)


def test_a_program_exported_by_an_older_torch_is_told(tmp_path: Path) -> None:
    """Until 2.7 torch.export.save wrote these names, without a folder around them."""
    path = tmp_path / "old.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("serialized_exported_program.json", "serialized_state_dict.pt", "version"):
            archive.writestr(name, b"8.5")
    assert sniff_format(path) == "exported"
    with pytest.raises(CheckpointError, match=r"cannot be opened as a program .*with this version"):
        load_program(path)


def keras(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("model.weights.h5", "")


def tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"), io.BytesIO())


def empty_zip(path: Path) -> None:
    zipfile.ZipFile(path, "w").close()


@pytest.mark.parametrize(
    ("write", "told"),
    [
        (lambda path: path.write_bytes(b""), "is empty; copy or download it again"),
        (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100)), "HDF5.*Keras"),
        (lambda path: path.write_bytes(b"\x08\x07\x12\x07pytorch" + bytes(100)), "neither safetens.*ONNX"),
        (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(100)), "zip archive .* cut off or damaged"),
        (lambda path: path.write_bytes(b"\x1f\x8b\x08" + bytes(100)), "gzip archive; unpack"),
        (lambda path: path.write_bytes(b"<!DOCTYPE html>"), "web page"),
        (lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
        (lambda path: path.write_bytes(struct.pack("<Q", 10**6) + b'{"a":'), "looks like safetens.*cut off"),
        (lambda path: path.write_bytes(pickle.dumps({"a": 1})), f"a program that would run.*{REMEDY}"),
        (lambda path: np.savez(path.open("wb"), a=np.ones(2)), r"NumPy arrays \(\.npz\)"),
        (keras, "a Keras model"),
        (tar, "a tar archive"),
        (empty_zip, "an empty zip archive"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("read", [sniff_format, read_weights, load_program])
def test_other_files_are_told_apart_with_a_remedy(
    tmp_path: Path, write: Callable[[Path], Any], told: str, read: Callable[[Path], Any]
) -> None:
    path = tmp_path / "weights.pt"
    write(path)
    with pytest.raises(CheckpointError, match=rf"weights\.pt .*{told}"):
        read(path)


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def loop(path: Path) -> Path:
    path.symlink_to(path)
    return path


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: path, "does not exist"),
        (lambda path: path.parent, "is a folder, not a file"),
        (pipe, "is a pipe or a device, not a file"),
        (lambda _: Path("/dev/zero"), "is a pipe or a device, not a file"),
        (loop, r"cannot be read \(Too many levels of symbolic links\)"),
        (lambda path: path / "a\0b", r"cannot be read \(embedded null byte\)"),
        (lambda path: path.parent / os.fsdecode(b"\xff.pt"), r"\?\.pt does not exist"),
    ],
    ids=range(7),
)
@pytest.mark.parametrize("read", [sniff_format, read_weights, load_program, load_tensors])
def test_what_is_no_file_is_told(
    tmp_path: Path, make: Callable[[Path], Path], told: str, read: Callable[[Path], Any]
) -> None:
    with pytest.raises(CheckpointError, match=f"{told}; check the path"):
        read(make(tmp_path / "gone.pt"))


# Weights


@pytest.mark.parametrize("how", ["zip", "legacy", "safetensors"])
def test_weights_come_back_as_they_were(tmp_path: Path, how: str) -> None:
    state = network().state_dict()
    found = read_weights(save(tmp_path / "x", state, how))
    assert_same(found.tensors, dict(state))
    assert (found.prefix, found.nested_under) == ("", None)
    assert found.format == ("safetensors" if how == "safetensors" else "state_dict")


def test_weights_do_not_depend_on_their_file_any_more(tmp_path: Path) -> None:
    state = network().state_dict()
    path = save(tmp_path / "x", state)
    found = read_weights(path)
    path.write_bytes(bytes(path.stat().st_size))
    assert_same(found.tensors, dict(state))


def lightning(state: dict[str, Tensor], optimizer: dict[str, Any]) -> dict[str, Any]:
    return {
        "epoch": 3, "global_step": 9, "pytorch-lightning_version": "2.4.0", "loops": {"fit_loop": {}},
        "state_dict": {f"model.{name}": t for name, t in state.items()},
        "optimizer_states": [optimizer], "lr_schedulers": [], "hyper_parameters": {"lr": 0.1},
    }  # fmt: skip


NESTED: dict[str, tuple[Callable[..., Any], str | None, str]] = {
    "training": (lambda s, o: {"epoch": 3, "optimizer": o, "model_state_dict": s}, "model_state_dict", ""),
    "model first": (lambda s, o: {"model_ema": dict(s), "model": s, "optimizer": o}, "model", ""),
    "state_dict first": (lambda s, _: {"model": dict(s), "state_dict": s, "best": 0.9}, "state_dict", ""),
    "lightning": (lightning, "state_dict", "model."),
    "parallel": (lambda s, _: {f"module.{k}": t for k, t in s.items()}, None, "module."),
    "both": (lambda s, _: {"net": {f"module._orig_mod.{k}": t for k, t in s.items()}}, "net",
             "module._orig_mod."),
    "any name": (lambda s, o: {"student": s, "optimizer": o, "lr": 0.1}, "student", ""),
    "two deep": (lambda s, _: {"model": {"arch": "cnn", "state_dict": s}}, "model.state_dict", ""),
    "averaged": (lambda s, _: {"n_averaged": torch.tensor(3)} | {f"module.{k}": t for k, t in s.items()},
                 None, "module."),
    "extra state": (lambda s, _: {**s, "head._extra_state": None}, None, ""),
}  # fmt: skip


@pytest.mark.parametrize("how", ["zip", "legacy"])
@pytest.mark.parametrize("case", NESTED)
def test_weights_are_found_where_training_programs_put_them(tmp_path: Path, how: str, case: str) -> None:
    trained = network()
    optimizer = torch.optim.Adam(trained.parameters())
    F.cross_entropy(trained(images()), torch.tensor([0, 1, 2, 3])).backward()
    optimizer.step()
    state = dict(trained.state_dict())
    pack, under, prefix = NESTED[case]
    found = read_weights(save(tmp_path / "x.ckpt", pack(state, optimizer.state_dict()), how))
    assert (found.nested_under, found.prefix) == (under, prefix)
    assert_same(found.tensors, state)


def test_real_wrappers_are_taken_off(tmp_path: Path) -> None:
    """What torch itself puts around a network."""
    plain = network()
    compiled: Any = torch.compile(plain)
    parallel = nn.DataParallel(plain)
    averaged = torch.optim.swa_utils.AveragedModel(plain)
    for wrapped in (compiled, parallel, averaged):
        found = read_weights(save(tmp_path / "x.pt", wrapped.state_dict()))
        assert_same(found.tensors, dict(plain.state_dict()))


def test_a_lone_layer_keeps_the_last_part_of_its_names(tmp_path: Path) -> None:
    layer = nn.Linear(3, 2)
    found = read_weights(save(tmp_path / "x", {f"a.b.fc.{k}": t for k, t in layer.state_dict().items()}))
    assert found.prefix == "a.b.fc."
    assert_same(found.tensors, dict(layer.state_dict()))


def test_no_name_is_stripped_to_nothing(tmp_path: Path) -> None:
    found = read_weights(save(tmp_path / "x", {"a.": torch.ones(1), "a.b": torch.ones(2)}))
    assert (found.prefix, list(found.tensors)) == ("", ["a.", "a.b"])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({}, "holds an empty dict, no weights"),
        ([torch.ones(2)], "holds a list, not a network's weights by name"),
        (torch.ones(2), "holds a Tensor, not a network's"),
        ({"epoch": 3, "loss": 0.1}, "holds no weights; its entries are epoch, loss"),
        ({"state_dict": {}}, "holds no weights; its entries are state_dict"),
        ({"g": {"w": torch.ones(2)}, "d": {"w": torch.ones(3)}}, r"holds several sets of weights \(g, d\)"),
        ({3: torch.ones(2)}, "holds no weights"),
    ],
)
def test_files_without_one_network_are_refused(tmp_path: Path, content: object, told: str) -> None:
    with pytest.raises(CheckpointError, match=rf"x\.pt {told}.*{REMEDY}"):
        read_weights(save(tmp_path / "x.pt", content))


def test_a_dict_that_holds_itself_is_refused(tmp_path: Path) -> None:
    content: dict[str, Any] = {"epoch": 3}
    content["model"] = content
    with pytest.raises(CheckpointError, match="holds no weights; its entries are epoch, model"):
        read_weights(save(tmp_path / "x.pt", content))


@pytest.mark.parametrize(
    ("n_tensors", "told"),
    [(MAX_TENSORS + 1, "holds 10,001 tensors, more than the 10,000"), (0, "header of 16,777,217 bytes")],
)
def test_safetensors_of_many_tensors_are_refused(tmp_path: Path, n_tensors: int, told: str) -> None:
    names = (f'"{n}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}' for n in range(n_tensors))
    header = f"{{{','.join(names)}}}".encode()
    header += b" " * (0 if n_tensors else MAX_HEADER_BYTES + 1 - len(header))
    path = tmp_path / "x"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(CheckpointError, match=told):
        read_weights(path)


def test_many_tensors_are_counted_before_one_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "x", {"a": torch.ones(1), "b": torch.ones(1)}, "safetensors")
    assert len(load_tensors(path, most=2)[0]) == 2
    reads, was = [], safe_open

    class Counting:
        def __init__(self, *given: Any, **options: Any) -> None:
            self.file = was(*given, **options)

        def __enter__(self) -> Any:
            self.file = self.file.__enter__()
            return self

        def __exit__(self, *given: Any) -> None:
            self.file.__exit__(*given)

        def __getattr__(self, name: str) -> Any:
            reads.append(name)
            return getattr(self.file, name)

    monkeypatch.setattr(checkpoints, "safe_open", Counting)
    with pytest.raises(CheckpointError, match="holds 2 tensors, more than the 1 that are read"):
        load_tensors(path, most=1)
    assert load_metadata(path) == {}
    assert "get_tensor" not in reads


def test_safetensors_without_tensors_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no weights"):
        read_weights(save(tmp_path / "x", {}, "safetensors"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("how", ["zip", "legacy", "safetensors"])
def test_other_precisions_load_into_a_network(tmp_path: Path, dtype: torch.dtype, how: str) -> None:
    trained, target = network(), SmallCnn().eval()
    found = read_weights(save(tmp_path / "x", copy.deepcopy(trained).to(dtype).state_dict(), how))
    assert found.tensors["conv.weight"].dtype == dtype
    load_weights(target, found.tensors, source="x")
    assert target.conv.weight.dtype == torch.float32
    torch.testing.assert_close(target(images()), trained(images()), rtol=0.1, atol=0.1)


def test_old_files_may_lack_the_counters_of_batch_norm(tmp_path: Path) -> None:
    trained, target = network(), SmallCnn().eval()
    state = {k: t for k, t in trained.state_dict().items() if "num_batches" not in k}
    load_weights(target, read_weights(save(tmp_path / "x", state)).tensors, source="x")
    torch.testing.assert_close(target(images()), trained(images()))
    assert target.norm.num_batches_tracked == 0


def test_numbers_too_large_for_the_network_are_not_finite() -> None:
    target = nn.Linear(2, 2)
    before = target.weight.clone()
    with pytest.raises(CheckpointError, match="not finite: weight"):
        load_weights(
            target,
            {"weight": torch.full((2, 2), 1e300, dtype=torch.float64), "bias": torch.ones(2)},
            source="x",
        )
    assert torch.equal(target.weight, before)


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("how", ["zip", "legacy"])
@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(24.0).view(2, 3, 4).permute(2, 0, 1),
        torch.arange(24.0).view(1, 2, 3, 4).to(memory_format=torch.channels_last),
        torch.arange(24, dtype=torch.int16)[4:9],
        torch.tensor([True, False, True])[1:],
        torch.tensor(3.5, dtype=torch.float64),
        torch.zeros(0, 3),
        nn.Parameter(torch.ones(2).bfloat16()),
    ],
    ids=range(7),
)
def test_tensors_of_any_layout_come_back(tmp_path: Path, how: str, tensor: Tensor) -> None:
    content = {"a": torch.ones(3), "b": tensor, "c": tensor}
    found = read_weights(save(tmp_path / "x", content, how)).tensors
    assert_same(found, {name: value.detach() for name, value in content.items()})


def test_another_layout_is_gathered_within_the_limits(tmp_path: Path) -> None:
    """Only such tensors need numpy, in the process that reads them."""
    tensor = torch.arange(6.0).view(2, 3).T
    assert_same(read_weights(save(tmp_path / "x", {"a": tensor})).tensors, {"a": tensor})


@pytest.mark.usefixtures("in_this_process")
def test_tensors_with_attributes_are_tensors(tmp_path: Path) -> None:
    tensor, parameter = torch.ones(2), nn.Parameter(torch.ones(3))
    tensor.__dict__["numel"] = parameter.__dict__["shape_of"] = 3
    found = read_weights(save(tmp_path / "x", {"a": tensor, "b": parameter}))
    assert_same(found.tensors, {"a": torch.ones(2), "b": torch.ones(3)})


@pytest.mark.usefixtures("in_this_process")
def test_numbers_of_numpy_may_stand_beside_the_weights(tmp_path: Path) -> None:
    content = {"model": {"w": torch.ones(2)}, "best": np.float64(0.9), "epoch": np.int64(3)}
    assert_same(read_weights(save(tmp_path / "x", content)).tensors, {"w": torch.ones(2)})


@pytest.mark.usefixtures("in_this_process")
def test_a_file_of_a_big_endian_machine_is_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x", "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02}" + named("a") + ONE + b"s.")
        archive.writestr("x/data/0", struct.pack(">f", 1.5))
        archive.writestr("x/byteorder", "big")
    assert_same(read_weights(tmp_path / "x").tensors, {"a": torch.tensor([1.5])})


# Nothing is run


class Evil:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"open({str(self.marker)!r}, 'w').close()",)


@pytest.mark.parametrize("how", ["zip", "legacy"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda evil: evil,
        lambda evil: {"state_dict": {"fc.weight": torch.ones(2), "fc.bias": evil}},
        lambda evil: {"fc.weight": torch.ones(2), "optimizer": [evil]},
    ],
)
def test_a_malicious_pickle_does_not_run(tmp_path: Path, how: str, wrap: Callable[[Evil], Any]) -> None:
    marker = tmp_path / "it ran"
    path = save(tmp_path / "evil.pt", wrap(Evil(marker)), how)
    torch.load(path, weights_only=False)
    assert marker.exists(), "the payload works where it is let run"
    marker.unlink()
    with pytest.raises(CheckpointError, match=rf"evil\.pt .*exec.*a program that would run.*{REMEDY}"):
        read_weights(path)
    assert not marker.exists()


def test_a_malicious_plain_pickle_does_not_run(tmp_path: Path) -> None:
    marker, path = tmp_path / "it ran", tmp_path / "evil.pkl"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps(Evil(marker), protocol=protocol))
        with pytest.raises(CheckpointError):
            read_weights(path)
    assert not marker.exists()


@pytest.mark.parametrize("how", ["zip", "legacy"])
def test_a_pickled_model_is_refused_with_its_class(tmp_path: Path, how: str) -> None:
    told = rf"pickled model .*\(tests\.tutorial_networks\.SmallCnn\).*not opened.*{REMEDY}, and upload that"
    with pytest.raises(CheckpointError, match=told):
        read_weights(save(tmp_path / "model.pt", network(), how))


# Files that claim more than they hold


@pytest.mark.parametrize("how", ["zip", "legacy"])
def test_a_tensor_that_claims_terabytes_is_refused(tmp_path: Path, how: str) -> None:
    claims = {"fc.weight": torch.zeros(1).expand(10**6, 10**6), "fc.bias": torch.zeros(10)}
    path = save(tmp_path / "x.pt", claims, how)
    assert path.stat().st_size < 10_000
    with pytest.raises(CheckpointError, match=r"fc\.weight claims \(1000000, 1000000\), more than"):
        read_weights(path)


def test_a_tensor_larger_than_its_file_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pt", {"fc.weight": torch.zeros(1000).expand(2, 1000)})
    assert path.stat().st_size < 8000
    with pytest.raises(CheckpointError, match=r"fc\.weight claims \(2, 1000\), more than"):
        read_weights(path)


def test_many_views_of_one_storage_are_refused_but_tied_weights_are_not(tmp_path: Path) -> None:
    weight = torch.randn(100, 100)
    tied = read_weights(save(tmp_path / "tied.pt", {"encoder": weight, "decoder": weight}))
    assert_same(tied.tensors, {"encoder": weight, "decoder": weight})
    with pytest.raises(CheckpointError, match=r"claims .*more than the file"):
        read_weights(save(tmp_path / "many.pt", {str(i): weight for i in range(50)}))


def test_a_zip_bomb_is_refused(tmp_path: Path) -> None:
    path, bomb = save(tmp_path / "x.pt", {"w": torch.zeros(10**6)}), tmp_path / "bomb.pt"
    with zipfile.ZipFile(path) as plain, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as packed:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    assert bomb.stat().st_size < path.stat().st_size / 100
    with pytest.raises(CheckpointError, match=r"bomb\.pt is compressed .*unpack it"):
        read_weights(bomb)


def test_an_archive_that_claims_more_than_its_size_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pt", {"w": torch.zeros(10)})
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")  # of the directory: sizes at 20 and 24
    content[entry + 20 : entry + 28] = struct.pack("<II", 10**9, 10**9)
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"claims 10000\d+ bytes of content in a file of"):
        read_weights(path)


class Calls:
    """A pickle of a call, which unpickling would make."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


HUGE = torch.zeros(1).expand(10**9)
"""A thousand million numbers in a file of a few hundred bytes."""


@pytest.mark.parametrize("how", ["zip", "legacy"])
@pytest.mark.parametrize(
    "call",
    [
        Calls(set, HUGE),
        Calls(Counter, HUGE),
        Calls(torch._utils._rebuild_device_tensor_from_cpu_tensor, HUGE, torch.float32, "cpu", False),
        Calls(torch._utils._rebuild_parameter, HUGE, False, OrderedDict()),
        Calls(torch.Size, HUGE),
    ],
)
def test_what_stands_beside_the_weights_is_not_made(tmp_path: Path, how: str, call: Calls) -> None:
    path = save(tmp_path / "x.pt", {"state_dict": {"w": torch.ones(2)}, "scheduler": {"at": call}}, how)
    assert path.stat().st_size < 4000
    assert_same(read_weights(path).tensors, {"w": torch.ones(2)})
    with pytest.raises(CheckpointError, match=r"claims|of another kind of device|holds no weights"):
        read_weights(save(tmp_path / "y.pt", {"w": call}, how))


@pytest.mark.parametrize("how", ["zip", "legacy"])
def test_byte_arrays_are_refused_before_they_are_made(tmp_path: Path, how: str) -> None:
    with pytest.raises(CheckpointError, match=r"holds other Python objects \(\w+\.bytearray\)"):
        read_weights(save(tmp_path / "x.pt", {"w": Calls(bytearray, 10**13)}, how))


def zip_of(path: Path, content: bytes) -> Path:
    """A file as torch.save writes it, around any pickle, with two storages of four bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", content)
        archive.writestr("x/data/0", bytes(4))
        archive.writestr("x/data/1", bytes(4))
    return path


TUPLES = b")q\x00" + b"h\x00\x86q\x00" * 60
"""A tuple of two tuples of two tuples of …: 2^60 of them, if all are looked at."""

ONE = (
    b"ctorch._utils\n_rebuild_tensor_v2\n((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000"
    b"X\x03\x00\x00\x00cpuK\x01tQK\x00K\x01\x85K\x01\x85\x89}tRq\x01"
)
"""A tensor of one number, as the first storage of such a zip holds it."""


def named(name: str) -> bytes:
    return b"X" + struct.pack("<I", len(name)) + name.encode()


def test_a_pickle_by_hand_is_read(tmp_path: Path) -> None:
    content = b"\x80\x02}" + named("a") + ONE + b"s" + named("b") + b"h\x01s."
    assert_same(read_weights(zip_of(tmp_path / "x", content)).tensors, dict.fromkeys("ab", torch.zeros(1)))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"\x80\x02}" + TUPLES + b"K\x01s.", "holds no weights"),
        (b"\x80\x02}" + TUPLES + b"0" + ONE + b"s.", "holds POP, an instruction"),
        (b"\x80\x02}r\xff\xff\xff\xff.", "holds an empty dict"),
        (b"\x80\x02}" + named("a") + b"\x8b\xff\xff\xff\x7f.", "damaged|LONG4"),
        (b"\x80\x02}\x8a\xff" + b"\xff" * 254 + b"\x7fK\x01s.", "holds no weights"),
        (b"\x80\x02" + b"(" * 100_000 + b".", "damaged at STOP"),
        (b"\x80\x02" + b"}q\x00" + b"h\x00\x85" * 50_000 + b".", "holds a tuple"),
        (b"\x80\x02" + b"N" * (MAX_PICKLE_OPCODES + 1) + b".", "more than 500,000 instructions"),
        (b"\x80\x02}", "is damaged"),
        (b"\x80\x02h\x05.", "damaged at BINGET"),
        (b"\x80\x02}" + named("a" * 501) + ONE + b"s.", "a name that no layer has .*501 characters"),
        (b"\x80\x02}" + named("__metadata__") + ONE + b"s.", "a name that no layer has"),
        (b"\x80\x02}" + named("a") + ONE.replace(b"K\x01tQ", b"K\x02tQ") + b"s.", "lacks the content of"),
        (b"\x80\x02}" + named("a") + ONE.replace(b"K\x00K\x01\x85", b"K\x01K\x01\x85") + b"s.", "beyond"),
        (b"\x80\x02}" + named("a") + ONE.replace(b"tQK\x00", b"tQG" + bytes(8)) + b"s.", "a shape that no"),
        (
            b"\x80\x02}" + named("a") + ONE + b"s"
            + b"".join(named(str(n)) + b"h\x01s" for n in range(MAX_TENSORS)) + b".",
            "10,001 tensors, more than the 10,000",
        ),
    ],
    ids=range(16),
)  # fmt: skip
def test_hostile_pickles_are_refused(tmp_path: Path, content: bytes, told: str) -> None:
    path = zip_of(tmp_path / "x.pt", content)
    with pytest.raises(CheckpointError, match=rf"x\.pt.*({told})"):
        rewrite(path, tmp_path / "y")


@pytest.mark.parametrize(("limit", "value"), [("CONVERSION_SECONDS", 0), ("CONVERSION_MEMORY", 2**20)])
def test_a_file_that_reaches_a_limit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    """The process that reads it is ended, or finds no memory."""
    path = save(tmp_path / "x.pt", {"w": torch.zeros(2**20)})  # 4 MB, which no heap has at hand
    monkeypatch.setattr(conversion, limit, value)
    told = rf"x\.pt takes more than {0 if value == 0 else 30} s or .* GB to read"
    with pytest.raises(CheckpointError, match=rf"{told}.*{REMEDY}"):
        read_weights(path)


@pytest.mark.parametrize(
    ("tensor", "told"),
    [
        (torch.eye(3).to_sparse(), "w is sparse"),
        (torch.empty(3, device="meta"), "w is empty"),
        (torch.complex(torch.ones(3), torch.arange(3.0)).conj().imag, "w is stored with its sign turned"),
        (torch.ones(3, dtype=torch.complex64), "w has type torch.complex64; convert"),
        (torch.ones(3).to(torch.float8_e4m3fn), "w has type torch.float8_e4m3fn; convert"),
    ],
)
def test_tensors_that_are_no_plain_numbers_are_refused(tmp_path: Path, tensor: Tensor, told: str) -> None:
    with pytest.raises(CheckpointError, match=told):
        read_weights(save(tmp_path / "x.pt", {"w": tensor}))


def test_a_sign_that_is_turned_is_not_dropped_in_the_older_format(tmp_path: Path) -> None:
    turned = torch.complex(torch.ones(3), torch.arange(3.0)).conj().imag
    with pytest.raises(CheckpointError, match="w is stored with its sign turned"):
        read_weights(save(tmp_path / "x.pt", {"w": turned}, "legacy"))
    plain = read_weights(save(tmp_path / "y.pt", {"w": turned.resolve_neg()}, "legacy"))
    assert plain.tensors["w"].tolist() == [0.0, -1.0, -2.0]


# Damage


@pytest.mark.parametrize("member", ["data.pkl", "data/0"])
@pytest.mark.parametrize("offset", [2**64 - 1, 2**63, 2**63 - 1])
def test_a_member_beyond_the_file_is_damage(tmp_path: Path, member: str, offset: int) -> None:
    whole = save(tmp_path / "x.pt", {"w": torch.ones(3)})
    path = tmp_path / "beyond.pt"
    path.write_bytes(moved_member(whole.read_bytes(), member, offset))
    with pytest.raises(CheckpointError, match=r"beyond\.pt is a zip archive .* begins beyond the end"):
        read_weights(path)


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("how", ["zip", "legacy", "safetensors"])
def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path, how: str) -> None:
    whole = save(tmp_path / "whole", network().state_dict(), how).read_bytes()
    path = tmp_path / "half.pt"
    lengths = {
        *range(0, len(whole), max(len(whole) // 60, 1)),
        *range(40),
        *range(len(whole) - 8, len(whole)),
    }
    for length in sorted(lengths):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"half\.pt"):
            read_weights(path)


@pytest.mark.usefixtures("in_this_process")
def test_a_flipped_bit_in_a_zip_is_found(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pt", {"w": torch.ones(10_000)})
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(
        CheckpointError, match=r"damaged \(Bad CRC-32 for file 'x/data/0'\); copy or download"
    ):
        read_weights(path)


@pytest.mark.usefixtures("in_this_process")
def test_a_legacy_file_may_end_as_a_zip_does(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pt", {"w": torch.ones(2)}, "legacy")
    path.write_bytes(path.read_bytes() + b"PK\x05\x06" + b"\xff" * 18)
    assert_same(read_weights(path).tensors, {"w": torch.ones(2)})


def test_the_directory_of_a_zip_is_not_read_at_any_length(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    entries, length = 2**16 - 1, MAX_ZIP_DIRECTORY + 1
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, entries, entries, length, 0, 0)
    path.write_bytes(b"PK" + bytes(length) + end)
    with pytest.raises(CheckpointError, match=r"its directory takes more than 4,194,304 bytes"):
        sniff_format(path)


@pytest.mark.parametrize("how", ["script", "exported"])
def test_a_program_cut_off_anywhere_is_refused(tmp_path: Path, how: str) -> None:
    whole = save_program(tmp_path / "whole", network(), how).read_bytes()
    path = tmp_path / "half.pt"
    for length in [0, 1, 4, 30, *range(100, len(whole), len(whole) // 20), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"half\.pt"):
            load_program(path)


@pytest.mark.parametrize("how", ["script", "exported"])
def test_a_damaged_program_is_refused(tmp_path: Path, how: str) -> None:
    path = save_program(tmp_path / "x.pt", network(), how)
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.compress_size)
    content = bytearray(path.read_bytes())
    content[largest.header_offset + 200 + largest.compress_size // 2] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"cannot be opened .*checksum"):
        load_program(path)


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("how", ["zip", "legacy", "safetensors"])
@each_file
@given(data=st.data())
def test_damaged_bytes_give_weights_or_a_refusal(tmp_path: Path, how: str, data: st.DataObject) -> None:
    path = tmp_path / "x"
    content = bytearray(save(path, nn.Linear(3, 2).state_dict(), how).read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=6)):
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(CheckpointError):
        found = read_weights(path)
        assert sum(tensor.nbytes for tensor in found.tensors.values()) <= 4 * len(content)


def pickled(content: object) -> bytes:
    """The pickle in a file of torch.save."""
    written = io.BytesIO()
    torch.save(content, written)
    with zipfile.ZipFile(written) as archive:
        return archive.read("archive/data.pkl")


WHOLE = pickled({"epoch": 3, "state_dict": {"a": torch.zeros(1), "b": nn.Parameter(torch.ones(1))}})


@each_file
@given(
    changes=st.dictionaries(st.integers(0, len(WHOLE) - 1), st.integers(0, 255), min_size=1, max_size=4),
    added=st.binary(max_size=20),
    place=st.integers(0, len(WHOLE)),
)
def test_damaged_pickles_give_weights_or_a_refusal(
    tmp_path: Path, changes: dict[int, int], added: bytes, place: int
) -> None:
    """In an archive whose checksums are right."""
    content = bytearray(WHOLE)
    for at, value in changes.items():
        content[at] = value
    path, target = zip_of(tmp_path / "x", bytes(content[:place] + added + content[place:])), tmp_path / "y"
    target.unlink(missing_ok=True)
    with contextlib.suppress(CheckpointError):
        rewrite(path, target)
        load_tensors(target)


@each_file
@given(
    start=st.sampled_from(
        [b"", b"PK\x03\x04", b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", b"\x10" + bytes(7)]
    ),
    rest=st.binary(max_size=300),
)
def test_random_bytes_are_refused(tmp_path: Path, start: bytes, rest: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(start + rest)
    for read in (read_weights, load_program):
        with pytest.raises(CheckpointError):
            read(path)


# Programs


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`network()` as a program of every kind."""
    folder = tmp_path_factory.mktemp("programs")
    return {how: save_program(folder / how, network(), how) for how in ("script", "trace", "exported")}


kinds = pytest.mark.parametrize("how", ["script", "trace", "exported"])


@kinds
def test_a_program_answers_as_the_network_does(programs: dict[str, Path], how: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        program = load_program(programs[how])
        answers = {n: program(images(n)) for n in (1, 2, 5)}
    assert not program.training
    for n, logits in answers.items():
        torch.testing.assert_close(logits, network()(images(n)))


@kinds
def test_a_program_has_the_weights_under_their_names(programs: dict[str, Path], how: str) -> None:
    program, other = load_program(programs[how]), network(seed=1)
    assert_same(dict(program.state_dict()), dict(network().state_dict()))
    assert {name for name, _ in program.named_parameters()} == dict(other.named_parameters()).keys()
    assert all(parameter.requires_grad for parameter in program.parameters())
    load_weights(program, other.state_dict(), source="x")
    torch.testing.assert_close(program(images()), other(images()))
    with pytest.raises(CheckpointError, match=r"does not fit Program: missing conv\.bias"):
        load_weights(program, {"token": torch.ones(1)}, source="x")


@kinds
def test_weights_of_a_program_may_lack_counters(programs: dict[str, Path], how: str) -> None:
    program, other = load_program(programs[how]), network(seed=1)
    state = {name: t for name, t in other.state_dict().items() if "num_batches" not in name}
    load_weights(program, state, source="x")
    torch.testing.assert_close(program(images()), other(images()))


@pytest.mark.parametrize("how", ["script", "trace", "exported"])
def test_a_program_may_view_images_of_any_memory_layout(tmp_path: Path, how: str) -> None:
    class Viewing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.fc = nn.Linear(3 * 64 + 4 * 36, 10)

        def forward(self, x: Tensor) -> Tensor:
            n = x.shape[0]
            return self.fc(torch.cat([x.view(n, -1), self.conv(x).view(n, -1)], 1))

    model, x = Viewing().eval(), torch.rand(4, 3, 8, 8)
    program = load_program(save_program(tmp_path / "x", model, how, x))
    classifier = Classifier(program, Preprocessing((0.0,) * 3, (1.0,) * 3)).eval()
    torch.testing.assert_close(classifier(x.to(memory_format=torch.channels_last)), model(x))


@kinds
def test_a_program_is_a_classifiers_network(programs: dict[str, Path], how: str) -> None:
    preprocessing = Preprocessing((0.3,), (0.5,))
    classifier = Classifier(load_program(programs[how]), preprocessing).eval()
    torch.testing.assert_close(predict_logits(classifier, images()), network()((images() - 0.3) / 0.5))
    expected = {f"network.{name}" for name in network().state_dict()}
    assert classifier.state_dict().keys() == expected
    classifier.load_state_dict({f"network.{k}": t for k, t in network(seed=1).state_dict().items()})
    torch.testing.assert_close(classifier(images()), network(seed=1)((images() - 0.3) / 0.5))


@kinds
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda program: pickle.loads(pickle.dumps(program))])
def test_copies_of_a_program_are_its_equal_and_independent(
    programs: dict[str, Path], how: str, duplicate: Callable[[Program], Program]
) -> None:
    program = load_program(programs[how])
    program.load_state_dict(network(seed=1).state_dict())
    dict(program.named_parameters())["conv.bias"].requires_grad_(False)
    twin = duplicate(program.train())
    assert twin.training
    assert [n for n, p in twin.named_parameters() if not p.requires_grad] == ["conv.bias"]
    assert_same(dict(twin.state_dict()), dict(program.state_dict()))
    with torch.no_grad():
        dict(twin.named_parameters())["fc.bias"].add_(1)
    torch.testing.assert_close(twin.eval()(images()), network(seed=1)(images()) + 2)  # the scale is 2
    torch.testing.assert_close(program.eval()(images()), network(seed=1)(images()))


@kinds
def test_a_program_is_fine_tuned(programs: dict[str, Path], how: str) -> None:
    program, labels = load_program(programs[how]), torch.tensor([3, 1, 4, 1])
    assert (program(images()).argmax(1) != labels).any()
    optimizer = torch.optim.Adam(program.parameters(), lr=0.01)
    for _ in range(100):
        program.train()
        loss = F.cross_entropy(program(images()), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (program.eval()(images()).argmax(1) == labels).all()
    twin = copy.deepcopy(program)
    torch.testing.assert_close(twin(images()), program(images()))


@kinds
def test_a_programs_type_is_changed(programs: dict[str, Path], how: str) -> None:
    program = load_program(programs[how]).to(torch.float64)
    assert {t.dtype for t in program.state_dict().values() if t.is_floating_point()} == {torch.float64}
    torch.testing.assert_close(program(images().double()), network().double()(images().double()))


def test_a_scripted_program_has_both_modes(programs: dict[str, Path]) -> None:
    program = load_program(programs["script"]).train()
    assert not torch.equal(program(images()), program(images()))
    program.eval()
    assert torch.equal(program(images()), program(images()))


class Pair(SmallCnn):
    """Returns features beside the logits."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        logits = super().forward(x)
        return logits, x


@pytest.mark.parametrize("how", ["trace", "exported"])
def test_a_program_that_returns_more_than_logits_says_so(tmp_path: Path, how: str) -> None:
    program = load_program(save_program(tmp_path / "pair.pt", Pair().eval(), how))
    with pytest.raises(CheckpointError, match=r"returns a tuple, not one tensor of logits .*wrap the model"):
        program(images())


def test_a_program_exported_for_one_batch_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "fixed.pt2"
    torch.export.save(torch.export.export(network(), (images(3),)), path)
    told = r"exported for one batch size .*does not take 1 images of \(1, 8, 8\).*Dim\(\"batch\"\)"
    with pytest.raises(CheckpointError, match=told) as caught:
        load_program(path)
    remedy = str(caught.value).partition("batch size: ")[2]
    made = eval(remedy, {"torch": torch, "model": network(), "x": images(2)})
    torch.export.save(made, path)
    torch.testing.assert_close(load_program(path)(images(7)), network()(images(7)))


def test_a_program_exported_for_images_of_any_size_is_opened(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)).eval()
    free = {0: torch.export.Dim("n"), 2: torch.export.Dim("h", min=4), 3: torch.export.Dim("w", min=4)}
    torch.export.save(
        torch.export.export(model, (torch.rand(2, 1, 9, 11),), dynamic_shapes=(free,)), tmp_path / "x"
    )
    program, x = load_program(tmp_path / "x"), torch.rand(3, 1, 28, 20)
    torch.testing.assert_close(program(x), model(x))


def test_a_program_exported_in_training_mode_is_refused(tmp_path: Path) -> None:
    path = save_program(tmp_path / "live.pt2", network().train(), "exported")
    with pytest.raises(CheckpointError, match=r"exported in training mode.*model\.eval\(\)"):
        load_program(path)


def test_a_program_of_two_inputs_is_refused(tmp_path: Path) -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    torch.export.save(torch.export.export(Two(), (images(), images())), tmp_path / "two.pt2")
    with pytest.raises(CheckpointError, match="takes 2 inputs, not one batch of images"):
        load_program(tmp_path / "two.pt2")


def test_a_frozen_program_is_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.freeze(torch.jit.script(network())).save(tmp_path / "frozen.pt")
    with pytest.raises(CheckpointError, match=r"no weights that could be trained .*jit\.freeze"):
        load_program(tmp_path / "frozen.pt")


def test_weights_are_no_program(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"holds weights .*read_weights"):
        load_program(save(tmp_path / "x.pt", network().state_dict()))


def test_weights_are_a_record() -> None:
    found = Weights({}, "", None, "safetensors")
    with pytest.raises(AttributeError):
        found.prefix = "x"


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantised = torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)
        path = save(tmp_path / "x.pt", {"w": quantised})
    with pytest.raises(CheckpointError, match="w is quantised"):
        read_weights(path)
