"""The form in which a pipeline reads prompts that the worker can weigh: by the family and the class's call."""

from collections.abc import Mapping

from worker.catalog.architectures import base_of
from worker.catalog.call import Model, ModelCall, once
from worker.core.prompt import PromptForm

_CLIP_LAYERS = 12  # of the smallest CLIP that pipelines have


@once
def prompt_form(call: ModelCall) -> PromptForm | None:
    """Return the form in which the class reads prompts.

    None where it takes no embeddings, or those of encoders whose words the worker does not weigh.
    """
    row = call.architecture
    prompts = base_of(row).prompts if row is not None else None
    form = prompts.form if prompts else None
    if form is None or not call.takes("prompt", "prompt_embeds") or not call.row.weighs_prompts:
        return None
    pooled = call.takes("pooled_prompt_embeds")
    if form == "clip" and pooled:
        return "clip-pair"  # AnimateDiff's class for SDXL stands in Stable Diffusion 1's row
    return form if pooled or form == "clip" else None


def mixes_prompts(call: ModelCall) -> bool:
    """True of a class whose denoiser can hear another prompt at each step: the usual ones of CLIP's families.

    Others lay their prompts out in ways of their own, or show them to more than the denoiser.
    """
    row = call.architecture
    return (
        prompt_form(call) in ("clip", "clip-pair")
        and row is not None
        and call.pipeline in row.pipelines.values()
        and not call.makes_video
        and not call.takes("image_guidance_scale")
    )


def clip_skip_limit(model: Model) -> int:
    """Return the most layers that `clip_skip` may leave out.

    One layer has to be left, and all but single encoders lack one already.
    """
    prompts = base_of(model.architecture).prompts if model.architecture is not None else None
    if prompts is None:
        return _CLIP_LAYERS - 1
    return prompts.layers - (1 if prompts.form == "clip" else 2)


def encoder_widths(model: Model, configs: Mapping[str, Mapping[str, object]]) -> dict[str, int]:
    """Return the width of each text encoder that words can be taught to, by its name in embeddings.

    The widths come from the model's own configs, else from its family; {} where both are silent.
    """
    widths: dict[str, int] = {}
    for folder, part in (("text_encoder", "clip_l"), ("text_encoder_2", "clip_g"), ("text_encoder_3", "t5")):
        config = configs.get(f"{folder}/config.json", {})
        kind = "t5" if config.get("model_type") == "t5" else part
        width = config.get("d_model" if kind == "t5" else "hidden_size")
        if isinstance(width, int):
            widths[kind] = width
    row = model.architecture
    if widths or row is None or model.spec.config is not None:
        return widths
    prompts = base_of(row).prompts
    return dict(prompts.widths) if prompts else {}
