"""What was compiled, on the volume: the next worker of the same device and libraries need not compile it again.

What torch keeps of a compilation are pickles and native code: to read it is to run it. So the cache is off unless an
operator gives workers a key that is not on the volume. Each file is signed with it (HMAC-SHA256, over its name too),
and one whose signature is wrong is never handed to torch: who can write to the volume, but has no key, can run nothing.

A file holds all that a process had compiled until then, and is published by a rename. The files that were used longest
ago make room for new ones.
"""

import hashlib
import hmac
import logging
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import torch

_LOG = logging.getLogger(__name__)
_MARK = b"imgworker-compiled-1\n"
_SIGNATURE_BYTES = 32
_ENDING = ".compiled"
_LOOK_EVERY_S = 0.05


class CompileCache:
    """Compiled code in `folder`, signed with `key`; at most `max_bytes`. Used from the engine's thread only."""

    def __init__(self, folder: Path, key: bytes, max_bytes: int) -> None:
        self._folder = folder
        self._key = key
        self._max_bytes = max_bytes
        self._reading: dict[str, Future[bytes | None]] = {}  # once in a process for each name
        self._sizes: dict[str, int] = {}  # of what is on the volume by this process's knowledge
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="compile cache")

    def load(self, name: str, check: Callable[[], None]) -> None:
        """Have torch find what workers have compiled for `name`. Nothing, and nothing right, is no error.

        `check` is called while the file is read, and may raise: it goes on being read.
        """
        if name in self._sizes:
            return
        if name not in self._reading:
            self._reading[name] = self._thread.submit(self._read, name)
        while not self._reading[name].done():
            check()
            wait([self._reading[name]], _LOOK_EVERY_S)
        content = self._reading[name].result()
        self._sizes[name] = 0 if content is None else len(content)
        if content is not None:
            torch.compiler.load_cache_artifacts(content)

    def save(self, name: str) -> "Future[None] | None":
        """Have what this process has compiled written down for `name`, in another thread; None if that is no news."""
        saved = torch.compiler.save_cache_artifacts()
        if saved is None or len(saved[0]) == self._sizes.get(name) or len(saved[0]) >= self._max_bytes:
            return None
        self._sizes[name] = len(saved[0])  # a process only ever adds to what it has compiled
        return self._thread.submit(self._write, name, saved[0])

    def _read(self, name: str) -> bytes | None:
        path = self._path(name)
        try:
            if path.stat().st_size > self._max_bytes:
                return None
            signed = path.read_bytes()
        except OSError:  # none yet
            return None
        with suppress(OSError):  # a volume that cannot be written: then it is not the last that was used
            os.utime(path)
        signature, content = signed[:_SIGNATURE_BYTES], signed[_SIGNATURE_BYTES:]
        if hmac.compare_digest(signature, self._signature(name, content)):
            return content
        _LOG.warning("a file of compiled code on the volume was not written with COMPILE_CACHE_KEY; it is not read")
        return None

    def _write(self, name: str, content: bytes) -> None:
        path = self._path(name)
        beside = path.with_name(f".{uuid4().hex}.part")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._make_room(_SIGNATURE_BYTES + len(content), besides=path)
            beside.write_bytes(self._signature(name, content) + content)
            beside.replace(path)
        except OSError as error:  # a volume that is full or read-only: the next worker compiles it again
            _LOG.warning("what was compiled cannot be written: %s", error.strerror)
            with suppress(OSError):
                beside.unlink()

    def _make_room(self, size: int, besides: Path) -> None:
        """Remove the files that were used longest ago until `size` bytes more are within the limit."""
        files = []
        for path in self._folder.iterdir():
            with suppress(OSError):  # another worker was faster
                if path != besides:
                    state = path.stat()
                    files.append((state.st_mtime, state.st_size, path))
        held = sum(each for _, each, _ in files)
        for _, each, path in sorted(files):
            if held + size <= self._max_bytes:
                return
            with suppress(OSError):
                path.unlink()
            held -= each

    def _signature(self, name: str, content: bytes) -> bytes:
        digest = hmac.new(self._key, _MARK + name.encode() + b"\n", hashlib.sha256)
        digest.update(content)
        return digest.digest()

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}{_ENDING}"
