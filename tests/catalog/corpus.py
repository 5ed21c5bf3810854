"""The stripped headers of tests/headers, and builders of headers and files."""

import gzip
import json
import struct
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from worker.core.model import TensorIndex, tensor_bytes

HEADERS = Path(__file__).parents[1] / "headers"
NAMES = tuple(sorted(path.name.removesuffix(".json.gz") for path in HEADERS.glob("*.json.gz")))
_BYTES = {"F32": 4, "I64": 8, "F16": 2, "BF16": 2, "F8_E4M3": 1, "U8": 1, "I8": 1}


@cache
def stored(name: str) -> TensorIndex:
    """Return one stored header."""
    content = json.loads(gzip.decompress((HEADERS / f"{name}.json.gz").read_bytes()))
    tensors = {key: (dtype, tuple(shape)) for key, (dtype, shape) in content["tensors"].items()}
    return TensorIndex(
        tensors=tensors, metadata=content["metadata"], container=content.get("container", "safetensors"), file_bytes=0
    )


def index(tensors: Mapping[str, tuple[int, ...]], dtype: str = "F16", **metadata: str) -> TensorIndex:
    """Return a header made of these shapes."""
    named = {name: (dtype, shape) for name, shape in tensors.items()}
    return TensorIndex(tensors=named, metadata=metadata, container="safetensors", file_bytes=0)


def header_of(source: TensorIndex) -> tuple[bytes, int]:
    """Return the bytes that a safetensors file with this header starts with, and the size of the whole file."""
    entries: dict[str, object] = {"__metadata__": dict(source.metadata)} if source.metadata else {}
    at = 0
    for name, (dtype, shape) in source.tensors.items():
        size = _BYTES[dtype]
        for side in shape:
            size *= side
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text, 8 + len(text) + at


def sparse_file(path: Path, source: TensorIndex) -> Path:
    """Write a file of the right size whose weights are a hole: it costs no disk, and reading it would take minutes."""
    head, size = header_of(source)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size)
    return path


_GGUF_TYPES = {"F32": 0, "F16": 1, "Q8_0": 8, "Q4_K": 12, "Q5_K": 13, "BF16": 30}


def gguf_of(source: TensorIndex, pairs: Mapping[str, object] | None = None) -> tuple[bytes, int]:
    """Return the bytes that a GGUF file with these tensors starts with, and the size of the whole file."""
    told: dict[str, object] = dict(source.metadata) | dict(pairs or {})
    out = b"GGUF" + struct.pack("<IQQ", 3, len(source.tensors), len(told))
    for key, value in told.items():
        out += _gguf_text(key) + _gguf_value(value)
    at = 0
    for name, (dtype, shape) in source.tensors.items():
        out += _gguf_text(name) + struct.pack("<I", len(shape))
        out += b"".join(struct.pack("<Q", size) for size in reversed(shape))
        out += struct.pack("<IQ", _GGUF_TYPES[dtype], at)
        at += -(-tensor_bytes(dtype, shape) // 32) * 32
    return out, -(-len(out) // 32) * 32 + at


def _gguf_text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _gguf_value(value: object) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", 8) + _gguf_text(value)
    if isinstance(value, int):
        return struct.pack("<Ii", 5, value)
    assert isinstance(value, list)
    inner = _gguf_value(value[0])[:4] if value else struct.pack("<I", 5)
    items = b"".join(_gguf_value(item)[4:] for item in value)
    return struct.pack("<I", 9) + inner + struct.pack("<Q", len(value)) + items
