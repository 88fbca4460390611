"""Read weights from an upload, safetensors or torch.save's zip and legacy files, without running it.

Programs (TorchScript, torch.export) are opened by `load_program`, with the user's consent only.
"""

from __future__ import annotations

import mmap
import re
import warnings
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from defuse_core.base.checkpoints import load_tensors
from defuse_core.base.errors import CheckpointError
from defuse_core.networks.programs import Program, load_program
from defuse_core.networks.sniffing import SAVE_WEIGHTS, CheckpointFormat, sniff_format

__all__ = ["CheckpointFormat", "Program", "Weights", "load_program", "read_weights", "sniff_format"]

_NESTS = ("state_dict", "model", "model_state_dict", "net", "network", "weights", "params", "ema", "module")
"""Where training programs put the weights, most usual first."""
_DTYPES = {
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool,
}  # fmt: skip
_MAX_SHARING = 4
"""Tied weights share memory; a file that claims more than so many times its size is a trick."""
_MAX_PREFIXES = 8
_MAX_DEPTH = 3  # a dict may hold itself


@dataclass(frozen=True)
class Weights:
    """The weights of a checkpoint.

    Attributes
    ----------
    tensors : dict of str to Tensor
        On the CPU; without the prefix that all names share.
    prefix : str
        What was taken off every name, such as "module." or "model."; "" where they share none.
    nested_under : str, optional
        The entry of the file that holds the weights, such as "state_dict".
    format : CheckpointFormat
    """

    tensors: dict[str, Tensor]
    prefix: str
    nested_under: str | None
    format: CheckpointFormat

    def own_prefixes(self) -> list[str]:
        """Return what a network's own names may keep of the prefix, the shortest first: "", …, all of it."""
        parts = self.prefix.split(".")[:-1]
        return ["".join(f"{part}." for part in parts[n:]) for n in range(len(parts), -1, -1)]

    def own_prefix(self, names: Collection[str]) -> str | None:
        """Return the first of `own_prefixes` under which all tensors have one of these names, or None.

        Examples
        --------
        >>> weights = Weights({"weight": torch.zeros(1)}, "module.conv.", None, "safetensors")
        >>> weights.own_prefix({"conv.weight"}), weights.own_prefix({"fc.weight"})
        ('conv.', None)
        """
        return next((p for p in self.own_prefixes() if {p + key for key in self.tensors} <= {*names}), None)

    def under_names(self, names: Collection[str]) -> dict[str, Tensor]:
        """Return the tensors with as much of the prefix as these names have."""
        prefix = self.own_prefix(names) or ""
        return {prefix + key: tensor for key, tensor in self.tensors.items()}


def read_weights(path: str | Path) -> Weights:
    """Read the weights of a safetensors or torch.save file; nothing in it is run.

    Raises
    ------
    CheckpointError
        If the file is not whole, holds no weights, claims more memory than it has, is a program, or is a
        pickled model (a program, too).
    """
    path = Path(path)
    kind = sniff_format(path)
    if kind in ("torchscript", "exported"):
        raise CheckpointError(
            f"{path} is a program ({kind}), not weights; open it with load_program if you trust who made it, "
            f"or bring the weights alone: {SAVE_WEIGHTS}"
        )
    if kind == "safetensors":
        weights, where = load_tensors(path)[0], None
    else:
        weights, where = _find_weights(_load_pickle(path), path)
    if not weights:
        raise CheckpointError(f"{path} holds no weights; bring a trained network: {SAVE_WEIGHTS}")
    _check_tensors(weights, path)
    if len(weights) > 1:
        weights.pop("n_averaged", None)  # the counter that torch.optim.swa_utils.AveragedModel adds
    names, prefix = _strip_prefix(list(weights))
    tensors = {name: tensor.detach().clone() for name, tensor in zip(names, weights.values(), strict=True)}
    return Weights(tensors, prefix, where, kind)


