"""A step that makes a video frame by frame: each frame of another video is a job of its own, all of the same noise."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace

from worker.catalog.recipes.recipe import RecipeStep
from worker.core.image import Raster
from worker.core.result import Artifact, JobResult
from worker.core.turn import current
from worker.media.video import Video
from worker.service.generation import Asked
from worker.service.recipes.foreseeing import image_name
from worker.service.recipes.pixels import Pixels
from worker.service.recipes.results import joined
from worker.service.recipes.running import Run

FPS = 8.0  # of a video that says nothing of it
# Makes one image with the jobs that `Run` runs.
Each = Callable[[Asked, Run], Awaitable[JobResult]]


@dataclass(frozen=True, slots=True)
class Framing:
    """One step of a recipe that makes a video of a video's frames."""

    step: RecipeStep
    video: Video
    pixels: Pixels

    async def run(self, asked: Asked, each: Each, run: Run) -> JobResult:
        """Return the video of what `each` makes of every frame. Raises WorkerError."""
        frames, results, total = list[Raster](), list[JobResult](), len(self.video.frames)
        for number, frame in enumerate(self.video.frames):
            current().stop.check()
            text, given = await self.pixels.offered(image_name(self.step, number), frame)
            own = asked.request.model_copy(update={"image": text})

            async def numbered(job: Asked, part: int, parts: int, frame: int = number) -> JobResult:
                return await run(job, frame * parts + part, total * parts)

            results.append(await each(Asked(own, f"{asked.job_id}.{number}", {**asked.given, **given}), numbered))
            frames.append(await self.pixels.of(results[-1].artifacts[0]))
        artifact = Artifact(asked.job_id, frames[0], asked.request.seed or 0, tuple(frames), self.video.fps or FPS)
        result = joined(results, artifact, self.video.notes)
        # Where parts were drawn again, each frame has other ones.
        return replace(result, parameters={name: it for name, it in result.parameters.items() if name != "regions"})
