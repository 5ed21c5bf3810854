"""Cosmos: videos and images of a world, from text, an image or a video."""

from typing import Any

from diffusers import (
    Cosmos3OmniTransformer,
    CosmosControlNetModel,
    CosmosTransformer3DModel,
    EDMEulerScheduler,
    UniPCMultistepScheduler,
)

from tests.zoo import autoencoders, language, parts
from tests.zoo.autoencoders import CHANNELS
from tests.zoo.recipe import Image, Recipe, Video

_STILL = {"prompt": "a robot", "negative_prompt": "blue", "width": 64, "height": 64, "num_inference_steps": 2}
_TEXT = {**_STILL, "num_frames": 9}
_SIZES = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "adaln_lora_dim": 4,
    "max_size": (4, 32, 32),
}
# all but the third generation refuse to run without the guardrail: their licence asks for its filter
_NEEDS = ("cosmos_guardrail", "torchvision")


def _transformer(given: int = 0, **changes: Any) -> CosmosTransformer3DModel:
    channels = {"in_channels": CHANNELS + given, "out_channels": CHANNELS, "num_layers": 2}
    return CosmosTransformer3DModel(**({"text_embed_dim": parts.WIDTH} | _SIZES | channels | changes)).eval()


def _cosmos1(given: int = 0) -> dict[str, Any]:
    return {
        "text_encoder": parts.t5(),
        "tokenizer": parts.t5_tokenizer(),
        "transformer": _transformer(given),
        "vae": autoencoders.cosmos_vae(),
        "scheduler": EDMEulerScheduler(sigma_min=0.002, sigma_max=80),
    }


def _cosmos2(given: int = 0) -> dict[str, Any]:
    return {
        **_cosmos1(),
        "transformer": _transformer(given, extra_pos_embed_type=None, rope_scale=(1.0, 4.0, 4.0)),
        "vae": autoencoders.wan_vae(),
        "scheduler": parts.flow_euler(use_karras_sigmas=True),
    }


# the layers of the text encoder side by side, and what is made of them
_PROJECTED = {
    "use_crossattn_projection": True,
    "crossattn_proj_in_channels": 2 * parts.WIDTH,
    "encoder_hidden_states_channels": parts.WIDTH,
    "extra_pos_embed_type": None,
}


def _cosmos25(**transformer: Any) -> dict[str, Any]:
    return {
        "text_encoder": language.qwen25_vl(),
        "tokenizer": language.qwen_tokenizer(),
        "transformer": _transformer(1, **_PROJECTED, **transformer),
        "vae": autoencoders.wan_vae(),
        "scheduler": UniPCMultistepScheduler(
            use_flow_sigmas=True, use_karras_sigmas=True, prediction_type="flow_prediction"
        ),
    }


def _cosmos25_transfer() -> dict[str, Any]:
    controlnet = CosmosControlNetModel(
        **(_SIZES | _PROJECTED),
        n_controlnet_blocks=1,
        in_channels=2 * CHANNELS + 2,
        latent_channels=CHANNELS + 2,
        model_channels=32,
        text_embed_dim=parts.WIDTH,
    )
    return {**_cosmos25(controlnet_block_every_n=2), "controlnet": controlnet.eval()}


def _cosmos3() -> dict[str, Any]:
    transformer = Cosmos3OmniTransformer(
        head_dim=16,
        hidden_size=32,
        intermediate_size=64,
        latent_channel=CHANNELS,
        num_attention_heads=2,
        num_hidden_layers=2,
        num_key_value_heads=1,
        patch_latent_dim=4 * CHANNELS,
        vocab_size=language.VOCABULARY,
        rope_axes_dim=[2, 3, 3],
        dtype="float32",
    )
    return {
        "transformer": transformer.eval(),
        "text_tokenizer": language.qwen_tokenizer(),
        "vae": autoencoders.wan_vae(),
        "scheduler": UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
        "enable_safety_checker": False,
    }


RECIPES = (
    Recipe("CosmosTextToWorldPipeline", _cosmos1, _TEXT, needs=_NEEDS),
    Recipe("CosmosVideoToWorldPipeline", lambda: _cosmos1(1), {**_TEXT, "video": Video(9)}, needs=_NEEDS),
    Recipe("Cosmos2TextToImagePipeline", _cosmos2, _STILL, needs=_NEEDS),
    Recipe("Cosmos2VideoToWorldPipeline", lambda: _cosmos2(1), {**_TEXT, "image": Image()}, needs=_NEEDS),
    Recipe("Cosmos2_5_PredictBasePipeline", _cosmos25, {**_TEXT, "image": Image()}, needs=_NEEDS),
    Recipe(
        "Cosmos2_5_TransferPipeline",
        _cosmos25_transfer,
        {**_TEXT, "controls": Video(9), "num_frames_per_chunk": 9},
        needs=_NEEDS,
    ),
    Recipe("Cosmos3OmniPipeline", _cosmos3, _TEXT),
)
