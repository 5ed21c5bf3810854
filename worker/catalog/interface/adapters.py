"""THE TABLE of adapter kinds: their names, the files of each, and the models that take them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from worker.catalog.architectures import base_of
from worker.catalog.call import ModelCall, once
from worker.catalog.classes.modular import has_lora_loader, is_modular
from worker.catalog.classes.signatures import part_classes
from worker.catalog.interface.controls import takes_controls
from worker.catalog.interface.prompt_encoding import prompt_form
from worker.core.adapter import ControlNetSpec, EmbeddingSpec, HypernetworkSpec, IPAdapterSpec, VaeSpec
from worker.core.model import AdapterSpec, Kind, LoraSpec, Task

Takes = Callable[[ModelCall], bool]


def _words(call: ModelCall) -> bool:
    """True if words can be taught: where CLIP or T5 reads the prompt as in the families' own pipelines."""
    return prompt_form(call) is not None


def _attention_of_unets(call: ModelCall) -> bool:
    """True if hypernetworks exist for the family: for the UNets of Stable Diffusion 1 and 2."""
    row = call.architecture
    return row is not None and base_of(row).hypernetworks


def _takes_image_prompts(call: ModelCall) -> bool:
    if call.signature is None:
        row = call.architecture
        return row is not None and base_of(row).image_prompts
    # Classes with the first alone are older than several adapters at once, and fail with the ones that are loaded now.
    return call.takes("ip_adapter_image", "ip_adapter_image_embeds") and call.row.image_prompts != "none"


def takes_one_image_prompt(call: ModelCall) -> bool:
    """True if the class takes one IP-Adapter with one image, and no more."""
    return call.row.image_prompts == "one"


# Autoencoders of 2D latents that can stand for one another.
INTERCHANGEABLE_VAES = frozenset(
    {"AutoencoderKL", "AsymmetricAutoencoderKL", "ConsistencyDecoderVAE", "AutoencoderTiny"}
)


def _takes_vae(call: ModelCall) -> bool:
    return bool(INTERCHANGEABLE_VAES & part_classes(call.pipeline, "vae"))


# The share of the steps where a call stops and the next goes on; a refiner's `start` sets them.
HANDED_OVER = ("denoising_end", "denoising_start")


def _hands_over(call: ModelCall) -> bool:
    """True if a refiner can go on: after a call with `denoising_end`, and without a mask that it would not know."""
    return call.task in (Task.TEXT_TO_IMAGE, Task.IMAGE_TO_IMAGE) and call.takes("denoising_end")


def _makes_images(call: ModelCall) -> bool:
    return call.detection.kind is not Kind.UPSCALER and not call.makes_video


@dataclass(frozen=True, slots=True)
class AdapterKind:
    """One kind of adapter: its name, its files, and the models that take it for a task."""

    spec: type[AdapterSpec]
    title: str  # of one, in prose
    kinds: tuple[Kind, ...]  # of its files, as `catalog.detectors` finds them; of a whole pipeline a part is taken
    description: str  # of the request's field
    takes: Takes | None = None  # None for a kind that every denoising model takes
    most: int | None = None  # how many a request may hold; None where the operator sets it
    several: bool = True  # True: the field holds a list of specs; False: one reference
    bare: bool = True  # a reference alone is enough; False where an image is needed too


# The request's field -> the kind of adapter that it holds. The provider of each kind stands in
# `service.local.adapters.providers`, and the code that applies it in `engine.adapters.stack`.
ADAPTERS: Mapping[str, AdapterKind] = {
    "loras": AdapterKind(LoraSpec, "LoRA", (Kind.LORA,), "LoRAs to apply, in order."),
    "controlnets": AdapterKind(
        ControlNetSpec, "ControlNet or T2I-Adapter", (Kind.CONTROLNET, Kind.T2I_ADAPTER),
        "ControlNets and T2I-Adapters, each with its image.", takes_controls, most=4,
    ),
    "ip_adapters": AdapterKind(
        IPAdapterSpec, "IP-Adapter", (Kind.IP_ADAPTER,),
        "IP-Adapters, each with the images that prompt it.", _takes_image_prompts, most=4, bare=False,
    ),
    "embeddings": AdapterKind(
        EmbeddingSpec, "textual inversion", (Kind.TEXTUAL_INVERSION,),
        "Textual inversions that the prompts may name.", _words, most=16,
    ),
    "hypernetworks": AdapterKind(
        HypernetworkSpec, "hypernetwork", (Kind.HYPERNETWORK,),
        "Hypernetworks to apply, in order.", _attention_of_unets, most=4,
    ),
    "vae": AdapterKind(
        VaeSpec, "VAE", (Kind.VAE, Kind.PIPELINE),
        "A reference to the VAE that decodes instead.", _takes_vae, several=False,
    ),
}  # fmt: skip
# The fields of further models that work after the model -> True if a call takes them.
_FURTHER: Mapping[str, Takes] = {"refiner": _hands_over, "upscale": _makes_images}


def takes_loras(call: ModelCall) -> bool:
    """True unless the class is a modular pipeline that diffusers loads no LoRAs into."""
    return not is_modular(call.pipeline) or has_lora_loader(call.pipeline)


@once
def adapter_fields(call: ModelCall) -> tuple[str, ...]:
    """Return the adapter fields, LoRAs aside, that a request may hold."""
    return tuple(field for field, takes in _takes().items() if takes(call))


def all_adapter_fields() -> tuple[str, ...]:
    """Return the adapter fields of all models, LoRAs aside."""
    return tuple(_takes())


def _takes() -> dict[str, Takes]:
    return {field: kind.takes for field, kind in ADAPTERS.items() if kind.takes is not None} | dict(_FURTHER)
