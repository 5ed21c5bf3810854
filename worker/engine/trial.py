"""Trials: whether a foreign model's configs can be made into a model at all, found out where it can hang nobody.

A config of a few bytes may describe a million layers, and a tokenizer may take minutes, inside of code that nothing can
interrupt. So what nobody has vouched for is tried once in a process that can be killed (`trial_child.py`), outside of
the engine's thread, before it is loaded. What passed is remembered on the volume, for these files and libraries.
"""

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from worker import __version__
from worker.core.errors import CorruptFile, LoadFailed, WorkerError
from worker.core.turn import StopSignal

_CHILD = Path(__file__).with_name("trial_child.py")
_PROJECT = Path(__file__).resolve().parents[2]
_POLL_S = 0.25
_START_S = 180.0  # for the child's imports, on a slow disk
_REMEMBERED_S = 600.0  # for which a refusal holds without another trial
_AT_ONCE = 2
_READ_BYTES = 2**20
_LIBRARIES = ("torch", "diffusers", "transformers", "tokenizers", "accelerate", "spandrel")


@dataclass(frozen=True, slots=True)
class TrialLimits:
    """The most that one trial takes: seconds of processor and of clock, and MiB beside the libraries themselves."""

    cpu_s: int = 45
    wall_s: int = 60
    memory_mib: int = 2_048


