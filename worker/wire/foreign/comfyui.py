"""A ComfyUI workflow, read as far as it says what one request of ours can say. Nothing of it is run.

Both of its forms are read: the one for its API, nodes by their ids, and the one that its editor saves, with links.
"""

import json
from collections.abc import Iterator, Mapping

from pydantic import JsonValue

from worker.catalog.interface.values import number_in
from worker.core.errors import InvalidRequest
from worker.wire.foreign.comfyui_graph import Graph, Node, is_workflow, read_graph

_MAX_SENTENCE = 1_200  # characters of a request that stands in a sentence
_DEEPEST = 64  # nodes between two that belong together
_LOADERS = ("ckpt_name", "unet_name", "gguf_name", "model_name")


def find(payload: Mapping[str, JsonValue]) -> JsonValue:
    """Return the workflow in a job's input; None without one."""
    for value in (payload.get("workflow"), payload.get("prompt"), payload):
        if isinstance(value, dict) and (is_workflow(value)):
            return value
    return payload["workflow"] if isinstance(payload.get("workflow"), dict | list | str) else None


def refusal(workflow: JsonValue) -> InvalidRequest:
    """Return the refusal of a workflow, with what was understood of it and the request of ours that says the same."""
    graph = read_graph(workflow)
    request = understood(graph)
    if not request:
        return InvalidRequest(
            "ComfyUI workflows are not run here, and no sampler was found in this one; send a request as in "
            '{"input": {"model": "…", "prompt": "…"}}.',
            field="workflow",
        )
    text = json.dumps({"input": request}, ensure_ascii=False)
    sent = text if len(text) <= _MAX_SENTENCE else "details.request"
    return InvalidRequest(
        f"ComfyUI workflows are not run here; this one was understood as {_told(request)}: send {sent}.",
        field="workflow",
        details={"request": {"input": request}},
    )


def understood(graph: Graph) -> dict[str, JsonValue]:
    """Return the request that a workflow amounts to; {} without a sampler in it."""
    sampler = next((node for node in graph.values() if "latent_image" in node.inputs), None)
    if sampler is None:
        return {}
    near = [sampler, *_upstream(graph, sampler)]
    request: dict[str, JsonValue] = {}
    request |= _models(graph, near)
    request |= _prompts(graph, sampler, near)
    request |= _latents(graph, sampler, near)
    request |= _numbers(graph, near)
    request |= _controls(graph, near)
    request |= _upscaler(graph)
    return request


def _models(graph: Graph, near: list[Node]) -> dict[str, JsonValue]:
    found: dict[str, JsonValue] = {}
    loaders = [node for node in near if not {"control_net_name", "lora_name"} & node.inputs.keys()]
    if (name := next(iter(_values(loaders, *_LOADERS)), None)) is not None:
        found["model"] = name
    if vae := _values(near, "vae_name"):
        found["vae"] = vae[0]
    loras = [node.inputs for node in reversed(near) if isinstance(node.inputs.get("lora_name"), str)]
    if loras:
        found["loras"] = [_lora(graph, inputs) for inputs in loras]
    return found


def _lora(graph: Graph, inputs: Mapping[str, JsonValue]) -> JsonValue:
    weight = _number(graph, inputs.get("strength_model", 1.0))
    of_words = _number(graph, inputs.get("strength_clip", weight))
    lora: dict[str, JsonValue] = {"model": inputs["lora_name"], "weight": weight}
    return lora if of_words == weight else lora | {"weights": {"text_encoder": of_words}}


def _prompts(graph: Graph, sampler: Node, near: list[Node]) -> dict[str, JsonValue]:
    found: dict[str, JsonValue] = {}
    for name, inputs in (("prompt", ("positive", "conditioning")), ("negative_prompt", ("negative",))):
        starts = [node.inputs[key] for node in near for key in inputs if key in node.inputs]
        texts = (_text(graph, start, name == "negative_prompt") for start in starts)
        if (text := next(filter(None, texts), None)) is not None:
            found[name] = text
    return found


def _text(graph: Graph, value: JsonValue, negative: bool, depth: int = 0) -> str | None:
    """Return the words that a conditioning was made of; where it has two sides, those of the right one."""
    node = _node(graph, value)
    if node is None or depth > _DEEPEST or node.kind == "ConditioningZeroOut":
        return None
    for key in ("text", "t5xxl", "clip_l", "text_g", "prompt", "string", "value", "wildcard_text"):
        said = node.inputs.get(key)
        if isinstance(said, str):
            return said or None
        if said is not None and (inner := _text(graph, said, negative, depth + 1)):
            return inner
    sides = ("negative",) if negative else ("positive",)
    for key in (*sides, "conditioning", "conditioning_1", "conditioning_to"):
        if key in node.inputs and (inner := _text(graph, node.inputs[key], negative, depth + 1)):
            return inner
    return None


