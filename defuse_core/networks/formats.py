"""Read weights from an upload, safetensors or torch.save's zip and legacy files, without running it.

Programs (TorchScript, torch.export) are opened by `load_program`, with the user's consent only.
"""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from defuse_core.base.checkpoints import load_tensors
from defuse_core.base.errors import CheckpointError
from defuse_core.networks.conversion import convert
from defuse_core.networks.programs import Program, load_program
from defuse_core.networks.sniffing import SAVE_WEIGHTS, CheckpointFormat, sniff_format
from defuse_core.networks.state_dicts import check_names, strange_dtype

__all__ = ["CheckpointFormat", "Program", "Weights", "load_program", "read_weights", "sniff_format"]

_DTYPES = {
    torch.float16, torch.bfloat16, torch.float32, torch.float64,
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool,
}  # fmt: skip
_MAX_PREFIXES = 8


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
    metadata: Mapping[str, object] = field(default_factory=dict)

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
    weights, where, metadata = _load(path, kind)
    if not weights:
        raise CheckpointError(f"{path} holds no weights; bring a trained network: {SAVE_WEIGHTS}")
    if len(weights) > 1:
        weights.pop("n_averaged", None)  # the counter that torch.optim.swa_utils.AveragedModel adds
    names, prefix = _strip_prefix(list(weights))
    tensors = {name: tensor.detach().clone() for name, tensor in zip(names, weights.values(), strict=True)}
    return Weights(tensors, prefix, where, kind, metadata)


def _load(path: Path, kind: CheckpointFormat) -> tuple[dict[str, Tensor], str | None, Mapping[str, object]]:
    """Load the tensors of a file of weights, the entry that they were nested under, and metadata."""
    if kind == "state_dict":
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "weights.safetensors"
            where = convert(path, target)
            return load_tensors(target)[0], where, {}
    tensors, metadata = load_tensors(path)
    check_names(tensors, path)
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            raise strange_dtype(str(tensor.dtype), name, path)
    return tensors, None, metadata


def _strip_prefix(names: list[str]) -> tuple[list[str], str]:
    """Take off the dotted components that all names begin with; the last of a name stays."""
    prefix = ""
    for _ in range(_MAX_PREFIXES):
        first = f"{names[0].partition('.')[0]}."
        if not all(name.startswith(first) and len(name) > len(first) for name in names):
            break
        names, prefix = [name.removeprefix(first) for name in names], prefix + first
    return names, prefix
