"""A server that cuts, stalls, lies or breaks: the right bytes in the end, or a typed refusal and nothing on disk."""

import gzip

import pytest
from aiohttp import web

from tests.store.shelf import NAME
from tests.waiting import until
from worker.core.errors import AccessDenied, CorruptFile, JobTimeout, SourceUnavailable
from worker.store.transfer import Patience

SIZE = 400_000


def refusal(status: int, **headers: str) -> web.Response:
    return web.Response(status=status, text="no", headers=headers)


def is_clean(shelf) -> bool:
    return not (shelf.blobs() or shelf.parts() or shelf.leases() or shelf.cache().entries())


def ranges(shelf) -> list[str | None]:
    return [seen.headers.get("range") for seen in shelf.hub.requests]


@pytest.fixture
def half(shelf):
    """Leaves the first 300,000 bytes of big.bin, as a killed download does."""

    def leave(content: bytes | None = None, etag: str | None = None, **known) -> None:
        file = shelf.put("big.bin", SIZE, **known)
        part = shelf.root / "partial" / f"{file.key}.part"
        part.parent.mkdir(parents=True)
        part.write_bytes(shelf.content("big.bin")[:300_000] if content is None else content)
        if etag:
            part.with_suffix(".etag").write_text(etag)

    return leave


class TestResuming:
    def test_the_rest_is_asked_for_and_nothing_else(self, shelf, half):
        half()
        entry = shelf.fetch()
        assert entry.files["big.bin"].path.read_bytes() == shelf.content("big.bin")
        assert (entry.bytes_downloaded, ranges(shelf)) == (100_000, ["bytes=300000-"])
        assert shelf.events[0].step > 300_000
        assert not shelf.parts()

    def test_a_server_without_ranges_sends_it_all_again(self, shelf, half):
        half()
        shelf.hub.ranges = False
        entry = shelf.fetch()
        assert entry.files["big.bin"].path.read_bytes() == shelf.content("big.bin")
        assert entry.bytes_downloaded == SIZE

    def test_a_connection_that_breaks_again_and_again_gets_there_all_the_same(self, shelf):
        shelf.put("big.bin", SIZE)
        shelf.hub.cut = 90_000
        assert shelf.fetch().bytes_downloaded == SIZE
        assert ranges(shelf) == [None, *(f"bytes={n * 90_000}-" for n in range(1, 5))]

    @pytest.mark.parametrize("content", [b"x" * 300_000, b"x" * SIZE, b"x" * (SIZE + 1)])
    def test_a_part_with_other_bytes_is_thrown_away(self, shelf, half, content):
        half(content)
        entry = shelf.fetch()
        assert entry.files["big.bin"].path.read_bytes() == shelf.content("big.bin")

    def test_a_part_that_is_whole_needs_no_request(self, shelf, half):
        half()
        shelf.parts()[0].write_bytes(shelf.content("big.bin"))
        assert shelf.fetch().bytes_downloaded == 0
        assert shelf.hub.requests == []

    def test_of_a_file_without_digest_the_rest_is_taken_only_from_the_same_version(self, shelf, half):
        file = shelf.put("big.bin", SIZE, digest=False, sized=False)
        shelf.hub.cut = 300_000
        shelf.hub.script = []
        entry = shelf.fetch()
        assert entry.files["big.bin"].path.read_bytes() == shelf.content("big.bin")
        assert "if-range" in shelf.hub.requests[-1].headers
        assert file.sha256 is None

    @pytest.mark.parametrize("etag", ['"another version"', None])
    def test_another_version_or_an_unknown_one_is_fetched_whole(self, shelf, half, etag):
        half(b"x" * 300_000, etag, digest=False, sized=False)
        entry = shelf.fetch()
        assert entry.files["big.bin"].path.read_bytes() == shelf.content("big.bin")
        assert entry.bytes_downloaded == SIZE

    def test_a_whole_part_of_unknown_size_is_recognised_by_416(self, shelf, half):
        half(digest=False, sized=False)
        content = shelf.content("big.bin")
        shelf.parts()[0].write_bytes(content)
        shelf.parts()[0].with_suffix(".etag").write_text(
            f'"{shelf.hub.repos["org/big"].commits.popitem()[1]["big.bin"].etag}"'
        )
        shelf.put("big.bin", SIZE, digest=False, sized=False)
        assert shelf.fetch().bytes_downloaded == 0
        assert shelf.blobs()[0].read_bytes() == content

    def test_a_part_longer_than_the_file_is_thrown_away(self, shelf, half):
        half(b"x" * (SIZE + 50_000), '"y"', digest=False, sized=False)
        assert shelf.fetch().files["big.bin"].path.read_bytes() == shelf.content("big.bin")


