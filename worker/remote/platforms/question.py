"""What a worker behind a gateway is asked for beside generations: an action that only it can answer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from pydantic import JsonValue

from worker.core.job import Job
from worker.core.turn import StopSignal
from worker.wire.sending import encode_request


@dataclass(frozen=True, slots=True)
class Question:
    """The input of an action, and the deadline of whoever asks. `id` is theirs."""

    id: str
    input: Mapping[str, JsonValue]
    stop: StopSignal


class Timed(Protocol):
    """What has an end: a job, or a question."""

    @property
    def stop(self) -> StopSignal:
        """Cancel and deadline."""
        ...


def input_of(asked: Job | Question) -> dict[str, JsonValue]:
    """Return what a worker is sent as the input of a job."""
    return dict(asked.input) if isinstance(asked, Question) else encode_request(asked)
