"""The measures of starting, answering and fetching that have a bar: in CPU seconds and ratios, as far as can be."""

import asyncio
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from statistics import median

from benchmarks import slow_server
from benchmarks.figures import Figure, median_of

PROJECT = Path(__file__).resolve().parent.parent
_LANES_MB, _RATE = 160, 2_500_000  # of a file, and the bytes a second of each connection


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
    """CPU until the first job is asked for, against importing the SDK and one pipeline; the least of three of each.

    The first import of an environment also compiles byte code, which is no part of a start.
    """
    imports = "import runpod; from diffusers import StableDiffusionXLPipeline"
    theirs = min(_cpu_of("-c", imports) for _ in range(3))
    ours = min(_cpu_to_the_first_poll() for _ in range(3))
    return [
        Figure("CPU to the first job poll", ours, "s", 3),
        Figure("the same, against runpod and a pipeline imported", ours / theirs, "x", 3, at_most=0.12, stretch=0.08),
    ]


def _cpu_to_the_first_poll() -> float:
    from tests.fakes.runpod_platform import RunPodPlatform
    from tests.fakes.worker_process import WorkerProcess

    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with tempfile.TemporaryDirectory() as folder, RunPodPlatform() as platform:
        env = platform.worker_env() | {"VOLUME_DIR": folder, "DEVICE": "cpu", "WARM_UP": "0"}
        with WorkerProcess(PROJECT / "handler.py", env=env):  # which ends the SDK's own pinging process too
            platform.wait_until(lambda: bool(platform.seen("job-take")), 300)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


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
    """The share of time that an engine of 0.3 s a job is busy, with PNG of 1024 x 1024, at default settings.

    From the beginning of its second job to the end of its last, by its own clock: the queue is full all that time.
    """
    from tests.fakes.runpod_platform import RunPodPlatform
    from tests.fakes.worker_process import WorkerProcess

    jobs = 40
    with tempfile.TemporaryDirectory() as folder, RunPodPlatform() as platform:
        told = Path(folder) / "seconds"
        env = platform.worker_env() | {"VOLUME_DIR": folder, "DEVICE": "cpu", "DEFAULT_MODEL": "demo"}
        job = {"prompt": "a red apple", "num_inference_steps": 1, "progress": False}
        with WorkerProcess(PROJECT / "benchmarks/sleeping_handler.py", env=env | {"BENCH_SECONDS": str(told)}):
            platform.wait(platform.submit(job), 300)
            for name in [platform.submit(job) for _ in range(jobs + 1)]:
                assert platform.wait(name, 300).status == "COMPLETED"
        spans = [tuple(map(float, line.split())) for line in told.read_text().splitlines()][-jobs:]
    share = sum(end - begin for begin, end in spans) / (spans[-1][1] - spans[0][0])
    gaps = [after[0] - before[1] for before, after in pairwise(spans)]
    return [
        Figure("engine busy, jobs of 0.3 s, PNG of 1024x1024", share, "of 1", jobs, at_least=0.9, stretch=0.97),
        Figure("from the end of a job to the beginning of the next", median(gaps) * 1e3, "ms", jobs - 1),
    ]


def downloading() -> list[Figure]:
    """One file from a server that gives each connection so much and no more: over one connection, and over ten."""
    from worker.core.errors import SourceUnavailable
    from worker.core.turn import StopSignal
    from worker.net.client import Client
    from worker.store.cache import VolumeCache
    from worker.store.lanes import Lanes
    from worker.store.transfer import Fetch, Patience, RemoteFile

    content = slow_server.content(_LANES_MB)
    digest, seconds = sha256(content).hexdigest(), {}
    with tempfile.TemporaryDirectory() as folder, _slow_server() as url:
        for lanes in (1, 10):
            file = RemoteFile("big.bin", url, len(content), digest)
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


@contextmanager
def _slow_server() -> Iterator[str]:
    """The address of a file; its server is another process, so that it takes no turn from the download."""
    command = [sys.executable, "-m", "benchmarks.slow_server", str(_LANES_MB), str(_RATE)]
    with subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().strip()
        finally:
            server.kill()


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
