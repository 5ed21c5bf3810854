"""Header or model_index.json in, Detection with evidence out. "Unknown" is an answer, never a guess.

A file is asked in this order; the first answer stands: LoRA, refused by name, a model class of diffusers by its tensor
names (`components.py`), the small kinds (`companions.py`), ControlNets, the families (`architectures.py`), autoencoders
and text encoders (`encoders.py`). Then `declarations.py` adds what only a declaration can tell.

`Detection.format` is the container: `diffusers` for repositories, `safetensors`, `gguf` or `torch` for weight files,
and `<algorithm>/<dialect>` for LoRAs (see `adapters.py`). `quantization` says what a plain reading of the weights would
spoil, `parts` what a file holds, `component_class` the class that reads a part, and `variant` for encoders, upscalers
and adapters which one of its kind it is (`kl-16`, `t5-xxl`, `ESRGAN`, `union`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from worker.catalog.architectures import ARCHITECTURES, Architecture
from worker.catalog.base_models import declared_base
from worker.catalog.declarations import settle
from worker.catalog.detectors.adapters import detect_lora
from worker.catalog.detectors.companions import FACE_RESTORER, find_companion
from worker.catalog.detectors.components import ComponentClass, Likeness, component_classes, resemble
from worker.catalog.detectors.controlnets import CONTROL_LORA, find_controlnet, is_control_lora
from worker.catalog.detectors.encoders import find_encoder
from worker.catalog.detectors.image_prompts import layout_of
from worker.catalog.detectors.storage import (
    input_channels,
    missing_parts,
    parts_beside,
    parts_of,
    prediction_of,
    quantization_of,
)
from worker.catalog.detectors.unsupported import refuse
from worker.catalog.pipelines.names import named_task
from worker.catalog.pipelines.table import UPSCALE_PIPELINE
from worker.catalog.repositories import detect_repository
from worker.core.errors import UnsupportedModel
from worker.core.model import Declaration, Detection, Kind, Outline, Task, TensorIndex

_DENOISER_STARTS = ("model.diffusion_model.", "diffusion_model.", "unet.", "input_blocks.", "double_blocks.")
_QUOTED = (
    "modelspec.architecture", "modelspec.title", "ss_base_model_version", "ss_network_module", "general.architecture",
)  # fmt: skip
_MAX_NEAR = 3
_NEAR_ENOUGH = 0.2


def detect(outline: Outline) -> Detection:
    """Say what a source is from its JSON files, or from one file's header, and from what is declared of it.

    Raises UnsupportedModel for what is recognised and cannot run here: remote code, modular repositories, other media.
    """
    found = detect_repository(outline.configs)
    if found is not None and (found.kind is Kind.PIPELINE or outline.header is None):
        return settle(found, {}, outline.declared)
    if outline.header is None:
        return Detection(Kind.UNKNOWN, "unknown", evidence=("no model_index.json and no weights to look at",))
    seen = detect_header(outline.header, declared=outline.declared)
    if found is None:
        return seen
    if found.kind is Kind.LORA and seen.kind is Kind.LORA:
        base = seen.architecture or found.architecture
        return replace(seen, architecture=base, evidence=(*seen.evidence, *found.evidence))
    if seen.kind is Kind.UNKNOWN:
        return found
    return _with_config(seen, found) if seen.kind is found.kind else seen


def _with_config(seen: Detection, found: Detection) -> Detection:
    """Complete a header's answer with its config.json, which names the class where several have the same names."""
    known = component_classes().get(found.component_class or "")
    answer = replace(
        seen,
        architecture=seen.architecture or found.architecture,
        evidence=(*seen.evidence, *found.evidence),
        component_class=found.component_class or seen.component_class,
        confidence="high" if known else seen.confidence,
        quantization=found.quantization or seen.quantization,
        variant=seen.variant or found.variant,
    )
    if known is None or not known.pipelines or seen.pipeline is None or seen.pipeline in known.pipelines:
        return answer
    pipeline = known.pipelines[0]  # the header's guess belongs to a sibling class
    return replace(answer, architecture=found.architecture, pipeline=pipeline, tasks=(named_task(pipeline),))


def detect_header(index: TensorIndex, name: str = "", declared: Declaration | None = None) -> Detection:
    """Say what a weight file is from its names, shapes and metadata; `name` is the file's and only a hint.

    Raises UnsupportedModel for what is recognised and cannot run here.
    """
    return settle(_examine(index, name), index.metadata, declared, name)


