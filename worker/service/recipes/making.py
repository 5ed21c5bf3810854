"""The making of a recipe's images: its steps one after the other, as one job with one result.

Every step is a job like any other, so it may share a call with jobs of other callers, and waits for its turn like them.
What comes before is done once for all steps: the caller is admitted, and what all steps cost is reserved.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain

from pydantic import JsonValue

from worker.catalog.recipes.recipe import Recipe, RecipeStep
from worker.catalog.recipes.references import Missing
from worker.core.errors import WorkerError
from worker.core.request import GenerationRequest, OutputOptions
from worker.core.result import Artifact, Emit, EncodedArtifact, JobResult
from worker.core.turn import current
from worker.media.decoding import MAX_BYTES
from worker.media.images import to_base64
from worker.media.video import MAX_BYTES as MAX_VIDEO_BYTES
from worker.media.video import Given, Video
from worker.service.accepting.rules import choose_seeds
from worker.service.generation import Asked, GenerationService
from worker.service.limits.pools import Pools
from worker.service.limits.quotas import Reservation
from worker.service.recipes.detailing import Redrawing
from worker.service.recipes.filling import Made, Values, detail_of, given_to, sent_inputs, step_request
from worker.service.recipes.foreseeing import Expected, Foreseen, foresee, image_name, located, step_id, video_name
from worker.service.recipes.framing import Each, Framing
from worker.service.recipes.pixels import Pixels, video_of
from worker.service.recipes.results import Finished, result_of
from worker.service.recipes.running import Run, StepRun
from worker.service.usage.privacy import kept_in_turns
from worker.service.usage.telemetry import stepped

# The form in which another worker sends an image that a further step begins from: nothing of it is lost.
_EXACT = OutputOptions(format="png")


@dataclass(frozen=True, slots=True)
class Order:
    """A request for a recipe, with its seed, and the jobs that its steps are expected to be.

    `sent` are its inputs as they came, and `values` the same with the files behind links.
    """

    recipe: Recipe
    request: GenerationRequest
    job_id: str
    seed: int
    sent: Values
    values: Values
    foreseen: tuple[Foreseen, ...] = ()

    @property
    def steps(self) -> tuple[RecipeStep, ...]:
        """The steps, in order."""
        return self.recipe.steps


class Making:
    """Makes the images of recipes, by the same road as those of models."""

    def __init__(self, generation: GenerationService, pools: Pools) -> None:
        self._generation = generation
        self._pools = pools

    async def generate(
        self, recipe: Recipe, request: GenerationRequest, job_id: str, emit: Emit, caller: str | None = None
    ) -> JobResult:
        """Run all steps of `recipe`. Raises WorkerError; whatever can be refused is, before the first step is run."""
        with self._generation.entered(caller) as reservation:
            order = await self.accept(recipe, request, job_id)
            jobs = chain.from_iterable([each.job] * each.times for each in order.foreseen)
            self._generation.reserve(reservation, *jobs)
            expected = tuple(map(Expected.of, order.foreseen))
            order = replace(order, foreseen=())  # their images need not wait until the last step
            return await self._run(order, expected, emit, reservation)

    async def accept(self, recipe: Recipe, request: GenerationRequest, job_id: str) -> Order:
        """Check the inputs and every step. Raises InvalidRequest and its subclasses, naming the field."""
        request = request.model_copy(update={"seed": choose_seeds(request)[0]})
        sent = sent_inputs(recipe, request)
        values = await self._with_images(recipe, sent)
        order = Order(recipe, request, job_id, request.seed or 0, sent, values)
        foreseen = await foresee(recipe, request, values, self._generation, job_id, order.seed)
        return replace(order, foreseen=foreseen)

    async def _with_images(self, recipe: Recipe, values: Values) -> Values:
        """Return the values with the files behind links in their places."""
        fetched = dict(values)
        for kind, limit in (("image", MAX_BYTES), ("video", MAX_VIDEO_BYTES)):
            sent = {
                name: value
                for name, value in values.items()
                if recipe.inputs[name].type == kind and isinstance(value, str)
            }
            fetched |= await self._generation.acceptor.fetch(sent, limit)
        return fetched

    async def _run(self, order: Order, expected: Sequence[Expected], emit: Emit, reservation: Reservation) -> JobResult:
        made: dict[str, Made] = {}
        finished: list[Finished] = []
        for step in order.steps:
            current().stop.check()
            began = time.monotonic()
            request = self._request(step, order, made)
            asked = Asked(request, step_id(order.job_id, step), given_to(step, made))
            run = StepRun(self._generation, reservation, emit, step, expected)
            try:
                async with kept_in_turns(request):
                    result = await self._result(step, asked, order, made, run)
            except WorkerError as error:
                raise located(error, order.recipe, step) from None
            made[step.name] = _made(step, result)
            finished.append(Finished(step, result, time.monotonic() - began))
            self._generation.spare(reservation, run.spared)
            result = result_of(order.recipe, order.request, _plain(order.sent), finished)
            stepped(order.recipe.id, result)
        return result

    async def _result(
        self, step: RecipeStep, asked: Asked, order: Order, made: Mapping[str, Made], run: StepRun
    ) -> JobResult:
        """Return the result of a step, which is one job, or one for each part that it draws again and each frame."""
        pixels = Pixels(self._generation.acceptor, self._pools)
        each: Each = _alone
        if step.is_detail:
            each = Redrawing(step, detail_of(step, order.values, made), pixels).run
        if step.frames_of is None:
            return await each(asked, run)
        video = await video_of(step, order.values, made, self._generation.acceptor)
        return await Framing(step, video, pixels).run(asked, each, run)

    def _request(self, step: RecipeStep, order: Order, made: dict[str, Made]) -> GenerationRequest:
        """Return a step's request; the last ones leave as their caller wants them, where nothing begins from them."""
        request = step_request(step, order.request, order.seed, order.values, made)
        is_last = order.recipe.used.isdisjoint(order.recipe.outputs) and step.name in order.recipe.outputs
        if is_last and not step.is_detail and step.frames_of is None:
            return request.model_copy(update={"output": order.request.output, "s3Config": order.request.s3Config})
        return request.model_copy(update={"output": _EXACT})


def _plain(values: Values) -> dict[str, JsonValue]:
    return {name: value for name, value in values.items() if not isinstance(value, Missing)}


def _made(step: RecipeStep, result: JobResult) -> Made:
    """Return what later steps may begin from: pixels as they are, files of another worker as their base64."""
    first = result.artifacts[0]
    seed = first.seed
    if isinstance(first, Artifact) and first.is_video:
        name = video_name(step)
        return Made((name,), seed, {name: Video(first.frames, first.fps)}, first.fps)
    texts, given = list[str](), dict[str, Given]()
    for number, item in enumerate(result.artifacts):
        match item:
            case Artifact():
                texts.append(image_name(step, number))
                given[texts[-1]] = item.raster
            case EncodedArtifact():
                texts += [file.url or to_base64(file.data) for file in item.files]
    return Made(tuple(texts), seed, given, first.fps if first.is_video else 0.0)


async def _alone(asked: Asked, run: Run) -> JobResult:
    return await run(asked, 0, 1)
