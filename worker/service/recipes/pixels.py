"""The pixels that go from one job of a recipe to the next: as they are here, as files to and from another worker."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from worker.catalog.recipes.recipe import RecipeStep
from worker.catalog.recipes.references import InputReference
from worker.core.errors import InvalidRequest, WorkerError
from worker.core.image import Raster
from worker.core.request import GenerationRequest
from worker.core.result import Artifact, EncodedArtifact
from worker.media.decoding import decode_image
from worker.media.images import encode, to_base64
from worker.media.video import Given, Video
from worker.service.accepting.acceptance import Acceptor
from worker.service.limits.pools import Pools
from worker.service.recipes.filling import Made, Values


@dataclass(frozen=True, slots=True)
class Pixels:
    """Reads what jobs made, and offers it to further jobs."""

    acceptor: Acceptor
    pools: Pools

    async def offered(self, name: str, image: Raster) -> tuple[str, Mapping[str, Given]]:
        """Return the text that stands for an image in a request, and what it stands for where that is made here."""
        if self.acceptor.generates:
            return name, {name: image}
        return to_base64(await self.pools.encoding.run(encode, image, "png", 1)), {}

    async def of(self, item: Artifact | EncodedArtifact) -> Raster:
        """Return the pixels of an image, which another worker sends as a file."""
        if isinstance(item, Artifact):
            return item.raster
        (file,) = item.files
        if file.url is not None:
            return await self.acceptor.read_image(GenerationRequest(image=file.url), {})
        return (await self.pools.decoding.run(decode_image, file.data)).raster


async def video_of(step: RecipeStep, values: Values, made: Mapping[str, Made], acceptor: Acceptor) -> Video:
    """Return the video whose frames a step begins from. Raises InvalidRequest and its subclasses."""
    reference = step.frames_of
    if reference is None:
        raise TypeError("a step that begins from no frames")
    if isinstance(reference, InputReference):
        sent = values[reference.name]
        if not isinstance(sent, str):
            raise InvalidRequest(f"{reference.name} is required here; send it.", field="image")
        try:
            return await acceptor.read_video(GenerationRequest(video=(sent,)), {})
        except WorkerError as error:
            error.field = "image"  # the step's, which names the input
            raise
    source = made[reference.step]
    video = await acceptor.read_video(GenerationRequest(video=source.images), source.given)
    return video if video.fps else replace(video, fps=source.fps)