def _examine(index: TensorIndex, name: str) -> Detection:
    found = _lora(index)
    if found is not None:
        return found
    refuse(index)
    likeness = None if parts_beside(index) else resemble(index)  # a class is one part alone
    if likeness is not None:
        found = _of_class(index, likeness)
        if found is not None:
            return found
    for step in (_companion, _controlnet, _denoiser, _encoder):
        found = step(index)
        if found is not None:
            return found
    return _unknown(index, name)


def _lora(index: TensorIndex) -> Detection | None:
    # A FaceID adapter brings a LoRA along, and is none.
    lora = detect_lora(index) if layout_of(index) is None else None
    if lora is None:
        return None
    return Detection(
        Kind.LORA,
        f"{lora.algorithm}/{lora.dialect}",
        architecture=lora.base,
        evidence=lora.evidence + _metadata(index),
        quantization=quantization_of(index)[0],
    )


def _of_class(index: TensorIndex, likeness: Likeness) -> Detection | None:
    """Answer for a file whose tensor names are those of a diffusers class; rows tell the base and the variant."""
    names = " or ".join(row.name for row in likeness.classes)
    fact = f"the tensor names are those of diffusers' {names} ({likeness.share:.0%})"
    only = likeness.classes[0] if len(likeness.classes) == 1 else None
    kind = likeness.classes[0].kind
    if kind is Kind.DENOISER:
        found = _of_denoiser(index, likeness.classes)
    else:
        found = {Kind.CONTROLNET: _controlnet, Kind.VAE: _encoder}.get(kind, _companion)(index)
    other = found is not None and only is not None and found.component_class not in (None, only.name)
    generic = kind is Kind.VAE and found is not None and found.component_class is None
    if found is None or found.kind is not kind or other or generic:
        base, weights = _base_of(likeness.classes), quantization_of(index)[0]
        parts = ("vae",) if kind is Kind.VAE else ()
        found = Detection(kind, index.container, architecture=base, quantization=weights, parts=parts)
    return replace(
        found,
        evidence=(*found.evidence, fact),
        component_class=only.name if only else found.component_class,
        confidence="high" if only else "medium",
    )


def _of_denoiser(index: TensorIndex, classes: tuple[ComponentClass, ...]) -> Detection | None:
    pipelines = [pipeline for row in classes for pipeline in row.pipelines]
    if not pipelines:
        raise UnsupportedModel(
            f"This is a {classes[0].name}, which diffusers runs only in a modular pipeline, and this version cannot "
            "load those; use a model that has an ordinary pipeline."
        )
    users = frozenset(pipelines)
    rows = [row for row in ARCHITECTURES if users & {*row.pipelines.values(), *row.classes}]
    row, why = _row_among(rows, index)
    if row is not None:
        model = _model(index, row, Kind.DENOISER, why)
        if users & set(row.pipelines.values()):
            return model
        return replace(model, pipeline=pipelines[0], tasks=(named_task(pipelines[0]),))
    if rows:  # a class that several families share, and none of them is recognised
        near = tuple(row.id for row in rows[:_MAX_NEAR])
        return Detection(Kind.DENOISER, index.container, near=near, quantization=quantization_of(index)[0])
    return Detection(
        Kind.DENOISER,
        index.container,
        pipeline=pipelines[0],
        tasks=(named_task(pipelines[0]),),
        quantization=quantization_of(index)[0],
        parts=parts_of(index),
    )


def _row_among(rows: Sequence[Architecture], index: TensorIndex) -> tuple[Architecture | None, tuple[str, ...]]:
    """Return the row whose denoiser the file shows, and what shows it; else the only one that is no other's variant."""
    for row in rows:
        evidence = row.denoiser.match(index) if row.denoiser else None
        if evidence is not None:
            return row, evidence
    plain = [row for row in rows if row.twin is None and row.sibling is None]
    return plain[0] if len(plain) == 1 else None, ()


def _base_of(classes: Iterable[ComponentClass]) -> str | None:
    """Return the one family whose pipelines take these classes, or None."""
    users = {pipeline for row in classes for pipeline in row.pipelines}
    ids = {row.adapter_base for row in ARCHITECTURES if users & {*row.pipelines.values(), *row.classes}}
    return ids.pop() if len(ids) == 1 else None


def _companion(index: TensorIndex) -> Detection | None:
    found = find_companion(index)
    if found is None:
        return None
    row, evidence = found
    upscales = row.kind is Kind.UPSCALER and row.variant != FACE_RESTORER
    return Detection(
        row.kind,
        index.container,
        architecture=row.architecture,
        pipeline=UPSCALE_PIPELINE if upscales else None,
        tasks=(Task.UPSCALING,) if upscales else (),
        evidence=evidence,
        variant=row.variant,
        component_class=row.component_class,
    )


