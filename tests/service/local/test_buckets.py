"""Who is drawn when, and with whom: the queue's policy on a clock that the test turns."""

import asyncio
from dataclasses import dataclass

import pytest

from tests.core.test_batch_key import batch, lora
from worker.core.job import VideoRequest
from worker.core.model import ModelSource, ModelSpec
from worker.core.turn import StopSignal
from worker.service.local.batch_run import QueuedJob, call_kind
from worker.service.local.batching import Buckets

WAIT = 0.05


def ignore(progress):
    pass


def queued(came, model="a", images=1, **changes):
    """A job of `model` that came at a time."""
    spec = ModelSpec(id=model, source=ModelSource(scheme="hf", locator=f"org/{model}"))
    drawn = batch(spec=spec, seeds=tuple(range(images)), **changes)
    return QueuedJob(drawn, ignore, came, drawn.batch_key)


def buckets(*queued_jobs, size=4):
    found = Buckets(size, WAIT)
    for item in queued_jobs:
        found.add(item)
    return found


@pytest.fixture(autouse=True)
async def loop():
    """Queued jobs hold a future, which belongs to a loop."""
    yield asyncio.get_running_loop()


async def test_a_bucket_is_due_when_it_is_full():
    waiting = [queued(0.01 * index) for index in range(5)]
    queue = buckets(*waiting[:3])
    assert queue.take(0.03, ["a"]) == []
    queue.add(waiting[3])
    queue.add(waiting[4])
    assert queue.take(0.03, ["a"]) == waiting[:4]
    assert queue.take(0.03, ["a"]) == []
    assert queue.take(0.04 + WAIT, ["a"]) == waiting[4:]


async def test_or_when_the_first_of_it_has_waited_long_enough():
    first, second = queued(1.0), queued(1.04)
    queue = buckets(first, second)
    assert queue.next_due() == 1.0 + WAIT
    assert queue.take(1.0 + WAIT - 0.001, ["a"]) == []
    assert queue.take(1.0 + WAIT, ["a"]) == [first, second]
    assert queue.next_due() is None


async def test_jobs_that_differ_in_more_than_words_wait_apart():
    small, large = queued(0, params={"width": 64}), queued(0, params={"width": 128})
    other = queued(0, model="b")
    queue = buckets(small, large, other)
    assert [queue.take(1, ["a", "b"]) for _ in range(4)] == [[small], [large], [other], []]


def seconds_of(queue, jobs, seconds, times=4):
    """Note that calls for these jobs took so long; the first one warms up."""
    queue.note_calls([(call_kind(jobs), sum(job.images for job in jobs), seconds)] * times)


async def test_jobs_with_different_loras_meet_where_that_is_no_slower_and_only_there():
    """Two sets of LoRAs of two jobs each: which way is faster is tried, and remembered."""
    light, heavy = ((lora(weight=weight),) for weight in (1.0, 0.5))
    first = [queued(0, adapter_files=files) for files in (light, heavy, light, heavy)]
    in_sets = [first[0], first[2], first[1], first[3]]

    def taken(queue):
        for item in first:
            queue.add(item)
        found = queue.take(0.0, ["a"])
        queue.empty()
        return found

    queue = buckets()
    assert taken(queue) == in_sets  # neighbours have the same, whatever becomes of it
    seconds_of(queue, first, 1.0)
    assert taken(queue) == in_sets[:2]  # now the other way is to be known
    for pair in (in_sets[:2], in_sets[2:]):
        seconds_of(queue, pair, 0.6)
    assert taken(queue) == in_sets
    slow = buckets()
    seconds_of(slow, first, 1.0)
    for pair in (in_sets[:2], in_sets[2:]):
        seconds_of(slow, pair, 0.4)
    assert {item.loras for item in taken(slow)} == {first[0].loras}


async def test_jobs_with_the_same_loras_fill_a_call_by_themselves():
    same, other = (lora(),), (lora(weight=0.5),)
    jobs = [queued(0.0, adapter_files=files) for files in (same, other, same, same, same)]
    assert buckets(*jobs).take(1.0, ["a"]) == [jobs[0], *jobs[2:]]


async def test_it_is_images_that_are_counted():
    queue = buckets(*(waiting := [queued(0, images=count) for count in (2, 3, 1, 9)]))
    assert [queue.take(1, ["a"]) for _ in range(3)] == [waiting[:1], waiting[1:3], waiting[3:]]


async def test_alone_nobody_waits():
    assert len(buckets(queued(5.0), size=1).take(5.0, [])) == 1
    assert len(buckets(queued(5.0, images=4)).take(5.0, [])) == 1
    assert len(buckets(queued(5.0, video=VideoRequest(8.0))).take(5.0, [])) == 1  # a video, which nobody can join


