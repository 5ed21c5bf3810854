"""All steps of a request as jobs, before the first is run: what can be refused is, and what all of it costs is known.

A step that begins from an earlier step's image is accepted with a blank image of the size that that one will have.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from worker.catalog.interface.sizes import FRAME_COUNTS
from worker.catalog.recipes.recipe import Recipe, RecipeStep
from worker.catalog.recipes.references import InputReference, mentions
from worker.core.errors import ParameterOutOfRange, UnsupportedModel, WorkerError
from worker.core.image import Raster
from worker.core.job import Job
from worker.core.model import Task
from worker.core.request import IMAGE_FORMATS, VIDEO_FORMATS, GenerationRequest
from worker.media.decoding import MAX_PIXELS, MAX_SIDE
from worker.media.video import MAX_PIXELS as MOST_PIXELS
from worker.media.video import Video
from worker.service.accepting.finishing import USUAL_SCALE
from worker.service.generation import Asked, GenerationService
from worker.service.limits.admission import pixel_steps
from worker.service.recipes.filling import Made, Values, detail_of, given_to, line_of, mask_name, step_request
from worker.service.recipes.kinds import fault_of_kinds
from worker.service.recipes.pixels import video_of

_SIDE = 64  # pixels of a part whose size is refused anyway


@dataclass(frozen=True, slots=True)
class Foreseen:
    """A step's job as it will be, and how often it is run at most: for each part of an image that is drawn again."""

    job: Job
    times: int = 1


@dataclass(frozen=True, slots=True)
class Expected:
    """What is left to know of a step that was foreseen: its share of the progress, and the work of one of its jobs."""

    weight: int
    pixel_steps: int
    times: int

    @classmethod
    def of(cls, foreseen: Foreseen) -> "Expected":
        """Return what is expected of a step."""
        return cls(weight(foreseen.job) * foreseen.times, pixel_steps(foreseen.job), foreseen.times)


async def foresee(
    recipe: Recipe, request: GenerationRequest, values: Values, generation: GenerationService, job_id: str, seed: int
) -> tuple[Foreseen, ...]:
    """Return the jobs of all steps. Raises what accepting one of them does, and says at which line of the recipe."""
    steps: list[Foreseen] = []
    made: dict[str, Made] = {}
    of_videos: dict[str, bool] = {}
    for step in recipe.steps:
        try:
            asked = Asked(step_request(step, request, seed, values, made), step_id(job_id, step), given_to(step, made))
            if step.frames_of is None:
                foreseen, size = await _foreseen(step, asked, values, made, generation)
                made[step.name] = _blank(step, foreseen.job, size)
            else:
                video = await video_of(step, values, made, generation.acceptor)
                first, given = image_name(step, 0), {**asked.given, image_name(step, 0): video.frames[0]}
                of_frame = Asked(asked.request.model_copy(update={"image": first}), asked.job_id, given)
                foreseen, size = await _foreseen(step, of_frame, values, made, generation)
                foreseen = replace(foreseen, times=foreseen.times * len(video.frames))
                made[step.name] = _blank_video(step, asked.request.seed or 0, size, len(video.frames))
        except WorkerError as error:
            raise located(error, recipe, step) from None
        steps.append(foreseen)
        of_videos[step.name] = foreseen.job.video is not None
        if (fault := fault_of_kinds(recipe, of_videos)) is not None:
            raise UnsupportedModel(str(recipe.fail(*fault)), field="model")
    _check_format(request, is_video=made[recipe.outputs[0]].fps > 0)
    return tuple(steps)


async def _foreseen(
    step: RecipeStep, asked: Asked, values: Values, made: Mapping[str, Made], generation: GenerationService
) -> tuple[Foreseen, tuple[int, int]]:
    """Return the jobs that make one image of a step, or its video, and the size of it."""
    if not step.is_detail:
        job = await generation.foresee(asked)
        return Foreseen(job), _size(job)
    image = await generation.acceptor.read_image(asked.request, asked.given)
    job = await generation.foresee(_blank_part(step, asked))
    return Foreseen(job, detail_of(step, values, made).most), (image.width, image.height)


def _check_format(request: GenerationRequest, *, is_video: bool) -> None:
    """Raise ParameterOutOfRange for a format that is not for what the recipe makes."""
    formats = VIDEO_FORMATS if is_video else IMAGE_FORMATS
    if request.output.format not in (None, *formats):
        noun = "videos" if is_video else "images"
        raise ParameterOutOfRange(
            f"output.format must be one of {', '.join(formats)} here; {request.output.format} is not for {noun}.",
            field="output",
        )


def step_id(job_id: str, step: RecipeStep) -> str:
    """Return the id of a step's job."""
    return f"{job_id}.{step.name}"


