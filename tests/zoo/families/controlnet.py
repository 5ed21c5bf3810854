"""ControlNets, ControlNet-XS and T2I-Adapters over Stable Diffusion 1, XL and 3, and Hunyuan-DiT."""

from typing import Any

from diffusers import (
    ControlNetModel,
    ControlNetUnionModel,
    ControlNetXSAdapter,
    HunyuanDiT2DControlNetModel,
    SD3ControlNetModel,
    T2IAdapter,
    UNet2DConditionModel,
)

from tests.zoo import parts
from tests.zoo.families.dit import HUNYUAN, hunyuan_dit
from tests.zoo.families.stable_diffusion import INPAINT, REDRAW, SIZED, sd1
from tests.zoo.families.stable_diffusion_3 import SD3, sd3
from tests.zoo.families.stable_diffusion_xl import sdxl, xl_config
from tests.zoo.recipe import Image, Mask, Recipe

CONTROL = {"control_image": Image(seed=1)}
_SHARED = {
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "attention_head_dim": 8,
    "conditioning_embedding_out_channels": (8, 8, 8, 8),
}


def with_controlnet(base: dict[str, Any], **changes: object) -> dict[str, Any]:
    """The parts of a UNet pipeline and a ControlNet that fits its UNet."""
    config = {**_SHARED, "down_block_types": base["unet"].config.down_block_types}
    config["cross_attention_dim"] = base["unet"].config.cross_attention_dim
    return {**base, "controlnet": ControlNetModel(**{**config, **changes}).eval()}


def with_xl_controlnet(base: dict[str, Any], kind: type = ControlNetModel, **changes: object) -> dict[str, Any]:
    """The parts of an XL pipeline and a ControlNet that fits its UNet."""
    config = {**_SHARED, **xl_config(**changes)}
    del config["up_block_types"]
    return {**base, "controlnet": kind(**config).eval()}


def _union(base: dict[str, Any]) -> dict[str, Any]:
    config = {"num_trans_channel": 32, "num_trans_head": 4, "num_proj_channel": 32}
    return with_xl_controlnet(base, ControlNetUnionModel, **config)


def _two_layers(*, xl: bool) -> UNet2DConditionModel:
    # ControlNet-XS is made for UNets with two layers in each block
    return parts.unet(**(xl_config() if xl else {}), layers_per_block=2)


def _xs(*, xl: bool) -> dict[str, Any]:
    base = sdxl() if xl else sd1()
    base["unet"] = unet = _two_layers(xl=xl)
    adapter = ControlNetXSAdapter.from_unet(
        unet, block_out_channels=[16, 32], num_attention_heads=[2, 4], conditioning_embedding_out_channels=(8, 8, 8, 8)
    )
    return {**base, "controlnet": adapter.eval()}


def _adapter(base: dict[str, Any], kind: str, factor: int) -> dict[str, Any]:
    adapter = T2IAdapter(in_channels=3, channels=[32, 64], num_res_blocks=1, downscale_factor=factor, adapter_type=kind)
    return {**base, "adapter": adapter.eval()}


def _sd3_control(**changes: object) -> dict[str, Any]:
    return {**sd3(), "controlnet": SD3ControlNetModel(**{**SD3, "num_layers": 1, **changes}).eval()}


def _hunyuan_control() -> dict[str, Any]:
    config = {**HUNYUAN, "transformer_num_layers": 4}
    del config["num_layers"], config["learn_sigma"]
    return {**hunyuan_dit(), "controlnet": HunyuanDiT2DControlNetModel(**config).eval()}


def _sd1_inpaint() -> dict[str, Any]:
    return with_controlnet(sd1())


_SENT = {**SIZED, **CONTROL}
_AS_IMAGE = {**SIZED, "image": Image(seed=1)}
_REDRAW = {**REDRAW, **CONTROL}
_INPAINT = {**INPAINT, **CONTROL}

RECIPES = (
    Recipe("StableDiffusionControlNetPipeline", lambda: with_controlnet(sd1()), _SENT, call=_AS_IMAGE),
    Recipe("StableDiffusionControlNetImg2ImgPipeline", lambda: with_controlnet(sd1()), _REDRAW),
    Recipe("StableDiffusionControlNetInpaintPipeline", lambda: with_controlnet(sd1(in_channels=9)), _INPAINT),
    Recipe("StableDiffusionXLControlNetPipeline", lambda: with_xl_controlnet(sdxl()), _SENT, call=_AS_IMAGE),
    Recipe("StableDiffusionXLControlNetImg2ImgPipeline", lambda: with_xl_controlnet(sdxl()), _REDRAW),
    Recipe("StableDiffusionXLControlNetInpaintPipeline", lambda: with_xl_controlnet(sdxl()), _INPAINT),
    Recipe("StableDiffusionXLControlNetUnionPipeline", lambda: _union(sdxl()), {**_SENT, "control_mode": 3}),
    Recipe("StableDiffusionXLControlNetUnionImg2ImgPipeline", lambda: _union(sdxl()), {**_REDRAW, "control_mode": 3}),
    Recipe("StableDiffusionXLControlNetUnionInpaintPipeline", lambda: _union(sdxl()), {**_INPAINT, "control_mode": 3}),
    Recipe("StableDiffusionControlNetXSPipeline", lambda: _xs(xl=False), _SENT, call=_AS_IMAGE),
    Recipe("StableDiffusionXLControlNetXSPipeline", lambda: _xs(xl=True), _SENT, call=_AS_IMAGE),
    Recipe("StableDiffusionAdapterPipeline", lambda: _adapter(sd1(), "full_adapter", 8), _SENT, call=_AS_IMAGE),
    Recipe("StableDiffusionXLAdapterPipeline", lambda: _adapter(sdxl(), "full_adapter_xl", 16), _SENT, call=_AS_IMAGE),
    Recipe("StableDiffusion3ControlNetPipeline", _sd3_control, _SENT),
    Recipe(
        "StableDiffusion3ControlNetInpaintingPipeline",
        lambda: _sd3_control(extra_conditioning_channels=1),
        {**SIZED, "image": Image(), "mask_image": Mask()},
        call={**SIZED, "control_image": Image(), "control_mask": Mask()},
    ),
    Recipe("HunyuanDiTControlNetPipeline", _hunyuan_control, {**_SENT, "use_resolution_binning": False}),
)
