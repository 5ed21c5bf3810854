"""Original (LDM, BFL, SAI) tensor names of the families, built from diffusers' models on the meta device.

The renames are those of diffusers' published conversion scripts; `generate.py` runs them backwards through diffusers'
own single-file converter and refuses to write a header that does not come back whole.
"""

from collections.abc import Iterable, Iterator

Shapes = dict[str, tuple[int, ...]]

_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
}  # fmt: skip
_UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    "class_embedding": "label_emb",
}  # fmt: skip


def ldm_unet_name(name: str, attention_up: set[int], per_block: int = 2) -> str:
    """Rename one tensor (or module) of a diffusers UNet; `attention_up` are the way up's levels with attention."""
    parts = name.split(".")
    if parts[0] == "down_blocks":
        level = int(parts[1])
        if parts[2] == "downsamplers":
            return ".".join([f"input_blocks.{(per_block + 1) * (level + 1)}.0.op", *parts[5:]])
        place = f"input_blocks.{(per_block + 1) * level + int(parts[3]) + 1}"
    elif parts[0] == "up_blocks":
        level = int(parts[1])
        if parts[2] == "upsamplers":
            place = f"output_blocks.{(per_block + 1) * level + per_block}"
            return ".".join([f"{place}.{2 if level in attention_up else 1}", *parts[4:]])
        place = f"output_blocks.{(per_block + 1) * level + int(parts[3])}"
    elif parts[0] == "mid_block":
        if parts[1] == "attentions":
            return ".".join(["middle_block.1", *parts[3:]])
        return ".".join([f"middle_block.{2 * int(parts[2])}", _RESNET[parts[3]], *parts[4:]])
    else:
        stem, _, leaf = name.rpartition(".")
        return f"{_UNET_ENDS[stem]}.{leaf}"
    if parts[2] == "attentions":
        return ".".join([f"{place}.1", *parts[4:]])
    return ".".join([f"{place}.0", _RESNET[parts[4]], *parts[5:]])


def ldm_unet(shapes: Shapes, prefix: str = "model.diffusion_model.") -> Shapes:
    """Rename a diffusers UNet to the LDM layout."""
    up = {int(name.split(".")[1]) for name in shapes if name.startswith("up_blocks.") and ".attentions." in name}
    return {prefix + ldm_unet_name(name, up): shape for name, shape in shapes.items()}


def ldm_vae(shapes: Shapes, prefix: str = "first_stage_model.") -> Shapes:
    """Rename a diffusers AutoencoderKL to the LDM layout; attention weights become 1x1 convolutions."""
    result: Shapes = {}
    for name, shape in shapes.items():
        new = name
        for level in range(4):
            new = new.replace(f"encoder.down_blocks.{level}.resnets.", f"encoder.down.{level}.block.")
            new = new.replace(f"down_blocks.{level}.downsamplers.0.", f"down.{level}.downsample.")
            new = new.replace(f"up_blocks.{level}.upsamplers.0.", f"up.{3 - level}.upsample.")
            new = new.replace(f"decoder.up_blocks.{level}.resnets.", f"decoder.up.{3 - level}.block.")
        for at in range(2):
            new = new.replace(f"mid_block.resnets.{at}.", f"mid.block_{at + 1}.")
        new = new.replace("mid_block.attentions.0.", "mid.attn_1.").replace("conv_shortcut", "nin_shortcut")
        new = new.replace("conv_norm_out", "norm_out")
        if "attn_1" in new:
            for old, ldm in (
                ("group_norm", "norm"),
                ("to_q", "q"),
                ("to_k", "k"),
                ("to_v", "v"),
                ("to_out.0", "proj_out"),
            ):
                new = new.replace(f"attn_1.{old}.", f"attn_1.{ldm}.")
            if len(shape) == 2:
                shape = (*shape, 1, 1)
        result[prefix + new] = shape
    return result


def clip(hidden: int, layers: int, inner: int, prefix: str) -> Shapes:
    """Return CLIP's tensors as transformers up to version 4 saved them."""
    result: Shapes = {
        f"{prefix}text_model.embeddings.position_embedding.weight": (77, hidden),
        f"{prefix}text_model.embeddings.token_embedding.weight": (49408, hidden),
        f"{prefix}text_model.final_layer_norm.weight": (hidden,),
        f"{prefix}text_model.final_layer_norm.bias": (hidden,),
    }
    linears = {
        **{f"self_attn.{side}_proj": (hidden, hidden) for side in ("q", "k", "v", "out")},
        "mlp.fc1": (inner, hidden),
        "mlp.fc2": (hidden, inner),
    }
    for layer in range(layers):
        stem = f"{prefix}text_model.encoder.layers.{layer}."
        for name, shape in linears.items():
            result |= {f"{stem}{name}.weight": shape, f"{stem}{name}.bias": shape[:1]}
        for norm in ("layer_norm1", "layer_norm2"):
            result |= {f"{stem}{norm}.weight": (hidden,), f"{stem}{norm}.bias": (hidden,)}
    return result


