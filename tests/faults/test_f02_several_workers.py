"""F2: several workers fetch one model onto one volume, whose locks do nothing, or whose holder is dead."""

import fcntl
import signal
import time

import pytest

from tests.store.conftest import shelf as shelf
from tests.store.downloading import MEGABYTE, finished
from tests.store.fetching import TIMES
from tests.store.shelf import NAME
from worker.store.lease import STALE_S


def test_a_dead_holder_is_replaced_within_half_a_minute(figures):
    figures("F2", "silence after which a holder counts as dead", STALE_S, "s", at_most=30)


def test_no_lock_of_the_system_is_asked_for(shelf, monkeypatch):
    for name in ("flock", "lockf"):
        monkeypatch.setattr(fcntl, name, lambda *arguments: pytest.fail("a lock was asked for"))
    shelf.put("model.bin", 100_000)
    assert shelf.fetch().bytes_downloaded == 100_000


def test_two_processes_transfer_a_model_once_and_both_show_progress(shelf, figures):
    sizes = {name: shelf.put(name, 2 * MEGABYTE).size for name in ("a.bin", "b.bin", "c.bin")}
    shelf.hub.pace = 1.5 * MEGABYTE  # so slowly that one who starts late sees it too
    reports = [finished(process) for process in [shelf.child(), shelf.child()]]
    transfers = sum(shelf.hub.sent[name] for name in sizes) / sum(sizes.values())
    figures("F2", "transfers of a model that two processes fetch at once", transfers, "", at_most=1)
    assert sum(report["received"] for report in reports) == sum(sizes.values())
    for report in reports:
        assert report["steps"] == sorted(report["steps"])
        assert report["steps"][-1] == sum(sizes.values())
        assert len(set(report["steps"])) > 5, "whoever waits sees it grow"


def test_one_that_was_suspended_and_overtaken_does_no_harm(shelf, figures):
    file = shelf.put("big.bin", 4 * MEGABYTE)
    shelf.hub.pace = 3.0 * MEGABYTE
    first = shelf.child()
    assert shelf.hub.wait_until(lambda: shelf.hub.sent.get(file.name, 0) > MEGABYTE)
    first.send_signal(signal.SIGSTOP)
    lease = shelf.root / "leases" / file.key
    holder = lease.read_bytes()
    second = shelf.child()
    until = time.monotonic() + 30
    while lease.exists() and lease.read_bytes() == holder:
        assert time.monotonic() < until, "it is not overtaken"
        time.sleep(0.01)
    first.send_signal(signal.SIGCONT)
    for process in (first, second):
        assert finished(process)["total"] == file.size
    wrong = shelf.cache().entry(NAME).files[file.name].path.read_bytes() != shelf.content(file.name)
    figures("F2", "wrong files where a suspended worker was overtaken", wrong, "", at_most=0)
    assert not shelf.leases()


def test_the_lease_of_a_dead_worker_on_another_host_is_taken_over(shelf, figures):
    file = shelf.put("big.bin", 100_000)
    lease = shelf.root / "leases" / file.key
    lease.parent.mkdir(parents=True)
    lease.write_text("worker-7f3a@another-host pid 1")
    half = shelf.root / "partial" / f"{file.key}.part"
    half.parent.mkdir()
    half.write_bytes(shelf.content(file.name)[:50_000])
    before = time.monotonic()
    assert shelf.fetch().bytes_downloaded == 50_000
    waited = time.monotonic() - before
    assert waited > 1.0
    # The tests' leases are stale after 1.2 s and the worker's after 12.
    figures(
        "F2",
        "until a dead holder's lease is taken over, in stale times",
        waited / TIMES["stale_s"],
        "",
        at_most=2.5,
        momentary=True,
    )
    assert not shelf.leases()
