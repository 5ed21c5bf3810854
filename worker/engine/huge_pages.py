"""Memory in pages of 2 MB, where Linux gives them when asked: a model's weights in a thousandth of the page faults."""

import ctypes
import mmap
from collections.abc import Iterable
from functools import cache
from typing import Any

import torch

_HUGE = 2 * 2**20
# Below this distance between two tensors lie a page's end and what the allocator notes before each.
_GAP = 2 * mmap.PAGESIZE


def in_huge_pages(tensors: Iterable[torch.Tensor]) -> None:
    """Ask for huge pages for new tensors that nothing was written into yet. Where there are none, nothing happens."""
    advise, advice = _madvise(), getattr(mmap, "MADV_HUGEPAGE", None)
    if advise is None or advice is None:
        return
    for begin, end in _ranges(tensors):
        if end - begin >= _HUGE:
            advise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), ctypes.c_int(advice))


def _ranges(tensors: Iterable[torch.Tensor]) -> list[tuple[int, int]]:
    """Return the addresses of whole pages, first and behind the last: neighbours in memory make one range."""
    ranges: list[tuple[int, int]] = []
    for begin, end in sorted((tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes) for tensor in tensors):
        begin, end = begin // mmap.PAGESIZE * mmap.PAGESIZE, -(-end // mmap.PAGESIZE) * mmap.PAGESIZE
        if ranges and begin - ranges[-1][1] <= _GAP:
            ranges[-1] = ranges[-1][0], max(end, ranges[-1][1])
        else:
            ranges.append((begin, end))
    return ranges


@cache
def _madvise() -> Any:
    try:
        return ctypes.CDLL(None).madvise
    except (AttributeError, OSError, TypeError):  # no libc with it: Windows
        return None