class Forks:
    """The process that forks for every trial: started when it is first needed, and anew once it has ended."""

    def __init__(self, limits: TrialLimits) -> None:
        self._limits = limits
        self._lock = threading.Lock()
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def connect(self) -> socket.socket:
        """Return a connection to a fork of its own, which may still be about to start."""
        ours, theirs = socket.socketpair()
        with self._lock, theirs:
            for _ in range(2):
                try:
                    socket.send_fds(self._running(), [b"1"], [theirs.fileno()])
                    return ours
                except OSError:  # it ended by itself
                    self._stop()
        raise _not_started()

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._stop()

    def _running(self) -> socket.socket:
        if self._process is not None and self._process.poll() is not None:
            self._stop()
        if self._control is None:
            self._control, theirs = socket.socketpair()
            limits = self._limits
            arguments = (theirs.fileno(), _PROJECT, limits.cpu_s, limits.wall_s, limits.memory_mib)
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", str(_CHILD), *map(str, arguments)],
                    env={"PATH": os.defpath, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HOME": "/nonexistent"},
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,  # a library may quote what it reads
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,  # a terminal's interrupt is the worker's
                )
        return self._control

    def _stop(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


class Trials:
    """Tries folders of models once each. `folder` is where on the volume it is noted what passed."""

    def __init__(self, folder: Path, limits: TrialLimits | None = None) -> None:
        self._folder = folder
        self._limits = limits or TrialLimits()
        self._forks = Forks(self._limits)
        self._places = threading.BoundedSemaphore(_AT_ONCE)
        self._passed: set[object] = set()
        self._refused: dict[str, tuple[WorkerError, float]] = {}

    def check(self, root: Path, variant: str | None, name: str, stop: StopSignal) -> None:
        """Return once what lies in `root` was tried, now or earlier. Blocking, in a thread of the job's own.

        A file in its place is an upscaler, whose tensors' names and shapes say what is built.

        Raises LoadFailed for what takes too long or too much memory, CorruptFile for a config that belongs to other
        weights; JobTimeout, JobCancelled.
        """
        if root.is_dir() and not any(root.glob("*.json")):
            return
        files = _files(root)
        key = (root, variant, files)
        if key in self._passed:
            return
        identity = _identity(root, variant, files)
        note = self._folder / identity
        if note.is_file():
            self._passed.add(key)
            return
        self._still_refused(identity)
        self._take_place(stop)
        try:
            self._still_refused(identity)
            error = self._tried(root, variant, name, stop)
        finally:
            self._places.release()
        if error is not None:
            self._refused[identity] = (error, time.monotonic())
            raise error
        self._passed.add(key)
        self._folder.mkdir(parents=True, exist_ok=True)
        note.touch()

    def close(self) -> None:
        """End the process of trials; the next one starts another."""
        self._forks.close()

    def _still_refused(self, identity: str) -> None:
        error, since = self._refused.get(identity, (None, 0.0))
        if error is not None and time.monotonic() - since < _REMEMBERED_S:
            raise error.with_traceback(None)

    def _take_place(self, stop: StopSignal) -> None:
        while not self._places.acquire(timeout=_POLL_S):
            stop.check()

    def _tried(self, root: Path, variant: str | None, name: str, stop: StopSignal) -> WorkerError | None:
        with self._forks.connect() as connection:
            connection.sendall(json.dumps({"folder": str(root.resolve()), "variant": variant}).encode() + b"\n")
            started = time.monotonic()
            pid = _line(connection, stop.check, started + _START_S)
            if pid is None:
                self._forks.close()
                raise _not_started()
            begun = time.monotonic()
            try:
                answer = _line(connection, stop.check, begun + self._limits.wall_s + 5)
            except WorkerError:
                os.kill(int(pid), 9)  # nobody waits for it
                raise
            return self._verdict(answer, name, time.monotonic() - begun)

    def _verdict(self, answer: bytes | None, name: str, seconds: float) -> WorkerError | None:
        misfit, _, part = str(json.loads(answer)["misfit"] or "").partition(" ") if answer else ("ended", "", "")
        if not misfit:
            return None
        if misfit in {"parameters", "buffers"}:
            return CorruptFile(
                f"The config of {name}'s {part} describes far more {misfit} than its files hold; use a repository "
                "whose config belongs to its weights.",
                field="model",
                retryable=False,
            )
        spent = "memory" if misfit == "memory" or seconds < min(self._limits.cpu_s, self._limits.wall_s) / 2 else "time"
        most = f"{self._limits.memory_mib} MiB" if spent == "memory" else f"{self._limits.cpu_s} seconds"
        return LoadFailed(
            f"{name} could not be put together within {most} by what its configs or its tensors' names say; use "
            "another model, or one whose configs describe it.",
            field="model",
            retryable=False,
        )


def _not_started() -> LoadFailed:
    return LoadFailed("A trial of the model could not be started; send the job again.", field="model", retryable=True)


def _line(connection: socket.socket, check: Callable[[], None], until: float) -> bytes | None:
    """Return the next line of a fork; None if it ended, or not by `until`. `check` is called meanwhile."""
    received = b""
    connection.settimeout(_POLL_S)
    while not received.endswith(b"\n"):
        check()
        try:
            piece = connection.recv(1)
        except TimeoutError:
            if time.monotonic() > until:
                return None
            continue
        except ConnectionError:
            return None
        if not piece:
            return None
        received += piece
    return received.strip()


def _files(root: Path) -> tuple[tuple[str, int, int], ...]:
    """Return the files of a model with their sizes and times: what is the same in memory for the same files."""
    folder = _folder(root)
    paths = sorted(path for pattern in ("*", "*/*") for path in root.glob(pattern)) if root.is_dir() else [root]
    states = ((path.relative_to(folder).as_posix(), path.stat()) for path in paths if path.is_file())
    return tuple((name, state.st_size, state.st_mtime_ns) for name, state in states)


def _identity(root: Path, variant: str | None, files: tuple[tuple[str, int, int], ...]) -> str:
    """Return a name for these files with these libraries, wherever the volume is mounted.

    The first part of each file is read: all of a config, and a weight file's header.
    """
    digest = hashlib.sha256(repr((variant, files, __version__, *map(_version, _LIBRARIES))).encode())
    for name, _, _ in files:
        with (_folder(root) / name).open("rb") as file:
            digest.update(file.read(_READ_BYTES))
    return digest.hexdigest()


def _folder(root: Path) -> Path:
    return root if root.is_dir() else root.parent


def _version(library: str) -> str:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return ""