def located(error: WorkerError, recipe: Recipe, step: RecipeStep) -> WorkerError:
    """Return `error` with the step that it is of, and the recipe's input in place of the step's field that has it."""
    keys = line_of(recipe, step, error.field)
    place = recipe.fail(keys, "")
    error.message = f"{place.file}:{place.line}: steps.{step.name}: {error.message}"
    error.args = (error.message,)
    below = keys[2:]
    referred = [each.reference for each in mentions(dict(step.fields)) if below and each.path[: len(below)] == below]
    inputs = [reference.name for reference in referred if isinstance(reference, InputReference)]
    error.field = inputs[0] if inputs else "model"
    return error


def weight(job: Job) -> int:
    """Return a job's share of the progress: its denoising steps, at least one."""
    steps = job.params.get("num_inference_steps")
    return steps if isinstance(steps, int) and steps > 0 and job.generates else 1


def _blank(step: RecipeStep, job: Job, size: tuple[int, int]) -> Made:
    """Return what stands for the images or the video of a step: white, which as a mask means all of the image."""
    if job.video is not None:
        return _blank_video(step, job.seeds[0], size, _frames(job), job.video.fps)
    texts = tuple(image_name(step, number) for number in range(1 if step.is_detail else len(job.seeds)))
    return Made(texts, job.seeds[0], dict.fromkeys(texts, _white(*size)))


def _blank_video(step: RecipeStep, seed: int, size: tuple[int, int], frames: int, fps: float = 1.0) -> Made:
    """Return what stands for a video. Raises ParameterOutOfRange for one that no step could take, or send."""
    pixels = size[0] * size[1] * frames
    if pixels > MOST_PIXELS:
        raise ParameterOutOfRange(
            f"{frames} frames of {size[0]} x {size[1]} are {pixels:,} pixels, and a video may have {MOST_PIXELS:,}; "
            "ask for fewer frames or a smaller size.",
            field="image",
        )
    name = video_name(step)
    return Made((name,), seed, {name: Video((_white(*size),) * frames, fps)}, fps)


def _frames(job: Job) -> int:
    """Return how many frames a job's video will have; one where only its model knows."""
    wanted = job.video.frames if job.video else None
    counts = [wanted, *(job.params.get(name) for name in FRAME_COUNTS)]
    counts += [len(media.images) for media in job.media if media.field == "video"]
    return next((count for count in counts if isinstance(count, int) and count > 0), 1)


def _blank_part(step: RecipeStep, asked: Asked) -> Asked:
    """Return what is asked of a part, with a blank one: all parts are of one size."""
    part = image_name(step, 0)
    width, height = part_size(asked.request)
    given = dict.fromkeys((part, mask_name(step)), _white(width, height))
    return Asked(asked.request.model_copy(update={"image": part}), asked.job_id, given)


def part_size(request: GenerationRequest) -> tuple[int, int]:
    """Return width and height at which the parts of an image are drawn again, in pixels."""
    sides = [request.params.get(name) for name in ("width", "height")]
    width, height = (side if isinstance(side, int) and 0 < side <= MAX_SIDE else _SIDE for side in sides)
    return width, height


def _white(width: int, height: int) -> Raster:
    return Raster("RGB", width, height, b"\xff" * (width * height * 3))


def video_name(step: RecipeStep) -> str:
    """Return the text that stands for the video of a step in the requests of later ones."""
    return f"steps.{step.name}.video"


def image_name(step: RecipeStep, number: int) -> str:
    """Return the text that stands for an image of a step in the requests of later ones."""
    return f"steps.{step.name}.images[{number}]"


def _size(job: Job) -> tuple[int, int]:
    """Return the size that a job's images will have, in pixels; an estimate where only its models' weights tell it."""
    image, native = job.image, job.call.detection.native_size or 1024
    scale = 1.0
    if job.call.task is Task.UPSCALING and image is not None:
        width, height = image.width, image.height
        wanted = job.params.get("scale")
        scale = float(wanted) if isinstance(wanted, int | float) and wanted else USUAL_SCALE
    else:
        width = _side(job, "width", image.width if image else native)
        height = _side(job, "height", image.height if image else native)
    if (upscaler := job.finishing.upscaler) is not None:
        scale *= upscaler.spec.scale or USUAL_SCALE
    # No larger than an image that any step could begin from.
    scale = min(scale, MAX_SIDE / max(width, height), (MAX_PIXELS / (width * height)) ** 0.5)
    return max(1, int(width * scale)), max(1, int(height * scale))


def _side(job: Job, name: str, default: int) -> int:
    side = job.params.get(name)
    return side if isinstance(side, int) else default
