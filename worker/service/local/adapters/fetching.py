"""Fetching of adapters: named by the caller, peeked at before the fetch, and never a pickle that runs."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from worker.catalog.detector import detect
from worker.core.errors import (
    AccessDenied,
    ModelNotFound,
    SourceError,
    UnsafeFormat,
    UnsupportedModel,
    WorkerError,
)
from worker.core.model import Detection, ModelFiles, ModelSource, ModelSpec, Outline, safetensors_files
from worker.core.result import Emit
from worker.core.turn import StopSignal
from worker.service.accepting.adapters.compatibility import blamed_on
from worker.service.accepting.resolving import ModelResolver
from worker.service.local.vouching import Vouching
from worker.store.store import Store

T = TypeVar("T")
_MAX_NAMES = 20


class AdapterFetcher:
    """Peeks at and fetches adapters of all kinds. Blocking."""

    def __init__(
        self, store: Store, resolver: ModelResolver, without_pickles: Callable[[Path], Path], vouching: Vouching
    ) -> None:
        self.store = store
        self.resolver = resolver
        self._without_pickles = without_pickles
        self._vouching = vouching

    def source(self, reference: str, weight_name: str | None, field: str) -> ModelSource:
        """Return an adapter's source, if the operator lets callers name it. Raises ModelNotFound, InvalidRequest …"""
        with blamed_on(field):
            return self.resolver.adapter_source(reference, weight_name, field)

    def configs(self, model: ModelSpec) -> Mapping[str, Mapping[str, object]]:
        """Return the JSON files of a model that is a repository; {} for a single file, or if they are out of reach."""
        with suppress(WorkerError):
            return self.store.peek(model.source, model.variant).configs
        return {}

    def look(self, source: ModelSource, field: str) -> tuple[Outline, Detection | None]:
        """Peek at an adapter before it is fetched: its outline, and its detection or None without a header.

        Unlike `ModelResolver.look_at_adapter` this ignores a pipeline's model_index.json: a VAE may be taken out of a
        pipeline that could not be run itself.
        """
        with blamed_on(field):
            outline = self.store.peek(source)
            readable = outline.header is not None or "config.json" in outline.configs
            return outline, detect(outline) if readable else None

    def fetch(self, source: ModelSource, field: str, emit: Emit, stop: StopSignal) -> ModelFiles:
        """Fetch an adapter's files, with pickles made harmless or refused, and what is foreign tried."""
        with blamed_on(field):
            files = self._harmless(self.store.ensure(source, None, emit, stop))
            self._vouching.check(source, files, source.locator.rpartition("/")[2][:80], stop)
            return files

    def fetch_file(
        self,
        source: ModelSource,
        field: str,
        examine: Callable[[Path, str | None], T],
        emit: Emit,
        stop: StopSignal,
        usual_names: frozenset[str] = frozenset(),
    ) -> tuple[ModelFiles, T]:
        """Fetch an adapter's one weight file, and return it with the result of `examine`.

        Of a folder it is the file that has one of `usual_names`, or the only one. The file may differ from the peek.
        """
        with blamed_on(field):
            files = self.store.ensure(source, None, emit, stop)
            if not files.is_single_file:
                only = only_weights(files.root, usual_names, source.reference, field)
                files = replace(files, root=only, sha256=None)
            harmless = self._harmless(files)
            # A pickle was written anew; of any other file the store has held the content against this digest.
            return harmless, examine(harmless.root, files.sha256 if harmless.root == files.root else None)

    def _harmless(self, files: ModelFiles) -> ModelFiles:
        with self.store.harmless(files.root):
            return replace(files, root=self._without_pickles(files.root))


@contextmanager
def explained(reason: str, field: str = "model") -> Iterator[None]:
    """Prefix a failure with `reason`: its own message names a repository that the caller did not send."""
    try:
        yield
    except (AccessDenied, ModelNotFound, SourceError, UnsafeFormat) as error:
        raise type(error)(f"{reason}: {error.message}", field=field, hint=error.hint, details=error.details) from None


def only_weights(folder: Path, usual_names: frozenset[str], name: str, field: str) -> Path:
    """Return the one weight file of a folder that can be meant. Raises UnsupportedModel, listing them, for several."""
    paths = safetensors_files(folder)
    usual = [path for path in paths if path.name in usual_names]
    if len(usual) == 1 or len(paths) == 1:
        return (usual or paths)[0]
    raise unclear_weights(str(len(paths)), [path.name for path in paths], name, field)


def unclear_weights(count: str, names: Sequence[str], name: str, field: str) -> UnsupportedModel:
    """Return the error for an adapter `name` of `count` weight files, of which any may be meant."""
    shown_names = names[:_MAX_NAMES]
    listed = f" ({', '.join(shown_names)}{', …' if len(names) > len(shown_names) else ''})" if names else ""
    return UnsupportedModel(
        f"{field}: {name} holds {count} weight files{listed}; name one with weight_name.",
        field=field,
        details={"files": [*shown_names]},
    )
