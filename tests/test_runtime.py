"""Device, seeds, threads, memory and precision."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from defuse_core.base.config import VaeConfig
from defuse_core.base.runtime import (
    AdaptiveBatch,
    autocast,
    derive_seed,
    describe_device,
    keep_memory,
    numpy_rng,
    resolve_device,
    set_threads,
    supports_bf16,
    torch_rng,
)
from defuse_core.method.classifier import Classifier, Preprocessing, predict, predict_logits
from defuse_core.method.vae import BetaVAE, decode_images, encode_means

CPU = torch.device("cpu")
MEMINFO = Path("/proc/meminfo")


def test_auto_takes_the_best_device_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device("auto") == torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device("auto") == torch.device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert resolve_device() == resolve_device("cpu") == CPU


def test_cuda_means_the_first_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device("cuda") == torch.device("cuda", 0)
    assert resolve_device("cuda:1") == torch.device("cuda", 1)


@pytest.mark.parametrize("device", ["tpu", "", "gpu", "meta", "cuda:x", "cuda:-1"])
def test_an_unknown_device_is_told_what_there_is(device: str) -> None:
    with pytest.raises(ValueError, match=rf"device must be auto, cpu, .*got '{device}'"):
        resolve_device(device)


@pytest.mark.parametrize(("device", "count"), [("cuda", 0), ("cuda:0", 0), ("cuda:2", 2), ("cuda:99", 1)])
def test_an_absent_cuda_device_is_told_the_remedy(
    device: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    with pytest.raises(ValueError, match=rf"'{device}' .*has {count} CUDA.*use --device cpu"):
        resolve_device(device)


def test_absent_mps_is_told_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ValueError, match="'mps' is not on this machine; use --device cpu"):
        resolve_device("mps")


@pytest.mark.skipif(not MEMINFO.exists(), reason="compares with Linux's meminfo")
def test_describe_device_gives_the_memory_of_the_machine() -> None:
    kilobytes = int(MEMINFO.read_text().split()[1])
    info = describe_device(CPU)
    assert info.device == "cpu"
    assert info.memory == pytest.approx(kilobytes * 1024, rel=0.01)


def test_seeds_are_the_same_in_every_process() -> None:
    """The constants pin the streams: results of older runs stay reproducible."""
    expected = [5254295370254170289, 7727713206022040113]
    assert [derive_seed(0), derive_seed(0, "noise", 7)] == expected
    code = "from defuse_core.base.runtime import derive_seed as d; print(d(0), d(0, 'noise', 7))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": "1"},
        capture_output=True,
        check=True,
    )
    assert [int(word) for word in done.stdout.split()] == expected


@given(st.integers(0, 2**64), st.lists(st.integers() | st.text(max_size=5), max_size=3))
def test_a_seed_fits_every_generator(seed: int, stream: list[int | str]) -> None:
    derived = derive_seed(seed, *stream)
    assert 0 <= derived < 2**63
    assert torch_rng(seed, *stream).initial_seed() == derived


def test_streams_differ() -> None:
    streams = [(0,), (1,), (0, "a"), (0, "b"), (0, "a", 1), (0, "a1"), (0, "1"), (0, 1), (1, 0)]
    assert len({derive_seed(*stream) for stream in streams}) == len(streams)
    draws = {tuple(torch.rand(3, generator=torch_rng(0, "noise", i)).tolist()) for i in range(50)}
    assert len(draws) == 50


def test_generators_of_a_stream_repeat_its_draws() -> None:
    first, second = (torch.rand(5, generator=torch_rng(3, "x")) for _ in range(2))
    assert torch.equal(first, second)
    assert np.array_equal(numpy_rng(3, "x").random(5), numpy_rng(3, "x").random(5))
    assert not np.array_equal(numpy_rng(3, "x").random(5), numpy_rng(3, "y").random(5))


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="seed must be 0 or more, got -1"):
        derive_seed(-1)


def squares(limit: int, sizes: list[int]) -> Callable[[int, int], torch.Tensor]:
    """A function that squares start … stop, and is out of memory beyond `limit` items."""

    def function(start: int, stop: int) -> torch.Tensor:
        sizes.append(stop - start)
        if stop - start > limit:
            raise torch.OutOfMemoryError(f"{stop - start} items")
        return torch.arange(start, stop).square()

    return function


@given(n=st.integers(0, 60), size=st.integers(1, 40), limit=st.integers(1, 40))
def test_batches_halve_when_memory_runs_out_and_go_on(n: int, size: int, limit: int) -> None:
    sizes: list[int] = []
    batch = AdaptiveBatch(size, device=CPU)
    result = batch.run(squares(limit, sizes), n)
    assert torch.equal(result, torch.arange(n).square())
    if n >= size > limit:
        assert size > batch.size <= limit
        assert sizes[0] == size


def test_halving_is_remembered_by_the_next_run() -> None:
    sizes: list[int] = []
    batch = AdaptiveBatch(16, device=CPU)
    batch.run(squares(5, sizes), 32)
    assert sizes == [16, 8] + [4] * 8
    sizes.clear()
    batch.run(squares(5, sizes), 8)
    assert sizes == [4, 4]


def test_a_single_item_that_does_not_fit_is_an_error() -> None:
    sizes: list[int] = []
    with pytest.raises(torch.OutOfMemoryError, match="1 items"):
        AdaptiveBatch(8, device=CPU).run(squares(0, sizes), 20)
    assert sizes == [8, 4, 2, 1]


def test_other_errors_are_not_swallowed() -> None:
    def function(start: int, stop: int) -> torch.Tensor:
        raise RuntimeError(f"{start} {stop} is wrong")

    with pytest.raises(RuntimeError, match="0 4 is wrong"):
        AdaptiveBatch(4, device=CPU).run(function, 9)


def test_batches_grow_while_there_is_room() -> None:
    sizes: list[int] = []
    batch = AdaptiveBatch(2, device=CPU, room=lambda: (10 * sizes[-1], 170))
    result = batch.run(squares(1000, sizes), 100)
    assert sizes == [2, 4, 8] + [16] * 5 + [6]  # 16 items take 160 of 170
    assert torch.equal(result, torch.arange(100).square())


def test_a_cpu_batch_does_not_grow() -> None:
    sizes: list[int] = []
    AdaptiveBatch(3, device=CPU).run(squares(1000, sizes), 12)
    assert sizes == [3] * 4


@given(size=st.integers(1, 64), limit=st.integers(1, 64))
def test_batches_never_grow_to_a_size_that_failed(size: int, limit: int) -> None:
    sizes: list[int] = []
    batch = AdaptiveBatch(size, device=CPU, room=lambda: (0, 1))
    result = batch.run(squares(limit, sizes), 500)
    assert torch.equal(result, torch.arange(500).square())
    failed = [index for index, taken in enumerate(sizes) if taken > limit]
    if failed:
        after = sizes[failed[-1] + 1 :]
        assert failed == sorted(failed)
        assert max(after) < min(sizes[index] for index in failed)


@pytest.mark.parametrize("size", [0, -3])
def test_a_batch_has_at_least_one_item(size: int) -> None:
    with pytest.raises(ValueError, match=f"batch size must be 1 or more, got {size}"):
        AdaptiveBatch(size, device=CPU)


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"avx512_f": True}, False)],
)
def test_a_cpu_has_bf16_where_its_instructions_have(
    capabilities: dict[str, bool], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert supports_bf16(CPU) is expected
    assert isinstance(autocast(CPU, "auto"), torch.autocast if expected else nullcontext)


def test_devices_without_autocast_have_no_bf16() -> None:
    assert supports_bf16(torch.device("mps")) is False


def test_autocast_multiplies_in_the_precision_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    x = torch.ones(4, 4)
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        with autocast(CPU, precision):
            assert (x @ x).dtype == dtype


def test_bf16_on_a_device_without_it_is_told_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    with pytest.raises(ValueError, match="'bf16' is not supported by cpu; use 'auto' or 'fp32'"):
        autocast(CPU, "bf16")


def test_keep_memory_tells_whether_the_c_library_took_it() -> None:
    code = "from defuse_core.base.runtime import keep_memory; print(keep_memory())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    glibc = hasattr(os, "confstr") and "CS_GNU_LIBC_VERSION" in os.confstr_names
    assert done.stdout.strip() == str(bool(glibc))


def test_keep_memory_leaves_other_systems_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert keep_memory() is False


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("threads")
def test_set_threads_takes_the_number_or_all_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (set_threads(1), torch.get_num_threads()) == (1, 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 3}, raising=False)
    monkeypatch.delenv("DEFUSE_THREADS", raising=False)
    assert (set_threads(), torch.get_num_threads()) == (2, 2)
    monkeypatch.setenv("DEFUSE_THREADS", "1")
    assert (set_threads(), torch.get_num_threads()) == (1, 1)
    assert (set_threads(2), torch.get_num_threads()) == (2, 2)
    monkeypatch.setenv("DEFUSE_THREADS", "many")
    assert set_threads() == 2


@pytest.mark.usefixtures("threads")
def test_set_threads_takes_the_number_where_there_is_no_affinity(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """macOS has no os.sched_getaffinity."""
    monkeypatch.delenv("DEFUSE_THREADS", raising=False)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    assert (set_threads(1), torch.get_num_threads()) == (1, 1)
    assert set_threads() == 2


def test_the_cpu_allocators_own_error_halves_the_batch_and_others_pass() -> None:
    sizes: list[int] = []

    def picky(start: int, stop: int) -> torch.Tensor:
        sizes.append(stop - start)
        if stop - start > 3:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")
        return torch.arange(start, stop)

    batch = AdaptiveBatch(8, device=torch.device("cpu"))
    assert batch.run(picky, 10).tolist() == list(range(10))
    assert sizes[:3] == [8, 4, 2]

    def broken(_start: int, _stop: int) -> torch.Tensor:
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="shapes do not fit"):
        batch.run(broken, 10)


def test_out_of_memory_halves_the_batches_of_every_evaluation() -> None:
    """Models of either kind answer the same where more than three images do not fit."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (11, 1, 8, 8), generator=generator, dtype=torch.uint8)
    torch.manual_seed(0)
    classifier = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), Preprocessing())
    vae = BetaVAE(
        VaeConfig(image_size=8, padding=0, hidden_channels=4, depth=1, hidden_units=8, latent_dim=3)
    )
    codes = encode_means(vae, images)
    expected = [
        predict(classifier, images),
        predict_logits(classifier, images),
        codes,
        decode_images(vae, codes),
    ]
    sizes: list[int] = []

    def limit(_module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        sizes.append(len(inputs[0]))
        if len(inputs[0]) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")

    for module in (classifier.network, vae.encoder, vae.decoder):
        module.register_forward_pre_hook(limit)
    limited = [predict(classifier, images), predict_logits(classifier, images), encode_means(vae, images)]
    limited.append(decode_images(vae, codes))
    assert max(sizes) == 11
    for now, was in zip(limited, expected, strict=True):
        torch.testing.assert_close(now, was, rtol=1e-5, atol=1e-6)


def test_a_batch_that_may_not_grow_keeps_its_size() -> None:
    batch = AdaptiveBatch(2, device=torch.device("cuda", 0), grows=False)
    assert batch.run(lambda start, stop: torch.arange(start, stop), 9).tolist() == list(range(9))
    assert batch.size == 2
