"""Detection of models: from a header or a model_index.json to a Detection with evidence.

"Unknown" is an answer, never a guess.

The tables are tried on a file in this order, and the first match wins: LoRAs, refused kinds, model classes of diffusers
by their tensor names (`components.py`), the small kinds (`companions.py`), ControlNets, the families
(`architectures.py`), autoencoders and text encoders (`encoders.py`). Then `declarations.py` adds the facts that only a
declaration can tell.

`Detection.format` is the container: `diffusers` for repositories, `safetensors`, `gguf` or `torch` for weight files,
and `<algorithm>/<dialect>` for LoRAs (see `adapters.py`). `quantization` names a storage that a plain reading of the
weights would spoil. `parts` are those that a file holds, and `component_class` is the class that reads a part. For
encoders, upscalers and adapters `variant` tells which one of its kind it is (`kl-16`, `t5-xxl`, `ESRGAN`, `union`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

from worker.catalog.architectures import ARCHITECTURES, Architecture
from worker.catalog.base_models import declared_base
from worker.catalog.config_bounds import check_description
from worker.catalog.declarations import settle
from worker.catalog.detectors.adapters import detect_lora
from worker.catalog.detectors.companions import FACE_RESTORER, find_companion
from worker.catalog.detectors.components import ComponentClass, Likeness, component_classes, resemble
from worker.catalog.detectors.controlnets import CONTROL_LORA, find_controlnet, is_control_lora
from worker.catalog.detectors.encoders import find_encoder
from worker.catalog.detectors.image_prompts import layout_of
from worker.catalog.detectors.storage import (
    input_channels,
    is_vae_alone,
    missing_parts,
    parts_beside,
    parts_of,
    prediction_of,
    quantization_of,
    unpacked,
)
from worker.catalog.detectors.unsupported import refuse
from worker.catalog.pipelines.names import named_task
from worker.catalog.pipelines.table import UPSCALE_PIPELINE
from worker.catalog.repositories import detect_repository
from worker.core.errors import UnsupportedModel
from worker.core.model import Declaration, Detection, Kind, Outline, Task, TensorIndex
from worker.core.single_file import text_encoders, unwrapped

_DENOISER_STARTS = ("model.diffusion_model.", "diffusion_model.", "unet.", "input_blocks.", "double_blocks.")
_QUOTED = (
    "modelspec.architecture", "modelspec.title", "ss_base_model_version", "ss_network_module", "general.architecture",
)  # fmt: skip
_MAX_NEAR = 3
_NEAR_ENOUGH = 0.2


def detect(outline: Outline) -> Detection:
    """Detect a source by its JSON files, or by one file's header, and by its declarations.

    Raises UnsupportedModel if it is recognised and cannot run here: remote code, other media, numbers beyond any model.
    Raises CorruptFile if its configs and its weights do not belong together.
    """
    repository = detect_repository(outline.configs)
    check_description(outline.configs, outline.weight_bytes)
    if repository is not None and (repository.kind is Kind.PIPELINE or outline.header is None):
        return settle(repository, {}, outline.declared)
    if outline.header is None:
        return Detection(Kind.UNKNOWN, "unknown", evidence=("no model_index.json and no weights to look at",))
    header = detect_header(outline.header, outline.file_name, outline.declared)
    if repository is None:
        return header
    if repository.kind is Kind.LORA and header.kind is Kind.LORA:
        base = header.architecture or repository.architecture
        return replace(header, architecture=base, evidence=(*header.evidence, *repository.evidence))
    if header.kind is Kind.UNKNOWN:
        return repository
    return _with_config(header, repository) if header.kind is repository.kind else header


def _with_config(header: Detection, config: Detection) -> Detection:
    """Complete a header's detection with that of its config.json.

    The config names the class where several classes have the same tensor names."""
    component = component_classes().get(config.component_class or "")
    detection = replace(
        header,
        architecture=header.architecture or config.architecture,
        evidence=(*header.evidence, *config.evidence),
        component_class=config.component_class or header.component_class,
        confidence="high" if component else header.confidence,
        quantization=config.quantization or header.quantization,
        variant=header.variant or config.variant,
    )
    if (
        component is None
        or not component.pipelines
        or header.pipeline is None
        or header.pipeline in component.pipelines
    ):
        return detection
    pipeline = component.pipelines[0]  # the header's guess belongs to a sibling class
    return replace(detection, architecture=config.architecture, pipeline=pipeline, tasks=(named_task(pipeline),))


def detect_header(index: TensorIndex, name: str = "", declared: Declaration | None = None) -> Detection:
    """Detect a weight file by its names, shapes and metadata; `name` is the file's and only a hint.

    Raises UnsupportedModel if it is recognised and cannot run here.
    """
    return settle(_examine(unpacked(index), name), index.metadata, declared, name)


def _examine(index: TensorIndex, name: str) -> Detection:
    index = replace(index, tensors=unwrapped(index.tensors))
    detection = _lora(index)
    if detection is not None:
        return detection
    refuse(index)
    likeness = resemble(index) if parts_beside(index) == () or is_vae_alone(index) else None  # a class is one part
    if likeness is not None:
        detection = _of_class(index, likeness)
        # An original layout resembles other families' classes: a row that knows the file goes before them.
        return detection if detection.architecture or detection.pipeline else _denoiser(index) or detection
    detection = _companion(index, name)
    if detection is not None:
        return detection
    for step in (_controlnet, _denoiser, _encoder):
        detection = step(index)
        if detection is not None:
            return detection
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


def _of_class(index: TensorIndex, likeness: Likeness) -> Detection:
    """Return the detection of a file with the tensor names of a diffusers class; rows tell the base and the variant."""
    names = " or ".join(row.name for row in likeness.classes)
    fact = f"the tensor names are those of diffusers' {names} ({likeness.share:.0%})"
    single = likeness.classes[0] if len(likeness.classes) == 1 else None
    kind = likeness.classes[0].kind
    detection: Detection | None
    if kind is Kind.DENOISER:
        detection = _of_denoiser(index, likeness.classes)
    else:
        detection = {Kind.CONTROLNET: _controlnet, Kind.VAE: _encoder}.get(kind, _companion)(index)
    differs = detection is not None and single is not None and detection.component_class not in (None, single.name)
    generic = kind is Kind.VAE and detection is not None and detection.component_class is None
    if detection is None or detection.kind is not kind or differs or generic:
        base, quantization = _base_of(likeness.classes), quantization_of(index)[0]
        parts = ("vae",) if kind is Kind.VAE else ()
        detection = Detection(kind, index.container, architecture=base, quantization=quantization, parts=parts)
    return replace(
        detection,
        evidence=(*detection.evidence, fact),
        component_class=single.name if single else detection.component_class,
        confidence="high" if single else "medium",
    )


def _of_denoiser(index: TensorIndex, classes: tuple[ComponentClass, ...]) -> Detection:
    pipelines = [pipeline for row in classes for pipeline in row.pipelines]
    if not pipelines:
        raise UnsupportedModel(
            f"This is a {classes[0].name}, which diffusers runs only in a modular pipeline; use the modular "
            "repository that it belongs to."
        )
    users = frozenset(pipelines)
    rows = [row for row in ARCHITECTURES if users & {*row.pipelines.values(), *row.classes}]
    row, evidence = _row_among(rows, index)
    if row is not None:
        model = _model(index, row, Kind.DENOISER, evidence)
        if users & set(row.pipelines.values()):
            return model
        return replace(model, pipeline=pipelines[0], tasks=(named_task(pipelines[0]),))
    if rows:  # a class that several families share, and none of them is recognised
        nearest = tuple(row.id for row in rows[:_MAX_NEAR])
        return Detection(Kind.DENOISER, index.container, near=nearest, quantization=quantization_of(index)[0])
    return Detection(
        Kind.DENOISER,
        index.container,
        pipeline=pipelines[0],
        tasks=(named_task(pipelines[0]),),
        quantization=quantization_of(index)[0],
        parts=parts_of(index),
    )


def _row_among(rows: Sequence[Architecture], index: TensorIndex) -> tuple[Architecture | None, tuple[str, ...]]:
    """Return the row whose denoiser the file shows, with the evidence.

    Failing that, return the only row that is no other's variant, or None."""
    for row in rows:
        evidence = row.denoiser.match(index) if row.denoiser else None
        if evidence is not None:
            return row, evidence
    originals = [row for row in rows if row.twin is None and row.sibling is None]
    return originals[0] if len(originals) == 1 else None, ()