async def test_who_left_is_not_taken_and_who_has_to_stop_is_sorted_out():
    gone, late, stays = queued(0), queued(0, stop=StopSignal(-1)), queued(0)
    queue = buckets(gone, late, stays)
    queue.remove(gone)
    assert queue.empty(only_stopped=True) == [late]
    assert queue.take(1, ["a"]) == [stays]
    assert queue.next_due() is None


async def test_memory_that_ran_out_makes_the_next_batches_of_that_bucket_smaller():
    queue = buckets(*(waiting := [queued(0) for _ in range(4)]))
    queue.note_fit(waiting[0].key, 2)
    queue.add(other := queued(0, model="b"))
    assert queue.take(0, ["a"]) == waiting[:2]  # full with two of them
    assert queue.take(0, ["a"]) == waiting[2:]
    assert queue.take(0, ["a", "b"]) == []
    assert queue.take(WAIT, ["a", "b"]) == [other]


async def test_a_model_that_is_not_loaded_counts_as_having_come_its_load_later():
    queue = buckets(waits := queued(0, model="b"), resident := queued(8))
    queue.note_load("b", 10)
    assert queue.take(9, ["a"]) == [resident]
    queue.add(late := queued(10.1))
    assert queue.take(11, ["a"]) == [waits]
    assert queue.take(11, ["a"]) == [late]


@dataclass
class Simulation:
    """One device with one resident model. Each batch takes a second, a switch `load_s`; every model has its stream."""

    load_s: float
    every_s: dict[str, float]
    until_s: float = 150

    def run(self):
        queue, now, resident = Buckets(4, WAIT), 0.0, ""
        for model in self.every_s:
            queue.note_load(model, self.load_s)
        coming = sorted(
            (index * every, model)
            for model, every in self.every_s.items()
            for index in range(int(self.until_s / every))
        )
        total, switches, waited = len(coming), 0, {model: [] for model in self.every_s}
        while coming or queue.next_due() is not None:
            while coming and coming[0][0] <= now:
                came, model = coming.pop(0)
                queue.add(queued(came, model))
            taken = queue.take(now, [resident])
            if not taken:
                now = min(item for item in (queue.next_due(), coming[0][0] if coming else None) if item is not None)
                continue
            model = taken[0].job.call.spec.id
            for item in taken:
                waited[model].append(now - item.arrived_at)
            if model != resident:
                now, switches, resident = now + self.load_s, switches + 1, model
            now += 1
        assert sum(map(len, waited.values())) == total
        return waited, switches


async def test_a_stream_that_keeps_the_resident_model_busy_starves_nobody():
    waited, switches = Simulation(load_s=10, every_s={"busy": 0.3, "rare": 60}).run()
    # It is more than the device can do, so that all wait; but who is not resident waits a load and a batch longer.
    assert max(waited["rare"]) <= max(waited["busy"]) + 10 + 1
    assert switches <= 2 * len(waited["rare"]) + 1


async def test_switches_are_rarer_the_more_they_cost():
    streams = {"one": 1.0, "two": 1.0}
    cheap, dear = (Simulation(load_s, streams).run()[1] for load_s in (0.1, 20))
    alternating = 150
    assert dear < alternating / 10 < cheap


async def test_the_first_come_is_the_first_served_among_the_loaded():
    waited, _ = Simulation(load_s=0, every_s={"one": 0.6, "two": 0.6, "three": 0.6}).run()
    longest = [max(times) for times in waited.values()]
    assert max(longest) <= min(longest) + 4


async def test_an_unmeasured_switch_counts_nothing():
    queue = buckets(first := queued(0, model="new"), queued(1))
    assert queue.take(2, ["a"]) == [first]


def test_the_simulation_can_fail(monkeypatch):
    """A policy that always prefers the resident model would starve the other."""
    original = Buckets.take

    def greedy(self, now, resident):
        preferred = [bucket for bucket in self._waiting.values() if bucket[0].job.call.spec.id in resident]
        hidden = {key: bucket for key, bucket in self._waiting.items() if bucket not in preferred} if preferred else {}
        for key in hidden:
            del self._waiting[key]
        try:
            return original(self, now, resident)
        finally:
            self._waiting |= hidden

    monkeypatch.setattr(Buckets, "take", greedy)

    async def run():
        return Simulation(load_s=10, every_s={"busy": 0.2, "rare": 60}).run()[0]

    assert max(asyncio.run(run())["rare"]) > 60
