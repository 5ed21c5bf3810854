"""The row of the architecture table, and constants that all rows share."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import JsonValue

from worker.catalog.conditions import Condition, ConfigCondition, all_of, has_prefix, under
from worker.catalog.schedulers import Noise
from worker.core.model import SchedulerConfig, Task
from worker.core.prompt import PromptForm
from worker.core.single_file import VAE_PREFIXES

MEGAPIXEL = 1_048_576

# Prefixes of the denoiser's names in a file: none, LDM's and ComfyUI's, trainers', diffusers'.
DENOISER_PREFIXES = (
    "", "model.diffusion_model.", "diffusion_model.", "model.model.", "model.", "transformer.", "unet.", "net.",
)  # fmt: skip
TEXT_ENCODER_PREFIXES = ("cond_stage_model.", "conditioner.", "text_encoders.", "text_encoder.", "te.", "te1.")


@dataclass(frozen=True, slots=True)
class Name:
    """A name that pages and trainers give a family's models, with the variant and prediction type that it implies.

    `text` is CivitAI's name to the letter; among `names` it is a pattern, in which `.?` stands for the separators that
    people use: nothing . - _ space. The more `general` one is, the later it is tried, after those of other families.
    """

    text: str
    variant: str | None = None
    prediction_type: str | None = None
    general: int = 0


@dataclass(frozen=True, slots=True)
class LoraRule:
    """A name of a module that a family's LoRAs change, with `_` for dots; sizes tell families that share the name.

    Names alone are tried before names with a size. A `general` one is tried last: other families' names start alike.
    """

    pattern: str
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    general: bool = False


@dataclass(frozen=True, slots=True)
class Prompts:
    """The prompts of a family's pipelines, where the worker can weigh them: form, and `widths` of the encoders by name.

    `layers` are those of the smallest encoder.
    """

    form: PromptForm
    widths: Mapping[str, int]
    layers: int = 12


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
    defaults: Mapping[str, JsonValue]  # by diffusers parameter name
    # Defaults that most image families share.
    native_size: int = 1024
    size_multiple: int = 16
    max_pixels: int = 4 * MEGAPIXEL
    classes: tuple[str, ...] = ()  # further `_class_name`s of this family's repositories
    max_steps: int = 150
    guidance: str = "guidance_scale"  # the parameter that a caller's "guidance" means
    negative_prompt: bool = True
    checkpoint: Condition | None = None  # on a single file with the whole model
    denoiser: Condition | None = None  # on the UNet or transformer alone
    original: bool = False  # its authors' tensor names are converted; diffusers' are read for every family
    unread: Condition | None = None  # on its authors' tensor names where nothing converts them
    config: str | None = None  # folder below catalog/configs, when single files load offline
    base_repo: str | None = None  # the source of missing parts otherwise
    activation_gb_per_mp: float = 2.0  # working memory for one megapixel, half precision
    notes: Mapping[str, str] = field(default_factory=dict)
    family: str = ""  # the row whose LoRAs fit this one; its own id when empty
    sibling: str | None = None  # the row that owns the classes of this one
    repository: ConfigCondition | None = None  # tells a sibling's repository apart
    twin: str | None = None  # the row whose single files look exactly like this one's: only a declaration tells
    # variant of the same shapes -> defaults that differ; an empty mapping names a variant that runs alike
    variants: Mapping[str, Mapping[str, JsonValue]] = field(default_factory=dict)
    # Its names.
    civitai: tuple[Name, ...] = ()  # as CivitAI's `baseModel` has it
    names: tuple[Name, ...] = ()  # in the Hub's ids and in trainers' metadata
    # Its sampling.
    noise: Noise | None = "flow"  # the weights' kind of noise; None for a kind that no other family has
    scheduler: str | None = "FlowMatchEulerDiscreteScheduler"  # that its models bring; None where these differ
    # Variant -> the scheduler for its files.
    few_steps: Mapping[str, SchedulerConfig] = field(default_factory=dict)
    epsilon_or_v: bool = False  # its files may predict either, and do not show it
    fps: float | None = None  # frames a second of the videos that it was trained on, from its model card
    fixed_size: bool = False  # its config's sample_size is not the size that the pipeline generates by itself
    # Its prompts and parameters.
    prompts: Prompts | None = None
    parameters: Mapping[str, str] = field(default_factory=dict)  # beyond its defaults, where no signature can be read
    # Its adapters.
    image_prompts: bool = False  # takes IP-Adapters; where a signature can be read that tells
    ip_adapter_files: tuple[str, ...] = ()  # that a repository's name alone means, the first choice first
    image_encoder: str | None = None  # that its IP-Adapters mean, where their width alone says another
    hypernetworks: bool = False
    trained_whole: bool = False  # small enough that every weight of its denoiser is learnt on one device
    adapters_like: str | None = None  # the row whose LoRAs name the same modules, so that keys cannot tell them apart
    loras: tuple[LoraRule, ...] = ()  # rules that recognise a LoRA for it
    lora_note: str = ""  # added to a LoRA's evidence for this base
    # Its parts.
    text_width: int | None = None  # of the text that a UNet's attention reads, where only this row's has it
    # Input channels of the denoiser -> the class and its one task.
    by_channels: Mapping[int, tuple[str, Task]] = field(default_factory=dict)
    inpaints_apart: bool = False  # other weights than a repository's own see a mask
    autoencoders: tuple[str, ...] = ()  # which of `detectors.encoders` only this family uses
    t2i_adapters: tuple[str, ...] = ()  # the `adapter_type`s of its T2I-Adapters
    motion_levels: int | None = None  # of its motion modules
    ai_toolkit: str | None = None  # its `arch` there, where it reads a repository of this family in diffusers' layout

    @property
    def adapter_base(self) -> str:
        """The architecture id that adapters for this row are made for."""
        return self.family or self.id


# Distilled models generate in few steps and without guidance, as their authors publish.
FEW_STEPS: Mapping[str, Mapping[str, JsonValue]] = {
    "turbo": {"num_inference_steps": 4, "guidance_scale": 0.0},
    "lightning": {"num_inference_steps": 8, "guidance_scale": 1.0},
    "hyper": {"num_inference_steps": 8, "guidance_scale": 1.0},
    "lcm": {"num_inference_steps": 6, "guidance_scale": 1.5},
}


# Schedulers for files of few steps, as their authors publish; the family's own scheduler begins too late.
_TRAILING: Mapping[str, JsonValue] = {"timestep_spacing": "trailing"}
FEW_STEP_SCHEDULERS: Mapping[str, SchedulerConfig] = {
    "turbo": SchedulerConfig("EulerAncestralDiscreteScheduler", _TRAILING),
    "lightning": SchedulerConfig("EulerDiscreteScheduler", _TRAILING),
    "hyper": SchedulerConfig("DDIMScheduler", _TRAILING),
    "lcm": SchedulerConfig("LCMScheduler"),
}
# Parameters of Stable Diffusion's pipelines beside the defaults.
SD_PARAMETERS: Mapping[str, str] = {"eta": "number", "guidance_rescale": "number", "clip_skip": "integer"}


def whole(part: Condition) -> Condition:
    """Condition that `part` holds in a whole model: a file that also has a VAE or a text encoder."""
    return all_of(under(("model.diffusion_model.",), part), has_prefix(*VAE_PREFIXES, *TEXT_ENCODER_PREFIXES))


def alone(part: Condition) -> Condition:
    """Condition that `part` holds under any of the prefixes that tools give the denoiser."""
    return under(DENOISER_PREFIXES, part)
