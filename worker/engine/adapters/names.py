"""Other names of a diffusers module: in the model's own code, in trainers and in ComfyUI.

The tables (`original_names.py`) are read from the diffusers side: every module of a loaded model is given its other
names. So a file's name is only ever looked up, and a module that a model lacks has no name. Where the original fuses
what diffusers splits (`qkv`, FLUX.1's `linear1`), the parts of one name say in which order its rows lie; how many rows
each part has, the real modules say.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace

from worker.engine.adapters.original_names import FAMILIES, REFINERS, Alias, Table

_NUMBER = re.compile(r"\.(\d+)(?=\.|$)")

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
    blocks, attentive = _resnets(all_paths), _attentive(all_paths)
    named: dict[str, list[Alias]] = {}
    for path, alias in _from_tables(all_paths, FAMILIES):
        named.setdefault(path, []).append(alias)
    for path in all_paths:
        yield from ((path, alias) for alias in named.get(path, ()))
        if path.endswith(".to_out.0"):  # attention processors of old diffusers
            yield path, Alias(path.removesuffix(".0"))
        for name in (_ldm(path, blocks, attentive), _encoder(path)):
            if name is not None:
                yield path, Alias(name)


def original_names(paths: Iterable[str], tables: Iterable[Table] | None) -> dict[str, Alias]:
    """Return the name of each module in the model's own code, by the first table that has it; None is a UNet's.

    A module that has no name of its own there is called as in diffusers.
    """
    all_paths = list(paths)
    names = {path: Alias(path) for path in all_paths}
    if tables is None:
        blocks, attentive = _resnets(all_paths), _attentive(all_paths)
        return names | {path: Alias(name) for path in all_paths if (name := _ldm(path, blocks, attentive))}
    return names | dict(reversed([*_from_tables(all_paths, tables)]))


def flat(name: str) -> str:
    """Return a module's name in a form that all dialects share: kohya's underscores in place of dots."""
    return name.replace(".", "_")


def _from_tables(paths: Iterable[str], tables: Iterable[Table]) -> Iterator[tuple[str, Alias]]:
    all_paths, each = list(paths), tuple(tables)
    feed_forwards = {path.replace("net.2", "linear") for path in all_paths if path.endswith("ff_context.net.2")}
    for path in all_paths:
        for alias in _named(path, each):
            # SD3's last block only reads its text: scale and shift there lie the other way round.
            last = path.endswith(".norm1_context.linear") and path.replace("norm1", "ff", 1) not in feed_forwards
            yield path, replace(alias, swapped=True) if last and alias.name.startswith("joint_blocks") else alias


def _named(path: str, tables: Iterable[Table]) -> Iterator[Alias]:
    """Yield the names of a transformer's module, from these tables."""
    refiner = next((start for start in REFINERS if path.startswith(start)), None)
    template = path.replace(refiner, "layers.", 1) if refiner else path
    number = _NUMBER.search(template)
    if number:
        template = f"{template[: number.start()]}.#{template[number.end() :]}"
    for family in tables:
        # a path's own digits may be literal in the table: net.0 has no block number before it
        for alias in family.get(template, ()):
            name = alias.name.replace("#", number[1]) if number else alias.name
            yield Alias(name.replace("layers.", refiner, 1) if refiner else name, alias.part, alias.swapped)


def _attentive(paths: list[str]) -> set[int]:
    """Return the numbers of a UNet's blocks on the way up that have attention."""
    return {int(block) for block in re.findall(r"up_blocks\.(\d+)\.attentions\.", "\n".join(paths))}


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
