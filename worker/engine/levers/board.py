"""The board: which levers are on, pipeline by pipeline. Used from the engine's thread only."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from worker.engine.levers.row import Ground, Lever, Undo

_ON = "_imgworker_levers"


class Board:
    """Puts levers on pipelines and takes them off again.

    What is on stands at the pipeline's first denoiser itself: all views of a pipeline share that, and an evicted one
    takes it along. (What takes a lever off again knows the pipeline, which would keep a table's key alive for ever.)
    """

    def settle(self, ground: Ground, levers: Sequence[Lever]) -> None:
        """Have exactly those of `levers` on that belong to a pipeline: before adapters, which see its modules."""
        if not ground.denoisers:
            return
        on: dict[str, Undo] = vars(ground.denoisers[0]).setdefault(_ON, {})
        wanted = [lever for lever in levers if lever.scope == "pipeline"]
        if [*on] == [lever.name for lever in wanted]:
            return
        while on:  # in the reverse order: each finds what it left
            on.popitem()[1]()
        for lever in wanted:
            on[lever.name] = lever.on(ground)

    @contextmanager
    def called(self, ground: Ground, levers: Sequence[Lever]) -> Iterator[None]:
        """Have those on that belong to a call, for the length of the context."""
        with ExitStack() as stack:
            for lever in levers:
                if lever.scope == "call":
                    stack.callback(lever.on(ground))
            yield
