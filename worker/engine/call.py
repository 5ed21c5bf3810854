"""A batch of jobs to pipeline calls, and its pictures or videos back."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from worker.core.errors import InvalidOutput
from worker.core.image import Raster
from worker.core.job import Batch, Job
from worker.core.result import Artifact, Emit, Progress
from worker.engine.arguments import Signature, arguments_of, is_single
from worker.engine.outputs import keep_outside, read_pictures, read_videos
from worker.engine.preparation import PREPARATIONS, prepared
from worker.engine.stepping import watched


def call_pipeline(pipe: Any, batch: Batch, emit: Emit) -> tuple[Artifact, ...]:
    """Run `pipe` for all jobs of `batch`. Raises JobCancelled or JobTimeout from within a step.

    Where the pipeline can draw many pictures at once, it is called once; else once for every seed.
    """
    signature = inspect.signature(pipe.__call__).parameters
    if _draws_together(pipe, batch.jobs, signature):
        artifacts = _together(pipe, batch.jobs, signature, emit)
        if artifacts is not None:
            return artifacts
    calls = [(job, seed) for job in batch.jobs for seed in job.seeds]
    found: list[Artifact] = []
    for index, (job, seed) in enumerate(calls):
        turn = _Turn(index, len(calls))
        output = _call(pipe, (job,), (seed,), signature, emit, turn)
        found += _artifacts(output, job, seed)
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Turn:
    """One call of several that answer a batch."""

    index: int = 0
    of: int = 1


def _draws_together(pipe: Any, jobs: Sequence[Job], signature: Signature) -> bool:
    """Whether one call draws all: it takes a generator for each picture, and one picture at most to start from."""
    simple = all(is_single(media) for job in jobs for media in job.media)
    generator = signature["generator"].annotation if "generator" in signature else None
    return (
        simple
        and "num_images_per_prompt" in signature
        and "list[" in str(generator).lower()
        and type(pipe).__name__ not in PREPARATIONS
        and not any(job.fps for job in jobs)
        and sum(len(job.seeds) for job in jobs) > 1
    )


def _together(pipe: Any, jobs: Sequence[Job], signature: Signature, emit: Emit) -> tuple[Artifact, ...] | None:
    """All pictures of one call; None when the pipeline did not draw one for every seed after all."""
    seeds = [(job, seed) for job in jobs for seed in job.seeds]
    pictures = read_pictures(_call(pipe, jobs, [seed for _, seed in seeds], signature, emit, _Turn()))
    if len(pictures) != len(seeds):
        return None
    return tuple(_artifact(picture, job, seed) for picture, (job, seed) in zip(pictures, seeds, strict=True))


def _call(pipe: Any, jobs: Sequence[Job], seeds: Sequence[int], signature: Signature, emit: Emit, turn: _Turn) -> Any:
    job = jobs[0]
    arguments = arguments_of(jobs, signature)
    # One generator per picture: a batch draws what single runs draw.
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    if "generator" in signature:
        arguments["generator"] = generators[0] if len(generators) == 1 else generators
    for name in ("num_images_per_prompt", "num_videos_per_prompt"):
        if name in signature:
            arguments[name] = len(seeds) // len(jobs)
    steps = int(job.params.get("num_inference_steps") or job.params.get("num_inversion_steps") or 1)

    def after_step(step: int) -> None:
        total = max(getattr(pipe, "num_timesteps", None) or 0, steps, 1)
        emit(Progress("inference", turn.index * total + min(step + 1, total), turn.of * total))
        for waiting in jobs:
            waiting.stop.check()

    job.stop.check()
    with (
        _seeded(pipe, seeds[0]),
        watched(pipe, signature, after_step) as callbacks,
        prepared(pipe, job, arguments) as ready,
    ):
        return pipe(**ready, **callbacks)


@contextmanager
def _seeded(pipe: Any, seed: int) -> Iterator[None]:
    """torch's own generators seeded too, for the pipelines that draw from them; afterwards as they were."""
    device = getattr(pipe, "_execution_device", None)
    devices = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def _artifacts(output: Any, job: Job, seed: int) -> list[Artifact]:
    """What one call drew for one seed: one, or all layers, or a picture and its depth."""
    if job.fps is None:
        return [_artifact(picture, job, seed) for picture in read_pictures(output)]
    videos = read_videos(output)
    sizes = {(frame.width, frame.height, frame.mode) for video in videos for frame in video}
    if len(sizes) != 1:
        raise InvalidOutput(f"The pipeline returned frames of {len(sizes)} different sizes.")
    return [Artifact(job.id, video[0], seed, tuple(video), job.fps) for video in videos]


def _artifact(picture: Raster, job: Job, seed: int) -> Artifact:
    return Artifact(job.id, keep_outside(picture, job), seed)
