"""Upscalers in one file (ESRGAN, SwinIR, HAT, DAT, SPAN …) in the shape of a pipeline: an image, tile by tile.

`spandrel` infers the architecture and its hyperparameters from the tensors and builds the network; MIT, and without any
architecture whose licence forbids commercial use.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from diffusers.utils import BaseOutput
from PIL import Image
from safetensors.torch import load_file

from worker.core.device import LoadPlan
from worker.core.errors import InvalidOutput, ParameterOutOfRange, UnsupportedModel
from worker.core.single_file import unwrapped
from worker.engine import devices
from worker.engine.compatibility import import_spandrel

# Pixels around every tile that are read too and cut off again: nearly all of a pixel depends on these alone.
MARGIN = 32
# The image at the network's own scale, before `scale` makes it smaller: 800 MB.
MAX_PIXELS = 2**28
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
_DOES = {"SR": "an upscaler", "Restoration": "a restorer", "FaceSR": "a face restorer", "Inpainting": "an inpainter"}

Box = tuple[int, int, int, int]  # left, top, right, bottom
StepCallback = Callable[[Any, int, Any, dict[str, Any]], dict[str, Any]]


class UpscaleOutput(BaseOutput):  # type: ignore[misc]  # diffusers has no types
    """One image, HxWxC bytes, in a list."""

    images: list[np.ndarray]


class SpandrelUpscalePipeline:
    """A network that makes an image `network.scale` times as large, called as diffusers' pipelines are."""

    def __init__(self, network: Any) -> None:
        self._network = network
        self.components = {"model": network.model}
        self.num_timesteps = 0

    def __call__(
        self,
        image: Image.Image,
        scale: float | None = None,
        tile: int = 256,
        callback_on_step_end: StepCallback | None = None,
    ) -> UpscaleOutput:
        """Return the image `scale` times as large; by default as large as the network makes it. Alpha is kept.

        The network runs on tiles of `tile` pixels a side and MARGIN around them, so memory does not grow with the
        image; where it runs out all the same, on quarters of a tile. The callback is called after each tile.
        """
        factor = self._network.scale
        if image.width * image.height * factor**2 > MAX_PIXELS:
            raise ParameterOutOfRange(
                f"image is {image.width}x{image.height}, and this model makes it {factor} times as large: more than "
                f"{MAX_PIXELS:,} pixels; send a smaller image.",
                field="image",
            )
        native = _MODES[self._network.input_channels]
        layers = [image if image.mode == native else image.convert(native)]
        if "A" in image.mode and native != "RGBA":
            layers.append(image.getchannel("A").convert(native))
        tiles = [*_tiles(image.width, image.height, tile)]
        self.num_timesteps = len(tiles) * len(layers)
        step = 0
        enlarged = []
        for layer in layers:
            pixels = np.asarray(layer).reshape(image.height, image.width, -1)
            large = np.empty((image.height * factor, image.width * factor, self._network.output_channels), np.uint8)
            for box in tiles:
                self._fill(large, pixels, box)
                if callback_on_step_end is not None:
                    callback_on_step_end(self, step, None, {})
                step += 1
            enlarged.append(large)
        if len(enlarged) == 2:
            colour, alpha = enlarged[0], enlarged[1].mean(axis=-1, keepdims=True).round().astype(np.uint8)
            enlarged = [np.concatenate([np.broadcast_to(colour, (*colour.shape[:2], 3)), alpha], axis=-1)]
        return UpscaleOutput(images=[_resized(enlarged[0], image.width, image.height, scale)])

    def _fill(self, large: np.ndarray, pixels: np.ndarray, box: Box) -> None:
        """Write one tile of the large image; where memory does not suffice for it, in quarters."""
        try:
            return self._enlarge(large, pixels, box)
        except Exception as error:
            left, top, right, bottom = box
            side = max(right - left, bottom - top)
            if side <= MARGIN or not devices.is_out_of_memory(error):
                raise
            error.__traceback__ = None  # its frames hold tensors
        devices.release_memory()
        for x, y, to_x, to_y in _tiles(right - left, bottom - top, -(-side // 2)):
            self._fill(large, pixels, (left + x, top + y, left + to_x, top + to_y))

    def _enlarge(self, large: np.ndarray, pixels: np.ndarray, box: Box) -> None:
        """Write one tile: read with its margin, kept without it."""
        left, top, right, bottom = box
        height, width = pixels.shape[:2]
        x, y = max(0, left - MARGIN), max(0, top - MARGIN)
        piece = pixels[y : min(height, bottom + MARGIN), x : min(width, right + MARGIN)].copy()
        parameter = next(self._network.model.parameters())
        inputs = torch.from_numpy(piece).permute(2, 0, 1)[None].to(parameter.device, parameter.dtype) / 255
        with torch.inference_mode():
            result = self._network(inputs)[0].float().permute(1, 2, 0).cpu()  # padded as it needs, and within 0..1
        if not torch.isfinite(result).all():
            raise InvalidOutput("The upscaler returned NaN pixels; its weights may be damaged.")
        factor = self._network.scale
        inner = result[(top - y) * factor : (bottom - y) * factor, (left - x) * factor : (right - x) * factor]
        large[top * factor : bottom * factor, left * factor : right * factor] = (
            (inner * 255).round().to(torch.uint8).numpy()
        )

    def to(self, device: str) -> Self:
        """Move the network."""
        self._network.model.to(device)
        return self

    def set_progress_bar_config(self, **options: Any) -> None:
        """Do nothing: there is no bar."""

    def maybe_free_model_hooks(self) -> None:
        """Do nothing: there are no hooks."""


def load_upscaler(plan: LoadPlan) -> SpandrelUpscalePipeline:
    """Load the upscaler of a safetensors file. Raises UnsupportedModel for a file that spandrel does not know as one.

    In bfloat16 an image would have seven bits. So it is computed in float16 where the network can, else in float32.
    """
    network = read_network(plan.root)
    if network.purpose not in ("SR", "Restoration") or network.input_channels not in _MODES:
        raise UnsupportedModel(
            f"The file is {_DOES.get(network.purpose, network.purpose)} ({network.architecture.name}) and not an "
            "upscaler; use an upscaler of whole images.",
            field="model",
        )
    half = plan.dtype != "float32" and network.supports_half
    network.model.eval().requires_grad_(False).to(torch.float16 if half else torch.float32)
    return SpandrelUpscalePipeline(network)


def read_network(file: Path) -> Any:
    """Return what spandrel makes of a file. Raises UnsupportedModel for one that it does not know."""
    spandrel = import_spandrel()
    weights = unwrapped(load_file(file))
    try:
        return spandrel.ModelLoader().load_from_state_dict(weights)
    except spandrel.UnsupportedModelError:
        raise UnsupportedModel(
            "The file is an upscaler of an architecture that spandrel does not know; use an ESRGAN, SwinIR, HAT, DAT, "
            "SPAN or Compact one.",
            field="model",
        ) from None


def _tiles(width: int, height: int, side: int) -> Iterator[Box]:
    for top in range(0, height, side):
        for left in range(0, width, side):
            yield left, top, min(left + side, width), min(top + side, height)


def _resized(pixels: np.ndarray, width: int, height: int, scale: float | None) -> np.ndarray:
    """Return `pixels` at `scale` times `width` x `height`; as they are without a scale."""
    size = (max(1, round(width * scale)), max(1, round(height * scale))) if scale else None
    if size is None or size == (pixels.shape[1], pixels.shape[0]):
        return pixels
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS)).reshape(size[1], size[0], -1)
