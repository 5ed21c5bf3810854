"""Textual inversions for a job: fetched, and checked against the model's text encoders, before the model is."""

import re
from collections.abc import Mapping, Sequence

from worker.catalog.call import ModelCall
from worker.catalog.interface.prompt_encoding import encoder_widths
from worker.core.adapter import Adapter, AdapterFiles, EmbeddingSpec
from worker.core.embedding import embedding_parts, embedding_tensors, own_token, own_words
from worker.core.errors import IncompatibleAdapter
from worker.core.job import Job
from worker.core.model import ModelFiles, ModelSource, TensorIndex
from worker.core.result import Emit
from worker.service.accepting.adapters.compatibility import Inspected
from worker.service.local.adapters.fetching import AdapterFetcher
from worker.service.local.weights import examine_adapter

_FIELD = "embeddings"
# The file name that diffusers' own training script writes.
_USUAL_NAMES = frozenset({"learned_embeds.safetensors"})
_DIGEST = re.compile(r"[0-9a-f]{64}(\.\w+)?")


Embedding = Adapter[EmbeddingSpec]


def provide_embeddings(
    embeddings: Sequence[Embedding], job: Job, fetcher: AdapterFetcher, emit: Emit
) -> list[AdapterFiles[Embedding]]:
    """Fetch all embeddings, each with its token. Raises IncompatibleAdapter, SourceError …"""
    widths = encoder_widths(ModelCall.of(job.call).model, fetcher.configs(job.call.spec))
    provided = [_provide(embedding, job, widths, fetcher, emit) for embedding in embeddings]
    # One word in several files is one word, where each brings the vectors of another encoder.
    owners: dict[tuple[str, str | int], list[str]] = {}
    for item in provided:
        for token, encoder in _taught(item):
            models = owners.setdefault((token.lower(), encoder), [])
            room = sum(width == encoder for width in widths.values())  # encoders of one width take a file each
            if len(models) >= max(1, room):
                raise IncompatibleAdapter(
                    f"embeddings: {models[0]} and {item.model} are both called {token}; "
                    "give one of them another token.",
                    field=_FIELD,
                )
            models.append(item.model)
    return provided


def _taught(item: AdapterFiles[Embedding]) -> set[tuple[str, str | int]]:
    """Return a file's words, each with its encoder: the part, or the width where only that tells."""
    shapes = _shapes(examine_adapter(item.files.root).header)
    tokens = [item.adapter.spec.token] if item.adapter.spec.token else [*own_words(shapes)]
    encoders = {part if part != "*" else shapes[name][-1] for part, name in embedding_tensors(shapes)}
    return {(token, encoder) for token in tokens for encoder in encoders}


def _provide(
    embedding: Embedding, job: Job, widths: Mapping[str, int], fetcher: AdapterFetcher, emit: Emit
) -> AdapterFiles[Embedding]:
    spec = embedding.spec
    source = fetcher.source(spec.model, spec.weight_name, _FIELD)
    outline, peeked = fetcher.look(source, _FIELD)
    if peeked is not None and outline.header is not None:  # a file that cannot fit is not even fetched
        _check(Inspected(spec, peeked), outline.header, job, widths)
    files, file = fetcher.fetch_file(source, _FIELD, examine_adapter, emit, job.stop, _USUAL_NAMES)
    _check(Inspected(spec, file.detection), file.header, job, widths)
    shapes = _shapes(file.header)
    words, parts = own_words(shapes), embedding_parts(shapes)
    if words and spec.token and not parts:
        raise IncompatibleAdapter(
            f"embeddings: {spec.model} brings the words {', '.join(words)[:200]}; leave token out.", field=_FIELD
        )
    token = spec.token or (None if words else own_token(parts, file.header.metadata, _file_name(source, files)))
    adapter = Adapter(spec.model_copy(update={"token": token}))
    return AdapterFiles(adapter, files, file.detection, file.sha256)


def _check(inspected: Inspected[EmbeddingSpec], header: TensorIndex, job: Job, widths: Mapping[str, int]) -> None:
    """Refuse a file that is no textual inversion, is for another family, or has the width of no encoder."""
    inspected.check_kind()
    shapes = _shapes(header)
    tensors = embedding_tensors(shapes)
    parts = {part for part, _ in tensors}
    if "*" in parts or not parts <= widths.keys():  # encoders that two families share are told by their names
        inspected.check_family(job.call)
    for part, name in tensors:
        allowed = set(widths.values()) if part == "*" else {widths[part]} if part in widths else set()
        if widths and shapes[name][-1] not in allowed:
            encoder = "" if part == "*" else f" for {part}"
            listed = " or ".join(map(str, sorted(allowed))) or "no such text encoder"
            raise IncompatibleAdapter(
                f"embeddings: {inspected.spec.model} has words of {shapes[name][-1]} numbers{encoder}, and "
                f"{job.call.spec.id} has {listed}; use one that was trained for this model's family.",
                field=_FIELD,
                details={"adapter": shapes[name][-1], "model": dict(widths)},
            )


def _shapes(header: TensorIndex) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, (_, shape) in header.tensors.items()}


def _file_name(source: ModelSource, files: ModelFiles) -> str:
    """Return the file's name as people see it: a converted pickle lies under its digest."""
    name = files.root.name
    if _DIGEST.fullmatch(name):
        name = (source.filename or source.locator.partition("?")[0]).rpartition("/")[2]
    return name
