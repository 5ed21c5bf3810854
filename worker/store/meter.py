"""Work side by side with one progress: bytes counted, and given up at once when the job is stopped or a part fails."""

import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextvars import copy_context

from worker.core.result import Emit, Progress
from worker.core.turn import StopSignal

_POLL_S = 0.1
_REPORT_EVERY_S = 0.1  # a gigabyte is some 16,000 pieces, and the listener has other things to do


class GivenUp(Exception):
    """The end of a download whose job has ended."""


def run_all(tasks: Iterable[Callable[[], object]], stop: StopSignal, workers: int = 1) -> None:
    """Run every task in up to `workers` threads; raises the first failure, or that of `stop`, without delay.

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

    threads = [
        threading.Thread(target=copy_context().run, args=(work,), name="download", daemon=True)
        for _ in range(min(workers, todo.qsize()))
    ]
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
    """Reports the bytes of parallel downloads, and stops them when the job is stopped or `close` was called."""

    def __init__(self, label: str, sizes: Mapping[str, int], emit: Emit, stop: StopSignal) -> None:
        self.received = 0  # over the wire, repeated attempts included
        self._label, self._emit, self._stop = label, emit, stop
        self._sizes = dict(sizes)
        self._done: dict[str, int] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._reported_at = -_REPORT_EVERY_S

    def close(self) -> None:
        """Let no download go on."""
        self._closed = True

    def check(self) -> None:
        """Raise when the download has to end."""
        self._stop.check()
        if self._closed:
            raise GivenUp

    def advance(self, name: str, done: int, received: int = 0, size: int | None = None) -> None:
        """Count `done` bytes of `name` on disk, whoever fetched them; this job received `received` of them just now.

        `size` is the server's figure for a file whose size nobody knew before.
        """
        with self._lock:  # held while reporting, so that a listener never sees the count go back
            self.received += received
            if size is not None:
                self._sizes.setdefault(name, size)
            self._done[name] = max(min(done, self._sizes.get(name, done)), self._done.get(name, 0))
            unknown = sum(count for file, count in self._done.items() if file not in self._sizes)
            step, total = sum(self._done.values()), sum(self._sizes.values()) + unknown
            now = time.monotonic()
            if not self._closed and (now - self._reported_at >= _REPORT_EVERY_S or step == total):
                self._reported_at = now
                self._emit(Progress("download", step, total, self._label))

    def finished(self, name: str) -> None:
        """Count `name` as complete on disk, fetched or not."""
        self.advance(name, self._sizes.get(name, 0))
