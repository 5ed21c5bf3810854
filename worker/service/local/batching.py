"""Batching: queued jobs wait in buckets, and the engine takes one bucket at a time.

A job waits with those that agree with it in everything but words, images and seeds (`Batch.batch_key`). A bucket is due
once it holds `batch_size` images, or once its first job has waited `timeout_s`. A due bucket goes on filling while the
engine is busy, so that under load no job waits for a batch.

A free engine takes the due bucket whose first job came first, of the callers who had least of the device for the
weights of their keys (`limits/shares.py`); inside a bucket they take turns, too. A job of a model that is not loaded
counts as later, by the seconds that its model took to load: a switch must be worth its cost. So no bucket of a caller
is passed by another of theirs that began more than those seconds after it. Cancelled and late jobs are dropped before
the engine sees them. After an out of memory the later batches of that bucket are smaller; so they are where images come
no faster together (`pace.py`).

An idle engine waits out the timer too: running the first job of a burst alone would cost the others its whole call,
while the timer costs a lone job milliseconds. With `batch_size` 1 no job waits, nor does a job that no other can join.
"""

import asyncio
import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from functools import partial
from itertools import accumulate, groupby

from worker.core.errors import DeviceLost
from worker.core.job import Batch
from worker.core.result import Emit
from worker.core.turn import current
from worker.service.limits.shares import Shares
from worker.service.local.batch_run import BatchRun, Generated, QueuedJob, call_kind
from worker.service.local.engine_thread import EngineThread, uninterrupted
from worker.service.local.improving import Improving
from worker.service.local.pace import CallKind, Paces
from worker.service.local.pace_sharing import Sharing
from worker.service.local.pace_store import PaceStore

# The time that a job that has to stop may still sit in one step before the device counts as lost.
STUCK_GRACE_S = 60.0
# The number of buckets whose fitting batch sizes are remembered.
_MEMORY = 256


class Buckets:
    """Queued jobs that wait, in order of arrival. Has no clock and no engine: callers pass time and facts in."""

    def __init__(self, batch_size: int, timeout_s: float, shares: Shares | None = None) -> None:
        self._batch_size = batch_size
        self._shares = shares or Shares()
        self._timeout_s = timeout_s
        self._waiting: dict[str, list[QueuedJob]] = {}
        self._load_s: dict[str, float] = {}
        self._fits: OrderedDict[str, int] = OrderedDict()
        self.paces = Paces()

    def add(self, queued: QueuedJob) -> None:
        """Add a queued job to its bucket."""
        self._waiting.setdefault(queued.key, []).append(queued)

    def remove(self, queued: QueuedJob) -> None:
        """Remove a queued job that waits."""
        bucket = self._waiting[queued.key]
        bucket.remove(queued)
        if not bucket:
            del self._waiting[queued.key]

    def empty(self, *, only_stopped: bool = False) -> list[QueuedJob]:
        """Take out all queued jobs, or only those that have to stop."""
        queued_jobs = [queued for bucket in self._waiting.values() for queued in bucket]
        queued_jobs = [queued for queued in queued_jobs if queued.job.stop.reason or not only_stopped]
        for queued in queued_jobs:
            self.remove(queued)
        return queued_jobs

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def take(self, now: float, resident: Collection[str]) -> list[QueuedJob]:
        """Take out the jobs of the next batch run; none when no bucket is due."""
        due = [bucket for bucket in self._waiting.values() if self._due_at(bucket) <= now]
        if not due:
            return []

        bucket = self._first(due, resident)
        turns = self._shares.turns([queued.caller for queued in bucket])
        taken = self._companions([bucket[index] for index in turns])
        for queued in taken:
            self.remove(queued)
        return taken

    def _first(self, due: Sequence[list[QueuedJob]], resident: Collection[str]) -> list[QueuedJob]:
        """Return the bucket whose turn it is, of those that are due.

        Whoever had least of the device is next, but not before the others are ahead by twice the seconds of the load
        that this takes, which counts as theirs: half of the device's time at most goes into loads. Of one caller, and
        of those who had as much, it is the bucket that came first.
        """

        def switch_s(bucket: list[QueuedJob]) -> float:
            model = bucket[0].job.call.spec.id
            return 0.0 if model in resident else self._load_s.get(model, 0.0)

        def effective_arrival(bucket: list[QueuedJob]) -> float:
            return bucket[0].arrived_at + switch_s(bucket)

        had = {id(bucket): min(self._shares.had(queued.caller) for queued in bucket) for bucket in due}
        least = min(due, key=lambda bucket: (had[id(bucket)], effective_arrival(bucket)))
        most_s = had[id(least)] + 2 * switch_s(least)
        return min((bucket for bucket in due if had[id(bucket)] <= most_s), key=effective_arrival)

    def _companions(self, bucket: list[QueuedJob]) -> list[QueuedJob]:
        """Return the jobs of a bucket that go into the next call: those with the first one's LoRAs, or others too."""
        by_loras: dict[str, list[QueuedJob]] = {}
        for queued in bucket:
            by_loras.setdefault(queued.loras, []).append(queued)
        alike, *others = by_loras.values()
        alone = _first_of(alike, self._limit(alike))
        if not others:
            return alone
        # Neighbours have the same LoRAs: where they cannot be mixed after all, these still share a call.
        mixed = _first_of([queued for each in by_loras.values() for queued in each], self._limit(bucket))
        return mixed if _images(mixed) > _images(alone) and self._gains(mixed) else alone

    def _gains(self, mixed: Sequence[QueuedJob]) -> bool:
        """True if these jobs take no longer in one call than in one for each set of LoRAs.

        Either way is tried often enough to know.
        """
        together = self.paces.of(call_kind(mixed), _images(mixed))
        if together is None:
            return True
        apart = 0.0
        for _, each in groupby(mixed, key=lambda queued: queued.loras):
            group = [*each]
            seconds = self.paces.of(call_kind(group), min(_images(group), self._limit(group)))
            if seconds is None:
                return False
            apart += seconds * _images(group)
        return together * _images(mixed) <= apart

    def next_due(self) -> float | None:
        """Return the time at which the next bucket is due; None when no job waits."""
        return min(map(self._due_at, self._waiting.values()), default=None)

    def note_load(self, model: str, seconds: float) -> None:
        """Remember the seconds that a switch to `model` costs."""
        self._load_s[model] = seconds

    def note_fit(self, key: str, images: int) -> None:
        """Remember that more than `images` images of a bucket exceeded the device's memory."""
        self._fits[key] = images
        self._fits.move_to_end(key)
        if len(self._fits) > _MEMORY:
            self._fits.popitem(last=False)

    def note_calls(self, calls: Sequence[tuple[CallKind, int, float]]) -> None:
        """Remember how long calls took, by their kind and number of images."""
        for kind, images, seconds in calls:
            self.paces.note(kind, images, seconds)

    def _limit(self, jobs: Sequence[QueuedJob]) -> int:
        first = jobs[0]
        bound = min(self._batch_size, self._fits.get(first.key, self._batch_size))
        # Of jobs with different LoRAs a call is as large as can be, or is not made (see `_gains`).
        if bound == 1 or not first.job.shares_a_call or len({queued.loras for queued in jobs}) > 1:
            return bound
        return self.paces.most(call_kind(jobs), bound)

    def _due_at(self, bucket: list[QueuedJob]) -> float:
        first = bucket[0]
        full = _images(bucket) >= self._limit(bucket)
        return first.arrived_at + (0.0 if full or not first.job.shares_a_call else self._timeout_s)


