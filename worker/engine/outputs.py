"""Outputs of pipelines as 8-bit pixels, from whichever attribute, nesting, range and library."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from worker.core.errors import InvalidOutput
from worker.core.image import Raster
from worker.core.job import Job

_ATTRIBUTES = ("frames", "images", "video", "videos", "image", "prediction", "rgb")
_BESIDE = {"rgb": "depth"}  # two images that belong together
_MODES: Mapping[int, Literal["L", "RGB", "RGBA"]] = {1: "L", 3: "RGB", 4: "RGBA"}


def read_images(output: Any) -> list[Raster]:
    """Return every image of `output`, in order. Raises InvalidOutput for NaN, for all black and for none."""
    return to_rasters(arrays_of(output))


def arrays_of(output: Any) -> list[np.ndarray]:
    """Return every image of `output`, in order, HxWxC and otherwise as it came."""
    return list(_leaves(_nested(_values(output))))


def read_videos(output: Any) -> list[list[Raster]]:
    """Return every video of `output`, each as its frames. Raises InvalidOutput as `read_images` does."""
    nested = _nested(_values(output))
    while nested and all(isinstance(item, list) and item and isinstance(item[0], list) for item in nested):
        nested = [video for batch in nested for video in batch]
    videos = nested if nested and isinstance(nested[0], list) else [nested]
    return [to_rasters(list(_leaves(video))) for video in videos]


def to_rasters(images: list[np.ndarray]) -> list[Raster]:
    """Return one job's images as 8-bit pixels. Raises InvalidOutput for NaN, for all black and for none."""
    if not images:
        raise InvalidOutput("The pipeline returned no image; its parameters may not suit this model.")
    rasters = [_raster(image) for image in images]
    # A single black layer or frame among others is valid.
    if not any(map(_has_colour, rasters)):
        raise InvalidOutput(
            "The model returned a completely black image; its VAE may overflow in half precision: "
            "set dtype: float32 for it in models.yaml, or change prompt and seed."
        )
    return rasters


def keep_outside(result: Raster, job: Job) -> Raster:
    """Return `result` where the job's mask is white, its own image elsewhere: a VAE changes all pixels that pass it."""
    image, mask = job.image, job.mask
    if image is None or mask is None or (image.width, image.height) != (result.width, result.height):
        return result
    if (mask.width, mask.height) != (result.width, result.height) or (result.mode, image.mode) != ("RGB", "RGB"):
        return result
    shape = (result.height, result.width, -1)
    inside, outside = (
        np.frombuffer(raster.data, np.uint8).reshape(shape).astype(np.float32) for raster in (result, image)
    )
    weight = np.frombuffer(mask.data, np.uint8).reshape(shape).astype(np.float32) / 255
    blended = (outside + (inside - outside) * weight).round().astype(np.uint8)
    return Raster("RGB", result.width, result.height, blended.tobytes())


def _values(output: Any) -> Any:
    for name in _ATTRIBUTES:
        value = getattr(output, name, None)
        if value is not None:
            beside = getattr(output, _BESIDE.get(name, ""), None)
            return value if beside is None else [value, beside]
    return output[0] if isinstance(output, tuple) and output else output


def _nested(value: Any) -> Any:
    """Return lists in lists, whose leaves are arrays HxWxC."""
    if isinstance(value, torch.Tensor):
        value = value.detach().float().cpu().numpy()
        if value.ndim >= 3 and value.shape[-3] in _MODES and value.shape[-1] not in _MODES:
            value = np.moveaxis(value, -3, -1)
    if isinstance(value, Image.Image):
        value = np.asarray(value)
    if isinstance(value, np.ndarray):
        if value.ndim == 2:
            return value[..., None]
        if value.ndim == 3 and value.shape[-1] in _MODES:
            return value
        return [_nested(item) for item in value] if value.ndim >= 3 else []
    return [_nested(item) for item in value if item is not None] if isinstance(value, list | tuple) else []


def _leaves(nested: Any) -> Iterator[np.ndarray]:
    if isinstance(nested, np.ndarray):
        yield nested
        return
    for item in nested:
        yield from _leaves(item)


def _has_colour(raster: Raster) -> bool:
    pixels = np.frombuffer(raster.data, np.uint8)
    return bool((pixels.reshape(-1, 4)[:, :3] if raster.mode == "RGBA" else pixels).max())


def _raster(image: np.ndarray) -> Raster:
    """Return one HxWxC image as 8-bit pixels, from floats of 0..1 (or -1..1, as normals have), 16 bits, or bytes."""
    if image.dtype == np.uint16:
        image = (image / 257).round().astype(np.uint8)
    elif image.dtype != np.uint8:
        low, high = float(image.min()), float(image.max())  # NaN if any value is NaN
        if not (math.isfinite(low) and math.isfinite(high)):
            raise InvalidOutput(
                "The model returned NaN pixels; its weights may be damaged, or too large for half precision: "
                "set dtype: float32 for it in models.yaml."
            )
        if low < -0.01:
            image = (image + 1) / 2
        levels = image * np.float32(255)
        np.rint(levels, out=levels)  # in place: an image is megabytes of floats
        image = levels.clip(0, 255, out=levels)
    height, width, channels = image.shape
    pixels = np.empty(image.shape, np.uint8)
    # Most arrays are views of planes: to transpose all three at once takes four times as long.
    for channel in range(channels):
        pixels[..., channel] = image[..., channel]
    return Raster(_MODES[channels], width, height, pixels.tobytes())
