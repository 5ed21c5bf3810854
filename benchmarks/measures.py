"""The measures. CPU only, one torch thread; wall seconds unless a figure says otherwise."""

import asyncio
import functools
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import uvicorn
from PIL import Image

from worker.core.image import Raster
from worker.settings import Settings

PROJECT = Path(__file__).resolve().parent.parent


@dataclass
class Figure:
    """One number: the median of `runs`."""

    name: str
    value: float
    unit: str
    runs: int


def _median(call: Callable[[], object], runs: int) -> float:
    seconds = []
    for _ in range(runs):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


@asynccontextmanager
async def _served(settings: Settings) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of a worker's HTTP server; both on this loop, so that the client's work counts as the server's."""
    from worker.app import build_worker
    from worker.standalone import build_app

    server = uvicorn.Server(uvicorn.Config(build_app(build_worker(settings)), port=0, log_config=None))
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 -- it offers no event
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", raise_for_status=True) as session:
        yield session
    server.should_exit = True
    await serving


async def _post(session: aiohttp.ClientSession, job: dict[str, Any]) -> tuple[dict[str, Any], float]:
    """An answer, and the seconds from sending the request to having its last byte."""
    started = time.perf_counter()
    async with session.post("/run", json=job) as answer:
        body = await answer.read()
    seconds = time.perf_counter() - started
    return json.loads(body), seconds


def imports() -> list[Figure]:
    """How long the gateway side and the engine take to import, each in a process of its own."""
    figures = []
    for module in ("worker.app", "worker.engine.engine"):
        code = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"

        def run(code: str = code) -> float:
            done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
            return float(done.stdout)

        figures.append(Figure(f"import {module}", statistics.median(run() for _ in range(5)), "s", 5))
    return figures


def detection() -> list[Figure]:
    """Reading and detecting an SDXL checkpoint's header."""
    from tests.catalog.corpus import sparse_file, stored
    from worker.catalog.containers.headers import read_header
    from worker.catalog.detector import detect_header

    with tempfile.TemporaryDirectory() as folder:
        path = sparse_file(Path(folder) / "sdxl.safetensors", stored("sdxl"))
        return [Figure("inspect an SDXL file", _median(lambda: detect_header(read_header(path)), 20) * 1e3, "ms", 20)]


def encoding() -> list[Figure]:
    """A 1024x1024 picture to PNG, against Pillow's default."""
    from worker.media.images import encode

    x, y = np.meshgrid(np.linspace(0, 20, 1024), np.linspace(0, 20, 1024))
    waves = np.stack([np.sin(x) * np.cos(y), np.cos(x + y), np.sin(x * y / 5)], axis=-1)
    noise = np.random.default_rng(0).normal(0, 3, waves.shape)
    pixels = np.clip((waves + 1) * 127 + noise, 0, 255).astype(np.uint8)
    raster = Raster("RGB", 1024, 1024, pixels.tobytes())

    def default() -> bytes:
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "PNG")
        return out.getvalue()

    ours, theirs = _median(lambda: encode(raster, "png", 90), 7), _median(default, 7)
    size = len(encode(raster, "png", 90)) / len(default())
    return [
        Figure("PNG of 1024x1024", ours * 1e3, "ms", 7),
        Figure("PNG speed against Pillow's default", theirs / ours, "x", 7),
        Figure("PNG size against Pillow's default", size, "x", 1),
    ]


