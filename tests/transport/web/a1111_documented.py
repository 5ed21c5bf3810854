"""What AUTOMATIC1111's documented API answers, as far as its clients read it: names and types, by path.

`?` behind a type is one that may be null. Of a list the first entry is described.
"""

ANSWERS = {
    "GET /sdapi/v1/progress": {
        "progress": "float",
        "eta_relative": "float",
        "state": {
            "skipped": "bool",
            "interrupted": "bool",
            "job": "str",
            "job_count": "int",
            "job_timestamp": "str",
            "job_no": "int",
            "sampling_step": "int",
            "sampling_steps": "int",
        },
        "current_image": "str?",
        "textinfo": "str?",
    },
    "GET /sdapi/v1/options": {
        "sd_model_checkpoint": "str?",
        "sd_checkpoint_hash": "str",
        "sd_vae": "str",
        "CLIP_stop_at_last_layers": "int",
        "samples_format": "str",
    },
    "GET /sdapi/v1/sd-models": [
        {"title": "str", "model_name": "str", "hash": "str?", "sha256": "str?", "filename": "str", "config": "str?"}
    ],
    "GET /sdapi/v1/samplers": [{"name": "str", "aliases": ["str"], "options": {}}],
    "GET /sdapi/v1/schedulers": [
        {"name": "str", "label": "str", "aliases": ["str"], "default_rho": "float", "need_inner_model": "bool"}
    ],
    "GET /sdapi/v1/upscalers": [
        {"name": "str", "model_name": "str?", "model_path": "str?", "model_url": "str?", "scale": "float?"}
    ],
    "GET /sdapi/v1/latent-upscale-modes": [{"name": "str"}],
    "GET /sdapi/v1/sd-vae": [{"model_name": "str", "filename": "str"}],
    "GET /sdapi/v1/loras": [{"name": "str", "alias": "str", "path": "str", "metadata": {}}],
    "GET /sdapi/v1/hypernetworks": [{"name": "str", "path": "str?"}],
    "GET /sdapi/v1/embeddings": {"loaded": {}, "skipped": {}},
    "GET /sdapi/v1/scripts": {"txt2img": ["str"], "img2img": ["str"]},
    "GET /sdapi/v1/prompt-styles": [{"name": "str", "prompt": "str?", "negative_prompt": "str?"}],
    "GET /sdapi/v1/face-restorers": [{"name": "str", "cmd_dir": "str?"}],
    "POST /sdapi/v1/txt2img": {"images": ["str"], "parameters": {}, "info": "str"},
    "POST /sdapi/v1/img2img": {"images": ["str"], "parameters": {}, "info": "str"},
    "POST /sdapi/v1/png-info": {"info": "str", "items": {}, "parameters": {}},
}
# The JSON in the text `info` of a drawn image.
INFO = {
    "prompt": "str",
    "all_prompts": ["str"],
    "negative_prompt": "str",
    "all_negative_prompts": ["str"],
    "seed": "int",
    "all_seeds": ["int"],
    "subseed": "int",
    "all_subseeds": ["int"],
    "subseed_strength": "int",
    "width": "int",
    "height": "int",
    "sampler_name": "str",
    "cfg_scale": "float",
    "steps": "int",
    "batch_size": "int",
    "restore_faces": "bool",
    "face_restoration_model": "str?",
    "sd_model_name": "str",
    "sd_model_hash": "str",
    "sd_vae_name": "str?",
    "sd_vae_hash": "str?",
    "seed_resize_from_w": "int",
    "seed_resize_from_h": "int",
    "denoising_strength": "float?",
    "extra_generation_params": {},
    "index_of_first_image": "int",
    "infotexts": ["str"],
    "styles": ["str"],
    "job_timestamp": "str",
    "clip_skip": "int",
    "is_using_inpainting_conditioning": "bool",
    "version": "str",
}


def missing(said: object, documented: object, path: str = "answer") -> list[str]:
    """Return the places where an answer is not as documented. More keys than documented are no fault."""
    if isinstance(documented, str):
        kind = "null" if said is None else type(said).__name__
        kinds = {"float": ("float", "int")}.get(documented.rstrip("?"), (documented.rstrip("?"),))
        fits = kind in kinds or (kind == "null" and documented.endswith("?"))
        return [] if fits else [f"{path} is {kind}, not {documented}"]
    if isinstance(documented, list):
        entries = said if isinstance(said, list) else [None]
        return [fault for entry in entries for fault in missing(entry, documented[0], f"{path}[]")]
    if not isinstance(said, dict):
        return [f"{path} is no object"]
    assert isinstance(documented, dict)
    absent = [f"{path}.{name} is missing" for name in documented if name not in said]
    return absent + [
        fault
        for name, kind in documented.items()
        if name in said
        for fault in missing(said[name], kind, f"{path}.{name}")
    ]
