"""A safetensors file read once, from its beginning to its end, into memory of its own and in the dtype that is wanted.

A mapped file is taken in pages as they are touched, and a tensor that lies at any byte of it must be copied before a
CPU computes with it as with others. Read, each tensor is aligned, and no weight is touched twice: several threads take
the next piece of the file each, and cast it while it is in the processor's cache and others wait for the disk. The
memory is asked for in huge pages: in small ones half of the time goes into taking each of them from the system.
"""

import json
import os
import threading
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Self

import torch
from safetensors.torch import load_file

from worker.engine.huge_pages import in_huge_pages

_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
_FLOATS = frozenset({torch.float32, torch.float16, torch.bfloat16})
# Moving averages of training, which no image depends on: of a mapped file they would never be read.
_UNUSED = ("model_ema.",)
# Smaller tensors are left to the loader: numbers that say something of the model are read as they are written.
_LEAST_CAST_BYTES = 2**16
_PIECE_BYTES = 8 * 2**20
# Numbers that are cast at once. torch casts between the half types one by one, which is five times as slow as by
# float32 in between, within the processor's cache; the numbers are the same.
_CAST_AT_ONCE = 2**20
_THREADS = 4


@dataclass(frozen=True, slots=True)
class Wanted:
    """How a loader wants a file's weights: in `dtype`, but for names with one of `kept` between their dots."""

    dtype: torch.dtype
    kept: frozenset[str] = frozenset()

    def of(self, entry: "Entry") -> torch.dtype:
        """Return the dtype to read a tensor in."""
        casts = entry.dtype in _FLOATS and entry.end - entry.begin >= _LEAST_CAST_BYTES
        return self.dtype if casts and not self.kept & set(entry.name.split(".")) else entry.dtype


@dataclass(frozen=True, slots=True, order=True)
class Entry:
    """One tensor of a file, from byte `begin` to `end`."""

    begin: int
    end: int
    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]


def read_tensors(
    path: Path, wanted: Wanted | None = None, *, mapped: bool, given_up: threading.Event | None = None
) -> dict[str, torch.Tensor]:
    """Return the tensors of a file, in the wanted dtype where that is another for any.

    Else mapped, for a device that copies them anyway, or read into memory. Raises SafetensorError for a file that is
    none. Once it is `given_up`, numbers are left unread: nobody is to look at them.
    """
    entries = plain_entries(path)
    casts = bool(entries and wanted) and is_cast(entries or (), wanted)
    if entries is not None and (casts or not mapped):
        try:
            return _read(path, entries, wanted if casts else None, given_up or threading.Event())
        except EOFError:
            pass  # truncated meanwhile: its own library has the words for what is wrong
    mapping: dict[str, torch.Tensor] = load_file(path)
    return mapping


