"""Convert a file of torch.save to safetensors in a process of its own, with limits on time and memory.

The file is first walked through here, so that what cannot be weights is refused at once. The process
then reads it, without torch, and writes a safetensors file, which is all that this process loads. Where a
limit stops it, the file is refused.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import struct
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

from defuse_core.base.errors import CheckpointError
from defuse_core.base.limits import CONVERSION_MEMORY, CONVERSION_SECONDS, CONVERSION_SPEED
from defuse_core.base.texts import quote
from defuse_core.networks.archives import TorchFile, check_pickles, open_torch_file
from defuse_core.networks.pickles import ForbiddenNameError, PickleError, StoredTensor
from defuse_core.networks.sniffing import SAVE_WEIGHTS
from defuse_core.networks.state_dicts import (
    ITEM_SIZES,
    check_names,
    check_tensors,
    find_weights,
    is_contiguous,
    span,
)

_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
_TRUE_OR_FALSE = bytes([0]) + bytes([1]) * 255
"""Maps any byte to one that a bool may have."""


def convert(path: Path, target: Path) -> str | None:
    """Write the weights of a file of torch.save as safetensors; return the entry that they were nested under.

    Parameters
    ----------
    path : Path
        Of format "state_dict".
    target : Path
        Does not exist yet.

    Raises
    ------
    CheckpointError
        If the file is not whole, holds no weights, claims more than it has, or takes too much time or
        memory.
    """
    try:
        check_pickles(path)
    except PickleError as error:
        raise CheckpointError(_refusal(path, error)) from error
    size = path.stat().st_size
    seconds, memory = CONVERSION_SECONDS + size // CONVERSION_SPEED, CONVERSION_MEMORY + 2 * size
    words = (str(path), str(target), str(seconds), str(memory))
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", __name__, *words],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={**os.environ, **_ONE_THREAD}, timeout=seconds, check=False,
        )  # fmt: skip
        answer = json.loads(done.stdout)
    except (subprocess.TimeoutExpired, json.JSONDecodeError):  # or a limit has ended it
        raise CheckpointError(
            f"{path} takes more than {seconds} s or {memory / 2**30:.1f} GB to read, which no weights of "
            f"{size:,} bytes do; if it is whole, save it again: {SAVE_WEIGHTS}"
        ) from None
    if "refused" in answer:
        raise CheckpointError(answer["refused"])
    return None if answer["nested_under"] is None else str(answer["nested_under"])


def _refusal(path: Path, error: PickleError) -> str:
    if isinstance(error, ForbiddenNameError):
        return (
            f"{path} is a pickled model or holds other Python objects ({error}): a program that would "
            f"run when opened, so it was not opened. In the program that trained it: {SAVE_WEIGHTS}, and "
            "upload that"
        )
    return (
        f"{path} cannot be read as weights ({error}); if it is whole, save it again: {SAVE_WEIGHTS}; else "
        "copy or download it again"
    )


def _write_safetensors(target: BinaryIO, tensors: Mapping[str, StoredTensor], file: TorchFile) -> None:
    """Write tensors with one storage in memory at a time, which the library's own writer cannot.

    Larger elements come first, so that all are aligned.
    """
    order = sorted(tensors, key=lambda name: (-ITEM_SIZES[tensors[name].dtype], tensors[name].storage.key))
    header, end = {}, 0
    for name in order:
        tensor = tensors[name]
        start, end = end, end + _n_bytes(tensor)
        header[name] = {"dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": (start, end)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    target.write(struct.pack("<Q", len(text)) + text)
    for _, names in groupby(order, key=lambda name: tensors[name].storage):
        group = [tensors[name] for name in names]
        content = file.read(group[0].storage)
        for tensor in group:
            target.write(_content(tensor, content, big_endian=file.big_endian))


def _n_bytes(tensor: StoredTensor) -> int:
    n = ITEM_SIZES[tensor.dtype]
    for size in tensor.shape:
        n *= size
    return n


def _content(tensor: StoredTensor, storage: bytes, *, big_endian: bool) -> bytes | memoryview:
    """The elements of a tensor one after the other, lowest byte first."""
    size = ITEM_SIZES[tensor.dtype]
    if is_contiguous(tensor) and (size == 1 or not big_endian):
        start = tensor.offset * size
        content: bytes | memoryview = memoryview(storage)[start : start + _n_bytes(tensor)]
    elif span(tensor) == 0:
        content = b""
    else:
        content = _gather(tensor, storage, size, ">" if big_endian else "<")
    return bytes(content).translate(_TRUE_OR_FALSE) if tensor.dtype == "BOOL" else content


def _gather(tensor: StoredTensor, storage: bytes, size: int, order: str) -> bytes:
    import numpy as np  # seldom needed, and half of this process's start

    strides = [size * stride for stride in tensor.strides]
    view = np.ndarray(tensor.shape, f"{order}u{size}", storage, size * tensor.offset, strides)
    return view.astype(f"<u{size}", order="C").tobytes()


def _limit(seconds: int, memory: int) -> None:
    """Limit what this process may take; the alarm ends it, also where its parent has been killed."""
    signal.alarm(seconds + 1)
    with suppress(ValueError, OSError):  # the platform has no such limit, or a lower one is set
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def rewrite(path: Path, target: Path) -> str | None:
    """Do what `convert` does, but in this process and without limits on its time and memory.

    Parameters
    ----------
    path, target : Path
        See `convert`.

    Raises
    ------
    CheckpointError
        If the file is not whole, holds no weights, or claims more than it has.
    """
    try:
        with open_torch_file(path) as file:
            weights, nested_under = find_weights(file.content, path)
            check_names(weights, path)
            check_tensors(weights, path)
            with target.open("xb") as written:
                _write_safetensors(written, weights, file)
    except PickleError as error:
        raise CheckpointError(_refusal(path, error)) from error
    return nested_under


def main(source: str, target: str, seconds: str, memory: str) -> None:
    """Convert a file within limits, and print as JSON where the weights were, or why they were refused."""
    path = Path(source)
    _limit(int(seconds), int(memory))
    try:
        answer = {"nested_under": rewrite(path, Path(target))}
    except CheckpointError as error:
        answer = {"refused": str(error)}
    except OSError as error:
        answer = {"refused": f"{path} cannot be converted ({error.strerror}); free some space and try again"}
    except MemoryError:
        raise  # the parent tells of the limit
    except Exception as error:  # whatever a damaged file raises: else the parent would blame time or memory
        told = quote(error) or type(error).__name__
        answer = {"refused": f"{path} is damaged ({told}); copy or download it again"}
    print(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