def _latents(graph: Graph, sampler: Node, near: list[Node]) -> dict[str, JsonValue]:
    """Return the size and the number of images, or that an image is drawn over."""
    found: dict[str, JsonValue] = {}
    source = _node(graph, sampler.inputs["latent_image"])
    chain = [source, *_upstream(graph, source)] if source else []
    for node in chain:
        width, height = (_number(graph, node.inputs.get(key)) for key in ("width", "height"))
        if width and height:
            found |= {"width": width, "height": height}
            if (count := _number(graph, node.inputs.get("batch_size"))) and count > 1:
                found["num_images"] = count
            break
    return found | _drawn_over(graph, chain, near)


def _drawn_over(graph: Graph, chain: list[Node], near: list[Node]) -> dict[str, JsonValue]:
    """Return that an image is drawn over, and how much of it, if the latents are made of one."""
    if not any(node.kind in ("LoadImage", "VAEEncode", "VAEEncodeForInpaint") for node in chain):
        return {}
    numbers = (_number(graph, node.inputs["denoise"]) for node in near if "denoise" in node.inputs)
    strength = next((number for number in numbers if number is not None), 1.0)
    found: dict[str, JsonValue] = {"image": "<base64 or URL>", "strength": strength}
    is_masked = any(key in node.inputs for node in chain for key in ("mask", "noise_mask"))
    return found | ({"mask_image": "<base64 or URL>"} if is_masked else {})


def _numbers(graph: Graph, near: list[Node]) -> dict[str, JsonValue]:
    found: dict[str, JsonValue] = {}
    for name, keys in {
        "num_inference_steps": ("steps",),
        "guidance_scale": ("guidance", "cfg"),
        "seed": ("seed", "noise_seed"),
    }.items():
        values = (_number(graph, node.inputs[key]) for key in keys for node in near if key in node.inputs)
        if (number := next((value for value in values if value is not None), None)) is not None:
            found[name] = number
    samplers = _values(near, "sampler_name")
    if samplers:
        found["scheduler"] = samplers[0]
    schedules = [value for value in _values(near, "scheduler") if value != "normal"]
    if schedules:
        found["schedule"] = schedules[0]
    return found


def _controls(graph: Graph, near: list[Node]) -> dict[str, JsonValue]:
    controls: list[JsonValue] = []
    for node in near:
        loader = _node(graph, node.inputs.get("control_net"))
        names = _values([loader, *_upstream(graph, loader)], "control_net_name") if loader else []
        if not names:
            continue
        control: dict[str, JsonValue] = {"model": names[0], "image": "<base64 or URL>"}
        for key, ours in {"strength": "scale", "start_percent": "start", "end_percent": "end"}.items():
            if (number := _number(graph, node.inputs.get(key))) is not None:
                control[ours] = number
        controls.append(control)
    return {"controlnets": controls} if controls else {}


def _upscaler(graph: Graph) -> dict[str, JsonValue]:
    loaders = [node for node in graph.values() if node.kind == "UpscaleModelLoader"]
    names = _values(loaders, "model_name")
    return {"upscale": names[0]} if names else {}


def _told(request: Mapping[str, JsonValue]) -> str:
    """Say in words what was understood."""
    loras = request.get("loras")
    names = [str(lora["model"]) for lora in loras if isinstance(lora, dict)] if isinstance(loras, list) else []
    parts = [
        f"model {request['model']}" if "model" in request else "",
        f'prompt "{str(request["prompt"])[:200]}"' if "prompt" in request else "",
        f"{request['width']}x{request['height']}" if "width" in request else "",
        f"{request['num_inference_steps']} steps" if "num_inference_steps" in request else "",
        f"sampler {request['scheduler']}" if "scheduler" in request else "",
        f"LoRAs {', '.join(names)}" if names else "no LoRAs",
    ]
    return ", ".join(filter(None, parts))


def _upstream(graph: Graph, node: Node) -> Iterator[Node]:
    """Yield the nodes that feed `node`, the nearest first, each once."""
    seen: set[int] = {id(node)}
    wave = [node]
    while wave:
        found = [_node(graph, value) for each in wave for value in each.inputs.values()]
        wave = []
        for each in found:
            if each is not None and id(each) not in seen:
                seen.add(id(each))
                wave.append(each)
        yield from wave


def _node(graph: Graph, value: JsonValue) -> Node | None:
    """Return the node that a link names; None for a value."""
    is_link = isinstance(value, list) and len(value) == 2 and isinstance(value[0], str | int)
    return graph.get(str(value[0])) if is_link and isinstance(value, list) else None


def _values(nodes: list[Node], *keys: str) -> list[str]:
    texts = (node.inputs.get(key) for node in nodes for key in keys)
    return [text for text in texts if isinstance(text, str) and text]


def _number(graph: Graph, value: JsonValue) -> int | float | None:
    """Return a number, or the one in the node that a link names."""
    node = _node(graph, value)
    if node is None:
        return number_in(value)
    numbers = (number_in(node.inputs.get(key)) for key in ("value", "int", "float", "seed", "noise_seed", "Number"))
    return next((number for number in numbers if number is not None), None)
