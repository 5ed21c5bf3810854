"""The files of a job: the model's, fetched if needed, those that complete them, and its adapters'."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from worker.core.call import KnownModel
from worker.core.errors import UnsafeFormat, UnsupportedModel, WorkerError
from worker.core.finishing import FinishingFiles
from worker.core.job import Batch, Job
from worker.core.model import DENOISERS, PICKLES, Kind, ModelFiles, ModelSource, ModelSpec, Outline
from worker.core.precision import DTYPES
from worker.core.result import Emit
from worker.core.turn import StopSignal
from worker.service.accepting.adapters.compatibility import blamed_on
from worker.service.accepting.resolving import ModelResolver
from worker.service.local.adapters.fetching import AdapterFetcher, explained
from worker.service.local.adapters.image_prompts import encoder_source
from worker.service.local.adapters.providers import provide_adapters
from worker.service.local.completing import SINGLE_FILES, Completion, completion
from worker.service.local.vouching import Vouching
from worker.service.local.weights import identity, weigh
from worker.store.reduced import ReducedWeights
from worker.store.store import Store


def refuse_pickles(root: Path) -> Path:
    """Return `root` unless it is a pickle. Raises UnsafeFormat, naming the operator's switch."""
    if root.suffix.lower() in PICKLES:
        raise UnsafeFormat(
            f"{root.name[:80]} is a pickle, which can run code when read; use a safetensors file, or let the operator "
            "set ALLOW_PICKLES=true to have pickles of plain tensors converted.",
            field="model",
        )
    return root


_MEMORY = 1_024  # models that are remembered as provided


