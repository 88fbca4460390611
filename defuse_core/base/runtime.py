"""What a run needs of the machine: the device, seeds, threads, memory, precision and progress.

The device is chosen here and nowhere else; other modules follow the device of the tensors they get.
Every random stream is derived from (seed, names of the stream), so that adding a stream, a batch or
a device never shifts another one.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
import sys
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from defuse_core.base.config import Precision
from defuse_core.base.errors import DivergenceError
from defuse_core.base.machine import available_cores

Result = TypeVar("Result")

Callback = Callable[[int, int, Mapping[str, float]], bool | None]
"""Gets (step, of, metrics) after every step of a long loop; returns True to stop it.

A loop that is stopped returns what it has so far."""

Loop = Generator[tuple[int, int, Mapping[str, float]], bool | None, Result]
"""A long loop as a generator: yields what a `Callback` gets, takes True to stop, returns its result."""

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # <malloc.h>
_TRIM_THRESHOLD = 2**31 - 1  # the largest that mallopt takes


def follow(loop: Loop[Result], callback: Callback | None = None) -> Result:
    """Run a loop to its end, or until the callback stops it, and return its result.

    Parameters
    ----------
    loop : Loop
    callback : Callback, optional
    """
    stop: bool | None = None
    while True:
        try:
            step, of, metrics = loop.send(stop)
        except StopIteration as done:
            return done.value  # type: ignore[no-any-return]
        stop = None if callback is None else callback(step, of, metrics)


def check_finite(losses: Sequence[float], module: nn.Module, *, when: str) -> None:
    """Check after an epoch that a training has not diverged.

    A loss is measured before the step that it leads to, so the weights are looked at, too.

    Parameters
    ----------
    losses : sequence of float
        Mean losses of the epoch.
    module : Module
        What is trained.
    when : str
        Which training it is, for the message: "epoch 3".

    Raises
    ------
    DivergenceError
        If a loss or a weight is NaN or infinite.
    """
    what = "" if all(map(math.isfinite, losses)) else f"loss {', '.join(f'{loss:g}' for loss in losses)}"
    tensors = module.state_dict().items()
    bad = what or next((n for n, t in tensors if t.is_floating_point() and not t.isfinite().all()), "")
    if bad:
        raise DivergenceError(
            f"training diverged at {when}: {what or f'{bad} is not finite'}; lower learning_rate, and check "
            "that the images and their preprocessing are right"
        )


@dataclass(frozen=True)
class DeviceInfo:
    """A device as a run records it; `memory` in bytes."""

    device: str
    name: str
    memory: int


def resolve_device(device: str = "auto") -> torch.device:
    """Choose the device of a run.

    Parameters
    ----------
    device : {"auto", "cpu", "mps", "cuda", "cuda:<n>"}
        "auto" takes CUDA, then Apple's MPS, then the CPU.

    Raises
    ------
    ValueError
        If the device is unknown or not on this machine.

    Examples
    --------
    >>> resolve_device("cpu")
    device(type='cpu')
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", 0)
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        chosen = torch.device("meta")
    if chosen.type not in ("cpu", "cuda", "mps"):
        raise ValueError(f"device must be auto, cpu, mps, cuda or cuda:<n>, got {device!r}")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ValueError(
            f"device {device!r} is not on this machine, which has {count} CUDA devices; "
            "use --device cpu, or install a CUDA build of torch and its driver"
        )
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError("device 'mps' is not on this machine; use --device cpu")
    return torch.device("cuda", chosen.index or 0) if chosen.type == "cuda" else chosen


def describe_device(device: torch.device) -> DeviceInfo:
    """Name a device and its memory in bytes, for the record of a run."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return DeviceInfo(str(device), properties.name, properties.total_memory)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if os.name == "posix" else 0
    name = "Apple GPU" if device.type == "mps" else f"CPU, {torch.get_num_threads()} threads"
    return DeviceInfo(str(device), name, memory)


def list_devices() -> list[DeviceInfo]:
    """Describe every device of this machine, the one that "auto" takes first."""
    names = [f"cuda:{index}" for index in range(torch.cuda.device_count())]
    names += ["mps"] if torch.backends.mps.is_available() else []
    return [describe_device(resolve_device(name)) for name in [*names, "cpu"]]


def derive_seed(seed: int, *stream: int | str) -> int:
    """Derive the seed of a named stream: the same on every machine, in every process.

    Examples
    --------
    >>> derive_seed(0, "noise", 7) == derive_seed(0, "noise", 7)
    True
    >>> derive_seed(0, "noise", 7) == derive_seed(0, "noise", 8)
    False
    """
    if seed < 0:
        raise ValueError(f"seed must be 0 or more, got {seed}")
    digest = hashlib.sha256(repr((int(seed), *stream)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def numpy_rng(seed: int, *stream: int | str) -> np.random.Generator:
    """Return NumPy's generator for a named stream."""
    return np.random.default_rng(derive_seed(seed, *stream))


def torch_rng(seed: int, *stream: int | str) -> torch.Generator:
    """Return a CPU torch generator for a named stream: draws on it agree on every device."""
    return torch.Generator().manual_seed(derive_seed(seed, *stream))


