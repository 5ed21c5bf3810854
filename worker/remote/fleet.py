"""The fleet as its operator sees it: what each worker does, and the models on the volumes of those over HTTP."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from pydantic import BaseModel, JsonValue

from worker.core.errors import EngineFailure, InvalidRequest
from worker.remote.members import Members
from worker.remote.replica import ReplicaState

PULL_S = 3_600.0


class Administered(Protocol):
    """A worker whose operator's pages a gateway may ask."""

    @property
    def name(self) -> str:
        """The operator's name for it."""
        ...

    async def admin(
        self, method: str, path: str, body: Mapping[str, JsonValue] | None = None, timeout_s: float = 15.0
    ) -> dict[str, JsonValue]:
        """Ask below the worker's /admin. Raises Unreachable, and the worker's own WorkerError."""
        ...


@dataclass(frozen=True, slots=True)
class Fleet:
    """The workers behind a gateway, and by their names those that are asked over HTTP."""

    members: Members
    workers: Mapping[str, Administered]

    def states(self) -> tuple[ReplicaState, ...]:
        """Return what is known of each worker."""
        return self.members.states()

    def volume(self, name: str | None) -> "RemoteVolume":
        """Return the models on the volume of one worker; without a name of the only one. Raises InvalidRequest."""
        only = next(iter(self.workers.values())) if len(self.workers) == 1 else None
        found = only if name is None else self.workers.get(name)
        if found is None:
            names = ", ".join(self.workers) or "none, since no worker of this gateway is one over HTTP"
            raise InvalidRequest(f"worker must be one of this gateway's: {names}.", field="worker")
        return RemoteVolume(found)


class RemoteVolume:
    """The models on the volume of a worker, by its own /admin/cache. Its refusals are in its words."""

    def __init__(self, worker: Administered) -> None:
        self._worker = worker

    async def contents(self) -> "Contents":
        """Return what lies there."""
        body = await self._worker.admin("GET", "/cache")
        try:
            return Contents.model_validate(body)
        except ValueError:
            raise _unreadable(self._worker.name) from None

    async def pin(self, name: str, *, pinned: bool) -> None:
        """Never evict what is called `name`, or let it be evicted again. Raises ModelNotFound."""
        await self._worker.admin("POST", "/cache/pin", {"name": name, "pinned": pinned})

    async def remove(self, name: str) -> int:
        """Remove what is called `name`, and return the bytes given back. Raises ModelNotFound."""
        return _whole(self._worker.name, (await self._worker.admin("POST", "/cache/remove", {"name": name})))

    async def pull(self, model: str) -> tuple[int, str | None]:
        """Fetch the files of a model, and return their bytes and revision."""
        body = await self._worker.admin("POST", "/cache/pull", {"model": model}, PULL_S)
        revision = body.get("revision")
        return _whole(self._worker.name, body, "bytes"), revision if isinstance(revision, str) else None


class KeptModel(BaseModel):
    """One model on a volume."""

    name: str
    files: int
    bytes: int
    last_used: datetime
    pinned: bool


class Contents(BaseModel):
    """All models on a volume; `max_bytes` is what it may hold, None for no limit."""

    bytes: int
    max_bytes: int | None
    models: Sequence[KeptModel]


def _whole(worker: str, body: "dict[str, JsonValue]", name: str = "freed_bytes") -> int:
    value = body.get(name)
    if not isinstance(value, int):
        raise _unreadable(worker)
    return value


def _unreadable(worker: str) -> EngineFailure:
    return EngineFailure(f"The answer of the worker {worker} cannot be read; it is of another version.")
