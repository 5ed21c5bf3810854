"""Placement of an adapter's modules: on the device, or in memory from which offloading fetches them."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from worker.engine.classes import DTYPES
from worker.engine.loader import place
from worker.engine.resident import Resident


class Offloading:
    """A pipeline's precision and placement, for modules that are exchanged in it during one job.

    Offloading hangs hooks on modules and chains them in the order of their use. So it is set up anew for modules that
    come (`settled`) and for those that come back (`restored`). Without offloading nothing is done.
    """

    def __init__(self, pipe: Any, resident: Resident) -> None:
        self._pipe = pipe
        self._resident = resident
        plan = resident.plan
        self.dtype = DTYPES[plan.dtype]
        self._offloads = not plan.keeps_denoiser
        # Offloaded modules wait in memory until they are used, as the pipeline's own parts do.
        self.device = torch.device("cpu" if self._offloads else plan.device)

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Open the outer context: inside, modules may be exchanged; at its end the pipeline is offloaded as before."""
        if self._offloads:
            self._pipe.remove_all_hooks()
        try:
            yield
        finally:
            if self._offloads:
                place(self._resident.pipe, self._resident.plan)

    @contextmanager
    def settled(self) -> Iterator[None]:
        """Open the inner context, around the call: the modules now in the pipeline are offloaded."""
        if self._offloads:
            place(self._pipe, self._resident.plan)
        try:
            yield
        finally:
            if self._offloads:
                self._pipe.remove_all_hooks()
