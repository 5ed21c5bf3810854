"""How a pipeline reads prompts, where the worker can weigh their words: by the model's family and the class's call."""

from collections.abc import Mapping

from worker.catalog.architectures import base_of
from worker.catalog.classes.signatures import call_parameters
from worker.catalog.interface.tasks import architecture_of
from worker.catalog.pipelines.table import pipeline_row
from worker.core.model import Detection, ModelSpec
from worker.core.prompt import PromptForm

_CLIP_LAYERS = 12  # of the smallest CLIP that pipelines have


def prompt_form(spec: ModelSpec, detection: Detection | None, class_name: str | None) -> PromptForm | None:
    """How the class reads prompts; None where it takes no embeddings, or those of encoders that are not weighed."""
    row = architecture_of(spec, detection)
    prompts = base_of(row).prompts if row is not None else None
    form = prompts.form if prompts else None
    signature = call_parameters(class_name or "") or {}
    if (
        form is None
        or not {"prompt", "prompt_embeds"} <= signature.keys()
        or not pipeline_row(class_name).weighs_prompts
    ):
        return None
    pooled = "pooled_prompt_embeds" in signature
    if form == "clip" and pooled:
        return "clip-pair"  # AnimateDiff's class for SDXL stands in Stable Diffusion 1's row
    return form if pooled or form == "clip" else None


def clip_skip_limit(spec: ModelSpec, detection: Detection | None) -> int:
    """How many layers `clip_skip` may leave out: one has to be left, and all but single encoders lack one already."""
    row = architecture_of(spec, detection)
    prompts = base_of(row).prompts if row is not None else None
    if prompts is None:
        return _CLIP_LAYERS - 1
    return prompts.layers - (1 if prompts.form == "clip" else 2)


def encoder_widths(
    spec: ModelSpec, detection: Detection | None, configs: Mapping[str, Mapping[str, object]]
) -> dict[str, int]:
    """The width of each text encoder that words can be taught to, by what embeddings call it: from the model's own
    configs, else the family's; {} where neither tells."""
    found: dict[str, int] = {}
    for folder, part in (("text_encoder", "clip_l"), ("text_encoder_2", "clip_g"), ("text_encoder_3", "t5")):
        config = configs.get(f"{folder}/config.json", {})
        kind = "t5" if config.get("model_type") == "t5" else part
        width = config.get("d_model" if kind == "t5" else "hidden_size")
        if isinstance(width, int):
            found[kind] = width
    row = architecture_of(spec, detection)
    if found or row is None or spec.config is not None:
        return found
    prompts = base_of(row).prompts
    return dict(prompts.widths) if prompts else {}
