"""A job's input as every door reads it: any payload becomes an input that can be run."""

from worker.core.job_input import JobInput
from worker.service.usage.privacy import unforeseen
from worker.wire.request import decode_input, fingerprint


def read_input(payload: object) -> JobInput:
    """Read a job's `input`; raises nothing. An unreadable one fails when the job is run."""
    try:
        return decode_input(payload)
    except Exception as error:
        return JobInput(unforeseen(error, payload), fingerprint(payload))
