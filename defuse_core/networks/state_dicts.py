"""Find the weights of a network in what `pickles.read_pickle` read, and check what they claim. No torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from defuse_core.base.errors import CheckpointError
from defuse_core.base.limits import MAX_DIMENSIONS, MAX_SHARING, MAX_TENSOR_NAME, MAX_TENSORS
from defuse_core.networks.pickles import StoredTensor, StrangeTensor
from defuse_core.networks.sniffing import SAVE_WEIGHTS

ITEM_SIZES = {
    "F16": 2, "BF16": 2, "F32": 4, "F64": 8, "U8": 1, "I8": 1, "I16": 2, "I32": 4, "I64": 8, "BOOL": 1,
}  # fmt: skip
"""Bytes of an element, by the name that safetensors has for its type: the types that weights may have."""

_NESTS = ("state_dict", "model", "model_state_dict", "net", "network", "weights", "params", "ema", "module")
"""Where training programs put the weights, most usual first."""
_MAX_DEPTH = 3  # a dict may hold itself


def find_weights(content: object, path: Path, depth: int = 0) -> tuple[dict[str, Any], str | None]:
    """Look for the weights in the content of a file; return them and where they were.

    Parameters
    ----------
    content : object
    path : Path
        Of the file, for error messages.
    depth : int
        How many dicts the content is in.

    Returns
    -------
    weights : dict of str to StoredTensor or StrangeTensor
    nested_under : str or None

    Raises
    ------
    CheckpointError
        If there are none, or those of several networks.
    """
    if not isinstance(content, Mapping):
        what = "Tensor" if _is_tensor(content) else type(content).__name__
        raise CheckpointError(
            f"{path} holds a {what}, not a network's weights by name; save them: {SAVE_WEIGHTS}"
        )
    if not content:
        raise CheckpointError(f"{path} holds an empty dict, no weights; save them: {SAVE_WEIGHTS}")
    if all(map(_is_tensor, content.values())):
        return _tensors_of(content), None
    usual = [name for name in _NESTS if _tensors_of(content.get(name))]
    others = [name for name, value in content.items() if _is_state_dict(value)]
    if usual or len(others) == 1:
        name = (usual or others)[0]
        return _tensors_of(content[name]), str(name)
    for name in _NESTS:
        if isinstance(content.get(name), Mapping) and content[name] and depth < _MAX_DEPTH:
            weights, where = find_weights(content[name], path, depth + 1)
            return weights, f"{name}.{where}" if where else name
    if _tensors_of(content) and not others:
        return _tensors_of(content), None
    names = ", ".join(str(name)[:60] for name in list(content)[:8])
    some = ", ".join(str(name)[:60] for name in others[:8])
    sets = f"several sets of weights ({some})" if others else "no weights"
    raise CheckpointError(f"{path} holds {sets}; its entries are {names}. Save one network's: {SAVE_WEIGHTS}")


def _is_tensor(value: object) -> bool:
    return isinstance(value, (StoredTensor, StrangeTensor))


def _tensors_of(value: Any) -> dict[str, Any]:
    """The named tensors of a mapping; empty for any other value."""
    if not isinstance(value, Mapping):
        return {}
    return {name: t for name, t in value.items() if isinstance(name, str) and _is_tensor(t)}


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and len(_tensors_of(value)) == len(value)


def check_names(names: Mapping[str, Any], path: Path) -> None:
    """Check how many tensors a file has, and what they are called.

    Parameters
    ----------
    names : mapping of str to object
    path : Path
        Of the file, for error messages.

    Raises
    ------
    CheckpointError
        If there are more than `MAX_TENSORS`, or a name is too long or no text.
    """
    if len(names) > MAX_TENSORS:
        raise CheckpointError(
            f"{path} holds {len(names):,} tensors, more than the {MAX_TENSORS:,} that are read; bring one "
            f"network's weights alone: {SAVE_WEIGHTS}"
        )
    for name in names:
        if len(name) > MAX_TENSOR_NAME or not name.isprintable() or name == "__metadata__":
            raise CheckpointError(
                f"{path} has a tensor with a name that no layer has ({name[:40]!a}, {len(name)} characters); "
                f"save the weights under the names of the network: {SAVE_WEIGHTS}"
            )


def check_tensors(tensors: Mapping[str, Any], path: Path) -> None:
    """Check that tensors are plain numbers, and claim no more than their file holds.

    Parameters
    ----------
    tensors : mapping of str to StoredTensor or StrangeTensor
    path : Path
        Of their file.

    Raises
    ------
    CheckpointError
        If not; the message names the tensor.
    """
    size, total = path.stat().st_size, 0
    for name, tensor in tensors.items():
        if isinstance(tensor, StrangeTensor):
            raise CheckpointError(
                f"{path}: {name} is {tensor.kind}; bring the weights as plain tensors, before quantising or "
                "pruning"
            )
        if tensor.dtype not in ITEM_SIZES:
            raise strange_dtype(tensor.dtype, name, path)
        if not _is_possible(tensor):
            raise CheckpointError(
                f"{path}: {name} has a shape that no tensor has; copy or download it again, or save it "
                f"again: {SAVE_WEIGHTS}"
            )
        n_bytes = math.prod(tensor.shape) * ITEM_SIZES[tensor.dtype]
        total += n_bytes
        if n_bytes > size or total > MAX_SHARING * size:
            raise CheckpointError(
                f"{path}: {name} claims {tensor.shape}, more than the file's {size} bytes hold; save it "
                f"again: {SAVE_WEIGHTS}"
            )
        if span(tensor) > tensor.storage.n_bytes:
            raise CheckpointError(
                f"{path}: {name} reaches beyond its storage; copy or download it again, or save it again: "
                f"{SAVE_WEIGHTS}"
            )


def strange_dtype(dtype: str, name: str, path: Path) -> CheckpointError:
    """Return the error of a tensor whose elements are of no type that weights have.

    Parameters
    ----------
    dtype : str
        As torch names it.
    name : str
        Of the tensor.
    path : Path
        Of its file.
    """
    return CheckpointError(
        f"{path}: {name} has type {dtype}; convert the network with model.float(), then {SAVE_WEIGHTS}"
    )


def _is_possible(tensor: StoredTensor) -> bool:
    """Whether offset, shape and strides are counts."""
    sizes = (tensor.shape, tensor.strides)
    if not all(isinstance(part, tuple) and len(part) <= MAX_DIMENSIONS for part in sizes):
        return False
    counts = [tensor.offset, *tensor.shape, *tensor.strides]
    return len(tensor.shape) == len(tensor.strides) and all(type(n) is int and n >= 0 for n in counts)


def span(tensor: StoredTensor) -> int:
    """Return how many bytes of its storage a tensor reaches over, from the storage's start.

    Parameters
    ----------
    tensor : StoredTensor
        Whose offset, shape and strides are counts.
    """
    if 0 in tensor.shape:
        return 0
    last = sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True))
    return int(tensor.offset + last + 1) * ITEM_SIZES[tensor.dtype]


def is_contiguous(tensor: StoredTensor) -> bool:
    """Return whether the elements of a tensor lie one after the other, the last dimension fastest.

    Parameters
    ----------
    tensor : StoredTensor
        Whose offset, shape and strides are counts.
    """
    expected = 1
    for n, stride in reversed(list(zip(tensor.shape, tensor.strides, strict=True))):
        if n != 1 and stride != expected:
            return False
        expected *= n
    return True
