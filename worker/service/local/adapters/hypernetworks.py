"""Hypernetworks for a job: fetched, and checked to be for its model's family, before the model is."""

from worker.core.adapter import Adapter, AdapterFiles, HypernetworkSpec
from worker.core.job import Job
from worker.core.model import Detection, Kind
from worker.core.result import Emit
from worker.service.accepting.adapters.compatibility import check_family, check_kind
from worker.service.local.adapters.fetching import AdapterFetcher
from worker.service.local.weights import examine_adapter

_FIELD, _WHAT = "hypernetworks", "hypernetwork"


Hypernetwork = Adapter[HypernetworkSpec]


def provide_hypernetwork(
    hypernetwork: Hypernetwork, job: Job, fetcher: AdapterFetcher, emit: Emit
) -> AdapterFiles[Hypernetwork]:
    """The file of one hypernetwork. Raises IncompatibleAdapter, UnsafeFormat, SourceError …"""
    spec = hypernetwork.spec
    source = fetcher.source(spec.model, spec.weight_name, _FIELD)
    outline, seen = fetcher.look(source, _FIELD)
    if seen is not None and outline.header is not None:
        _check(seen, spec, job)
    files, file = fetcher.fetch_file(source, _FIELD, examine_adapter, emit, job.stop)
    _check(file.detection, spec, job)
    return AdapterFiles(hypernetwork, files, file.detection, file.sha256)


def _check(found: Detection, spec: HypernetworkSpec, job: Job) -> None:
    check_kind(found, (Kind.HYPERNETWORK,), spec.model, _FIELD, _WHAT)
    check_family(found, job.call.detection.architecture, job.call.spec.id, spec.model, _FIELD, _WHAT)