def _images(jobs: Sequence[QueuedJob]) -> int:
    return sum(queued.images for queued in jobs)


def _first_of(jobs: Sequence[QueuedJob], images: int) -> list[QueuedJob]:
    """Return the first of these jobs that have so many images at most; the very first in any case."""
    counts = list(accumulate(queued.images for queued in jobs))
    return [*jobs[: max(1, bisect_right(counts, images))]]


class BatchMux:
    """Gives the engine's thread one batch run after the other. Used on the event loop."""

    def __init__(
        self,
        engine: EngineThread,
        batch_size: int = 1,
        timeout_s: float = 0.0,
        idle_s: float | None = None,
        closing: Callable[[], bool] = lambda: False,
        store: PaceStore | None = None,
        shares: Shares | None = None,
    ) -> None:
        self._engine = engine
        self._batch_size = batch_size
        self._shares = shares or Shares()
        self._buckets = Buckets(batch_size, timeout_s, self._shares)
        self._batch_run: BatchRun | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._leaving: set[asyncio.Task[None]] = set()
        self._improving = Improving(engine, self.give_up, idle_s, closing)
        self._sharing = Sharing(self._buckets.paces, store if batch_size > 1 else None)

    @property
    def waiting(self) -> int:
        """The number of jobs that wait for a batch, or for the engine."""
        batch_run = self._batch_run
        return len(self._buckets) + (
            len(batch_run.queued_jobs) if batch_run is not None and batch_run.is_to_begin else 0
        )

    def holds(self, batch: Batch) -> bool:
        """True if all models of a batch are on the device now."""
        return self._engine.holds(batch)

    async def generate(self, batch: Batch, emit: Emit) -> Generated:
        """Generate the one job of `batch`, together with others where that is possible.

        A job leaves at its deadline, whatever the engine does; a cancelled one that the engine works for alone leaves
        once that work has stopped. Until then the engine takes no other work, and a device that does not let go is
        lost. Raises DeviceLost, JobTimeout and the job's own error.
        """
        if self._engine.lost is not None:
            raise self._engine.lost
        # Where no jobs share a batch, a digest of the whole job is not worth its time.
        key = batch.batch_key if self._batch_size > 1 else batch.jobs[0].id
        queued = QueuedJob(batch, emit, time.monotonic(), key, caller=current().caller)
        stop = queued.job.stop
        self._improving.rest()
        self._shares.enter(queued.caller)
        self._buckets.add(queued)
        self._dispatch()
        try:
            await asyncio.wait({queued.answer}, timeout=max(0.0, stop.remaining_s))
            if not queued.answer.done():
                self._leave_behind(queued)
                raise stop.reason or stop.timed_out()
            return queued.answer.result()
        except asyncio.CancelledError:
            stop.cancel()
            await uninterrupted(self._leave_behind(queued))
            raise
        finally:
            self._shares.leave(queued.caller)

    def _dispatch(self) -> None:
        """Give a free engine the next due bucket; without one, set the timer for the next."""
        if self._batch_run is not None and not self._batch_run.has_ended:
            return
        for queued in self._buckets.empty(only_stopped=True):
            queued.settle(queued.job.stop.reason or queued.job.stop.timed_out())
        resident = self._engine.resident_models
        queued_jobs = self._buckets.take(time.monotonic(), resident)
        if queued_jobs:
            self._begin(BatchRun(queued_jobs, self._engine.watchdog), resident)
            return
        if self._timer is not None:
            self._timer.cancel()
        due = self._buckets.next_due()
        if due is not None:
            self._timer = asyncio.get_running_loop().call_later(max(0.0, due - time.monotonic()), self._dispatch)
        else:
            self._improving.idle()

    def _begin(self, batch_run: BatchRun, resident: Collection[str]) -> None:
        self._batch_run = batch_run
        try:
            # Not in our own context: that belongs to the job that ended, or came, just now.
            batch_run.future = batch_run.queued_jobs[0].context.run(
                self._engine.submit, batch_run.run, batch_run.label, batch_run.begin
            )
        except DeviceLost as error:
            self.give_up(error)
            return
        batch_run.over = asyncio.wrap_future(batch_run.future)
        batch_run.over.add_done_callback(partial(self._end, batch_run, resident))

    def _end(self, batch_run: BatchRun, resident: Collection[str], done: "asyncio.Future[None]") -> None:
        error = self._engine.lost if done.cancelled() else done.exception()
        if isinstance(error, DeviceLost):
            self.give_up(error)
            return
        if error is not None:  # not an error that an engine may raise: it answers all jobs
            for queued in batch_run.queued_jobs:
                queued.settle(error)
        if self._batch_run is batch_run:  # its jobs were answered before this, and a next one may have begun since
            self._batch_run = None
        first = batch_run.queued_jobs[0]
        if batch_run.load_s and first.job.call.spec.id not in resident:
            self._buckets.note_load(first.job.call.spec.id, batch_run.load_s)
        images = sum(queued.images for queued in batch_run.queued_jobs)
        seconds = batch_run.load_s + sum(seconds for _, _, seconds in batch_run.calls)
        for queued in batch_run.queued_jobs:
            self._shares.charge(queued.caller, seconds * queued.images / images)
        if self._batch_size > 1:
            self._buckets.note_calls(batch_run.calls)
            self._sharing.learnt(first.job.call.spec.id, batch_run.standing)
        if batch_run.fits is not None:
            self._buckets.note_fit(first.key, batch_run.fits)
        self._dispatch()

    def give_up(self, error: DeviceLost) -> None:
        """Declare the device lost, and answer all jobs with `error`, the one in the engine's thread too."""
        self._engine.lose(error)
        batch_run, self._batch_run = self._batch_run, None
        for queued in [*(batch_run.queued_jobs if batch_run else []), *self._buckets.empty()]:
            queued.settle(error)

    def _leave_behind(self, queued: QueuedJob) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(self._leave(queued))
        self._leaving.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(self._leaving.discard)
        return task

    async def _leave(self, queued: QueuedJob) -> None:
        """Release `queued`. If the engine works for it alone, return once that work has stopped."""
        if queued.answer.done():
            return
        batch_run = queued.batch_run
        if batch_run is None:
            self._buckets.remove(queued)
            queued.leave()
        elif (
            not batch_run.is_only_for(queued)
            or batch_run.future is None
            or batch_run.over is None
            or batch_run.future.cancel()
        ):
            queued.leave()  # the other jobs are generated all the same; or the device never saw it
        else:
            await self._let_go(batch_run, batch_run.over)

    async def _let_go(self, batch_run: BatchRun, over: "asyncio.Future[None]") -> None:
        """Wait until a job that has to stop did so at its next step. If it does not, declare the device lost.

        A load cannot be interrupted, and is no reason to replace a worker: how long it may take the watchdog knows.
        """
        while not over.done() and self._engine.lost is None:
            in_step = not batch_run.loading
            await asyncio.wait({over}, timeout=STUCK_GRACE_S)
            if not over.done() and in_step:
                self.give_up(
                    DeviceLost(
                        f"The pipeline did not stop within {STUCK_GRACE_S:g} seconds of being told to; "
                        "this worker is being replaced."
                    )
                )
