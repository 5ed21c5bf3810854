"""Who may fetch: one at a time, the dead are replaced, and whoever was replaced is told."""

import os
import threading
import time

import pytest

from tests.waiting import until
from worker.store.lease import Lease, LeaseLost


def lease(path, **times):
    return Lease(path, **{"beat_s": 0.05, "stale_s": 0.5, **times})


def test_a_lease_has_one_holder_until_it_is_given_back(tmp_path, clock):
    path = tmp_path / "l"
    first, second = lease(path), lease(path, stale_s=1_000)
    assert first.acquire()
    for _ in range(3):
        assert not second.acquire()
        seen = path.stat().st_mtime_ns
        until(lambda: path.stat().st_mtime_ns != seen)  # noqa: B023 - a heartbeat
        clock.forward(1_000)
    assert not second.acquire()
    first.check(look=True)
    first.release()
    assert second.acquire()
    second.release()
    assert not path.exists()


@pytest.mark.parametrize("shift", [-86_400, 86_400])
def test_a_dead_holder_is_replaced_whatever_its_clock_said(tmp_path, shift):
    path = tmp_path / "l"
    path.write_text("somebody on a host that is gone")
    os.utime(path, (time.time() + shift, time.time() + shift))
    heir, before = lease(path), time.monotonic()
    while not heir.acquire():
        time.sleep(0.02)
    assert time.monotonic() - before >= 0.5
    heir.release()


def test_of_many_who_want_a_dead_ones_lease_one_gets_it(tmp_path):
    path, holders, over = tmp_path / "l", [], threading.Event()
    path.write_text("dead")

    def want():
        mine = lease(path, stale_s=0.3)
        while not over.is_set():
            if mine.acquire():
                holders.append(mine)
                return
            time.sleep(0.01)

    threads = [threading.Thread(target=want) for _ in range(6)]
    for thread in threads:
        thread.start()
    while not holders:
        time.sleep(0.01)
    time.sleep(1)  # the others go on trying
    over.set()
    for thread in threads:
        thread.join()
    alive = []
    for holder in holders:
        try:
            holder.check(look=True)
            alive.append(holder)
        except LeaseLost:
            pass
    assert len(alive) == 1
    for holder in holders:
        holder.release()
    assert list(tmp_path.iterdir()) == []


def test_whoever_was_replaced_is_told_and_takes_nothing_away(tmp_path):
    path = tmp_path / "l"
    suspended = lease(path)
    assert suspended.acquire()
    path.write_text("the heir")
    with pytest.raises(LeaseLost):
        for _ in range(100):
            suspended.check()
            time.sleep(0.02)
    suspended.release()
    assert path.read_text() == "the heir"
