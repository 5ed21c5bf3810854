"""Inputs that were written for other workers, by the fields and values that those publish."""

WORDS = "a mechanical bird above the clouds, brass and glass, evening light"
SDXL = {
    "prompt": WORDS, "negative_prompt": "blurry, text, watermark", "height": 1024, "width": 1024,
    "num_inference_steps": 25, "refiner_inference_steps": 50, "guidance_scale": 7.5, "strength": 0.3,
    "high_noise_frac": 0.8, "seed": 42, "scheduler": "K_EULER", "num_images": 1, "image_url": None,
}  # fmt: skip
TURBO = {
    "prompt": WORDS, "negative_prompt": "blurry, text, watermark", "height": 512, "width": 512,
    "num_inference_steps": 1, "guidance_scale": 0.0, "seed": 1337, "num_images": 1,
}  # fmt: skip
A1111 = {
    "prompt": WORDS, "negative_prompt": "blurry", "width": 512, "height": 512, "steps": 20, "cfg_scale": 7,
    "sampler_index": "Euler a", "seed": 42, "batch_size": 1, "n_iter": 1, "restore_faces": False,
    "override_settings": {"sd_model_checkpoint": "any"}, "some_script": [1],
}  # fmt: skip
PLAIN_A1111 = {"prompt": WORDS, "negative_prompt": "blurry", "width": 512, "height": 512, "num_inference_steps": 20,
               "guidance_scale": 7.5, "seed": 42}  # fmt: skip
COG = {
    "prompt": WORDS, "aspect_ratio": "16:9", "num_outputs": 1, "num_inference_steps": 4, "seed": 3, "go_fast": True,
    "megapixels": "1", "output_format": "webp", "output_quality": 80, "disable_safety_checker": False,
}  # fmt: skip
PUBLISHED = {
    "worker-sdxl": SDXL,
    "worker-sdxl, with an image": SDXL | {"image_url": "https://host.example/a.png"},
    "worker-sdxl-turbo": TURBO,
    "worker-sdxl-turbo, the least": {"prompt": WORDS},
    "worker-a1111": A1111,
    "worker-a1111, wrapped": {"api": {"method": "POST", "endpoint": "/sdapi/v1/txt2img"}, "payload": A1111},
    "worker-a1111, plain": PLAIN_A1111,
    "cog-flux": COG,
}
