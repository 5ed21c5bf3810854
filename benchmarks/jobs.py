"""The measures of what a worker adds to its pipeline's calls: around one job, around many, and after one that fails.

Both sides are taken in turn within one process, and processor seconds stand beside the clock's: on a machine that
others use, those alone are the work's.
"""

import asyncio
import functools
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from benchmarks.figures import Figure
from benchmarks.server import quick_model
from worker.app.settings import Settings

_SIZES = ((128, 128), (128, 160))


def handling() -> list[Figure]:
    """RunPod's door less the pipeline's own call and the encoding of the image, 512 x 512, four steps."""
    import torch

    from worker.app.build import build_worker
    from worker.app.queue import build_door
    from worker.service.jobs import delivery

    torch.set_num_threads(1)
    runs = 60
    rows: list[tuple[float, float]] = []

    async def measure(folder: Path) -> None:
        door = build_door(build_worker(_settings(folder, quick_model(folder / "models"))), concurrency=1)
        with _stopped(delivery, "encode") as encoding, _pipeline_stopped() as calling:
            for index in range(runs + 5):
                wall, cpu = time.perf_counter(), time.process_time()
                payload = {"prompt": "a red apple", "steps": 4, "seed": index, "width": 512, "height": 512}
                answer = await door.handle({"id": f"job-{index}", "input": payload})
                spent = time.perf_counter() - wall, time.process_time() - cpu
                assert "error" not in answer, answer
                inside = [sum(each) for each in zip(*encoding, *calling, strict=True)]
                rows.append((spent[0] - inside[0], spent[1] - inside[1]))
                encoding.clear()
                calling.clear()

    with tempfile.TemporaryDirectory() as name:
        asyncio.run(measure(Path(name)))
    walls, cpus = zip(*rows[5:], strict=True)
    return [
        Figure("512x512, RunPod's door less pipeline and encoding", _ms(walls), "ms", runs, at_most=5.0, stretch=2.0),
        Figure("the same, processor time", _ms(cpus), "ms", runs),
        Figure("the same, the least by the clock", min(walls) * 1e3, "ms", runs),
    ]


def poisoned() -> list[Figure]:
    """Four jobs in one call, one of which fails in its last step, against four that do not."""
    from worker.app.build import build_worker
    from worker.core.errors import WorkerError
    from worker.core.result import ignore_progress
    from worker.service.local.pace import Paces
    from worker.transport.job_input import read_input

    found: dict[str, list[float]] = {"good": [], "poisoned": []}
    succeeded = []

    async def measure(folder: Path) -> None:
        settings = _settings(folder, _mid_model(folder / "models"), batch_size=4, batch_timeout_ms=1_000)
        worker = build_worker(settings)

        async def four(name: str, place: int | None) -> None:
            jobs = [{"prompt": "poison" if index == place else f"{index} apples", "seed": index} for index in range(4)]
            inputs = [read_input(job | {"steps": 4, "width": 128, "height": 128}) for job in jobs]
            cpu = time.process_time()
            answers = await asyncio.gather(
                *(worker.operations.perform(each, f"{name}-{cpu}-{at}", ignore_progress) for at, each in
                  enumerate(inputs)),
                return_exceptions=True,
            )  # fmt: skip
            found[name].append(time.process_time() - cpu)
            succeeded.append(sum(not isinstance(answer, WorkerError) for answer in answers))

        # Where a batch gains nothing, as with this model, fewer jobs would share a call soon.
        with _failing_last_step("poison"), patch.object(Paces, "most", lambda self, kind, bound: bound):
            await four("good", None)
            found["good"].clear()
            succeeded.clear()
            for place in range(4):
                await four("good", None)
                await four("poisoned", place)

    with tempfile.TemporaryDirectory() as name:
        asyncio.run(measure(Path(name)))
    ratio = statistics.median(found["poisoned"]) / statistics.median(found["good"])
    return [
        Figure("one of four jobs in a call fails last, processor time", ratio, "x", 4, at_most=2.2,
               stretch=1.5),
        Figure("the others that succeeded", min(succeeded), "of 3", 4, at_least=3.0),
    ]  # fmt: skip


