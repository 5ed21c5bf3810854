"""THE TABLE of providers of adapters' files: one row per kind, in the order in which they are fetched."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from worker.core.adapter import Adapter, AdapterFiles
from worker.core.job import Job
from worker.core.result import Emit
from worker.service.local.adapters.controls import provide_control
from worker.service.local.adapters.embeddings import provide_embeddings
from worker.service.local.adapters.fetching import AdapterFetcher
from worker.service.local.adapters.image_prompts import provide_image_prompts
from worker.service.local.adapters.loras import provide_lora
from worker.service.local.adapters.plain import provide_file
from worker.service.local.adapters.vae import provide_vae

# Fetches and checks a job's adapters of one kind, before the model is fetched. Raises WorkerError, naming the field.
Provide = Callable[[Sequence[Any], Job, AdapterFetcher, Emit], Sequence[AdapterFiles[Any]]]


def each(provide: Callable[[Any, Job, AdapterFetcher, Emit], AdapterFiles[Any]]) -> Provide:
    """Apply `provide` to every adapter of a kind whose adapters do not depend on one another."""
    return lambda adapters, job, fetcher, emit: [provide(adapter, job, fetcher, emit) for adapter in adapters]


# The request's field -> the provider of its adapters.
PROVIDERS: Mapping[str, Provide] = {
    "loras": each(provide_lora),
    "controlnets": each(provide_control),
    "ip_adapters": provide_image_prompts,
    "embeddings": provide_embeddings,
    "hypernetworks": each(provide_file),
    "vae": each(provide_vae),
}


def provide_adapters(job: Job, fetcher: AdapterFetcher, emit: Emit) -> tuple[AdapterFiles[Any], ...]:
    """Fetch all adapters of `job`. Raises IncompatibleAdapter, UnsupportedModel, SourceError …"""
    provided: list[AdapterFiles[Any]] = []
    for field, provide in PROVIDERS.items():
        adapters: list[Adapter[Any]] = [item for item in job.adapters if item.spec.field == field]
        provided += provide(adapters, job, fetcher, emit) if adapters else ()
    return tuple(provided)
