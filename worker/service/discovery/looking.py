"""One listed entry, looked at as a request for it would be: its header, what it is, and the plan. No weights are read.

The reference that is shown is the one that was looked at, by the very functions that a request goes through: nothing is
shown that then cannot be planned.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from worker.catalog import architectures
from worker.catalog.architectures import Architecture, fits, variant_defaults
from worker.catalog.call import Model
from worker.catalog.classes.refusals import refusal
from worker.catalog.detector import detect
from worker.catalog.interface.adapters import ADAPTERS, takes_loras
from worker.core.answer import Pace, PlanReport
from worker.core.discovery import Find, FindKind, Listed, Withheld
from worker.core.errors import IncompatibleAdapter, UnsafeFormat, UnsupportedModel, WorkerError
from worker.core.model import Detection, Kind, ModelSource, ModelSpec, Outline
from worker.service.accepting.adapters.compatibility import family_title
from worker.service.accepting.likeness import family_of
from worker.service.accepting.resolving import ModelResolver
from worker.service.discovery.aims import Aim
from worker.service.discovery.kinds import KINDS, kind_of
from worker.service.introspection.answers import DeviceAnswers
from worker.service.limits.pools import Pool
from worker.service.usage.privacy import unforeseen
from worker.store.hub_search import licence_in

Peek = Callable[[ModelSource, str | None], Outline]


@dataclass(frozen=True, slots=True)
class Looker:
    """Looks at entries. `peek` reads an outline and never fetches weights; `parse` reads a reference.

    `check_access` asks the Hub if a gated repository may be read.
    """

    resolver: ModelResolver
    peek: Peek
    check_access: Callable[[ModelSource], None]
    parse: Callable[[str], ModelSource]
    device: DeviceAnswers
    headers: Pool
    pace_of: Callable[[str], Pace | None]

    async def look(self, listed: Listed, aim: Aim) -> Find | Withheld:
        """Return what this worker can do with an entry, or why it can do nothing. Raises only CancelledError."""
        try:
            return await self._look(listed, aim)
        except WorkerError as error:
            failure = error
        except Exception as error:  # a stranger's file: whatever it does, the other entries are shown
            failure = unforeseen(error)
        reason = f"{failure.message}{f' {failure.hint}' if failure.hint else ''}"
        return Withheld(listed.reference, listed.name, failure.code, reason)

    async def _look(self, listed: Listed, aim: Aim) -> Find:
        source = self.parse(listed.reference)
        self.resolver.check_not_denied(source, "model")
        if listed.gated:
            await self.headers.run(self.check_access, source, place=source.host)
        outline = await self.headers.run(self.peek, source, None, place=source.host)
        if outline.header is None and not outline.configs:
            raise UnsafeFormat(
                f"{listed.reference} is a pickle, whose content shows only once it is fetched; use a version with a "
                "safetensors file."
            )
        detection, listed = detect(outline), _completed(listed, outline)
        kind = kind_of(detection)
        if kind is not None and aim.kinds and kind not in aim.kinds:
            raise UnsupportedModel(f"{listed.reference} is a {kind}, and not a {' or a '.join(aim.kinds)}.")
        if kind is None or KINDS[kind].field is None:
            return await self._model(listed, aim, source, kind)
        return await self.headers.run(self._adapter, listed, aim, kind, detection, outline)

    async def _model(self, listed: Listed, aim: Aim, source: ModelSource, kind: FindKind | None) -> Find:
        spec = ModelSpec(id=listed.reference, source=source)
        model = await self.headers.run(self.resolver.known, spec, place=source.host)
        refused = [refusal(call.pipeline) for call in model.calls]
        if all(refused):
            raise UnsupportedModel(_not_served(listed, model, refused))
        _check_family(listed, aim, model.detection.architecture)
        report = await self.device.plan_of(model)
        if report.fits is not True:
            raise UnsupportedModel(f"{listed.reference} does not run here: {report.reason}")
        pace, paced_by = self._pace(report, model)
        seconds, usd = _of_one_image(report, model, pace)
        return Find(
            listed=listed,
            kind=kind or "model",
            architecture=model.detection.architecture,
            family=report.family,
            variant=model.detection.variant,
            format=model.detection.format,
            quantization=model.detection.quantization,
            tasks=report.tasks,
            revision=report.revision,
            size_bytes=report.weight_bytes,
            device=report.device,
            offload=report.plan.offload if report.plan else None,
            estimated_bytes=report.plan.estimated_bytes if report.plan else None,
            notes=report.known,
            paced_by=paced_by,
            seconds=seconds,
            usd=usd,
        )

    def _adapter(self, listed: Listed, aim: Aim, kind: FindKind, detection: Detection, outline: Outline) -> Find:
        field = KINDS[kind].field or ""
        made_for = detection.architecture
        _check_family(listed, aim, made_for)
        takers = (aim.model,) if aim.model else tuple(self._at_hand())
        goes_with = [model.spec.id for model in takers if _takes(model, field, made_for)]
        if not goes_with:
            raise IncompatibleAdapter(_no_taker(listed, aim, kind, made_for))
        row = architectures.find(made_for)
        return Find(
            listed=listed,
            kind=kind,
            architecture=made_for,
            family=row.title if row else None,
            variant=detection.variant,
            format=detection.format,
            quantization=detection.quantization,
            tasks=(),
            revision=outline.revision,
            size_bytes=outline.weight_bytes or 0,
            goes_with=tuple(goes_with),
            notes=() if made_for else ("Its header does not tell which family it was made for.",),
        )

    def _at_hand(self) -> Iterator[Model]:
        """Yield the registered models that are known without a word from another server."""
        for spec in self.resolver.registry.models.values():
            if self.resolver.is_at_hand(spec.id):
                try:
                    yield self.resolver.known(spec)
                except WorkerError:  # one that cannot be used takes no adapter either
                    continue

    def _pace(self, report: PlanReport, model: Model) -> tuple[Pace | None, str | None]:
        """Return the pace of the model here, else that of a registered one of its architecture, and whose it is."""
        if report.pace:
            return report.pace, report.model
        for spec in self.resolver.registry.models.values():
            same = spec.architecture is not None and spec.architecture == model.detection.architecture
            if same and (pace := self.pace_of(spec.id)):
                return pace, spec.id
        return None, None


def _completed(listed: Listed, outline: Outline) -> Listed:
    """Return an entry with what its own page says, where the page of the search left it out."""
    declared = outline.declared
    if declared is None:
        return listed
    return replace(
        listed,
        base=listed.base or declared.base,
        licence=listed.licence or licence_in(declared.tags),
        trigger_words=listed.trigger_words or declared.trigger_words,
        tags=listed.tags or tuple(tag for tag in declared.tags if ":" not in tag),
    )


def _check_family(listed: Listed, aim: Aim, architecture: str | None) -> None:
    if aim.family is not None and architecture is not None and not fits(architecture, aim.architecture):
        wanted = family_title(aim.architecture)
        raise IncompatibleAdapter(f"{listed.reference} was made for {family_title(architecture)}, not for {wanted}.")


def _takes(model: Model, field: str, made_for: str | None) -> bool:
    if model.detection.kind is Kind.UPSCALER or not fits(made_for, model.detection.architecture):
        return False
    takes = ADAPTERS[field].takes or takes_loras
    return any(takes(call) for call in model.calls)


def _no_taker(listed: Listed, aim: Aim, kind: FindKind, made_for: str | None) -> str:
    if aim.model is not None:
        return f"{listed.reference} is a {kind} of a family that {aim.model.spec.id} does not take."
    family, base = family_title(made_for), family_of(made_for)
    return (
        f"{listed.reference} goes with {family}, and models.yaml has no model of that family at hand; add one first, "
        f"as `discover --kind model --base {base or 'FAMILY'}` finds it."
    )


def _not_served(listed: Listed, model: Model, refused: Sequence[str | None]) -> str:
    if not refused:
        return f"{listed.reference} serves no task that is known here."
    return f"{listed.reference} is a {model.calls[0].pipeline}, which {refused[0]}."


def _of_one_image(report: PlanReport, model: Model, pace: Pace | None) -> tuple[float | None, float | None]:
    """Return the seconds and dollars of one image at the model's own size and steps; None where they are not known.

    A gateway says what the tier that it would choose now takes.
    """
    for tier in report.tiers:
        if tier.chosen:
            return tier.seconds, tier.usd
    steps = _steps(model.architecture, model.detection.variant)
    if pace is None or steps is None:
        return None, None
    work = report.native_size**2 / 1e6 * steps
    return pace.seconds * work, None if pace.usd is None else pace.usd * work


def _steps(row: Architecture | None, variant: str | None) -> int | None:
    if row is None:
        return None
    steps = {**row.defaults, **variant_defaults(row.id, variant)}.get("num_inference_steps")
    return steps if isinstance(steps, int) else None
