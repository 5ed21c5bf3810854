"""Calls of a pipeline for a batch of jobs, and the images or videos that come back."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from itertools import accumulate, groupby
from typing import Any

import torch

from worker.core.errors import InvalidOutput
from worker.core.image import Raster
from worker.core.job import Batch, Job
from worker.core.pipeline import PipelineRow
from worker.core.result import Artifact, Emit, Outcome, Progress
from worker.engine.adapters.mixing import Mixture, Unmixable
from worker.engine.arguments import Signature, arguments_of, parameters_of
from worker.engine.complaints import long_prompts_refused
from worker.engine.outputs import arrays_of, keep_outside, read_images, read_videos, to_rasters
from worker.engine.preparation import prepared
from worker.engine.previews import Previewer
from worker.engine.prompts import heard, read_alike
from worker.engine.schedulers import seeded_steps
from worker.engine.stepping import part_of, watched

MANY = sys.maxsize


def call_pipeline(
    pipe: Any, batch: Batch, extra: Mapping[str, Any], emit: Emit, at_once: int = MANY, mixture: Mixture | None = None
) -> tuple[Outcome, ...]:
    """Generate for the first jobs of `batch`: as many as go into one call of at most `at_once` images, at least one.

    `extra` are the call's arguments for the adapters. A pipeline that cannot generate many images at once generates
    the first job's, one for each seed. Raises JobCancelled or JobTimeout from within a step once all of these jobs
    have to stop; with a `mixture` of the jobs' LoRAs Unmixable where they cannot share a call.
    """
    if not batch.jobs[0].generates:
        emit(Progress("inference", 1, 1))
        return tuple(tuple(_untouched(job, seed) for seed in job.seeds) for job in batch.jobs)
    callee = replace(Callee.of(pipe, batch.jobs[0].call.row, extra, emit), mixture=mixture)
    if at_once > 1 and can_share_a_call(callee, batch.jobs):
        together = replace(batch, jobs=_fitting(batch.jobs, at_once))
        if mixture is not None and mixture.is_one([job.id for job in together.jobs]):
            raise Unmixable(lasting=False)
        outcomes = _together(callee, together, at_once)
        if outcomes is not None:
            return outcomes
    if mixture is not None:
        raise Unmixable(lasting=at_once > 1)
    return (_one_by_one(callee, replace(batch, jobs=batch.jobs[:1])),)


@dataclass(frozen=True, slots=True)
class Callee:
    """A pipeline to call, and everything that is the same in all calls of a batch."""

    pipe: Any
    row: PipelineRow  # of the pipe's class
    signature: Signature
    extra: Mapping[str, Any]  # arguments beside those of the jobs
    emit: Emit
    mixture: Mixture | None = None  # the LoRAs of jobs that differ in them

    @classmethod
    def of(cls, pipe: Any, row: PipelineRow, extra: Mapping[str, Any], emit: Emit) -> "Callee":
        """Return the callee for `pipe` of `row`'s class; `extra` are arguments beside those of the jobs."""
        return cls(pipe, row, parameters_of(type(pipe).__call__), extra, emit)

    def extra_for(self, prompts: int) -> Mapping[str, Any]:
        """Return `extra` for a call with so many prompts: a T2I-Adapter's image stands once for each."""
        image = self.extra.get("image")
        if prompts == 1 or image is None or not self.row.image_per_prompt:
            return self.extra
        each = [[item] * prompts for item in image] if isinstance(image, list) else [image] * prompts
        return {**self.extra, "image": each}

    def part(self, index: int, of: int) -> "Callee":
        """Return the same callee for one call of several that answer a batch."""
        return replace(self, emit=part_of(self.emit, index, of))


def can_share_a_call(callee: Callee, jobs: Sequence[Job]) -> bool:
    """True if one call can generate for all `jobs`.

    It has to take a generator for each image, and one image at most to start from.
    """
    signature, row = callee.signature, callee.row
    generator = signature["generator"].annotation if "generator" in signature else None
    return (
        all(job.shares_a_call for job in jobs)
        and "num_images_per_prompt" in signature
        and "list[" in str(generator).lower()
        and not row.alone
        and row.preparation is None
        and sum(len(job.seeds) for job in jobs) > 1
        and read_alike(callee.pipe, jobs)
    )


def _fitting(jobs: Sequence[Job], at_once: int) -> tuple[Job, ...]:
    """Return the first jobs whose images are at most `at_once` together; the very first in any case."""
    counts = accumulate(len(job.seeds) for job in jobs)
    return tuple(
        job for index, (job, count) in enumerate(zip(jobs, counts, strict=True)) if not index or count <= at_once
    )


def _together(callee: Callee, batch: Batch, at_once: int) -> tuple[Outcome, ...] | None:
    """Return each job's outcome; None when the pipeline did not return one image for every seed after all."""
    images_to_make = [(job, seed) for job in batch.jobs for seed in job.seeds]
    parts = [images_to_make[start : start + at_once] for start in range(0, len(images_to_make), at_once)]
    images: list[Any] = []
    for index, part in enumerate(parts):
        arrays = arrays_of(call_once(callee.part(index, len(parts)), batch, part))
        if len(arrays) != len(part):
            return None
        images += arrays
    return tuple(_outcome(job, [images.pop(0) for _ in job.seeds]) for job in batch.jobs)


def _outcome(job: Job, arrays: list[Any]) -> Outcome:
    try:
        return tuple(_artifact(image, job, seed) for image, seed in zip(to_rasters(arrays), job.seeds, strict=True))
    except InvalidOutput as error:  # its companions' images may be as they should
        return error