def _base_of(classes: Iterable[ComponentClass]) -> str | None:
    """Return the one family whose pipelines take these classes, or None."""
    users = {pipeline for row in classes for pipeline in row.pipelines}
    ids = {row.adapter_base for row in ARCHITECTURES if users & {*row.pipelines.values(), *row.classes}}
    return ids.pop() if len(ids) == 1 else None


def _companion(index: TensorIndex, name: str = "") -> Detection | None:
    match = find_companion(index, name)
    if match is None:
        return None
    row, evidence = match
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
    match = find_controlnet(index)
    if match is None:
        return None
    row, evidence = match
    quantization, reasons = quantization_of(index)
    return Detection(
        Kind.CONTROLNET,
        index.container,
        architecture=row.architecture,
        evidence=evidence + reasons,
        quantization=quantization,
        variant=CONTROL_LORA if is_control_lora(index) else row.variant,
        component_class=row.component_class,
    )


def _denoiser(index: TensorIndex) -> Detection | None:
    """Find the row whose condition holds; the parts beside the denoiser tell a checkpoint from a denoiser alone."""
    for row in ARCHITECTURES:
        evidence = row.checkpoint.match(index) if row.checkpoint else None
        if evidence is not None:
            return _model(index, row, Kind.CHECKPOINT, evidence)
        evidence = row.denoiser.match(index) if row.denoiser else None
        if evidence is not None:
            return _model(index, row, Kind.CHECKPOINT if parts_beside(index) else Kind.DENOISER, evidence)
    return _nunchaku(index)


