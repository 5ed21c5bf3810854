"""Adapters of one file for a job: fetched, and checked to be of their kind and for the model's family, before it is."""

from typing import Any

from worker.core.adapter import Adapter, AdapterFiles
from worker.core.job import Job
from worker.core.model import AdapterSpec, Detection
from worker.core.result import Emit
from worker.service.accepting.adapters.compatibility import check_family, check_kind
from worker.service.local.adapters.fetching import AdapterFetcher
from worker.service.local.weights import examine_adapter


def provide_file(adapter: Adapter[Any], job: Job, fetcher: AdapterFetcher, emit: Emit) -> AdapterFiles[Adapter[Any]]:
    """The file of one adapter, of whatever kind. Raises IncompatibleAdapter, UnsafeFormat, SourceError …"""
    spec = adapter.spec
    source = fetcher.source(spec.model, spec.weight_name, spec.field)
    outline, seen = fetcher.look(source, spec.field)
    if seen is not None and outline.header is not None:
        _check(seen, spec, job)
    files, file = fetcher.fetch_file(source, spec.field, examine_adapter, emit, job.stop)
    _check(file.detection, spec, job)
    return AdapterFiles(adapter, files, file.detection, file.sha256)


def _check(found: Detection, spec: AdapterSpec, job: Job) -> None:
    check_kind(found, spec)
    check_family(found, spec, job.call)
