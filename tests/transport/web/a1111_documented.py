"""What AUTOMATIC1111's documented API takes and answers, of every route that is served: names and types, by path.

`?` behind a type is one that may be null; "null" is nothing else. Of a list the first entry is described. Its model of
`options` has a key for each of its own settings: those that are served stand here.
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
    "POST /sdapi/v1/extra-single-image": {"html_info": "str", "image": "str?"},
    "POST /sdapi/v1/interrupt": {},
    "POST /sdapi/v1/skip": "null",
    "POST /sdapi/v1/options": "null",
    "GET /sdapi/v1/script-info": [{"name": "str?", "is_alwayson": "bool?", "is_img2img": "bool?"}],
}
ANSWERS |= {f"POST /sdapi/v1/refresh-{what}": "null" for what in ("checkpoints", "vae", "loras", "embeddings")}
# Refused by name, all of them: what a failure looks like there.
REFUSED = {
    "POST interrogate", "POST extra-batch-images", "GET realesrgan-models", "GET cmd-flags", "GET memory",
    "GET extensions", "POST unload-checkpoint", "POST reload-checkpoint", "POST create/embedding",
    "POST create/hypernetwork", "POST train/embedding", "POST train/hypernetwork", "POST server-kill",
    "POST server-restart", "POST server-stop",
}  # fmt: skip
REFUSED = {route.replace(" ", " /sdapi/v1/") for route in REFUSED}
ANSWERS |= {route: {"error": "str", "detail": "str", "body": "str", "errors": "str"} for route in sorted(REFUSED)}
# The documented fields of a payload, each with the value that it has when it is left out.
_TAKEN = {
    "prompt": "", "negative_prompt": "", "styles": None, "seed": -1, "subseed": -1, "subseed_strength": 0,
    "seed_resize_from_h": -1, "seed_resize_from_w": -1, "sampler_name": None, "scheduler": None, "batch_size": 1,
    "n_iter": 1, "steps": 50, "cfg_scale": 7.0, "width": 512, "height": 512, "restore_faces": None, "tiling": None,
    "do_not_save_samples": False, "do_not_save_grid": False, "eta": None, "denoising_strength": None,
    "s_min_uncond": None, "s_churn": None, "s_tmax": None, "s_tmin": None, "s_noise": None, "override_settings": None,
    "override_settings_restore_afterwards": True, "refiner_checkpoint": None, "refiner_switch_at": None,
    "token_merging_ratio": 0, "token_merging_ratio_hr": 0, "disable_extra_networks": False, "firstpass_image": None,
    "comments": None, "user": None, "sampler_index": "Euler", "script_name": None, "script_args": [],
    "send_images": True, "save_images": False, "alwayson_scripts": {}, "force_task_id": None, "infotext": None,
}  # fmt: skip
TAKEN = {
    "POST /sdapi/v1/txt2img": _TAKEN | {
        "enable_hr": False, "firstphase_width": 0, "firstphase_height": 0, "hr_scale": 2.0, "hr_upscaler": None,
        "hr_second_pass_steps": 0, "hr_resize_x": 0, "hr_resize_y": 0, "hr_checkpoint_name": None,
        "hr_sampler_name": None, "hr_scheduler": None, "hr_prompt": "", "hr_negative_prompt": "",
    },
    "POST /sdapi/v1/img2img": _TAKEN | {
        "init_images": None, "resize_mode": 0, "denoising_strength": 0.75, "image_cfg_scale": None, "mask": None,
        "mask_blur_x": 4, "mask_blur_y": 4, "mask_blur": None, "inpainting_fill": 0, "inpaint_full_res": True,
        "inpaint_full_res_padding": 0, "inpainting_mask_invert": 0, "initial_noise_multiplier": None,
        "latent_mask": None, "include_init_images": False,
    },
    "POST /sdapi/v1/extra-single-image": {
        "resize_mode": 0, "show_extras_results": True, "gfpgan_visibility": 0, "codeformer_visibility": 0,
        "codeformer_weight": 0, "upscaling_resize": 2, "upscaling_resize_w": 512, "upscaling_resize_h": 512,
        "upscaling_crop": True, "upscaler_1": "None", "upscaler_2": "None", "extras_upscaler_2_visibility": 0,
        "upscale_first": False, "image": "",
    },
    "POST /sdapi/v1/png-info": {"image": ""},
    "POST /sdapi/v1/interrogate": {"image": "", "model": "clip"},
    "POST /sdapi/v1/options": {"sd_model_checkpoint": None},
}  # fmt: skip
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
        if documented == "null":
            return [] if said is None else [f"{path} is {kind}, not null"]
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
