"""Write the stripped headers of this folder: names, dtypes and shapes of real model files, no weights.

    python tests/headers/generate.py

Everything is built from diffusers' model classes on the meta device with the families' published sizes. Files in an
original layout (SD, SDXL, SD3, FLUX) are renamed by `layouts.py` and checked through diffusers' single-file converter.
LoRAs are spelled by hand over the real module names of their base. The upscaler, the embeddings and the metadata are
written by hand.
"""

import gzip
import json
import re
import sys
from pathlib import Path

import diffusers
import torch
from diffusers.loaders import single_file_utils as single_file
from layouts import Shapes, clip, flux, ldm_unet, ldm_unet_name, ldm_vae, open_clip, sd3

HERE = Path(__file__).parent
CONFIGS = HERE.parents[1] / "worker" / "catalog" / "configs"
REFINER = {
    "attention_head_dim": [6, 12, 24, 24], "block_out_channels": [384, 768, 1536, 1536], "cross_attention_dim": 1280,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2560,
    "transformer_layers_per_block": 4, "use_linear_projection": True, "sample_size": 128,
}  # fmt: skip
SSD1B = {
    "transformer_layers_per_block": [0, 2, 4], "mid_block_type": None,
    "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
}  # fmt: skip
VEGA = {
    "transformer_layers_per_block": [0, 1, 2],
    "mid_block_type": None,
    "reverse_transformer_layers_per_block": [[2, 2, 2], [1, 1, 1], 1],
}
KOLORS = {
    "encoder_hid_dim": 4096,
    "encoder_hid_dim_type": "text_proj",
    "projection_class_embeddings_input_dim": 5632,
}


