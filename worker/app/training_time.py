"""The time of trainings: what one has of the device, and what the next one will take."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from worker.service.local.engine_thread import EngineThread, ResidentEngine
from worker.service.training.trainings import Order

T = TypeVar("T")


@dataclass(slots=True)
class Meter:
    """The engine's thread, and the seconds that a training had it."""

    engine: EngineThread
    seconds: float = 0.0
    resident: ResidentEngine | None = None

    async def turn(self, work: Callable[[], T], label: str) -> T:
        """Run a piece of the training in the engine's thread."""

        def measured(engine: ResidentEngine) -> T:
            from worker.training.failures import of_device

            self.resident, began = engine, time.monotonic()
            try:
                return work()
            except Exception as error:
                raise of_device(error) from error
            finally:
                self.seconds += time.monotonic() - began

        return await self.engine.call(measured, label)


def seconds_an_image(order: Order) -> float | None:
    """Return how long an image took in the last training of this model, at this resolution, on this volume."""
    found: list[tuple[float, float]] = []
    for file in order.folder.parent.glob("*/training.json"):
        try:
            facts = json.loads(file.read_text())
            alike = facts["model"] == order.model.spec.id
            if alike and facts["options"].get("resolution") == order.options.resolution:
                found.append((file.stat().st_mtime, float(facts["seconds_an_image"])))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # none of ours, or one that has not learnt a step
    return max(found)[1] if found else None
