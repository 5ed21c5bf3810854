"""The files of a job's IP-Adapters, and the image encoder that each was trained on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from worker.catalog.detectors.image_prompts import (
    ENCODERS,
    Need,
    encoder_folders,
    layout_of,
    need_of,
    usual_encoder,
    usual_files,
)
from worker.core.adapter import AdapterFiles, ImagePrompt, IPAdapterSpec
from worker.core.errors import (
    IncompatibleAdapter,
    ModelNotFound,
    UnsafeFormat,
    UnsupportedModel,
)
from worker.core.job import Job
from worker.core.model import SAFETENSORS, Detection, Kind, ModelFiles, ModelSource, TensorIndex
from worker.core.result import Emit
from worker.service.accepting.adapters.compatibility import Inspected
from worker.service.local.adapters.fetching import AdapterFetcher, explained, unclear_weights
from worker.service.local.weights import AdapterFile, examine_adapter

_FIELD = "ip_adapters"


def provide_image_prompts(
    prompts: Sequence[ImagePrompt], job: Job, fetcher: AdapterFetcher, emit: Emit
) -> list[AdapterFiles[ImagePrompt]]:
    """Fetch a job's IP-Adapters, each with its `image_encoder` as a part, in their order.

    All are peeked at before the first is fetched. Raises IncompatibleAdapter, UnsupportedModel, SourceError …
    """
    chosen = _with_one_encoder([_look(prompt, job, fetcher, emit) for prompt in prompts])
    return [_provide(item, job, fetcher, emit) for item in chosen]


@dataclass(frozen=True, slots=True)
class _Chosen:
    """An adapter that suits the job: its file, and the source of its image encoder."""

    prompt: ImagePrompt
    source: ModelSource
    detection: Detection
    encoder: ModelSource
    encoder_title: str


def _look(prompt: ImagePrompt, job: Job, fetcher: AdapterFetcher, emit: Emit) -> _Chosen:
    """Choose the file that is meant, and refuse one that does not suit the job. Only a pickle is fetched for that."""
    spec = prompt.spec
    source, header, detection = _choose_file(spec, job, fetcher)
    if header is None or detection is None:
        files, examined = _fetch(source, job, fetcher, emit)
        header, detection = examined.header, examined.detection
        if source.is_local and files.root.suffix.lower() in SAFETENSORS and source.filename is None:
            source = source.model_copy(update={"locator": str(files.root)})
    need = _need(Inspected(spec, detection), header, job)
    encoder, title = _encoder(spec.model, source, need, job.call.detection.architecture, fetcher)
    return _Chosen(prompt, source, detection, encoder, title)


def _choose_file(
    spec: IPAdapterSpec, job: Job, fetcher: AdapterFetcher
) -> tuple[ModelSource, TensorIndex | None, Detection | None]:
    """Return a reference's only file, or the family's usual one. Raises UnsupportedModel, listing several."""
    source = fetcher.source(spec.model, spec.weight_name, _FIELD)
    ambiguity: UnsupportedModel | None = None
    try:
        outline, detection = fetcher.look(source, _FIELD)
        if outline.header is not None:
            return source, outline.header, detection
    except UnsupportedModel as error:
        if not error.details or "files" not in error.details:
            raise
        ambiguity = error
    if source.filename is None and (source.is_repository or source.is_local):
        for name in usual_files(job.call.detection.architecture):
            # With a named folder only its own files can be meant.
            filename = PurePosixPath(name).name if source.subfolder else name
            usual = source.model_copy(update={"filename": filename})
            try:
                outline, detection = fetcher.look(usual, _FIELD)
            except ModelNotFound:
                continue
            return usual, outline.header, detection
    if ambiguity is not None:
        listed = ambiguity.details.get("files") if ambiguity.details else None
        names = [str(name) for name in listed if "image_encoder" not in str(name)] if isinstance(listed, list) else []
        raise unclear_weights("several", names, spec.model, _FIELD)
    return source, None, None


def _need(inspected: Inspected[IPAdapterSpec], header: TensorIndex, job: Job) -> Need:
    """Return the encoder that the adapter needs. Raises IncompatibleAdapter, UnsupportedModel for others."""
    layout = layout_of(header)
    inspected.check_kind()
    inspected.check_family(job.call)
    need = need_of(header, layout) if layout else None
    if layout is None or layout.refused or need is None:
        reason = layout.refused if layout and layout.refused else "of a layout that diffusers does not read"
        raise UnsupportedModel(
            f"{_FIELD}: {inspected.spec.model} is {reason}; use a plain, plus or full-face IP-Adapter of this model's "
            "family.",
            field=_FIELD,
        )
    return need


def encoder_source(source: ModelSource, fetcher: AdapterFetcher) -> ModelSource | None:
    """Return the source of an IP-Adapter's image encoder; None for other files. Raises UnsupportedModel without one."""
    outline, detection = fetcher.look(source, _FIELD)
    if outline.header is None or detection is None or detection.kind is not Kind.IP_ADAPTER:
        return None
    layout = layout_of(outline.header)
    need = need_of(outline.header, layout) if layout is not None else None
    return _encoder(source.reference, source, need, detection.architecture, fetcher)[0] if need is not None else None