def write(name: str, shapes: Shapes, dtype: str = "F16", metadata: dict[str, str] | None = None, **dtypes: str) -> None:
    """Store one header. `dtypes` maps the end of a name to another dtype."""
    tensors = {
        key: [next((other for end, other in dtypes.items() if key.endswith(end)), dtype), list(shape)]
        for key, shape in sorted(shapes.items())
    }
    text = json.dumps({"metadata": metadata or {}, "tensors": tensors}, separators=(",", ":"))
    (HERE / f"{name}.json.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    print(f"{name}: {len(tensors)} tensors", file=sys.stderr)


def shapes_of(model: torch.nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def build(name: str, **config: object) -> Shapes:
    """Return the tensors of a diffusers model with this configuration."""
    with torch.device("meta"):
        return shapes_of(getattr(diffusers, name).from_config(config))


def bundled(path: str, **changes: object) -> Shapes:
    config = json.loads((CONFIGS / path / "config.json").read_text())
    name = config.pop("_class_name")
    return build(name, **config | changes)


def must_convert(original: Shapes, wanted: Shapes, converter: object, **arguments: object) -> None:
    """Fail unless diffusers' converter turns the original names into exactly the wanted ones."""
    meta = {name: torch.empty(shape, device="meta") for name, shape in original.items()}
    back = {name: tuple(tensor.shape) for name, tensor in converter(meta, **arguments).items()}
    assert back == wanted, sorted(set(back.items()) ^ set(wanted.items()))[:6]


def unet_and_vae(folder: str, **changes: object) -> tuple[Shapes, Shapes]:
    config = json.loads((CONFIGS / folder / "unet" / "config.json").read_text()) | changes
    unet, vae = bundled(f"{folder}/unet", **changes), bundled(f"{folder}/vae")
    original, original_vae = ldm_unet(unet), ldm_vae(vae)
    must_convert(original, unet, single_file.convert_ldm_unet_checkpoint, config={"class_embed_type": None} | config)
    vae_config = json.loads((CONFIGS / folder / "vae" / "config.json").read_text())
    must_convert(original_vae, vae, single_file.convert_ldm_vae_checkpoint, config=vae_config)
    return original, original_vae


def stable_diffusion() -> None:
    noise: Shapes = {"alphas_cumprod": (1000,), "betas": (1000,), "sqrt_alphas_cumprod": (1000,)}
    unet, vae = unet_and_vae("sd1")
    text = clip(768, 12, 3072, "cond_stage_model.transformer.")
    text["cond_stage_model.transformer.text_model.embeddings.position_ids"] = (1, 77)
    write("sd1", unet | vae | text | noise, position_ids="I64")
    write("sd1-no-vae", unet | text)
    inpaint, _ = unet_and_vae("sd1", in_channels=9)
    write("sd1-inpaint", inpaint | vae | text)
    edit, _ = unet_and_vae("sd1", in_channels=8)
    write("sd1-pix2pix", edit | vae | text)
    write("sd1-unet-diffusers", bundled("sd1/unet"))
    write("vae-4", {name.removeprefix("first_stage_model."): shape for name, shape in vae.items()})
    write("vae-4-diffusers", bundled("sd1/vae"))
    write("clip-l", clip(768, 12, 3072, ""))

    unet, vae = unet_and_vae("sd2")
    text = open_clip(1024, 24, 1024, "cond_stage_model.model.")
    write("sd2", unet | vae | text)
    depth, _ = unet_and_vae("sd2", in_channels=5)
    write("sd2-depth", depth | vae | text)

    unet, vae = unet_and_vae("sdxl")
    text = clip(768, 12, 3072, "conditioner.embedders.0.transformer.")
    text["conditioner.embedders.0.transformer.text_model.embeddings.position_ids"] = (1, 77)
    text |= open_clip(1280, 32, 1280, "conditioner.embedders.1.model.")
    about = {"modelspec.architecture": "stable-diffusion-xl-v1-base", "modelspec.title": "an XL model"}
    write("sdxl", unet | vae | text, metadata=about)
    write("sdxl-fp8", unet | vae | text, dtype="F8_E4M3")
    write("sdxl-v-prediction", unet | vae | text | {"v_pred": (0,), "ztsnr": (0,)})
    write("sdxl-playground", unet | vae | text | {"edm_mean": (4,), "edm_std": (4,)})
    write("sdxl-unet", {name.removeprefix("model.diffusion_model."): shape for name, shape in unet.items()})
    write("sdxl-unet-diffusers", bundled("sdxl/unet"))
    inpaint, _ = unet_and_vae("sdxl", in_channels=9)
    write("sdxl-inpaint", inpaint | vae | text)

    refiner = ldm_unet(build("UNet2DConditionModel", **REFINER))
    must_convert(
        refiner, build("UNet2DConditionModel", **REFINER), single_file.convert_ldm_unet_checkpoint,
        config=REFINER | {"class_embed_type": None, "layers_per_block": 2, "num_class_embeds": None},
    )  # fmt: skip
    text = open_clip(1280, 32, 1280, "conditioner.embedders.0.model.")
    write("sdxl-refiner", refiner | vae | text)
    write("ssd-1b-unet-diffusers", bundled("sdxl/unet", **SSD1B))
    write("vega-unet-diffusers", bundled("sdxl/unet", **VEGA))
    write("kolors-unet-diffusers", bundled("sdxl/unet", **KOLORS))
    write("svd-unet-diffusers", build("UNetSpatioTemporalConditionModel"))
    write("stable-cascade-c", build(
        "StableCascadeUNet", in_channels=16, out_channels=16, patch_size=1, block_out_channels=[2048, 2048],
        num_attention_heads=[32, 32], down_num_layers_per_block=[8, 24], up_num_layers_per_block=[24, 8],
        clip_text_in_channels=1280, clip_text_pooled_in_channels=1280, clip_image_in_channels=768,
        conditioning_dim=2048, down_blocks_repeat_mappers=[1, 1], up_blocks_repeat_mappers=[1, 1],
        block_types_per_layer=[["SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"]] * 2,
        dropout=[0.1, 0.1], self_attn=True, timestep_conditioning_type=["sca", "crp"],
    ), "BF16")  # fmt: skip


def dit() -> None:
    kinds = {"flux1": (64, True), "flux1-schnell": (64, False), "flux1-fill": (384, True), "flux1-control": (128, True)}
    for name, (channels, guidance) in kinds.items():
        original = flux(channels, guidance)
        wanted = build("FluxTransformer2DModel", guidance_embeds=guidance, in_channels=channels, out_channels=64)
        must_convert(original, wanted, single_file.convert_flux_transformer_checkpoint_to_diffusers)
        write(name, original, "BF16")
    write("flux1-diffusers", build("FluxTransformer2DModel", guidance_embeds=True), "BF16")
    vae = {f"vae.{name}": shape for name, shape in ldm_vae(bundled("sdxl/vae", latent_channels=16), "").items()}
    text = clip(768, 12, 3072, "text_encoders.clip_l.transformer.")
    write("flux1-all-in-one", flux(prefix="model.diffusion_model.") | vae | text, "F8_E4M3")
    scales = {f"{name}.scale_weight": () for name in ("img_in", "txt_in")}
    write("flux1-fp8-scaled", flux(prefix="model.diffusion_model.") | scales, "F8_E4M3", scale_weight="F32")
    nf4 = flux(prefix="model.diffusion_model.")
    nf4["model.diffusion_model.double_blocks.0.img_attn.qkv.weight.quant_state.bitsandbytes__nf4"] = (88,)
    write("flux1-nf4", nf4, "BF16", nf4="U8")

    medium = sd3()
    wanted = build(
        "SD3Transformer2DModel", num_layers=24, num_attention_heads=24, caption_projection_dim=1536,
        pos_embed_max_size=192, sample_size=128,
    )  # fmt: skip
    must_convert(medium, wanted, single_file.convert_sd3_transformer_checkpoint_to_diffusers)
    vae = {
        name.removeprefix("first_stage_model."): shape
        for name, shape in ldm_vae(
            bundled("sdxl/vae", latent_channels=16, use_quant_conv=False, use_post_quant_conv=False)
        ).items()
    }
    text = clip(768, 12, 3072, "text_encoders.clip_l.transformer.")
    text |= clip(1280, 32, 5120, "text_encoders.clip_g.transformer.")
    write("sd3", medium | {f"first_stage_model.{name}": shape for name, shape in vae.items()} | text)
    write("sd3-large", sd3(2432, 38, prefix=""))
    write("sd3-diffusers", wanted)
    write("vae-16", vae, "BF16")

    write("chroma-diffusers", build("ChromaTransformer2DModel"), "BF16")
    write("flux2-diffusers", build("Flux2Transformer2DModel"), "BF16")
    klein = {"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7680}
    write("flux2-klein-diffusers", build("Flux2Transformer2DModel", **klein), "BF16")
    write("z-image-diffusers", build("ZImageTransformer2DModel"), "BF16")
    qwen = build("QwenImageTransformer2DModel")
    write("qwen-image", qwen, "BF16")
    write("qwen-image-comfy", {f"model.diffusion_model.{name}": shape for name, shape in qwen.items()}, "F8_E4M3")
    write("qwen-image-edit-2511", qwen | {"__index_timestep_zero__": (0,)}, "BF16")
    write("qwen-image-2.1", build("QwenImage21Transformer2DModel"), "BF16")
    write("lumina2-diffusers", build("Lumina2Transformer2DModel", cap_feat_dim=2304), "BF16")
    write("auraflow-diffusers", build("AuraFlowTransformer2DModel"))
    write("sana-diffusers", build("SanaTransformer2DModel"))
    write("glm-image", build("GlmImageTransformer2DModel"), "BF16")
    write("hidream", build(
        "HiDreamImageTransformer2DModel", patch_size=2, in_channels=16, num_layers=16, num_single_layers=32,
        attention_head_dim=128, num_attention_heads=20, caption_channels=[4096, 4096], text_emb_dim=2048,
        num_routed_experts=4, num_activated_experts=2, axes_dims_rope=[64, 32, 32], max_resolution=[128, 128],
        llama_layers=list(range(32)) + [31] * 16,
    ), "BF16")  # fmt: skip
    write("wan-t2v-diffusers", build("WanTransformer3DModel"))
    write("wan-i2v-diffusers", build("WanTransformer3DModel", in_channels=36))
    write("ltx-diffusers", build("LTXVideoTransformer3DModel"), "BF16")
    write("hunyuan-video-diffusers", build("HunyuanVideoTransformer3DModel"), "BF16")
    write("hunyuan-image-diffusers", build("HunyuanImageTransformer2DModel", text_embed_2_dim=1472), "BF16")
    write("cogview4-unknown", build("CogView4Transformer2DModel"), "BF16")


def linears(shapes: Shapes, pattern: str) -> Shapes:
    """Return the two-dimensional weights whose module name matches, by module name."""
    return {
        name.removesuffix(".weight"): shape
        for name, shape in shapes.items()
        if name.endswith(".weight") and len(shape) == 2 and re.search(pattern, name)
    }


def low_rank(modules: Shapes, down: str, up: str, rank: int = 16, alpha: bool = False) -> Shapes:
    result: Shapes = {}
    for name, (outputs, inputs) in modules.items():
        result |= {f"{name}.{down}.weight": (rank, inputs), f"{name}.{up}.weight": (outputs, rank)}
        if alpha:
            result[f"{name}.alpha"] = ()
    return result


def kohya(modules: Shapes, prefix: str) -> Shapes:
    return {prefix + name.replace(".", "_"): shape for name, shape in modules.items()}


def dotted(modules: Shapes, prefix: str) -> Shapes:
    return {prefix + name: shape for name, shape in modules.items()}


def loras() -> None:
    attention = r"transformer_blocks\.\d+\.(attn\d\.to_|ff\.net)"
    encoder = linears(clip(768, 12, 3072, ""), "self_attn|mlp")
    encoder_g = linears(clip(1280, 32, 5120, ""), "self_attn|mlp")
    sd1, xl = linears(bundled("sd1/unet"), attention), linears(bundled("sdxl/unet"), attention)
    sgm = {ldm_unet_name(f"{name}.weight", {0, 1}).removesuffix(".weight"): shape for name, shape in xl.items()}
    about = {"ss_network_module": "networks.lora", "ss_base_model_version": "sdxl_base_v1-0"}

    pair = low_rank(kohya(sd1, "lora_unet_") | kohya(encoder, "lora_te_"), "lora_down", "lora_up", alpha=True)
    write("lora-sd1-kohya", pair, metadata={"ss_base_model_version": "sd_v1"})
    write("lora-sd1-text-encoder-only", low_rank(kohya(encoder, "lora_te_"), "lora_down", "lora_up", alpha=True))
    old = {f"unet.{name.replace('.to_out.0', '.to_out')}": shape for name, shape in sd1.items() if ".attn" in name}
    old = {f"{name.replace('.to_', '.processor.to_')}_lora": shape for name, shape in old.items()}
    write("lora-sd1-attn-procs", low_rank(old, "down", "up"), "F32")
    sd2 = linears(bundled("sd2/unet"), attention)
    write("lora-sd2-kohya", low_rank(kohya(sd2, "lora_unet_"), "lora_down", "lora_up", alpha=True))
    every = kohya(sgm, "lora_unet_") | kohya(encoder, "lora_te1_") | kohya(encoder_g, "lora_te2_")
    write("lora-sdxl-kohya", low_rank(every, "lora_down", "lora_up", alpha=True), metadata=about)
    only = {name: shape for name, shape in dotted(xl, "unet.").items() if ".attn" in name}
    write("lora-sdxl-diffusers", low_rank(only, "lora_A", "lora_B"))
    write("lora-sdxl-peft", low_rank(dotted(xl, "base_model.model."), "lora_A", "lora_B"))
    dora = low_rank(kohya(sgm, "lora_unet_"), "lora_down", "lora_up", alpha=True)
    dora |= {f"{name}.dora_scale": (outputs, 1) for name, (outputs, _) in kohya(sgm, "lora_unet_").items()}
    write("dora-sdxl-kohya", dora)
    loha: Shapes = {}
    for name, (outputs, inputs) in kohya(sd1, "lora_unet_").items():
        for half in ("w1", "w2"):
            loha |= {f"{name}.hada_{half}_a": (outputs, 8), f"{name}.hada_{half}_b": (8, inputs)}
        loha[f"{name}.alpha"] = ()
    write("loha-sd1-kohya", loha, metadata={"ss_network_module": "lycoris.kohya"})
    lokr: Shapes = {}
    for name, (outputs, inputs) in kohya(sgm, "lora_unet_").items():
        lokr |= {f"{name}.lokr_w1": (8, 8), f"{name}.lokr_w2_a": (outputs // 8, 16)}
        lokr |= {f"{name}.lokr_w2_b": (16, inputs // 8), f"{name}.alpha": ()}
    write("lokr-sdxl-kohya", lokr, metadata={"ss_network_module": "lycoris.kohya"})

    blocks = linears(build("FluxTransformer2DModel"), r"transformer_blocks\.\d+\.(attn|ff|proj_)")
    write("lora-flux1-diffusers", low_rank(dotted(blocks, "transformer."), "lora_A", "lora_B"), "BF16")
    native = linears(flux(), r"(double|single)_blocks\.\d+\.(img|txt|linear|modulation)")
    write("lora-flux1-kohya", low_rank(kohya(native, "lora_unet_"), "lora_down", "lora_up", alpha=True), "BF16")
    write("lora-flux1-comfy", low_rank(dotted(native, "diffusion_model."), "lora_A", "lora_B"), "BF16")
    xlabs: Shapes = {}
    for block in range(19):
        for side in ("1", "2"):
            stem = f"double_blocks.{block}.processor."
            xlabs |= low_rank({f"{stem}qkv_lora{side}": (9216, 3072)}, "down", "up")
            xlabs |= low_rank({f"{stem}proj_lora{side}": (3072, 3072)}, "down", "up")
    write("lora-flux1-xlabs", xlabs, "BF16")
    stable3 = linears(build("SD3Transformer2DModel", num_attention_heads=24), r"transformer_blocks\.\d+\.attn")
    write("lora-sd3-diffusers", low_rank(dotted(stable3, "transformer."), "lora_A", "lora_B"))
    qwen = linears(build("QwenImageTransformer2DModel"), r"transformer_blocks\.\d+\.(attn|img_m|txt_m)")
    write("lora-qwen-image-diffusers", low_rank(dotted(qwen, "transformer."), "lora_A", "lora_B"), "BF16")
    write("lora-qwen-image-bare", low_rank(qwen, "lora_down", "lora_up", alpha=True), "BF16")
    turbo = linears(build("ZImageTransformer2DModel"), r"^layers\.\d+\.(attention|feed)")
    write("lora-z-image-comfy", low_rank(dotted(turbo, "diffusion_model."), "lora_A", "lora_B"), "BF16")
    wan: Shapes = {}
    for block in range(40):
        for name in ("self_attn.q", "self_attn.k", "cross_attn.v", "ffn.0"):
            wan[f"diffusion_model.blocks.{block}.{name}"] = (13824 if name == "ffn.0" else 5120, 5120)
    write("lora-wan-comfy", low_rank(wan, "lora_A", "lora_B"), "BF16")
    lightx = low_rank(wan, "lora_down", "lora_up")
    write("lora-wan-with-diff", lightx | {"diffusion_model.blocks.0.norm3.diff": (5120,)}, "BF16")


def others() -> None:
    write("embedding-sd1", {"emb_params": (8, 768)}, "F32")
    write("embedding-sdxl", {"clip_g": (6, 1280), "clip_l": (6, 768)}, "F32")
    write("embedding-token", {"<a-cat>": (1024,)}, "F32")
    net = build("ControlNetModel", cross_attention_dim=768)
    write("controlnet-sd1-diffusers", net)
    write("controlnet-sdxl-diffusers", build(
        "ControlNetModel", cross_attention_dim=2048, block_out_channels=[320, 640, 1280],
        attention_head_dim=[5, 10, 20],
        down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        transformer_layers_per_block=[1, 2, 10], use_linear_projection=True, addition_embed_type="text_time",
        addition_time_embed_dim=256, projection_class_embeddings_input_dim=2816,
    ))  # fmt: skip
    ldm = {
        name: shape
        for name, shape in bundled("sd1/unet").items()
        if not name.startswith(("up_", "conv_norm", "conv_out"))
    }
    original = {
        f"control_model.{name.removeprefix('model.diffusion_model.')}": shape for name, shape in ldm_unet(ldm).items()
    }
    original |= {
        "control_model.input_hint_block.0.weight": (16, 3, 3, 3),
        "control_model.zero_convs.0.0.weight": (320, 320, 1, 1),
    }
    write("controlnet-sd1", original)
    write("controlnet-flux1-diffusers", build("FluxControlNetModel"), "BF16")
    esrgan: Shapes = {"conv_first.weight": (64, 3, 3, 3), "conv_last.weight": (3, 64, 3, 3)}
    for block in range(23):
        for dense in ("rdb1", "rdb2", "rdb3"):
            for at in range(1, 6):
                esrgan[f"body.{block}.{dense}.conv{at}.weight"] = (32 if at < 5 else 64, 64 + 32 * (at - 1), 3, 3)
    write("upscaler-esrgan", esrgan, "F32")
    t5 = {"shared.weight": (32128, 4096)}
    for layer in range(24):
        for side in "qkvo":
            t5[f"encoder.block.{layer}.layer.0.SelfAttention.{side}.weight"] = (4096, 4096)
    write("t5-xxl", t5)
    llm = {"model.embed_tokens.weight": (152064, 3584)}
    for layer in range(28):
        for side, width in (("q", 3584), ("k", 512), ("v", 512), ("o", 3584)):
            llm[f"model.layers.{layer}.self_attn.{side}_proj.weight"] = (width, 3584)
    write("qwen-vl-text-encoder", llm, "BF16")
    write("ip-adapter-sd1", {"image_proj.proj.weight": (3072, 1024), "ip_adapter.1.to_k_ip.weight": (320, 768)})


if __name__ == "__main__":
    torch.set_num_threads(1)
    for old_file in HERE.glob("*.json.gz"):
        old_file.unlink()
    stable_diffusion()
    dit()
    loras()
    others()
