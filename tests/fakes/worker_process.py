"""A worker as the platform starts it: a real ``python -u handler.py`` in a process group of its own."""

import codecs
import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.waiting import LIMIT_S, until

_KEPT = ("PATH", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV", "PYTHONPATH", "CUDA_VISIBLE_DEVICES")
_KERNELS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_CBWR")  # whose images are compared bit for bit


class WorkerProcess:
    """A script run by this Python with a clean environment; leaving the context kills whatever is left of it.

    Of the test's own environment only what a process needs to start is passed on, so that a variable set on a
    developer's machine cannot change a result. ``env`` is laid over that.
    """

    def __init__(
        self,
        script: str | Path,
        *args: str,
        env: Mapping[str, str] | None = None,
        cwd: str | Path | None = None,
    ) -> None:
        self.script = Path(script).resolve()
        self.args = args
        # one thread: several workers share the machine, and a tiny model gains nothing from more
        kept = {name: os.environ[name] for name in _KEPT + _KERNELS if name in os.environ} | {"OMP_NUM_THREADS": "1"}
        self.env = kept | dict(env or {})
        self.cwd = Path(cwd) if cwd is not None else self.script.parent
        self.started_at = 0.0
        self._chunks: list[str] = []
        self._ended = False
        self._news = threading.Condition()

    def __enter__(self) -> Self:
        self.started_at = time.monotonic()
        # a session of its own: the SDK's ping process outlives a killed worker, and only its group still finds it
        self._process = subprocess.Popen(
            [sys.executable, "-u", str(self.script), *self.args],
            cwd=self.cwd,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, name="worker-output", daemon=True)
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        self._reader.join(timeout=5)
        if self._process.stdout is not None:
            self._process.stdout.close()

    @property
    def pid(self) -> int:
        """Process id of the main process, and of its group."""
        return self._process.pid

    @property
    def output(self) -> str:
        """Everything written so far, stdout and stderr in order."""
        return "".join(self._chunks)

    @property
    def returncode(self) -> int | None:
        """Exit status of the main process; None while it runs."""
        return self._process.poll()

    def terminate(self) -> None:
        """Send SIGTERM to the main process alone, as a container runtime does."""
        self._process.terminate()

    def kill(self) -> None:
        """Kill the whole process group and collect the main process."""
        # the group's id stays taken while any member lives; without one there is nothing to kill
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def wait(self, timeout: float = LIMIT_S) -> int:
        """Wait for the main process to end by itself and return its exit status; raise TimeoutError otherwise."""
        try:
            status = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise TimeoutError(f"still running after {timeout} s:\n{self.output[-2000:]}") from None
        until(self._is_read)
        return status

    def wait_for_output(self, text: str, timeout: float = LIMIT_S) -> str:
        """Wait until a text was written and return the output; raise TimeoutError otherwise."""
        with self._news:
            self._news.wait_for(lambda: text in self.output or self._ended, timeout)
            if text not in self.output:
                raise TimeoutError(f"{text!r} was not written:\n{self.output[-2000:]}")
        return self.output

    def _is_read(self) -> bool:
        """Tell whether all that the pipe holds was read. A surviving child may keep it open."""
        assert self._process.stdout is not None
        with self._news:
            return self._ended or not select.select([self._process.stdout], [], [], 0)[0]

    def _read(self) -> None:
        stream = self._process.stdout
        assert stream is not None
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        while not self._ended:
            select.select([stream], [], [])
            with self._news:
                chunk = os.read(stream.fileno(), 65536)
                self._chunks.append(decoder.decode(chunk))
                self._ended = not chunk
                self._news.notify_all()
