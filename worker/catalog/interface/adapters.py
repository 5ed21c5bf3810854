"""THE TABLE of what can be put beside a model: which of a request's adapter fields a family or a class takes."""

from collections.abc import Callable, Mapping

from worker.catalog.architectures import base_of
from worker.catalog.call import ModelCall, once
from worker.catalog.classes.signatures import part_classes
from worker.catalog.interface.controls import takes_controls
from worker.catalog.interface.prompt_encoding import prompt_form
from worker.core.model import Kind, Task

Takes = Callable[[ModelCall], bool]


def _words(call: ModelCall) -> bool:
    """Words can be taught where the prompt is read by CLIP or T5 as the families' own pipelines do."""
    return prompt_form(call) is not None


def _attention_of_unets(call: ModelCall) -> bool:
    """Hypernetworks exist for the UNets of Stable Diffusion 1 and 2."""
    row = call.architecture
    return row is not None and base_of(row).hypernetworks


def _takes_image_prompts(call: ModelCall) -> bool:
    if call.signature is None:
        row = call.architecture
        return row is not None and base_of(row).image_prompts
    # Classes with the first alone are from before there could be several adapters, and fail with what is loaded now.
    return call.takes("ip_adapter_image", "ip_adapter_image_embeds") and call.row.image_prompts != "none"


def takes_one_image_prompt(call: ModelCall) -> bool:
    """Whether the class takes one IP-Adapter with one picture, and no more."""
    return call.row.image_prompts == "one"


# Autoencoders of 2D latents that can stand for one another.
INTERCHANGEABLE_VAES = frozenset(
    {"AutoencoderKL", "AsymmetricAutoencoderKL", "ConsistencyDecoderVAE", "AutoencoderTiny"}
)


def _takes_vae(call: ModelCall) -> bool:
    return bool(INTERCHANGEABLE_VAES & part_classes(call.pipeline, "vae"))


# Where a call stops and goes on, which a refiner's `start` says.
HANDED_OVER = ("denoising_end", "denoising_start")


def _hands_over(call: ModelCall) -> bool:
    """A refiner goes on where a call can stop: with `denoising_end`, and without a mask that it would not know of."""
    return call.task in (Task.TEXT_TO_IMAGE, Task.IMAGE_TO_IMAGE) and call.takes("denoising_end")


def _draws_images(call: ModelCall) -> bool:
    return call.detection.kind is not Kind.UPSCALER and not call.draws_video


# The request's field -> whether a model takes it for a task.
_TAKES: Mapping[str, Takes] = {
    "controlnets": takes_controls,
    "ip_adapters": _takes_image_prompts,
    "embeddings": _words,
    "hypernetworks": _attention_of_unets,
    "vae": _takes_vae,
    "refiner": _hands_over,
    "upscale": _draws_images,
}


@once
def adapter_fields(call: ModelCall) -> tuple[str, ...]:
    """The adapter fields, LoRAs aside, that a request may hold."""
    return tuple(field for field, takes in _TAKES.items() if takes(call))


def all_adapter_fields() -> tuple[str, ...]:
    """The adapter fields of all models, LoRAs aside."""
    return tuple(_TAKES)
