"""The turns of a server's event loop: the processor's time that each takes, which no busy machine adds to.

While one turn lasts nobody else is served, a health check neither. A worker's process measures itself
(`tests/fakes/served_worker.py`); `served` starts one.
"""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fakes.engine import shelf
from tests.ports import free_port

LONG_S = 0.025
"""A turn that is long: two of them behind each other are all that a health check may wait for."""
PROJECT = Path(__file__).resolve().parents[2]


class Turns:
    """Measures the turns of a loop, in its own thread: from one call that it makes soon to the next."""

    def __init__(self, loop: asyncio.AbstractEventLoop, connections: Any) -> None:
        self._loop = loop
        self._connections = connections
        self._measures = False
        self._seconds: list[float] = []
        self._accepted: list[int] = []

    def begin(self) -> None:
        """Measure from now on. Called from another thread."""
        self._measures, self._seconds, self._accepted = True, [], []
        self._loop.call_soon_threadsafe(self._turn, None, 0)

    def end(self) -> dict[str, Any]:
        """Measure no more; return the seconds of the longest turns, their number, and the most connections of one."""
        self._measures = False
        longest = sorted(self._seconds, reverse=True)
        return {"count": len(longest), "longest": longest[:20], "accepted": max(self._accepted, default=0)}

    def _turn(self, began: float | None, known: int) -> None:
        now, met = time.thread_time(), self._connections()
        if began is not None:
            self._seconds.append(now - began)
            self._accepted.append(met - known)
        if self._measures:
            self._loop.call_soon(self._turn, time.thread_time(), met)


@dataclass(frozen=True)
class Served:
    """A server that `served` started."""

    process: "subprocess.Popen[str]"
    port: int

    def tell(self, word: str) -> dict[str, Any]:
        """Say a word to the process, and return its answer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer


@contextmanager
def served(folder: Path, **env: str) -> Iterator[Served]:
    """Start a worker with an engine that pretends, on default settings but for `env`, and wait until it answers."""
    port = free_port()
    settings = {
        "STANDALONE_MODE": "1", "API_HOST": "127.0.0.1", "API_PORT": str(port), "DEVICE": "cpu", "HOME": str(folder),
        "MODELS_YAML": str(shelf(folder)), "DEFAULT_MODEL": "tiny", "VOLUME_DIR": str(folder / "volume"),
        "OFFLINE": "1", "PATH": os.environ["PATH"], "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    with subprocess.Popen(
        [sys.executable, str(PROJECT / "tests/fakes/served_worker.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=folder,
        env=settings | env,
    ) as process:
        try:
            assert process.stdout is not None
            while (line := process.stdout.readline()) != "serving\n":
                assert line, "the worker did not start"
            yield Served(process, port)
        finally:
            process.kill()
