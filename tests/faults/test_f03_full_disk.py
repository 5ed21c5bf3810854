"""F3: the disk is full at the start or midway: a typed refusal, nothing half left, and the next job goes on."""

import os
import subprocess

import pytest

from tests.store.conftest import shelf as shelf
from tests.store.downloading import MEGABYTE
from worker.core.errors import DiskFull


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_volume_that_runs_full_is_named_and_left_as_it_was(shelf, figures):
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
        figures("F3", "parts left by a download that filled the volume", len(shelf.parts()), "", at_most=0)
        assert not shelf.leases()
        assert [blob.name for blob in shelf.blobs()] == [shelf.files["small.bin"].sha256]
        assert shelf.cache().entry("small") is not None
        with pytest.raises(DiskFull, match="GiB free"):
            shelf.fetch(shelf.put("big.bin", 4 * MEGABYTE).name)
        figures("F3", "bytes fetched of what cannot fit", shelf.hub.sent.get("big.bin", 0), "B", at_most=0)
        shelf.put("fits.bin", MEGABYTE)
        assert shelf.fetch("fits.bin", entry="fits").bytes_downloaded == MEGABYTE
    finally:
        subprocess.run(["umount", shelf.root], check=True)
