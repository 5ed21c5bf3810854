"""The printed report on a finished pipeline folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import (
    AutoPipelineForImage2Image,
    AutoPipelineForInpainting,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
)
from PIL import Image

from tools.demo_model import companions, enlarging
from tools.demo_model.companions import edges
from tools.demo_model.control_lora import load_control_lora
from tools.demo_model.evaluation import (
    GUIDANCE,
    STEPS,
    RenderBank,
    draw,
    known_scenes,
    load_pipeline,
    score,
    seed_difference,
    unseen_backgrounds,
    unseen_colours,
)  # fmt: skip
from tools.demo_model.scenes import Gallery, Scene, caption
from tools.demo_model.things import THINGS

_SAMPLE = tuple(range(0, len(THINGS), 14))  # things on which the pipelines' features are measured


def saturation(images: np.ndarray) -> float:
    """Return the mean spread between the strongest and the weakest colour of a pixel, of 255."""
    values = images.astype(np.float32)
    return float((values.max(-1) - values.min(-1)).mean())


def print_report(folder: Path, renders: Path, steps: int, guidance: float, quick: bool) -> None:
    """Measure names, unseen combinations, seeds, img2img, inpainting and companions, and print a line for each."""
    pipeline, gallery = load_pipeline(folder), Gallery(renders)
    plain, images = score(pipeline, gallery, known_scenes(), "all names", steps=steps, guidance=guidance)
    print(plain.line(), flush=True)
    _enlarging(folder, renders, gallery, images)
    if quick:
        return
    grounds = score(
        pipeline, gallery, unseen_backgrounds(), "backgrounds never trained", steps=steps, guidance=guidance
    )[0]
    print(grounds.line(), flush=True)
    colours = score(pipeline, gallery, unseen_colours(), "colours never trained", steps=steps, guidance=guidance)[0]
    print(colours.line(), flush=True)
    differences = seed_difference(pipeline)
    print(
        f"two seeds differ by {np.median(differences):.1f}/255 (median of names), "
        f"by 8 or more on {(differences >= 8).mean():.0%}"
    )
    _image_to_image(pipeline)
    _inpainting(pipeline)
    if (folder / "companions").is_dir():
        _lora(folder)
        _token(folder, gallery)
        _control(folder, gallery)


def _enlarging(folder: Path, renders: Path, gallery: Gallery, drawn: np.ndarray) -> None:
    small, wanted = enlarging.unseen_pairs(folder, renders)
    for title, made in (("upscaler", enlarging.enlarged(folder, small)), ("bicubic", enlarging.bicubic(small))):
        steep = enlarging.steepness(made) / enlarging.steepness(wanted)
        print(
            f"{title}, {len(small)} emoji never trained: PSNR {enlarging.psnr(made, wanted):.2f} dB, "
            f"edges {steep:.0%} as steep as the artwork's at 256 pixels"
        )
    large, plain = enlarging.enlarged(folder, drawn), enlarging.bicubic(drawn)
    bank, scale = RenderBank(gallery), enlarging.SCALE
    again = large.reshape(len(large), 64, scale, 64, scale, 3).mean((2, 4)).round().astype(np.uint8)
    right = (bank.distances(again, "white").argmin(1) == np.arange(len(THINGS))).mean()
    print(
        f"all names, enlarged: {right:.1%} nearest to their own name, edges "
        f"{enlarging.steepness(large) / enlarging.steepness(plain):.2f} times as steep as bicubic's",
        flush=True,
    )


def _image_to_image(pipeline: StableDiffusionPipeline) -> None:
    changer = AutoPipelineForImage2Image.from_pipe(pipeline)
    changer.set_progress_bar_config(disable=True)
    start = Image.fromarray(draw(pipeline, ["a red apple"], 3)[0])
    changes = []
    for strength in (0.1, 0.3, 0.4, 0.5, 0.6, 0.7, 0.9):
        result = changer(
            "a lemon", start, strength=strength, num_inference_steps=30, guidance_scale=GUIDANCE,
            generator=torch.Generator().manual_seed(0), output_type="np",
        ).images[0]  # fmt: skip
        changes.append(f"{strength} {np.abs(result * 255 - np.asarray(start)).mean():.1f}")
    print("image to image, apple to lemon, change of 255 by strength:", ", ".join(changes))


def _inpainting(pipeline: StableDiffusionPipeline) -> None:
    painter = AutoPipelineForInpainting.from_pipe(pipeline)
    painter.set_progress_bar_config(disable=True)
    start = Image.fromarray(draw(pipeline, ["a red apple"], 3)[0])
    mask = np.zeros((64, 64), np.uint8)
    mask[:, 32:] = 255
    result = painter(
        "a lemon", start, Image.fromarray(mask), strength=1.0, num_inference_steps=STEPS, guidance_scale=GUIDANCE,
        height=64, width=64, generator=torch.Generator().manual_seed(0), output_type="pil",
    ).images[0]  # fmt: skip
    kept = painter.image_processor.apply_overlay(Image.fromarray(mask), start, result)
    change = np.abs(np.asarray(kept, np.float32) - np.asarray(start, np.float32))
    raw = np.abs(np.asarray(result, np.float32) - np.asarray(start, np.float32))
    print(
        f"inpainting: kept half differs by {raw[:, :30].mean():.2f} as decoded, "
        f"{change[:, :32].mean():.2f} after overlay; new half by {raw[:, 34:].mean():.1f}"
    )


def _lora(folder: Path) -> None:
    pipeline = load_pipeline(folder)
    prompts = [f"a {THINGS[k].name}" for k in _SAMPLE]
    before = draw(pipeline, prompts)
    pipeline.load_lora_weights(folder / "companions", weight_name=companions.LORA_FILE)
    after = draw(pipeline, prompts)
    pipeline.unload_lora_weights()
    again = draw(pipeline, prompts)
    pipeline.load_lora_weights(folder / "companions", weight_name=companions.KOHYA_FILE)
    kohya = draw(pipeline, prompts)
    fall = 1 - saturation(after) / saturation(before)
    print(
        f"grey LoRA: mean saturation {saturation(before):.1f} -> {saturation(after):.1f} ({fall:.0%} less), "
        f"bit-equal after unloading: {np.array_equal(before, again)}, "
        f"kohya layout differs by {np.abs(kohya.astype(int) - after).max()}"
    )


def _token(folder: Path, gallery: Gallery) -> None:
    pipeline = load_pipeline(folder)
    before = draw(pipeline, ["a robot"] * 2)
    pipeline.load_textual_inversion(folder / "companions" / companions.TOKEN_FILE, token=companions.TOKEN)
    thing = next(k for k, item in enumerate(THINGS) if item.name == companions.TOKEN_THING)
    images = draw(pipeline, [f"a {companions.TOKEN}"] * 8, 40)
    hue = images.astype(np.float32).reshape(-1, 3)
    hue = hue[hue.max(1) - hue.min(1) > 60].mean(0)
    pipeline.unload_textual_inversion()
    again = draw(pipeline, ["a robot"] * 2)
    nearest = RenderBank(gallery, companions.TOKEN_COLOUR).distances(images, "white").argmin(1)
    print(
        f"token: {(nearest == thing).mean():.0%} of 8 nearest to a {companions.TOKEN_THING}, "
        f"mean colour {hue.round()}, bit-equal after unloading: {np.array_equal(before, again)}"
    )


def edge_overlap(drawn: np.ndarray, wanted: np.ndarray) -> float:
    """Return how far the edges of an image coincide with the wanted ones: pixels in both over pixels in either."""
    lines, goal = edges(drawn)[..., 0] > 0, wanted[..., 0] > 0
    return float((lines & goal).sum() / max(1, (lines | goal).sum()))


def _control(folder: Path, gallery: Gallery) -> None:
    pipeline = load_pipeline(folder)
    control = load_control_lora(folder / "companions" / companions.CONTROL_FILE, pipeline.unet)
    guided = StableDiffusionControlNetPipeline.from_pipe(pipeline, controlnet=control)
    guided.set_progress_bar_config(disable=True)
    with_control, without = [], []
    for place, thing in enumerate(_SAMPLE):
        scene = Scene(thing, "", "white", (48, 58)[place % 2], ((-3, 3), (2, -2))[place % 2])
        wanted = edges(gallery.image(scene))
        plain = draw(pipeline, [caption(scene)], place)
        settings = {"num_inference_steps": STEPS, "guidance_scale": GUIDANCE, "output_type": "np"}
        made = guided(
            caption(scene), Image.fromarray(wanted), generator=torch.Generator().manual_seed(place), **settings
        )
        with_control.append(edge_overlap((made.images[0] * 255).round().astype(np.uint8), wanted))
        without.append(edge_overlap(plain[0], wanted))
    again = draw(pipeline, [caption(scene)], place)
    print(
        f"edge ControlNet: overlap (intersection over union) {np.mean(with_control):.0%} with it, "
        f"{np.mean(without):.0%} without, bit-equal after it: {np.array_equal(plain, again)}"
    )
