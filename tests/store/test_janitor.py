"""Making room: the least recently used goes, the pinned and the used stay; garbage is swept, and nothing else."""

import os
import threading
import time

import pytest

from tests.store.fetching import fetch
from tests.waiting import LIMIT_S
from worker.core.errors import DiskFull, InvalidRequest
from worker.store.janitor import GARBAGE_AGE_S, IN_USE_S

MEGABYTE = 1_000_000
DAY = 86_400.0


@pytest.fixture
def models(shelf):
    """Three models of a megabyte each, all from yesterday: a the oldest, c the newest; and d that is not there yet."""
    for age, name in ((3, "a"), (2, "b"), (1, "c")):
        shelf.put(f"{name}.bin", MEGABYTE)
        shelf.fetch(f"{name}.bin", entry=name)
        used(shelf, name, ago=DAY + age * 100)
    shelf.put("d.bin", MEGABYTE)
    return shelf


def used(shelf, name: str, *, ago: float) -> None:
    path = shelf.root / "entries" / name / ".ok"
    os.utime(path, (time.time() - ago, time.time() - ago))


def names(shelf) -> set[str]:
    """The entries that are there, each with all its bytes."""
    found = shelf.cache().entries()
    assert all(file.path.is_file() for entry in found for file in entry.files.values())
    assert {blob.name for blob in shelf.blobs()} == {file.sha256 for entry in found for file in entry.files.values()}
    return {entry.name for entry in found}


