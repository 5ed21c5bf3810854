"""A batch of jobs to one pipeline call, and its pictures back."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from worker.core.errors import InvalidOutput
from worker.core.image import Raster
from worker.core.job import Batch
from worker.core.result import Artifact, Emit, Progress

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def call_pipeline(pipe: Any, batch: Batch, emit: Emit) -> tuple[Artifact, ...]:
    """Run `pipe` once for all jobs of `batch`. Raises JobCancelled or JobTimeout from within a step."""
    accepted = inspect.signature(pipe.__call__).parameters
    arguments = _arguments(batch, accepted, pipe)
    arguments |= _callbacks(batch, accepted, pipe, emit)
    images = _pixels(pipe(**arguments).images)
    seeds = [(job.id, seed) for job in batch.jobs for seed in job.seeds]
    if len(images) != len(seeds):
        raise InvalidOutput(f"The pipeline returned {len(images)} pictures instead of {len(seeds)}.")
    return tuple(Artifact(job_id, _raster(image), seed) for (job_id, seed), image in zip(seeds, images, strict=True))


def _arguments(batch: Batch, accepted: Any, pipe: Any) -> dict[str, Any]:
    first = batch.jobs[0]
    per_job = {
        "prompt": [job.prompt for job in batch.jobs],
        "negative_prompt": [job.negative_prompt for job in batch.jobs],
        "image": [job.image for job in batch.jobs],
    }
    arguments: dict[str, Any] = {name: value for name, value in first.params.items() if name in accepted}
    for name, values in per_job.items():
        if name in accepted and all(value is not None for value in values):
            plain = [_picture(value) if isinstance(value, Raster) else value for value in values]
            arguments[name] = plain[0] if len(plain) == 1 else plain
    # One generator per picture: a batch draws what single runs draw.
    generators = [torch.Generator("cpu").manual_seed(seed) for job in batch.jobs for seed in job.seeds]
    arguments["generator"] = generators[0] if len(generators) == 1 else generators
    if "num_images_per_prompt" in accepted:
        arguments["num_images_per_prompt"] = len(first.seeds)
    if "output_type" in accepted:
        # As floats, so that NaN can be seen: as PIL it has become black already.
        arguments["output_type"] = "np"
    return arguments


def _callbacks(batch: Batch, accepted: Any, pipe: Any, emit: Emit) -> dict[str, Any]:
    steps = int(batch.jobs[0].params.get("num_inference_steps") or 1)

    def after_step(step: int) -> None:
        total = getattr(pipe, "num_timesteps", None) or steps
        emit(Progress("inference", min(step + 1, total), total))
        for job in batch.jobs:
            job.stop.check()

    if "callback_on_step_end" in accepted:

        def on_step_end(_: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            after_step(step)
            return tensors

        return {"callback_on_step_end": on_step_end}
    if "callback" in accepted:
        old_style: Callable[..., None] = lambda step, timestep, latents: after_step(step)  # noqa: E731
        return {"callback": old_style, "callback_steps": 1}
    return {}


def _picture(raster: Raster) -> Any:
    from PIL import Image

    return Image.frombytes(raster.mode, (raster.width, raster.height), raster.data)


def _pixels(images: Any) -> list[np.ndarray]:
    found = list(images) if isinstance(images, np.ndarray) else [np.asarray(image) for image in images]
    return [image if image.ndim == 3 else image[..., None] for image in found]


def _raster(image: np.ndarray) -> Raster:
    """One HxWxC picture, floats 0..1 or bytes, as 8-bit pixels. Raises InvalidOutput for NaN and for all black."""
    if image.dtype != np.uint8:
        if not np.isfinite(image).all():
            raise InvalidOutput(
                "The model returned NaN pixels; its weights may be damaged, or too large for half precision: "
                "set dtype: float32 for it in models.yaml."
            )
        image = (image * 255).round().astype("uint8")
    if not image[..., :3].any():
        raise InvalidOutput(
            "The model returned a completely black picture; its VAE may overflow in half precision: "
            "set dtype: float32 for it in models.yaml, or change prompt and seed."
        )
    height, width, channels = image.shape
    return Raster(_MODES[channels], width, height, image.tobytes())
