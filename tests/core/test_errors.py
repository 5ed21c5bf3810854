"""The tree of failures: codes that clients rely on, and a drawing of it that is true."""

import re

import pytest

from worker.core import errors
from worker.core.errors import InvalidRequest, WorkerError

CLASSES = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, WorkerError)]

# Clients switch on these: a code may be added, never renamed or made retryable behind their backs.
CODES = {
    "internal_error": False,
    "invalid_request": False,
    "unknown_parameter": False,
    "parameter_out_of_range": False,
    "invalid_image": False,
    "model_not_found": False,
    "unsupported_model": False,
    "unsafe_format": False,
    "incompatible_adapter": False,
    "access_denied": False,
    "source_error": True,
    "source_unavailable": True,
    "corrupt_file": True,
    "disk_full": False,
    "job_timeout": True,
    "job_cancelled": False,
    "result_too_large": False,
    "engine_failure": True,
    "gpu_oom": False,
    "load_failed": False,
    "invalid_output": False,
    "device_lost": True,
}


def test_codes_are_what_clients_know():
    found = {kind.code: kind.retryable for kind in CLASSES}
    assert len(found) == len(CLASSES), "two classes share a code"
    assert CODES.items() <= found.items()


def test_the_drawing_shows_every_class_below_its_parent():
    parents, drawn = [], {}
    for line in errors.__doc__.splitlines():
        match = re.match(r"([│├└ ]*)([A-Z]\w+)", line)
        if match is None or not (line[0] in "├│└ " or line == "WorkerError"):
            continue
        depth = len(match[1]) // 2
        parents[depth:] = [match[2]]
        drawn[match[2]] = parents[depth - 1] if depth else None
    assert drawn == {kind.__name__: None if kind is WorkerError else kind.__base__.__name__ for kind in CLASSES}


@pytest.mark.parametrize("kind", CLASSES)
def test_an_error_carries_what_the_door_tells(kind):
    error = kind("width is 5.", field="width", hint="Use 64.", details={"limit": 64})
    assert (error.message, error.field, error.hint, error.details) == ("width is 5.", "width", "Use 64.", {"limit": 64})
    assert str(error) == "width is 5."
    assert kind("x").details == {}


@pytest.mark.parametrize("kind", [kind for kind in CLASSES if issubclass(kind, InvalidRequest)])
def test_what_is_the_requests_fault_is_not_worth_sending_again(kind):
    assert not kind.retryable
