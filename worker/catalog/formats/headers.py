"""A weight file's header, read without its weights: names, dtypes and shapes, and a check that the file is whole.

safetensors is 8 bytes of length (little endian), that many bytes of JSON, then the tensors without a gap. None of the
weights are read; comparing the file's size with the header's last offset is the one cheap test for truncation.
`gguf.py` parses GGUF files, and `pickles.py` torch pickles, only where the operator allows them.
`unsupported_formats.py` names files that are no model.

Remote files: ask `header_end` with the first bytes, read that many, and ask again until the answer is covered; then
call `parse_header`. For safetensors the first answer is final; the length of a GGUF header shows only as it is read.
"""

import math
import os
import threading
import time
from pathlib import Path
from typing import TypeGuard

from worker.catalog.formats.gguf import MAGIC, gguf_end, parse_gguf
from worker.catalog.formats.pickles import read_pickle
from worker.catalog.formats.unsupported_formats import is_pickle, name_unsupported
from worker.core.errors import CorruptFile, UnsupportedModel
from worker.core.json_text import JsonLimits, JsonTooLarge, parse_bounded
from worker.core.model import TensorIndex

MAX_HEADER_BYTES = 16 * 2**20  # the largest real ones (kohya's tag tables, merge recipes) stay below 10 MiB
MAX_TENSORS = 50_000  # a mixture of experts in 4 bits needs about 20,000
MAX_RANK = 8
MAX_EMPTY_SIZE = 65_536  # of a dimension of a tensor without numbers
MAX_PAIRS = 10_000  # of metadata; kohya writes about 100
MAX_VALUE_CHARS = 2**20  # of one value that is kept; kohya's tag tables are longer, and nobody asks for them
FORMAT_LIMIT = 100_000_000  # the format's own limit
SNIFF_BYTES = 512
# The last headers that were read: a model is looked at for its kind, its size and its layers, one after the other. A
# file that was just written may be written again without another time.
_RECENT = 4
_SETTLED_NS = 2_000_000_000
_recent: dict[tuple[str, int, int, int], TensorIndex] = {}
_lock = threading.Lock()

# A tensor is an object of three fields and two lists, a pair of metadata two texts.
_LIMITS = JsonLimits(MAX_TENSORS * (6 + 2 * MAX_RANK) + MAX_PAIRS, 5 * MAX_TENSORS + 2 * MAX_PAIRS + 1, 3)
_DTYPE_BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "F16": 16, "BF16": 16, "F32": 32, "F64": 64, "C64": 64,
}  # fmt: skip


def read_header(path: Path, allow_pickles: bool = False) -> TensorIndex:
    """Read the header of the weight file at `path`. Raises CorruptFile, UnsafeFormat or UnsupportedModel.

    With `allow_pickles` the names and shapes in a torch pickle are read too, without running anything of it.
    """
    name = path.name
    try:
        with path.open("rb") as file:
            state = os.fstat(file.fileno())
            key = (str(path), state.st_ino, state.st_size, state.st_mtime_ns)
            if (known := _recent.get(key)) is not None:
                return known
            size = state.st_size
            prefix = file.read(SNIFF_BYTES)
            if allow_pickles and is_pickle(prefix):
                return read_pickle(path)
            while len(prefix) < (end := header_end(prefix, size, name)):
                chunk = file.read(end - len(prefix))
                if not chunk:
                    raise CorruptFile(f"{name} became shorter while it was read; download it again.")
                prefix += chunk
    except FileNotFoundError:
        raise CorruptFile(f"{name} is not there; download it again.") from None
    except IsADirectoryError:
        raise UnsupportedModel(f"{name} is a folder, not a weight file; name the file inside it.") from None
    except OSError as error:
        raise CorruptFile(
            f"{name} cannot be read ({error.strerror}); check the volume, or download it again."
        ) from None
    index = parse_header(prefix, size, name)
    if time.time_ns() - state.st_mtime_ns > _SETTLED_NS:
        _remember(key, index)
    return index


def _remember(key: tuple[str, int, int, int], index: TensorIndex) -> None:
    with _lock:
        _recent[key] = index
        if len(_recent) > _RECENT:
            _recent.pop(next(iter(_recent)))


def header_end(prefix: bytes, file_bytes: int, name: str) -> int:
    """Return the number of leading bytes that hold a file's header. `prefix` is its first bytes, best 512 or more.

    A result larger than `prefix` means: read that many and ask again. Raises CorruptFile and UnsupportedModel, or the
    error of `name_unsupported`.
    """
    if file_bytes == 0:
        raise CorruptFile(f"{name} is empty; download it again.")
    if prefix.startswith(MAGIC):
        return gguf_end(prefix, file_bytes, name)
    length = int.from_bytes(prefix[:8], "little")
    if len(prefix) < 9 or prefix[8:9] != b"{":
        raise name_unsupported(prefix, name)
    if length > FORMAT_LIMIT:
        if prefix.lstrip()[:1] in (b"{", b"[", b"<"):  # a text whose ninth sign happens to be a brace
            raise name_unsupported(prefix, name)
        raise CorruptFile(
            f"{name} claims a header of {length:,} bytes, more than the {FORMAT_LIMIT:,} that safetensors allows: "
            "it is damaged; download it again."
        )
    if length > MAX_HEADER_BYTES:
        raise UnsupportedModel(
            f"{name} has a header of {length:,} bytes; the limit is {MAX_HEADER_BYTES:,}: remove its metadata."
        )
    if 8 + length > file_bytes:
        raise CorruptFile(
            f"{name} is truncated: its header needs {8 + length:,} bytes and the file has {file_bytes:,}; "
            "download it again."
        )
    return 8 + length


