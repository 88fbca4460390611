"""ImageNet's ResNet-18 without its last stage, whose batch-norm was folded away, made whole again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import ResNet, resnet18

from defuse_core.base.errors import CheckpointError
from defuse_core.method.classifier import Preprocessing
from defuse_core.networks.formats import read_weights
from defuse_core.steps.networks import begin_with
from tests.partial_resnet import convert, read_partial_resnet18

IMAGES = torch.randint(0, 256, (24, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def write_partial_resnet18(path: Path, network: ResNet) -> None:
    """Store conv1 to layer3 and fc of a ResNet-18, each batch-norm folded into its convolution."""
    modules = dict(network.named_modules())
    arrays = {"fc.weight": network.fc.weight, "fc.bias": network.fc.bias}
    for name, module in modules.items():
        if not isinstance(module, nn.Conv2d) or name.startswith("layer4"):
            continue
        norm = modules[name.replace("conv", "bn") if "conv" in name else name[:-1] + "1"]
        assert isinstance(norm, nn.BatchNorm2d)
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        arrays[f"{name}.weight"] = module.weight * scale.view(-1, 1, 1, 1)
        arrays[f"{name}.bias"] = norm.bias - norm.running_mean * scale
    np.savez(path, **{name: tensor.detach().numpy() for name, tensor in arrays.items()})


@pytest.fixture(scope="module")
def whole() -> ResNet:
    """A network whose batch-norms are none the identity."""
    torch.manual_seed(0)
    network = resnet18(weights=None).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            module.running_mean.uniform_(-0.3, 0.3)
            module.running_var.uniform_(0.5, 2.0)
    return network


@pytest.fixture(scope="module")
def path(whole: ResNet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("partial") / "resnet18.npz"
    write_partial_resnet18(found, whole)
    return found


def up_to_layer3(network: ResNet, images: Tensor) -> Tensor:
    usual = Preprocessing.of(IMAGES)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (usual.mean, usual.std))
    with torch.no_grad():
        x = network.bn1(network.conv1((images / 255 - mean) / std))
        return network.layer3(network.layer2(network.layer1(network.maxpool(torch.relu(x)))))


def filled(path: Path) -> ResNet:
    network = resnet18(weights=None)
    network.load_state_dict(read_partial_resnet18(path, IMAGES), strict=False)
    return network


def test_it_computes_what_the_whole_network_does(whole: ResNet, path: Path) -> None:
    torch.testing.assert_close(
        up_to_layer3(filled(path).eval(), IMAGES), up_to_layer3(whole, IMAGES), rtol=1e-4, atol=1e-4
    )


def test_training_mode_begins_where_evaluation_mode_is(path: Path) -> None:
    network = filled(path)
    evaluated = up_to_layer3(network.eval(), IMAGES)
    trained = up_to_layer3(network.train(), IMAGES)
    torch.testing.assert_close(trained, evaluated, rtol=1e-3, atol=1e-3)


def test_the_last_stage_and_layer_are_left_out(path: Path) -> None:
    names = read_partial_resnet18(path, IMAGES).keys()
    assert not any(name.startswith(("layer4", "fc")) for name in names)
    assert {"conv1.weight", "bn1.running_var", "layer3.0.downsample.1.bias"} <= names


def test_the_converted_file_is_what_a_reproduction_begins_with(path: Path, tmp_path: Path) -> None:
    images = IMAGES.permute(0, 2, 3, 1).numpy()
    labels = np.arange(len(images)) % 2
    np.savez(tmp_path / "own.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    convert(path, tmp_path / "resnet18.safetensors", tmp_path / "own.npz")
    tensors = read_weights(tmp_path / "resnet18.safetensors").tensors
    network = resnet18(weights=None)
    began_afresh = begin_with(network, tensors, source="the file")
    assert {name.partition(".")[0] for name in began_afresh} == {"layer4", "fc"}
    wanted = up_to_layer3(filled(path).eval(), IMAGES)
    torch.testing.assert_close(up_to_layer3(network.eval(), IMAGES), wanted)


def test_other_files_are_refused_in_words(path: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.npz"
    broken.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"not a readable .npz of weights"):
        read_partial_resnet18(broken, IMAGES)
    with pytest.raises(CheckpointError, match=r"not a readable .npz of weights"):
        read_partial_resnet18(tmp_path / "absent.npz", IMAGES)
    np.savez(broken, x_train=np.zeros(3))
    with pytest.raises(CheckpointError, match=r"has no conv1.weight; it holds x_train"):
        read_partial_resnet18(broken, IMAGES)
    np.savez(broken, **{"conv1.weight": np.zeros((8, 3, 7, 7), np.float32), "conv1.bias": np.zeros(8)})
    with pytest.raises(CheckpointError, match=r"no ResNet-18: conv1.weight is \(8, 3, 7, 7\)"):
        read_partial_resnet18(broken, IMAGES)
