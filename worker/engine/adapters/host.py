"""The interface of each kind of adapter: its host, and its effect on a job's call."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from worker.core.adapter import AdapterFiles, AdapterReport
from worker.core.result import LoraReport
from worker.engine.adapters.mixing import Mixture
from worker.engine.adapters.offloading import Offloading
from worker.engine.resident import Resident


class Host:
    """The pipeline that a job's adapters are put on: `resident`, called as `class_name`, of the model id `model`.

    `room` returns the bytes that the job leaves free on the device; `check` raises where the job has to stop. With a
    `mixture` its LoRAs are put on.
    """

    def __init__(
        self,
        resident: Resident,
        class_name: str,
        model: str,
        room: Callable[[], int] | None = None,
        check: Callable[[], None] = lambda: None,
        mixture: Mixture | None = None,
    ) -> None:
        self.resident = resident
        self.class_name = class_name
        self.model = model
        self.room = room
        self.check = check
        self.mixture = mixture

    @cached_property
    def pipe(self) -> Any:
        """The pipeline to call. ControlNets set one of their own, before any other adapter asks for it."""
        return self.resident.as_class(self.class_name)

    @cached_property
    def offloading(self) -> Offloading:
        """Precision and placement for modules that come into the pipeline."""
        return Offloading(self.pipe, self.resident)


@dataclass(frozen=True, slots=True)
class Effect:
    """The effect of a job's adapters of one kind: the call's arguments for them, a report of each, and warnings."""

    reports: Sequence[LoraReport | AdapterReport] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()


# Puts all of a job's adapters of one kind on its pipeline, and takes them off whatever happens in between.
Apply = Callable[[Host, Sequence[Any]], AbstractContextManager[Effect]]


def reports_of(adapters: Sequence[AdapterFiles[Any]], weight: str | None = None) -> list[AdapterReport]:
    """Return a report of each adapter; `weight` names the field of its spec for the weight it is applied with."""
    return [
        AdapterReport(item.kind, item.model, getattr(item.adapter.spec, weight) if weight else 1.0, item.sha256)
        for item in adapters
    ]
