"""Adapters of one file: fetched, and checked for their kind and family, before the model is."""

from typing import Any

from worker.core.adapter import Adapter, AdapterFiles
from worker.core.job import Job
from worker.core.model import AdapterSpec, Detection
from worker.core.result import Emit
from worker.service.accepting.adapters.compatibility import check_family, check_kind
from worker.service.local.adapters.fetching import AdapterFetcher
from worker.service.local.weights import examine_adapter


def provide_file(adapter: Adapter[Any], job: Job, fetcher: AdapterFetcher, emit: Emit) -> AdapterFiles[Adapter[Any]]:
    """Fetch the file of one adapter, of any kind. Raises IncompatibleAdapter, UnsafeFormat, SourceError …"""
    spec = adapter.spec
    source = fetcher.source(spec.model, spec.weight_name, spec.field)
    outline, peeked = fetcher.look(source, spec.field)
    if peeked is not None and outline.header is not None:
        _check(peeked, spec, job)
    files, file = fetcher.fetch_file(source, spec.field, examine_adapter, emit, job.stop)
    _check(file.detection, spec, job)
    return AdapterFiles(adapter, files, file.detection, file.sha256)


def _check(detection: Detection, spec: AdapterSpec, job: Job) -> None:
    check_kind(detection, spec)
    check_family(detection, spec, job.call)
