"""Modular pipelines of the installed diffusers, read from its text: their blocks' inputs stand in a docstring.

diffusers generates these docstrings from the blocks themselves, so that they agree with the code.
"""

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from worker.catalog.classes.modular_blocks import always_needed, needed_with, workflows
from worker.catalog.classes.modular_text import pipeline_definitions

_INPUTS = re.compile(r"^ *Inputs:\n(.*?)(?:^ *Outputs:|\Z)", re.MULTILINE | re.DOTALL)
_OUTPUTS = re.compile(r"^ *Outputs:\n(.*)\Z", re.MULTILINE | re.DOTALL)
_INPUT = re.compile(r"^ *(\w+) \(`([^`]*)`(, \*optional\*)?(?:, defaults to ((?:.|\n)+?))?\):$", re.MULTILINE)
# The types of inputs that many blocks share, for the classes that write none.
_TYPES: Mapping[str, str] = {
    **dict.fromkeys(
        ("height", "width", "num_frames", "num_inference_steps", "max_sequence_length", "clip_skip"), "int"
    ),
    **dict.fromkeys(("num_images_per_prompt", "num_videos_per_prompt", "layers", "resolution"), "int"),
    **dict.fromkeys(("strength", "guidance_scale", "frame_rate", "padding_mask_crop"), "float"),
    **dict.fromkeys(("sigmas", "timesteps"), "list"),
}
# Inputs of adapters that only ordinary pipelines are given here, and of other models than diffusers'.
UNSERVED = frozenset({"control_image", "ip_adapter_image", "references", "memory_images", "conditions"})
UNSERVED |= frozenset({"reference_conditions", "control_videos", "action"})
_SUFFIX = "ModularPipeline"
_GUIDER = re.compile(r"\bguider\s+\(`")


@dataclass(frozen=True, slots=True)
class ModularInput:
    """One input of a modular pipeline. `default` is as written; None where there is none."""

    name: str
    annotation: str
    optional: bool
    default: str | None


@lru_cache(maxsize=1)
def modular_pipelines() -> Mapping[str, str]:
    """Return the name of the blocks of every modular pipeline class, by the class's name; empty without diffusers."""
    pipelines: dict[str, str] = {}
    for name, definition in _definitions().items():
        for part in definition.body if name.endswith(_SUFFIX) else ():
            if isinstance(part, ast.Assign) and ast.unparse(part.targets[0]) == "default_blocks_name":
                value = ast.literal_eval(part.value)
                pipelines |= {name: value} if value else {}
    return pipelines


def is_modular(class_name: str | None) -> bool:
    """True for a modular pipeline class of the installed diffusers. Quick for others: nothing is read for them."""
    return (class_name or "").endswith(_SUFFIX) and class_name in modular_pipelines()


@lru_cache(maxsize=64)
def has_lora_loader(class_name: str | None) -> bool:
    """True if a modular pipeline class, or one that it comes from, has a LoRA loader of diffusers."""
    definition = _definitions().get(class_name or "")
    bases = [ast.unparse(base) for base in definition.bases] if definition else []
    return any(base.endswith("LoraLoaderMixin") or has_lora_loader(base) for base in bases)


@lru_cache(maxsize=64)
def modular_inputs(class_name: str) -> tuple[ModularInput, ...] | None:
    """Return the inputs of a modular pipeline class in written order; None when diffusers has no such class."""
    if not is_modular(class_name):
        return None
    blocks = _definitions().get(modular_pipelines()[class_name])
    text = ast.get_docstring(blocks) if blocks else None
    section = _INPUTS.search(text or "")
    if text is None or section is None:
        return None
    inputs = [
        ModularInput(
            name, _TYPES.get(name, "") if annotation == "None" else annotation, bool(optional), default or None
        )
        for name, annotation, optional, default in _INPUT.findall(section[1])
    ]
    if _GUIDER.search(text) and all(item.name != "guidance_scale" for item in inputs):
        inputs.append(ModularInput("guidance_scale", "float", True, None))
    return tuple(inputs)


def modular_outputs(class_name: str) -> tuple[str, ...]:
    """Return the names of a modular pipeline's outputs in written order."""
    blocks = _definitions().get(modular_pipelines().get(class_name, ""))
    section = _OUTPUTS.search((ast.get_docstring(blocks) if blocks else None) or "")
    return tuple(name for name, *_ in _INPUT.findall(section[1])) if section else ()


def modular_makes_videos(class_name: str | None) -> bool:
    """True for a modular pipeline that makes videos. Its sound, if it makes any, is left aside."""
    return class_name is not None and is_modular(class_name) and "videos" in modular_outputs(class_name)


def modular_refusal(class_name: str) -> str | None:
    """Return the reason why a modular pipeline class is not run here; None where it is."""
    if not {"images", "videos"} & {*modular_outputs(class_name)}:
        return "makes no images or videos"
    return None


def modular_workflows(class_name: str) -> tuple[frozenset[str], ...]:
    """Return the inputs of every workflow that a modular pipeline class names and that is served here."""
    if not is_modular(class_name):  # the others' source text is long
        return ()
    blocks = modular_pipelines().get(class_name)
    return tuple(inputs for inputs in workflows(blocks) if not inputs & UNSERVED) if blocks else ()


def parts_needed(class_name: str, sent: frozenset[str] = frozenset()) -> frozenset[str]:
    """Return the parts without which a modular pipeline class cannot answer a call with a prompt and these inputs."""
    blocks = modular_pipelines()[class_name]
    return always_needed(blocks).union(*(needed_with(blocks, name) for name in {"prompt", *sent}))


@lru_cache(maxsize=1)
def _definitions() -> Mapping[str, ast.ClassDef]:
    return {definition.name: definition for definition in pipeline_definitions()}
