"""The formats of log lines: for people or for programs, each with its request's id, none with private content."""

import json
import logging
import re
from collections.abc import Iterable
from datetime import UTC, datetime

from worker.service.usage.privacy import keep_always, redact
from worker.service.usage.request_id import RequestIdFilter

TEXT = "%(levelname)s %(name)s [%(request_id)s]: %(message)s"
# The libraries' own chatter hides the lines that matter, and some of it names files and URLs.
QUIET = ("httpx", "httpx2", "urllib3", "botocore", "huggingface_hub", "diffusers", "transformers")


# What a terminal obeys and does not show; the marks of bidirectional text too.
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_BELOW = "\n    | "


class TextFormatter(logging.Formatter):
    """Lines for people. What is below a record's first line is indented: no text that it quotes can pose as a line."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, and the traceback below it if there is one."""
        return _as_one(redact(super().format(record)))


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, request_id, message; trace_id and exception where there are any."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "request_id": getattr(record, "request_id", "-"),
            "message": redact(record.getMessage()),
        }
        if trace := getattr(record, "trace_id", None):
            line["trace_id"] = trace
        if record.exc_info:
            line["exception"] = redact(self.formatException(record.exc_info))
        return json.dumps(line)


def _as_one(text: str) -> str:
    """Return a record's text with nothing at the margin but its beginning. Job ids and the like are callers' words."""
    if text.isprintable():
        return text
    return _BELOW.join(_CONTROL.sub(lambda found: repr(found[0])[1:-1], line) for line in text.splitlines())


class WithoutQuery(logging.Filter):
    """Takes the query off the address in uvicorn's line on a WebSocket: a token stands there."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the line, and let it pass."""
        if "WebSocket" in str(record.msg) and isinstance(record.args, tuple):
            record.args = tuple(arg.partition("?")[0] if isinstance(arg, str) else arg for arg in record.args)
        return True


WITHOUT_QUERY = WithoutQuery()


def configure_logging(*, as_json: bool, secrets: Iterable[str]) -> None:
    """Set the root logger up; `secrets` will be in no line."""
    keep_always(secrets)
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if as_json else TextFormatter(TEXT))
    handler.addFilter(RequestIdFilter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.ERROR)
