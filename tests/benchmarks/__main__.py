"""Measure, in turn in one process, what the core does against what it is compared with.

Every ratio is this project's speed divided by the other's, so that more is better, except memory,
where it is the larger use divided by the smaller. Rounds of the contestants alternate, and the
median of the rounds counts. Nothing else should run on the machine.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from defuse_core.base.config import PAPER_LAMBDAS, PRESETS, CorrectionConfig
from defuse_core.base.records import FailureInstances
from defuse_core.base.runtime import autocast, describe_device, keep_memory, numpy_rng, set_threads
from defuse_core.data.sources import load_digits
from defuse_core.data.splits import Split
from defuse_core.extensions.shipped import load_shipped_classifier, load_shipped_vae
from defuse_core.method import identification
from defuse_core.method.classifier import Classifier
from defuse_core.method.correction import sweep_lambdas
from defuse_core.method.identification import identify, sample_beta_noise
from defuse_core.method.vae import BetaVAE
from defuse_core.networks.architectures import ByteDropout
from tests.benchmarks.dashboard import bench_dashboard
from tests.benchmarks.jobs import bench_jobs

OUT = Path("bench.json")
GOALS = {
    "identification / image-by-image loop": 2.0,
    "identification / bare forward pass": 0.9,
    "identification / bare forward pass in float32": 0.9,
    "λ sweep / plain DataLoader loops": 2.0,
    "memory, 40,000 images / 4,000 images": 1.1,
    "submit to first event / a bare import of torch": 2.0,
    "submit to first event with a spare runner / a bare import of torch": 0.3,
    "the demo without a spare runner / with one": 1.0,
    "work with 100 events a second / without": 1.05,
    "starting again / resume at the half": 1.5,
    "bare decoding and classifying / a strip of τ": 0.8,
    "a frame of 60 Hz / a step of τ painted": 1.0,
    "a frame of 60 Hz / a frame of the map of 20,000 points": 0.9,
}
AT_MOST = ("memory", "submit", "work with")
IDENTIFICATION = PRESETS["demo"].identification
CPU = torch.device("cpu")


def rates(contestants: Mapping[str, Callable[[], int]], *, rounds: int) -> dict[str, float]:
    """Median items a second of each contestant; the rounds take turns after one to warm up."""
    for run in contestants.values():
        run()
    measured: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            started = time.perf_counter()
            items = run()
            measured[name].append(items / (time.perf_counter() - started))
    for name, values in measured.items():
        print(f"  {name}: {median(values):,.0f} a second ({min(values):,.0f} … {max(values):,.0f})")
    return {name: median(values) for name, values in measured.items()}


def plain(module: nn.Module) -> nn.Module:
    """The same weights as a tutorial would hold them: torch's memory format and dropout."""
    copied = copy.deepcopy(module).to(memory_format=torch.contiguous_format)
    for parent in copied.modules():
        for name, child in parent.named_children():
            if isinstance(child, ByteDropout):
                setattr(parent, name, nn.Dropout(child.p))
    return copied


@torch.inference_mode()
def image_by_image(classifier: Classifier, vae: BetaVAE, split: Split) -> int:
    """Algorithm 1 in a loop: one image after another, all its perturbations at once."""
    q = IDENTIFICATION.n_perturbations
    for index in range(len(split)):
        mean, _ = vae.encode(split.images[index : index + 1])
        noise = sample_beta_noise((q, vae.latent_dim), a=50, b=50, rng=numpy_rng(0, "loop", index))
        latents = mean + torch.from_numpy(noise)
        predictions = classifier(vae.decode(latents)).argmax(1)
        wrong = torch.nonzero(predictions != split.labels[index]).flatten()
        norms = latents[wrong].sub(mean).norm(dim=1)
        _ = latents[wrong[norms.argsort()[: IDENTIFICATION.max_mistakes_per_image]]]
    return len(split) * q


@torch.inference_mode()
def bare_forward(classifier: Classifier, vae: BetaVAE, n: int, *, precision: str) -> int:
    """Decode and classify random codes, and nothing else."""
    latents = torch.randn(n, vae.latent_dim)
    with autocast(CPU, precision):
        for part in latents.split(IDENTIFICATION.batch_size):
            classifier(vae.decode(part)).argmax(1)
    return n


def bench_identification(classifier: Classifier, vae: BetaVAE, split: Split) -> dict[str, float]:
    """Identification against a loop and against the forward pass it cannot do without."""
    n = len(split) * IDENTIFICATION.n_perturbations
    plain_classifier, plain_vae = plain(classifier), plain(vae)

    def whole() -> int:
        identify(classifier, vae, split, config=IDENTIFICATION, seed=0)
        return n

    speed = rates(
        {
            "identification": whole,
            "image-by-image loop": lambda: image_by_image(plain_classifier, plain_vae, split),
            "bare forward pass": lambda: bare_forward(classifier, vae, n, precision="auto"),
            "bare forward pass in float32": lambda: bare_forward(classifier, vae, n, precision="fp32"),
        },
        rounds=3,
    )
    ours = speed.pop("identification")
    return {f"identification / {name}": ours / value for name, value in speed.items()}


