"""Small files that become large images: 39 KB are 16.7 million pixels, and many jobs send one at a time.

Frames of WebSockets are in test_f29_frames.py.
"""

import asyncio
import base64
import io
import tempfile
from functools import cache
from pathlib import Path

import pytest
from PIL import Image

from tests.fakes.engine import make_context
from tests.faults.measuring import measured
from tests.faults.table import Figures
from worker.core.image import KeptRaster
from worker.core.request import MAX_IMAGES
from worker.media.decoding import MAX_PIXELS, pixels_in
from worker.media.video import MAX_PIXELS as MAX_VIDEO_PIXELS
from worker.service.accepting.links import count_pixels
from worker.service.limits.pools import Pool
from worker.wire.request import decode_envelope, decode_generation

SIDE = 4_096
JOBS = 64


@cache
def large(mode: str = "RGB", format_: str = "PNG", side: int = SIDE) -> str:
    """Return a flat image of the most pixels that are taken, as base64."""
    out = io.BytesIO()
    Image.new(mode, (side, side), (90,) * len(mode) if len(mode) > 1 else 200).save(out, format_)
    return base64.b64encode(out.getvalue()).decode()


@cache
def animation(frames: int, side: int) -> str:
    """Return a GIF of flat frames, each of another colour, as base64."""
    images = [Image.new("P", (side, side), index % 2) for index in range(frames)]
    out = io.BytesIO()
    images[0].save(out, "GIF", save_all=True, append_images=images[1:], duration=100, optimize=False)
    return base64.b64encode(out.getvalue()).decode()


def requests_of(kind: str) -> list[dict[str, object]]:
    """Return the requests of one kind, all of them within what one request may hold."""
    image = {"image": large(), "model": "tiny"}
    match kind:
        case "small":
            return [{"image": large(side=64), "model": "any"}]
        case "a few images":
            return [image] * 5
        case "a few references":
            return [{"image": large(format_="JPEG"), "model": "editor"}] * 5
        case "images":
            return [image] * JOBS
        case "turned and transparent":
            return [image | {"image": large("RGBA", "WEBP")}] * (JOBS // 4)
        case "masks":
            return [image | {"mask_image": large("L"), "model": "any"}] * 40
        case "references":
            return [{"image": large(format_="JPEG"), "model": "editor"}] * JOBS
        case _:
            return [{"video": animation(60, 1_000), "model": "video", "task": "video-to-video"}] * 4


def accepted_at_once(kind: str) -> tuple[list[str], float]:
    """Run in a child: the sizes of what these jobs hold once all of them are accepted and wait, and MB of pixels."""

    async def accept() -> tuple[list[str], float]:
        with tempfile.TemporaryDirectory() as folder:
            context = make_context(Path(folder))
            jobs = await asyncio.gather(*(context.accept(**fields) for fields in requests_of(kind)))
            images = [image for job in jobs for media in job.media for image in media.images]
            sizes = sorted({f"{type(image).__name__} {image.width}x{image.height}" for image in images})
            pixels = {id(image): image for image in images if not isinstance(image, KeptRaster)}
            return sizes, sum(len(image.data) for image in pixels.values()) / 2**20

    return asyncio.run(accept())


@pytest.mark.slow
def test_a_few_jobs_with_the_largest_images_share_a_budget(figures: Figures) -> None:
    kinds = ["a few images", "a few references"]
    results = measured(f"{__name__}:accepted_at_once", "small", kinds, timeout_s=100)
    assert [result["outcome"][0] for result in results] == [["Raster 256x256"], ["KeptRaster 4096x4096"]]
    for kind, result in zip(kinds, results, strict=True):
        figures("F29", f"memory of 5 jobs: {kind}", result["peak"], "MB", at_most=400, momentary=True)


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_many_jobs_with_the_largest_images_take_little_memory(figures: Figures) -> None:
    kinds = ["images", "masks", "turned and transparent", "references", "videos"]
    results = measured(f"{__name__}:accepted_at_once", "small", kinds, timeout_s=480)
    held = {kind: result["outcome"][0] for kind, result in zip(kinds, results, strict=True)}
    assert held["images"] == ["Raster 256x256"]
    assert held["masks"] == ["KeptRaster 1448x1448", "Raster 1448x1448"], "what finds no room is packed"
    assert held["references"] == ["KeptRaster 4096x4096"]
    for kind, result in zip(kinds, results, strict=True):
        jobs = f"{len(requests_of(kind))} jobs: {kind}"
        figures("F29", f"pixels that wait of {jobs}", result["outcome"][1], "MB", at_most=256)
        figures("F29", f"memory of {jobs}", result["peak"], "MB", at_most=1_000, momentary=True)


def _sent(**fields: object) -> int:
    request = decode_generation(decode_envelope({"prompt": "x", **fields}).fields)
    sent = [name for name in fields if name != "controlnets"]
    return asyncio.run(count_pixels(Pool("decoding", 1), request, sent, lambda url, most: b"", {}))


def test_pixels_are_counted_before_they_are_decoded() -> None:
    assert _sent(image=large()) == SIDE**2 == MAX_PIXELS
    assert _sent(image=large(), mask_image=large("L", side=64)) == SIDE**2 + 64**2
    assert _sent(images=[large(side=64)] * 3) == 3 * 64**2
    assert _sent(controlnets=[{"model": "org/c", "image": large(side=64)}]) == 64**2
    assert _sent(video=animation(2, 8)) == MAX_VIDEO_PIXELS
    assert _sent(image="no image", mask_image=large(side=5_000)) == 0, "both are refused unread"
    png = base64.b64decode(large())
    assert pixels_in(png[:5_000]) == SIDE**2, "its header is enough"
    assert pixels_in(png[:20] + b"\xff" + png[21:30]) == MAX_PIXELS, "it does not say: perhaps it can be mended"


async def test_an_image_that_waits_comes_to_the_engine_to_the_byte(tmp_path: Path) -> None:
    context = make_context(tmp_path)
    job = await context.accept(image=large("L"), model="editor")
    (image,) = job.media[0].images
    assert isinstance(image, KeptRaster)
    assert image.data == bytes([200]) * (3 * SIDE**2)


@pytest.mark.parametrize(("count", "asked"), [(1, []), (MAX_IMAGES, []), (MAX_IMAGES + 1, ["decoding"])])
async def test_only_so_many_images_as_are_taken_are_looked_at_by_the_loop_itself(
    monkeypatch: pytest.MonkeyPatch, count: int, asked: list[str]
) -> None:
    """A request may name ten thousand, and whoever else is served would wait for all of them."""
    pool, told, run = Pool("decoding", 1), [], Pool.run

    def noted(self: Pool, *args: object, **options: object) -> object:
        told.append(self.name)
        return run(self, *args, **options)

    monkeypatch.setattr(Pool, "run", noted)
    request = decode_generation(decode_envelope({"prompt": "x", "images": [large(side=64)] * count}).fields)
    assert await count_pixels(pool, request, ["images"], lambda url, most: b"", {}) == count * 64**2
    assert told == asked
