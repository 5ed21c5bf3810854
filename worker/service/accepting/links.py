"""The links of a request: images and videos that are fetched, a few at a time, before anything is decoded."""

import asyncio
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlsplit

from worker.core.errors import InvalidImage, ParameterOutOfRange
from worker.core.request import MAX_FRAMES, MAX_IMAGES, GenerationRequest
from worker.media import decoding, video
from worker.media.images import is_url, pixels_of_text, read_bytes
from worker.media.kinds import kind_of
from worker.media.video import Given, Video
from worker.service.accepting.inputs import field_value
from worker.service.accepting.media_reader import Fetch
from worker.service.limits.pools import Pool

AT_ONCE = 4  # of one request
MAX_BYTES = 90 * 10**6  # of all links together: as much as the body of a request may hold of images itself


@dataclass(frozen=True, slots=True)
class Link:
    """A link, the field that holds it, and the most bytes that are read from it."""

    url: str
    field: str
    max_bytes: int

    @property
    def host(self) -> str:
        """The server's name and port."""
        try:
            return urlsplit(self.url).netloc.rpartition("@")[2].lower()
        except ValueError:  # the client refuses it
            return ""


def links_of(request: GenerationRequest, sent: Collection[str]) -> tuple[Link, ...]:
    """List the links of a request's media fields `sent`, and of its adapters; each address once.

    Raises ParameterOutOfRange for more than any request can use.
    """
    links: dict[str, Link] = {}
    for name, texts in _texts(request, sent):
        is_video = "video" in name and len(texts) == 1
        for text in filter(is_url, texts):
            url, limit = text.strip(), video.MAX_BYTES if is_video else decoding.MAX_BYTES
            known = links.get(url)
            links[url] = Link(url, known.field if known else name, max(limit, known.max_bytes if known else 0))
            if len(links) > MAX_FRAMES:
                raise ParameterOutOfRange(f"{name}: a request may hold at most {MAX_FRAMES} links.", field=name)
    return tuple(links.values())


async def fetch_all(links: Collection[Link], fetch: Fetch, pool: Pool) -> Mapping[str, bytes]:
    """Fetch `links` and return their bytes by address. Raises InvalidImage for the first that fails, naming its field.

    The others are given up then.
    """
    places = asyncio.Semaphore(AT_ONCE)
    total = 0

    async def one(link: Link) -> bytes:
        nonlocal total
        async with places:
            try:
                body = await pool.run(partial(fetch, link.url, link.max_bytes), place=link.host)
            except InvalidImage as error:
                raise InvalidImage(error.message, field=link.field) from None
        total += len(body)
        if total > MAX_BYTES:
            raise InvalidImage(
                f"{link.field}: the links of a request may bring at most {MAX_BYTES / 1e6:g} MB together; send smaller "
                "images.",
                field=link.field,
            )
        return body

    tasks = [asyncio.ensure_future(one(link)) for link in links]
    try:
        bodies = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
    return {link.url: body for link, body in zip(links, bodies, strict=True)}


def reading(bodies: Mapping[str, bytes]) -> Callable[[str, int], bytes]:
    """Return the function that reads a link which was fetched."""

    def read(url: str, max_bytes: int) -> bytes:
        body = bodies[url]
        if len(body) > max_bytes:
            raise InvalidImage(f"The image's URL cannot be fetched: it is over {max_bytes >> 20} MB.", field="image")
        return body

    return read


async def count_pixels(
    pool: Pool, request: GenerationRequest, sent: Collection[str], read: Fetch, given: Mapping[str, Given]
) -> int:
    """Return how many pixels the images and videos of a request are at most, by their headers.

    `read` gives the bytes of its links, `given` images and videos by their texts. What cannot be read is refused
    later, and counts as nothing. To ask `pool` takes longer than the beginnings of a few images that were sent whole.
    """
    listed = [(name, text) for name, texts in _texts(request, sent) for text in texts]
    told = [
        pixels_of_text(text) if text not in given and "video" not in name and not is_url(text) else None
        for name, text in listed[:MAX_IMAGES]  # a request may name thousands, and nobody waits for those
    ]
    known = [pixels for pixels in told if pixels is not None]
    return sum(known) if len(known) == len(listed) else await pool.run(_pixels_sent, request, sent, read, given)


def _pixels_sent(request: GenerationRequest, sent: Collection[str], read: Fetch, given: Mapping[str, Given]) -> int:
    pixels = 0
    for name, texts in _texts(request, sent):
        for text in texts:
            if text in given:
                pixels += _pixels_of(given[text])
                continue
            with suppress(InvalidImage):
                if "video" not in name and (known := pixels_of_text(text)) is not None:
                    pixels += known  # without decoding the whole, which is done once it has its turn
                    continue
                data = read_bytes(text, read, name, video.MAX_BYTES)
                is_video = "video" in name and kind_of(data) in video.MOVING
                pixels += video.MAX_PIXELS if is_video else decoding.pixels_in(data)
    return pixels


def _pixels_of(item: Given) -> int:
    return sum(each.width * each.height for each in (item.frames if isinstance(item, Video) else (item,)))


def _texts(request: GenerationRequest, sent: Collection[str]) -> Iterator[tuple[str, list[str]]]:
    for name in sent:
        value = field_value(request, name)
        values = value if isinstance(value, list) else [value]
        yield name, [text for text in values if isinstance(text, str)]
    for adapter in request.adapters:
        yield adapter.field, list(adapter.sent_images)
