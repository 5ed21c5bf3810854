"""Tiny image encoders beyond CLIP's: SigLIP's and their processors."""

from typing import Any

from transformers import SiglipImageProcessor, SiglipVisionConfig, SiglipVisionModel

from tests.builders import WIDTH

SIGLIP: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 16,
}


def siglip() -> SiglipVisionModel:
    """SigLIP's image encoder, over images of 32x32 in four patches."""
    return SiglipVisionModel(SiglipVisionConfig(**SIGLIP)).eval()


def siglip_processor() -> SiglipImageProcessor:
    """The processor for `siglip`."""
    return SiglipImageProcessor(size={"height": 32, "width": 32})