class TestQuota:
    def test_the_least_recently_used_makes_room(self, models):
        models.fetch("d.bin", entry="d", max_bytes=3 * MEGABYTE + 500_000)
        assert names(models) == {"b", "c", "d"}

    def test_a_use_counts_and_not_the_day_of_the_download(self, models):
        models.cache().entry("a")
        models.fetch("d.bin", entry="d", max_bytes=3 * MEGABYTE)
        assert names(models) == {"a", "c", "d"}

    def test_what_is_pinned_stays(self, models):
        cache = models.cache()
        for name in ("a", "b"):
            cache.pin(*cache.matching(name), pinned=True)
        models.fetch("d.bin", entry="d", max_bytes=3 * MEGABYTE)
        assert names(models) == {"a", "b", "d"}
        cache.pin(*cache.matching("a"), pinned=False)
        used(models, "d", ago=DAY)
        models.put("e.bin", MEGABYTE)
        models.fetch("e.bin", entry="e", max_bytes=3 * MEGABYTE)
        assert names(models) == {"b", "d", "e"}

    def test_what_belongs_to_a_version_in_use_stays_and_is_not_removed_by_name_either(self, models):
        cache = models.cache(max_bytes=3 * MEGABYTE)
        kept = cache.matching("a")[0].digests
        cache.keep(lambda: kept)
        fetch(cache, [models.files["d.bin"]], [], "d", LIMIT_S)
        assert names(models) == {"a", "c", "d"}
        with pytest.raises(InvalidRequest, match="a belongs to a version"):
            cache.remove(*cache.matching("a"))
        used(models, "d", ago=DAY)
        models.put("e.bin", 3 * MEGABYTE)
        with pytest.raises(DiskFull):
            fetch(cache, [models.files["e.bin"]], [], "e", LIMIT_S)
        assert names(models) == {"a", "c", "d"}

    def test_what_was_used_a_moment_ago_stays_and_nothing_goes_in_vain(self, models):
        for name in ("a", "b"):
            used(models, name, ago=IN_USE_S / 2)
        with pytest.raises(DiskFull, match="CACHE_MAX_GB"):
            models.fetch("d.bin", entry="d", max_bytes=2 * MEGABYTE)
        assert names(models) == {"a", "b", "c"}
        assert models.hub.sent.get("d.bin", 0) == 0

    def test_a_file_that_another_model_shares_is_not_room(self, models):
        models.fetch("a.bin", "b.bin", entry="both")
        with pytest.raises(DiskFull):
            models.fetch("d.bin", entry="d", max_bytes=2 * MEGABYTE)
        models.fetch("d.bin", entry="d", max_bytes=3 * MEGABYTE)
        assert names(models) >= {"both", "d"}
        assert "c" not in names(models)

    def test_a_model_larger_than_the_quota_is_refused(self, models):
        with pytest.raises(DiskFull):
            models.fetch("d.bin", entry="d", max_bytes=MEGABYTE // 2)
        assert names(models) == {"a", "b", "c"}

    def test_without_a_quota_a_full_volume_makes_room_too(self, models, monkeypatch):
        class Usage:
            free = 500_000

        monkeypatch.setattr("worker.store.janitor.shutil.disk_usage", lambda path: Usage)
        models.fetch("d.bin", entry="d")
        assert names(models) == {"b", "c", "d"}

    def test_the_reserve_is_kept_free_of_models_but_not_of_a_few_kilobytes(self, models, monkeypatch):
        class Usage:
            free = 3 * MEGABYTE

        monkeypatch.setattr("worker.store.janitor.shutil.disk_usage", lambda path: Usage)
        models.put("config.json", 2_000)
        models.fetch("config.json", entry="e", reserve_bytes=3 * MEGABYTE)
        assert names(models) == {"a", "b", "c", "e"}
        models.fetch("d.bin", entry="d", reserve_bytes=3 * MEGABYTE)
        assert names(models) == {"b", "c", "d", "e"}


def test_what_was_evicted_while_the_rest_was_fetched_is_fetched_again(models):
    models.hub.pace = 3.0 * MEGABYTE
    found = []
    thread = threading.Thread(target=lambda: found.append(models.fetch("a.bin", "d.bin", entry="both")))
    thread.start()
    assert models.hub.wait_until(lambda: models.hub.sent.get("d.bin", 0) > 0)
    other = models.cache()
    other.remove(*other.matching("a"))
    thread.join()
    assert found[0].files["a.bin"].path.read_bytes() == models.content("a.bin")
    assert names(models) == {"b", "c", "both"}


def left(shelf, path: str, age: float, content: str = "x" * 1_000):
    """A file of that age that something left behind."""
    file = shelf.root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(content)
    os.utime(file, (time.time() - age, time.time() - age))
    return file


OLD, YOUNG = GARBAGE_AGE_S + 60, GARBAGE_AGE_S - 60
LEFTOVERS = [
    "partial/0abc.part",
    "partial/0abc.etag",
    "blobs/" + "0" * 64,
    "leases/0def",
    "digests/git-0abc",
    "entries/broken/files/x",
    "entries/a/.0123456789abcdef0123456789abcdef",
]


class TestSweeping:
    @pytest.mark.parametrize("path", LEFTOVERS)
    def test_what_nobody_names_goes_when_it_is_old(self, models, path):
        file = left(models, path, OLD, "0" * 1_000)
        for folder in file.parents[:2]:
            os.utime(folder, (time.time() - OLD, time.time() - OLD))
        swept = models.cache().prune()
        assert not file.exists()
        assert swept.files == 1
        assert names(models) == {"a", "b", "c"}

    @pytest.mark.parametrize("path", LEFTOVERS)
    def test_what_may_belong_to_a_download_that_goes_on_stays(self, models, path):
        file = left(models, path, YOUNG)
        assert models.cache().prune().files == 0
        assert file.exists()

    def test_a_part_that_is_being_written_stays_however_old(self, models):
        part, _ = left(models, "partial/0abc.part", OLD), left(models, "leases/0abc", 1)
        models.cache().prune()
        assert part.exists()

    def test_a_download_that_goes_on_is_spared_by_the_most_thorough_sweep(self, models):
        part, _ = left(models, "partial/0abc.part", 60), left(models, "leases/0abc", 1)
        models.cache().prune(older_than_s=0)
        assert part.exists()

    def test_links_to_nothing_go_with_their_entry(self, models):
        (models.root / "blobs" / models.files["a.bin"].sha256).unlink()
        for path in [*(models.root / "entries" / "a").rglob("*"), models.root / "entries" / "a"]:
            os.utime(path, (time.time() - OLD, time.time() - OLD), follow_symlinks=False)
        models.cache().prune()
        assert not (models.root / "entries" / "a").exists()
        assert names(models) == {"b", "c"}

    def test_a_download_sweeps_before_it_starts(self, models):
        part = left(models, "partial/0abc.part", OLD)
        models.fetch("d.bin", entry="d")
        assert not part.exists()

    def test_an_empty_cache_has_nothing_to_sweep(self, shelf):
        assert shelf.cache().prune().files == 0
        assert not shelf.root.exists()
