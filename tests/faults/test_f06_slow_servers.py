"""F6: a server sends a byte a second: whoever waits is free at the deadline, whatever still arrives."""

import threading
import time

import pytest

from tests.store.conftest import shelf as shelf
from worker.core.errors import JobTimeout
from worker.store.transfer import Patience


def going_on(before):
    """The downloads that go on, but for those from before; waited for, since each ends with its next byte."""
    for _ in range(600):
        threads = [thread for thread in threading.enumerate() if thread.name == "download" and thread not in before]
        if not threads:
            break
        time.sleep(0.05)
    return threads


def test_a_download_that_trickles_ends_with_its_job(shelf, figures):
    before = threading.enumerate()
    shelf.put("big.bin", 400_000)
    shelf.hub.pace = 5.0  # bytes a second: none of them is late
    started = time.monotonic()
    with pytest.raises(JobTimeout):
        shelf.fetch(timeout_s=1.0, patience=Patience(silence_s=60))
    late = time.monotonic() - started - 1.0
    figures("F6", "a trickling download ended after its deadline", late, "s", at_most=2, momentary=True)
    figures("F6", "downloads that went on without their job", len(going_on(before)), "", at_most=0)
    shelf.hub.heal()
    assert shelf.fetch().total_bytes == 400_000
