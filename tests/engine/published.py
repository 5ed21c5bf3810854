"""The families' published models: class, sizes and layout of each denoiser that comes as one file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests import original_layouts as originals
from tests import original_videos as videos
from tests.headers import layouts as earlier
from tests.original_layouts import Original, Shapes
from tools.component_signatures import CONFIGURATIONS
from worker.catalog import architectures

CONFIGS = Path(architectures.__file__).parent / "configs"


@dataclass(frozen=True, eq=False)
class Published:
    """One published denoiser; `original` gives its authors' names. `base` differs where the family's base does."""

    family: str
    model: str
    config: Mapping[str, object]
    original: Original | None = None
    base: Mapping[str, object] = field(default_factory=dict)

    @property
    def layout(self) -> str:
        return "original" if self.original else "diffusers"


def _unet(shapes: Shapes) -> Shapes:
    return earlier.ldm_unet(shapes, prefix="")


def _config(folder: str, **changes: object) -> dict[str, object]:
    return json.loads((CONFIGS / folder / "config.json").read_text()) | changes


def _flux(**options: object) -> Original:
    return lambda shapes: earlier.flux(**options)


def _sd3(**options: object) -> Original:
    return lambda shapes: earlier.sd3(**options, prefix="")


def _both(family: str, model: str, config: Mapping[str, object], original: Original, **base: object) -> list[Published]:
    return [Published(family, model, config, None, base), Published(family, model, config, original, base)]


def _only(family: str, model: str, **config: object) -> Published:
    """A model whose authors publish it in diffusers' names, or in others that nothing converts."""
    return Published(family, model, CONFIGURATIONS.get(model, {}) | config)


