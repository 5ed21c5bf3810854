"""Two models for one image: the first stops in the middle of the steps, the refiner goes on from its latents."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from worker.core.finishing import Refiner
from worker.core.job import Batch
from worker.core.result import Artifact, Emit
from worker.engine.call import Callee, artifacts_of, call_once, generator_of


@dataclass(slots=True)
class Begun:
    """A half-generated image: its latents, 1xCxhxw on the CPU."""

    seed: int
    latents: torch.Tensor
    noise: torch.Tensor  # the state of the generator that made them, which goes on


def begin_images(pipe: Any, batch: Batch, extra: Mapping[str, Any], refiner: Refiner, emit: Emit) -> tuple[Begun, ...]:
    """Generate every image of `batch`'s job until the refiner takes over. Latents are not decoded in between."""
    until = {"denoising_end": refiner.spec.start, "output_type": "latent"}
    callee, job = Callee.of(pipe, batch.jobs[0].call.row, {**extra, **until}, emit), batch.jobs[0]
    begun = []
    for index, seed in enumerate(job.seeds):
        generator = generator_of(seed)
        output = call_once(callee.part(index, len(job.seeds)), batch, [(job, seed)], [generator])
        # The first model may have to leave the device before the second one comes.
        begun.append(Begun(seed, output.images.detach().cpu(), generator.get_state()))
    return tuple(begun)


def finish_images(
    pipe: Any, batch: Batch, begun: tuple[Begun, ...], refiner: Refiner, emit: Emit
) -> tuple[Artifact, ...]:
    """Run the remaining steps of the images in `begun`, with the refiner's own pipeline and the same prompt."""
    job = batch.jobs[0]
    if getattr(pipe, "text_encoder", None) is None:  # weighted prompts need both of SDXL's encoders
        job = replace(job, words=None)
    artifacts: list[Artifact] = []
    for index, item in enumerate(begun):
        extra = {
            "image": item.latents.to(pipe._execution_device, pipe.unet.dtype),
            "denoising_start": refiner.spec.start,
        }
        if refiner.spec.steps is not None:
            extra["num_inference_steps"] = refiner.spec.steps
        generator = torch.Generator("cpu")
        generator.set_state(item.noise)
        callee = Callee.of(pipe, refiner.call.row, extra, emit).part(index, len(begun))
        output = call_once(callee, batch, [(job, item.seed)], [generator])
        artifacts += artifacts_of(output, job, item.seed)
    return tuple(artifacts)
