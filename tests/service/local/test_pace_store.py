"""What was learnt of calls outlives the worker, and is every worker's that shares the volume."""

import asyncio
import json

import pytest

from tests.fakes.engine import make_context
from tests.service.local.test_pace import LARGE, SMALL, settled
from tests.waiting import until_true
from worker.service.local.pace import CallKind, Pace, Paces
from worker.service.local.pace_sharing import EVERY_S, Sharing
from worker.service.local.pace_store import PaceStore

KEY = "0a" * 16


def learnt(seconds=lambda n: max(1.0, n / 2)):
    paces = Paces()
    settled(seconds, paces=paces)
    return paces


def test_what_one_worker_has_learnt_is_where_the_next_one_begins(tmp_path):
    own = learnt()
    PaceStore(tmp_path).exchange(KEY, own.known("sd"))
    fresh = Paces()
    assert fresh.most(SMALL, 8) == 8
    fresh.take_in("sd", PaceStore(tmp_path).exchange(KEY, ()))
    assert fresh.most(SMALL, 8) == own.most(SMALL, 8) == 2
    assert fresh.most(LARGE, 8) == 1  # and it is the guess for another size
    renamed = Paces()
    renamed.take_in("another name", PaceStore(tmp_path).exchange(KEY, ()))
    assert renamed.most(CallKind("another name", SMALL.work, SMALL.pixels), 8) == 2
    assert PaceStore(tmp_path).exchange("0b" * 16, ()) == ()  # other files, another device, other libraries


def test_workers_that_write_in_turn_keep_what_the_others_know(tmp_path):
    store = PaceStore(tmp_path)
    store.exchange(KEY, [Pace("a", 10, {1: [1.0], 2: [0.5]})])
    merged = store.exchange(KEY, [Pace("a", 10, {2: [0.4], 4: [0.3]}), Pace("b", 20, {1: [2.0]})])
    assert {pace.work: dict(pace.seconds) for pace in merged} == {
        "a": {1: (1.0,), 2: [0.4], 4: [0.3]},
        "b": {1: [2.0]},
    }
    assert [pace.work for pace in store.exchange(KEY, ())] == ["a", "b"]


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"version": 9, "paces": []}', b'{"version": 1, "paces": [{"work": "a"}]}', b"x" * (2**20 + 1)],
)
def test_a_file_that_says_nothing_is_written_anew(tmp_path, content):
    (tmp_path / f"{KEY}.json").write_bytes(content)
    store, own = PaceStore(tmp_path), [Pace("a", 10, {1: [1.0]})]
    assert store.exchange(KEY, own) == (own[0],)
    assert [pace.work for pace in store.exchange(KEY, ())] == ["a"]


def test_numbers_that_no_call_can_have_taken_are_left_out(tmp_path):
    paces = [{"work": "a", "pixels": 10, "seconds": {"1": [-1.0, 0.0], "0": [1.0], "2": [0.5]}}]
    (tmp_path / f"{KEY}.json").write_text(json.dumps({"version": 1, "paces": paces}))
    assert [dict(pace.seconds) for pace in PaceStore(tmp_path).exchange(KEY, ())] == [{2: (0.5,)}]


def test_a_volume_that_cannot_be_written_costs_nothing_but_memory(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    own = (Pace("a", 10, {1: [1.0]}),)
    assert PaceStore(tmp_path / "file/below").exchange(KEY, own) == own
    assert "cannot be written" in caplog.text
    assert PaceStore(tmp_path).exchange("../elsewhere", own) == own
    assert not (tmp_path.parent / "elsewhere.json").exists()


async def test_it_is_exchanged_after_the_first_call_and_then_now_and_then(tmp_path):
    asked, clock = [], [0.0]

    class Watched(PaceStore):
        def exchange(self, key, own):
            asked.append(key)
            return super().exchange(key, own)

    sharing = Sharing(learnt(), Watched(tmp_path), lambda: clock[0])
    for now in (0.0, 1.0, EVERY_S - 1, EVERY_S, EVERY_S + 1):
        clock[0] = now
        sharing.learnt("sd", KEY)
        await sharing._task
    assert asked == [KEY, KEY]
    Sharing(Paces(), None).learnt("sd", KEY)


def slower_together(root, volume):
    """A worker whose calls take longer for each image, the more images they have."""
    root.mkdir()
    context = make_context(root, batch_size=4, batch_timeout_ms=20, volume_dir=volume)
    context.engine.seconds = lambda images: images * 1.2 if images > 1 else 1.0
    context.engine.standing = KEY
    return context, context.worker.mux._buckets.paces


async def test_a_second_worker_makes_the_batches_that_the_first_has_learnt(tmp_path):
    first, learnt_there = slower_together(tmp_path / "one", tmp_path / "volume")
    await first.draw()
    (kind,) = learnt_there._seen
    for images in (1, 2, 4) * 4:
        learnt_there.note(kind, images, first.engine.seconds(images))
    PaceStore(tmp_path / "volume/state/paces").exchange(KEY, learnt_there.known("tiny"))
    second, known = slower_together(tmp_path / "two", tmp_path / "volume")
    await second.draw()
    await until_true(lambda: known.known("tiny"))
    await asyncio.gather(*(second.draw(seed=seed) for seed in range(8)))
    assert [len(call) for call in second.engine.calls] == [1] * 9
