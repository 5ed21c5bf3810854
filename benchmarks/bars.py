"""The measures of starting, answering and fetching that have a bar: in CPU seconds and ratios, as far as can be."""

import asyncio
import json
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from benchmarks.figures import Figure, median_of

PROJECT = Path(__file__).resolve().parent.parent
_LANES_MB, _RATE = 160, 5_000_000  # of a file, and the bytes a second of each connection


def _cpu_of(*command: str) -> float:
    """The CPU seconds of a process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *command], cwd=PROJECT, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def commands() -> list[Figure]:
    """CPU seconds of the commands that should be there at once."""
    bars = {"plan demo": 1.5, "models": 0.8, "--help": 0.4}
    return [
        Figure(f"imgworker {words}, CPU", min(_cpu_of("-m", "worker", *words.split()) for _ in range(3)), "s", 3,
               at_most=bar)
        for words, bar in bars.items()
    ]  # fmt: skip


def polling() -> list[Figure]:
    """CPU until the first job is asked for, against importing the SDK and one pipeline."""
    from tests.fakes.runpod_platform import RunPodPlatform

    theirs = _cpu_of("-c", "import runpod; from diffusers import StableDiffusionXLPipeline")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as folder, RunPodPlatform() as platform:
        env = platform.worker_env() | {"VOLUME_DIR": folder, "DEVICE": "cpu", "WARM_UP": "0", "OMP_NUM_THREADS": "1"}
        with subprocess.Popen(
            [sys.executable, str(PROJECT / "handler.py")],
            env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        ) as process:  # fmt: skip
            platform.wait_until(lambda: bool(platform.seen("job-take")), 300)
            process.kill()
            process.wait()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    ours = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return [
        Figure("CPU to the first job poll", ours, "s", 1),
        Figure("the same, against runpod and a pipeline imported", ours / theirs, "x", 1, at_most=0.12, stretch=0.08),
    ]


def answering() -> list[Figure]:
    """The bytes of an answer at RunPod's door, against base64 of its files."""
    from tests.answers import files_of
    from tests.fakes.engine import FakeEngine, make_context
    from tests.transport.web.uploads import noise
    from worker.app.queue import build_door

    with tempfile.TemporaryDirectory() as folder:
        context = make_context(Path(folder), FakeEngine(lambda job, seed: noise(512, 512)))
        door = build_door(context.worker, concurrency=1)
        answer = asyncio.run(door.handle({"id": "bench", "input": {"prompt": "a red apple"}}))
    ratio = len(json.dumps(answer)) / sum(map(len, files_of(answer)))
    return [Figure("bytes of an answer, against base64 of its file", ratio, "x", 1, at_most=1.02, stretch=1.01)]


def busy() -> list[Figure]:
    """The share of time that an engine of 0.3 s a job is busy, with PNG of 1024 x 1024, at default settings."""
    from tests.fakes.runpod_platform import RunPodPlatform
    from tests.fakes.worker_process import WorkerProcess

    jobs, seconds = 20, 0.3
    with tempfile.TemporaryDirectory() as folder, RunPodPlatform() as platform:
        env = platform.worker_env() | {"VOLUME_DIR": folder, "DEVICE": "cpu", "DEFAULT_MODEL": "demo"}
        job = {"prompt": "a red apple", "num_inference_steps": 1, "progress": False}
        with WorkerProcess(PROJECT / "benchmarks/sleeping_handler.py", env=env):
            platform.wait(platform.submit(job), 300)
            started = time.monotonic()
            for name in [platform.submit(job) for _ in range(jobs)]:
                platform.wait(name, 300)
            elapsed = time.monotonic() - started
    share = jobs * seconds / elapsed
    return [Figure("engine busy, jobs of 0.3 s, PNG of 1024x1024", share, "of 1", jobs, at_least=0.9, stretch=0.97)]