def _load_pickle(path: Path) -> object:
    """Read a file of torch.save with torch's unpickler that builds tensors and plain containers only."""
    _check_archive(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(str(path), weights_only=True, map_location="cpu", mmap=zipfile.is_zipfile(path))
    except Exception as error:  # an unknown file may raise anything
        raise CheckpointError(_refusal(path, error)) from error


def _refusal(path: Path, error: Exception) -> str:
    blocked = re.search(r"GLOBAL ([\w.]+)", str(error))
    if blocked:
        return (
            f"{path} is a pickled model or holds other Python objects ({blocked[1]}): a program that would "
            f"run when opened, so it was not opened. In the program that trained it: {SAVE_WEIGHTS}, and "
            "upload that"
        )
    reason = (str(error) or type(error).__name__).splitlines()[0][:200]
    detail = re.search(r"WeightsUnpickler error: ([^\n]{1,200})", str(error))
    return (
        f"{path} cannot be read as weights ({detail[1] if detail else reason}); if it is whole, save it "
        f"again: {SAVE_WEIGHTS}; else copy or download it again"
    )


def _check_archive(path: Path) -> None:
    """Refuse files that would take far more memory than they have bytes."""
    size = path.stat().st_size
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        # Torch's safe unpickler builds and fills them at any size that a file claims.
        if content.find(b"bytearray") >= 0:
            raise CheckpointError(
                f"{path} holds byte arrays, which no weights are; save it again: {SAVE_WEIGHTS}"
            )
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise CheckpointError(
            f"{path} is compressed ({packed[0]}), which torch.save never does; unpack it and save it again: "
            f"{SAVE_WEIGHTS}"
        )
    claimed = sum(entry.file_size for entry in entries)
    if claimed > size:
        raise CheckpointError(
            f"{path} claims {claimed} bytes of content in a file of {size}; copy or download it again"
        )


def _find_weights(content: object, path: Path, depth: int = 0) -> tuple[dict[str, Tensor], str | None]:
    """Look for the weights in what torch.save wrote; return them and where they were."""
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(content).__name__}, not a network's weights by name; save them: "
            f"{SAVE_WEIGHTS}"
        )
    if not content:
        raise CheckpointError(f"{path} holds an empty dict, no weights; save them: {SAVE_WEIGHTS}")
    if all(isinstance(value, Tensor) for value in content.values()):
        return _tensors_of(content), None
    usual = [name for name in _NESTS if _tensors_of(content.get(name))]
    others = [name for name, value in content.items() if _is_state_dict(value)]
    if usual or len(others) == 1:
        name = (usual or others)[0]
        return _tensors_of(content[name]), str(name)
    for name in _NESTS:
        if isinstance(content.get(name), Mapping) and content[name] and depth < _MAX_DEPTH:
            weights, where = _find_weights(content[name], path, depth + 1)
            return weights, f"{name}.{where}" if where else name
    if _tensors_of(content) and not others:
        return _tensors_of(content), None
    names = ", ".join(str(name)[:60] for name in list(content)[:8])
    sets = f"several sets of weights ({', '.join(map(str, others[:8]))})" if others else "no weights"
    raise CheckpointError(f"{path} holds {sets}; its entries are {names}. Save one network's: {SAVE_WEIGHTS}")


def _tensors_of(value: Any) -> dict[str, Tensor]:
    """The named tensors of a mapping; empty for any other value."""
    if not isinstance(value, Mapping):
        return {}
    return {name: t for name, t in value.items() if isinstance(name, str) and isinstance(t, Tensor)}


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and len(_tensors_of(value)) == len(value)


def _check_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse tensors that are not plain numbers, and views that claim more than the file holds."""
    size, total = path.stat().st_size, 0
    for name, tensor in tensors.items():
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta or tensor.is_nested:
            kind = "quantised" if tensor.is_quantized else "empty" if tensor.is_meta else "sparse or nested"
            raise CheckpointError(
                f"{path}: {name} is {kind}; bring the weights as plain tensors, before quantising or pruning"
            )
        if tensor.dtype not in _DTYPES:
            raise CheckpointError(
                f"{path}: {name} has type {tensor.dtype}; convert the network with model.float(), then "
                f"{SAVE_WEIGHTS}"
            )
        n_bytes = tensor.numel() * tensor.element_size()
        total += n_bytes
        if n_bytes > size or total > _MAX_SHARING * size:
            raise CheckpointError(
                f"{path}: {name} claims {tuple(tensor.shape)}, more than the file's {size} bytes hold; save "
                f"it again: {SAVE_WEIGHTS}"
            )


def _strip_prefix(names: list[str]) -> tuple[list[str], str]:
    """Take off the dotted components that all names begin with; the last of a name stays."""
    prefix = ""
    for _ in range(_MAX_PREFIXES):
        first = f"{names[0].partition('.')[0]}."
        if not all(name.startswith(first) and len(name) > len(first) for name in names):
            break
        names, prefix = [name.removeprefix(first) for name in names], prefix + first
    return names, prefix
