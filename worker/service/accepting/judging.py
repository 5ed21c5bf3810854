"""What the operator knows of models and combinations, held against a job before anything is fetched or loaded."""

import hashlib
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace

from worker.catalog.call import Model
from worker.catalog.compatibility_file import Fact, Matrix, Subject
from worker.core.device import DeviceInfo
from worker.core.errors import IncompatibleAdapter, UnsupportedModel
from worker.core.job import Job
from worker.core.model import ModelSpec
from worker.service.accepting.likeness import family_of, stem
from worker.service.accepting.resolving import ModelResolver

Device = Callable[[], Awaitable[DeviceInfo]]


class Judge:
    """Holds compatibility.yaml. `device` returns this worker's own, once and for all; None where there is none."""

    def __init__(self, matrix: Matrix, resolver: ModelResolver, device: Device | None = None) -> None:
        self._matrix, self._resolver, self._device = matrix, resolver, device
        self._info: DeviceInfo | None = None

    def replace_matrix(self, matrix: Matrix) -> None:
        """Judge by another file from now on."""
        self._matrix = matrix

    @property
    def mark(self) -> str:
        """A digest of the matrix: what was judged by another one has to be judged again."""
        return hashlib.sha256(repr(self._matrix).encode()).hexdigest()[:12]

    async def judged(self, job: Job) -> Job:
        """Return `job`, with a warning for each row that warns. Raises UnsupportedModel, IncompatibleAdapter."""
        if not self._matrix.rows:
            return job
        model = Model(job.call.spec, job.call.detection)
        beside = [(adapter.spec.field, adapter.spec.model) for adapter in job.adapters]
        subject = Subject(
            frozenset(_names(model.spec, model)), [frozenset(self._named(name)) for _, name in beside], job.params
        )
        facts = await self._facts(subject)
        for fact in facts:
            if fact.refuses:
                sentence = f"{model.spec.id} {fact.text}."
                if fact.beside and beside:
                    raise IncompatibleAdapter(sentence, field=beside[0][0])
                raise UnsupportedModel(sentence, field="model")
        warnings = [f"{model.spec.id} {fact.text}." for fact in facts if fact.state != "works"]
        return replace(job, warnings=(*job.warnings, *warnings)) if warnings else job

    async def known(self, model: Model) -> tuple[Fact, ...]:
        """Return what is known of a model by itself."""
        return await self._facts(Subject(frozenset(_names(model.spec, model)))) if self._matrix.rows else ()

    async def _facts(self, subject: Subject) -> tuple[Fact, ...]:
        if self._info is None and self._device is not None and self._matrix.asks_for_device(subject):
            self._info = await self._device()
        return self._matrix.facts(subject, self._info)

    def _named(self, reference: str) -> Iterator[str]:
        """Yield the names under which a row may speak of an adapter."""
        yield from (reference, stem(reference))
        if spec := self._resolver.registry.find(reference):
            yield from _names(spec)


def _names(spec: ModelSpec, model: Model | None = None) -> Iterator[str]:
    yield from (spec.id, *spec.aliases, spec.source.reference, stem(spec.source.reference))
    architecture = spec.architecture or (model.detection.architecture if model else None)
    yield from filter(None, (architecture, family_of(architecture)))