def _encoder(
    name: str, source: ModelSource, need: Need, architecture: str | None, fetcher: AdapterFetcher
) -> tuple[ModelSource, str]:
    """Return the image encoder's source and title: in the adapter's repository, else as its authors published it."""
    usual = usual_encoder(need, architecture)
    title = usual.title if usual else f"an image encoder {need.width} wide"
    for folder in _beside(source):
        try:
            outline, _ = fetcher.look(folder, _FIELD)
        except (ModelNotFound, UnsafeFormat, UnsupportedModel):
            continue
        if need.met_by(outline.configs.get("config.json", {})):
            return folder, title
    if usual is None:
        raise UnsupportedModel(
            f"{_FIELD}: {name} was trained on an image encoder whose {need.reads} are {need.width} wide, which "
            "is none of those known here, and none lies beside it; put it there in a folder image_encoder.",
            field=_FIELD,
            details={"reads": need.reads, "width": need.width},
        )
    return fetcher.resolver.part_source(usual.reference), usual.title


def _beside(source: ModelSource) -> list[ModelSource]:
    """List the folders of the adapter's own repository in which an encoder may be."""
    root, name = source.locator, "/".join(filter(None, (source.subfolder, source.filename)))
    if source.is_local and not name:
        path = PurePosixPath(root)
        root, name = str(path.parent), path.name
    if not source.is_repository and not source.is_local:
        return []
    changes = {"locator": root, "filename": None, "sha256": None}
    return [source.model_copy(update={**changes, "subfolder": folder}) for folder in encoder_folders(name)]


def _with_one_encoder(chosen: list[_Chosen]) -> list[_Chosen]:
    """Return the adapters with one encoder for all: diffusers' pipelines have room for no more.

    Copies of a published encoder in several repositories are one. Raises IncompatibleAdapter if they differ.
    """
    published = {row.title for row in ENCODERS}
    first = next(iter(chosen), None)
    for item in chosen:
        copies = first is not None and item.encoder_title == first.encoder_title and item.encoder_title in published
        if first is not None and item.encoder.reference != first.encoder.reference and not copies:
            listed = "; ".join(f"{other.prompt.spec.model} wants {other.encoder_title}" for other in chosen)
            raise IncompatibleAdapter(
                f"{_FIELD}: adapters of one job must share one image encoder ({listed}); send them in jobs of their "
                "own.",
                field=_FIELD,
            )
    return [replace(item, encoder=first.encoder) for item in chosen] if first is not None else []


def _provide(chosen: _Chosen, job: Job, fetcher: AdapterFetcher, emit: Emit) -> AdapterFiles[ImagePrompt]:
    files, examined = _fetch(chosen.source, job, fetcher, emit)
    # The fetched file may differ from the peek.
    _need(Inspected(chosen.prompt.spec, examined.detection), examined.header, job)
    encoder = _fetch_encoder(chosen, job, fetcher, emit)
    with_encoder = replace(
        files,
        parts={"image_encoder": encoder.root},
        total_bytes=files.total_bytes + encoder.total_bytes,
        bytes_downloaded=files.bytes_downloaded + encoder.bytes_downloaded,
    )
    return AdapterFiles(chosen.prompt, with_encoder, examined.detection, examined.sha256)


def _fetch(source: ModelSource, job: Job, fetcher: AdapterFetcher, emit: Emit) -> tuple[ModelFiles, AdapterFile]:
    """Fetch the adapter's own file; of several, the family's usual one."""
    usual = frozenset(PurePosixPath(name).name for name in usual_files(job.call.detection.architecture))
    return fetcher.fetch_file(source, _FIELD, examine_adapter, emit, job.stop, usual)


def _fetch_encoder(chosen: _Chosen, job: Job, fetcher: AdapterFetcher, emit: Emit) -> ModelFiles:
    """Fetch the encoder's folder. Errors say why it is needed: the caller has not named its repository."""
    reason = (
        f"{_FIELD}: {chosen.prompt.spec.model} needs {chosen.encoder_title}, "
        f"which comes from {chosen.encoder.reference}"
    )
    with explained(reason, _FIELD):
        files = fetcher.fetch(chosen.encoder, _FIELD, emit, job.stop)
    if files.is_single_file:
        raise UnsupportedModel(f"{reason}: that is a single file, and its config.json is needed too.", field=_FIELD)
    return files
