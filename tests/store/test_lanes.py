"""Large files over several connections: in ranges of one version, put together in order, no more than are free."""

import asyncio
from dataclasses import replace

import pytest
from aiohttp import web

from tests.fakes.hub import FakeHub
from tests.store.shelf import QUICK, Shelf
from worker.core.errors import CorruptFile
from worker.store.lanes import Lanes

SIZE = 400_000
PIECE = 50_000
LANES = 5


class CountingHub(FakeHub):
    """Answers for pieces only once so many are asked for at the same time."""

    def __init__(self, at_once: int) -> None:
        super().__init__()
        self._left = at_once
        self._asked = asyncio.Event()

    async def _send(self, request, file, headers):
        if "Range" in request.headers:
            self._left -= 1
            if self._left <= 0:
                self._asked.set()
            await asyncio.wait_for(self._asked.wait(), 60)
        return await super()._send(request, file, headers)


class RefusingHub(FakeHub):
    """Refuses the first three ranges, as one does that counts its connections."""

    refused = 0

    async def _send(self, request, file, headers):
        if "Range" in request.headers and self.refused < 3:
            self.refused += 1
            return web.Response(status=429)
        return await super()._send(request, file, headers)


def fetched(shelf, **lanes) -> bytes:
    patience = replace(QUICK, lanes=Lanes(**{"a_file": LANES, "piece_bytes": PIECE, **lanes}))
    entry = shelf.fetch(patience=patience, timeout_s=90.0)
    assert not shelf.parts()
    return entry.files["big.bin"].path.read_bytes()


def asked(shelf) -> list[tuple[int, int]]:
    """The ranges that were asked for, in their order in the file."""
    spans = [seen.headers["range"] for seen in shelf.hub.requests if "range" in seen.headers]
    return sorted(tuple(int(text) for text in span.removeprefix("bytes=").split("-")) for span in spans)


def test_the_pieces_of_a_large_file_are_fetched_side_by_side_and_are_the_file(tmp_path):
    (tmp_path / "hub").mkdir()
    with CountingHub(LANES - 1) as hub:
        shelf = Shelf(hub, tmp_path / "hub", tmp_path / "models")
        shelf.put("big.bin", SIZE)
        assert fetched(shelf) == shelf.content("big.bin")
        assert asked(shelf) == [(start, start + PIECE - 1) for start in range(PIECE, SIZE, PIECE)]
        assert len({seen.headers.get("if-range") for seen in hub.requests[1:]}) == 1
        assert shelf.events[-1].step == SIZE


def test_a_server_without_a_certain_version_is_asked_once(shelf):
    shelf.put("big.bin", SIZE)
    shelf.hub.etags = False
    assert fetched(shelf) == shelf.content("big.bin")
    assert len(shelf.hub.requests) == 1


def test_a_server_that_says_it_takes_ranges_and_takes_none_gets_there_over_one_connection(shelf):
    shelf.put("big.bin", SIZE)
    shelf.hub.ranges = False
    assert fetched(shelf, a_file=10) == shelf.content("big.bin")


def test_a_small_file_comes_over_one_connection(shelf):
    shelf.put("big.bin", 4 * PIECE - 1)
    assert fetched(shelf) == shelf.content("big.bin")
    assert len(shelf.hub.requests) == 1


def test_a_server_that_breaks_every_connection_off_gets_there_all_the_same(shelf):
    shelf.put("big.bin", SIZE)
    shelf.hub.cut = 30_000
    assert fetched(shelf) == shelf.content("big.bin")


def test_what_was_left_by_a_kill_is_gone_on_with_in_pieces(shelf):
    file = shelf.put("big.bin", SIZE)
    part = shelf.root / "partial" / f"{file.key}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(shelf.content("big.bin")[:100_000])
    assert fetched(shelf) == shelf.content("big.bin")
    assert min(int(seen.headers["range"][6:].split("-")[0]) for seen in shelf.hub.requests) == 100_000


def test_a_flipped_bit_in_a_piece_is_never_published(shelf):
    shelf.put("big.bin", SIZE)
    shelf.hub.corrupt("big.bin")
    with pytest.raises(CorruptFile, match="arrived damaged twice"):
        fetched(shelf)
    assert not shelf.blobs()


def test_pieces_that_are_refused_are_asked_for_again_over_fewer_connections(tmp_path):
    (tmp_path / "hub").mkdir()
    with RefusingHub() as hub:
        shelf = Shelf(hub, tmp_path / "hub", tmp_path / "models")
        shelf.put("big.bin", SIZE)
        assert fetched(shelf) == shelf.content("big.bin")
        assert hub.refused == 3


def test_a_process_opens_no_more_than_its_share_beside_the_first(shelf):
    lanes = Lanes(in_all=3)
    with lanes.taken(2) as first, lanes.taken(9) as second, lanes.taken(9) as third:
        assert (first, second, third) == (2, 1, 0)
    with lanes.taken(9) as all_again:
        assert all_again == 3