def parse_header(prefix: bytes, file_bytes: int, name: str) -> TensorIndex:
    """Parse and check a header. `prefix` holds at least `header_end` bytes, `file_bytes` is the whole file's size."""
    if prefix.startswith(MAGIC):
        return parse_gguf(prefix, file_bytes, name)
    end = header_end(prefix, file_bytes, name)
    if len(prefix) < end:
        raise CorruptFile(f"{name} answered {len(prefix):,} of the {end:,} bytes of its header; read it again.")
    entries = _load(memoryview(prefix)[8:end], name)
    metadata = _metadata(entries.pop("__metadata__", None), name)
    if not entries:
        raise UnsupportedModel(f"{name} holds no tensors; name a file with weights.")
    if len(entries) > MAX_TENSORS:
        raise UnsupportedModel(f"{name} lists {len(entries):,} tensors; the limit is {MAX_TENSORS:,}.")
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    spans: list[tuple[int, int]] = []
    for tensor, entry in entries.items():
        dtype, shape, span = _entry(tensor, entry, name)
        tensors[tensor] = (dtype, shape)
        spans.append(span)
    _check_layout(spans, file_bytes - end, name)
    return TensorIndex(tensors=tensors, metadata=metadata, container="safetensors", file_bytes=file_bytes)


def _load(text: memoryview, name: str) -> dict[str, object]:
    try:
        entries = parse_bounded(text, _LIMITS, _unique)
    except JsonTooLarge as error:
        raise UnsupportedModel(
            f"{name} has a header that {error}; {MAX_TENSORS:,} tensors and {MAX_PAIRS:,} pairs of metadata are taken."
        ) from None
    except _DuplicateNameError as error:
        raise CorruptFile(f"{name} lists {_short(str(error))} twice in its header; download it again.") from None
    except ValueError:
        raise CorruptFile(f"{name} has a header that is not JSON: it is damaged; download it again.") from None
    if not isinstance(entries, dict):
        raise CorruptFile(f"{name} has a header that is not a JSON object: it is damaged; download it again.")
    return entries


class _DuplicateNameError(Exception):
    """A JSON object has one key twice; json would silently keep the last."""


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys: set[str] = set()
        for key, _ in pairs:
            if key in keys:
                raise _DuplicateNameError(key)
            keys.add(key)
    return result


def _metadata(value: object, name: str) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise CorruptFile(f"{name} has metadata that is not text; save it again with safetensors.")
    if len(value) > MAX_PAIRS:
        raise UnsupportedModel(f"{name} has {len(value):,} pairs of metadata; the limit is {MAX_PAIRS:,}.")
    return {key: text for key, text in value.items() if len(text) <= MAX_VALUE_CHARS}


def _entry(tensor: str, entry: object, name: str) -> tuple[str, tuple[int, ...], tuple[int, int]]:
    """Read one tensor's entry: dtype, shape and span. Every value is checked: the header may come from anyone."""
    if not isinstance(entry, dict):
        raise _damaged(name, tensor, "has an entry that is not an object")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    bits = _DTYPE_BITS.get(dtype) if isinstance(dtype, str) else None
    if bits is None or not isinstance(dtype, str):
        raise UnsupportedModel(f"{name}: tensor {_short(tensor)} has the unknown dtype {_short(str(dtype))}.")
    if not _are_sizes(shape):
        raise _damaged(name, tensor, "has a shape that is not a list of sizes")
    if len(shape) > MAX_RANK:
        raise _damaged(name, tensor, f"has {len(shape)} dimensions, more than {MAX_RANK}")
    if 0 in shape and max(shape) > MAX_EMPTY_SIZE:  # it costs no byte, and whoever builds by it makes it real
        raise _damaged(name, tensor, f"is empty and of shape {tuple(shape)}")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise _damaged(name, tensor, "has no valid data_offsets")
    begin, end = offsets
    if (end - begin) * 8 != math.prod(shape) * bits:
        raise _damaged(name, tensor, f"has {end - begin:,} bytes for a {dtype} of shape {tuple(shape)}")
    return dtype, tuple(shape), (begin, end)


def _are_sizes(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(size) is int and size >= 0 for size in value)


def _check_layout(spans: list[tuple[int, int]], data_bytes: int, name: str) -> None:
    position = 0
    for begin, end in sorted(spans):
        if begin != position:
            fault = "overlap" if begin < position else "leave a hole"
            raise CorruptFile(
                f"{name} is damaged: its tensors {fault} at byte {min(begin, position):,}; download it again."
            )
        position = end
    if data_bytes < position:
        raise CorruptFile(
            f"{name} is truncated: {data_bytes:,} of {position:,} bytes of weights are there; download it again."
        )
    if data_bytes > position:
        raise CorruptFile(f"{name} has {data_bytes - position:,} bytes after its last tensor; download it again.")


def _damaged(name: str, tensor: str, fault: str) -> CorruptFile:
    return CorruptFile(f"{name} is damaged: tensor {_short(tensor)} {fault}; download it again.")


def _short(text: str) -> str:
    printable = "".join(sign if sign.isprintable() else "?" for sign in text[:80])
    return printable + ("…" if len(text) > 80 else "")
