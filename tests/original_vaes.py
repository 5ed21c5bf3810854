"""The names that autoencoders are published under, from diffusers' own."""

import re

from tests.headers import layouts as earlier
from tests.original_layouts import Shapes, back

_RESIDUAL = (
    (r"\.norm1\.", ".residual.0."),
    (r"\.conv1\.", ".residual.2."),
    (r"\.norm2\.", ".residual.3."),
    (r"\.conv2\.", ".residual.6."),
    (r"\.conv_shortcut\.", ".shortcut."),
)
_WAN_ENDS = (
    (r"^(en|de)coder\.conv_in\.", r"\1coder.conv1."),
    (r"^(en|de)coder\.norm_out\.", r"\1coder.head.0."),
    (r"^(en|de)coder\.conv_out\.", r"\1coder.head.2."),
    (r"^quant_conv\.", "conv1."),
    (r"^post_quant_conv\.", "conv2."),
    (r"\.mid_block\.attentions\.0\.", ".middle.1."),
)


def _wan_names(name: str) -> str:
    for pattern, replacement in _WAN_ENDS:
        name, count = re.subn(pattern, replacement, name)
        if count:
            return name
    name = re.sub(r"\.mid_block\.resnets\.(\d)\.", lambda match: f".middle.{2 * int(match[1])}.", name)
    for pattern, replacement in _RESIDUAL:
        name = re.sub(pattern, replacement, name)
    return name


def _wan_block(match: re.Match[str]) -> str:
    place = 4 * int(match[1]) + (3 if match[2] == "upsamplers" else int(match[3]))
    return f"decoder.upsamples.{place}."


def wan(shapes: Shapes) -> Shapes:
    """Wan 2.1's and Qwen-Image's: blocks of one level and the next are counted through."""
    named = {}
    for name, shape in shapes.items():
        place = re.sub(r"^encoder\.down_blocks\.", "encoder.downsamples.", name)
        place = re.sub(r"^decoder\.up_blocks\.(\d)\.(resnets|upsamplers)\.(\d)\.", _wan_block, place)
        named[_wan_names(place)] = shape
    return named


def wan_22(shapes: Shapes) -> Shapes:
    """Wan 2.2's: a list of blocks in each block."""
    named = {}
    for name, shape in shapes.items():
        place = re.sub(r"^encoder\.down_blocks\.(\d)\.resnets\.", r"encoder.downsamples.\1.downsamples.", name)
        place = re.sub(r"^encoder\.down_blocks\.(\d)\.downsampler\.", r"encoder.downsamples.\1.downsamples.2.", place)
        place = re.sub(r"^decoder\.up_blocks\.(\d)\.resnets\.", r"decoder.upsamples.\1.upsamples.", place)
        place = re.sub(r"^decoder\.up_blocks\.(\d)\.upsampler\.", r"decoder.upsamples.\1.upsamples.3.", place)
        named[_wan_names(place)] = shape
    return named


_LTX_UP = {
    "0.resnets": "1.res_blocks", "1.upsamplers.0": "2", "1.resnets": "3.res_blocks", "2.conv_in": "4",
    "2.upsamplers.0": "5", "2.resnets": "6.res_blocks", "3.conv_in": "7", "3.upsamplers.0": "8",
    "3.resnets": "9.res_blocks",
}  # fmt: skip
_LTX_DOWN = {
    "0.resnets": "0.res_blocks", "0.downsamplers.0": "1", "0.conv_out": "2", "1.resnets": "3.res_blocks",
    "1.downsamplers.0": "4", "1.conv_out": "5", "2.resnets": "6.res_blocks", "2.downsamplers.0": "7",
    "3.resnets": "8.res_blocks",
}  # fmt: skip


def _each(side: str, table: dict[str, str]) -> str:
    return rf"^{side}_blocks\.({'|'.join(map(re.escape, table))})\."


def ltx(shapes: Shapes) -> Shapes:
    """LTX-Video's first: what diffusers keeps in one block is a list of blocks and layers."""
    named = {}
    for name, shape in shapes.items():
        half, _, rest = name.partition(".")
        rest = re.sub(_each("up", _LTX_UP), lambda match: f"up_blocks.{_LTX_UP[match[1]]}.", rest)
        rest = re.sub(_each("down", _LTX_DOWN), lambda match: f"down_blocks.{_LTX_DOWN[match[1]]}.", rest)
        middle = "down_blocks.9.res_blocks." if half == "encoder" else "up_blocks.0.res_blocks."
        rest = rest.replace("mid_block.resnets.", middle).replace("conv_shortcut.conv.", "conv_shortcut.")
        rest = rest.replace("norm3.", "norm3.norm.")
        named[f"{half}.{rest}" if rest else half] = shape
    statistics = {"latents_mean": "mean-of-means", "latents_std": "std-of-means"}
    return {
        f"per_channel_statistics.{statistics[name]}" if name in statistics else name: shape
        for name, shape in named.items()
    }


