"""Write Python that loads an exported checkpoint; it needs Defuse only for Defuse's own architectures."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from defuse_core.method.classifier import Preprocessing
from defuse_core.networks.architectures import ARCHITECTURES, SIZED, build_network, image_size_of
from defuse_core.networks.tutorials import LENETS, MLPS

_CLASSIFY = '''
def classify(images):
    """Class index of each image, of (n, channels, height, width) RGB or grey in [0, 1]."""
    with torch.inference_mode():
'''


def loading_code(
    file_name: str,
    architecture: str,
    tensors: Mapping[str, Tensor],
    *,
    n_classes: int,
    preprocessing: Preprocessing,
    key_prefix: str = "",
) -> str:
    """Write a program that builds the network, loads its weights and classifies images.

    Parameters
    ----------
    file_name : str
        Of the safetensors file.
    architecture : str
        As the classifier's run names it; for a program "torchscript" or "exported".
    tensors : mapping of str to Tensor
        The weights under the network's own names; only names and shapes are used.
    n_classes : int
    preprocessing : Preprocessing
    key_prefix : str
        Of the names in the file; the network's own names are without it.
    """
    imports, build = _network(architecture, tensors, n_classes=n_classes, channels=len(preprocessing.mean))
    lines = ["import torch", *imports, "from safetensors.torch import load_file", ""]
    lines.append(f"weights = load_file({file_name!r})")
    if key_prefix:
        lines.append(f"weights = {{key.removeprefix({key_prefix!r}): w for key, w in weights.items()}}")
    lines += [*build, "model.load_state_dict(weights)"]
    if architecture != "exported":  # such a program has no modes
        lines.append("model.eval()")
    return "\n".join([*lines, "", *_feeding(preprocessing)]) + "\n"


def _feeding(preprocessing: Preprocessing) -> list[str]:
    lines = [
        f"{name} = torch.tensor({list(values)}).view(1, -1, 1, 1)"
        for name, values in (("mean", preprocessing.mean), ("std", preprocessing.std))
    ]
    size = preprocessing.image_size
    inner = []
    if size is not None:
        inner.append(f"if images.shape[-2:] != ({size}, {size}):")
        inner.append("    images = torch.nn.functional.interpolate(")
        inner.append(f'        images, ({size}, {size}), mode="bilinear", antialias=True')
        inner.append("    )")
    if preprocessing.channel_order == "bgr":
        inner.append("images = images.flip(1)  # the network takes BGR")
    inner.append("return model((images - mean) / std).argmax(1)")
    return [*lines, "", *_CLASSIFY.rstrip().splitlines(), *(f"        {line}" for line in inner)]


def _network(
    architecture: str, tensors: Mapping[str, Tensor], *, n_classes: int, channels: int
) -> tuple[list[str], list[str]]:
    """Imports, and the lines that make `model`."""
    if architecture == "torchscript":
        return [], ['model = torch.jit.load("your-program.pt", map_location="cpu")  # the file you uploaded']
    if architecture == "exported":
        return [], ['model = torch.export.load("your-program.pt2").module()  # the file you uploaded']
    module, _, own_class = architecture.partition(":")
    if own_class:
        return [f"from {module} import {own_class}"], [f"model = {own_class}()  # with its own arguments"]
    arguments = f"n_classes={n_classes}, channels={channels}"
    if architecture in ARCHITECTURES:
        name = ARCHITECTURES[architecture].__name__
        if architecture in SIZED:
            arguments += f", image_size={image_size_of(architecture, tensors)}"
        return [f"from defuse_core.networks.architectures import {name}"], [f"model = {name}({arguments})"]
    if architecture in LENETS or architecture in MLPS:
        build = f"model = build_network({architecture!r}, {arguments}, like=weights)  # or your own class"
        return ["from defuse_core.networks.architectures import build_network"], [build]
    return ["import torchvision"], _torchvision(architecture, tensors, n_classes, channels)


def _torchvision(name: str, tensors: Mapping[str, Tensor], n_classes: int, channels: int) -> list[str]:
    options = f"weights=None, num_classes={n_classes}"
    if name in ("googlenet", "inception_v3"):
        auxiliary = any(key.lower().startswith("aux") for key in tensors)
        options += f", aux_logits={auxiliary}, init_weights=False"
    lines = [f"model = torchvision.models.get_model({name!r}, {options})"]
    if channels != 3:
        network = build_network(name, n_classes=n_classes, channels=channels, like=tensors)
        path, first = next((p, m) for p, m in network.named_modules() if isinstance(m, nn.Conv2d))
        steps = "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in path.split("."))
        shape = f"{channels}, {first.out_channels}, {first.kernel_size}, {first.stride}, {first.padding}"
        lines.append(f"model{steps} = torch.nn.Conv2d({shape}, bias={first.bias is not None})")
    return lines