def open_clip(hidden: int, layers: int, projection: int, prefix: str) -> Shapes:
    """Return OpenCLIP's text tower as the LDM files of SD2 and SDXL hold it."""
    result: Shapes = {
        f"{prefix}positional_embedding": (77, hidden), f"{prefix}token_embedding.weight": (49408, hidden),
        f"{prefix}text_projection": (hidden, projection), f"{prefix}logit_scale": (),
        f"{prefix}ln_final.weight": (hidden,), f"{prefix}ln_final.bias": (hidden,),
    }  # fmt: skip
    for layer in range(layers):
        stem = f"{prefix}transformer.resblocks.{layer}."
        result |= {
            f"{stem}attn.in_proj_weight": (3 * hidden, hidden), f"{stem}attn.in_proj_bias": (3 * hidden,),
            f"{stem}attn.out_proj.weight": (hidden, hidden), f"{stem}attn.out_proj.bias": (hidden,),
            f"{stem}mlp.c_fc.weight": (4 * hidden, hidden), f"{stem}mlp.c_fc.bias": (4 * hidden,),
            f"{stem}mlp.c_proj.weight": (hidden, 4 * hidden), f"{stem}mlp.c_proj.bias": (hidden,),
        }  # fmt: skip
        for norm in ("ln_1", "ln_2"):
            result |= {f"{stem}{norm}.weight": (hidden,), f"{stem}{norm}.bias": (hidden,)}
    return result


def _linears(table: Iterable[tuple[str, int, int]]) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, outputs, inputs in table:
        yield f"{name}.weight", (outputs, inputs)
        yield f"{name}.bias", (outputs,)


def flux(channels: int = 64, guidance: bool = True, prefix: str = "") -> Shapes:
    """Return FLUX.1's tensors as its authors name them. `channels` is 64, 384 (Fill) or 128 (Depth, Canny)."""
    width = 3072
    table = [("img_in", width, channels), ("txt_in", width, 4096)]
    embeddings = [("time_in", 256), ("vector_in", 768), *([("guidance_in", 256)] if guidance else [])]
    for name, size in embeddings:
        table += [(f"{name}.in_layer", width, size), (f"{name}.out_layer", width, width)]
    norms: Shapes = {}
    for block in range(19):
        for side in ("img", "txt"):
            stem = f"double_blocks.{block}.{side}_"
            table += [(f"{stem}mod.lin", 6 * width, width), (f"{stem}attn.qkv", 3 * width, width)]
            table += [(f"{stem}attn.proj", width, width), (f"{stem}mlp.0", 4 * width, width)]
            table += [(f"{stem}mlp.2", width, 4 * width)]
            norms |= {f"{stem}attn.norm.query_norm.scale": (128,), f"{stem}attn.norm.key_norm.scale": (128,)}
    for block in range(38):
        stem = f"single_blocks.{block}."
        table += [(f"{stem}linear1", 7 * width, width), (f"{stem}linear2", width, 5 * width)]
        table += [(f"{stem}modulation.lin", 3 * width, width)]
        norms |= {f"{stem}norm.query_norm.scale": (128,), f"{stem}norm.key_norm.scale": (128,)}
    table += [("final_layer.linear", 64, width), ("final_layer.adaLN_modulation.1", 2 * width, width)]
    return {prefix + name: shape for name, shape in (*_linears(table), *norms.items())}


def sd3(width: int = 1536, blocks: int = 24, grid: int = 192, prefix: str = "model.diffusion_model.") -> Shapes:
    """Return SD3's tensors as its authors name them; the last block's context side ends after attention."""
    table = [("context_embedder", width, 4096), ("y_embedder.mlp.0", width, 2048), ("y_embedder.mlp.2", width, width)]
    table += [("t_embedder.mlp.0", width, 256), ("t_embedder.mlp.2", width, width)]
    table += [("final_layer.linear", 64, width), ("final_layer.adaLN_modulation.1", 2 * width, width)]
    for block in range(blocks):
        for side in ("x", "context"):
            stem, last = f"joint_blocks.{block}.{side}_block.", side == "context" and block == blocks - 1
            table += [(f"{stem}attn.qkv", 3 * width, width)]
            table += [(f"{stem}adaLN_modulation.1", (2 if last else 6) * width, width)]
            if not last:
                table += [(f"{stem}attn.proj", width, width), (f"{stem}mlp.fc1", 4 * width, width)]
                table += [(f"{stem}mlp.fc2", width, 4 * width)]
    result = {prefix + name: shape for name, shape in _linears(table)}
    result |= {f"{prefix}x_embedder.proj.weight": (width, 16, 2, 2), f"{prefix}x_embedder.proj.bias": (width,)}
    return result | {f"{prefix}pos_embed": (1, grid * grid, width)}
