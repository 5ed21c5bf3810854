"""Request id and trace of a log line: taken from the caller or made, and written on every line."""

import logging
import re
import uuid
from contextvars import ContextVar

# Copied into every task and thread that is started for a request.
current: ContextVar[str] = ContextVar("request_id", default="-")
traceparent: ContextVar[str | None] = ContextVar("traceparent", default=None)

_SAFE = re.compile(r"[A-Za-z0-9._:-]{1,128}")
# W3C Trace Context: version, trace, the caller's span, flags; ids of zeros stand for none.
_TRACE = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def accept(sent: str | None) -> str:
    """Return the caller's own id if it is safe in logs and headers, else a new one."""
    return sent if sent is not None and _SAFE.fullmatch(sent) else uuid.uuid4().hex


def accept_trace(sent: object) -> str | None:
    """Return the caller's traceparent if it is valid, else None: a malformed one is no reason to refuse a job."""
    return sent if isinstance(sent, str) and _TRACE.fullmatch(sent) else None


class RequestIdFilter(logging.Filter):
    """Gives every record a `request_id`, and the caller's `trace_id` or None."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let the record pass, with the ids."""
        record.request_id = current.get()
        trace = traceparent.get()
        record.trace_id = trace.split("-")[1] if trace else None
        return True
