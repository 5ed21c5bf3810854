"""The plan by which a model fits a device: a pure function of numbers, without torch."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from worker.core.call import KnownModel
from worker.core.device import Card, DeviceInfo, DeviceMap, LoadFormat, LoadPlan, MemoryWays
from worker.core.errors import OutOfMemory, UnsupportedModel
from worker.core.job import Batch
from worker.core.model import Detection, Kind, ModelFiles, ModelSpec
from worker.core.precision import DTYPES, NEAREST, DType, Offload, Precision, Way, form_name, is_encoder, ways
from worker.engine.cards import GIB, MOVABLE, Beside, Layout, check_cards, count_of, lay_out
from worker.engine.file_schedulers import schedule_of

_BYTES: dict[DType, int] = {"float32": 4, "float16": 2, "bfloat16": 2}
# CUDA context, allocator fragmentation and library workspaces.
_OVERHEAD_BYTES = 768 * 2**20
# The table's hungriest family, AnimateDiff, takes three to four times the memory of its weights for a megapixel.
_WEIGHTS_PER_MEGAPIXEL = 6.0
# A text encoder's layers that are on the device at once, as a part of it: its table of words is the largest one.
_LAYERS = 8
_LEAST_LAYER_BYTES = 512 * 2**20
# The share of weights that a precision makes smaller, where their names are not known yet.
_USUALLY_REDUCED = 0.75
_PRECISIONS: Mapping[DType, Precision] = {dtype: precision for precision, dtype in DTYPES.items()}


def target_dtype(spec: ModelSpec, device: DeviceInfo) -> DType:
    """Return the dtype to load with: the precision that is asked for, else the model's own where the device can.

    A CPU computes in float32: bfloat16 is slower there, and float16 far slower.
    """
    if spec.precision is not None and spec.precision in DTYPES:
        return DTYPES[spec.precision]
    if device.type == "cpu":
        return "float32"
    dtype = spec.dtype or "bfloat16"
    return "float16" if device.type == "mps" and dtype == "bfloat16" else dtype


def make_plan(
    model: KnownModel,
    files: ModelFiles,
    device: DeviceInfo,
    *,
    megapixels: float,
    beside_bytes: int = 0,
    held_bytes: int = 0,
) -> LoadPlan:
    """Decide dtype and offloading. Raises OutOfMemory, with numbers, when nothing can make it fit.

    Without per-component counts (`files.parameters`) the stored bytes stand for the weights, taken as half precision.
    `beside_bytes` are those of ControlNets, which are on the device even where the model is offloaded. `held_bytes` are
    on the device already, in parts that another model shares; an offloaded model, or one made smaller, has its own.
    """
    spec = model.spec
    _check_memory(spec, device)
    if spec.device_map is not None:
        return _spread(model, files, device, spec.device_map, megapixels, beside_bytes)
    needs = [
        (offload, needed - held_bytes * _shares(offload, form), form, sizes)
        for offload, needed, form, sizes in _needs(model, files, device, megapixels, beside_bytes)
        if spec.context_parallel is None or (offload == "none" and form.way is None)
    ]
    if not needs:
        raise UnsupportedModel(
            f"context_parallel of {spec.id} (models.yaml) takes whole weights; ask for precision bf16, or remove it.",
            field="precision",
        )
    for offload, needed, form, sizes in needs:
        if needed <= device.free_bytes:
            return replace(
                _whole(model, files, device, form, sizes),
                offload=offload,
                ranks=spec.context_parallel or 1,
                estimated_bytes=needed,
                reserve_bytes=needed + held_bytes * _shares(offload, form) - sizes.working - _staying(offload, sizes),
                reasons=_reasons(offload, needed, form, model, device),
            )
    least = min(needed for _, needed, _, _ in needs)
    raise OutOfMemory(
        f"{spec.id} needs {least / GIB:.1f} GiB at {megapixels:.2f} megapixels and {device.name} has "
        f"{device.free_bytes / GIB:.1f} GiB free; use a larger device, a smaller size or a precision of fewer bits.",
        field="model",
        details={"needed_gb": round(least / GIB, 2), "free_gb": round(device.free_bytes / GIB, 2)},
    )


def memory_ways(
    model: KnownModel, files: ModelFiles, device: DeviceInfo, *, megapixels: float, beside_bytes: int = 0
) -> MemoryWays:
    """Return the ways to load `model` on a device of this type, the fastest first, with the bytes that each needs.

    How much memory the device has does not count. The rest is as in `make_plan`.
    """
    wanted = model.spec.device_map
    if wanted is not None:  # what the fullest of equal GPUs needs
        several = replace(device, cards=(Card(device.name, 0, 0),) * count_of(wanted))
        form = _movable(model.spec, files, device)[0]
        sizes = _sizes(model, files, device, form, megapixels, 0)
        layout = _layout(files, several, form, sizes, wanted, beside_bytes)
        return (("none", max(layout.needed) if layout.cards else sum(layout.needed) // count_of(wanted)),)
    needs = _needs(model, files, device, megapixels, beside_bytes)
    return tuple((offload, needed) for offload, needed, _, _ in needs)


@dataclass(frozen=True, slots=True)
class _Form:
    """A form in which weights can be on the device: their precision, what holds them so, what is computed in."""

    precision: Precision
    dtype: DType
    way: Way | None = None

    @property
    def name(self) -> str:
        """Its name; empty for whole weights."""
        return form_name(self.precision, self.dtype, self.way.quantizer) if self.way else ""


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Bytes on the device: all weights, those of the largest component, and what beside them is used.

    Of the text encoders: all of them, and those layers that are there at once where each is fetched as it computes.
    """

    weights: int
    largest: int
    encoders: int
    layers: int
    bytes_per_mp: float
    working: int
    overhead: int


