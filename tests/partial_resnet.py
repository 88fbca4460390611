"""Convert `resnet18_imagenet_partial.npz`, ImageNet's ResNet-18 with gaps, to torchvision's layout.

    python -m tests.partial_resnet DIR/resnet18_imagenet_partial.npz DIR/resnet18.safetensors \\
        --images DIR/svhn.npz

`defuse reproduce … --data DIR` begins with what this writes. The stored convolutions have their batch-norm
folded in. Here each gets a batch-norm back, which leaves its output as it is. The running statistics are
those of the training images, so that training mode starts from the same function as evaluation mode.
"""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import resnet18

from defuse_core.base.errors import CheckpointError
from defuse_core.data.sources import load_dataset
from defuse_core.data.splits import as_pixels
from defuse_core.method.classifier import Preprocessing

_STAGE = "layer4"
_N_IMAGES = 512


def read_partial_resnet18(path: Path, images: Tensor) -> dict[str, Tensor]:
    """Return the weights under torchvision's names; what the file lacks is left out.

    Parameters
    ----------
    path : Path
    images : (n, 3, height, width) uint8
        Training images; at most 512 of them, evenly spaced, give the statistics of batch-norm.

    Raises
    ------
    CheckpointError
        If the file is not such an archive.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            stored = {name: torch.from_numpy(archive[name]) for name in archive.files}
    except (OSError, ValueError, EOFError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise CheckpointError(
            f"{path} is not a readable .npz of weights ({error}); fetch it again"
        ) from error
    network = resnet18(weights=None)
    modules = dict(network.named_modules())
    filled: set[str] = set()
    norms: list[nn.Module] = []
    with torch.no_grad():
        for key, weight in stored.items():
            name, _, kind = key.rpartition(".")
            module = modules.get(name)
            if kind != "weight" or not isinstance(module, nn.Conv2d) or name.startswith(_STAGE):
                continue
            if module.weight.shape != weight.shape or f"{name}.bias" not in stored:
                raise CheckpointError(
                    f"{path} has no ResNet-18: {key} is {tuple(weight.shape)}; fetch it again"
                )
            module.weight.copy_(weight)
            norm = _norm_after(name)
            _as_identity(modules[norm], stored[f"{name}.bias"])
            norms.append(modules[norm])
            filled |= {name, norm}
    if "conv1" not in filled:
        raise CheckpointError(
            f"{path} has no conv1.weight; it holds {', '.join(list(stored)[:3])}; fetch it again"
        )
    sample = images[torch.linspace(0, len(images) - 1, min(_N_IMAGES, len(images))).long()]
    _fit_statistics(network, norms, sample)
    return {k: v for k, v in network.state_dict().items() if k.rpartition(".")[0] in filled}


def _norm_after(name: str) -> str:
    """The batch-norm that follows a convolution of torchvision's ResNet.

    Examples
    --------
    >>> _norm_after("layer1.0.conv2"), _norm_after("layer2.0.downsample.0")
    ('layer1.0.bn2', 'layer2.0.downsample.1')
    """
    return name.replace("conv", "bn") if "conv" in name else f"{name[:-1]}1"


def _as_identity(norm: nn.Module, shift: Tensor) -> None:
    """Let a batch-norm add the folded shift and do nothing else."""
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    norm.bias.copy_(shift)
    norm.weight.fill_(1)
    norm.running_mean.zero_()
    norm.running_var.fill_(1 - norm.eps)


@torch.no_grad()
def _fit_statistics(network: nn.Module, norms: list[nn.Module], images: Tensor) -> None:
    """Give batch-norms the statistics of images, and weights that leave the function as it was."""
    preprocessing = Preprocessing.of(images)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (preprocessing.mean, preprocessing.std))
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen[module] = inputs[0].mean((0, 2, 3)), inputs[0].var((0, 2, 3), unbiased=False)

    hooks = [norm.register_forward_pre_hook(look) for norm in norms]
    network.eval()
    network((as_pixels(images) - mean) / std)
    for hook in hooks:
        hook.remove()
    for norm, (centre, variance) in seen.items():
        assert isinstance(norm, nn.BatchNorm2d)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        spread = torch.sqrt(variance + norm.eps)
        norm.bias.add_(centre)  # (x - centre) / spread · spread + centre + shift = x + shift
        norm.weight.copy_(spread)
        norm.running_mean.copy_(centre)
        norm.running_var.copy_(variance)


def convert(
    source: Annotated[Path, typer.Argument(help="resnet18_imagenet_partial.npz")],
    target: Annotated[Path, typer.Argument(help="File to write, .safetensors")],
    images: Annotated[Path, typer.Option(help="Data set that the classifier is trained on, .npz")],
) -> None:
    """Write the weights as a file that a reproduction begins with."""
    weights = read_partial_resnet18(source, load_dataset(str(images)).train.images)
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, target)


if __name__ == "__main__":
    typer.run(convert)