def dataloader_loop(
    classifier: Classifier, data: Split, failures: FailureInstances, lam: float, *, config: CorrectionConfig
) -> int:
    """Fine-tune for one λ as a PyTorch tutorial would: two DataLoaders, two forward passes, float32.

    Like `tune` it measures the training accuracy after every epoch and keeps the best weights.
    """
    tuned = plain(classifier)
    optimizer = torch.optim.Adam(tuned.parameters(), lr=config.learning_rate)
    dataset = TensorDataset(data.images.float() / 255, data.labels)
    extra = TensorDataset(failures.images.float() / 255, failures.labels)
    loader = DataLoader(dataset, batch_size=config.batch_size, shuffle=True)
    n_extra = -(-len(extra) // len(loader))
    extra_loader = DataLoader(extra, batch_size=n_extra, shuffle=True)
    best, kept = -1.0, tuned.state_dict()
    for _ in range(config.epochs):
        tuned.train()
        for (x, y), (failing, wanted) in zip(loader, extra_loader, strict=False):
            optimizer.zero_grad()
            loss = F.cross_entropy(tuned(x), y) + lam * F.cross_entropy(tuned(failing), wanted)
            loss.backward()
            optimizer.step()
        tuned.eval()
        with torch.no_grad():
            right = sum(int((tuned(x).argmax(1) == y).sum()) for x, y in DataLoader(dataset, batch_size=512))
        if right > best:
            best, kept = right, copy.deepcopy(tuned.state_dict())
    tuned.load_state_dict(kept)
    with torch.no_grad():
        for part in (dataset, extra):
            for x, _ in DataLoader(part, batch_size=512):
                tuned(x)
    return 1


def bench_sweep(classifier: Classifier, split: Split) -> dict[str, float]:
    """λ points a second, of the sweep and of plain loops; 17 of each, on the demo's sizes."""
    config = PRESETS["demo"].correction
    n = 10 * config.instances_per_region
    chosen = torch.from_numpy(numpy_rng(0, "bench").choice(len(split), n, replace=False))
    failures = FailureInstances(split.images[chosen].flip(3), split.labels[chosen], torch.zeros(n).long())

    def sweep() -> int:
        return len(list(sweep_lambdas(classifier, split, failures, config=config, seed=0)))

    def loops() -> int:
        return sum(dataloader_loop(classifier, split, failures, lam, config=config) for lam in PAPER_LAMBDAS)

    measured: dict[str, float] = {}
    for name, run in (("λ sweep", sweep), ("plain DataLoader loops", loops)):
        started = time.perf_counter()
        run()
        measured[name] = time.perf_counter() - started
        print(f"  {name}: {measured[name]:.1f} s for 17 λ")
    return {"λ sweep / plain DataLoader loops": measured["plain DataLoader loops"] / measured["λ sweep"]}


def peak_memory(n_images: int) -> None:
    """Print the peak resident memory of identification over n images; runs in its own process."""
    import resource

    set_threads()
    keep_memory()
    digits = load_digits().train
    split = Split(
        digits.images[:1000].repeat(n_images // 1000, 1, 1, 1), digits.labels[:1000].repeat(n_images // 1000)
    )
    config = IDENTIFICATION.model_copy(update={"n_perturbations": 4, "max_mistakes_per_image": 1})
    shards = identification.identify_shards(
        load_shipped_classifier(), load_shipped_vae(), split, config=config, seed=0
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for shard, _ in shards:
        if shard == 5:  # buffers have their size by now
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    data = split.images.nbytes / 2**20
    print(before / 2**10 - data, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10 - data)


def bench_memory() -> dict[str, float]:
    """Peak memory above the data itself at 40,000 images against 4,000."""
    peaks = {}
    for n_images in (4_000, 40_000):
        command = [sys.executable, "-m", "tests.benchmarks", "--peak-memory", str(n_images)]
        told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
        peaks[n_images] = float(told[1])
        print(f"  {n_images:,} images: {peaks[n_images]:,.0f} MB beside the images")
    return {"memory, 40,000 images / 4,000 images": peaks[40_000] / peaks[4_000]}


def main() -> None:
    """Run all, print a table, write bench.json."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--peak-memory", type=int, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.peak_memory:
        peak_memory(asked.peak_memory)
        return
    set_threads()
    keep_memory()
    print(describe_device(CPU).name, torch.backends.cpu.get_cpu_capability(), "torch", torch.__version__)
    classifier, vae, train = load_shipped_classifier(), load_shipped_vae(), load_digits().train
    sample = train[torch.arange(0, len(train), 10)]  # 400 digits of all classes
    found = {
        **bench_identification(classifier, vae, sample),
        **bench_sweep(classifier, train),
        **bench_memory(),
        **bench_jobs(),
        **bench_dashboard(),
    }
    print(f"\n{'ratio':>7}  {'goal':>6}")
    for name, ratio in found.items():
        sign = "≤" if name.startswith(AT_MOST) else "≥"
        print(f"{ratio:7.2f}  {sign} {GOALS[name]:4}  {name}")
    rows = {name: {"ratio": ratio, "goal": GOALS[name]} for name, ratio in found.items()}
    OUT.write_text(json.dumps(rows, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
