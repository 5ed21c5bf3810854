"""Records of the fake platform: one for each job, and one for each body that a worker posted."""

import time
from dataclasses import dataclass, field
from typing import Any

FINAL = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"})


@dataclass(frozen=True)
class Post:
    """One body a worker posted for a job."""

    body: dict[str, Any]
    raw: bytes
    at: float
    worker_id: str
    http_status: int = 200


@dataclass
class JobRecord:
    """Everything the platform knows of one job; times are seconds of ``time.monotonic``."""

    id: str
    job: dict[str, Any]
    status: str = "IN_QUEUE"
    output: Any = None
    error: Any = None
    stop_pod: bool = False
    raw: bytes = b""
    """The accepted result as it came over the wire."""
    worker_id: str | None = None
    submitted_at: float = field(default_factory=time.monotonic)
    taken_at: float | None = None
    done_at: float | None = None
    deliveries: int = 0
    """How many times a worker was handed this job."""
    progress: list[Post] = field(default_factory=list)
    late_progress: list[Post] = field(default_factory=list)
    """Progress that came after the result: on the real platform it overwrites the result."""
    results: list[Post] = field(default_factory=list)
    """Every final body accepted, also those for a job that was already over."""
    refused: list[Post] = field(default_factory=list)
    """Every final body answered with an error."""
    stream: list[Any] = field(default_factory=list)
    streamed: int = 0

    @property
    def final(self) -> bool:
        """Whether the job is over."""
        return self.status in FINAL

    @property
    def raw_length(self) -> int:
        """Bytes of the accepted result."""
        return len(self.raw)

    def view(self) -> dict[str, Any]:
        """Return what ``/status`` shows a caller."""
        now = time.monotonic()
        shown: dict[str, Any] = {"id": self.id, "status": self.status}
        if self.taken_at is not None:
            shown["delayTime"] = int(1000 * (self.taken_at - self.submitted_at))
            shown["executionTime"] = int(1000 * ((self.done_at or now) - self.taken_at))
            shown["workerId"] = self.worker_id
        output = self.progress[-1].body.get("output") if self.progress and not self.final else self.output
        shown |= {"output": output} if output is not None else {}
        return shown | ({"error": self.error} if self.error is not None else {})