_LTX2_UP = {"upsamplers.0": 1, "resnets": 2, "time_embedder": 2}


def ltx2(shapes: Shapes) -> Shapes:
    """LTX-2's: one list of blocks and layers too, but with no layers that widen."""
    statistics = {"latents_mean": "per_channel_statistics.mean-of-means"}
    statistics["latents_std"] = "per_channel_statistics.std-of-means"
    named = {}
    for name, shape in shapes.items():
        place = re.sub(
            r"^decoder\.up_blocks\.(\d)\.(resnets|time_embedder|upsamplers\.0)\b",
            lambda match: f"decoder.up_blocks.{2 * int(match[1]) + _LTX2_UP[match[2]]}.{match[2]}",
            name,
        )
        place = re.sub(
            r"^encoder\.down_blocks\.(\d)\.(resnets|downsamplers\.0)\b",
            lambda match: f"encoder.down_blocks.{2 * int(match[1]) + (match[2] != 'resnets')}.{match[2]}",
            place,
        )
        place = place.replace("encoder.mid_block", "encoder.down_blocks.8")
        place = place.replace("decoder.mid_block", "decoder.up_blocks.0")
        place = re.sub(r"\.(?:up|down)samplers\.0\.", ".", place).replace(".resnets.", ".res_blocks.")
        named[statistics.get(name, place)] = shape
    return named


def ltx_timed(shapes: Shapes) -> Shapes:
    """LTX-Video's from 0.9.5 on, whose decoder takes the time step."""
    last = {f"decoder.{name}": f"decoder.last_{name}" for name in ("time_embedder", "scale_shift_table")}
    return {
        next((name.replace(old, new) for old, new in last.items() if name.startswith(old)), name): shape
        for name, shape in ltx2(shapes).items()
    }


def dc(shapes: Shapes) -> Shapes:
    """DC-AE's, which Sana reads: its attention is a convolution of one pixel."""
    fused = back(
        shapes,
        [
            (r"^(en|de)coder\.conv_in\.", r"\1coder.project_in.conv."),
            (r"^encoder\.conv_out\.", "encoder.project_out.0.conv."),
            (r"^decoder\.norm_out\.", "decoder.project_out.0."),
            (r"^decoder\.conv_out\.", "decoder.project_out.2.conv."),
            (r"^encoder\.down_blocks\.(\d+)\.", r"encoder.stages.\1.op_list."),
            (r"^decoder\.up_blocks\.(\d+)\.", r"decoder.stages.\1.op_list."),
            (r"\.attn\.norm_out\.", ".context_module.main.proj.norm."),
            (r"\.attn\.to_out\.", ".context_module.main.proj.conv."),
            (r"\.attn\.qkv\.", ".context_module.main.qkv.conv."),
            (r"\.attn\.to_qkv_multiscale\.0\.proj_in\.", ".context_module.main.aggreg.0.0."),
            (r"\.attn\.to_qkv_multiscale\.0\.proj_out\.", ".context_module.main.aggreg.0.1."),
            (r"\.conv_out\.conv_inverted\.", ".local_module.main.inverted_conv.conv."),
            (r"\.conv_out\.conv_depth\.", ".local_module.main.depth_conv.conv."),
            (r"\.conv_out\.conv_point\.", ".local_module.main.point_conv.conv."),
            (r"\.conv_out\.norm\.", ".local_module.main.point_conv.norm."),
            (r"(op_list\.\d+)\.conv([12])\.", r"\1.main.conv\2.conv."),
            (r"(op_list\.\d+)\.norm\.", r"\1.main.conv2.norm."),
            (r"(op_list\.\d+)\.conv\.", r"\1.main.conv.conv."),
        ],
        {("attn.to_q", "attn.to_k", "attn.to_v"): "attn.qkv"},
    )
    pixel = (".qkv.conv.weight", ".proj.conv.weight")
    return {name: (*shape, 1, 1) if name.endswith(pixel) else shape for name, shape in fused.items()}


def flux2(shapes: Shapes) -> Shapes:
    """FLUX.2's: Stable Diffusion's names, with its two last convolutions inside the halves."""
    kept = {name: shape for name, shape in shapes.items() if name.startswith("bn.")}
    others = {name: shape for name, shape in shapes.items() if name not in kept}
    named = earlier.ldm_vae(others, prefix="")
    moved = {"quant_conv.": "encoder.quant_conv.", "post_quant_conv.": "decoder.post_quant_conv."}
    for old, new in moved.items():
        named = {name.replace(old, new) if name.startswith(old) else name: shape for name, shape in named.items()}
    return named | kept
