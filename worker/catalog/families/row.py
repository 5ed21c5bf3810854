"""What one row of the architecture table holds, and the words that all rows share."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import JsonValue

from worker.catalog.conditions import Condition, ConfigCondition, all_of, has_prefix, under
from worker.core.model import Task

MEGAPIXEL = 1_048_576

# How tools spell the denoiser's place in a file: nothing, LDM and ComfyUI, trainers, diffusers.
DENOISER_PREFIXES = (
    "", "model.diffusion_model.", "diffusion_model.", "model.model.", "model.", "transformer.", "unet.", "net.",
)  # fmt: skip
VAE_PREFIXES = ("first_stage_model.", "vae.")
TEXT_ENCODER_PREFIXES = ("cond_stage_model.", "conditioner.", "text_encoders.", "text_encoder.", "te.", "te1.")


@dataclass(frozen=True, slots=True)
class Architecture:
    """One model family. Sizes are pixels; `max_pixels` is width x height.

    A repository belongs to the row whose `pipelines` or `classes` name its `_class_name`. A row with `sibling` shares
    the classes of that row and is told apart by `repository`. `family` names the LoRA base that rows share.
    A row without a `denoiser` condition is still found in files that diffusers saved, by its pipeline's model class.
    """

    id: str
    title: str
    pipelines: Mapping[Task, str]  # the diffusers class that serves each task
    native_size: int
    size_multiple: int
    max_pixels: int
    defaults: Mapping[str, JsonValue]  # by diffusers parameter name
    classes: tuple[str, ...] = ()  # further `_class_name`s of this family's repositories
    max_steps: int = 150
    guidance: str = "guidance_scale"  # the parameter that a caller's "guidance" means
    negative_prompt: bool = True
    checkpoint: Condition | None = None  # what a single file with the whole model shows
    denoiser: Condition | None = None  # what the UNet or transformer alone shows
    config: str | None = None  # folder below catalog/configs, when single files load offline
    base_repo: str | None = None  # where missing parts come from otherwise
    activation_gb_per_mp: float = 2.0  # working memory for one megapixel, half precision
    notes: Mapping[str, str] = field(default_factory=dict)
    family: str = ""  # the row whose LoRAs fit this one; its own id when empty
    sibling: str | None = None  # the row that owns the classes of this one
    repository: ConfigCondition | None = None  # what tells a sibling's repository apart
    twin: str | None = None  # the row whose single files look exactly like this one's: only a declaration tells
    # what the same shapes are trained to -> defaults that differ; an empty mapping names a variant that runs alike
    variants: Mapping[str, Mapping[str, JsonValue]] = field(default_factory=dict)

    @property
    def adapter_base(self) -> str:
        """The architecture id that adapters for this row are made for."""
        return self.family or self.id


# Distilled models draw in few steps and without guidance: what their authors publish.
FEW_STEPS: Mapping[str, Mapping[str, JsonValue]] = {
    "turbo": {"num_inference_steps": 4, "guidance_scale": 0.0},
    "lightning": {"num_inference_steps": 8, "guidance_scale": 1.0},
    "hyper": {"num_inference_steps": 8, "guidance_scale": 1.0},
    "lcm": {"num_inference_steps": 6, "guidance_scale": 1.5},
}


def whole(part: Condition) -> Condition:
    """`part` holds in a file that also has a VAE or a text encoder: the whole model, not the denoiser alone."""
    return all_of(under(("model.diffusion_model.",), part), has_prefix(*VAE_PREFIXES, *TEXT_ENCODER_PREFIXES))


def alone(part: Condition) -> Condition:
    """`part` holds under any of the prefixes that tools give the denoiser."""
    return under(DENOISER_PREFIXES, part)
