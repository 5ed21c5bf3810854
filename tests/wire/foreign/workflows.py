"""Ten ComfyUI workflows, built small after the structures that people send, and the request that each amounts to.

Nodes are written as (kind, inputs); a link is the name of a node.
"""

from typing import Any

IMAGE = "<base64 or URL>"


def api(**nodes: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    """Return a workflow in the form for ComfyUI's API. A text that is a node's name is a link to it."""
    ids = {name: str(number) for number, name in enumerate(nodes, 3)}
    return {
        ids[name]: {
            "class_type": kind,
            "inputs": {
                key: [ids[value], 0] if isinstance(value, str) and value in ids else value
                for key, value in inputs.items()
            },
        }
        for name, (kind, inputs) in nodes.items()
    }


def saved(**nodes: tuple[str, list[Any], dict[str, str]]) -> dict[str, Any]:
    """Return a workflow as the editor saves it: (kind, values in order, links by slot)."""
    ids = {name: number for number, name in enumerate(nodes, 1)}
    links: list[list[Any]] = []
    entries = []
    for name, (kind, values, inputs) in nodes.items():
        slots = []
        for slot, source in inputs.items():
            links.append([len(links) + 1, ids[source], 0, ids[name], len(slots), "*"])
            slots.append({"name": slot, "type": "*", "link": len(links)})
        entries.append({"id": ids[name], "type": kind, "widgets_values": values, "inputs": slots, "mode": 0})
    return {"nodes": entries, "links": links, "version": 0.4}


def _sampler(**changes: Any) -> tuple[str, dict[str, Any]]:
    usual = {"seed": 7, "steps": 20, "cfg": 8, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0,
             "model": "model", "positive": "yes", "negative": "no", "latent_image": "latent"}  # fmt: skip
    return "KSampler", usual | changes


def _text(words: str, clip: str = "model") -> tuple[str, dict[str, Any]]:
    return "CLIPTextEncode", {"text": words, "clip": clip}


_CHECKPOINT = ("CheckpointLoaderSimple", {"ckpt_name": "sd15.safetensors"})
_EMPTY = ("EmptyLatentImage", {"width": 512, "height": 768, "batch_size": 1})
_USUAL = {"model": "sd15.safetensors", "prompt": "a house", "negative_prompt": "blurry", "num_inference_steps": 20,
          "guidance_scale": 8, "seed": 7, "scheduler": "euler"}  # fmt: skip
_SIZED = _USUAL | {"width": 512, "height": 768}

WORKFLOWS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "text to image": (
        api(model=_CHECKPOINT, yes=_text("a house"), no=_text("blurry"), latent=_EMPTY, k=_sampler(),
            out=("SaveImage", {"images": "k"})),
        _SIZED,
    ),
    "a batch with a schedule": (
        api(model=_CHECKPOINT, yes=_text("a house"), no=_text("blurry"),
            latent=("EmptyLatentImage", {"width": 512, "height": 768, "batch_size": 4}),
            k=_sampler(sampler_name="dpmpp_2m", scheduler="karras")),
        _SIZED | {"num_images": 4, "scheduler": "dpmpp_2m", "schedule": "karras"},
    ),
    "two loras in a row": (
        api(base=_CHECKPOINT,
            one=("LoraLoader", {"lora_name": "ink.safetensors", "strength_model": 0.8, "strength_clip": 0.5,
                                "model": "base", "clip": "base"}),
            model=("LoraLoader", {"lora_name": "glow.safetensors", "strength_model": 0.4, "strength_clip": 0.4,
                                  "model": "one", "clip": "one"}),
            yes=_text("a house"), no=_text("blurry"), latent=_EMPTY, k=_sampler()),
        _SIZED | {"loras": [{"model": "ink.safetensors", "weight": 0.8, "weights": {"text_encoder": 0.5}},
                            {"model": "glow.safetensors", "weight": 0.4}]},
    ),
    "flux with its own sampler": (
        api(model=("UNETLoader", {"unet_name": "flux1-dev.safetensors", "weight_dtype": "default"}),
            clips=("DualCLIPLoader", {"clip_name1": "t5.safetensors", "clip_name2": "l.safetensors", "type": "flux"}),
            vae=("VAELoader", {"vae_name": "ae.safetensors"}), yes=_text("a house", "clips"),
            guided=("FluxGuidance", {"guidance": 3.5, "conditioning": "yes"}),
            guider=("BasicGuider", {"model": "model", "conditioning": "guided"}),
            noise=("RandomNoise", {"noise_seed": 11}), chosen=("KSamplerSelect", {"sampler_name": "euler"}),
            sigmas=("BasicScheduler", {"scheduler": "simple", "steps": 28, "denoise": 1.0, "model": "model"}),
            latent=("EmptySD3LatentImage", {"width": 1024, "height": 1024, "batch_size": 1}),
            k=("SamplerCustomAdvanced", {"noise": "noise", "guider": "guider", "sampler": "chosen", "sigmas": "sigmas",
                                         "latent_image": "latent"})),
        {"model": "flux1-dev.safetensors", "prompt": "a house", "width": 1024, "height": 1024,
         "num_inference_steps": 28, "guidance_scale": 3.5, "seed": 11, "scheduler": "euler", "schedule": "simple"},
    ),
    "flux with a zeroed negative": (
        api(model=("CheckpointLoaderSimple", {"ckpt_name": "flux1-schnell-fp8.safetensors"}), yes=_text("a house"),
            no=("ConditioningZeroOut", {"conditioning": "yes"}),
            latent=("EmptySD3LatentImage", {"width": 1024, "height": 1024, "batch_size": 1}),
            k=_sampler(steps=4, cfg=1, scheduler="simple")),
        {"model": "flux1-schnell-fp8.safetensors", "prompt": "a house", "width": 1024, "height": 1024,
         "num_inference_steps": 4, "guidance_scale": 1, "seed": 7, "scheduler": "euler", "schedule": "simple"},
    ),
    "image to image": (
        api(model=_CHECKPOINT, yes=_text("a house"), no=_text("blurry"), image=("LoadImage", {"image": "in.png"}),
            latent=("VAEEncode", {"pixels": "image", "vae": "model"}), k=_sampler(denoise=0.6)),
        _USUAL | {"image": IMAGE, "strength": 0.6},
    ),
    "inpainting": (
        api(model=_CHECKPOINT, yes=_text("a house"), no=_text("blurry"), image=("LoadImage", {"image": "in.png"}),
            latent=("VAEEncodeForInpaint", {"pixels": "image", "vae": "model", "mask": "image", "grow_mask_by": 6}),
            k=_sampler()),
        _USUAL | {"image": IMAGE, "strength": 1.0, "mask_image": IMAGE},
    ),
    "a controlnet": (
        api(model=_CHECKPOINT, words=_text("a house"), no=_text("blurry"), latent=_EMPTY,
            net=("ControlNetLoader", {"control_net_name": "canny.safetensors"}),
            image=("LoadImage", {"image": "in.png"}),
            yes=("ControlNetApplyAdvanced", {"positive": "words", "negative": "no", "control_net": "net",
                                             "image": "image", "strength": 0.7, "start_percent": 0.0,
                                             "end_percent": 0.8}),
            k=_sampler()),
        _SIZED
        | {"controlnets": [{"model": "canny.safetensors", "image": IMAGE, "scale": 0.7, "start": 0.0, "end": 0.8}]},
    ),
    "values from other nodes, and an upscaler": (
        api(model=_CHECKPOINT, said=("PrimitiveString", {"value": "a house"}),
            yes=("CLIPTextEncode", {"text": "said", "clip": "model"}), no=_text("blurry"),
            number=("PrimitiveInt", {"value": 99}), latent=_EMPTY, k=_sampler(seed="number"),
            decoded=("VAEDecode", {"samples": "k", "vae": "model"}),
            file=("UpscaleModelLoader", {"model_name": "4x.pth"}),
            larger=("ImageUpscaleWithModel", {"upscale_model": "file", "image": "decoded"})),
        _SIZED | {"seed": 99, "upscale": "4x.pth"},
    ),
    "as the editor saves it": (
        saved(model=("CheckpointLoaderSimple", ["sd15.safetensors"], {}),
              yes=("CLIPTextEncode", ["a house"], {"clip": "model"}),
              no=("CLIPTextEncode", ["blurry"], {"clip": "model"}),
              latent=("EmptyLatentImage", [512, 768, 1], {}),
              k=("KSampler", [7, "fixed", 20, 8, "euler", "normal", 1],
                 {"model": "model", "positive": "yes", "negative": "no", "latent_image": "latent"})),
        _SIZED,
    ),
}  # fmt: skip