class TestDamaged:
    def test_a_flipped_bit_of_the_same_size_is_never_published(self, shelf):
        shelf.put("big.bin", SIZE)
        shelf.hub.corrupt("big.bin")
        with pytest.raises(CorruptFile, match=r"big\.bin of org/big arrived damaged twice") as caught:
            shelf.fetch()
        assert caught.value.retryable
        assert shelf.hub.sent["big.bin"] == 2 * SIZE
        assert is_clean(shelf)

    @pytest.mark.parametrize("change", [-1, 1])
    def test_another_size_than_the_source_names_is_refused_before_it_is_fetched(self, shelf, change):
        shelf.put("big.bin", SIZE)
        path = shelf.folder / "big.bin"
        path.write_bytes((shelf.content("big.bin") + b"x")[: SIZE + change])
        with pytest.raises(CorruptFile):
            shelf.fetch()
        assert is_clean(shelf)

    @pytest.mark.parametrize("kind", ["text/html", "application/octet-stream"])
    def test_a_web_page_in_place_of_the_file_is_for_the_source_to_explain(self, shelf, kind):
        shelf.put("big.bin", SIZE, digest=False, sized=False)
        shelf.hub.script = [web.Response(body=b"\n<!DOCTYPE html><html>log in</html>", content_type=kind)]
        with pytest.raises(SourceUnavailable, match="refused with 200"):
            shelf.fetch()
        assert is_clean(shelf)

    def test_a_file_that_is_compressed_unasked_is_not_taken(self, shelf):
        shelf.put("big.bin", SIZE)
        packed = gzip.compress(shelf.content("big.bin"))
        shelf.hub.script = [web.Response(body=packed, headers={"Content-Encoding": "gzip"})]
        with pytest.raises(AccessDenied, match="compressed"):
            shelf.fetch()
        assert is_clean(shelf)

    def test_gits_own_digest_counts_where_there_is_no_other(self, shelf):
        import dataclasses
        import hashlib

        file = shelf.put("config.json", 200, digest=False)
        blob = hashlib.sha1(b"blob 200\0" + shelf.content("config.json")).hexdigest()
        shelf.files = {"config.json": dataclasses.replace(file, git_sha1=blob)}
        shelf.hub.corrupt("config.json")
        with pytest.raises(CorruptFile):
            shelf.fetch()
        assert is_clean(shelf)
        shelf.hub._corrupted.clear()
        assert shelf.fetch().files["config.json"].path.read_bytes() == shelf.content("config.json")
        shelf.hub.requests.clear()
        assert shelf.fetch(entry="another").bytes_downloaded == 0, "its SHA-256 was noted"
        assert shelf.hub.requests == []

    def test_an_empty_file_is_a_file(self, shelf):
        shelf.put("empty.txt", 0)
        shelf.put("unsized.txt", 0, digest=False, sized=False)
        assert shelf.fetch().total_bytes == 0


class TestFailing:
    def test_500s_and_a_429_are_waited_out_as_long_as_the_server_asks_up_to_a_limit(self, shelf):
        shelf.put("big.bin", SIZE)
        shelf.hub.script = [refusal(500), refusal(429, **{"Retry-After": "3600"})]
        assert shelf.fetch(patience=Patience(backoff_s=0.01, max_wait_s=0.4)).bytes_downloaded == SIZE
        refused, again = shelf.hub.requests[-2:]
        assert again.at - refused.at >= 0.4

    def test_a_server_that_stays_down_is_named_as_that(self, shelf):
        shelf.put("big.bin", SIZE)
        shelf.hub.down = True
        with pytest.raises(SourceUnavailable, match="did not deliver") as caught:
            shelf.fetch()
        assert str(shelf.hub.port) not in caught.value.message
        assert is_clean(shelf)

    def test_a_server_that_hangs_is_given_up_in_time(self, shelf):
        shelf.put("big.bin", SIZE)
        shelf.hub.hang = True
        with pytest.raises(SourceUnavailable):
            shelf.fetch(patience=Patience(attempts=2, backoff_s=0.01, silence_s=0.3), timeout_s=100)
        assert len(shelf.hub.requests) == 2
        shelf.hub.hang = False

    @pytest.mark.parametrize("status", [401, 403, 404, 410, 451])
    def test_a_refusal_is_not_repeated_and_is_for_the_source_to_explain(self, shelf, status):
        shelf.put("big.bin", SIZE)
        shelf.hub.script = [refusal(status)]
        with pytest.raises(SourceUnavailable, match=f"refused with {status}"):
            shelf.fetch()
        assert len(shelf.hub.requests) == 1
        assert is_clean(shelf)

    def test_one_byte_at_a_time_does_not_outlive_the_deadline(self, shelf):
        shelf.put("big.bin", SIZE)
        shelf.hub.pace = 40.0
        with pytest.raises(JobTimeout):
            shelf.fetch(timeout_s=0.5)
        until(lambda: not shelf.leases())
        shelf.hub.pace = None
        assert shelf.fetch().files["big.bin"].path.read_bytes() == shelf.content("big.bin")

    def test_a_volume_that_cannot_be_written_is_named(self, shelf):
        shelf.put("big.bin", SIZE)
        shelf.root.write_text("a file where the folder should be")
        with pytest.raises(SourceUnavailable, match="cannot be written") as caught:
            shelf.fetch(entry=NAME)
        assert str(shelf.root) not in caught.value.message
