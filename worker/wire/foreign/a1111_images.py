"""The images of AUTOMATIC1111's img2img: how many there may be, and what is done to them and to the mask before."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import JsonValue

from worker.catalog.interface.values import number_in
from worker.core.errors import InvalidRequest, ParameterOutOfRange
from worker.wire.foreign.a1111_values import Payload, whole

ResizeMode = Literal["stretch", "crop", "fill"]
DEFAULT_STRENGTH = 0.75
_RESIZES: Mapping[int, ResizeMode] = {0: "stretch", 1: "crop", 2: "fill"}
_USUAL_BLUR, _MOST_BLUR = 4.0, 256  # pixels
_FILL, _ORIGINAL = 0, 1


@dataclass(frozen=True, slots=True)
class Retouching:
    """Changes to what was sent, before it is drawn from: of the mask, of what it covers, and of both sizes.

    `blur` are the standard deviations along x and y, in pixels.
    """

    blur: tuple[float, float] = (0.0, 0.0)
    is_inverted: bool = False
    is_filled: bool = False
    resize: ResizeMode = "crop"


def sources_of(said: Payload, batch_size: int) -> tuple[JsonValue, ...]:
    """Return the images to change: one, or as many as `batch_size` at most, which then is their number, as there.

    Raises InvalidRequest without one, ParameterOutOfRange for too many.
    """
    images = said.get("init_images")
    sent = tuple(images) if isinstance(images, list) else (images,) if images else ()
    if not sent:
        raise InvalidRequest(
            "init_images is required: a list with the image to change, as base64.", field="init_images"
        )
    if len(sent) > max(1, batch_size):
        raise ParameterOutOfRange(
            f"init_images has {len(sent)} images, more than batch_size {batch_size}; send batch_size {len(sent)}.",
            field="init_images",
        )
    return sent


def retouching_of(said: Payload) -> Retouching:
    """Return what is to be done to image and mask. Raises ParameterOutOfRange."""
    resize = whole(said, "resize_mode", 0, least=0)
    if resize not in _RESIZES:
        raise ParameterOutOfRange(
            "resize_mode must be 0 (stretch), 1 (crop) or 2 (fill) here: latents are not resized; send 0 for 3.",
            field="resize_mode",
        )
    if not said.get("mask"):
        return Retouching(resize=_RESIZES[resize])
    fill = whole(said, "inpainting_fill", _FILL, least=0)
    if fill not in (_FILL, _ORIGINAL):
        raise ParameterOutOfRange(
            "inpainting_fill must be 0 (fill) or 1 (original) here: latents are not filled; for 2 and 3, which draw "
            "the masked part anew, send 0 with denoising_strength 1.",
            field="inpainting_fill",
        )
    return Retouching(
        blur=(_blur(said, "mask_blur_x"), _blur(said, "mask_blur_y")),
        is_inverted=whole(said, "inpainting_mask_invert", 0, least=0) == 1,
        is_filled=fill == _FILL,
        resize=_RESIZES[resize],
    )


def _blur(said: Payload, name: str) -> float:
    """Return the blur along one axis: `mask_blur` is that of both."""
    name = name if said.get("mask_blur") is None else "mask_blur"
    blur = number_in(said.get(name, _USUAL_BLUR))
    if blur is None or not 0 <= blur <= _MOST_BLUR:
        raise ParameterOutOfRange(f"{name} must be a number of pixels between 0 and {_MOST_BLUR}.", field=name)
    return float(blur)
