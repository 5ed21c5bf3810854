"""What Qwen's processors do with an image: CxHxW or a batch of them, in plain torch."""

from collections.abc import Sequence

import torch
from torch.nn.functional import interpolate

from torchvision.transforms import InterpolationMode as InterpolationMode


def resize(
    image: torch.Tensor, size: Sequence[int], interpolation: InterpolationMode, antialias: bool | None = True
) -> torch.Tensor:
    """Resize to (height, width); whole numbers are rounded and kept within 0 to 255."""
    batch = image.reshape(-1, *image.shape[-3:]).float()
    smooth = interpolation in (InterpolationMode.BILINEAR, InterpolationMode.BICUBIC)
    how = {"align_corners": False, "antialias": bool(antialias)} if smooth else {}
    resized = interpolate(batch, size=[*size], mode=interpolation.value, **how).reshape(*image.shape[:-2], *size)
    return resized if image.is_floating_point() else resized.round().clamp(0, 255).to(image.dtype)


def normalize(image: torch.Tensor, mean: Sequence[float], std: Sequence[float], inplace: bool = False) -> torch.Tensor:
    """Take the mean off each channel, and divide by its deviation."""
    shape = (-1, 1, 1)
    middle, spread = (torch.as_tensor(each, dtype=image.dtype).reshape(shape) for each in (mean, std))
    return (image - middle) / spread


def grayscale_to_rgb(image: torch.Tensor) -> torch.Tensor:
    """Repeat a lone channel."""
    return image if image.shape[-3] == 3 else image.expand(*image.shape[:-3], 3, *image.shape[-2:])
