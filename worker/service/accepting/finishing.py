"""The refiner and the upscaler of a request: resolved, and checked against its model, before anything is fetched."""

from collections.abc import Callable, Collection, Mapping, Sequence

from pydantic import JsonValue

from worker.catalog.call import Model, ModelCall
from worker.catalog.classes.signatures import regenerates_by_strength
from worker.catalog.interface.adapters import HANDED_OVER, adapter_fields
from worker.core.errors import IncompatibleAdapter, InvalidRequest, ParameterOutOfRange, UnknownParameter
from worker.core.finishing import OWN, Refiner, RefinerSpec, Upscaler, UpscaleSpec
from worker.core.job import Media
from worker.core.model import Kind, LoraSpec, ModelSpec, Task
from worker.core.request import GenerationRequest
from worker.service.accepting.adapters.compatibility import blamed_on, family_title

# Pixels of an upscaled image: 200 MB, and all that one answer can carry.
MAX_PIXELS = 2**26
# The scale of most upscalers; an upscaler's own shows only once it is loaded.
USUAL_SCALE = 4.0


def settle_refiner(request: GenerationRequest, spec: ModelSpec) -> tuple[GenerationRequest, tuple[str, ...]]:
    """Return the request with its model's own refiner by its name, and a note if it does without one.

    Raises InvalidRequest where it needs one and models.yaml names none.
    """
    wanted = request.refiner
    if wanted is None or wanted.model != OWN:
        return request, ()
    if spec.refiner is not None:
        return request.model_copy(update={"refiner": wanted.model_copy(update={"model": spec.refiner})}), ()
    text = f"{spec.id} has no refiner of its own in models.yaml"
    if not wanted.optional:
        raise InvalidRequest(f"refiner: {text}; name one as its model, or leave it out.", field="refiner")
    shown = f'"refiner": {{"model": "…", "start": {wanted.start:g}}}'
    note = f"refiner was left out: {text}; name one as {shown}, or let the operator name it there."
    return request.model_copy(update={"refiner": None}), (note,)


def refiner_named(request: GenerationRequest, spec: ModelSpec | None) -> str | None:
    """Return the name of the refiner that a request of this model takes, if it takes one."""
    wanted = request.refiner
    if wanted is None or wanted.model != OWN:
        return wanted.model if wanted else None
    return spec.refiner if spec else None


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
    _check_steps(request.refiner)
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


def _check_steps(refiner: RefinerSpec) -> None:
    """Raise ParameterOutOfRange if no step of the refiner's own schedule is left to it."""
    if refiner.steps is not None and refiner.steps * (1 - refiner.start) < 1 - 1e-6:
        raise ParameterOutOfRange(
            f"refiner.start {refiner.start:g} leaves none of refiner.steps {refiner.steps}; raise steps.",
            field="refiner",
        )


def scale_after(
    request: GenerationRequest, call: ModelCall, params: Mapping[str, JsonValue], sent: Collection[str]
) -> int | None:
    """Return how many times the model's own upscaler may enlarge what is drawn; None where it is not used.

    It is not where the request says so or names another, and where what was sent comes back: what a mask keeps, and
    all of it at strength 0.
    """
    own = call.spec.upscale
    keeps = call.task is Task.INPAINTING or "mask_image" in sent
    keeps |= params.get("strength") == 0 and regenerates_by_strength(call.pipeline)
    if own is None or request.upscale is not None or keeps or "upscale" not in adapter_fields(call):
        return None
    return own.scale


def find_upscaler(
    request: GenerationRequest,
    spec: ModelSpec,
    params: Mapping[str, JsonValue],
    known: Callable[[str], Model],
    *,
    uses_own: bool,
) -> Upscaler | None:
    """Return the upscaler that the request names, or the model's own if that is used; None without one.

    `known` returns a model by its name. Raises IncompatibleAdapter for another kind of model.
    """
    wanted, own = request.upscale, spec.upscale
    if uses_own and own is not None:
        wanted = UpscaleSpec(model=own.model, scale=own.scale)
    if wanted is None or not wanted.is_wanted:
        return None
    with blamed_on("upscale"):
        model = known(wanted.model)
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
        _check_size(width, height, wanted.scale, "upscale", "upscale.scale")
    return Upscaler(wanted, model)


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
