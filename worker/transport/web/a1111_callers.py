"""What AUTOMATIC1111's clients keep on a server: their settings and the jobs that run for them, each caller's own."""

from collections import OrderedDict
from dataclasses import dataclass, field

from fastapi import Request
from pydantic import JsonValue

from worker.service.jobs.record import JobRecord
from worker.transport.web.auth import caller_of

_MOST = 1_000
_Key = tuple[str | None, str]


@dataclass(slots=True)
class A1111Caller:
    """One caller's settings, by their names there, and their jobs under way, the oldest first."""

    options: dict[str, JsonValue] = field(default_factory=dict)
    records: list[JobRecord] = field(default_factory=list)


class A1111Callers:
    """All callers. One with a key is known by it; others by their address, which programs of one machine share."""

    def __init__(self) -> None:
        self._callers: OrderedDict[_Key, A1111Caller] = OrderedDict()

    def of(self, request: Request) -> A1111Caller:
        """Return what is kept of the sender of `request`. Of too many the one that was quiet longest is forgotten."""
        name = caller_of(request).name
        key = (name, "" if name or request.client is None else request.client.host)
        caller = self._callers.setdefault(key, A1111Caller())
        self._callers.move_to_end(key)
        if len(self._callers) > _MOST:
            self._callers.popitem(last=False)
        return caller