def mapped_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a file as views of one mapping: in a fifth of the library's time where there are thousands.

    Raises SafetensorError for a file that is none.
    """
    entries = plain_entries(path)
    if not entries or any(entry.begin % entry.dtype.itemsize for entry in entries):
        mapping: dict[str, torch.Tensor] = load_file(path)
        return mapping
    whole = torch.from_file(str(path), shared=False, size=entries[-1].end, dtype=torch.uint8)
    of_dtype = {dtype: whole[: len(whole) // dtype.itemsize * dtype.itemsize].view(dtype) for dtype in _dtypes(entries)}
    return {entry.name: _view(of_dtype[entry.dtype], entry) for entry in entries}


def _dtypes(entries: Collection[Entry]) -> set[torch.dtype]:
    return {entry.dtype for entry in entries}


def _view(whole: torch.Tensor, entry: Entry) -> torch.Tensor:
    strides, step = [], 1
    for size in reversed(entry.shape):
        strides.append(step)
        step *= max(size, 1)
    return whole.as_strided(entry.shape, strides[::-1], entry.begin // entry.dtype.itemsize)


def is_cast(entries: Collection[Entry], wanted: Wanted | None) -> bool:
    """True if some tensors are wanted in another dtype, and all are numbers as they are: none packed, none scaled."""
    if wanted is None or any(entry.dtype.itemsize == 1 and entry.dtype is not torch.bool for entry in entries):
        return False
    return any(wanted.of(entry) is not entry.dtype for entry in entries)


def plain_entries(path: Path) -> list[Entry] | None:
    """Return the tensors of a file in its order; None for one that is not plain in every way."""
    with path.open("rb", buffering=0) as file:
        length, whole = file.read(8), os.fstat(file.fileno()).st_size
        size = int.from_bytes(length, "little")
        if len(length) < 8 or size > min(whole - 8, 100_000_000):
            return None
        try:
            header = json.loads(file.read(size))
        except ValueError:
            return None
    entries: list[Entry] = []
    for name, entry in header.items() if isinstance(header, dict) else ():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        dtype = _DTYPES.get(entry["dtype"])
        if dtype is None or not 0 <= begin <= end <= whole - 8 - size:
            return None
        if end - begin != torch.Size(entry["shape"]).numel() * dtype.itemsize:
            return None
        entries.append(Entry(8 + size + begin, 8 + size + end, name, dtype, tuple(entry["shape"])))
    entries.sort(key=lambda entry: (entry.begin, entry.end))
    if not entries or entries[0].begin != 8 + size or any(a.end != b.begin for a, b in pairwise(entries)):
        return None
    return entries


@dataclass(frozen=True, slots=True)
class _Blocks:
    """Memory of one thread: the bytes of a piece, and the numbers of some of it in float32."""

    raw: torch.Tensor
    single: torch.Tensor

    @classmethod
    def made(cls) -> Self:
        """Return new ones."""
        return cls(torch.empty(_PIECE_BYTES, dtype=torch.uint8), torch.empty(_CAST_AT_ONCE))


@dataclass(frozen=True, slots=True)
class _Piece:
    """Some bytes of the file, as numbers of `dtype`, and where they belong."""

    begin: int
    dtype: torch.dtype
    place: torch.Tensor

    def read(self, file: int, blocks: _Blocks) -> None:
        """Read it: straight into its place, or through `blocks` where it is cast on its way."""
        casts = self.place.dtype is not self.dtype
        raw = blocks.raw[: self.place.numel() * self.dtype.itemsize] if casts else self.place.view(torch.uint8)
        view, done = memoryview(raw.numpy()), 0
        while done < len(view):
            count = os.preadv(file, [view[done:]], self.begin + done)
            if not count:
                raise EOFError
            done += count
        if casts:
            _cast(raw.view(self.dtype), self.place, blocks.single)


def _cast(numbers: torch.Tensor, place: torch.Tensor, single: torch.Tensor) -> None:
    if torch.float32 in (numbers.dtype, place.dtype):
        place.copy_(numbers)
        return
    for some, there in zip(numbers.split(len(single)), place.split(len(single)), strict=True):
        there.copy_(single[: len(some)].copy_(some))


def _read(
    path: Path, entries: Collection[Entry], wanted: Wanted | None, given_up: threading.Event
) -> dict[str, torch.Tensor]:
    used = [entry for entry in entries if not entry.name.startswith(_UNUSED)]
    tensors = {
        entry.name: torch.empty(entry.shape, dtype=entry.dtype if wanted is None else wanted.of(entry))
        for entry in used
    }
    in_huge_pages(tensors.values())
    pieces, lock = _pieces(used, tensors), threading.Lock()

    def work() -> None:
        blocks = _Blocks.made()
        with path.open("rb", buffering=0) as file:
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            while not given_up.is_set():
                with lock:
                    piece = next(pieces, None)
                if piece is None:
                    return
                piece.read(file.fileno(), blocks)

    size = sum(entry.end - entry.begin for entry in used)
    number = min(_THREADS, os.cpu_count() or 1, 1 + size // _PIECE_BYTES)
    with ThreadPoolExecutor(number, thread_name_prefix="read weights") as pool:
        for done in [pool.submit(work) for _ in range(number)]:
            done.result()
    return tensors


def _pieces(entries: Collection[Entry], tensors: dict[str, torch.Tensor]) -> Iterator[_Piece]:
    """Yield the pieces in the order of the file, so that its disk turns one way."""
    for entry in entries:
        place, size = tensors[entry.name].reshape(-1), _PIECE_BYTES // entry.dtype.itemsize
        for start in range(0, place.numel(), size):
            begin = entry.begin + start * entry.dtype.itemsize
            yield _Piece(begin, entry.dtype, place[start : start + size])
