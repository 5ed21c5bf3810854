"""F1: a download is killed at any byte: what lies on disk is used, and never taken for the whole."""

import random
import time

from tests.store.conftest import shelf as shelf
from tests.store.downloading import MEGABYTE, calm, finished, kill
from tests.store.shelf import NAME


def test_a_storm_of_kills_costs_at_most_five_percent_of_the_bytes_each(shelf, figures):
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
    again = (shelf.hub.sent[file.name] - file.size) / file.size / killed
    figures("F1", "bytes sent twice for each kill, of the file", 100 * again, "%", at_most=5)
    entry = shelf.cache().entry(NAME)
    wrong = entry.files[file.name].path.read_bytes() != shelf.content(file.name)
    figures("F1", "wrong files published after kills", wrong, "", at_most=0)
    figures("F1", "parts left over after kills", len(shelf.parts()), "", at_most=0)
    assert not shelf.leases()


def test_a_killed_downloader_is_replaced_and_its_bytes_are_used(shelf, figures):
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
    again = (shelf.hub.sent[file.name] - file.size) / file.size
    figures("F1", "bytes sent twice when another takes over, of the file", 100 * again, "%", at_most=5)
    assert shelf.cache().entry(NAME).files[file.name].path.read_bytes() == shelf.content(file.name)
