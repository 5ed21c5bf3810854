"""The files of a job's ControlNets and T2I-Adapters."""

from dataclasses import replace
from pathlib import Path

from worker.catalog.call import ModelCall
from worker.catalog.detector import detect_header
from worker.catalog.detectors.controlnets import CONTROL_LORA, unfolded_bytes
from worker.catalog.formats.headers import read_header
from worker.catalog.interface.controls import controlled_rows
from worker.core.adapter import AdapterFiles, Control
from worker.core.errors import IncompatibleAdapter
from worker.core.job import Job
from worker.core.model import Detection, Kind, ModelFiles, safetensors_files
from worker.core.result import Emit
from worker.service.accepting.adapters.compatibility import Inspected
from worker.service.accepting.adapters.controls import check_control
from worker.service.local.adapters.fetching import AdapterFetcher, only_weights
from worker.service.local.weights import file_sha256

_FIELD = "controlnets"


def provide_control(control: Control, job: Job, fetcher: AdapterFetcher, emit: Emit) -> AdapterFiles[Control]:
    """Fetch the file or folder of one control. Raises IncompatibleAdapter, UnsupportedModel, SourceError …"""
    spec = control.spec
    source = fetcher.source(spec.model, spec.weight_name, _FIELD)
    _, peeked = fetcher.look(source, _FIELD)
    files = fetcher.fetch(source, _FIELD, emit, job.stop)
    if files.root.is_dir() and not (files.root / "config.json").is_file():
        files = replace(files, root=only_weights(files.root, frozenset(), spec.model, _FIELD))
    detection = _detection_of(files.root, peeked)
    plain_call = ModelCall.of(job.call).model.call(job.call.task)
    check_control(Inspected(spec, detection), plain_call)
    rows = [row for row in controlled_rows(plain_call) if row.pipeline == job.call.pipeline]
    if not any(row.takes(detection) for row in rows):
        raise IncompatibleAdapter(
            f"{_FIELD}: {spec.model} turned out to be a {detection.component_class}, which {job.call.pipeline} does "
            "not read; name a safetensors file or a diffusers repository, whose kind is known before it is fetched.",
            field=_FIELD,
        )
    # A control LoRA needs as much memory as the ControlNet that it stands for.
    resident_bytes = unfolded_bytes(read_header(files.root)) if detection.variant == CONTROL_LORA else files.total_bytes
    return AdapterFiles(control, files, detection, _sha256(files), resident_bytes)


def _detection_of(root: Path, peeked: Detection | None) -> Detection:
    """Detect the fetched files, unless a peek did: a converted pickle shows only now what it is."""
    if peeked is not None:
        return peeked
    if root.is_file():
        return detect_header(read_header(root), root.name)
    return Detection(Kind.UNKNOWN, "unknown")


def _sha256(files: ModelFiles) -> str | None:
    """Return the digest of the one weight file; None if there are several."""
    if files.root.is_file():
        return files.sha256 or file_sha256(files.root)
    weights = safetensors_files(files.root)
    return file_sha256(weights[0]) if len(weights) == 1 else None
