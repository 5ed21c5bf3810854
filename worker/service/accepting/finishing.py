"""The refiner and the upscaler of a request: found, and checked against its model, before anything is fetched."""

from collections.abc import Mapping, Sequence

from pydantic import JsonValue

from worker.catalog.classes.signatures import call_parameters
from worker.catalog.interface.adapters import HANDED_OVER
from worker.catalog.interface.tasks import architecture_of, pipeline_for
from worker.catalog.pipelines.table import pipeline_row
from worker.core.errors import IncompatibleAdapter, InvalidRequest, ParameterOutOfRange, UnknownParameter
from worker.core.finishing import Refiner, Upscaler
from worker.core.job import Media
from worker.core.model import Detection, Kind, ModelSpec, Task
from worker.core.request import GenerationRequest
from worker.service.accepting.adapters.compatibility import blamed_on, family_title
from worker.service.accepting.resolving import ModelResolver

# Of what an upscaler makes: 200 MB of pixels, and all that one answer can carry.
MAX_PIXELS = 2**26
# What most upscalers are made for; which one it is shows only once it is loaded.
USUAL_SCALE = 4.0


def find_refiner(
    request: GenerationRequest,
    spec: ModelSpec,
    detection: Detection,
    pipeline: str,
    params: Mapping[str, JsonValue],
    resolver: ModelResolver,
) -> Refiner | None:
    """The request's refiner, if it names one; `pipeline` is the class that hands over to it.

    Raises IncompatibleAdapter for one of another family.
    """
    if request.refiner is None:
        return None
    signature = call_parameters(pipeline) or {}
    if "denoising_end" not in signature:  # some take it all the same, and draw to the end
        raise UnknownParameter(
            f"refiner is not taken here with controlnets: {pipeline} cannot stop before its last step; "
            "leave one of the two out.",
            field="refiner",
        )
    for name in HANDED_OVER:
        if params.get(name) is not None:
            raise InvalidRequest(f"{name} is set by refiner.start; send one of the two.", field=name)
    steps, start = params.get("num_inference_steps"), request.refiner.start
    strength = params.get("strength", signature["strength"].default if "strength" in signature else 1.0)
    redrawn = float(strength) if isinstance(strength, int | float) else 1.0
    # At strength 0 nothing is drawn, and nothing is handed over.
    if isinstance(steps, int) and redrawn and not steps - int(steps * redrawn) < int(steps * start) < steps:
        of = f"{steps} steps at strength {redrawn:g}" if "strength" in signature else f"{steps} steps"
        raise ParameterOutOfRange(
            f"refiner.start {start:g} of {of} leaves one of the two models none; raise num_inference_steps"
            f"{' or strength' if 'strength' in signature else ''}, or move start towards the middle.",
            field="refiner",
        )
    with blamed_on("refiner"):
        model = resolver.resolve(request.refiner.model)
        found = resolver.detect(model)
    second = pipeline_for(model, found, Task.IMAGE_TO_IMAGE) or ""
    latents, wanted = _latents_of(model, found), _latents_of(spec, detection)
    if latents is None or latents != wanted or "denoising_start" not in (call_parameters(second) or {}):
        row = architecture_of(model, found)
        raise IncompatibleAdapter(
            f"refiner: {model.id} is {family_title(row.id if row else None)} and cannot go on where {spec.id} "
            f"({family_title(wanted)}) stops; use a refiner or a checkpoint of that family.",
            field="refiner",
            details={"evidence": list(found.evidence)},
        )
    return Refiner(request.refiner, model, found, pipeline_row(second))


def find_upscaler(
    request: GenerationRequest, params: Mapping[str, JsonValue], resolver: ModelResolver
) -> Upscaler | None:
    """The request's upscaler, if it names one. Raises IncompatibleAdapter for what is none."""
    if request.upscale is None:
        return None
    with blamed_on("upscale"):
        model = resolver.resolve(request.upscale.model)
        found = resolver.detect(model)
    if found.kind is not Kind.UPSCALER:
        raise IncompatibleAdapter(
            f"upscale: {model.id} is a {found.kind}, not an upscaler; name an ESRGAN, SwinIR, HAT, DAT or SPAN file.",
            field="upscale",
            details={"evidence": list(found.evidence)},
        )
    width, height = params.get("width"), params.get("height")
    if isinstance(width, int) and isinstance(height, int):
        _check_size(width, height, request.upscale.scale, "upscale", "upscale.scale")
    return Upscaler(request.upscale, model, found)


def check_upscaling(
    request: GenerationRequest,
    spec: ModelSpec,
    detection: Detection,
    params: Mapping[str, JsonValue],
    media: Sequence[Media],
) -> None:
    """Refuse what a model that is itself an upscaler file does not take, and a picture that would become too large."""
    if detection.kind is not Kind.UPSCALER:
        return
    for name, sent in (("loras", request.loras), ("scheduler", request.params.get("scheduler"))):
        if sent:
            raise UnknownParameter(f"{name} is not taken by {spec.id}, an upscaler; leave it out.", field=name)
    scale = params.get("scale")
    for item in media:
        picture = item.pictures[0]
        _check_size(
            picture.width, picture.height, float(scale) if isinstance(scale, int | float) else None, item.field, "scale"
        )


def _check_size(width: int, height: int, scale: float | None, field: str, name: str) -> None:
    times = scale or USUAL_SCALE
    if width * height * times**2 > MAX_PIXELS:
        taken = f"{name} {times:g}" if scale else f"{name} (taken as {times:g} when left out)"
        raise ParameterOutOfRange(
            f"{width}x{height} pixels with {taken} become more than {MAX_PIXELS:,}; lower {name} or the size.",
            field=field,
            details={"max_pixels": MAX_PIXELS},
        )


def _latents_of(spec: ModelSpec, detection: Detection) -> str | None:
    """The family whose latents a model reads and writes: siblings share them."""
    row = architecture_of(spec, detection)
    return (row.sibling or row.id) if row else None
