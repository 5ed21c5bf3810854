"""Modular pipelines that make images of the parts of an ordinary pipeline."""

from tests.zoo import language
from tests.zoo.families.language_image import krea2_transformer
from tests.zoo.modular.shared import like
from tests.zoo.recipe import Image, Recipe

_ONE = {"prompt": "a red apple", "width": 64, "height": 64, "num_inference_steps": 2}
_GUIDED = {**_ONE, "negative_prompt": "blue", "guidance_scale": 3.0}
# Its blocks read twelve layers of 36, whatever the model.
_KREA2 = {
    "text_encoder": lambda: language.qwen3_vl_model(num_hidden_layers=36),
    "transformer": lambda: krea2_transformer(num_text_layers=12),
}
_CHAT = {"processor": language.chat_processor}  # of text alone

RECIPES: tuple[Recipe, ...] = (
    like("ErnieImageModularPipeline", "ErnieImagePipeline", _GUIDED),
    like("Flux2ModularPipeline", "Flux2Pipeline", {**_ONE}),
    like("Flux2KleinModularPipeline", "Flux2KleinPipeline", {**_ONE}),
    like("Flux2KleinBaseModularPipeline", "Flux2KleinPipeline", {**_ONE}),
    like("FluxModularPipeline", "FluxPipeline", _ONE),
    like(
        "FluxKontextModularPipeline",
        "FluxKontextPipeline",
        {**_ONE, "image": Image()},
        call={**_ONE, "image": Image(), "max_area": 64 * 64},
    ),
    like("Ideogram4ModularPipeline", "Ideogram4Pipeline", {**_ONE, "guidance_schedule": [7.0, 3.0]}),
    like("Krea2ModularPipeline", "Krea2Pipeline", _GUIDED, parts=_KREA2),
    like("Krea2TurboModularPipeline", "Krea2Pipeline", _ONE, parts=_KREA2),
    like("QwenImageModularPipeline", "QwenImagePipeline", _GUIDED),
    like("QwenImageEditModularPipeline", "QwenImageEditPipeline", {**_GUIDED, "image": Image()}),
    like(
        "QwenImageEditPlusModularPipeline", "QwenImageEditPlusPipeline", {**_GUIDED, "image": [Image(), Image(seed=1)]}
    ),
    like(
        "QwenImageLayeredModularPipeline",
        "QwenImageLayeredPipeline",
        {"prompt": "x", "image": Image(mode="RGBA"), "layers": 1, "num_inference_steps": 1},
    ),
    like("QwenImage21ModularPipeline", "QwenImage21Pipeline", _GUIDED, parts=_CHAT, needs=()),
    like("QwenImage21TurboModularPipeline", "QwenImage21Pipeline", _ONE, parts=_CHAT, needs=()),
    like("StableDiffusion3ModularPipeline", "StableDiffusion3Pipeline", _GUIDED),
    like("StableDiffusionXLModularPipeline", "StableDiffusionXLPipeline", _GUIDED),
    like("ZImageModularPipeline", "ZImagePipeline", _GUIDED),
)