_UNET, _FLUX, _WAN = "UNet2DConditionModel", "FluxTransformer2DModel", "WanTransformer3DModel"
_I2V = {"in_channels": 36}
_CLIP = {"image_dim": 1280, "added_kv_proj_dim": 5120}
_SMALL_WAN = {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960}
_5B = {"in_channels": 48, "out_channels": 48, "num_attention_heads": 24, "num_layers": 30, "ffn_dim": 14336}
_SD3 = {"num_attention_heads": 24, "caption_projection_dim": 1536, "pos_embed_max_size": 192, "num_layers": 24}
_SD3_LARGE = {"num_attention_heads": 38, "caption_projection_dim": 2432, "pos_embed_max_size": 192, "num_layers": 38}
_KLEIN = {"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7680}
_KLEIN_9B = {"num_layers": 8, "num_single_layers": 24, "num_attention_heads": 32, "joint_attention_dim": 12288}
_KOLORS = {
    "encoder_hid_dim": 4096, "encoder_hid_dim_type": "text_proj", "projection_class_embeddings_input_dim": 5632,
}  # fmt: skip
_X4 = {
    "in_channels": 7, "block_out_channels": [256, 512, 512, 1024], "cross_attention_dim": 1024,
    "num_class_embeds": 1000, "attention_head_dim": 8, "use_linear_projection": True,
    "only_cross_attention": [True, True, True, False], "layers_per_block": 2,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
}  # fmt: skip
_HIDREAM = CONFIGURATIONS["HiDreamImageTransformer2DModel"] | {
    "num_layers": 16, "num_single_layers": 32, "llama_layers": list(range(32)) + [31] * 16,
}  # fmt: skip
_PIXART = {"caption_channels": 4096, "sample_size": 128}

PUBLISHED: list[Published] = [
    *_both("sd1", _UNET, _config("sd1/unet"), _unet),
    *_both("sd1", _UNET, _config("sd1/unet", in_channels=9), _unet, in_channels=4),
    *_both("sd2", _UNET, _config("sd2/unet"), _unet),
    *_both("sdxl", _UNET, _config("sdxl/unet"), _unet),
    *_both("sdxl-refiner", _UNET, _config("sdxl-refiner/unet"), _unet),
    *_both("ssd-1b", _UNET, _config("ssd-1b/unet"), _unet),
    *_both("segmind-vega", _UNET, _config("segmind-vega/unet"), _unet),
    *_both("sd3", "SD3Transformer2DModel", _SD3, _sd3()),
    *_both("sd3", "SD3Transformer2DModel", _SD3_LARGE, _sd3(width=2432, blocks=38), **_SD3),
    _only("kolors", _UNET, **_config("sdxl/unet", **_KOLORS)),
    _only("latent-consistency", _UNET, **_config("sd1/unet", time_cond_proj_dim=256)),
    *_both("stable-cascade", "StableCascadeUNet", CONFIGURATIONS["StableCascadeUNet"], originals.stable_cascade),
    *_both("sd-x4-upscaler", _UNET, _X4, _unet),
    *_both("flux1", _FLUX, {"guidance_embeds": True}, _flux()),
    *_both("flux1-schnell", _FLUX, {}, _flux(guidance=False), guidance_embeds=True),
    *_both("flux1-fill", _FLUX, {"guidance_embeds": True, "in_channels": 384, "out_channels": 64}, _flux(channels=384)),
    *_both(
        "flux1-control", _FLUX, {"guidance_embeds": True, "in_channels": 128, "out_channels": 64}, _flux(channels=128)
    ),
    *_both("flux2", "Flux2Transformer2DModel", {}, originals.flux2),
    *_both("flux2-klein", "Flux2Transformer2DModel", _KLEIN | {"guidance_embeds": False}, originals.flux2),
    *_both("flux2-klein", "Flux2Transformer2DModel", _KLEIN_9B | {"guidance_embeds": False}, originals.flux2, **_KLEIN),
    *_both("chroma", "ChromaTransformer2DModel", {}, originals.chroma),
    _only("qwen-image", "QwenImageTransformer2DModel"),
    _only("qwen-image-layered", "QwenImageTransformer2DModel", use_additional_t_cond=True),
    *_both("qwen-image-2.1", "QwenImage21Transformer2DModel", {}, originals.qwen_image_21),
    *_both("z-image", "ZImageTransformer2DModel", {}, originals.z_image),
    *_both("krea2", "Krea2Transformer2DModel", {}, originals.krea2),
    _only("glm-image", "GlmImageTransformer2DModel"),
    *_both("lumina2", "Lumina2Transformer2DModel", {"cap_feat_dim": 2304}, originals.lumina2),
    *_both("auraflow", "AuraFlowTransformer2DModel", {"pos_embed_max_size": 9216}, originals.auraflow),
    *_both("sana", "SanaTransformer2DModel", {}, originals.sana),
    Published(
        "sana", "SanaTransformer2DModel",
        {"num_attention_heads": 36, "num_layers": 28, "num_cross_attention_heads": 16, "cross_attention_head_dim": 72,
         "cross_attention_dim": 1152}, None,
        {"num_attention_heads": 70, "num_layers": 20, "num_cross_attention_heads": 20, "cross_attention_head_dim": 112,
         "cross_attention_dim": 2240},
    ),
    _only("sana-sprint", "SanaTransformer2DModel", guidance_embeds=True, qk_norm="rms_norm_across_heads"),
    _only("pixart-alpha", "PixArtTransformer2DModel", use_additional_conditions=True, **_PIXART),
    _only("pixart-sigma", "PixArtTransformer2DModel", use_additional_conditions=False, **_PIXART),
    _only("hunyuan-dit", "HunyuanDiT2DModel", num_layers=40),
    _only("hunyuan-image", "HunyuanImageTransformer2DModel", text_embed_2_dim=1472),
    _only("cogview4", "CogView4Transformer2DModel", num_attention_heads=32, attention_head_dim=128, num_layers=28),
    _only("cogview3", "CogView3PlusTransformer2DModel"),
    Published("hidream", "HiDreamImageTransformer2DModel", _HIDREAM),
    _only("bria", "BriaTransformer2DModel"),
    _only("bria-fibo", "BriaFiboTransformer2DModel"),
    _only("bria-fibo-2", "BriaFibo2Transformer2DModel"),
    _only("ovis-image", "OvisImageTransformer2DModel"),
    _only("prx", "PRXTransformer2DModel"),
    _only("nucleus-image", "NucleusMoEImageTransformer2DModel"),
    _only("joyimage-edit", "JoyImageEditTransformer3DModel"),
    _only("ideogram4", "Ideogram4Transformer2DModel"),
    _only("lumina-next", "LuminaNextDiT2DModel"),
    _only("omnigen", "OmniGenTransformer2DModel"),
    _only("ernie-image", "ErnieImageTransformer2DModel"),
    _only("longcat-image", "LongCatImageTransformer2DModel"),
    _only("dreamlite", "DreamLiteUNetModel"),
    _only("kandinsky-3", "Kandinsky3UNet"),
    _only("kandinsky-5", "Kandinsky5Transformer3DModel"),
    *_both("wan", _WAN, _SMALL_WAN, videos.wan),
    *_both("wan", _WAN, {}, videos.wan, **_SMALL_WAN),
    *_both("wan-ti2v", _WAN, _5B, videos.wan),
    *_both("wan-i2v", _WAN, _I2V | _CLIP, videos.wan),
    *_both("wan-i2v", _WAN, _I2V, videos.wan, **_CLIP),
    *_both("wan-vace", "WanVACETransformer3DModel",
           _SMALL_WAN | {"vace_layers": list(range(0, 30, 2))}, videos.wan),
    *_both("wan-vace", "WanVACETransformer3DModel", {}, videos.wan,
           **(_SMALL_WAN | {"vace_layers": list(range(0, 30, 2))})),
    *_both("wan-animate", "WanAnimateTransformer3DModel", {}, videos.wan_animate),
    _only("cogvideox", "CogVideoXTransformer3DModel", num_attention_heads=48, num_layers=42),
    _only("cogvideox-i2v", "CogVideoXTransformer3DModel", num_attention_heads=48, num_layers=42, in_channels=32),
    *_both("ltx", "LTXVideoTransformer3DModel", {}, videos.ltx),
    *_both("ltx", "LTXVideoTransformer3DModel",
           {"attention_head_dim": 128, "cross_attention_dim": 4096, "num_layers": 48}, videos.ltx,
           attention_head_dim=64, cross_attention_dim=2048, num_layers=28),
    *_both("ltx2", "LTX2VideoTransformer3DModel", {}, videos.ltx2),
    *_both("hunyuan-video", "HunyuanVideoTransformer3DModel", {}, videos.hunyuan_video),
    *_both("mochi", "MochiTransformer3DModel", {}, videos.mochi),
    _only("svd", "UNetSpatioTemporalConditionModel"),
    _only("animatediff", "UNetMotionModel", cross_attention_dim=768),
    _only("allegro", "AllegroTransformer3DModel"),
    _only("latte", "LatteTransformer3DModel"),
    _only("hunyuan-video-1.5", "HunyuanVideo15Transformer3DModel"),
    _only("sana-video", "SanaVideoTransformer3DModel"),
]  # fmt: skip
