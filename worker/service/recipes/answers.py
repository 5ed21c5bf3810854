"""What recipes are asked: for images, for the schema of a request, and for a plan, which is the sum of the steps'."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pydantic import JsonValue

from worker.catalog.recipes.recipe import MEDIA, Recipe
from worker.catalog.recipes.schema import recipe_schema, sample
from worker.core.answer import ModelSchema, Pace, PlanReport, StepPlan
from worker.core.errors import WorkerError
from worker.core.image import Raster
from worker.core.request import GenerationRequest
from worker.core.result import Emit, JobResult
from worker.media.images import encode, to_base64
from worker.service.introspection.answers import DeviceAnswers
from worker.service.limits.admission import pixel_steps
from worker.service.recipes.foreseeing import Foreseen
from worker.service.recipes.making import Making
from worker.wire.request import decode_generation

_SIDE = 512  # pixels of the square that a plan is made for, where a recipe begins from an image


@dataclass(frozen=True, slots=True)
class Recipes:
    """The recipes that are served beside models. `find` knows them by name."""

    find: Callable[[str | None], Recipe | None]
    making: Making
    device: DeviceAnswers
    pace_of: Callable[[str], Pace | None] = lambda model: None

    async def generate(
        self, recipe: Recipe, request: GenerationRequest, job_id: str, emit: Emit, caller: str | None = None
    ) -> JobResult:
        """Run all steps of `recipe` as one job. Raises WorkerError."""
        return await self.making.generate(recipe, request, job_id, emit, caller)

    def schema(self, recipe: Recipe) -> ModelSchema:
        """Describe a request for `recipe`."""
        return ModelSchema(recipe_schema(recipe))

    async def plan(self, recipe: Recipe) -> PlanReport:
        """Plan a run of `recipe` here with the usual values of its inputs: every step, and all of them together."""
        try:
            order = await self.making.accept(recipe, _usual(recipe), "plan")
        except WorkerError as error:
            return replace(_empty(recipe), fits=False, reason=error.message)
        reports = {name: await self.device.plan(name) for name in recipe.models}
        steps = tuple(
            _step_plan(step.name, reports[step.model], each)
            for step, each in zip(recipe.steps, order.foreseen, strict=True)
        )
        return self._summed(recipe, [*reports.values()], steps)

    def _summed(self, recipe: Recipe, reports: Sequence[PlanReport], steps: Sequence[StepPlan]) -> PlanReport:
        fits = [report.fits for report in reports]
        work = sum(step.pixel_steps for step in steps)
        own = self.pace_of(recipe.id)
        seconds = [own.seconds * work / 1e6] if own else [step.expected_s for step in steps]
        prices = [own.usd * work / 1e6 if own.usd is not None else None] if own else [step.usd for step in steps]
        return replace(
            _empty(recipe),
            weight_bytes=sum(report.weight_bytes for report in reports),
            native_size=reports[-1].native_size,
            device=reports[0].device,
            free_bytes=reports[0].free_bytes,
            fits=False if False in fits else None if None in fits else True,
            reason=" ".join(f"{report.model}: {report.reason}" for report in reports if report.reason) or None,
            pace=own,
            steps=tuple(steps),
            pixel_steps=work,
            expected_s=_sum(seconds),
            expected_usd=_sum(prices),
        )


def _step_plan(name: str, report: PlanReport, foreseen: Foreseen) -> StepPlan:
    work = pixel_steps(foreseen.job) * foreseen.times
    pace = report.pace
    seconds = pace.seconds * work / 1e6 if pace else None
    return StepPlan(name, report, work, seconds, pace.usd * work / 1e6 if pace and pace.usd is not None else None)


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _empty(recipe: Recipe) -> PlanReport:
    return PlanReport(
        model=recipe.id,
        architecture=None,
        pipeline=None,
        tasks=(recipe.task,),
        revision=None,
        weight_bytes=0,
        native_size=0,
        device="none",
        free_bytes=0,
    )


def _usual(recipe: Recipe) -> GenerationRequest:
    """Return a request with a value for each input that has to be sent; images are blank."""
    blank = to_base64(encode(Raster("RGB", _SIDE, _SIDE, b"\xff" * (_SIDE * _SIDE * 3)), "png", 1))
    values: dict[str, JsonValue] = {
        name: blank if each.type in MEDIA else sample(each) for name, each in recipe.inputs.items() if each.is_required
    }
    return decode_generation({"model": recipe.id, "seed": 0, **values})
