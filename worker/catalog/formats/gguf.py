"""A GGUF file's header: key-value pairs and tensor infos, from a prefix that may turn out too short.

`GGUF`, u32 version, u64 tensor count, u64 pair count, the pairs, the tensor infos, padding, the weights; everything
little-endian. No field holds the header's length: one reads on until the header is complete, and `gguf_end` tells how
far. Strings, counts and nesting are bounded, since the file may come from anyone.
"""

import math
import struct
from collections.abc import Mapping

from worker.core.errors import CorruptFile, UnsupportedModel
from worker.core.model import TensorIndex, tensor_bytes

MAGIC = b"GGUF"
MAX_HEADER_BYTES = 32 * 2**20  # a text encoder carries its vocabulary; the largest known need 16 MiB
MAX_TENSORS = 50_000
MAX_PAIRS = 10_000
MAX_ITEMS = 1_000_000  # texts and lists in all arrays together; a vocabulary of 262,144 has 515,000 merges
MAX_TEXT_BYTES = 2**20
MAX_NAME = 512
MAX_RANK = 8
_FIRST_READ = 2**20  # enough for a denoiser, whose pairs are few
_VERSIONS = (2, 3)

# ggml_type of llama.cpp -> our name for it; core.model knows its size
GGUF_TYPES: Mapping[int, str] = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 9: "Q8_1", 10: "Q2_K", 11: "Q3_K",
    12: "Q4_K", 13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 16: "IQ2_XXS", 17: "IQ2_XS", 18: "IQ3_XXS", 19: "IQ1_S",
    20: "IQ4_NL", 21: "IQ3_S", 22: "IQ2_S", 23: "IQ4_XS", 24: "I8", 25: "I16", 26: "I32", 27: "I64", 28: "F64",
    29: "IQ1_M", 30: "BF16", 34: "TQ1_0", 35: "TQ2_0", 39: "MXFP4", 40: "NVFP4",
}  # fmt: skip
# gguf_metadata_value_type -> struct format; 8 is a string, 9 an array
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_LENGTH = struct.Struct("<Q")
_KEPT_BYTES = 1_024  # of a text; longer ones are chat templates, which nobody asks for
_ORIGINAL_SHAPE = "comfy.gguf.orig_shape."  # ComfyUI-GGUF flattens shapes that GGUF cannot hold, and notes them here


class _TooShortError(Exception):
    """The prefix ends inside the header; the reader needs the first `needed` bytes to go on."""

    def __init__(self, needed: int) -> None:
        super().__init__(needed)
        self.needed = needed


class _Reader:
    """Reader of a prefix that never goes past its end."""

    def __init__(self, prefix: bytes, name: str) -> None:
        self._bytes = prefix
        self._name = name
        self._items = 0
        self.at = 0

    def skip(self, count: int) -> None:
        end = self.at + count
        if end > MAX_HEADER_BYTES:
            raise UnsupportedModel(f"{self._name} has a header of more than {MAX_HEADER_BYTES:,} bytes, the limit.")
        if end > len(self._bytes):
            raise _TooShortError(end)
        self.at = end

    def take(self, count: int) -> bytes:
        begin = self.at
        self.skip(count)
        return self._bytes[begin : self.at]

    def number(self, form: str) -> int | float | bool:
        value: int | float | bool = struct.unpack(form, self.take(struct.calcsize(form)))[0]
        return value

    def count(self, form: str = "<Q") -> int:
        return int(self.number(form))

    def text(self, limit: int) -> str:
        return self.take(self._length(limit)).decode("utf-8", "replace")

    def _skip_texts(self, count: int) -> None:
        """Go past the texts of a vocabulary: a million of them, so each is a few operations only."""
        data, at, read = self._bytes, self.at, _LENGTH.unpack_from
        last = len(data) - _LENGTH.size
        for _ in range(count):
            if at > last:
                break
            self.at = at
            at += _LENGTH.size + read(data, at)[0]
        else:
            self.skip(at - self.at)
            return
        self.skip(self._length(MAX_HEADER_BYTES))  # the last one, which goes beyond the end
        self.skip(_LENGTH.size)

    def _short_text(self) -> str | None:
        length = self._length(MAX_TEXT_BYTES)
        if length <= _KEPT_BYTES:
            return self.take(length).decode("utf-8", "replace")
        self.skip(length)
        return None

    def _length(self, limit: int) -> int:
        length = self.count()
        if length > limit:
            raise self.damaged(f"has a string of {length:,} bytes where at most {limit:,} make sense")
        return length

    def value(self, kind: int, depth: int = 0) -> object:
        """Read one value; of an array only numbers are kept, and only short ones."""
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self._short_text()
        if kind != _ARRAY or depth > 0:
            raise self.damaged(f"has a value of the unknown type {kind}" if kind != _ARRAY else "nests its arrays")
        inner, length = self.count("<I"), self.count()
        if inner in _SCALARS and length > MAX_RANK:
            self.skip(length * struct.calcsize(_SCALARS[inner]))
            return None
        self._items += length
        if self._items > MAX_ITEMS:
            raise UnsupportedModel(f"{self._name} lists more than {MAX_ITEMS:,} values in its header, the limit.")
        if length <= MAX_RANK:
            return tuple([self.value(inner, depth + 1) for _ in range(length)])
        if inner != _STRING:
            self.value(inner, depth + 1)  # which refuses it
        self._skip_texts(length)
        return None

    def damaged(self, fault: str) -> CorruptFile:
        return CorruptFile(f"{self._name} is damaged: its GGUF header {fault}; download it again.")


