"""Other names of a diffusers module: in the model's own code, in trainers and in ComfyUI.

The table is read from the diffusers side: every module of a loaded model is given its other names. So a file's name is
only ever looked up, and a module that a model lacks has no name. Where the original fuses what
diffusers splits (`qkv`, FLUX.1's `linear1`), the parts of one name say in which order its rows lie; how many rows each
part has, the real modules say. Renames as in diffusers 0.42.1's own checkpoint converters.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

_NUMBER = re.compile(r"\.(\d+)(?=\.|$)")


@dataclass(frozen=True, slots=True)
class Alias:
    """Another name of a module: the `part`-th piece of its rows; `swapped` when its halves lie the other way round."""

    name: str
    part: int = 0
    swapped: bool = False


def _rows(text: str) -> dict[str, tuple[Alias, ...]]:
    """Parse lines of `diffusers name = other names`: `[n]` the part, `~` swapped halves, `#` the block's number."""
    table = {}
    for line in text.strip().splitlines():
        module, _, other_names = line.partition("=")
        aliases = []
        for other in other_names.split():
            name, _, part = other.removesuffix("~").partition("[")
            aliases.append(Alias(name, int(part.rstrip("]") or 0), other.endswith("~")))
        table[module.strip()] = tuple(aliases)
    return table


# FLUX.1 and Chroma; the rows of xlabs' processors stand beside them.
_FLUX1 = _rows("""
transformer_blocks.#.attn.to_q = double_blocks.#.img_attn.qkv[0] double_blocks.#.qkv1[0]
transformer_blocks.#.attn.to_k = double_blocks.#.img_attn.qkv[1] double_blocks.#.qkv1[1]
transformer_blocks.#.attn.to_v = double_blocks.#.img_attn.qkv[2] double_blocks.#.qkv1[2]
transformer_blocks.#.attn.add_q_proj = double_blocks.#.txt_attn.qkv[0] double_blocks.#.qkv2[0]
transformer_blocks.#.attn.add_k_proj = double_blocks.#.txt_attn.qkv[1] double_blocks.#.qkv2[1]
transformer_blocks.#.attn.add_v_proj = double_blocks.#.txt_attn.qkv[2] double_blocks.#.qkv2[2]
transformer_blocks.#.attn.to_out.0 = double_blocks.#.img_attn.proj double_blocks.#.proj1
transformer_blocks.#.attn.to_add_out = double_blocks.#.txt_attn.proj double_blocks.#.proj2
transformer_blocks.#.attn.norm_q = double_blocks.#.img_attn.norm.query_norm
transformer_blocks.#.attn.norm_k = double_blocks.#.img_attn.norm.key_norm
transformer_blocks.#.attn.norm_added_q = double_blocks.#.txt_attn.norm.query_norm
transformer_blocks.#.attn.norm_added_k = double_blocks.#.txt_attn.norm.key_norm
transformer_blocks.#.norm1.linear = double_blocks.#.img_mod.lin
transformer_blocks.#.norm1_context.linear = double_blocks.#.txt_mod.lin
transformer_blocks.#.ff.net.0.proj = double_blocks.#.img_mlp.0
transformer_blocks.#.ff.net.2 = double_blocks.#.img_mlp.2
transformer_blocks.#.ff_context.net.0.proj = double_blocks.#.txt_mlp.0
transformer_blocks.#.ff_context.net.2 = double_blocks.#.txt_mlp.2
single_transformer_blocks.#.attn.to_q = single_blocks.#.linear1[0] single_blocks.#.qkv[0]
single_transformer_blocks.#.attn.to_k = single_blocks.#.linear1[1] single_blocks.#.qkv[1]
single_transformer_blocks.#.attn.to_v = single_blocks.#.linear1[2] single_blocks.#.qkv[2]
single_transformer_blocks.#.proj_mlp = single_blocks.#.linear1[3]
single_transformer_blocks.#.proj_out = single_blocks.#.linear2 single_blocks.#.proj
single_transformer_blocks.#.attn.norm_q = single_blocks.#.norm.query_norm
single_transformer_blocks.#.attn.norm_k = single_blocks.#.norm.key_norm
single_transformer_blocks.#.norm.linear = single_blocks.#.modulation.lin
x_embedder = img_in
context_embedder = txt_in
time_text_embed.timestep_embedder.linear_1 = time_in.in_layer
time_text_embed.timestep_embedder.linear_2 = time_in.out_layer
time_text_embed.guidance_embedder.linear_1 = guidance_in.in_layer
time_text_embed.guidance_embedder.linear_2 = guidance_in.out_layer
time_text_embed.text_embedder.linear_1 = vector_in.in_layer
time_text_embed.text_embedder.linear_2 = vector_in.out_layer
norm_out.linear = final_layer.adaLN_modulation.1~
proj_out = final_layer.linear head.head
distilled_guidance_layer.layers.#.linear_1 = distilled_guidance_layer.layers.#.in_layer
distilled_guidance_layer.layers.#.linear_2 = distilled_guidance_layer.layers.#.out_layer
""")

