"""A LoRA of the model in the box."""

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file

from tests.conftest import PROJECT


def demo_lora(path: Path) -> Path:
    """Write a LoRA of rank 4 in kohya's spelling, of random numbers that change the image."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(PROJECT / "models/demo/unet"))
    torch.manual_seed(0)
    tensors = {}
    for module_path, module in unet.named_modules():
        if module_path.endswith(("attn1.to_q", "attn1.to_v")):
            name = f"lora_unet_{module_path.replace('.', '_')}"
            tensors[f"{name}.lora_down.weight"] = torch.randn(4, module.in_features) / module.in_features**0.5
            tensors[f"{name}.lora_up.weight"] = torch.randn(module.out_features, 4) * 0.3
            tensors[f"{name}.alpha"] = torch.tensor(3.0)
    save_file(tensors, path)
    return path
