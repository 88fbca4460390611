"""Save and load weights as safetensors with JSON metadata: whole or not at all, checked before use.

Nothing is pickled. A file is written under a temporary name, synced, and renamed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from defuse_core.base.errors import CheckpointError
from defuse_core.base.files import open_file, write_bytes
from defuse_core.base.limits import MAX_TENSORS
from defuse_core.base.texts import quote


def save_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], *, metadata: Mapping[str, object] | None = None
) -> str:
    """Write tensors and JSON-able metadata as safetensors; return the file's SHA-256.

    Parameters
    ----------
    path : path
    tensors : mapping of str to Tensor
    metadata : mapping of str to object, optional
        Anything that JSON can hold.
    """
    content = dump_tensors(tensors, metadata=metadata)
    write_bytes(Path(path), content)
    return hashlib.sha256(content).hexdigest()


def dump_tensors(tensors: Mapping[str, Tensor], *, metadata: Mapping[str, object] | None = None) -> bytes:
    """Return what `save_tensors` writes.

    Parameters
    ----------
    tensors : mapping of str to Tensor
    metadata : mapping of str to object, optional
        Anything that JSON can hold.
    """
    plain = {name: _own(tensor.detach().cpu().contiguous()) for name, tensor in tensors.items()}
    if len({tensor.untyped_storage().data_ptr() for tensor in plain.values()}) < len(plain):
        plain = {name: tensor.clone() for name, tensor in plain.items()}  # safetensors shares no memory
    text = {key: json.dumps(value) for key, value in (metadata or {}).items()}
    return safetensors.torch.save(plain, metadata=text)


def _own(tensor: Tensor) -> Tensor:
    """Return the tensor, or a copy where it is a part of a larger one."""
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


def load_artifact(path: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Read a file that a run stored, as `load_tensors` does; the step can write a damaged one again."""
    return load_tensors(path, remedy="run the step again")


def load_tensors(
    path: str | Path, *, remedy: str = "copy or download it again", most: int = MAX_TENSORS
) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Read tensors (on the CPU) and metadata of `save_tensors`.

    Parameters
    ----------
    path : str or Path
    remedy : str
        For a file that is not whole; an error ends with it.
    most : int
        A file with more tensors is refused before any is read.

    Raises
    ------
    CheckpointError
        If the file is missing, not whole, or has too many tensors.
    """
    path = Path(path)
    open_file(path).close()  # raises for what is no file
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = {key: _parse(text) for key, text in (file.metadata() or {}).items()}
            if len(names := list(file.keys())) > most:
                raise CheckpointError(
                    f"{path} holds {len(names):,} tensors, more than the {most:,} that are read; bring one "
                    "network's weights alone"
                )
            return {name: file.get_tensor(name) for name in names}, metadata
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({quote(error)}); {remedy}") from error


def load_metadata(path: str | Path) -> dict[str, object]:
    """Read the metadata of `save_tensors` and no tensor; raises as `load_tensors` does."""
    open_file(Path(path)).close()
    try:
        with safe_open(str(path), framework="pt") as file:
            return {key: _parse(text) for key, text in (file.metadata() or {}).items()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is not a whole safetensors file ({quote(error)}); copy or download it again"
        ) from error


def _parse(text: str) -> object:
    """Parse metadata: ours is JSON, that of other programs plain text, or JSON of any length and depth."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def load_weights(module: nn.Module, tensors: Mapping[str, Tensor], *, source: str | Path) -> None:
    """Copy weights into a module after comparing every name and shape.

    Counters of batch-norm (`num_batches_tracked`), which PyTorch 0.4 did not write, may be missing.

    Parameters
    ----------
    module : Module
    tensors : mapping of str to Tensor
    source : str or Path
        Name of the weights in messages.

    Raises
    ------
    CheckpointError
        If names or shapes differ, or a weight is not finite in the module's type; nothing is copied then.
    """
    check_shapes(module, tensors, source=source)
    own = module.state_dict()
    converted = {name: tensor.to(own[name].dtype) for name, tensor in tensors.items()}
    bad = [name for name, t in converted.items() if t.is_floating_point() and not t.isfinite().all()]
    if bad:
        raise CheckpointError(
            f"{source} has weights that are not finite: {', '.join(bad[:4])}; training diverged, "
            "use an earlier checkpoint"
        )
    module.load_state_dict({**_counters(own), **converted})


