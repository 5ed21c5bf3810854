"""The reader of a request's images: each read once its form is known, within limits on all of them together."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

from worker.core.errors import ParameterOutOfRange
from worker.core.image import Raster
from worker.core.request import MAX_IMAGES
from worker.media.decoding import MAX_BYTES, as_sent, decode_image
from worker.media.images import is_url, read_bytes
from worker.media.keeping import Room, from_source, kept
from worker.media.preprocessing import on_contrast
from worker.media.video import Given, Video, read_video

MAX_PIXELS = 2**26  # of all images together: 200 MB once decoded
Fetch = Callable[[str, int], bytes]
_NONE: Mapping[str, Given] = MappingProxyType({})


class MediaReader:
    """Reads the images of one request, those of its adapters too, within limits on their number and pixels together.

    `fits` is False where nothing is generated: there they are only checked. `given` are images and videos that this
    worker made itself, by the texts that stand for them in the request: their pixels are taken as they are.

    `notes` are for the caller; `orientations` are those of EXIF in which the images were stored, by their fields.
    """

    def __init__(
        self, fetch: Fetch, room: Room | None = None, *, fits: bool = True, given: Mapping[str, Given] = _NONE
    ) -> None:
        self.fetch = fetch
        self.given = given
        self.room = room or Room()
        self.fits = fits
        self.notes: list[str] = []
        self.orientations: dict[str, int] = {}
        self._images = self._pixels = 0
        self._sources: dict[int, tuple[Raster, str | bytes, bool]] = {}

    def image(self, text: str, field: str, *, alpha: bool = False) -> Raster:
        """Read the image that `text` is or names, not counted yet. Raises InvalidImage and others, naming `field`."""
        given = self.given.get(text)
        if isinstance(given, Raster):
            self.orientations.setdefault(field, 1)
            return as_sent(given, field, alpha=alpha)
        data = read_bytes(text, self.fetch, field, MAX_BYTES)
        if not (self.fits or alpha) and (proved := _proved(data)) is not None:
            self.orientations.setdefault(field, 1)
            return from_source(proved, data if is_url(text) else text)
        decoded = decode_image(data, field, alpha=alpha)
        self.notes += decoded.notes
        self.orientations.setdefault(field, decoded.orientation)
        # The request holds what was sent in any case; of a link nothing else is left.
        self._sources[id(decoded.raster)] = decoded.raster, data if is_url(text) else text, alpha
        return decoded.raster

    def kept(self, raster: Raster) -> Raster:
        """Return an image that a job keeps at its own size while it waits, in less room if it is large."""
        _, source, alpha = self._sources.get(id(raster), (raster, None, False))
        return kept(raster, source, self.room, alpha=alpha)

    def control(self, text: str, field: str) -> Raster:
        """Read an image to follow: with transparency it is laid on the ground that shows what is painted."""
        image = self.image(text, field, alpha=True)
        if image.mode != "RGBA":
            return image
        laid, ground = on_contrast(image)
        if min(image.data[3::4]) < 255:
            self.notes.append(f"{field} has transparent parts, which were read as {ground}.")
        return laid

    def video(self, texts: Sequence[str], field: str, *, alpha: bool = False) -> Video:
        """Read a video, whose images are not counted. Raises InvalidImage and others, naming `field`."""
        if len(texts) == 1 and isinstance(given := self.given.get(texts[0]), Video):
            return given
        video = read_video(texts, self.fetch, field, alpha=alpha)
        self.notes += video.notes
        return video

    def take(self, image: Raster, field: str) -> Raster:
        """Count `image` and return it. Raises ParameterOutOfRange, naming `field`, beyond the limits."""
        self._images += 1
        self._pixels += image.width * image.height
        if self._images > MAX_IMAGES:
            raise ParameterOutOfRange(f"A request may hold at most {MAX_IMAGES} images; send fewer.", field=field)
        if self._pixels > MAX_PIXELS:
            raise ParameterOutOfRange(
                f"The images of a request may hold at most {MAX_PIXELS:,} pixels together; send smaller ones.",
                field=field,
            )
        return image


def _proved(png: bytes) -> Raster | None:
    """Return the mode and size of a PNG that was proved whole; None of others. Only who generates nothing asks."""
    from worker.media.proof import plain_png_size

    size = plain_png_size(png)
    return None if size is None else Raster("RGB", *size, b"")
