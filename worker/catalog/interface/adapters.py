"""THE TABLE of what can be put beside a model: which of a request's adapter fields a family or a class takes."""

from collections.abc import Callable, Mapping

from worker.catalog.architectures import base_of
from worker.catalog.classes.signatures import call_parameters, part_classes
from worker.catalog.classes.tasks import draws_video
from worker.catalog.interface.controls import takes_controls
from worker.catalog.interface.prompt_encoding import prompt_form
from worker.catalog.interface.tasks import architecture_of, pipeline_for
from worker.catalog.pipelines.table import pipeline_row
from worker.core.model import Detection, Kind, ModelSpec, Task

Takes = Callable[[ModelSpec, Detection | None, Task], bool]


def _words(spec: ModelSpec, detection: Detection | None, task: Task) -> bool:
    """Words can be taught where the prompt is read by CLIP or T5 as the families' own pipelines do."""
    return prompt_form(spec, detection, pipeline_for(spec, detection, task)) is not None


def _attention_of_unets(spec: ModelSpec, detection: Detection | None, task: Task) -> bool:
    """Hypernetworks exist for the UNets of Stable Diffusion 1 and 2."""
    row = architecture_of(spec, detection)
    return row is not None and base_of(row).hypernetworks


def _takes_image_prompts(spec: ModelSpec, detection: Detection | None, task: Task) -> bool:
    pipeline = pipeline_for(spec, detection, task) or ""
    signature = call_parameters(pipeline)
    if signature is None:
        row = architecture_of(spec, detection)
        return row is not None and base_of(row).image_prompts
    # Classes with the first alone are from before there could be several adapters, and fail with what is loaded now.
    both = {"ip_adapter_image", "ip_adapter_image_embeds"} <= signature.keys()
    return both and pipeline_row(pipeline).image_prompts != "none"


def takes_one_image_prompt(class_name: str) -> bool:
    """Whether a class takes one IP-Adapter with one picture, and no more."""
    return pipeline_row(class_name).image_prompts == "one"


# Autoencoders of 2D latents that can stand for one another.
INTERCHANGEABLE_VAES = frozenset(
    {"AutoencoderKL", "AsymmetricAutoencoderKL", "ConsistencyDecoderVAE", "AutoencoderTiny"}
)


def _takes_vae(spec: ModelSpec, detection: Detection | None, task: Task) -> bool:
    return bool(INTERCHANGEABLE_VAES & part_classes(pipeline_for(spec, detection, task) or "", "vae"))


# Where a call stops and goes on, which a refiner's `start` says.
HANDED_OVER = ("denoising_end", "denoising_start")


def _hands_over(spec: ModelSpec, detection: Detection | None, task: Task) -> bool:
    """A refiner goes on where a call can stop: with `denoising_end`, and without a mask that it would not know of."""
    signature = call_parameters(pipeline_for(spec, detection, task) or "") or {}
    return task in (Task.TEXT_TO_IMAGE, Task.IMAGE_TO_IMAGE) and "denoising_end" in signature


def _draws_pictures(spec: ModelSpec, detection: Detection | None, task: Task) -> bool:
    upscales = detection is not None and detection.kind is Kind.UPSCALER
    return not upscales and not draws_video(pipeline_for(spec, detection, task), task)


# The request's field -> whether a model takes it for a task.
_TAKES: Mapping[str, Takes] = {
    "controlnets": takes_controls,
    "ip_adapters": _takes_image_prompts,
    "embeddings": _words,
    "hypernetworks": _attention_of_unets,
    "vae": _takes_vae,
    "refiner": _hands_over,
    "upscale": _draws_pictures,
}


def adapter_fields(spec: ModelSpec, detection: Detection | None, task: Task) -> tuple[str, ...]:
    """The adapter fields, LoRAs aside, that a request for `task` may hold."""
    return tuple(field for field, takes in _TAKES.items() if takes(spec, detection, task))


def all_adapter_fields() -> tuple[str, ...]:
    """The adapter fields of all models, LoRAs aside."""
    return tuple(_TAKES)