def overhead() -> list[Figure]:
    """What a whole job (decode, accept, run, encode) takes beyond the pipeline's own call, the two in turn."""
    import torch
    from diffusers import DiffusionPipeline

    from worker.app import build_worker

    torch.set_num_threads(1)
    pipe = DiffusionPipeline.from_pretrained(PROJECT / "models/demo", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)

    async def measure(folder: Path) -> list[tuple[float, float, float]]:
        worker = build_worker(Settings(volume_dir=folder, device="cpu"))
        rows = []
        for index in range(23):
            started = time.perf_counter()
            payload = {"prompt": "a red apple", "seed": index}
            answer = await worker.actions.perform(payload, f"bench-{index}", lambda progress: None)
            job = time.perf_counter() - started
            generator = torch.Generator("cpu").manual_seed(index)
            alone = _median(lambda g=generator: pipe("a red apple", num_inference_steps=16, generator=g), 1)
            rows.append((job, answer["timings"]["inference_s"], alone))
        return rows[3:]  # the first ones load and warm up

    with tempfile.TemporaryDirectory() as folder:
        rows = asyncio.run(measure(Path(folder)))
    outside = statistics.median(job - inference for job, inference, _ in rows)
    return [
        Figure("a demo picture, pipeline alone", statistics.median(row[2] for row in rows) * 1e3, "ms", len(rows)),
        Figure("added around the engine, with PNG", outside * 1e3, "ms", len(rows)),
    ]


def queue() -> list[Figure]:
    """The share of time that the engine is busy while RunPod's queue has jobs, at concurrency 1 and 2."""
    from tests.fakes.runpod_platform import RunPodPlatform
    from tests.fakes.worker_process import WorkerProcess

    figures = []
    for concurrency in ("1", "2"):
        with tempfile.TemporaryDirectory() as folder, RunPodPlatform() as platform:
            env = platform.worker_env() | {"VOLUME_DIR": folder, "DEVICE": "cpu", "WORKER_CONCURRENCY": concurrency}
            job = {"prompt": "a red apple", "num_inference_steps": 60, "progress": False}
            with WorkerProcess(PROJECT / "handler.py", env=env):
                platform.wait(platform.submit(job), 120)
                started = time.monotonic()
                ids = [platform.submit(job) for _ in range(10)]
                records = [platform.wait(job_id, 120) for job_id in ids]
                elapsed = time.monotonic() - started
            busy = sum(record.output["timings"]["inference_s"] for record in records)
            figures.append(Figure(f"engine busy at concurrency {concurrency}", busy / elapsed, "of 1", 10))
    return figures


