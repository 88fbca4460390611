"""TorchScript and torch.export programs as networks that can be trained, copied and pickled.

Such a file is a PROGRAM. It runs on this machine, with the rights of this process, when it is opened and
whenever it classifies an image. Ask the user before opening one.
"""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from defuse_core.base.checkpoints import copy_state
from defuse_core.base.errors import CheckpointError
from defuse_core.networks.sniffing import SAVE_WEIGHTS, sniff_format

ProgramFormat = Literal["torchscript", "exported"]

_EXPORT = 'torch.export.export(model.eval(), (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))'
"""`x` is a batch of two images or more: a batch of one would fix the batch size."""


class Program(nn.Module):
    """A TorchScript or torch.export program as a network, under the names its weights have in it.

    IT IS A PROGRAM OF WHOEVER MADE THE FILE, and runs as such: the caller must have the user's consent.
    Weights are trained, saved and loaded as those of any network. What was fixed when the program was
    made stays so: `train` changes dropout and batch-norm of a TorchScript file that was scripted, and
    nothing in a traced or exported one. Memory layouts are left alone, since compiled views rely on them.

    Parameters
    ----------
    content : bytes
        The file. It stays in memory, since programs cannot be pickled: a copy is opened from it and then
        gets the weights.
    format : {"torchscript", "exported"}
    """

    def __init__(self, content: bytes, format: ProgramFormat) -> None:
        super().__init__()
        self.content, self.format = content, format
        self._inner = [_open(content, format)]  # in a list, so that its name does not precede the weights'
        self._adopt()
        for parameter in self.parameters():
            parameter.requires_grad_(parameter.is_floating_point())

    def _adopt(self) -> None:
        """Share the program's weights and children, under the same names."""
        inner = self._inner[0]
        self._parameters = dict(inner._parameters.items())
        self._buffers = dict(inner._buffers.items())
        self._modules = dict(inner._modules.items())
        self._non_persistent_buffers_set = set(inner._non_persistent_buffers_set)

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, height, width) → logits (n, n_classes)."""
        with _quiet():
            logits = self._inner[0](x.contiguous())
        if not isinstance(logits, Tensor):
            raise CheckpointError(
                f"the program returns a {type(logits).__name__}, not one tensor of logits (n, n_classes); "
                "wrap the model so that its forward returns the logits alone, and save it again"
            )
        return logits

    def train(self, mode: bool = True) -> Program:
        """Set the mode; an exported program keeps the one that it was exported in."""
        self.training = mode
        if self.format == "torchscript":
            self._inner[0].train(mode)
        return self

    def to(self, *args: Any, **kwargs: Any) -> Program:
        """Move to a device or type; a memory format is ignored."""
        kwargs.pop("memory_format", None)
        return super().to(*args, **kwargs) if args or kwargs else self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Program:
        self._inner[0]._apply(fn, recurse)
        self._adopt()
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        frozen = [name for name, parameter in self.named_parameters() if not parameter.requires_grad]
        device = next((tensor.device for tensor in self.state_dict().values()), torch.device("cpu"))
        return _rebuild, (self.content, self.format, copy_state(self), frozen, self.training, device)


def _rebuild(
    content: bytes,
    format: ProgramFormat,
    state: dict[str, Tensor],
    frozen: list[str],
    training: bool,
    device: torch.device,
) -> Program:
    """Open a program again and put its weights back: what pickle and copy.deepcopy do."""
    program = Program(content, format)
    program.load_state_dict(state)
    for name, parameter in program.named_parameters():
        parameter.requires_grad_(name not in frozen)
    return program.train(training).to(device)


def load_program(path: str | Path) -> Program:
    """Open a TorchScript or torch.export file AS THE PROGRAM IT IS: ask the user first.

    Returns
    -------
    Program
        On the CPU, in evaluation mode.

    Raises
    ------
    CheckpointError
        If the file is no program, is damaged, has no weights to train, or was exported in training mode or
        for one batch size.
    """
    path = Path(path)
    kind = sniff_format(path)
    if kind not in ("torchscript", "exported"):
        raise CheckpointError(f"{path} holds weights ({kind}), no program; read it with read_weights")
    content = path.read_bytes()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"bad checksum of {damaged}")
        if kind == "exported":
            _check_exported(content, path)
        program = Program(content, kind).eval()
    except CheckpointError:
        raise
    except Exception as error:  # an unknown file may raise anything
        raise CheckpointError(
            f"{path} cannot be opened as a program ({kind}: {_reason(error)}); copy or download it again, or "
            f"make it with this version of PyTorch ({torch.__version__})"
        ) from error
    if not any(parameter.requires_grad for parameter in program.parameters()):
        raise CheckpointError(
            f"{path} has no weights that could be trained (torch.jit.freeze makes constants of them); save "
            f"the program before it is frozen, or its weights: {SAVE_WEIGHTS}"
        )
    return program


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch from warning that TorchScript is deprecated: the user knows what was uploaded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _open(content: bytes, format: ProgramFormat) -> nn.Module:
    with _quiet():
        if format == "torchscript":
            return torch.jit.load(io.BytesIO(content), map_location="cpu")  # type: ignore[no-any-return]
        return torch.export.load(io.BytesIO(content)).module()


def _check_exported(content: bytes, path: Path) -> None:
    """Run an exported program on random images in batches of several sizes."""
    with _quiet():
        exported = torch.export.load(io.BytesIO(content))
        network = exported.module()
    names = exported.graph_signature.user_inputs
    inputs = [node.meta["val"] for node in exported.graph.nodes if node.name in names]
    if len(inputs) != 1 or not isinstance(inputs[0], Tensor) or inputs[0].ndim != 4:
        raise CheckpointError(
            f"{path} takes {len(inputs)} inputs, not one batch of images (n, channels, height, width); "
            f"export a model that does: {_EXPORT}"
        )
    fixed, shape = isinstance(inputs[0].shape[0], int), [_typical(size) for size in inputs[0].shape[1:]]
    x = torch.rand(5, *shape, generator=torch.Generator().manual_seed(0)).to(inputs[0].dtype)
    answers = {}
    for n in (1, 2, 5):
        try:
            with torch.no_grad(), _quiet():
                answers[n] = network(x[:n])
        except Exception as error:
            reason = "was exported for one batch size and" if fixed else f"({_reason(error)})"
            raise CheckpointError(
                f"{path} {reason} does not take {n} images of {tuple(shape)}; export it with a batch of two "
                f"images or more and a free batch size: {_EXPORT}"
            ) from error
    if all(isinstance(logits, Tensor) for logits in answers.values()):
        _check_evaluation(answers[1], answers[5], path)


def _check_evaluation(alone: Tensor, batch: Tensor, path: Path) -> None:
    """Refuse programs whose answer to an image changes with the batch: live dropout or batch-norm."""
    if not torch.allclose(alone[0], batch[0], rtol=1e-2, atol=1e-3 * float(batch.abs().max())):
        raise CheckpointError(
            f"{path} was exported in training mode: its dropout or batch-norm never stops, so that its "
            f"answers are random; call model.eval() before exporting: {_EXPORT}"
        )


def _reason(error: Exception) -> str:
    """The last line of an error: torch puts traces before it."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1][:200]


def _typical(size: int | torch.SymInt) -> int:
    """A size that a program takes: the fixed one, or the one that it was exported with."""
    if isinstance(size, int):
        return size
    hint = size.node.hint
    return 32 if hint is None else int(hint)
