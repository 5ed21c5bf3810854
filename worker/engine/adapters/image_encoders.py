"""The image encoder of IP-Adapters, and the processor that prepares an image prompt's images for it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionModelWithProjection,
    SiglipImageProcessorPil,
    SiglipVisionModel,
)

from worker.core.errors import CorruptFile, UnsupportedModel
from worker.core.json_text import parse_bounded
from worker.engine.pretrained import load_pretrained

_FIELD = "ip_adapters"


@dataclass(frozen=True, slots=True)
class Encoder:
    """An image encoder on its device, and its image processor."""

    model: Any
    processor: Any


def load_encoder(folder: Path, dtype: torch.dtype, device: torch.device) -> Encoder:
    """Load the encoder in `folder`. Raises CorruptFile for damaged files, UnsupportedModel for another kind of model.

    Images are prepared with PIL by explicit class: transformers would take torchvision where that is installed, and its
    resizing rounds differently. Sizes are the encoder's own, as diffusers' loader chooses them.
    """
    try:
        kind = str(parse_bounded((folder / "config.json").read_bytes()).get("model_type"))
    except (OSError, ValueError, AttributeError):
        raise CorruptFile("The image encoder has no readable config.json; fetch it again.", field=_FIELD) from None
    if not kind.startswith(("clip", "siglip")):
        raise UnsupportedModel(
            f"The image encoder is a {kind[:40]}, and IP-Adapters read CLIP's or SigLIP's; name another adapter.",
            field=_FIELD,
        )
    cls: Any = CLIPVisionModelWithProjection if kind.startswith("clip") else SiglipVisionModel
    options = {"use_safetensors": True, "local_files_only": True, "trust_remote_code": False}
    model = load_pretrained(cls, folder, "The image encoder", field=_FIELD, dtype=dtype, **options)
    size = model.config.image_size
    if kind.startswith("clip"):
        processor: Any = CLIPImageProcessorPil(size=size, crop_size=size)
    elif (folder / "preprocessor_config.json").is_file():
        processor = SiglipImageProcessorPil.from_pretrained(folder, local_files_only=True)
    else:
        processor = SiglipImageProcessorPil(size={"height": size, "width": size})
    return Encoder(model.to(device).eval().requires_grad_(False), processor)