def _needs(
    model: KnownModel, files: ModelFiles, device: DeviceInfo, megapixels: float, beside_bytes: int
) -> list[tuple[Offload, int, _Form, _Sizes]]:
    """Return the ways to have the model on the device, the first choice first, each with the bytes that it needs."""
    whole: list[tuple[Offload, int, _Form, _Sizes]] = []
    offloaded: list[tuple[Offload, int, _Form, _Sizes]] = []
    for form in _forms(model.spec, device, is_packed=bool(files.packed)):
        sizes = _sizes(model, files, device, form, megapixels, beside_bytes)
        for offload, needed in _ways(sizes, model.detection, device, form):
            (whole if offload == "none" else offloaded).append((offload, needed, form, sizes))
    # Weights that `auto` makes smaller stay on the device; what has to be offloaded is offloaded whole.
    if model.spec.precision == "auto":
        offloaded = [each for each in offloaded if each[2].way is None]
    return whole + offloaded


def _forms(spec: ModelSpec, device: DeviceInfo, *, is_packed: bool) -> list[_Form]:
    """Return the forms that a model's precision allows, the first choice first.

    Raises UnsupportedModel for a precision that this kind of device does not have.
    """
    dtype = target_dtype(spec, device)
    whole = _Form(_PRECISIONS[dtype], dtype)
    asked = spec.precision
    if device.type == "mps" and asked in ("bf16", "fp8"):
        raise UnsupportedModel(
            f"precision {asked} is not had on Apple's GPUs; use fp16, int8 or 4bit, or leave it out.", field="precision"
        )
    if asked is None or asked in DTYPES:
        return [whole]
    if asked == "auto":
        near = NEAREST if not is_packed else ()
        return [whole, *(form for each in near for form in _made_smaller(each, dtype, device)[:1])]
    return _made_smaller(asked, dtype, device)


def _made_smaller(precision: Precision, dtype: DType, device: DeviceInfo) -> list[_Form]:
    return [_Form(precision, dtype, way) for way in ways(precision, device.type)]


def _shares(offload: Offload, form: _Form) -> bool:
    """True of weights that are on the device as they come from their files: other models may have them too."""
    return offload == "none" and form.way is None


def _staying(offload: Offload, sizes: _Sizes) -> int:
    """Return the bytes of weights that are on the device between two jobs."""
    return {"none": sizes.weights, "group": sizes.weights - sizes.encoders}.get(offload, 0)


def _reasons(offload: Offload, needed: int, form: _Form, model: KnownModel, device: DeviceInfo) -> tuple[str, ...]:
    """Return the sentences that say why a model is loaded as it is."""
    reasons = [f"{needed / GIB:.1f} GiB needed, {device.free_bytes / GIB:.1f} GiB free on {device.name}"]
    if form.way is not None:
        why = ", since all at once is too large" if model.spec.precision == "auto" else ", as asked for"
        reasons.append(f"weights in {form.precision} by {form.way.quantizer}{why}")
    if offload != "none":
        what = " of the text encoders, layer by layer" if offload == "group" else ""
        reasons.append(f"{offload} offloading{what}, since all at once is too large")
    return tuple(reasons)