def _nunchaku(index: TensorIndex) -> Detection | None:
    """Detect a 4-bit file of Nunchaku by its metadata: these files rename and pack all tensors."""
    name = index.metadata.get("model_class", "")
    base = declared_base(name.removeprefix("Nunchaku")) if name.startswith("Nunchaku") else None
    row = next((row for row in ARCHITECTURES if row.id == base), None)
    return _model(index, row, Kind.DENOISER, (f"metadata model_class is {name[:60]}",)) if row else None


def _model(index: TensorIndex, row: Architecture, kind: Kind, facts: tuple[str, ...]) -> Detection:
    if row.unread is not None and row.unread(index):
        raise UnsupportedModel(
            f"This is {row.title} under its authors' tensor names, which nothing here converts; "
            "use its diffusers repository, or a file that was saved from one.",
            field="model",
        )
    evidence = [f"{text}: {row.id}" if position == 0 else text for position, text in enumerate(facts)]
    pipeline, tasks = next(iter(row.pipelines.values())), tuple(row.pipelines)
    channels = input_channels(index)
    special = row.by_channels.get(channels) if channels else None
    if special is not None:
        pipeline, tasks = special[0], (special[1],)
        evidence.append(f"{channels} input channels")
    if kind is Kind.CHECKPOINT:
        evidence.extend(missing_parts(index))
    quantization, reasons = quantization_of(index)
    evidence.extend(reasons)
    prediction, zero_snr, reasons = prediction_of(index)
    evidence.extend(reasons)
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
        quantization=quantization,
        parts=parts_of(index),
        encoders=tuple(text_encoders(index.tensors).values()),
    )


def _has_denoiser(index: TensorIndex) -> bool:
    """True if the file holds a denoiser that no row knows; such a file must not be taken for one of its parts."""
    return any(name.startswith(_DENOISER_STARTS) for name in index.tensors)


def _encoder(index: TensorIndex) -> Detection | None:
    if _has_denoiser(index):
        return None
    match = find_encoder(index)
    if match is None:
        return None
    row, evidence = match
    quantization, reasons = quantization_of(index)
    return Detection(
        row.kind,
        index.container,
        architecture=row.architecture,
        evidence=evidence + reasons,
        quantization=quantization,
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
    location = f" in {name[:60]}" if name else ""
    evidence = (
        f"{len(index.tensors)} tensors{location} that no row knows, the first is {sample[:80]}",
        *_metadata(index),
    )
    nearest = tuple(id for _, id in scores[:_MAX_NEAR])
    return Detection(Kind.UNKNOWN, index.container, evidence=evidence, near=nearest)


def _metadata(index: TensorIndex) -> tuple[str, ...]:
    """Return quotes of the file's metadata: a hint for people, no proof."""
    return tuple(f"metadata {key} is {index.metadata[key][:60]}" for key in _QUOTED if index.metadata.get(key))
