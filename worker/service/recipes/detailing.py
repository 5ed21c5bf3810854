"""A step that draws parts of an image again: each is found, cut out, a job of its own, and put back.

One after the other: where two overlap, the second begins from what the first became.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pydantic import JsonValue

from worker.catalog.recipes.detail import Detail
from worker.catalog.recipes.recipe import RecipeStep
from worker.core.image import Raster
from worker.core.request import MAX_SEED
from worker.core.result import Artifact, JobResult
from worker.core.turn import current
from worker.media.detecting import Detector
from worker.media.regions import Box, Cut, box_of
from worker.service.generation import Asked
from worker.service.recipes.filling import mask_name
from worker.service.recipes.foreseeing import image_name, part_size
from worker.service.recipes.pixels import Pixels
from worker.service.recipes.results import joined, untouched
from worker.service.recipes.running import Run

_NOTHING = "{} found nothing; the image is as it was."
_LARGE = "Part {} is {} x {} pixels with its padding, and was drawn at {} x {}: it has less detail than before."


@dataclass(frozen=True, slots=True)
class Redrawing:
    """One step of a recipe that draws parts of an image again."""

    step: RecipeStep
    detail: Detail
    pixels: Pixels

    async def run(self, asked: Asked, run: Run) -> JobResult:
        """Return the image with its parts drawn again, in which `run` runs a job for each. Raises WorkerError."""
        image = await self.pixels.acceptor.read_image(asked.request, asked.given)
        boxes = await self.pixels.pools.decoding.run(self._boxes, image)
        size, seed = part_size(asked.request), asked.request.seed or 0
        results: list[JobResult] = []
        notes: list[str] = []
        for number, box in enumerate(boxes):
            current().stop.check()
            cut = Cut.of(box, image, size, padding=self.detail.padding, feather=self.detail.feather)
            if cut.around.width > size[0] or cut.around.height > size[1]:
                notes.append(_LARGE.format(number + 1, cut.around.width, cut.around.height, *size))
            part, mask = await self.pixels.pools.decoding.run(cut.taken, image, *size)
            image_text, given = await self.pixels.offered(image_name(self.step, number), part)
            mask_text, masks = await self.pixels.offered(mask_name(self.step), mask)
            fields = {"image": image_text, "mask_image": mask_text, "seed": (seed + number) % (MAX_SEED + 1)}
            own = Asked(asked.request.model_copy(update=fields), f"{asked.job_id}.{number}", {**given, **masks})
            results.append(await run(own, number, len(boxes)))
            drawn = await self.pixels.of(results[-1].artifacts[0])
            image = await self.pixels.pools.decoding.run(cut.put_back, drawn, image)
        artifact = Artifact(asked.job_id, image, seed)
        if not results:
            return untouched(self.step.model, asked.request, artifact, _NOTHING.format(self.detail.find))
        result = joined(results, artifact, tuple(notes))
        return replace(result, parameters={**result.parameters, "regions": _told(boxes, image)})

    def _boxes(self, image: Raster) -> list[Box]:
        if self.detail.regions or self.detail.find is None:
            return [box_of(region, image) for region in self.detail.regions]
        return Detector(self.detail.find).boxes(image, self.detail.at_most)


def _told(boxes: Sequence[Box], image: Raster) -> JsonValue:
    """Return the parts as the regions that a request may name."""
    return [[round(share, 6) for share in box.shares(image)] for box in boxes]