def throughput() -> list[Figure]:
    """Eight queued jobs of two sizes, against the best direct calls of diffusers for the same images."""
    import torch
    from diffusers import DiffusionPipeline

    from worker.app.build import build_worker
    from worker.core.result import ignore_progress
    from worker.transport.job_input import read_input

    torch.set_num_threads(1)
    rounds, steps = 2, 4
    jobs = [(f"{index} apples", size, index) for index in range(4) for size in _SIZES]
    found: dict[str, list[tuple[float, float]]] = {}

    def direct(pipe: Any, together: int) -> None:
        for width, height in _SIZES:
            alike = [job for job in jobs if job[1] == (width, height)]
            for start in range(0, len(alike), together):
                part = alike[start : start + together]
                pipe(
                    [prompt for prompt, _, _ in part], width=width, height=height, num_inference_steps=steps,
                    generator=[torch.Generator("cpu").manual_seed(seed) for _, _, seed in part],
                )  # fmt: skip

    async def timed(name: str, work: Awaitable[Any]) -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        await work
        found.setdefault(name, []).append((time.perf_counter() - wall, time.process_time() - cpu))

    async def measure(folder: Path) -> None:
        model = _mid_model(folder / "models")
        pipe = DiffusionPipeline.from_pretrained(model, dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
        workers = {size: build_worker(_settings(folder, model, batch_size=size)) for size in (1, 4)}

        async def serve(size: int, turn: int) -> None:
            inputs = [
                read_input({"prompt": prompt, "width": width, "height": height, "steps": steps, "seed": seed})
                for prompt, (width, height), seed in jobs
            ]
            perform = workers[size].operations.perform
            await asyncio.gather(
                *(perform(each, f"{size}-{turn}-{at}", ignore_progress) for at, each in enumerate(inputs))
            )

        for turn in range(rounds + 1):
            for together in (1, 2, 4):
                await timed(f"direct {together}", asyncio.to_thread(direct, pipe, together))
            for size in workers:
                await timed(f"worker {size}", serve(size, turn))

    with tempfile.TemporaryDirectory() as name:
        asyncio.run(measure(Path(name)))
    figures = []
    for unit, words in ((0, "wall"), (1, "processor time")):
        seconds = {name: statistics.median(run[unit] for run in runs[1:]) for name, runs in found.items()}
        best = min(value for name, value in seconds.items() if name.startswith("direct"))
        for size in (1, 4):
            ratio = best / seconds[f"worker {size}"]
            name = f"worker's throughput, BATCH_SIZE {size}, against the best direct calls, {words}"
            figures.append(Figure(name, ratio, "x", rounds, at_least=0.95, stretch=1.0))
    return figures


def _settings(folder: Path, model: Path, **changes: Any) -> Settings:
    path = folder / "models.yaml"
    path.write_text(f'{{"models": {{"bench": {{"source": "file:models/{model.name}"}}}}}}')
    return Settings(
        models_yaml=path, default_model="bench", volume_dir=folder, device="cpu", warm_up=False, levers="off", **changes
    )


def _mid_model(folder: Path) -> Path:
    """A Stable Diffusion 1 pipeline of 64 and 128 channels: a job takes a quarter of a second."""
    from diffusers import StableDiffusionPipeline

    from tests.builders import tiny_sd1, unet

    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd1(folder / "tiny"))
    parts = pipe.components | {"unet": unet(block_out_channels=(64, 128), norm_num_groups=32)}
    StableDiffusionPipeline(**parts, requires_safety_checker=False).save_pretrained(folder / "mid")
    return folder / "mid"


def _ms(seconds: Sequence[float]) -> float:
    return statistics.median(seconds) * 1e3


@contextmanager
def _stopped(place: Any, name: str) -> Any:
    """Yield a list of what the calls of a function take, by the clock and of the thread's processor time."""
    usual, spent = getattr(place, name), []

    @functools.wraps(usual)
    def timed(*args: Any, **given: Any) -> Any:
        wall, cpu = time.perf_counter(), time.thread_time()
        try:
            return usual(*args, **given)
        finally:
            spent.append((time.perf_counter() - wall, time.thread_time() - cpu))

    setattr(place, name, timed)
    try:
        yield spent
    finally:
        setattr(place, name, usual)


@contextmanager
def _pipeline_stopped() -> Any:
    """The same of the pipeline's own call, less the worker's callbacks within it."""
    from diffusers import StableDiffusionPipeline

    usual, spent = StableDiffusionPipeline.__call__, []

    def outside(callback: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(callback)
        def called(*args: Any, **given: Any) -> Any:
            wall, cpu = time.perf_counter(), time.thread_time()
            try:
                return callback(*args, **given)
            finally:
                spent.append((wall - time.perf_counter(), cpu - time.thread_time()))

        return called

    @functools.wraps(usual)
    def timed(self: Any, *args: Any, **given: Any) -> Any:
        given |= {name: outside(value) for name, value in given.items() if callable(value)}
        wall, cpu = time.perf_counter(), time.thread_time()
        try:
            return usual(self, *args, **given)
        finally:
            spent.append((time.perf_counter() - wall, time.thread_time() - cpu))

    StableDiffusionPipeline.__call__ = timed
    try:
        yield spent
    finally:
        StableDiffusionPipeline.__call__ = usual


@contextmanager
def _failing_last_step(word: str) -> Any:
    """Have the pipeline fail once all steps are done where one of its prompts is `word`."""
    from diffusers import StableDiffusionPipeline

    usual = StableDiffusionPipeline.__call__

    @functools.wraps(usual)
    def failing(self: Any, *args: Any, **given: Any) -> Any:
        output = usual(self, *args, **given)
        prompts = given.get("prompt")
        if word in (prompts if isinstance(prompts, list) else [prompts]):
            raise ValueError("poisoned")
        return output

    StableDiffusionPipeline.__call__ = failing
    try:
        yield
    finally:
        StableDiffusionPipeline.__call__ = usual