def gguf_end(prefix: bytes, file_bytes: int, name: str) -> int:
    """Return the number of leading bytes that hold the header, or to read before asking again if `prefix` is too short.

    The result is larger than `prefix` as long as more bytes are needed. Raises CorruptFile and UnsupportedModel.
    """
    try:
        return _parse(prefix, file_bytes, name)[1]
    except _TooShortError as short:
        if short.needed > file_bytes:
            raise _truncated(name, short.needed, file_bytes) from None
        return min(max(short.needed, 4 * len(prefix), _FIRST_READ), file_bytes, MAX_HEADER_BYTES)


def parse_gguf(prefix: bytes, file_bytes: int, name: str) -> TensorIndex:
    """Parse and check a GGUF header; shapes come in torch's order. `prefix` holds all of it.

    Metadata holds every pair that is a number or a text, as text. Raises CorruptFile and UnsupportedModel.
    """
    try:
        return _parse(prefix, file_bytes, name)[0]
    except _TooShortError as short:
        if short.needed > file_bytes:
            raise _truncated(name, short.needed, file_bytes) from None
        raise CorruptFile(f"{name} answered {len(prefix):,} bytes, too few for its header; read it again.") from None


def _parse(prefix: bytes, file_bytes: int, name: str) -> tuple[TensorIndex, int]:
    reader = _Reader(prefix, name)
    reader.take(len(MAGIC))
    version = reader.count("<I")
    if version not in _VERSIONS:
        raise UnsupportedModel(f"{name} is a GGUF file of version {version}; use one of version 2 or 3.")
    tensor_count, pair_count = reader.count(), reader.count()
    if tensor_count > MAX_TENSORS:
        raise UnsupportedModel(f"{name} lists {tensor_count:,} tensors; the limit is {MAX_TENSORS:,}.")
    if pair_count > MAX_PAIRS:
        raise UnsupportedModel(f"{name} lists {pair_count:,} pairs of metadata; the limit is {MAX_PAIRS:,}.")
    if tensor_count == 0:
        raise UnsupportedModel(f"{name} holds no tensors; name a file with weights.")
    pairs: dict[str, object] = {}
    for _ in range(pair_count):
        key = reader.text(MAX_NAME)
        pairs[key] = reader.value(reader.count("<I"))
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    last = 0
    for _ in range(tensor_count):
        tensor, dtype, shape, offset = _tensor(reader)
        if tensor in tensors:
            raise reader.damaged(f"lists {tensor[:80]} twice")
        last = max(last, offset + tensor_bytes(dtype, shape))
        tensors[tensor] = (dtype, _original(pairs.get(_ORIGINAL_SHAPE + tensor), shape))
    end = _aligned(reader.at, pairs.get("general.alignment"))
    if end + last > file_bytes:
        raise _truncated(name, end + last, file_bytes)
    metadata = {key: str(value) for key, value in pairs.items() if isinstance(value, str | int | float)}
    return TensorIndex(tensors, metadata, "gguf", file_bytes), reader.at


def _tensor(reader: _Reader) -> tuple[str, str, tuple[int, ...], int]:
    name, rank = reader.text(MAX_NAME), reader.count("<I")
    if rank > MAX_RANK:
        raise reader.damaged(f"gives {name[:80]} {rank} dimensions, more than {MAX_RANK}")
    sizes = tuple(reader.count() for _ in range(rank))
    kind, offset = reader.count("<I"), reader.count()
    if math.prod(sizes) > 2**48:
        raise reader.damaged(f"gives {name[:80]} the impossible shape {sizes}")
    if kind not in GGUF_TYPES:
        raise UnsupportedModel(f"{name[:80]} has the unknown GGUF type {kind}; use a file of a common type, Q8_0 say.")
    return name, GGUF_TYPES[kind], sizes[::-1], offset


def _original(noted_shape: object, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape that ComfyUI-GGUF noted, if it holds as many numbers as the stored one."""
    if isinstance(noted_shape, tuple) and all(type(size) is int and size >= 0 for size in noted_shape):
        return noted_shape if math.prod(noted_shape) == math.prod(shape) else shape
    return shape


def _aligned(position: int, alignment: object) -> int:
    step = alignment if type(alignment) is int and 0 < alignment <= 2**16 else 32
    return -(-position // step) * step


def _truncated(name: str, needed: int, file_bytes: int) -> CorruptFile:
    return CorruptFile(
        f"{name} is truncated: {needed:,} bytes belong to it and the file has {file_bytes:,}; download it again."
    )