def _sizes(
    model: KnownModel, files: ModelFiles, device: DeviceInfo, form: _Form, megapixels: float, beside_bytes: int
) -> _Sizes:
    dtype = form.dtype
    components = _component_bytes(files, form)
    # Uncounted weights are taken as stored in half precision, which doubles where the device computes in float32.
    weights = sum(components.values()) or _uncounted_bytes(files, form)
    scale = _BYTES[dtype] / 2
    # The family's figure is of its full size: a small model of the same class has small activations too.
    bytes_per_mp = min(
        model.detection.activation_gb_per_mp * scale * GIB,
        (sum(files.parameters.values()) * _BYTES[dtype] or weights) * _WEIGHTS_PER_MEGAPIXEL,
    )
    overhead = 0 if device.type == "cpu" else _OVERHEAD_BYTES
    encoders = [size for name, size in components.items() if is_encoder(name) and name not in files.packed]
    return _Sizes(
        weights=weights,
        largest=max(components.values(), default=weights),
        encoders=sum(encoders),
        layers=max((min(size, max(_LEAST_LAYER_BYTES, size // _LAYERS)) for size in encoders), default=0),
        bytes_per_mp=bytes_per_mp,
        working=int(bytes_per_mp * megapixels),
        overhead=overhead + beside_bytes * _BYTES[dtype] // 2,
    )


def _ways(sizes: _Sizes, detection: Detection, device: DeviceInfo, form: _Form) -> list[tuple[Offload, int]]:
    beside = sizes.working + sizes.overhead
    found: list[tuple[Offload, int]] = [("none", sizes.weights + beside)]
    if device.type == "cuda" and _can_be_offloaded(detection):
        if form.way is None and sizes.encoders and detection.format != "modular":
            found.append(("group", sizes.weights - sizes.encoders + sizes.layers + beside))
        if form.way is None or form.way.offloads:
            found.append(("model", sizes.largest + beside))
        if form.way is None:  # weights of its own kind are not taken apart
            found.append(("sequential", beside))
    return found


def _whole(model: KnownModel, files: ModelFiles, device: DeviceInfo, form: _Form, sizes: _Sizes) -> LoadPlan:
    """Return the plan of loading a model as a whole, whether it fits or not."""
    spec, detection = model.spec, model.detection
    scheduler, options = schedule_of(model, files)
    return LoadPlan(
        root=files.root,
        pipeline=detection.pipeline or "DiffusionPipeline",
        dtype=form.dtype,
        device=device.type,
        offload="none",
        estimated_bytes=sizes.weights + sizes.working + sizes.overhead,
        weight_bytes=sizes.weights,
        working_bytes_per_mp=int(sizes.bytes_per_mp),
        reserve_bytes=sizes.overhead,
        format=_format(files, detection),
        precision=form.precision,
        quantizer=form.way.quantizer if form.way else None,
        reduced=files.reduced.get(form.name),
        variant=files.variant,
        config=files.config or (Path(spec.config) if spec.config else None),
        base=files.base,
        parts=files.parts,
        scheduler=scheduler,
        scheduler_options=options,
    )


def _spread(
    model: KnownModel, files: ModelFiles, device: DeviceInfo, wanted: DeviceMap, megapixels: float, beside_bytes: int
) -> LoadPlan:
    """Decide which GPU each component is on. Raises OutOfMemory, with the GPU and its numbers; UnsupportedModel."""
    check_cards(model, wanted, device)
    shortages = []
    for form in _movable(model.spec, files, device):
        sizes = _sizes(model, files, device, form, megapixels, 0)
        layout = _layout(files, device, form, sizes, wanted, beside_bytes)
        if (shortage := layout.shortage(device.cards)) is None:
            held = f"weights in {form.precision} by {form.way.quantizer}" if form.way else ""
            return replace(
                _whole(model, files, device, form, sizes),
                estimated_bytes=sum(layout.needed),
                cards=layout.cards,
                card_bytes=layout.needed if layout.cards else (),
                reasons=tuple(filter(None, (layout.reason(device.cards), held))),
            )
        shortages.append(shortage)
    raise OutOfMemory(
        f"{model.spec.id} {shortages[-1]}, at {megapixels:.2f} megapixels; move a component to another GPU in its "
        "device_map, or use larger GPUs, a smaller size or a precision of fewer bits.",
        field="model",
    )


def _layout(
    files: ModelFiles, device: DeviceInfo, form: _Form, sizes: _Sizes, wanted: DeviceMap, beside_bytes: int
) -> Layout:
    components, adapters = _component_bytes(files, form), beside_bytes * _BYTES[form.dtype] // 2
    if not components:
        return Layout(needed=(sizes.weights + sizes.working + len(device.cards) * sizes.overhead + adapters,))
    return lay_out(wanted, components, files.packed, Beside(sizes.working, sizes.overhead, adapters), device.cards)


def _movable(spec: ModelSpec, files: ModelFiles, device: DeviceInfo) -> list[_Form]:
    """Return the forms whose weights can be on any GPU: those of bitsandbytes and torchao are made on the first."""
    forms = _forms(spec, device, is_packed=bool(files.packed))
    return [form for form in forms if form.way is None or form.way.quantizer in MOVABLE]


def _component_bytes(files: ModelFiles, form: _Form) -> dict[str, int]:
    """Return each component's bytes on the device: of a packed one its plain weights too."""
    return {
        name: _weight_bytes(files, name, form) + files.packed.get(name, 0)
        for name in files.parameters.keys() | files.packed.keys()
    }


def _weight_bytes(files: ModelFiles, name: str, form: _Form) -> int:
    """Return the bytes of a component's weights: those that are made smaller, and the others in the dtype."""
    parameters, reducible, way = files.parameters.get(name, 0), files.reducible.get(name), form.way
    if way is None or reducible is None:
        return parameters * _BYTES[form.dtype]
    reduced = reducible.matrices + (reducible.kernels if way.convolutions else 0)
    return (parameters - reduced) * _BYTES[form.dtype] + int(reduced * way.bits / 8)


def _uncounted_bytes(files: ModelFiles, form: _Form) -> int:
    whole = files.total_bytes * _BYTES[form.dtype] // 2
    if form.way is None:
        return whole
    share = _USUALLY_REDUCED * form.way.bits / 8 / _BYTES[form.dtype]
    return int(whole * (1 - _USUALLY_REDUCED + share))


def _can_be_offloaded(detection: Detection) -> bool:
    """False for an upscaler, which is one small network."""
    return detection.kind is not Kind.UPSCALER


def _check_memory(spec: ModelSpec, device: DeviceInfo) -> None:
    """Raise OutOfMemory for a GPU that is smaller than the registry asks for."""
    cards = device.cards if spec.device_map is not None else ()
    total = sum(card.total_bytes for card in cards) or device.total_bytes
    if device.type == "cuda" and spec.min_vram_gb is not None and total < spec.min_vram_gb * GIB * 0.95:
        raise OutOfMemory(
            f"{spec.id} needs a GPU with {spec.min_vram_gb:g} GB (min_vram_gb in models.yaml) and {device.name} has "
            f"{total / GIB:.0f} GiB; run it on a larger one.",
            field="model",
        )


def images_that_fit(plan: LoadPlan, device: DeviceInfo, megapixels: float) -> int:
    """Return the number of images of this size that one call may generate in the memory free now; at least 1.

    The model is loaded already. A CPU has no such bound: it lacks time, and whether memory is short shows by trying.
    """
    if device.type == "cpu":
        return sys.maxsize
    bytes_per_image = max(1.0, plan.working_bytes_per_mp * megapixels)
    return max(1, int((device.free_bytes - plan.reserve_bytes) / bytes_per_image))


def resident_key(spec: ModelSpec, files: ModelFiles) -> str:
    """Return a key that is the same for the same load: the files, the sources of parts, and the options of loading."""
    parts = [f"{name}={path}" for name, path in sorted(files.parts.items())]
    values = (
        files.root,
        spec.dtype,
        spec.precision,
        files.variant,
        files.sha256,  # of one place whose content may change
        files.config or spec.config,
        files.base,
        spec.pipeline,
        spec.prediction_type,
        spec.device_map,
        spec.context_parallel,
        *parts,
    )
    return "|".join(str(value or "") for value in values)


def resident_keys(batch: Batch) -> list[str]:
    """Return the keys of all models that have worked for a batch."""
    job, finishing = batch.jobs[0], batch.finishing
    refiner, upscaler = job.finishing.refiner, job.finishing.upscaler
    keys = [resident_key(job.call.spec, batch.files)]
    if refiner is not None and finishing.refiner is not None:
        keys.append(resident_key(refiner.call.spec, finishing.refiner))
    if upscaler is not None and finishing.upscaler is not None:
        keys.append(resident_key(upscaler.model.spec, finishing.upscaler))
    return keys


def _format(files: ModelFiles, detection: Detection) -> LoadFormat:
    if detection.kind is Kind.UPSCALER:
        return "upscaler"
    if not files.is_single_file:
        return "modular" if detection.format == "modular" else "diffusers"
    return "gguf" if files.root.suffix.lower() == ".gguf" else "safetensors"
