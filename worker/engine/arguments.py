"""The keyword arguments of a pipeline's call: a job's parameters, its prompts, and its images in the right form."""

import dataclasses
import functools
import inspect
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL import Image, ImageOps

from worker.core.job import PROMPT_PARAMETERS, Job, Media
from worker.core.pipeline import Form
from worker.media.images import to_pil

Signature = Mapping[str, inspect.Parameter]
_NUMBERED = re.compile(r"(negative_)?prompt_\d")  # the prompt of one text encoder of several


@functools.lru_cache(maxsize=256)
def parameters_of(function: Callable[..., Any]) -> Signature:
    """Return the parameters of a class's function. Cached: a job asks several times, and the answer is slow to find."""
    return inspect.signature(function).parameters


def arguments_of(jobs: Sequence[Job], signature: Signature) -> dict[str, Any]:
    """Return the arguments of one call for all of `jobs`. Values that the pipeline does not take are left out."""
    first = jobs[0]
    arguments = {name: native(value, signature[name]) for name, value in first.params.items() if name in signature}
    _add_prompts(arguments, jobs, signature)
    for index, media in enumerate(first.media):
        values = [converted(job.media[index], signature) for job in jobs]
        arguments[media.parameter] = _stacked(values) if media.is_single else values[0]
    if "output_type" in signature:
        # As floats, so that NaN can be seen: as PIL it has become black already. Only cropping around a mask wants PIL.
        arguments["output_type"] = "np" if arguments.get("padding_mask_crop") is None else "pil"
    return arguments


def _add_prompts(arguments: dict[str, Any], jobs: Sequence[Job], signature: Signature) -> None:
    """Add the prompts of all jobs, under the names that the pipeline has for them."""
    prompt = next((name for name in PROMPT_PARAMETERS if name in signature), None)
    if prompt is not None:
        arguments.setdefault(prompt, _stacked([job.prompt for job in jobs]))
    negatives = [job.negative_prompt for job in jobs]
    if "negative_prompt" in signature and None not in negatives:
        arguments["negative_prompt"] = _stacked(negatives)
    numbered = [name for name in arguments if _NUMBERED.fullmatch(name)]
    if any(name.startswith("negative") for name in numbered):
        arguments.setdefault("negative_prompt", _stacked([""] * len(jobs)))  # without it the numbered ones are not read
    for name in numbered if len(jobs) > 1 else ():  # one for each prompt, as that is a list
        arguments[name] = [arguments[name]] * len(jobs)


def converted(media: Media, signature: Signature) -> Any:
    """Return the images of `media` in the form that its parameter takes."""
    images = [to_pil(raster) for raster in media.images]
    if media.form == "condition":
        return _conditions(media, images, signature[media.parameter].annotation)
    return _FORMS[media.form](images)


def _grid(images: list[Image.Image]) -> list[list[Image.Image | None]]:
    """Return two rows: the complete example, and the question. The question's last image is the one to generate."""
    columns = (len(images) + 1) // 2
    return [[*images[:columns]], [*images[columns:], *[None] * (2 * columns - len(images))]]


_FORMS: Mapping[Form, Callable[[list[Image.Image]], Any]] = {
    "image": lambda images: images[0],
    "images": lambda images: images,
    "controls": lambda images: images[0] if len(images) == 1 else images,
    "batch": lambda images: [images],
    "mask": lambda images: images[0],
    "unmask": lambda images: ImageOps.invert(images[0]),
    "transparent": lambda images: images[0].convert("RGBA"),
    "grid": _grid,
}


def _conditions(media: Media, images: list[Image.Image], annotation: Any) -> list[Any]:
    """Return diffusers' condition objects: one for a whole video, one for each image."""
    condition_class: Any = next(item for item in typing.get_args(annotation) if dataclasses.is_dataclass(item))
    if "video" in media.field:
        return [condition_class(frames=images)]
    return [condition_class(frames=image) for image in images]


def native(value: Any, parameter: inspect.Parameter) -> Any:
    """Return `value` as a list or a tuple, as the parameter wants. JSON has lists; some pipelines add tuples."""
    wants_tuple = isinstance(parameter.default, tuple) or "tuple" in str(parameter.annotation).lower()
    return (
        tuple(value) if isinstance(value, list) and wants_tuple and "list" not in str(parameter.annotation) else value
    )


def _stacked(values: list[Any]) -> Any:
    return values[0] if len(values) == 1 else values