_FLUX2 = _rows("""
single_transformer_blocks.#.attn.to_qkv_mlp_proj = single_blocks.#.linear1
single_transformer_blocks.#.attn.to_out = single_blocks.#.linear2
transformer_blocks.#.ff.linear_in = double_blocks.#.img_mlp.0
transformer_blocks.#.ff.linear_out = double_blocks.#.img_mlp.2
transformer_blocks.#.ff_context.linear_in = double_blocks.#.txt_mlp.0
transformer_blocks.#.ff_context.linear_out = double_blocks.#.txt_mlp.2
single_stream_modulation.linear = single_stream_modulation.lin
double_stream_modulation_img.linear = double_stream_modulation_img.lin
double_stream_modulation_txt.linear = double_stream_modulation_txt.lin
time_guidance_embed.timestep_embedder.linear_1 = time_in.in_layer
time_guidance_embed.timestep_embedder.linear_2 = time_in.out_layer
time_guidance_embed.guidance_embedder.linear_1 = guidance_in.in_layer
time_guidance_embed.guidance_embedder.linear_2 = guidance_in.out_layer
""")

_SD3 = _rows("""
transformer_blocks.#.attn.to_q = joint_blocks.#.x_block.attn.qkv[0]
transformer_blocks.#.attn.to_k = joint_blocks.#.x_block.attn.qkv[1]
transformer_blocks.#.attn.to_v = joint_blocks.#.x_block.attn.qkv[2]
transformer_blocks.#.attn.add_q_proj = joint_blocks.#.context_block.attn.qkv[0]
transformer_blocks.#.attn.add_k_proj = joint_blocks.#.context_block.attn.qkv[1]
transformer_blocks.#.attn.add_v_proj = joint_blocks.#.context_block.attn.qkv[2]
transformer_blocks.#.attn.to_out.0 = joint_blocks.#.x_block.attn.proj
transformer_blocks.#.attn.to_add_out = joint_blocks.#.context_block.attn.proj
transformer_blocks.#.attn.norm_q = joint_blocks.#.x_block.attn.ln_q
transformer_blocks.#.attn.norm_k = joint_blocks.#.x_block.attn.ln_k
transformer_blocks.#.attn.norm_added_q = joint_blocks.#.context_block.attn.ln_q
transformer_blocks.#.attn.norm_added_k = joint_blocks.#.context_block.attn.ln_k
transformer_blocks.#.attn2.to_q = joint_blocks.#.x_block.attn2.qkv[0]
transformer_blocks.#.attn2.to_k = joint_blocks.#.x_block.attn2.qkv[1]
transformer_blocks.#.attn2.to_v = joint_blocks.#.x_block.attn2.qkv[2]
transformer_blocks.#.attn2.to_out.0 = joint_blocks.#.x_block.attn2.proj
transformer_blocks.#.norm1.linear = joint_blocks.#.x_block.adaLN_modulation.1
transformer_blocks.#.norm1_context.linear = joint_blocks.#.context_block.adaLN_modulation.1
transformer_blocks.#.ff.net.0.proj = joint_blocks.#.x_block.mlp.fc1
transformer_blocks.#.ff.net.2 = joint_blocks.#.x_block.mlp.fc2
transformer_blocks.#.ff_context.net.0.proj = joint_blocks.#.context_block.mlp.fc1
transformer_blocks.#.ff_context.net.2 = joint_blocks.#.context_block.mlp.fc2
pos_embed.proj = x_embedder.proj
time_text_embed.timestep_embedder.linear_1 = t_embedder.mlp.0
time_text_embed.timestep_embedder.linear_2 = t_embedder.mlp.2
time_text_embed.text_embedder.linear_1 = y_embedder.mlp.0
time_text_embed.text_embedder.linear_2 = y_embedder.mlp.2
""")

