"""Ray's own way to several models in few replicas, over the same worker: what ours is measured beside."""

from collections.abc import Mapping
from typing import Any

from ray import serve

from worker.app.called import CalledWorker
from worker.app.settings import read_settings


class Multiplexed:
    """A replica whose models Ray chooses, one at a time."""

    def __init__(self) -> None:
        self._worker = CalledWorker(read_settings())
        self._loads = 0

    @serve.multiplexed(max_num_models_per_replica=1)
    async def loaded(self, model: str) -> str:
        self._loads += 1
        await self._answer({"id": f"load-{model}", "input": {"action": "preload", "model": model}})
        return model

    async def run(self, job: Mapping[str, Any]) -> dict[str, int]:
        """Answer one job, and return how many models this replica has loaded by now."""
        await self.loaded(serve.get_multiplexed_model_id())
        answer = await self._answer(job)
        # Another model may have come between the two.
        self._loads += answer["timings"]["load_s"] > 0
        return {"replica": id(self), "loads": self._loads}

    async def _answer(self, job: Mapping[str, Any]) -> dict[str, Any]:
        async for update in self._worker.stream(job):
            if "answer" in update:
                return update["answer"]  # type: ignore[return-value]
        raise AssertionError("a stream without an answer")
