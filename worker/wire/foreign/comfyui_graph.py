"""A ComfyUI workflow's nodes, out of both of its forms: the one for its API, and the one that its editor saves."""

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import JsonValue

_MAX_NODES = 2_000
_OFF = (2, 4)  # a node that is muted or bypassed
# The order in which the editor lists the values of a node's own fields; "" is one that says nothing here.
_WIDGETS: Mapping[str, tuple[str, ...]] = {
    "KSampler": ("seed", "", "steps", "cfg", "sampler_name", "scheduler", "denoise"),
    "KSamplerAdvanced": ("", "noise_seed", "", "steps", "cfg", "sampler_name", "scheduler"),
    "CLIPTextEncode": ("text",),
    "CLIPTextEncodeFlux": ("clip_l", "t5xxl", "guidance"),
    "CheckpointLoaderSimple": ("ckpt_name",),
    "UNETLoader": ("unet_name", "weight_dtype"),
    "UnetLoaderGGUF": ("unet_name",),
    "VAELoader": ("vae_name",),
    "LoraLoader": ("lora_name", "strength_model", "strength_clip"),
    "LoraLoaderModelOnly": ("lora_name", "strength_model"),
    "EmptyLatentImage": ("width", "height", "batch_size"),
    "EmptySD3LatentImage": ("width", "height", "batch_size"),
    "RandomNoise": ("noise_seed",),
    "KSamplerSelect": ("sampler_name",),
    "BasicScheduler": ("scheduler", "steps", "denoise"),
    "FluxGuidance": ("guidance",),
    "LoadImage": ("image",),
    "ControlNetLoader": ("control_net_name",),
    "ControlNetApplyAdvanced": ("strength", "start_percent", "end_percent"),
    "UpscaleModelLoader": ("model_name",),
    "PrimitiveNode": ("value",),
}


@dataclass(frozen=True, slots=True)
class Node:
    """One node: what it is, and its inputs."""

    kind: str
    inputs: Mapping[str, JsonValue]  # a value, or [id, output] of the node that makes it


Graph = Mapping[str, Node]


def is_workflow(value: Mapping[str, JsonValue]) -> bool:
    """True for a workflow in one of its two forms."""
    return _is_api(value) or _is_saved(value)


def _is_api(value: Mapping[str, JsonValue]) -> bool:
    return any(isinstance(node, dict) and "class_type" in node for node in [*value.values()][:50])


def _is_saved(value: Mapping[str, JsonValue]) -> bool:
    return isinstance(value.get("nodes"), list) and isinstance(value.get("links"), list)


def read_graph(workflow: JsonValue) -> Graph:
    """Return the nodes of a workflow in either form; none for what is no workflow."""
    if not isinstance(workflow, dict):
        return {}
    inner = workflow.get("prompt")
    if isinstance(inner, dict) and _is_api(inner):
        workflow = inner
    if _is_saved(workflow):
        return _saved(workflow)
    return {
        id: Node(str(node.get("class_type")), inputs)
        for id, node in [*workflow.items()][:_MAX_NODES]
        if isinstance(node, dict) and isinstance(inputs := node.get("inputs"), dict)
    }


def _saved(workflow: Mapping[str, JsonValue]) -> Graph:
    """Return the graph that the editor saved: values by the order of their fields, links from a list."""
    ends: dict[JsonValue, list[JsonValue]] = {
        link[0]: [str(link[1]), link[2]]
        for link in _listed(workflow["links"])[: _MAX_NODES * 10]
        if isinstance(link, list) and len(link) >= 5 and isinstance(link[0], int)
    }
    return {
        str(node.get("id")): Node(str(node.get("type")), {**_widgets(node), **_wired(node, ends)})
        for node in _listed(workflow["nodes"])[:_MAX_NODES]
        if isinstance(node, dict) and node.get("mode") not in _OFF
    }


def _widgets(node: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    values, names = node.get("widgets_values"), _WIDGETS.get(str(node.get("type")), ())
    if isinstance(values, dict):
        return values
    return {name: value for name, value in zip(names, _listed(values), strict=False) if name}


def _wired(node: Mapping[str, JsonValue], ends: Mapping[JsonValue, list[JsonValue]]) -> dict[str, JsonValue]:
    slots = [slot for slot in _listed(node.get("inputs")) if isinstance(slot, dict)]
    return {
        str(slot.get("name")): ends[link]
        for slot in slots
        if isinstance(link := slot.get("link"), int) and link in ends
    }


def _listed(value: JsonValue) -> list[JsonValue]:
    return value if isinstance(value, list) else []
