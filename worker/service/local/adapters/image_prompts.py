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
from worker.core.model import Detection, Kind, ModelFiles, ModelSource, TensorIndex
from worker.core.result import Emit
from worker.service.accepting.adapters.compatibility import check_family, check_kind
from worker.service.local.adapters.fetching import AdapterFetcher, told, unclear_weights
from worker.service.local.weights import AdapterFile, examine_adapter

_FIELD = "ip_adapters"
_WEIGHTS = ".safetensors"


def provide_image_prompts(
    prompts: Sequence[ImagePrompt], job: Job, fetcher: AdapterFetcher, emit: Emit
) -> list[AdapterFiles[ImagePrompt]]:
    """The files of a job's IP-Adapters, each with its `image_encoder` as a part, in their order.

    All are looked at before the first is fetched. Raises IncompatibleAdapter, UnsupportedModel, SourceError …
    """
    found = _with_one_encoder([_look(prompt, job, fetcher, emit) for prompt in prompts])
    return [_provide(item, job, fetcher, emit) for item in found]


@dataclass(frozen=True, slots=True)
class _Found:
    """An adapter that suits the job: its file, and where its image encoder comes from."""

    prompt: ImagePrompt
    source: ModelSource
    detection: Detection
    encoder: ModelSource
    encoder_title: str


def _look(prompt: ImagePrompt, job: Job, fetcher: AdapterFetcher, emit: Emit) -> _Found:
    """Find the file that is meant, and refuse what does not suit the job; only a pickle is fetched for that."""
    spec = prompt.spec
    source, header, seen = _chosen(spec, job, fetcher)
    if header is None or seen is None:
        files, examined = _fetch(source, job, fetcher, emit)
        header, seen = examined.header, examined.detection
        if source.is_local and files.root.suffix == _WEIGHTS and source.filename is None:
            source = source.model_copy(update={"locator": str(files.root)})
    need = _need(spec, header, seen, job)
    encoder, title = _encoder(spec.model, source, need, job.call.detection.architecture, fetcher)
    return _Found(prompt, source, seen, encoder, title)


def _chosen(
    spec: IPAdapterSpec, job: Job, fetcher: AdapterFetcher
) -> tuple[ModelSource, TensorIndex | None, Detection | None]:
    """The one file of a reference: the only one, or the family's usual one. Raises UnsupportedModel listing several."""
    source = fetcher.source(spec.model, spec.weight_name, _FIELD)
    several: UnsupportedModel | None = None
    try:
        outline, seen = fetcher.look(source, _FIELD)
        if outline.header is not None:
            return source, outline.header, seen
    except UnsupportedModel as error:
        if not error.details or "files" not in error.details:
            raise
        several = error
    if source.filename is None and (source.is_repository or source.is_local):
        for name in usual_files(job.call.detection.architecture):
            # Of a folder that was named only its own files can be meant.
            inside = PurePosixPath(name).name if source.subfolder else name
            usual = source.model_copy(update={"filename": inside})
            try:
                outline, seen = fetcher.look(usual, _FIELD)
            except ModelNotFound:
                continue
            return usual, outline.header, seen
    if several is not None:
        listed = several.details.get("files") if several.details else None
        names = [str(name) for name in listed if "image_encoder" not in str(name)] if isinstance(listed, list) else []
        raise unclear_weights("several", names, spec.model, _FIELD)
    return source, None, None


def _need(spec: IPAdapterSpec, header: TensorIndex, seen: Detection, job: Job) -> Need:
    """Which encoder the adapter wants. Raises IncompatibleAdapter, UnsupportedModel for what cannot be applied."""
    layout = layout_of(header)
    check_kind(seen, spec)
    check_family(seen, spec, job.call)
    need = need_of(header, layout) if layout else None
    if layout is None or layout.refused or need is None:
        what = layout.refused if layout and layout.refused else "of a layout that diffusers does not read"
        raise UnsupportedModel(
            f"{_FIELD}: {spec.model} is {what}; use a plain, plus or full-face IP-Adapter of this model's family.",
            field=_FIELD,
        )
    return need


def encoder_source(source: ModelSource, fetcher: AdapterFetcher) -> ModelSource | None:
    """Where the image encoder of an IP-Adapter's file is; None for anything else. Raises UnsupportedModel for none."""
    outline, seen = fetcher.look(source, _FIELD)
    if outline.header is None or seen is None or seen.kind is not Kind.IP_ADAPTER:
        return None
    layout = layout_of(outline.header)
    need = need_of(outline.header, layout) if layout is not None else None
    return _encoder(source.reference, source, need, seen.architecture, fetcher)[0] if need is not None else None


