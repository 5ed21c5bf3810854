"""Several workers on one volume, some of them killed: one transfer, no wrong byte, nothing left behind."""

import json
import os
import random
import signal
import subprocess
import time

import pytest

from tests.store.shelf import NAME
from worker.core.errors import DiskFull

MEGABYTE = 2**20


def finished(process) -> dict:
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    return json.loads(out)


def kill(process) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def calm(shelf, file, *, at_most: int) -> None:
    """Send hardly a byte more until so few of those that were sent are not on disk: the rest is on its way."""
    shelf.hub.pace = 1.0
    until = time.monotonic() + 20
    while shelf.hub.sent[file.name] - sum(part.stat().st_size for part in shelf.parts()) > at_most:
        assert time.monotonic() < until, "bytes are kept back"
        time.sleep(0.01)


def test_a_storm_of_kills_costs_at_most_five_percent_of_the_bytes_each(shelf):
    file = shelf.put("big.bin", 6 * MEGABYTE)
    luck, killed = random.Random(5), 0
    for _ in range(3):
        shelf.hub.pace = 3.0 * MEGABYTE
        before = shelf.hub.sent.get(file.name, 0)
        process = shelf.child()
        assert shelf.hub.wait_until(lambda before=before: shelf.hub.sent.get(file.name, 0) > before + 200_000)
        time.sleep(luck.uniform(0.0, 0.25))
        calm(shelf, file, at_most=int(0.05 * file.size * (killed + 1)))
        kill(process)
        killed += 1
        assert not shelf.blobs()
        assert len(shelf.parts()) == 1
        sent = shelf.hub.sent[file.name]
        assert sent - shelf.parts()[0].stat().st_size <= 0.05 * file.size * killed
    shelf.hub.pace = 3.0 * MEGABYTE
    last = shelf.child()
    assert finished(last)["total"] == file.size
    assert shelf.hub.sent[file.name] <= file.size * (1 + 0.05 * killed)
    entry = shelf.cache().entry(NAME)
    assert entry.files[file.name].path.read_bytes() == shelf.content(file.name)
    assert not shelf.parts()
    assert not shelf.leases()


def test_two_processes_transfer_a_model_once_and_both_show_progress(shelf):
    sizes = {name: shelf.put(name, 2 * MEGABYTE).size for name in ("a.bin", "b.bin", "c.bin")}
    shelf.hub.pace = 1.5 * MEGABYTE  # so slowly that one who starts late sees it too
    reports = [finished(process) for process in [shelf.child(), shelf.child()]]
    assert {name: shelf.hub.sent[name] for name in sizes} == sizes
    assert sum(report["received"] for report in reports) == sum(sizes.values())
    for report in reports:
        assert report["steps"] == sorted(report["steps"])
        assert report["steps"][-1] == sum(sizes.values())
        assert len(set(report["steps"])) > 5, "whoever waits sees it grow"


def test_a_killed_downloader_is_replaced_and_its_bytes_are_used(shelf):
    file = shelf.put("big.bin", 4 * MEGABYTE)
    shelf.hub.pace = 3.0 * MEGABYTE
    first = shelf.child()
    assert shelf.hub.wait_until(lambda: shelf.hub.sent.get(file.name, 0) > MEGABYTE)
    second = shelf.child()
    time.sleep(0.6)
    calm(shelf, file, at_most=int(0.05 * file.size))
    kill(first)
    shelf.hub.pace = 3.0 * MEGABYTE
    report = finished(second)
    assert report["received"] < file.size
    assert shelf.hub.sent[file.name] <= 1.05 * file.size
    assert shelf.cache().entry(NAME).files[file.name].path.read_bytes() == shelf.content(file.name)


def test_one_that_was_suspended_and_overtaken_does_no_harm(shelf):
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
    assert shelf.cache().entry(NAME).files[file.name].path.read_bytes() == shelf.content(file.name)
    assert not shelf.leases()


def test_the_lease_of_a_dead_worker_on_another_host_is_taken_over(shelf):
    file = shelf.put("big.bin", 100_000)
    lease = shelf.root / "leases" / file.key
    lease.parent.mkdir(parents=True)
    lease.write_text("worker-7f3a@another-host pid 1")
    half = shelf.root / "partial" / f"{file.key}.part"
    half.parent.mkdir()
    half.write_bytes(shelf.content(file.name)[:50_000])
    before = time.monotonic()
    assert shelf.fetch().bytes_downloaded == 50_000
    assert time.monotonic() - before > 1.0
    assert not shelf.leases()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_volume_that_runs_full_is_named_and_left_as_it_was(shelf):
    shelf.root.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", shelf.root], check=False)
    if mounted.returncode != 0:
        pytest.skip("no mounts in this container")
    try:
        shelf.put("small.bin", MEGABYTE)
        shelf.fetch("small.bin", entry="small")
        shelf.put("unsized.bin", 4 * MEGABYTE, sized=False)
        with pytest.raises(DiskFull, match="ran full"):
            shelf.fetch("unsized.bin")
        assert not shelf.parts()
        assert not shelf.leases()
        assert [blob.name for blob in shelf.blobs()] == [shelf.files["small.bin"].sha256]
        assert shelf.cache().entry("small") is not None
        with pytest.raises(DiskFull, match="GiB free"):
            shelf.fetch(shelf.put("big.bin", 4 * MEGABYTE).name)
        assert shelf.hub.sent.get("big.bin", 0) == 0
        shelf.put("fits.bin", MEGABYTE)
        assert shelf.fetch("fits.bin", entry="fits").bytes_downloaded == MEGABYTE
    finally:
        subprocess.run(["umount", shelf.root], check=True)
