"""A job's input as every door reads it: what was handed in, whatever it is, becomes something that can be run."""

from worker.core.job_input import JobInput
from worker.service.usage.privacy import unforeseen
from worker.wire.request import decode_input, fingerprint


def read_input(payload: object) -> JobInput:
    """Read a job's `input`; raises nothing. What cannot be read fails when the job is run."""
    try:
        return decode_input(payload)
    except Exception as error:
        return JobInput(unforeseen(error, payload), fingerprint(payload))