_HUNYUAN_VIDEO = _rows("""
transformer_blocks.#.attn.to_q = double_blocks.#.img_attn_qkv[0]
transformer_blocks.#.attn.to_k = double_blocks.#.img_attn_qkv[1]
transformer_blocks.#.attn.to_v = double_blocks.#.img_attn_qkv[2]
transformer_blocks.#.attn.add_q_proj = double_blocks.#.txt_attn_qkv[0]
transformer_blocks.#.attn.add_k_proj = double_blocks.#.txt_attn_qkv[1]
transformer_blocks.#.attn.add_v_proj = double_blocks.#.txt_attn_qkv[2]
transformer_blocks.#.attn.to_out.0 = double_blocks.#.img_attn_proj
transformer_blocks.#.attn.to_add_out = double_blocks.#.txt_attn_proj
transformer_blocks.#.norm1.linear = double_blocks.#.img_mod.linear
transformer_blocks.#.norm1_context.linear = double_blocks.#.txt_mod.linear
transformer_blocks.#.ff.net.0.proj = double_blocks.#.img_mlp.fc1
transformer_blocks.#.ff.net.2 = double_blocks.#.img_mlp.fc2
transformer_blocks.#.ff_context.net.0.proj = double_blocks.#.txt_mlp.fc1
transformer_blocks.#.ff_context.net.2 = double_blocks.#.txt_mlp.fc2
single_transformer_blocks.#.norm.linear = single_blocks.#.modulation.linear
x_embedder.proj = img_in.proj
time_text_embed.timestep_embedder.linear_1 = time_in.mlp.0
time_text_embed.timestep_embedder.linear_2 = time_in.mlp.2
time_text_embed.guidance_embedder.linear_1 = guidance_in.mlp.0
time_text_embed.guidance_embedder.linear_2 = guidance_in.mlp.2
context_embedder.proj_in = txt_in.input_embedder
""")

_Z_IMAGE_AND_LUMINA2 = _rows("""
layers.#.attention.to_q = layers.#.attention.qkv[0]
layers.#.attention.to_k = layers.#.attention.qkv[1]
layers.#.attention.to_v = layers.#.attention.qkv[2]
layers.#.attention.to_out.0 = layers.#.attention.out layers.#.attention.o
layers.#.attention.norm_q = layers.#.attention.q_norm
layers.#.attention.norm_k = layers.#.attention.k_norm
layers.#.attn.to_q = layers.#.attention.qkv[0]
layers.#.attn.to_k = layers.#.attention.qkv[1]
layers.#.attn.to_v = layers.#.attention.qkv[2]
layers.#.attn.to_out.0 = layers.#.attention.out
layers.#.attn.norm_q = layers.#.attention.q_norm
layers.#.attn.norm_k = layers.#.attention.k_norm
layers.#.feed_forward.linear_1 = layers.#.feed_forward.w1
layers.#.feed_forward.linear_2 = layers.#.feed_forward.w2
layers.#.feed_forward.linear_3 = layers.#.feed_forward.w3
layers.#.norm1.linear = layers.#.adaLN_modulation.1
all_x_embedder.2-1 = x_embedder
all_final_layer.2-1.linear = final_layer.linear
all_final_layer.2-1.adaLN_modulation.1 = final_layer.adaLN_modulation.1
""")

