"""Files fetched side by side: bytes counted, and given up at once when the job is stopped or one of them fails."""

import hashlib
import queue
import threading
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from worker.core.job import StopSignal
from worker.core.result import Emit, Progress

_POLL_S = 0.1
_BLOCK = 2**22


def run_all(tasks: Iterable[Callable[[], object]], stop: StopSignal, workers: int = 1) -> None:
    """Run every task in up to `workers` threads; raises the first failure, or what `stop` raises, without delay.

    The threads are daemons and are left behind: a read that hangs must hold up neither the job nor the end of the
    process. They take no new task once this returns.
    """
    todo: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
    for task in tasks:
        todo.put(task)
    failures: list[BaseException] = []
    given_up = threading.Event()

    def work() -> None:
        while not given_up.is_set():
            try:
                todo.get_nowait()()
            except queue.Empty:
                return
            except BaseException as error:
                failures.append(error)
                given_up.set()

    threads = [threading.Thread(target=work, name="download", daemon=True) for _ in range(min(workers, todo.qsize()))]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            while thread.is_alive() and not failures:
                stop.check()
                thread.join(_POLL_S)
    finally:
        given_up.set()
    if failures:
        raise failures[0]


class ByteMeter:
    """Tells of the bytes of parallel downloads, and stops them when the job is stopped or `close` was called."""

    def __init__(self, label: str, sizes: Mapping[str, int], emit: Emit, stop: StopSignal) -> None:
        self.received = 0  # over the wire, repeated attempts included
        self._label, self._emit, self._stop = label, emit, stop
        self._sizes = dict(sizes)
        self._total = sum(sizes.values())
        self._done: dict[str, int] = {}
        self._lock = threading.Lock()
        self._closed = False

    def close(self) -> None:
        """Let no download go on."""
        self._closed = True

    def check(self) -> None:
        """Raise when the download has to end."""
        self._stop.check()
        if self._closed:
            raise InterruptedError("the download was given up")

    def finished(self, name: str) -> None:
        """`name` is on disk, whether it was fetched or lay there already."""
        self._advance(name, self._sizes[name], 0)

    def bar(self, name: str) -> type[Any]:
        """A tqdm class for `name`, which is what huggingface_hub reports bytes through."""
        from tqdm import tqdm

        meter = self

        class Bar(tqdm):  # type: ignore[type-arg,unused-ignore]
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                kwargs.pop("name", None)
                super().__init__(*args, **{**kwargs, "disable": True})
                self.count = int(kwargs.get("initial") or 0)

            def update(self, n: float | None = 1) -> bool | None:
                self.count += int(n or 0)
                meter._advance(name, self.count, int(n or 0))
                meter.check()
                return None

        return Bar

    def _advance(self, name: str, done: int, received: int) -> None:
        with self._lock:  # held while telling, so that a listener never sees the count go back
            self.received += max(received, 0)
            self._done[name] = min(max(done, self._done.get(name, 0)), self._sizes[name])
            if not self._closed:
                self._emit(Progress("download", sum(self._done.values()), self._total, self._label))


def sha256_of(path: Path, check: Callable[[], None]) -> str:
    """The digest of a file; `check` is called after every few megabytes and may raise."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
            check()
    return digest.hexdigest()
