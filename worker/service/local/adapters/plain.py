"""Adapters of one file: fetched, and checked for their kind and family, before the model is."""

from typing import Any

from worker.core.adapter import Adapter, AdapterFiles
from worker.core.job import Job
from worker.core.model import AdapterSpec
from worker.core.result import Emit
from worker.service.accepting.adapters.compatibility import Inspected
from worker.service.local.adapters.fetching import AdapterFetcher
from worker.service.local.weights import examine_adapter


def provide_file(adapter: Adapter[Any], job: Job, fetcher: AdapterFetcher, emit: Emit) -> AdapterFiles[Adapter[Any]]:
    """Fetch the file of one adapter, of any kind. Raises IncompatibleAdapter, UnsafeFormat, SourceError …"""
    spec = adapter.spec
    source = fetcher.source(spec.model, spec.weight_name, spec.field)
    outline, peeked = fetcher.look(source, spec.field)
    if peeked is not None and outline.header is not None:
        _check(Inspected(spec, peeked), job)
    files, file = fetcher.fetch_file(source, spec.field, examine_adapter, emit, job.stop)
    _check(Inspected(spec, file.detection), job)
    return AdapterFiles(adapter, files, file.detection, file.sha256)


def _check(inspected: Inspected[AdapterSpec], job: Job) -> None:
    inspected.check_kind()
    inspected.check_family(job.call)