_WAN = _rows("""
blocks.#.attn1.to_q = blocks.#.self_attn.q
blocks.#.attn1.to_k = blocks.#.self_attn.k
blocks.#.attn1.to_v = blocks.#.self_attn.v
blocks.#.attn1.to_out.0 = blocks.#.self_attn.o
blocks.#.attn1.norm_q = blocks.#.self_attn.norm_q
blocks.#.attn1.norm_k = blocks.#.self_attn.norm_k
blocks.#.attn2.to_q = blocks.#.cross_attn.q
blocks.#.attn2.to_k = blocks.#.cross_attn.k
blocks.#.attn2.to_v = blocks.#.cross_attn.v
blocks.#.attn2.to_out.0 = blocks.#.cross_attn.o
blocks.#.attn2.norm_q = blocks.#.cross_attn.norm_q
blocks.#.attn2.norm_k = blocks.#.cross_attn.norm_k
blocks.#.attn2.add_k_proj = blocks.#.cross_attn.k_img
blocks.#.attn2.add_v_proj = blocks.#.cross_attn.v_img
blocks.#.attn2.norm_added_k = blocks.#.cross_attn.norm_k_img
blocks.#.norm2 = blocks.#.norm3
blocks.#.ffn.net.0.proj = blocks.#.ffn.0
blocks.#.ffn.net.2 = blocks.#.ffn.2
blocks.#.scale_shift_table = blocks.#.modulation
scale_shift_table = head.modulation
condition_embedder.text_embedder.linear_1 = text_embedding.0
condition_embedder.text_embedder.linear_2 = text_embedding.2
condition_embedder.time_embedder.linear_1 = time_embedding.0
condition_embedder.time_embedder.linear_2 = time_embedding.2
condition_embedder.time_proj = time_projection.1
condition_embedder.image_embedder.norm1 = img_emb.proj.0
condition_embedder.image_embedder.ff.net.#.proj = img_emb.proj.1
condition_embedder.image_embedder.ff.net.# = img_emb.proj.3
condition_embedder.image_embedder.norm2 = img_emb.proj.4
""")

_KREA2 = _rows("""
img_in = first
final_layer.linear = last.linear
time_embed.linear_1 = tmlp.0
time_embed.linear_2 = tmlp.2
time_mod_proj = tproj.1
txt_in.linear_1 = txtmlp.1
txt_in.linear_2 = txtmlp.3
text_fusion.projector = txtfusion.projector
""") | {
    f"{own}.#.{module}": (Alias(f"{other}.#.{native}"),)
    for own, other in (
        ("transformer_blocks", "blocks"),
        ("text_fusion.layerwise_blocks", "txtfusion.layerwise_blocks"),
        ("text_fusion.refiner_blocks", "txtfusion.refiner_blocks"),
    )
    for module, native in (
        ("attn.to_q", "attn.wq"), ("attn.to_k", "attn.wk"), ("attn.to_v", "attn.wv"), ("attn.to_out.0", "attn.wo"),
        ("attn.to_gate", "attn.gate"), ("ff.gate", "mlp.gate"), ("ff.up", "mlp.up"), ("ff.down", "mlp.down"),
    )
}  # fmt: skip

_LTX = _rows("""
proj_in = patchify_proj
time_embed.linear = adaln_single.linear
time_embed.emb.timestep_embedder.linear_1 = adaln_single.emb.timestep_embedder.linear_1
time_embed.emb.timestep_embedder.linear_2 = adaln_single.emb.timestep_embedder.linear_2
""")

_FAMILIES = (_FLUX1, _FLUX2, _SD3, _HUNYUAN_VIDEO, _Z_IMAGE_AND_LUMINA2, _WAN, _KREA2, _LTX)
_REFINERS = ("noise_refiner.", "context_refiner.")  # of Z-Image and Lumina 2: blocks like those of `layers`

_LDM_TOP = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    # of a ControlNet
    "controlnet_cond_embedding.conv_in": "input_hint_block.0", "controlnet_mid_block": "middle_block_out.0",
    "controlnet_cond_embedding.conv_out": "input_hint_block.14",
}  # fmt: skip
_LDM_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "norm2": "out_layers.0", "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1", "conv_shortcut": "skip_connection",
}  # fmt: skip
_UNET_BLOCK = re.compile(r"^(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)(?:\.|$)(.*)")
_HINT_BLOCK = re.compile(r"^controlnet_cond_embedding\.blocks\.(\d+)$")
_WAY_OUT = re.compile(r"^controlnet_down_blocks\.(\d+)$")
_UNET_MIDDLE = re.compile(r"^mid_block\.(resnets|attentions)\.(\d+)(?:\.|$)(.*)")


