"""BLIP-Diffusion: the subject of an image, drawn into another scene."""

import atexit
import functools
import shutil
import tempfile
from typing import Any

from diffusers import PNDMScheduler
from diffusers.pipelines.deprecated.blip_diffusion.blip_image_processing import BlipImageProcessor
from diffusers.pipelines.deprecated.blip_diffusion.modeling_blip2 import Blip2QFormerModel
from diffusers.pipelines.deprecated.blip_diffusion.modeling_ctx_clip import ContextCLIPTextModel
from transformers import Blip2Config, Blip2QFormerConfig, Blip2VisionConfig

from tests.zoo import parts
from tests.zoo.families.controlnet import with_controlnet
from tests.zoo.parts import WIDTH
from tests.zoo.recipe import Image, Recipe


def _blip() -> dict[str, Any]:
    return {
        "tokenizer": parts.clip_tokenizer(),
        "text_encoder": ContextCLIPTextModel(parts.clip_config()).eval(),
        "vae": parts.vae(),
        "unet": parts.unet(),
        "scheduler": PNDMScheduler(**parts.SD_BETAS, skip_prk_steps=True),
        "qformer": _qformer(),
        "image_processor": BlipImageProcessor(size={"height": 32, "width": 32}),
    }


@functools.cache
def _tokenizer_folder() -> str:
    """A saved tokenizer that lives until the end: the model itself loads one, by default from the Hub."""
    folder = tempfile.mkdtemp(prefix="zoo-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    parts.bert_tokenizer().save_pretrained(folder)
    return folder


def _qformer() -> Blip2QFormerModel:
    tokenizer = parts.bert_tokenizer()
    shared = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    words = Blip2QFormerConfig(**shared, vocab_size=len(tokenizer) + 1, encoder_hidden_size=WIDTH)
    sight = Blip2VisionConfig(**shared, image_size=32, patch_size=16)
    config = Blip2Config(qformer_config=words.to_dict(), vision_config=sight.to_dict(), num_query_tokens=4)
    config.tokenizer = _tokenizer_folder()
    return Blip2QFormerModel(config).eval()


_REQUEST = {
    "prompt": "on a table",
    "reference_image": Image(),
    "source_subject_category": "apple",
    "target_subject_category": "pear",
    "width": 64,
    "height": 64,
    "num_inference_steps": 2,
}
_BROKEN = "wants a method of the Q-Former that transformers 5 has not"
_MOVED = dict.fromkeys(("text_encoder", "qformer", "image_processor"), "blip_diffusion")

RECIPES = (
    Recipe("BlipDiffusionPipeline", _blip, _REQUEST, broken=_BROKEN, moved=_MOVED),
    Recipe(
        "BlipDiffusionControlNetPipeline",
        lambda: with_controlnet(_blip()),
        {**_REQUEST, "condtioning_image": Image(seed=1)},  # sic
        broken=_BROKEN,
        moved=_MOVED,
    ),
)