def check_shapes(module: nn.Module, tensors: Mapping[str, Tensor], *, source: str | Path) -> None:
    """Compare every name and shape of weights with those of a module, which may be on the meta device.

    Parameters
    ----------
    module : Module
    tensors : mapping of str to Tensor
    source : str or Path
        Name of the weights in messages.

    Raises
    ------
    CheckpointError
        If names or shapes differ.
    """
    own = module.state_dict()
    missing = sorted(own.keys() - tensors.keys() - _counters(own).keys())
    unexpected = sorted(tensors.keys() - own.keys())
    shapes = [
        f"{name}: {tuple(tensors[name].shape)} in the file, {tuple(own[name].shape)} in the network"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    if missing or unexpected or shapes:
        parts = {"missing": missing, "unexpected": unexpected, "of another shape": shapes}
        problems = "; ".join(f"{what} {', '.join(names[:4])}" for what, names in parts.items() if names)
        raise CheckpointError(
            f"{source} does not fit {type(module).__name__}: {problems}. Choose the architecture and "
            "number of classes that the weights were trained with"
        )


def _counters(own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of batch-norm among the weights of a module."""
    return {name: tensor for name, tensor in own.items() if name.endswith("num_batches_tracked")}


def copy_state(module: nn.Module) -> dict[str, Tensor]:
    """Return the module's weights as copies on the CPU."""
    with torch.no_grad():
        return {name: t.detach().cpu().clone() for name, t in module.state_dict().items()}


def tensor_sha256(tensor: Tensor) -> str:
    """Return the SHA-256 of a tensor's content, in hexadecimal."""
    return hashlib.sha256(tensor.detach().contiguous().cpu().numpy().data).hexdigest()


def save_training(
    path: Path,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    identity: Mapping[str, object],
    history: Sequence[Mapping[str, float]],
    best: Mapping[str, Tensor] | None = None,
) -> None:
    """Write all that a training needs to resume: weights, the optimiser's state, its history.

    Parameters
    ----------
    identity : mapping
        What tells this training from others: config, seed, data. JSON-able.
    history : sequence of mapping
        Metrics of every epoch so far.
    best : mapping of str to Tensor, optional
        Weights of the best epoch, where the training returns to them.
    """
    tensors = {f"model.{name}": tensor for name, tensor in module.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in (best or {}).items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{n}": t for n, t in state.items() if t is not None}
    save_tensors(path, tensors, metadata={"identity": identity, "history": history})


def resume_training(
    path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, *, identity: Mapping[str, object]
) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
    """Bring a training back to where `save_training` left it.

    Parameters
    ----------
    path : Path
    module, optimizer : Module, Optimizer
        Both get their stored state in place.
    identity : mapping
        Must equal the one that `save_training` got.

    Returns
    -------
    history : list of dict
    best : dict of str to Tensor
        Empty where none was saved.

    Raises
    ------
    ValueError
        If the file belongs to another training.
    """
    tensors, metadata = load_tensors(path)
    stored = metadata.get("identity")
    if stored != json.loads(json.dumps(identity)):
        raise ValueError(
            f"{path} belongs to another training (its identity is {stored}); "
            "delete it, or train with the config, seed and data it was written with"
        )

    def part(prefix: str) -> dict[str, Tensor]:
        return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}

    load_weights(module, part("model."), source=path)
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in part("optimizer.").items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    history: list[dict[str, float]] = metadata["history"]  # type: ignore[assignment]
    return history, part("best.")
