"""A safetensors file read once, from its beginning to its end, into memory of its own.

A mapped file is taken in pages as they are touched, and a tensor that lies at any byte of it must be copied before a
CPU computes with it as with others. Read, each tensor is aligned, and no weight is touched twice.
"""

import json
import os
from pathlib import Path

import torch
from safetensors.torch import load_file

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
# Moving averages of training, which no image depends on: of a mapped file they would never be read.
_UNUSED = ("model_ema.",)


def read_tensors(path: Path, *, mapped: bool) -> dict[str, torch.Tensor]:
    """Return the tensors of a file: mapped, for a device that copies them anyway, or read into memory.

    Raises SafetensorError for a file that is none.
    """
    tensors = None if mapped else _read(path)
    return load_file(path) if tensors is None else tensors


def _read(path: Path) -> dict[str, torch.Tensor] | None:
    """Read a file; None for one that is not plain in every way: its own library has the words for what is wrong."""
    tensors: dict[str, torch.Tensor] = {}
    with path.open("rb", buffering=0) as file:
        entries = _header(file.read(8), file.fileno())
        if entries is None:
            return None
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        for begin, end, name, dtype, shape in entries:
            tensor = torch.empty(shape, dtype=_DTYPES[dtype])
            if tensor.nbytes != end - begin:
                return None
            if name.startswith(_UNUSED):
                continue
            view = memoryview(tensor.reshape(-1).view(torch.uint8).numpy()) if tensor.numel() else memoryview(b"")
            file.seek(begin)
            done = 0
            while done < len(view):
                if not (count := file.readinto(view[done:])):
                    return None
                done += count
            tensors[name] = tensor
    return tensors


def _header(length: bytes, descriptor: int) -> list[tuple[int, int, str, str, list[int]]] | None:
    """Return begin, end, name, dtype and shape of each tensor in the order of the file; None if one is unusual."""
    size = int.from_bytes(length, "little")
    whole = os.fstat(descriptor).st_size
    if len(length) < 8 or size > min(whole - 8, 100_000_000):
        return None
    try:
        header = json.loads(os.pread(descriptor, size, 8))
    except ValueError:
        return None
    entries: list[tuple[int, int, str, str, list[int]]] = []
    for name, entry in header.items() if isinstance(header, dict) else ():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        if entry["dtype"] not in _DTYPES or not 0 <= begin <= end <= whole - 8 - size:
            return None
        entries.append((8 + size + begin, 8 + size + end, name, entry["dtype"], entry["shape"]))
    entries.sort()
    spans = [8 + size, *(end for _, end, *_ in entries)]
    return entries if all(begin == at for (begin, *_), at in zip(entries, spans, strict=False)) else None