def aliases(paths: Iterable[str]) -> Iterator[tuple[str, Alias]]:
    """Yield the other names of each of a component's modules, given all of their paths."""
    all_paths = list(paths)
    blocks = _resnets(all_paths)
    feed_forwards = {path.replace("net.2", "linear") for path in all_paths if path.endswith("ff_context.net.2")}
    attentive = {int(block) for block in re.findall(r"up_blocks\.(\d+)\.attentions\.", "\n".join(all_paths))}
    for path in all_paths:
        for alias in _named(path):
            # SD3's last block only reads its text: scale and shift there lie the other way round.
            last = path.endswith(".norm1_context.linear") and path.replace("norm1", "ff", 1) not in feed_forwards
            yield path, replace(alias, swapped=True) if last and alias.name.startswith("joint_blocks") else alias
        if path.endswith(".to_out.0"):  # attention processors of old diffusers
            yield path, Alias(path.removesuffix(".0"))
        for name in (_ldm(path, blocks, attentive), _encoder(path)):
            if name is not None:
                yield path, Alias(name)


def flat(name: str) -> str:
    """Return a module's name in a form that all dialects share: kohya's underscores in place of dots."""
    return name.replace(".", "_")


def _named(path: str) -> Iterator[Alias]:
    """Yield the names of a transformer's module, from the tables above."""
    refiner = next((start for start in _REFINERS if path.startswith(start)), None)
    template = path.replace(refiner, "layers.", 1) if refiner else path
    number = _NUMBER.search(template)
    if number:
        template = f"{template[: number.start()]}.#{template[number.end() :]}"
    for family in _FAMILIES:
        # a path's own digits may be literal in the table: net.0 has no block number before it
        for alias in family.get(template, ()):
            name = alias.name.replace("#", number[1]) if number else alias.name
            yield Alias(name.replace("layers.", refiner, 1) if refiner else name, alias.part, alias.swapped)


def _resnets(paths: list[str]) -> dict[tuple[str, int], int]:
    """Return the number of resnets in each block of a UNet."""
    matches = re.findall(r"(\w+)_blocks\.(\d+)\.resnets\.", "\n".join(paths))
    positions = {(side, int(block)) for side, block in matches}
    return {position: sum(1 for path in paths if _is_resnet(path, position)) for position in positions}


def _is_resnet(path: str, position: tuple[str, int]) -> bool:
    side, block = position
    return bool(re.fullmatch(rf"{side}_blocks\.{block}\.resnets\.\d+\.conv1", path))


def _ldm(path: str, resnets: dict[tuple[str, int], int], attentive: set[int]) -> str | None:
    """Return the name in Stable Diffusion's original UNets and ControlNets, whose blocks are counted through."""
    if path in _LDM_TOP:
        return _LDM_TOP[path]
    if match := _HINT_BLOCK.match(path):
        return f"input_hint_block.{2 * int(match[1]) + 2}"  # between convolutions stand activations, which count too
    if match := _WAY_OUT.match(path):
        return f"zero_convs.{match[1]}.0"
    if match := _UNET_MIDDLE.match(path):
        kind, index, rest = match[1], int(match[2]), match[3]
        position = f"middle_block.{2 * index + (kind == 'attentions')}"
        return f"{position}.{_LDM_RESNET.get(rest, rest) if kind == 'resnets' else rest}"
    match = _UNET_BLOCK.match(path)
    if match is None:
        return None
    side, block, kind, index, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    first = sum(resnets.get((side, earlier), 0) + (side == "down") for earlier in range(block)) + (side == "down")
    stage = "input_blocks" if side == "down" else "output_blocks"
    if kind == "downsamplers":
        return f"{stage}.{first + resnets.get((side, block), 0)}.0.op" if rest == "conv" else None
    if kind == "upsamplers":
        last = first + resnets.get((side, block), 1) - 1
        return f"{stage}.{last}.{2 if block in attentive else 1}.conv" if rest == "conv" else None
    rest = _LDM_RESNET.get(rest, rest) if kind == "resnets" else rest
    return f"{stage}.{first + index}.{int(kind == 'attentions')}.{rest}"


_OLD_ENCODER = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}


def _encoder(path: str) -> str | None:
    """Return the name of CLIP's attention as old diffusers trained it: `self_attn.to_q`."""
    stem, _, last = path.rpartition(".")
    return f"{stem}.{_OLD_ENCODER[last]}" if stem.endswith("self_attn") and last in _OLD_ENCODER else None
