"""Textual inversions for a job: fetched, and checked to fit the model's text encoders, before the model is."""

import re
from collections.abc import Mapping, Sequence

from worker.catalog.call import ModelCall
from worker.catalog.interface.prompt_encoding import encoder_widths
from worker.core.adapter import Adapter, AdapterFiles, EmbeddingSpec
from worker.core.embedding import embedding_parts, own_token
from worker.core.errors import IncompatibleAdapter
from worker.core.job import Job
from worker.core.model import Detection, ModelFiles, ModelSource, TensorIndex
from worker.core.result import Emit
from worker.service.accepting.adapters.compatibility import check_family, check_kind
from worker.service.local.adapters.fetching import AdapterFetcher
from worker.service.local.weights import examine_adapter

_FIELD = "embeddings"
# What diffusers calls the one file of a repository of its own training script.
_USUAL_NAMES = frozenset({"learned_embeds.safetensors"})
_DIGEST = re.compile(r"[0-9a-f]{64}(\.\w+)?")


Embedding = Adapter[EmbeddingSpec]


def provide_embeddings(
    embeddings: Sequence[Embedding], job: Job, fetcher: AdapterFetcher, emit: Emit
) -> list[AdapterFiles[Embedding]]:
    """The files of all embeddings, each with the word that calls it up. Raises IncompatibleAdapter, SourceError …"""
    widths = encoder_widths(ModelCall.of(job.call).model, fetcher.configs(job.call.spec))
    provided = [_provide(embedding, job, widths, fetcher, emit) for embedding in embeddings]
    named: dict[str, str] = {}
    for item in provided:
        token = item.adapter.spec.token or ""
        if token.lower() in named:
            raise IncompatibleAdapter(
                f"embeddings: {named[token.lower()]} and {item.model} are both called {token}; "
                "give one of them another token.",
                field=_FIELD,
            )
        named[token.lower()] = item.model
    return provided


def _provide(
    embedding: Embedding, job: Job, widths: Mapping[str, int], fetcher: AdapterFetcher, emit: Emit
) -> AdapterFiles[Embedding]:
    spec = embedding.spec
    source = fetcher.source(spec.model, spec.weight_name, _FIELD)
    outline, seen = fetcher.look(source, _FIELD)
    if seen is not None and outline.header is not None:  # what is seen not to fit is not even fetched
        _check(seen, outline.header, spec, job, widths)
    files, file = fetcher.fetch_file(source, _FIELD, examine_adapter, emit, job.stop, _USUAL_NAMES)
    _check(file.detection, file.header, spec, job, widths)
    parts = embedding_parts(_shapes(file.header))
    token = spec.token or own_token(parts, file.header.metadata, _file_name(source, files))
    named = Adapter(spec.model_copy(update={"token": token}))
    return AdapterFiles(named, files, file.detection, file.sha256)


def _check(found: Detection, header: TensorIndex, spec: EmbeddingSpec, job: Job, widths: Mapping[str, int]) -> None:
    """Refuse what is no textual inversion, is for another family, or as wide as none of the model's encoders."""
    check_kind(found, spec)
    parts, shapes = embedding_parts(_shapes(header)), _shapes(header)
    if "*" in parts or not parts.keys() <= widths.keys():  # encoders that two families share are told by their names
        check_family(found, spec, job.call)
    for part, name in parts.items():
        own = set(widths.values()) if part == "*" else {widths[part]} if part in widths else set()
        if widths and shapes[name][-1] not in own:
            encoder = "" if part == "*" else f" for {part}"
            listed = " or ".join(map(str, sorted(own))) or "no such text encoder"
            raise IncompatibleAdapter(
                f"embeddings: {spec.model} has words of {shapes[name][-1]} numbers{encoder}, and {job.call.spec.id} "
                f"has {listed}; use one that was trained for this model's family.",
                field=_FIELD,
                details={"adapter": shapes[name][-1], "model": dict(widths)},
            )


def _shapes(header: TensorIndex) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, (_, shape) in header.tensors.items()}


def _file_name(source: ModelSource, files: ModelFiles) -> str:
    """The file's name as people see it: a converted pickle lies under its digest."""
    name = files.root.name
    if _DIGEST.fullmatch(name):
        name = (source.filename or source.locator.partition("?")[0]).rpartition("/")[2]
    return name
