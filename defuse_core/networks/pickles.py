"""Read a pickle of torch.save as plain data: nothing is imported, called or run, no torch is needed.

A pickle is a program for a small machine. `admitted` lets through only the instructions and names that a
state dict, or a training checkpoint around one, is made of. `read_pickle` does these, and puts a record or
a placeholder where pickle would call something. An instruction takes time and memory for its own bytes
only, so both are bounded by the size of the pickle.
"""

from __future__ import annotations

import io
import pickletools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from defuse_core.base.limits import MAX_PICKLE_OPCODES

_OPCODES = frozenset({
    "PROTO", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "EMPTY_SET", "MARK", "TUPLE", "TUPLE1", "TUPLE2",
    "TUPLE3", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "BINPUT", "LONG_BINPUT", "BINGET",
    "LONG_BINGET", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT",
    "BINUNICODE", "SHORT_BINSTRING", "GLOBAL", "NEWOBJ", "REDUCE", "BUILD", "BINPERSID", "STOP",
})  # fmt: skip
"""What torch.save writes, and torch.load(weights_only=True) reads."""

_STORAGES = {
    "Float": ("F32", 4), "Double": ("F64", 8), "Half": ("F16", 2), "BFloat16": ("BF16", 2),
    "Byte": ("U8", 1), "Char": ("I8", 1), "Short": ("I16", 2), "Int": ("I32", 4), "Long": ("I64", 8),
    "Bool": ("BOOL", 1), "Untyped": ("U8", 1), "ComplexFloat": ("torch.complex64", 8),
    "ComplexDouble": ("torch.complex128", 16), "QInt8": ("torch.qint8", 1), "QUInt8": ("torch.quint8", 1),
    "QInt32": ("torch.qint32", 4), "QUInt4x2": ("torch.quint4x2", 1), "QUInt2x4": ("torch.quint2x4", 1),
}  # fmt: skip
"""The type of an element, as safetensors names it or else as torch does, and its size in bytes."""

_STORAGE = re.compile(rf"torch(?:\.cuda|\.storage)?\.({'|'.join(_STORAGES)})Storage")
_DTYPE = re.compile(r"torch\.(?:b?float|u?int|complex|qu?int|bits|bool)\w{0,16}")

_STRANGE = {
    "torch._utils._rebuild_qtensor": "quantised",
    "torch._utils._rebuild_meta_tensor_no_storage": "empty",
    "torch._utils._rebuild_sparse_tensor": "sparse or nested",
    "torch._utils._rebuild_nested_tensor": "sparse or nested",
    "torch._utils._rebuild_wrapper_subclass": "of a class of its own",
    "torch._utils._rebuild_device_tensor_from_numpy": "of another kind of device",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": "of another kind of device",
}
"""Functions that make tensors which are no plain numbers."""

_TURNED = "stored with its sign turned, which resolve_neg() or resolve_conj() undoes"
"""Of a view that torch marks as negative or conjugate instead of computing it."""

_PLACEHOLDERS = frozenset({
    "_codecs.encode", "builtins.complex", "builtins.set", "__builtin__.complex", "__builtin__.set",
    "collections.Counter", "numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar",
    "torch.device", "torch.Tensor", "torch._tensor.Tensor", "torch.serialization._get_layout",
    "torch.per_tensor_affine", "torch.per_tensor_symmetric", "torch.per_channel_affine",
    "torch.per_channel_symmetric", "torch.per_channel_affine_float_qparams",
})  # fmt: skip
"""What else training checkpoints hold: the values are not needed, and not made."""


class PickleError(Exception):
    """A pickle that is not read; the message says why, in words that follow "cannot be read as weights"."""


class ForbiddenNameError(PickleError):
    """A pickle that would import something else; the message is its name."""


class Placeholder:
    """Stands for a value that is not needed."""

    def __str__(self) -> str:
        return "…"


@dataclass(frozen=True)
class Global:
    """A name that a pickle would import."""

    name: str


