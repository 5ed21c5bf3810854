"""A job's input as every door reads it: any payload becomes an input that can be run."""

import uuid
from dataclasses import replace

from worker.core.errors import InvalidRequest
from worker.core.job_input import JobInput
from worker.core.request import GenerationRequest
from worker.service.usage.privacy import unforeseen
from worker.wire.request import decode_input, fingerprint

_NO_STREAM = (
    "output.delivery stream needs a door with a stream, and this one has none; leave it out, use s3 or volume, or send "
    "the job to /v2/{endpoint}/run of the HTTP server or to a RunPod endpoint with STREAM_RESULTS=1."
)


def read_input(payload: object, *, streams: bool = False, comes_once: bool = False) -> JobInput:
    """Read a job's `input`; raises nothing. An unreadable one fails when the job is run.

    `streams` is True if this door has a stream that an answer can be read from in parts; `comes_once` if nobody can
    send the job again under its id, so that it need not be told from another.
    """
    try:
        job = decode_input(payload, uuid.uuid4().hex if comes_once else None)
        if streams or not isinstance(job.request, GenerationRequest) or job.request.output.delivery != "stream":
            return job
        return replace(job, request=InvalidRequest(_NO_STREAM, field="output"))
    except Exception as error:
        return JobInput(unforeseen(error, payload), fingerprint(payload))