def _one_by_one(callee: Callee, batch: Batch) -> Outcome:
    job = batch.jobs[0]
    artifacts: list[Artifact] = []
    for index, seed in enumerate(job.seeds):
        output = call_once(callee.part(index, len(job.seeds)), batch, [(job, seed)])
        artifacts += artifacts_of(output, job, seed)
    return tuple(artifacts)


def generator_of(seed: int) -> torch.Generator:
    """Return the generator of one image: on the CPU, so that every device generates the same."""
    return torch.Generator("cpu").manual_seed(seed)


def call_once(
    callee: Callee,
    batch: Batch,
    images: Sequence[tuple[Job, int]],
    generators: Sequence[torch.Generator] = (),
) -> Any:
    """Return the pipeline's output for these images of the batch, each a job and one of its seeds.

    `generators` go on from the state they are in; without them every seed has a fresh one. Raises JobCancelled,
    JobTimeout, or ParameterOutOfRange for a prompt of too many tokens.
    """
    pipe, signature = callee.pipe, callee.signature
    jobs, images_per_prompt = _words(images)
    job, seeds, own_words = jobs[0], [seed for _, seed in images], [each.id for each in jobs]
    arguments = {**arguments_of(jobs, signature), **callee.extra_for(len(jobs))}
    # One generator per image: a batch generates what single runs generate.
    generators = generators or [generator_of(seed) for _, seed in images]
    if "generator" in signature:
        arguments["generator"] = generators[0] if len(generators) == 1 else [*generators]
    for name in ("num_images_per_prompt", "num_videos_per_prompt"):
        if name in signature:
            arguments[name] = images_per_prompt

    # All jobs of a batch get its progress, but a preview may go to its own job only.
    previewer = Previewer(pipe, job) if job.request.previews and len(batch.jobs) == 1 else None

    progress = Progress("inference", 0, _steps_of(job))

    def after_step(step: int, latents: Any) -> None:
        nonlocal progress
        # As the pipeline counts: fewer where it starts in the middle, more where its scheduler looks twice.
        total = getattr(pipe, "num_timesteps", None) or progress.total
        preview = previewer.image(latents) if previewer else None
        progress = Progress("inference", min(step + 1, total), total, preview=preview, jobs=len(batch.jobs))
        callee.emit(progress)
        batch.check()

    batch.check()
    callee.emit(progress)
    with (
        _seeded(seeds[0]),
        nullcontext() if job.scheduler is None else seeded_steps(pipe, seeds, generators),
        watched(pipe, callee.row, signature, after_step) as callbacks,
        heard(pipe, job, arguments, signature) as words,
        prepared(pipe, callee.row, job, words) as ready,
        long_prompts_refused(),
        nullcontext() if callee.mixture is None else callee.mixture.calling([each.id for each, _ in images], own_words),
    ):
        output = pipe(**ready, **callbacks)
    if progress.step < progress.total:  # not every pipeline reports its last steps
        callee.emit(Progress("inference", progress.total, progress.total, jobs=len(batch.jobs)))
    return output


def _steps_of(job: Job) -> int:
    """Return the number of steps that the job asks for; 1 where it does not say."""
    counts = (job.params.get(name) for name in ("num_inference_steps", "num_inversion_steps"))
    return next((max(count, 1) for count in counts if isinstance(count, int) and count), 1)


def _words(images: Sequence[tuple[Job, int]]) -> tuple[list[Job], int]:
    """Return the jobs whose prompts go into the call, and the number of images for each prompt.

    A call generates equally many for all prompts. Where the jobs want different numbers, every image brings its prompt
    along. It also does where the call starts from an image: `num_images_per_prompt` repeats images with the noise of
    one seed for all.
    """
    runs = [[job for job, _ in run] for _, run in groupby(images, key=lambda image: id(image[0]))]
    if len({len(run) for run in runs}) == 1 and not images[0][0].media:
        return [run[0] for run in runs], len(runs[0])
    return [job for job, _ in images], 1


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed torch's own generators too, for the pipelines that use them; afterwards they are as they were."""
    # Not the pipeline's `_execution_device`: to find that it walks through all modules, which takes milliseconds.
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        # Not torch.manual_seed: for each kind of device that is not in use it formats the stack and keeps the call.
        torch.default_generator.manual_seed(seed)
        if devices:
            torch.cuda.manual_seed(seed)
        if torch.backends.mps.is_available():
            torch.mps.manual_seed(seed)
        yield


def artifacts_of(output: Any, job: Job, seed: int) -> list[Artifact]:
    """Return the artifacts of one call for one seed: one, or all layers, or an image and its depth."""
    if job.video is None:
        return [_artifact(image, job, seed) for image in read_images(output)]
    videos = [video[: job.video.frames] for video in read_videos(output)]
    sizes = {(frame.width, frame.height, frame.mode) for video in videos for frame in video}
    if len(sizes) != 1:
        raise InvalidOutput(f"The pipeline returned frames of {len(sizes)} different sizes.")
    return [Artifact(job.id, video[0], seed, tuple(video), job.video.fps) for video in videos]


def _untouched(job: Job, seed: int) -> Artifact:
    """Return the image that was sent, at the size of a result: with no step to run most pipelines fail."""
    source = next(item for item in job.media if item.field in ("video", "image", "images"))
    if job.video is None:
        return Artifact(job.id, source.images[0], seed)
    return Artifact(job.id, source.images[0], seed, source.images[: job.video.frames], job.video.fps)


def _artifact(image: Raster, job: Job, seed: int) -> Artifact:
    return Artifact(job.id, keep_outside(image, job), seed)
