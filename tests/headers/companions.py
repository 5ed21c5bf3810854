"""What goes beside a model: ControlNets, adapters, autoencoders, text and image encoders, embeddings, upscalers."""

import sys

from building import HERE, Shapes, build, bundled, must_convert, write
from diffusers.utils.state_dict_utils import convert_sai_sd_control_lora_state_dict_to_peft
from layouts import clip, ldm_unet, ldm_unet_name, open_clip

sys.path.append(str(HERE.parents[1]))
from tools.component_signatures import CONFIGURATIONS


def write_all() -> None:
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
    controlnets()
    adapters()
    autoencoders()
    encoders()
    upscalers()


XL_CONTROL = {
    "cross_attention_dim": 2048, "block_out_channels": [320, 640, 1280], "attention_head_dim": [5, 10, 20],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "transformer_layers_per_block": [1, 2, 10], "use_linear_projection": True, "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip


def controlnets() -> None:
    small = XL_CONTROL | {
        "down_block_types": ["DownBlock2D"] * 3, "transformer_layers_per_block": 0, "mid_block_type": "UNetMidBlock2D",
    }  # fmt: skip
    write("controlnet-sdxl-small", build("ControlNetModel", **small))
    write("controlnet-sd2-diffusers", build("ControlNetModel", cross_attention_dim=1024))
    union = XL_CONTROL | {
        "num_control_type": 6, "num_trans_channel": 320, "num_trans_head": 8, "num_trans_layer": 1,
        "num_proj_channel": 320,
    }  # fmt: skip
    write("controlnet-sdxl-union", build("ControlNetUnionModel", **union))
    promax = union | {"num_control_type": 8}
    write("controlnet-sdxl-union-promax", build("ControlNetUnionModel", **promax))
    write("controlnet-flux1-union", build("FluxControlNetModel", num_mode=7, num_single_layers=10), "BF16")
    write("controlnet-sd3-diffusers", build("SD3ControlNetModel", num_layers=6, num_attention_heads=24))
    inpainting = {"num_layers": 6, "num_attention_heads": 24, "extra_conditioning_channels": 1}
    write("controlnet-sd3-inpainting", build("SD3ControlNetModel", **inpainting))
    inpainting = {"num_layers": 2, "extra_condition_channels": 4}
    write("controlnet-qwen-image-inpainting", build("QwenImageControlNetModel", **inpainting), "BF16")
    write("controlnet-qwen-image", build("QwenImageControlNetModel", num_layers=5), "BF16")
    write("controlnet-sana", build("SanaControlNetModel"), "BF16")
    write("controlnet-sparse", build("SparseControlNetModel"))
    first = {"control_layers_places": [*range(0, 30, 5)], "control_in_dim": 16}
    write("controlnet-z-image", build("ZImageControlNetModel", **first), "BF16")
    second = {"control_refiner_layers_places": [0, 1], "control_in_dim": 33}
    second |= {"add_control_noise_refiner": "control_noise_refiner"}
    for name, apart in (("controlnet-z-image-2.1", 2), ("controlnet-z-image-2.1-lite", 10)):
        second |= {"control_layers_places": [*range(0, 30, apart)]}
        write(name, build("ZImageControlNetModel", **second), "BF16")
    xlabs: Shapes = {"input_hint_block.0.weight": (16, 3, 3, 3), "pos_embed_input.weight": (3072, 64)}
    xlabs |= {f"double_blocks.{at}.img_attn.qkv.weight": (9216, 3072) for at in range(2)}
    xlabs |= {f"controlnet_blocks.{at}.weight": (3072, 3072) for at in range(2)}
    write("controlnet-flux1-xlabs", xlabs, "BF16")
    write("control-lora-sd1", control_lora(build("ControlNetModel", cross_attention_dim=768), 128))
    write("control-lora-sdxl", control_lora(build("ControlNetModel", **XL_CONTROL), 256))


def control_lora(control: Shapes, rank: int) -> Shapes:
    """A ControlNet as what it has beyond its base: every weight that the base has too in factors, the rest whole."""
    result: Shapes = {"lora_controlnet": (0,)}
    wanted: Shapes = {}
    for name, shape in control.items():
        own = name.startswith("controlnet_")
        place = control_name(name) if own else ldm_unet_name(name, set())
        if own or len(shape) == 1:
            result[place] = wanted[name] = shape
            continue
        kernel = [1] * (len(shape) - 2)
        down, up = (rank, *shape[1:]), (shape[0], rank, *kernel)
        stem, theirs = place.removesuffix(".weight"), name.removesuffix(".weight")
        result |= {f"{stem}.down": down, f"{stem}.up": up}
        wanted |= {f"{theirs}.lora_A.weight": down, f"{theirs}.lora_B.weight": up}
    must_convert(result, wanted, convert_sai_sd_control_lora_state_dict_to_peft)
    return result


def control_name(name: str) -> str:
    """Rename a tensor of a diffusers ControlNet that its base has not."""
    part, *words = name.removeprefix("controlnet_").split(".")
    if part == "down_blocks":
        return f"zero_convs.{words[0]}.0.{words[1]}"
    if part == "mid_block":
        return f"middle_block_out.0.{words[0]}"
    at = {"conv_in": 0, "conv_out": 14}.get(words[0])
    return f"input_hint_block.{2 * int(words[1]) + 2 if at is None else at}.{words[-1]}"


def adapters() -> None:
    for name, width, picture in (("sdxl", 2048, 1280), ("flux1", 4096, 768)):
        keys = {
            f"ip_adapter.{at}.to_{side}_ip.weight": (3072 if name == "flux1" else 640, width)
            for at in (0, 1, 3)
            for side in "kv"
        }
        write(f"ip-adapter-{name}", keys | {"image_proj.proj.weight": (4 * width, picture)})
    plus = {"image_proj.latents": (1, 16, 768), "image_proj.proj_in.weight": (768, 1280)}
    write("ip-adapter-sd1-plus", plus | {f"ip_adapter.{at}.to_k_ip.weight": (320, 768) for at in range(1, 33, 2)})
    plus = {"image_proj.latents": (1, 16, 2048), "image_proj.proj_in.weight": (2048, 1024)}
    write("ip-adapter-kolors", plus | {f"ip_adapter.{at}.to_k_ip.weight": (640, 2048) for at in range(1, 141, 2)})
    keys = {f"ip_adapter.{at}.to_k_ip.weight": (320, 1024) for at in range(1, 33, 2)}
    write("ip-adapter-sd2", keys | {"image_proj.proj.weight": (4096, 1024)})
    face: Shapes = {"image_proj.proj.0.weight": (1024, 512), "image_proj.proj.2.weight": (3072, 1024)}
    face |= {"image_proj.norm.weight": (768,)}
    for at in range(32):
        face |= {
            f"ip_adapter.{at}.to_q_lora.down.weight": (128, 320),
            f"ip_adapter.{at}.to_q_lora.up.weight": (320, 128),
        }
        face |= {f"ip_adapter.{at}.to_k_ip.weight": (320, 768)} if at % 2 else {}
    write("ip-adapter-sd1-face-id", face)
    xlabs: Shapes = {"ip_adapter_proj_model.proj.weight": (16384, 768), "ip_adapter_proj_model.norm.weight": (4096,)}
    for at in range(19):
        xlabs[f"double_blocks.{at}.processor.ip_adapter_double_stream_k_proj.weight"] = (3072, 4096)
    write("ip-adapter-flux1-xlabs", xlabs, "BF16")
    write("ip-adapter-sd3", {"image_proj.latents": (1, 64, 1280), "ip_adapter.0.norm_ip.linear.weight": (4864, 1280)})
    write("t2i-adapter-sd1", build("T2IAdapter", adapter_type="full_adapter"))
    write("t2i-adapter-sdxl", build("T2IAdapter", adapter_type="full_adapter_xl", downscale_factor=16))
    write("t2i-adapter-sd1-light", build("T2IAdapter", adapter_type="light_adapter", channels=[320, 640, 1280, 1280]))
    native = build("T2IAdapter", adapter_type="full_adapter")
    write("t2i-adapter-sd1-original", {
        "conv_in.weight": native["adapter.conv_in.weight"], "body.0.block1.weight": (320, 320, 3, 3),
        "body.0.block2.weight": (320, 320, 1, 1), "body.2.in_conv.weight": (640, 320, 1, 1),
    })  # fmt: skip
    motion = build("MotionAdapter")
    write("motion-module-diffusers", motion)
    write("motion-module-sdxl", build("MotionAdapter", block_out_channels=[320, 640, 1280], use_motion_mid_block=False))
    original = {name.replace(".norm.", ".temporal_transformer.norm."): s for name, s in motion.items()}
    original = {name.replace(".proj_in.", ".temporal_transformer.proj_in."): s for name, s in original.items()}
    write("motion-module-v2", original)
    write("motion-module-v3", {name: s for name, s in original.items() if not name.startswith("mid_block")})
    hyper = {
        f"{width}.{at}.linear.{layer}.weight": (width * 2, width)
        for width in (320, 640, 768, 1280)
        for at in (0, 1)
        for layer in (0, 2)
    }
    write("hypernetwork-sd1", hyper, "F32", {"name": "a style"}, "torch")
    tensors = {"string_to_token.*": (), "string_to_param.*": (8, 768)}
    write("embedding-a1111", tensors, "F32", {"name": "a style"}, "torch", **{"token.*": "I64"})
    write("redux", {
        "redux_up.weight": (12288, 1152), "redux_up.bias": (12288,),
        "redux_down.weight": (4096, 12288), "redux_down.bias": (4096,),
    }, "BF16")  # fmt: skip


# LTX-Video's of 0.9.5 and later
LTX_TIMED = {
    "block_out_channels": [128, 256, 512, 1024, 2048], "decoder_block_out_channels": [256, 512, 1024],
    "down_block_types": ["LTXVideo095DownBlock3D"] * 4, "layers_per_block": [4, 6, 6, 2, 2],
    "decoder_layers_per_block": [5, 5, 5, 5], "spatio_temporal_scaling": [True] * 4,
    "decoder_spatio_temporal_scaling": [True] * 3, "decoder_inject_noise": [False] * 4,
    "downsample_type": ["spatial", "temporal", "spatiotemporal", "spatiotemporal"], "upsample_residual": [True] * 3,
    "upsample_factor": [2, 2, 2], "timestep_conditioning": True,
}  # fmt: skip


def autoencoders() -> None:
    write("vae-ltx-timed", build("AutoencoderKLLTXVideo", **LTX_TIMED), "BF16")
    for name, model in (
        ("vae-flux2", "AutoencoderKLFlux2"), ("vae-wan-diffusers", "AutoencoderKLWan"),
        ("vae-ltx", "AutoencoderKLLTXVideo"),
        ("vae-ltx2", "AutoencoderKLLTX2Video"), ("vae-hunyuan-video", "AutoencoderKLHunyuanVideo"),
        ("vae-tiny", "AutoencoderTiny"), ("vae-dc", "AutoencoderDC"), ("vae-mochi", "AutoencoderKLMochi"),
        ("vae-cogvideox", "AutoencoderKLCogVideoX"), ("vae-qwen-image-21", "AutoencoderKLQwenImage21"),
        ("vae-hunyuan-image", "AutoencoderKLHunyuanImage"),
    ):  # fmt: skip
        write(name, build(model, **CONFIGURATIONS.get(model, {})), "BF16")
    wan: Shapes = {"encoder.conv1.weight": (96, 3, 3, 3, 3), "decoder.conv1.weight": (384, 16, 3, 3, 3)}
    wan |= {"decoder.middle.0.residual.0.gamma": (384, 1, 1, 1), "conv2.weight": (16, 16, 1, 1, 1)}
    wan["encoder.downsamples.0.residual.0.gamma"] = (96, 1, 1, 1)
    write("vae-wan", wan, "BF16")
    dc: Shapes = {f"decoder.stages.{at}.op_list.0.main.conv.conv.bias": (512,) for at in range(1, 6)}
    write("vae-dc-original", dc | {"encoder.project_in.conv.bias": (128,)})
    write("vae-wan-22", wan | {"decoder.conv1.weight": (1024, 48, 3, 3, 3)}, "BF16")


def encoders() -> None:
    write("clip-g", clip(1280, 32, 5120, "") | {"text_projection.weight": (1280, 1280)})
    bare = {name.removeprefix("text_model."): shape for name, shape in clip(768, 12, 3072, "").items()}
    write("clip-l-bare", bare)
    write("open-clip-h", open_clip(1024, 24, 1024, ""))
    umt5: Shapes = {"shared.weight": (256384, 4096)}
    for layer in range(24):
        stem = f"encoder.block.{layer}.layer.0.SelfAttention."
        umt5 |= {f"{stem}{side}.weight": (4096, 4096) for side in "qkvo"}
        umt5[f"{stem}relative_attention_bias.weight"] = (32, 64)
    write("umt5-xxl", umt5, "BF16")
    t5: Shapes = {"token_embd.weight": (32128, 4096)}
    t5 |= {f"enc.blk.{layer}.attn_{side}.weight": (4096, 4096) for layer in range(24) for side in "qkvo"}
    write("t5-xxl-gguf", t5, "Q5_K", {"general.architecture": "t5encoder"}, "gguf")
    for name, width, vocabulary, layers, extra in (
        ("qwen3-4b", 2560, 151936, 36, "layers.0.self_attn.q_norm.weight"),
        ("qwen3-8b", 4096, 151936, 36, "layers.0.self_attn.q_norm.weight"),
        ("gemma-2-2b", 2304, 256000, 26, "layers.0.post_feedforward_layernorm.weight"),
        ("llama-31-8b", 4096, 128256, 32, "layers.0.input_layernorm.weight"),
        ("mistral-small", 5120, 131072, 40, "layers.0.input_layernorm.weight"),
    ):
        keys: Shapes = {"model.embed_tokens.weight": (vocabulary, width), f"model.{extra}": (width,)}
        for layer in range(layers):
            keys |= {f"model.layers.{layer}.self_attn.{side}_proj.weight": (width, width) for side in "qo"}
        write(name, keys, "BF16")
    llm = {"model.embed_tokens.weight": (152064, 3584), "visual.blocks.0.attn.qkv.weight": (3840, 1280)}
    llm |= {f"model.layers.{layer}.self_attn.q_proj.weight": (3584, 3584) for layer in range(28)}
    write("qwen-25-vl", llm, "BF16")
    gguf: Shapes = {"token_embd.weight": (151936, 2560), "blk.0.attn_q_norm.weight": (128,)}
    gguf |= {f"blk.{layer}.attn_q.weight": (4096, 2560) for layer in range(36)}
    write("qwen3-4b-gguf", gguf, "Q4_K", {"general.architecture": "qwen3"}, "gguf", **{"norm.weight": "F32"})
    for name, width, layers, classed in (
        ("clip-vit-h", 1280, 32, True),
        ("clip-vit-l", 1024, 24, True),
        ("siglip", 1152, 27, False),
    ):
        keys = {"vision_model.embeddings.patch_embedding.weight": (width, 3, 14, 14)}
        if classed:
            keys |= {"vision_model.embeddings.class_embedding": (width,), "visual_projection.weight": (1024, width)}
        for layer in range(layers):
            keys |= {
                f"vision_model.encoder.layers.{layer}.self_attn.{side}_proj.weight": (width, width) for side in "qkv"
            }
        write(f"image-encoder-{name}", keys)


def upscalers() -> None:
    old: Shapes = {"model.0.weight": (64, 3, 3, 3), "model.10.weight": (3, 64, 3, 3)}
    for block in range(23):
        old |= {f"model.1.sub.{block}.RDB1.conv{at}.0.weight": (32, 64, 3, 3) for at in range(1, 6)}
    write("upscaler-esrgan-old", old, "F32", container="torch")
    swin: Shapes = {"conv_first.weight": (180, 3, 3, 3), "conv_last.weight": (3, 64, 3, 3)}
    for layer in range(6):
        stem = f"layers.{layer}.residual_group.blocks.0.attn."
        swin |= {f"{stem}qkv.weight": (540, 180), f"{stem}relative_position_bias_table": (225, 6)}
    write("upscaler-swinir", {f"params_ema.{name}": s for name, s in swin.items()}, "F32", container="torch")
    compact: Shapes = {f"body.{at}.weight": (64, 64, 3, 3) for at in range(0, 34, 2)}
    write("upscaler-compact", compact | {f"body.{at}.weight": (64,) for at in range(1, 34, 2)}, "F32")
