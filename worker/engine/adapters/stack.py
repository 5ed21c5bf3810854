"""Everything that a job puts beside its model, in one bracket: on the pipeline for the job, and off again after it."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from worker.core.job import Batch
from worker.core.model import Kind
from worker.core.result import AdapterReport, LoraReport
from worker.engine.adapters.controls import ControlCache
from worker.engine.adapters.embeddings import taught
from worker.engine.adapters.hypernetworks import HypernetworkCache
from worker.engine.adapters.image_prompts import ImagePromptCache
from worker.engine.adapters.lora import LoraCache
from worker.engine.adapters.offloading import Offloading
from worker.engine.adapters.vae import VaeCache
from worker.engine.pool import Resident

# Kept ready beside each pipeline: one IP-Adapter of SDXL is 0.7 GB, one of FLUX.1 a gigabyte, a VAE 0.2 GB.
_RESIDENT_IMAGE_PROMPTS = 2
_RESIDENT_VAES = 2


@dataclass(slots=True)
class Applied:
    """The pipeline to call, what its call gets for the adapters, and what they did."""

    pipe: Any
    arguments: Mapping[str, Any] = field(default_factory=dict)
    loras: tuple[LoraReport, ...] = ()
    adapters: tuple[AdapterReport, ...] = ()


class AdapterStack:
    """The adapters of all resident pipelines. Used from the engine's thread only."""

    def __init__(self, resident_loras: int) -> None:
        self._controls = ControlCache()
        self._loras = LoraCache(resident_loras)
        self._hypernetworks = HypernetworkCache(resident_loras)
        self._image_prompts = ImagePromptCache(_RESIDENT_IMAGE_PROMPTS)
        self._vaes = VaeCache(_RESIDENT_VAES)

    @contextmanager
    def applied(self, resident: Resident, batch: Batch) -> Iterator[Applied]:
        """Put the batch's adapters on its pipeline, and take them off whatever happens."""
        job = batch.jobs[0]
        with ExitStack() as stack:
            control = stack.enter_context(self._controls.applied(resident, batch))
            pipe, arguments = control.pipe, dict(control.arguments)
            loras = stack.enter_context(self._loras.applied(pipe, batch.loras, job.spec.id))
            words = stack.enter_context(taught(pipe, batch.embeddings))
            networks = stack.enter_context(self._hypernetworks.applied(pipe, batch.hypernetworks, job.spec.id))
            if batch.vae or batch.image_prompts:
                offloading = Offloading(pipe, resident)
                stack.enter_context(offloading.restored())
                stack.enter_context(self._vaes.applied(pipe, batch.vae, resident.plan, offloading, job.vae or ""))
                arguments |= stack.enter_context(
                    self._image_prompts.applied(pipe, job.image_prompts, batch.image_prompts, offloading, job.spec.id)
                )
                stack.enter_context(offloading.settled())
            yield Applied(pipe, arguments, loras, (*control.reports, *words, *networks, *_reports(batch)))

    @contextmanager
    def refining(self, resident: Resident, class_name: str, batch: Batch) -> Iterator[Any]:
        """The batch's refiner as `class_name`: it decodes, and so has the batch's VAE."""
        pipe = resident.as_class(class_name)
        if batch.vae is None:
            yield pipe
            return
        offloading, name = Offloading(pipe, resident), batch.jobs[0].vae or ""
        with (
            offloading.restored(),
            self._vaes.applied(pipe, batch.vae, resident.plan, offloading, name),
            offloading.settled(),
        ):
            yield pipe


def _reports(batch: Batch) -> tuple[AdapterReport, ...]:
    job = batch.jobs[0]
    prompts = tuple(
        AdapterReport(file.kind, prompt.spec.model, prompt.spec.scale, file.sha256)
        for file, prompt in zip(batch.image_prompts, job.image_prompts, strict=True)
    )
    return prompts + ((AdapterReport(Kind.VAE, job.vae, sha256=batch.vae.sha256),) if job.vae and batch.vae else ())
