"""The room of a disk: of a folder that is not there yet, and of a disk that does not answer."""

import shutil
import threading
import time

import pytest

from tests.waiting import LIMIT_S
from worker.store import free_space
from worker.store.free_space import DiskGauge, Space, space_of


def test_a_folder_that_is_not_there_yet_is_on_its_parents_disk(tmp_path):
    there = space_of(tmp_path)
    assert there.total == shutil.disk_usage(tmp_path).total
    assert space_of(tmp_path / "a" / "b").total == there.total


def test_a_disk_that_refuses_has_no_figures(tmp_path, monkeypatch):
    def refuse(place):
        raise PermissionError

    monkeypatch.setattr(shutil, "disk_usage", refuse)
    assert space_of(tmp_path) is None


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(free_space.time, "monotonic", lambda: now[0])
    return now


def test_a_disk_that_hangs_keeps_nobody_waiting_and_is_unknown_after_a_while(tmp_path, monkeypatch, clock):
    readings, asked, answers = iter(range(1, 10)), threading.Semaphore(0), threading.Event()

    def read(folder):
        number = next(readings)
        if number > 1:
            asked.release()
            answers.wait(LIMIT_S)
        return Space(number, 100)

    monkeypatch.setattr(free_space, "space_of", read)
    gauge = DiskGauge(tmp_path)
    clock[0] += 4
    assert gauge.space() == Space(1, 100)
    clock[0] += 2
    assert gauge.space() == Space(1, 100)  # the next reading is under way
    assert asked.acquire(timeout=LIMIT_S)
    clock[0] += 200
    assert [gauge.space() for _ in range(3)] == [None] * 3
    assert not asked.acquire(blocking=False)  # one thread hangs, and no second one
    answers.set()
    until = time.perf_counter() + LIMIT_S
    while gauge.space() is None and time.perf_counter() < until:
        threading.Event().wait(0.01)
    assert gauge.space().free >= 2
