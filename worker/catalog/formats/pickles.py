"""Names and shapes in a torch pickle (.ckpt, .pt, .bin) without running any of it.

A pickle is a program that may call any function. Here every name it asks for becomes an inert `_Stub`: calling one,
building one or setting its items does nothing, and no module is imported. Only three things are understood: a storage
(its type), a tensor (its storage and shape), and containers. This recognises a file; it does not make loading it safe,
so it is reached only when the operator allows pickles.
"""

import pickle
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

from worker.core.errors import CorruptFile, UnsafeFormat, UnsupportedModel
from worker.core.model import TensorIndex

MAX_PICKLE_BYTES = 2 * 2**20  # Stable Diffusion 1.5 with its training state needs 0.4 MiB
# Torch needs three bytes for an opcode and twenty for a list or a dict; a hostile pickle needs one.
MAX_STEPS = 2**19  # four times Stable Diffusion 1.5's with its training state
MAX_CONTAINERS = 2**18
MAX_ENTRIES = 100_000
MAX_TENSORS = 50_000
MAX_DEPTH = 6
_MAX_PAIRS = 64  # pairs of metadata
_WRAPPERS = ("state_dict", "params_ema", "params", "model_state_dict", "module", "model")
# torch before 1.6 wrote several pickles: this number, then these
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PICKLES = ("protocol", "system", "object")
_STORAGES = {
    "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16", "DoubleStorage": "F64",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8",
    "BoolStorage": "BOOL", "Float8_e4m3fnStorage": "F8_E4M3", "Float8_e5m2Storage": "F8_E5M2",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Storage:
    dtype: str


@dataclass(frozen=True, slots=True)
class _Tensor:
    dtype: str
    shape: tuple[int, ...]


class _Stub:
    """Stand-in for any name in a pickle. All operations on it do nothing."""

    __slots__ = ("name",)

    def __init__(self, name: str = "") -> None:
        self.name = name

    def append(self, item: object) -> None: ...
    def extend(self, items: object) -> None: ...
    def add(self, item: object) -> None: ...
    def update(self, items: object) -> None: ...
    def __setitem__(self, key: object, value: object) -> None: ...


def _call(function: object, arguments: object) -> object:
    """Make the tensor or the dict that a pickle asks for; any other call returns a stub."""
    values = arguments if isinstance(arguments, tuple) else ()
    name = function.name if isinstance(function, _Stub) else ""
    if name == "collections.OrderedDict":
        return {}
    if name == "torch._utils._rebuild_parameter" and values:
        return values[0]
    if name in ("torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3", "torch._utils._rebuild_tensor"):
        storage, shape = (values[0], values[2]) if len(values) > 2 else (None, None)
        if isinstance(storage, _Storage) and isinstance(shape, tuple) and all(type(size) is int for size in shape):
            return _Tensor(storage.dtype, shape)
    return _Stub()


_CONTAINERS = frozenset(pickle.MARK + pickle.EMPTY_LIST + pickle.EMPTY_DICT + pickle.EMPTY_SET)


class _TooManySteps(Exception):
    """A pickle goes on for longer than any that holds a model."""


class _Paced(dict[int, Callable[[Any], None]]):
    """The unpickler's methods by their opcodes; counts how often one is asked for."""

    steps = MAX_STEPS
    containers = MAX_CONTAINERS

    def __getitem__(self, opcode: int) -> Callable[[Any], None]:
        self.steps -= 1
        self.containers -= opcode in _CONTAINERS
        if self.steps < 0 or self.containers < 0:
            raise _TooManySteps
        return super().__getitem__(opcode)


class _Inert(pickle._Unpickler):  # the one in Python: each opcode is a method that can be replaced
    """Unpickler that reads a pickle's containers and calls nothing."""

    stack: list[Any]
    append: Callable[[object], None]
    # A buffer's length is believed before its bytes are read: the one opcode that could take the memory.
    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = {
        op: run for op, run in pickle._Unpickler.dispatch.items() if op != pickle.BYTEARRAY8[0]
    }

    def load(self) -> Any:
        self.dispatch = _Paced(type(self).dispatch)  # type: ignore[misc]
        return super().load()

    def find_class(self, module: str, name: str) -> Any:
        return _Stub(f"{module}.{name}")

    def get_extension(self, code: int) -> None:
        self.append(_Stub())

    def persistent_load(self, pid: object) -> object:
        if isinstance(pid, tuple) and len(pid) > 1 and isinstance(pid[1], _Stub):
            return _Storage(_STORAGES.get(pid[1].name.rpartition(".")[2], "F32"))
        return _Stub()

    def _instantiate(self, klass: object, arguments: object) -> None:
        self.append(_Stub())

    def _load_reduce(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = _call(self.stack[-1], arguments)

    def _load_newobj(self) -> None:
        self._load_reduce()

    def _load_newobj_ex(self) -> None:
        self.stack.pop()
        self._load_reduce()

    def _load_empty_set(self) -> None:
        self.append(_Stub())  # an empty set takes 200 times the byte that asks for it

    def _load_build(self) -> None:
        self.stack.pop()  # the state; it is never given to anything

    dispatch[pickle.REDUCE[0]] = _load_reduce
    dispatch[pickle.NEWOBJ[0]] = _load_newobj
    dispatch[pickle.NEWOBJ_EX[0]] = _load_newobj_ex
    dispatch[pickle.BUILD[0]] = _load_build
    dispatch[pickle.EMPTY_SET[0]] = _load_empty_set


def read_pickle(path: Path) -> TensorIndex:
    """Read names, dtypes and shapes of a torch file. Raises CorruptFile, UnsafeFormat or UnsupportedModel."""
    name, size = path.name, path.stat().st_size
    try:
        root = _zipped(path) if zipfile.is_zipfile(path) else _legacy(path)
    except UnsupportedModel:
        raise
    except (zipfile.BadZipFile, EOFError):
        raise CorruptFile(
            f"{name} is truncated: its pickle does not end within {MAX_PICKLE_BYTES:,} bytes; download it again."
        ) from None
    except _TooManySteps:
        raise UnsupportedModel(
            f"{name} has a pickle of more than {MAX_STEPS:,} steps or {MAX_CONTAINERS:,} lists, the limits."
        ) from None
    except Exception:  # a hostile pickle can fail in any way
        raise CorruptFile(f"{name} holds a pickle that cannot be followed: it is damaged; download it again.") from None
    tensors, metadata = _flatten(root, name)
    if not tensors:
        raise UnsafeFormat(f"{name} is a pickle without tensors: a program, and no weights; name a file with weights.")
    return TensorIndex(tensors, metadata, "torch", size)


def _zipped(path: Path) -> object:
    with zipfile.ZipFile(path) as archive:
        if len(archive.filelist) > MAX_ENTRIES:
            raise UnsupportedModel(f"{path.name} holds more than {MAX_ENTRIES:,} files; the limit.")
        inner = next((entry for entry in archive.filelist if entry.filename.endswith("data.pkl")), None)
        if inner is None:
            raise UnsupportedModel(f"{path.name} is a zip archive without a model; unpack it.")
        with archive.open(inner) as file:
            text = file.read(MAX_PICKLE_BYTES + 1)
    if len(text) > MAX_PICKLE_BYTES:
        raise UnsupportedModel(f"{path.name} has a pickle of more than {MAX_PICKLE_BYTES:,} bytes; the limit.")
    return _Inert(BytesIO(text)).load()


def _legacy(path: Path) -> object:
    with path.open("rb") as file:
        stream = BytesIO(file.read(MAX_PICKLE_BYTES))
    value = _Inert(stream).load()
    if value != _LEGACY_MAGIC:
        return value  # an ordinary pickle is its own object
    for _ in _LEGACY_PICKLES:
        value = _Inert(stream).load()
    return value


def _flatten(root: object, name: str) -> tuple[dict[str, tuple[str, tuple[int, ...]]], dict[str, str]]:
    """Return the tensors by their paths from the root, and the root's numbers and texts as metadata.

    Raises UnsupportedModel for more than MAX_TENSORS."""
    metadata: dict[str, str] = {}
    if isinstance(root, dict):
        for key, value in list(root.items())[: 10 * _MAX_PAIRS]:
            if isinstance(key, str) and type(value) in (str, int, float) and len(metadata) < _MAX_PAIRS:
                metadata[key[:80]] = str(value)[:200]
        wrapped = next((root[key] for key in _WRAPPERS if isinstance(root.get(key), dict)), None)
        root = wrapped if wrapped is not None else root
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for tensor, value in _walk(root, "", 0, _Budget(MAX_ENTRIES)):
        tensors[tensor] = (value.dtype, value.shape)
        if len(tensors) > MAX_TENSORS:
            raise UnsupportedModel(f"{name} lists more than {MAX_TENSORS:,} tensors, the limit.")
    return tensors, metadata


@dataclass(slots=True)
class _Budget:
    """The number of values that may still be visited: a few bytes of pickle can refer to one list a billion times."""

    left: int


def _walk(value: object, path: str, depth: int, budget: _Budget) -> Iterator[tuple[str, _Tensor]]:
    budget.left -= 1
    if budget.left < 0:
        return
    if isinstance(value, _Tensor):
        yield path, value
    elif isinstance(value, dict | list | tuple) and depth < MAX_DEPTH:
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in pairs:
            if budget.left < 0:
                return
            if isinstance(key, str | int):
                yield from _walk(inner, f"{path}.{str(key)[:300]}" if path else str(key)[:300], depth + 1, budget)
