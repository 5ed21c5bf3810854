"""A recipe's steps as somebody without recipes would do them: one request after the other, each image sent as a PNG."""

import base64
import io
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image, ImageSequence

from tests.answers import files_of
from tests.asking import perform
from worker.app.build import Worker
from worker.app.settings import PROJECT_DIR

SHIPPED = PROJECT_DIR / "docs/examples/recipes"
_REFERENCE = re.compile(r"\$\{(inputs|steps)\.(\w+)(?:\.(\w+))?\}")


async def done_by_hand(worker: Worker, path: Path, sent: dict[str, Any]) -> list[str]:
    """Return the images of a recipe's outputs, as base64 of PNGs, each step asked for by itself."""
    recipe = yaml.safe_load(path.read_text())
    defaults = {name: each["default"] for name, each in recipe["inputs"].items() if "default" in each}
    values, answers = defaults | sent, {}
    for index, (name, fields) in enumerate(recipe["steps"].items()):
        of_all = {"seed": sent["seed"] + 1_000 * index, "output": {"format": "png"}}
        request = of_all | filled(fields, values, answers, path.parent)
        video = fields.get("image", "").endswith(".frames}")
        make = frame_by_frame if video else redrawn if "detail" in request else perform
        answer = answers[name] = await make(worker, request, f"by-hand-{name}")
        if answer.get("num_frames"):
            answer["frames"] = files_of(answer)
    names = recipe.get("outputs") or [*recipe["steps"]][-1:]
    return [image for name in names for image in answers[name].get("frames") or files_of(answers[name])]


async def frame_by_frame(worker: Worker, request: dict[str, Any], job: str) -> dict[str, Any]:
    """Return what becomes of each frame, a GIF's or an earlier step's, asked for by itself with the same seed."""
    frames = request["image"] if isinstance(request["image"], list) else frames_of(request["image"])
    answers = [await perform(worker, request | {"image": frame}, f"{job}-{at}") for at, frame in enumerate(frames)]
    return {"frames": [files_of(answer)[0] for answer in answers], "seed": request["seed"]}


def moving(frames: int, side: int, fps: int = 5) -> str:
    """Return base64 of a GIF in which a square crosses a grey ground."""
    images = [Image.new("RGB", (side, side), (90, 90, 90)) for _ in range(frames)]
    for number, image in enumerate(images):
        image.paste((200, 40, 30), (number * 8, number * 4, number * 8 + side // 2, number * 4 + side // 2))
    out = io.BytesIO()
    images[0].save(out, "GIF", save_all=True, append_images=images[1:], duration=1000 // fps)
    return base64.b64encode(out.getvalue()).decode()


def frames_of(text: str) -> list[str]:
    """Return the frames of a GIF in base64, each as a PNG."""
    with Image.open(io.BytesIO(base64.b64decode(text))) as video:
        return [encoded(frame.convert("RGB")) for frame in ImageSequence.Iterator(video)]


async def redrawn(worker: Worker, request: dict[str, Any], job: str) -> dict[str, Any]:
    """Return an image of which each region was cut out, drawn again under a mask, and put back, as docs say."""
    said = {"padding": 0.25, "feather": 0.1} | request.pop("detail")
    image, (width, height) = decoded(request["image"]), (request["width"], request["height"])
    for number, region in enumerate(said["regions"]):
        across, down = image.size
        left, top, right, bottom = (round(share * side) for share, side in zip(region, (across, down) * 2, strict=True))
        longer = max(right - left, bottom - top)
        margin, seam = math.ceil(said["padding"] * longer), math.ceil(said["feather"] * longer)
        wide, high = right - left + 2 * margin, bottom - top + 2 * margin
        wide, high = max(wide, math.ceil(high * width / height)), max(high, math.ceil(wide * height / width))
        wide, high = min(wide, across), min(high, down)
        x = min(max((left + right - wide) // 2, 0), across - wide)
        y = min(max((top + bottom - high) // 2, 0), down - high)
        mask = np.zeros((down, across), np.uint8)
        mask[max(top - seam, 0) : bottom + seam, max(left - seam, 0) : right + seam] = 255
        window = (x, y, x + wide, y + high)
        own = {
            "image": encoded(image.crop(window).resize((width, height), Image.Resampling.LANCZOS)),
            "mask_image": encoded(Image.fromarray(mask).crop(window).resize((width, height), Image.Resampling.NEAREST)),
            "seed": request["seed"] + number,
        }
        answer = await perform(worker, request | own, f"{job}-{number}")
        part = decoded(files_of(answer)[0]).resize((wide, high), Image.Resampling.LANCZOS)
        rows, columns = np.mgrid[y : y + high, x : x + wide]
        beside = np.maximum.reduce([left - columns, columns - right + 1, np.zeros_like(columns)])
        beyond = np.maximum.reduce([top - rows, rows - bottom + 1, np.zeros_like(rows)])
        share = np.clip(1 - beside / (seam + 1), 0, 1) * np.clip(1 - beyond / (seam + 1), 0, 1)
        before = np.asarray(image.crop(window), float)
        mixed = np.rint(before + (np.asarray(part, float) - before) * share[..., None])
        image.paste(Image.fromarray(mixed.astype(np.uint8)), (x, y))
    return {"image": encoded(image), "seed": request["seed"]}


def decoded(text: str) -> Image.Image:
    """Return an image that came as base64."""
    return Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")


def encoded(image: Image.Image) -> str:
    """Return base64 of a PNG."""
    out = io.BytesIO()
    image.save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def filled(value: Any, values: dict[str, Any], answers: dict[str, Any], folder: Path) -> Any:
    """Return a step's fields with values in the places of references; what was not sent is left out."""
    if isinstance(value, dict):
        items = {name: filled(item, values, answers, folder) for name, item in value.items()}
        return {name: item for name, item in items.items() if item is not None}
    if isinstance(value, list):
        return [filled(item, values, answers, folder) for item in value]
    if not isinstance(value, str):
        return value
    if value.startswith("file:"):
        return f"file:{(folder / value[5:]).resolve()}"

    def meant(match: re.Match[str]) -> Any:
        kind, name, part = match.groups()
        if kind == "inputs":
            return values.get(name)
        if part == "frames":
            return answers[name]["frames"]
        return answers[name]["seed"] if part == "seed" else files_of(answers[name])[0]

    if match := _REFERENCE.fullmatch(value):
        return meant(match)
    return _REFERENCE.sub(lambda match: str(meant(match)), value)
