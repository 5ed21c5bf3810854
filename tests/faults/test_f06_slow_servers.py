"""F6: a server sends a byte a second: whoever waits is free at the deadline, whatever still arrives."""

import time

import pytest

from tests.store.conftest import shelf as shelf
from worker.core.errors import JobTimeout


def test_a_download_that_trickles_ends_with_its_job(shelf, figures):
    shelf.put("big.bin", 400_000)
    shelf.hub.pace = 1.0  # byte a second
    started = time.monotonic()
    with pytest.raises(JobTimeout):
        shelf.fetch(timeout_s=1.0)
    late = time.monotonic() - started - 1.0
    figures("F6", "a trickling download ended after its deadline", late, "s", at_most=2, momentary=True)
    shelf.hub.heal()
    assert shelf.fetch().total_bytes == 400_000