def batching() -> list[Figure]:
    """What BATCH_SIZE=4 gives and costs at the HTTP server, against plain diffusers' own batch, with a small model.

    In turn within one run: four prompts in four calls and in one; twelve jobs at once, singly and in batches; and one
    job alone, without the timer and with it. CPU seconds beside wall seconds: they hold on a busy machine too.
    """
    import torch
    from diffusers import DiffusionPipeline

    from tests.builders import tiny_sd1

    torch.set_num_threads(1)
    rounds, steps, wait_ms = 5, 10, 50.0
    prompts = [f"a picture of {index} apples" for index in range(4)]

    def plain(pipe: Any, groups: list[list[str]]) -> None:
        for group in groups:
            pipe(group, num_inference_steps=steps, generator=[torch.Generator("cpu").manual_seed(7) for _ in group])

    async def serve(session: aiohttp.ClientSession, jobs: int) -> list[dict[str, Any]]:
        sent = [{"prompt": prompts[index % 4], "steps": steps, "seed": index} for index in range(jobs)]
        return [answer for answer, _ in await asyncio.gather(*(_post(session, job) for job in sent))]

    async def measure(folder: Path) -> tuple[dict[str, list[tuple[float, float]]], list[int]]:
        model = tiny_sd1(folder / "models" / "tiny")
        (folder / "models.yaml").write_text('{"models": {"tiny": {"source": "file:models/tiny"}}}')
        pipe = DiffusionPipeline.from_pretrained(model, dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
        usual = Settings(
            models_yaml=folder / "models.yaml",
            default_model="tiny",
            volume_dir=folder,
            device="cpu",
            warm_up=False,  # two engines of one process must not load at once: transformers patches torch meanwhile
        )
        in_batches = usual.model_copy(update={"batch_size": 4, "batch_timeout_ms": wait_ms})
        found: dict[str, list[tuple[float, float]]] = {}
        sizes: list[int] = []

        async def timed(name: str, work: Awaitable[Any]) -> Any:
            wall, cpu = time.perf_counter(), time.process_time()
            answers = await work
            found.setdefault(name, []).append((time.perf_counter() - wall, time.process_time() - cpu))
            return answers

        async with _served(usual) as single, _served(in_batches) as batched:
            for _ in range(rounds + 1):
                await timed("calls", asyncio.to_thread(plain, pipe, [[prompt] for prompt in prompts]))
                await timed("call", asyncio.to_thread(plain, pipe, [prompts]))
                await timed("singly", serve(single, 12))
                sizes += [answer["timings"]["batch_size"] for answer in await timed("batched", serve(batched, 12))]
                await timed("alone", serve(single, 1))
                await timed("alone, batched", serve(batched, 1))
        return found, sizes[12:]

    with tempfile.TemporaryDirectory() as folder:
        found, sizes = asyncio.run(measure(Path(folder)))
    # The first round loads and warms up.
    wall, cpu = (
        {name: statistics.median(run[unit] for run in runs[1:]) for name, runs in found.items()} for unit in (0, 1)
    )
    figures = [
        Figure(f"{name}, {unit}", seconds[one] / seconds[other], "x", rounds)
        for unit, seconds in (("wall", wall), ("CPU", cpu))
        for name, one, other in (
            ("diffusers' own batch of 4", "calls", "call"),
            ("BATCH_SIZE 4, twelve jobs at once", "singly", "batched"),
        )
    ]
    return [
        *figures,
        Figure("jobs of those in one call", statistics.mean(sizes), "mean", len(sizes)),
        Figure("added to a lone job by a timer of 50 ms", (wall["alone, batched"] - wall["alone"]) * 1e3, "ms", rounds),
    ]


def serving() -> list[Figure]:
    """What is added to a lone picture of 512x512 at the HTTP server, from request to answer: outside and in the engine.

    The pipeline's own call is timed where it is made.
    """
    import torch
    from diffusers import StableDiffusionPipeline

    from tests.builders import tiny_sd1

    torch.set_num_threads(1)
    runs = 10
    own: list[float] = []
    call = StableDiffusionPipeline.__call__

    @functools.wraps(call)
    def timed(*args: Any, **kwargs: Any) -> Any:
        started = time.perf_counter()
        try:
            return call(*args, **kwargs)
        finally:
            own.append(time.perf_counter() - started)

    async def measure(folder: Path) -> list[tuple[float, float, float]]:
        tiny_sd1(folder / "models" / "tiny")
        (folder / "models.yaml").write_text('{"models": {"tiny": {"source": "file:models/tiny"}}}')
        settings = Settings(models_yaml=folder / "models.yaml", default_model="tiny", volume_dir=folder, device="cpu")
        rows = []
        async with _served(settings) as session:
            for index in range(runs + 3):
                job = {"prompt": "a red apple", "width": 512, "height": 512, "steps": 1, "seed": index}
                answer, seconds = await _post(session, job)
                inference_s, encode_s = (answer["timings"][name] for name in ("inference_s", "encode_s"))
                rows.append((seconds - inference_s - encode_s, inference_s - own[-1], encode_s))
        return rows[3:]  # the first ones load and warm up

    StableDiffusionPipeline.__call__ = timed
    try:
        with tempfile.TemporaryDirectory() as folder:
            rows = asyncio.run(measure(Path(folder)))
    finally:
        StableDiffusionPipeline.__call__ = call
    names = ("512x512: added by the server, without PNG", "512x512: added by the engine", "512x512: PNG")
    return [
        Figure(name, statistics.median(row[column] for row in rows) * 1e3, "ms", runs)
        for column, name in enumerate(names)
    ]


MEASURES: dict[str, Callable[[], list[Figure]]] = {
    "imports": imports,
    "detection": detection,
    "encoding": encoding,
    "overhead": overhead,
    "queue": queue,
    "batching": batching,
    "serving": serving,
}