def set_threads(n_threads: int | None = None) -> int:
    """Set torch's threads, by default to `machine.available_cores`; return their number."""
    count = n_threads or available_cores()
    torch.set_num_threads(count)
    return count


def keep_memory() -> bool:
    """Tell glibc to keep freed memory instead of giving it back to the kernel after every batch.

    Large activations otherwise cost a page fault per 4 kB and batch, which about halves the speed
    of a convolution on a CPU. Equivalent to setting MALLOC_MMAP_THRESHOLD_ and
    MALLOC_TRIM_THRESHOLD_ before the process starts. Return whether the C library accepted it; other
    C libraries do not need it.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    accepted = mallopt(_M_MMAP_MAX, 0)
    return bool(accepted and mallopt(_M_TRIM_THRESHOLD, _TRIM_THRESHOLD))


def supports_bf16(device: torch.device) -> bool:
    """Tell whether the device multiplies bfloat16 in hardware, where autocast pays."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        query = getattr(torch.cpu, "get_capabilities", None)  # missing in the oldest torch that we support
        capabilities = query() if query else {}
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    return False


def autocast(device: torch.device, precision: Precision = "auto") -> torch.autocast | nullcontext[None]:
    """Return the context that runs convolutions in bfloat16 where that pays, else a null context.

    Parameters
    ----------
    device : torch.device
    precision : {"auto", "fp32", "bf16"}
        "auto" takes bfloat16 where the device multiplies it in hardware.

    Raises
    ------
    ValueError
        If `precision` is "bf16" and the device does not multiply it in hardware.
    """
    if precision == "bf16" and not supports_bf16(device):
        raise ValueError(f"precision 'bf16' is not supported by {device}; use 'auto' or 'fp32'")
    if precision == "fp32" or not supports_bf16(device):
        return nullcontext()
    return torch.autocast(device.type, dtype=torch.bfloat16)


class AdaptiveBatch:
    """A batch size that halves when memory runs out and, on a GPU, grows while there is room.

    Parameters
    ----------
    size : int
        Items a batch to start with.
    device : torch.device
        Batches grow on CUDA only: a CPU is fastest while a batch fits its caches.
    grows : bool
        Whether they may. The last bits of a network's answer can depend on the size of the batch.
    room : callable, optional
        Returns (bytes in use at the peak of the last batch, bytes that may be used at most); the
        default asks CUDA, and allows 80 % of what is free or already reserved by this process.
    """

    def __init__(
        self,
        size: int,
        *,
        device: torch.device,
        grows: bool = True,
        room: Callable[[], tuple[int, int]] | None = None,
    ) -> None:
        if size < 1:
            raise ValueError(f"batch size must be 1 or more, got {size}")
        self.size = size
        self._ceiling: int | None = None
        cuda_room = (lambda: _cuda_room(device)) if device.type == "cuda" and grows else None
        self._room = room or cuda_room

    def run(self, function: Callable[[int, int], torch.Tensor], n: int) -> torch.Tensor:
        """Concatenate function(start, stop) over 0 … n.

        Parameters
        ----------
        function : callable
            Returns the tensor of items start … stop; must bear a second call on the same items.
        n : int
            Number of items; 0 calls function(0, 0) once.

        Raises
        ------
        torch.OutOfMemoryError
            If not even a batch of one item fits.
        """
        parts: list[torch.Tensor] = []
        start = 0
        while start < n or not parts:
            stop = min(start + self.size, n)
            try:
                parts.append(function(start, stop))
                failed = False
            except RuntimeError as error:
                if self.size == 1 or not _out_of_memory(error):
                    raise
                failed = True
            if failed:  # outside the except block, which still holds the batch's tensors
                self._ceiling = self.size
                self.size //= 2
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                continue
            if stop - start == self.size:
                self._grow()
            start = stop
        return torch.cat(parts)

    def _grow(self) -> None:
        if self._room is None or (self._ceiling is not None and 2 * self.size >= self._ceiling):
            return
        used, limit = self._room()
        if 2 * used <= limit:
            self.size *= 2


def _out_of_memory(error: RuntimeError) -> bool:
    """CUDA raises a type of its own; with the CPU's allocator and MPS only the message tells."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in text or "out of memory" in text


def _cuda_room(device: torch.device) -> tuple[int, int]:
    free, _ = torch.cuda.mem_get_info(device)
    used = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return used, int(0.8 * (free + torch.cuda.memory_reserved(device)))


def make_optimizer(
    module: nn.Module, kind: str, learning_rate: float
) -> torch.optim.Adadelta | torch.optim.Adam | torch.optim.SGD:
    """Return an optimiser by name: adadelta, adam, or sgd with Nesterov momentum 0.9.

    Parameters
    ----------
    module : Module
        Whose parameters are optimised.
    kind : {"adadelta", "adam", "sgd"}
    learning_rate : float
        Above 0.
    """
    if kind == "adadelta":
        return torch.optim.Adadelta(module.parameters(), lr=learning_rate)
    if kind == "adam":
        return torch.optim.Adam(module.parameters(), lr=learning_rate)
    if kind == "sgd":
        return torch.optim.SGD(
            module.parameters(), lr=learning_rate, momentum=0.9, nesterov=True, weight_decay=5e-4
        )
    raise ValueError(f"optimizer must be adadelta, adam or sgd, got {kind!r}")