class Provisioner:
    """Makes a Batch of an accepted job. Downloads run in threads and never in the engine's.

    `without_pickles` turns a file or folder into one that holds no pickle, or refuses it; `vouching` has foreign ones
    tried.
    """

    def __init__(
        self,
        store: Store,
        resolver: ModelResolver,
        without_pickles: Callable[[Path], Path] = refuse_pickles,
        safety_checker: str | None = None,
        vouching: Vouching | None = None,
        reduced: ReducedWeights | None = None,
    ) -> None:
        self._store = store
        self._resolver = resolver
        self._without_pickles = without_pickles
        self._safety_checker = safety_checker  # the operator's reference, not checked against the callers' rules
        self._vouching = vouching or Vouching()
        self._reduced = reduced
        self._provided: set[tuple[str, ModelSource, str | None]] = set()
        self._adapters = AdapterFetcher(store, resolver, without_pickles, self._vouching)

    def peek(self, source: ModelSource, variant: str | None) -> Outline:
        """Return a source's own description, without its weights. Blocking."""
        return self._store.peek(source, variant)

    def licence(self, source: ModelSource, variant: str | None) -> str | None:
        """Return what a source's page says of its licence. Blocking. Raises WorkerError where it cannot be asked."""
        return self._store.licence(source, variant)

    def is_at_hand(self, job: Job) -> bool:
        """True if a job needs no more than models whose files were provided before."""
        return not job.adapters and self.has_models(job)

    def has_models(self, job: Job) -> bool:
        """True if the files of all models of a job were provided before."""
        return all(_key(spec) in self._provided for spec in _specs(job))

    def provide(self, job: Job, emit: Emit) -> Batch:
        """Return the job with all its files on disk. Blocking. Raises SourceError, IncompatibleAdapter …"""
        batch = self._provide(job, emit)
        for spec in _specs(job):
            if spec.source.is_repository or spec.source.is_local:  # a link may lead to another file at any time
                if len(self._provided) >= _MEMORY:
                    self._provided.clear()
                self._provided.add(_key(spec))
        return batch

    def _provide(self, job: Job, emit: Emit) -> Batch:
        job.stop.check()
        # Adapters first: they are small, and a wrong one should not cost a model's download.
        adapters = provide_adapters(job, self._adapters, emit)
        finishing = self._finishing(job, emit)
        files = self.model_files(job.call, emit, job.stop)
        return Batch((job,), files, adapters, finishing)

    def _finishing(self, job: Job, emit: Emit) -> FinishingFiles:
        """Return the files of safety checker, refiner and upscaler."""
        refiner, upscaler, finishing = job.finishing.refiner, job.finishing.upscaler, FinishingFiles()
        if self._safety_checker is not None:
            with blamed_on("SAFETY_CHECKER"), explained("SAFETY_CHECKER, without which this worker answers no images"):
                files = self._store.ensure(self._resolver.part_source(self._safety_checker), None, emit, job.stop)
                finishing = replace(finishing, safety_checker=replace(files, root=self._plain(files.root)))
        if upscaler is not None:
            with blamed_on("upscale"):
                finishing = replace(finishing, upscaler=self.model_files(upscaler.model, emit, job.stop))
        if refiner is not None:
            with blamed_on("refiner"):
                finishing = replace(finishing, refiner=self.model_files(refiner.call, emit, job.stop))
        return finishing

    def model_files(self, model: KnownModel, emit: Emit, stop: StopSignal) -> ModelFiles:
        """Return a model's files with the number of weights per component, and the config that they need.

        Small parts come first: a part that cannot be fetched should not cost the download of the rest.
        Raises SourceError, UnsupportedModel, UnsafeFormat …
        """
        spec, completing = model.spec, _completing(model)
        parts = {name: self._part(spec, name, source, emit, stop) for name, source in self._part_sources(spec).items()}
        base = self._base(spec, completing, emit, stop) if completing and completing.base else None
        files = self._store.ensure(spec.source, spec.variant, emit, stop)
        if files.is_single_file and completing is None and model.detection.kind is not Kind.UPSCALER:
            raise UnsupportedModel(
                f"{spec.id} is declared as a repository is, and is the single file {files.root.name[:80]}; "
                "name that file in its source in models.yaml, after a #.",
                field="model",
            )
        files = replace(
            files,
            root=self._plain(files.root),
            base=base.root if base else None,
            parts={name: part.root for name, part in parts.items()},
            config=completing.config if completing else None,
            total_bytes=files.total_bytes + sum(other.total_bytes for other in [base, *parts.values()] if other),
            bytes_downloaded=sum(other.bytes_downloaded for other in [files, base, *parts.values()] if other),
        )
        self._vouching.check(spec.source, files, spec.id, stop, upscales=model.detection.kind is Kind.UPSCALER)
        needed = completing.missing if completing and completing.config else None
        files = weigh(files, needed)
        if self._reduced is None or spec.precision is None or spec.precision in DTYPES:
            return files
        return replace(files, reduced=self._reduced.find(identity(spec, files)))

    def sources(self, model: KnownModel) -> list[tuple[ModelSource, str | None]]:
        """Return a model's sources, itself first, each with its variant; of other repositories only the parts it takes.

        Blocking. Raises UnsupportedModel if nothing completes it.
        """
        spec, completing = model.spec, _completing(model)
        others = [*self._part_sources(spec).values()]
        if completing and completing.base:
            others.append(self._base_source(completing.base, completing))
        return [(spec.source, spec.variant), *((source, None) for source in others)]

    def adapter_sources(self, spec: ModelSpec) -> list[tuple[ModelSource, str | None]]:
        """Return an adapter's sources, itself first: an IP-Adapter has its image encoder. Blocking."""
        encoder = None
        with suppress(WorkerError):  # an adapter that cannot be peeked at now counts as alone
            encoder = encoder_source(spec.source, self._adapters)
        return [(spec.source, spec.variant), *([(encoder, None)] if encoder is not None else [])]

    def _part_sources(self, spec: ModelSpec) -> dict[str, ModelSource]:
        """Return the sources that the registry names for single components, by component."""
        references = {**spec.components, **({"vae": spec.vae} if spec.vae else {})}
        return {name: _only(self._resolver.part_source(reference), (name,)) for name, reference in references.items()}

    def _part(self, spec: ModelSpec, name: str, source: ModelSource, emit: Emit, stop: StopSignal) -> ModelFiles:
        with explained(f"{spec.id} takes its {name} from elsewhere"):
            files = self._store.ensure(source, None, emit, stop)
        return replace(files, root=self._plain(files.root))

    def _base(self, spec: ModelSpec, completing: Completion, emit: Emit, stop: StopSignal) -> ModelFiles:
        reference = completing.base or ""
        missing = ", ".join(completing.missing) or "other parts"
        with explained(f"{spec.id} is a single file without its {missing}, which come from {reference}"):
            files = self._store.ensure(self._base_source(reference, completing), None, emit, stop)
        if files.is_single_file:
            raise UnsupportedModel(f"base: {reference} is a single file; name a diffusers repository.", field="model")
        return replace(files, root=self._plain(files.root))

    def _plain(self, root: Path) -> Path:
        with self._store.harmless(root):
            return self._without_pickles(root)

    def _base_source(self, reference: str, completing: Completion) -> ModelSource:
        source = self._resolver.part_source(reference)
        if completing.missing:
            return _only(source, completing.missing)
        # All but the denoiser, which is the largest part and which the single file has itself.
        return source.model_copy(update={"without": DENOISERS}) if _is_whole(source) else source


def _key(spec: ModelSpec) -> tuple[str, ModelSource, str | None]:
    return spec.served_name, spec.source, spec.variant


def _specs(job: Job) -> list[ModelSpec]:
    """List the models that a job takes, the one that generates first."""
    refiner, upscaler = job.finishing.refiner, job.finishing.upscaler
    others = [*([refiner.call.spec] if refiner else []), *([upscaler.model.spec] if upscaler else [])]
    return [job.call.spec, *others]


def _completing(model: KnownModel) -> Completion | None:
    return completion(model) if model.detection.kind in SINGLE_FILES else None


def _only(source: ModelSource, components: tuple[str, ...]) -> ModelSource:
    """Narrow a whole repository to these components. A source that names a file or folder stays."""
    return source.model_copy(update={"only": components, "without": ()}) if _is_whole(source) else source


def _is_whole(source: ModelSource) -> bool:
    return source.is_repository and source.filename is None and source.subfolder is None
