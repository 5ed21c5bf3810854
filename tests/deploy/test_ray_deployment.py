"""A deployment of Ray Serve as the gateway calls it, over a stream of ours: silence, death, refusals."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Any

import pytest

pytest.importorskip("ray", reason="make test-ray has an environment of its own for Ray")

from ray.exceptions import RayActorError

from worker.core.errors import InvalidRequest, JobTimeout
from worker.core.turn import StopSignal
from worker.remote.platforms import ray_deployment
from worker.remote.platforms.platform import LostSight, NotTaken
from worker.remote.platforms.question import Question
from worker.remote.platforms.ray_deployment import RayDeployment
from worker.remote.replica import ReplicaState


class Stream:
    """Updates, and then an end: an error, or silence."""

    def __init__(self, updates: list[dict[str, Any]], end: Exception | None = None) -> None:
        self.updates, self.end, self.cancelled = updates, end, False

    def __aiter__(self) -> AsyncGenerator[dict[str, Any], None]:
        return self._each()

    def __anext__(self) -> Any:
        self._iterator = getattr(self, "_iterator", None) or self._each()
        return self._iterator.__anext__()

    async def _each(self) -> AsyncGenerator[dict[str, Any], None]:
        for update in self.updates:
            yield update
        if self.end is None:
            await asyncio.sleep(3600)
        else:
            raise self.end

    def cancel(self) -> None:
        self.cancelled = True


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_deployment, "SILENCE_S", 0.1)


def job(timeout_s: float = 60.0) -> Any:
    return Question("job", {}, StopSignal(timeout_s))


def deployment(stream: Stream) -> RayDeployment:
    async def look() -> int:
        return 1

    return RayDeployment(ReplicaState("A10G-1", warm=False), lambda job: stream, look)


async def test_a_replica_that_says_nothing_any_more_is_lost_sight_of() -> None:
    stream = Stream([{"alive": True}])
    with pytest.raises(LostSight):
        await deployment(stream).send(job(), "key", lambda progress: None)
    assert stream.cancelled


async def test_before_its_first_word_a_replica_has_until_the_deadline_to_start() -> None:
    stream = Stream([])
    with pytest.raises(JobTimeout):
        await deployment(stream).send(job(0.3), "key", lambda progress: None)
    assert stream.cancelled


async def test_the_jobs_of_a_process_that_died_may_go_elsewhere() -> None:
    replica = deployment(Stream([{"alive": True}], RayActorError()))
    with pytest.raises(NotTaken):
        await replica.send(job(), "key", lambda progress: None)
    assert not replica.state().warm
    assert (await replica.observe()).warm


async def test_a_jobs_own_failure_is_its_end() -> None:
    answer = {"error": "width must be a multiple of 8", "code": "parameter_out_of_range", "field": "width"}
    with pytest.raises(InvalidRequest, match="width"):
        await deployment(Stream([{"alive": True}, {"answer": answer}])).send(job(), "key", lambda progress: None)
