"""The measures. CPU only, one torch thread; wall seconds unless a figure says otherwise."""

import asyncio
import io
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.bars import BARS
from benchmarks.checks import checking, detection
from benchmarks.figures import Figure, median_of
from benchmarks.gateway import gateway
from benchmarks.jobs import handling, poisoned, throughput
from benchmarks.loading import loading
from benchmarks.loras import lora_mixing, lora_steps, lora_switching
from benchmarks.residency import residency
from benchmarks.server import batching, serving, starting
from worker.app.settings import Settings
from worker.core.image import Raster
from worker.core.result import ignore_progress
from worker.transport.job_input import read_input
from worker.wire.result import encode_answer

PROJECT = Path(__file__).resolve().parent.parent


def imports() -> list[Figure]:
    """How long the gateway side and the engine take to import, each in a process of its own."""
    figures = []
    medians = {}
    for module in ("worker.app.build", "worker.engine.engine"):
        code = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"

        def run(code: str = code) -> float:
            done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
            return float(done.stdout)

        medians[module] = statistics.median(run() for _ in range(5))
        figures.append(Figure(f"import {module}", medians[module], "s", 5))
    share = medians["worker.app.build"] / medians["worker.engine.engine"]
    return [*figures, Figure("the first of these, against the second", share, "x", 5, at_most=0.5)]


def encoding() -> list[Figure]:
    """A 1024x1024 image to PNG, against Pillow's default."""
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

    ours, theirs = median_of(lambda: encode(raster, "png", 90), 7), median_of(default, 7)
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

    from worker.app.build import build_worker

    torch.set_num_threads(1)
    pipe = DiffusionPipeline.from_pretrained(PROJECT / "models/demo", dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)

    async def measure(folder: Path) -> list[tuple[float, float, float]]:
        worker = build_worker(Settings(volume_dir=folder, device="cpu"))
        rows = []
        for index in range(23):
            started = time.perf_counter()
            payload = {"prompt": "a red apple", "seed": index}
            answer = encode_answer(
                await worker.operations.perform(read_input(payload), f"bench-{index}", ignore_progress)
            )
            job = time.perf_counter() - started
            generator = torch.Generator("cpu").manual_seed(index)
            alone = median_of(lambda g=generator: pipe("a red apple", num_inference_steps=16, generator=g), 1)
            rows.append((job, answer["timings"]["inference_s"], alone))
        return rows[3:]  # the first ones load and warm up

    with tempfile.TemporaryDirectory() as folder:
        rows = asyncio.run(measure(Path(folder)))
    outside = statistics.median(job - inference for job, inference, _ in rows)
    return [
        Figure("a demo image, pipeline alone", statistics.median(row[2] for row in rows) * 1e3, "ms", len(rows)),
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


MEASURES: dict[str, Callable[[], list[Figure]]] = {
    "imports": imports,
    "detection": detection,
    "checking": checking,
    "encoding": encoding,
    "overhead": overhead,
    "queue": queue,
    "batching": batching,
    "serving": serving,
    "starting": starting,
    "gateway": gateway,
    "lora_steps": lora_steps,
    "lora_switching": lora_switching,
    "lora_mixing": lora_mixing,
    "residency": residency,
    "loading": loading,
    "handling": handling,
    "poisoned": poisoned,
    "throughput": throughput,
    **BARS,
}