def downloading() -> list[Figure]:
    """One file from a server that gives each connection so much and no more: over one connection, and over ten."""
    from worker.core.errors import SourceUnavailable
    from worker.core.turn import StopSignal
    from worker.net.client import Client
    from worker.store.cache import VolumeCache
    from worker.store.lanes import Lanes
    from worker.store.transfer import Fetch, Patience, RemoteFile

    content = b"0123456789abcdef" * (_LANES_MB * 2**16)
    seconds = {}
    with tempfile.TemporaryDirectory() as folder, _Slow(content) as server:
        for lanes in (1, 10):
            file = RemoteFile("big.bin", server.url, len(content), sha256(content).hexdigest())
            patience = Patience(lanes=Lanes(a_file=lanes))
            cache = VolumeCache(Path(folder) / str(lanes), patience=patience, reserve_bytes=0)
            client = Client(allow_private=True)
            refused = SourceUnavailable("The server of this bench refuses.")
            fetch = Fetch("a", [file], client, "a", lambda _: None, StopSignal(), lambda *_, it=refused: it)
            started = time.monotonic()
            cache.fetch(fetch)
            seconds[lanes] = time.monotonic() - started
    gain = seconds[1] / seconds[10]
    return [
        Figure(f"{_LANES_MB} MiB at {_RATE / 1e6:g} MB/s a connection", seconds[10], "s", 1),
        Figure("the same, against one connection", gain, "x", 1, at_least=5.0, stretch=9.0),
    ]


class _Slow:
    """A server of one file that gives each connection `_RATE` bytes a second."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/big.bin"

    def __enter__(self) -> "_Slow":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._socket.accept()
                threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            head = b""
            while b"\r\n\r\n" not in head:
                head += connection.recv(65_536)
            size = len(self._content)
            start, stop, status, ranged = 0, size, "200 OK", ""
            for line in head.decode("latin-1").lower().split("\r\n"):
                if line.startswith("range: bytes="):
                    first, _, last = line.removeprefix("range: bytes=").partition("-")
                    start, stop = int(first), int(last) + 1 if last else size
                    status, ranged = "206 Partial Content", f"Content-Range: bytes {start}-{stop - 1}/{size}\r\n"
            connection.sendall(
                f'HTTP/1.1 {status}\r\nContent-Length: {stop - start}\r\n{ranged}ETag: "a"\r\nAccept-Ranges: bytes\r\n'
                "Connection: close\r\n\r\n".encode()
            )
            began, piece = time.monotonic(), _RATE // 20
            for at in range(start, stop, piece):
                connection.sendall(self._content[at : min(at + piece, stop)])
                ahead = (at + piece - start) / _RATE - (time.monotonic() - began)
                if ahead > 0:
                    time.sleep(ahead)


def finding() -> list[Figure]:
    """Finding the files of one model among a thousand on the volume."""
    from worker.store.cache import VolumeCache
    from worker.store.entries import Entries, EntryFile

    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        entries = Entries(root)
        (root / "blobs").mkdir(parents=True)
        for index in range(1_000):
            files = {}
            for part in range(8):
                digest = sha256(f"{index} {part}".encode()).hexdigest()
                blob = root / "blobs" / digest
                blob.write_bytes(b"x")
                path = entries.path_of(f"hf:org/model-{index}@main", f"part-{part}.json")
                files[f"part-{part}.json"] = EntryFile(path, 1, digest, blob.stat().st_mtime_ns)
            entries.publish(f"hf:org/model-{index}@main", files, {})
        cache = VolumeCache(root)
        seconds = median_of(lambda: cache.entry("hf:org/model-500@main"), 21)
    return [Figure("find a model's files among 1,000 models", seconds * 1e3, "ms", 21, at_most=10.0, stretch=2.0)]


BARS = {
    "commands": commands,
    "polling": polling,
    "answering": answering,
    "busy": busy,
    "downloading": downloading,
    "finding": finding,
}