def _encoder(
    name: str, source: ModelSource, need: Need, architecture: str | None, fetcher: AdapterFetcher
) -> tuple[ModelSource, str]:
    """Where the adapter's image encoder is: in its own repository, else where its authors published it."""
    usual = usual_encoder(need, architecture)
    title = usual.title if usual else f"an image encoder {need.width} wide"
    for place in _beside(source):
        try:
            outline, _ = fetcher.look(place, _FIELD)
        except (ModelNotFound, UnsafeFormat, UnsupportedModel):
            continue
        if need.met_by(outline.configs.get("config.json", {})):
            return place, title
    if usual is None:
        raise UnsupportedModel(
            f"{_FIELD}: {name} was trained on an image encoder whose {need.reads} are {need.width} wide, which "
            "is none of those known here, and none lies beside it; put it there in a folder image_encoder.",
            field=_FIELD,
            details={"reads": need.reads, "width": need.width},
        )
    return fetcher.resolver.part_source(usual.reference), usual.title


def _beside(source: ModelSource) -> list[ModelSource]:
    """The folders of the adapter's own repository in which an encoder may be."""
    root, name = source.locator, "/".join(filter(None, (source.subfolder, source.filename)))
    if source.is_local and not name:
        path = PurePosixPath(root)
        root, name = str(path.parent), path.name
    if not source.is_repository and not source.is_local:
        return []
    bare = {"locator": root, "filename": None, "sha256": None}
    return [source.model_copy(update={**bare, "subfolder": folder}) for folder in encoder_folders(name)]


def _with_one_encoder(found: list[_Found]) -> list[_Found]:
    """The adapters with one encoder for all: diffusers' pipelines have room for no more.

    Copies of a published encoder in several repositories are one. Raises IncompatibleAdapter where they differ.
    """
    published = {row.title for row in ENCODERS}
    first = next(iter(found), None)
    for item in found:
        copies = first is not None and item.encoder_title == first.encoder_title and item.encoder_title in published
        if first is not None and item.encoder.reference != first.encoder.reference and not copies:
            listed = "; ".join(f"{other.prompt.spec.model} wants {other.encoder_title}" for other in found)
            raise IncompatibleAdapter(
                f"{_FIELD}: adapters of one job must share one image encoder ({listed}); send them in jobs of their "
                "own.",
                field=_FIELD,
            )
    return [replace(item, encoder=first.encoder) for item in found] if first is not None else []


def _provide(found: _Found, job: Job, fetcher: AdapterFetcher, emit: Emit) -> AdapterFiles[ImagePrompt]:
    files, examined = _fetch(found.source, job, fetcher, emit)
    # What came may be other than what was looked at.
    _need(found.prompt.spec, examined.header, examined.detection, job)
    encoder = _fetch_encoder(found, job, fetcher, emit)
    both = replace(
        files,
        parts={"image_encoder": encoder.root},
        total_bytes=files.total_bytes + encoder.total_bytes,
        bytes_downloaded=files.bytes_downloaded + encoder.bytes_downloaded,
    )
    return AdapterFiles(found.prompt, both, examined.detection, examined.sha256)


def _fetch(source: ModelSource, job: Job, fetcher: AdapterFetcher, emit: Emit) -> tuple[ModelFiles, AdapterFile]:
    """The adapter's own file, of several the family's usual one."""
    usual = frozenset(PurePosixPath(name).name for name in usual_files(job.call.detection.architecture))
    return fetcher.fetch_file(source, _FIELD, examine_adapter, emit, job.stop, usual)


def _fetch_encoder(found: _Found, job: Job, fetcher: AdapterFetcher, emit: Emit) -> ModelFiles:
    """The encoder's folder. What goes wrong says why it was wanted: nobody has named its repository."""
    why = f"{_FIELD}: {found.prompt.spec.model} needs {found.encoder_title}, which comes from {found.encoder.reference}"
    with told(why, _FIELD):
        files = fetcher.fetch(found.encoder, _FIELD, emit, job.stop)
    if files.is_single_file:
        raise UnsupportedModel(f"{why}: that is a single file, and its config.json is needed too.", field=_FIELD)
    return files
