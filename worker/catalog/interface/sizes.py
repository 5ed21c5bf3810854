"""The limits of a model's output: sizes, images, steps, and frames a second."""

import math
from dataclasses import dataclass

from worker.catalog.call import Model, ModelCall, once
from worker.catalog.classes.signatures import size_step
from worker.catalog.interface.values import nearest_multiple
from worker.catalog.pipelines.table import pipeline_row
from worker.core.model import ModelSpec

LIMIT_KEYS = ("max_side", "max_pixels", "max_steps", "max_images")
# Conservative: an 8x VAE and patches of 2 need sixteen pixels together.
_UNKNOWN_MULTIPLE = 16

# The names of pipelines for the number of frames.
FRAME_COUNTS = ("num_frames", "video_length", "frames")


@dataclass(frozen=True, slots=True)
class SizeBounds:
    """The sizes of a model's images, in pixels. A side is a multiple of `multiple` from `minimum` to `maximum`."""

    minimum: int
    maximum: int
    multiple: int
    max_pixels: int
    native: int

    def nearest(self, side: float) -> int:
        """Return the allowed side that is closest to `side`."""
        return nearest_multiple(side, self.multiple, self.minimum, self.maximum)


@once
def size_bounds(model: Model) -> SizeBounds:
    """Return the sizes that a model generates: its family's, changed by `limits`; tiny models may make tiny images."""
    row, limits = model.architecture, model.spec.limits
    multiple = math.lcm(row.size_multiple, pipeline_row(model.pipeline).size_multiple) if row else _multiple(model)
    native = model.detection.native_size or (row.native_size if row else 1024)
    max_pixels = int(limits.get("max_pixels", row.max_pixels if row else 2048 * 2048))
    # Up to an aspect of 4:1 at the most pixels: beyond that no family was trained.
    side = int(limits.get("max_side", 2 * math.isqrt(max_pixels)))
    maximum = max(side // multiple, 1) * multiple
    # 4 latent pixels a side are enough where the model itself is tiny; below 64 pixels a real one makes noise.
    least = -(-max(64, multiple) // multiple) * multiple
    minimum = min(4 * multiple, least) if native < 256 else least
    if row is None:
        # For a class without a family the size where noise begins is unknown.
        minimum = max(multiple, int(pipeline_row(model.pipeline).least.get("width", 0)))
    return SizeBounds(min(minimum, maximum), maximum, multiple, max_pixels, min(max(native, minimum), maximum))


def _multiple(model: Model) -> int:
    """Return the multiple that the sides of a model without a family's row are of: its class's, and its parts'."""
    step = size_step(model.pipeline) or _UNKNOWN_MULTIPLE
    return math.lcm(step, model.detection.size_grid or 1, pipeline_row(model.pipeline).size_multiple)


def image_limit(spec: ModelSpec, max_images: int) -> int:
    """Return the most images that one request for this model may ask for."""
    return min(max_images, int(spec.limits.get("max_images", max_images)))


def step_limit(model: Model) -> int:
    """Return the most denoising steps that one image of this model may take."""
    row = model.architecture
    return int(model.spec.limits.get("max_steps", row.max_steps if row else 150))


def size_within(width: int, height: int, bounds: SizeBounds, pixels: float | None = None) -> tuple[int, int]:
    """Return `width` x `height` on the model's grid, within its limits and `pixels`, at about the same proportions."""
    pixels = min(bounds.max_pixels, pixels or bounds.max_pixels)
    scale = min(1.0, (pixels / (width * height)) ** 0.5, bounds.maximum / max(width, height))
    width, height = bounds.nearest(width * scale), bounds.nearest(height * scale)
    while width * height > bounds.max_pixels:
        if width >= height:
            width -= bounds.multiple
        else:
            height -= bounds.multiple
    return width, height


def size_before(width: int, height: int, scale: int, bounds: SizeBounds) -> tuple[int, int] | None:
    """Return the size that an upscaler brings to about `width` x `height`; None where the model draws these itself.

    That is where they do not reach the model's own size `scale` times, or where a side would be too small for it.
    """
    if max(width, height) < scale * bounds.native or min(width, height) < scale * bounds.minimum:
        return None
    return bounds.nearest(width / scale), bounds.nearest(height / scale)


def default_fps(call: ModelCall) -> float:
    """Return the frames a second of a video for a request without `fps`."""
    row = call.architecture
    if row is not None and row.fps is not None:
        return row.fps
    frame_rate = (call.signature or {}).get("frame_rate")
    if frame_rate is not None and isinstance(frame_rate.default, int | float) and 1 <= frame_rate.default <= 60:
        return float(frame_rate.default)
    return call.row.fps
