"""The masks of a request: of their image's shape, and read once their image is known."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from worker.core.errors import ParameterOutOfRange
from worker.core.image import MaskReading, Raster
from worker.core.job import Media
from worker.core.pipeline import Slot
from worker.media.masks import read_masks, stretched

_ROUNDED = 1  # pixel a side that a mask of another size may be off
_SHARE = 0.01  # of its shape, in a size that was rounded to a grid
_SIDEWAYS = (5, 6, 7, 8)  # EXIF's orientations that exchange width and height
Pair = tuple[Slot, Media]


@dataclass(frozen=True, slots=True)
class MaskReport:
    """The way in which a request's mask was read, with notes for its caller; None without one.

    `is_empty` is True if it leaves all of the image as it is.
    """

    reading: MaskReading | None = None
    notes: tuple[str, ...] = ()
    is_empty: bool = False


def is_mask(slot: Slot) -> bool:
    """True if the slot takes masks."""
    return "mask" in slot.form or slot.fields == ("mask_image",) or slot.parameter == "mask_video"


def with_masks(
    pairs: list[Pair], source: Media | None, orientations: Mapping[str, int]
) -> tuple[list[Pair], MaskReport]:
    """Return the media with each mask read as white where `source` is redrawn. Raises for one of another shape.

    `orientations` are those that the files had in their EXIF, by field.
    """
    report, result = MaskReport(), []
    orientation = orientations.get(source.field, 1) if source else 1
    for slot, media in pairs:
        if is_mask(slot):
            image = source.images[0] if source else None
            masks = read_masks(media.images, image, media.field)
            rasters = masks.rasters
            if slot.fitted and source is not None:
                rasters = tuple(_in_shape(mask, source, orientation, media.field) for mask in rasters)
                masks = replace(masks, notes=masks.notes + _turning(source, orientation, media.field))
            media = replace(media, images=rasters)
            is_empty = masks.is_empty and media.field == "mask_image" and source is not None
            report = MaskReport(masks.reading, report.notes + masks.notes, is_empty)
        result.append((slot, media))
    return result, report


def _in_shape(mask: Raster, source: Media, orientation: int, field: str) -> Raster:
    """Return a mask of the same shape as its image, which it covers from edge to edge."""
    image = source.images[0]
    across, down = mask.width * image.height, mask.height * image.width
    if across == down:
        return mask
    if abs(across - down) > max(_ROUNDED * (image.width + image.height), _SHARE * max(across, down)):
        is_turned = (mask.width > mask.height) != (image.width > image.height)
        how = f", drawn over {source.field} as its EXIF turns it" if is_turned and orientation in _SIDEWAYS else ""
        raise ParameterOutOfRange(
            f"{field} is {mask.width}x{mask.height} and {source.field} {image.width}x{image.height}; "
            f"send a mask of the same shape{how}.",
            field=field,
        )
    return stretched(mask, image.width, image.height)


def _turning(source: Media, orientation: int, field: str) -> tuple[str, ...]:
    """Return a warning if the shape does not show whether a mask was drawn over the image as shown or as stored."""
    image = source.images[0]
    if orientation == 1 or (orientation in _SIDEWAYS and image.width != image.height):
        return ()
    return (f"{source.field} was turned as its EXIF says; {field} must be drawn over it as it is shown.",)
