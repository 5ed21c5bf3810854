"""The refiner and the upscaler of a request: resolved, and checked against its model, before anything is fetched."""

from collections.abc import Callable, Mapping, Sequence

from pydantic import JsonValue

from worker.catalog.call import Model, ModelCall
from worker.catalog.interface.adapters import HANDED_OVER
from worker.core.errors import IncompatibleAdapter, InvalidRequest, ParameterOutOfRange, UnknownParameter
from worker.core.finishing import Refiner, Upscaler
from worker.core.job import Media
from worker.core.model import Kind, LoraSpec, Task
from worker.core.request import GenerationRequest
from worker.service.accepting.adapters.compatibility import blamed_on, family_title

# Pixels of an upscaled image: 200 MB, and all that one answer can carry.
MAX_PIXELS = 2**26
# The scale of most upscalers; an upscaler's own shows only once it is loaded.
USUAL_SCALE = 4.0


def find_refiner(
    request: GenerationRequest, call: ModelCall, params: Mapping[str, JsonValue], known: Callable[[str], Model]
) -> Refiner | None:
    """Return the request's refiner, if it names one; `call` hands over to it. `known` returns a model by its name.

    Raises IncompatibleAdapter for one of another family, UnknownParameter and InvalidRequest.
    """
    if request.refiner is None:
        return None
    if not call.takes("denoising_end"):  # some take it all the same, and generate to the end
        raise UnknownParameter(
            f"refiner is not taken here with controlnets: {call.pipeline} cannot stop before its last step; "
            "leave one of the two out.",
            field="refiner",
        )
    for name in HANDED_OVER:
        if params.get(name) is not None:
            raise InvalidRequest(f"{name} is set by refiner.start; send one of the two.", field=name)
    _check_start(request.refiner.start, call, params)
    with blamed_on("refiner"):
        second = known(request.refiner.model).call(Task.IMAGE_TO_IMAGE)
    latents, wanted = _latents_of(second.model), _latents_of(call.model)
    if latents is None or latents != wanted or not second.takes("denoising_start"):
        row = second.architecture
        raise IncompatibleAdapter(
            f"refiner: {second.spec.id} is {family_title(row.id if row else None)} and cannot go on where "
            f"{call.spec.id} ({family_title(wanted)}) stops; use a refiner or a checkpoint of that family.",
            field="refiner",
            details={"evidence": list(second.detection.evidence)},
        )
    return Refiner(request.refiner, second)


def _check_start(start: float, call: ModelCall, params: Mapping[str, JsonValue]) -> None:
    """Raise ParameterOutOfRange if one of the two models has no step left."""
    steps, signature = params.get("num_inference_steps"), call.signature or {}
    strength = params.get("strength", signature["strength"].default if "strength" in signature else 1.0)
    share = float(strength) if isinstance(strength, int | float) else 1.0
    # At strength 0 nothing is generated, and nothing is handed over.
    if isinstance(steps, int) and share and not steps - int(steps * share) < int(steps * start) < steps:
        schedule = f"{steps} steps at strength {share:g}" if "strength" in signature else f"{steps} steps"
        raise ParameterOutOfRange(
            f"refiner.start {start:g} of {schedule} leaves one of the two models none; raise num_inference_steps"
            f"{' or strength' if 'strength' in signature else ''}, or move start towards the middle.",
            field="refiner",
        )


def find_upscaler(
    request: GenerationRequest, params: Mapping[str, JsonValue], known: Callable[[str], Model]
) -> Upscaler | None:
    """Return the request's upscaler, if it names one. `known` returns a model by its name.

    Raises IncompatibleAdapter for another kind of model.
    """
    if request.upscale is None:
        return None
    with blamed_on("upscale"):
        model = known(request.upscale.model)
    detection = model.detection
    if detection.kind is not Kind.UPSCALER:
        raise IncompatibleAdapter(
            f"upscale: {model.spec.id} is a {detection.kind}, not an upscaler; "
            "name an ESRGAN, SwinIR, HAT, DAT or SPAN file.",
            field="upscale",
            details={"evidence": list(detection.evidence)},
        )
    width, height = params.get("width"), params.get("height")
    if isinstance(width, int) and isinstance(height, int):
        _check_size(width, height, request.upscale.scale, "upscale", "upscale.scale")
    return Upscaler(request.upscale, model)


def check_upscaling(
    request: GenerationRequest,
    model: Model,
    params: Mapping[str, JsonValue],
    media: Sequence[Media],
) -> None:
    """Refuse, for a model that is itself an upscaler, fields that it does not take and images that grow too large."""
    if model.detection.kind is not Kind.UPSCALER:
        return
    for name, sent in (("loras", request.adapters_of(LoraSpec)), ("scheduler", request.params.get("scheduler"))):
        if sent:
            raise UnknownParameter(f"{name} is not taken by {model.spec.id}, an upscaler; leave it out.", field=name)
    scale = params.get("scale")
    for item in media:
        image = item.images[0]
        _check_size(
            image.width, image.height, float(scale) if isinstance(scale, int | float) else None, item.field, "scale"
        )


def _check_size(width: int, height: int, scale: float | None, field: str, name: str) -> None:
    times = scale or USUAL_SCALE
    if width * height * times**2 > MAX_PIXELS:
        factor = f"{name} {times:g}" if scale else f"{name} (taken as {times:g} when left out)"
        raise ParameterOutOfRange(
            f"{width}x{height} pixels with {factor} become more than {MAX_PIXELS:,}; lower {name} or the size.",
            field=field,
            details={"max_pixels": MAX_PIXELS},
        )


def _latents_of(model: Model) -> str | None:
    """Return the family whose latents a model reads and writes: siblings share them."""
    row = model.architecture
    return (row.sibling or row.id) if row else None
