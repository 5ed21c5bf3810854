"""Where the modules of an adapter go: onto the device, or to where offloading fetches them from."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from worker.engine.classes import DTYPES
from worker.engine.loader import place
from worker.engine.pool import Resident


class Offloading:
    """A pipeline's precision and placement, for modules that are exchanged in it during one job.

    Offloading hangs hooks on modules and chains them in the order of their turns, so it has to be told anew of modules
    that come (`settled`) and of those that came back (`restored`). Without it nothing is done.
    """

    def __init__(self, pipe: Any, resident: Resident) -> None:
        self._pipe = pipe
        self._resident = resident
        plan = resident.plan
        self.dtype = DTYPES[plan.dtype]
        self._offloads = plan.offload != "none"
        # What is offloaded waits in memory until its turn, as the pipeline's own parts do.
        self.device = torch.device("cpu" if self._offloads else plan.device)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """The outer bracket: inside, modules may be exchanged; at its end the pipeline is offloaded as it was."""
        if self._offloads:
            self._pipe.remove_all_hooks()
        try:
            yield
        finally:
            if self._offloads:
                place(self._resident.pipe, self._resident.plan)

    @contextmanager
    def settled(self) -> Iterator[None]:
        """The inner bracket, around the call: what is in the pipeline now is offloaded."""
        if self._offloads:
            place(self._pipe, self._resident.plan)
        try:
            yield
        finally:
            if self._offloads:
                self._pipe.remove_all_hooks()