def _controlnet(index: TensorIndex) -> Detection | None:
    found = find_controlnet(index)
    if found is None:
        return None
    row, evidence = found
    weights, why = quantization_of(index)
    return Detection(
        Kind.CONTROLNET,
        index.container,
        architecture=row.architecture,
        evidence=evidence + why,
        quantization=weights,
        variant=CONTROL_LORA if is_control_lora(index) else row.variant,
        component_class=row.component_class,
    )


def _denoiser(index: TensorIndex) -> Detection | None:
    """Find the row whose condition holds; the parts beside the denoiser tell a checkpoint from a denoiser alone."""
    for row in ARCHITECTURES:
        found = row.checkpoint.match(index) if row.checkpoint else None
        if found is not None:
            return _model(index, row, Kind.CHECKPOINT, found)
        found = row.denoiser.match(index) if row.denoiser else None
        if found is not None:
            return _model(index, row, Kind.CHECKPOINT if parts_beside(index) else Kind.DENOISER, found)
    return _nunchaku(index)


def _nunchaku(index: TensorIndex) -> Detection | None:
    """4-bit files of Nunchaku rename and pack everything; their metadata names the class."""
    name = index.metadata.get("model_class", "")
    base = declared_base(name.removeprefix("Nunchaku")) if name.startswith("Nunchaku") else None
    row = next((row for row in ARCHITECTURES if row.id == base), None)
    return _model(index, row, Kind.DENOISER, (f"metadata model_class is {name[:60]}",)) if row else None


def _model(index: TensorIndex, row: Architecture, kind: Kind, found: tuple[str, ...]) -> Detection:
    evidence = [f"{text}: {row.id}" if at == 0 else text for at, text in enumerate(found)]
    pipeline, tasks = next(iter(row.pipelines.values())), tuple(row.pipelines)
    channels = input_channels(index)
    special = row.by_channels.get(channels) if channels else None
    if special is not None:
        pipeline, tasks = special[0], (special[1],)
        evidence.append(f"{channels} input channels")
    if kind is Kind.CHECKPOINT:
        evidence.extend(missing_parts(index))
    weights, why = quantization_of(index)
    evidence.extend(why)
    prediction, zero_snr, why = prediction_of(index)
    evidence.extend(why)
    return Detection(
        kind,
        index.container,
        row.id,
        pipeline,
        tasks,
        prediction,
        zero_snr=zero_snr,
        native_size=row.native_size,
        evidence=(*evidence, *_metadata(index)),
        quantization=weights,
        parts=parts_of(index),
    )


def _has_denoiser(index: TensorIndex) -> bool:
    """Say whether a denoiser that no row knows is in the file, so that it is not taken for one of its parts."""
    return any(name.startswith(_DENOISER_STARTS) for name in index.tensors)


def _encoder(index: TensorIndex) -> Detection | None:
    if _has_denoiser(index):
        return None
    found = find_encoder(index)
    if found is None:
        return None
    row, evidence = found
    weights, why = quantization_of(index)
    return Detection(
        row.kind,
        index.container,
        architecture=row.architecture,
        evidence=evidence + why,
        quantization=weights,
        variant=row.variant,
        parts=("vae",) if row.kind is Kind.VAE else ("text_encoder",),
        component_class=row.component_class,
    )


def _unknown(index: TensorIndex, name: str) -> Detection:
    scores = []
    for row in ARCHITECTURES:
        score = max((part.score(index) for part in (row.denoiser, row.checkpoint) if part), default=0.0)
        if score >= _NEAR_ENOUGH:
            scores.append((score, row.id))
    scores.sort(key=lambda scored: -scored[0])
    sample = next(iter(index.tensors), "")
    where = f" in {name[:60]}" if name else ""
    evidence = (f"{len(index.tensors)} tensors{where} that no row knows, the first is {sample[:80]}", *_metadata(index))
    near = tuple(id for _, id in scores[:_MAX_NEAR])
    return Detection(Kind.UNKNOWN, index.container, evidence=evidence, near=near)


def _metadata(index: TensorIndex) -> tuple[str, ...]:
    """Quote what the file says of itself: a hint for people, no proof."""
    return tuple(f"metadata {key} is {index.metadata[key][:60]}" for key in _QUOTED if index.metadata.get(key))
