"""Preparations that a pipeline needs before its call, as its row names them, and the arguments left after them."""

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

from PIL import Image, ImageOps

from worker.core.job import Job
from worker.core.pipeline import PipelineRow, Preparation
from worker.engine.arguments import native
from worker.engine.compatibility import input_as_the_vae, sides_in_order

Arguments = dict[str, Any]


@contextmanager
def prepared(pipe: Any, row: PipelineRow, job: Job, arguments: Arguments) -> Iterator[Arguments]:
    """Prepare the class's call and yield its `arguments`. The preparation is undone at the end."""
    prepare = _PREPARATIONS[row.preparation] if row.preparation else None
    tiled = row.tiled_decoding and not getattr(pipe.vae, "use_tiling", False)
    if tiled:
        pipe.vae.enable_tiling()
    cast = input_as_the_vae(pipe) if row.casts_images else nullcontext()
    ordered = sides_in_order(pipe) if row.swaps_sides else nullcontext()
    try:
        with cast, ordered:
            yield prepare(pipe, job, arguments) if prepare else arguments
    finally:
        if tiled:
            pipe.vae.disable_tiling()


def _invert_ledits(pipe: Any, job: Job, arguments: Arguments) -> Arguments:
    """Invert the image for LEdits++ into the noise that would generate it; the call then generates it differently."""
    pipe.invert(image=arguments["image"], generator=arguments.get("generator"), **_options_for(pipe.invert, job))
    rest = {name: value for name, value in arguments.items() if name in _parameters(pipe.__call__)}
    prompt = rest.get("editing_prompt")
    return rest | {"editing_prompt": [prompt] if isinstance(prompt, str) else prompt}


def _invert_diffedit(pipe: Any, job: Job, arguments: Arguments) -> Arguments:
    """Invert the image for DiffEdit, and find the mask where the prompts differ; the call generates there anew."""
    image, generator = arguments["image"], arguments["generator"]
    source, source_negative = str(job.params.get("source_prompt") or ""), job.params.get("source_negative_prompt")
    mask = arguments.get("mask_image")
    if mask is not None:  # it is compared with latents, and wants their size
        mask = mask.resize([side // pipe.vae_scale_factor for side in mask.size])
    else:
        options = {"target_prompt": job.prompt} | _options_for(pipe.generate_mask, job) | {"source_prompt": source}
        mask = pipe.generate_mask(image=image, generator=generator, **options)
    prompts: Arguments = {"prompt": source, "negative_prompt": source_negative} | _options_for(pipe.invert, job)
    inverted = pipe.invert(image=image, generator=generator, **prompts).latents
    rest = {name: value for name, value in arguments.items() if name in _parameters(pipe.__call__)}
    return rest | {"mask_image": mask, "image_latents": inverted}


def _constant_guidance(pipe: Any, job: Job, arguments: Arguments) -> Arguments:
    """Replace Ideogram 4's schedule of 48 guidances, which forbids a `guidance_scale` and any other number of steps."""
    if "guidance_schedule" in arguments or not {"guidance_scale", "num_inference_steps"} & arguments.keys():
        return arguments
    first = _parameters(pipe.__call__)["guidance_schedule"].default[0]
    return {"guidance_scale": float(first)} | arguments | {"guidance_schedule": None}


def _guide_always(pipe: Any, job: Job, arguments: Arguments) -> Arguments:
    """Guide by a hair more than 1, which is as good as 1: its blocks fail where they encode no negative prompt."""
    return arguments | {"guidance_scale": 1.000001} if arguments.get("guidance_scale") == 1 else arguments


def _fit_glm_images(pipe: Any, job: Job, arguments: Arguments) -> Arguments:
    """Fit images to GLM-Image's grid and bounds, where its tokens and its VAE count equally many.

    Other images are enlarged or reduced, those longer than four to one are cut, and sides are rounded. Without a size
    the answer has that of the first image, as diffusers means it to: its processor is asked before it has looked.
    """
    images = arguments.get("image")
    if not images:
        return arguments
    processor = pipe.processor.image_processor
    grid = 2 * processor.patch_size
    low, high = (math.isqrt(processor.size[name]) for name in ("shortest_edge", "longest_edge"))

    def fitted(image: Image.Image) -> Image.Image:
        scale = min(max(1.0, low / min(image.size)), high / max(image.size))
        width, height = (min(high, max(low, round(side * scale / grid) * grid)) for side in image.size)
        return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)

    fitted_images = [fitted(image) for image in images]
    size = dict(zip(("width", "height"), fitted_images[0].size, strict=True))
    unsaid = {name: side for name, side in size.items() if arguments.get(name) is None}
    return arguments | unsaid | {"image": fitted_images}


def _whole_latte(pipe: Any, job: Job, arguments: Arguments) -> Arguments:
    """Ask Latte for a whole video or a single frame: it has a position for each frame and generates all or one."""
    length = arguments.get("video_length", 1)
    return arguments | {"video_length": pipe.transformer.config.video_length} if length > 1 else arguments


def _whole_chunks(pipe: Any, job: Job, arguments: Arguments) -> Arguments:
    """Part AnyFlow FAR's latent frames into chunks as long as its own, as many as the video needs."""
    frames = arguments.get("num_frames")
    if frames is None or arguments.get("chunk_partition") is not None:
        return arguments
    own = list(pipe.transformer.config.chunk_partition)
    left = (frames - 1) // pipe.vae_scale_factor_temporal + 1
    chunks: list[int] = []
    while left > 0:
        chunk = own[len(chunks)] if len(chunks) < len(own) else own[-1]
        chunks.append(min(chunk, left))
        left -= chunk
    return arguments | {"chunk_partition": chunks}


def _options_for(call: Callable[..., Any], job: Job) -> Arguments:
    """Return the job's parameters that `call` takes, one of those before the last."""
    accepted = _parameters(call)
    return {name: native(value, accepted[name]) for name, value in job.params.items() if name in accepted}


def _parameters(call: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(call).parameters


_PREPARATIONS: Mapping[Preparation, Callable[[Any, Job, Arguments], Arguments]] = {
    "constant_guidance": _constant_guidance,
    "fitted_images": _fit_glm_images,
    "guided_always": _guide_always,
    "inverted_diffedit": _invert_diffedit,
    "inverted_ledits": _invert_ledits,
    "whole_chunks": _whole_chunks,
    "whole_video": _whole_latte,
}
