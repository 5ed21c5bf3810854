"""Files for a job: the model's, fetched where needed, and its adapters' beside them."""

import asyncio
from dataclasses import replace
from pathlib import Path

from worker.catalog.architectures import architecture
from worker.core.errors import UnsupportedModel
from worker.core.job import Batch, Job, StopSignal
from worker.core.model import Detection, Kind, ModelFiles, ModelSpec
from worker.core.result import Emit
from worker.service.adapters import AdapterProvisioner
from worker.service.resolving import ModelResolver
from worker.service.weights import count_parameters
from worker.store.store import Store

CONFIGS = Path(__file__).resolve().parent.parent / "catalog" / "configs"
_SINGLE_FILES = {Kind.CHECKPOINT, Kind.DENOISER}


class Provisioner:
    """Makes a Batch of an accepted job. Downloads run in threads and never in the engine's."""

    def __init__(self, store: Store, resolver: ModelResolver) -> None:
        self._store = store
        self._adapters = AdapterProvisioner(store, resolver)

    async def provide(self, job: Job, emit: Emit) -> Batch:
        """The job with all its files on disk. Raises SourceError, IncompatibleAdapter …"""
        return await asyncio.to_thread(self._provide, job, emit)

    def _provide(self, job: Job, emit: Emit) -> Batch:
        job.stop.check()
        # Adapters first: they are small, and a wrong one should not cost a model's download.
        adapters = tuple(self._adapters.provide(spec, job, emit) for spec in job.loras)
        spec, files = self.model_files(job.spec, job.detection, emit, job.stop)
        return Batch((replace(job, spec=spec),), files, adapters)

    def model_files(
        self, spec: ModelSpec, detection: Detection, emit: Emit, stop: StopSignal
    ) -> tuple[ModelSpec, ModelFiles]:
        """A model's files with the number of weights per component, and its spec with the config they need."""
        if detection.kind in _SINGLE_FILES and spec.config is None:
            spec = spec.model_copy(update={"config": str(CONFIGS / _bundled_config(spec, detection))})
        files = self._store.ensure(spec.source, spec.variant, emit, stop)
        return spec, replace(files, parameters=count_parameters(files.root))


def _bundled_config(spec: ModelSpec, detection: Detection) -> str:
    """The config folder that a single file of this family loads with. Raises UnsupportedModel before a download."""
    row = architecture(detection.architecture) if detection.architecture else None
    if row is not None and row.config is not None:
        return row.config
    family = row.title if row else "an unknown family"
    example = f" ({row.base_repo}, say)" if row and row.base_repo else ""
    raise UnsupportedModel(
        f"{spec.id} is a single file of {family}, and no config of that family is bundled; name the diffusers "
        f"repository that it was made from{example}, or set config in models.yaml.",
        field="model",
    )