@dataclass(frozen=True)
class Storage:
    """Where the content of tensors is: the key of a record, of `n_bytes`."""

    key: str
    dtype: str
    item_size: int
    n_bytes: int


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as its file describes it, unchecked: offset and strides in elements."""

    storage: Storage
    dtype: str
    offset: Any
    shape: Any
    strides: Any


@dataclass(frozen=True)
class StrangeTensor:
    """A tensor that is no plain numbers; `kind` says what it is."""

    kind: str


def admitted(stream: io.BytesIO) -> Iterator[tuple[str, Any]]:
    """Yield the instructions of one pickle, each with its argument, up to its end.

    Raises
    ------
    ForbiddenNameError
        If it would import anything that weights do not need.
    PickleError
        If it is no pickle, is cut off or too long, or has an instruction that torch.save does not write.
    """
    steps = pickletools.genops(stream)
    for _ in range(MAX_PICKLE_OPCODES):
        try:
            opcode, argument, _ = next(steps)
        except StopIteration:
            return
        except (ValueError, LookupError) as error:  # all that genops raises
            raise PickleError(f"its pickle is damaged: {str(error)[:100]}") from error
        if opcode.name not in _OPCODES:
            raise PickleError(
                f"its pickle holds {opcode.name}, an instruction that torch.save does not write"
            )
        if opcode.name == "GLOBAL":
            argument = str(argument).replace(" ", ".")
            if not _is_known(argument):
                raise ForbiddenNameError(argument[:100])
        yield opcode.name, argument
    raise PickleError(f"its pickle has more than {MAX_PICKLE_OPCODES:,} instructions")


def _is_known(name: str) -> bool:
    known = name in _CALLS or name in _STRANGE or name in _PLACEHOLDERS
    return known or bool(_STORAGE.fullmatch(name) or _DTYPE.fullmatch(name))


def read_pickle(stream: io.BytesIO) -> tuple[Any, dict[str, Storage]]:
    """Read one pickle.

    Parameters
    ----------
    stream : BytesIO
        Left behind the pickle's end.

    Returns
    -------
    content : object
        Of plain values, `StoredTensor`, `StrangeTensor` and `Placeholder`.
    storages : dict of str to Storage
        All that it refers to, by key.

    Raises
    ------
    PickleError
        See `admitted`.
    """
    machine = _Machine()
    for name, argument in admitted(stream):
        try:
            machine.do(name, argument)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise PickleError(f"its pickle is damaged at {name}") from error
    return machine.result, machine.storages


class _Machine:
    """Does the admitted instructions, on a stack of values."""

    def __init__(self) -> None:
        self.result: Any = None
        self.storages: dict[str, Storage] = {}
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []  # the stacks under each mark
        self._memo: dict[int, Any] = {}
        self._copied = 0

    def do(self, name: str, argument: Any) -> None:
        """Do one instruction."""
        if name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = self._stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self._stack.append(self._memo[argument])
        elif name in _VALUES:
            self._stack.append(_VALUES[name](argument))
        elif name == "MARK":
            self._below.append(self._stack)
            self._stack = []
        elif name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"):
            items = self._above_mark() if name == "TUPLE" else self._pop(int(name[-1]))
            self._stack.append(tuple(items))
        elif name in ("APPEND", "APPENDS", "SETITEM", "SETITEMS"):
            self._fill(name)
        elif name == "BUILD":
            target, _ = self._pop(2)  # attributes, such as a state dict's versions, are not needed
            self._stack.append(target)
        elif name in ("REDUCE", "NEWOBJ"):
            function, arguments = self._pop(2)
            self._stack.append(self._call(function, arguments))
        elif name == "BINPERSID":
            storage = _storage(*self._pop(1))
            self._stack.append(self.storages.setdefault(storage.key, storage))
        elif name == "STOP":
            (self.result,) = self._pop(1)

    def _pop(self, n: int) -> list[Any]:
        if len(self._stack) < n:
            raise LookupError
        values = self._stack[-n:]
        del self._stack[-n:]
        return values

    def _above_mark(self) -> list[Any]:
        values, self._stack = self._stack, self._below.pop()
        return values

    def _fill(self, name: str) -> None:
        """Put values into the list or dict below them."""
        values = self._above_mark() if name.endswith("S") else self._pop(1 if name == "APPEND" else 2)
        target = self._stack[-1]
        if isinstance(target, Placeholder):
            return
        if name.startswith("APPEND"):
            if type(target) is not list:
                raise TypeError
            target.extend(values)
        else:
            _set_items(target, zip(values[::2], values[1::2], strict=True))

    def _call(self, function: Any, arguments: Any) -> Any:
        """What stands for the value that a function of that name would return."""
        if type(function) is not Global or type(arguments) is not tuple:
            raise TypeError
        if function.name in _STRANGE:
            return StrangeTensor(_STRANGE[function.name])
        if function.name == "collections.OrderedDict":
            return self._ordered(*arguments)
        if function.name == "torch._tensor._rebuild_from_type_v2":
            inner, _, inner_arguments, _ = arguments
            if inner == function:
                raise TypeError
            return self._call(inner, inner_arguments)
        call: Callable[..., Any] = _CALLS.get(function.name, _placeholder)
        return call(*arguments)

    def _ordered(self, pairs: Any = ()) -> dict[Any, Any]:
        """A dict of the pairs that Python 2 wrote; a list that is used again and again counts each time."""
        items: dict[Any, Any] = {}
        self._copied += len(pairs)
        if self._copied > MAX_PICKLE_OPCODES:
            raise PickleError(f"its pickle copies more than {MAX_PICKLE_OPCODES:,} values")
        _set_items(items, ((key, value) for key, value in pairs))
        return items


def _set_items(target: Any, items: Any) -> None:
    """Set items of a dict; keys that take long to hash, such as tuples of tuples, become placeholders."""
    if type(target) is not dict:
        raise TypeError
    for key, value in items:
        plain = key is None or type(key) in (str, int, float, bool)
        target[key if plain else Placeholder()] = value


def _number(value: int) -> Any:
    """An integer that 64 bits hold: longer ones take long to print."""
    return value if -(2**63) <= value < 2**63 else Placeholder()


_VALUES: dict[str, Callable[[Any], Any]] = {
    "NONE": lambda _: None, "NEWTRUE": lambda _: True, "NEWFALSE": lambda _: False,
    "EMPTY_DICT": lambda _: {}, "EMPTY_LIST": lambda _: [], "EMPTY_TUPLE": lambda _: (),
    "EMPTY_SET": lambda _: Placeholder(), "BININT": int, "BININT1": int, "BININT2": int, "LONG1": _number,
    "BINFLOAT": float, "BINUNICODE": str, "SHORT_BINSTRING": str, "GLOBAL": Global,
}  # fmt: skip
"""Instructions that push a value."""


def _placeholder(*_: Any) -> Placeholder:
    return Placeholder()


def _first(value: Any, *_: Any) -> Any:
    return value


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any) -> StoredTensor | StrangeTensor:
    if type(storage) is not Storage:
        raise TypeError
    if rest[2:] and rest[2]:  # such as {"neg": True}: the numbers are not those that are stored
        return StrangeTensor(_TURNED)
    return StoredTensor(storage, storage.dtype, offset, shape, strides)


def _tensor_of_type(
    storage: Any, offset: Any, shape: Any, strides: Any, *rest: Any
) -> StoredTensor | StrangeTensor:
    """A tensor of a type that has no storage of its own."""
    dtype = rest[2]
    if type(storage) is not Storage or type(dtype) is not Global:
        raise TypeError
    if rest[3:] and rest[3]:
        return StrangeTensor(_TURNED)
    return StoredTensor(storage, dtype.name, offset, shape, strides)


_CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _placeholder,  # these two are done by the machine itself
    "torch._tensor._rebuild_from_type_v2": _placeholder,
    "torch.Size": _first,
    "torch.nn.parameter.Parameter": _first,
    "torch._utils._rebuild_parameter": _first,
    "torch._utils._rebuild_parameter_with_state": _first,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_type,
}
"""What stands for the result of a call."""


def _storage(reference: Any) -> Storage:
    """Read a reference to a storage: ("storage", type, key, device, number of elements)."""
    kind, made_by, key, _, n_elements, *view = reference
    match = _STORAGE.fullmatch(made_by.name)
    if kind != "storage" or match is None or type(key) is not str or type(n_elements) is not int:
        raise TypeError
    if any(part is not None for part in view):
        raise PickleError("it has views of storages, which PyTorch 0.1 wrote")
    dtype, item_size = _STORAGES[match[1]]
    return Storage(key, dtype, item_size, n_elements * item_size)
