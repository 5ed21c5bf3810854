"""The cache as its users see it: files by content, healed when they were harmed, and names that cannot escape."""

import json
import os
import shutil
import time

import pytest

from tests.store.shelf import NAME
from worker.core.errors import CorruptFile
from worker.store import entries
from worker.store.janitor import Janitor

SIZE = 50_000


@pytest.fixture
def entry(shelf):
    """Two files, one of them in a folder."""
    shelf.put("model.bin", SIZE)
    shelf.put("unet/config.json", 100)
    return shelf.fetch()


def refetched(shelf) -> set[str]:
    """The files that were sent since."""
    return {seen.path.partition("/big.")[0].split("/", 5)[-1] for seen in shelf.hub.requests}


class TestLayout:
    def test_files_lie_under_their_own_names_and_their_content_once(self, shelf, entry):
        assert (entry.root / "unet" / "config.json").read_bytes() == shelf.content("unet/config.json")
        assert (entry.root / "model.bin").resolve().parent == shelf.root / "blobs"
        assert {blob.name for blob in shelf.blobs()} == {file.sha256 for file in shelf.files.values()}
        again = shelf.fetch("model.bin", entry="another name")
        assert (again.bytes_downloaded, len(shelf.blobs())) == (0, 2)

    def test_the_manifest_says_all_of_it(self, shelf, entry):
        manifest = json.loads((entry.root.parent / ".ok").read_text())
        assert manifest["name"] == NAME
        assert set(manifest["files"]) == {"model.bin", "unet/config.json"}
        state = (shelf.root / "blobs" / entry.files["model.bin"].sha256).stat()
        assert manifest["files"]["model.bin"] == {
            "size": SIZE,
            "sha256": shelf.files["model.bin"].sha256,
            "mtime_ns": state.st_mtime_ns,
        }

    def test_links_hold_when_the_volume_is_mounted_elsewhere(self, shelf, entry, tmp_path):
        shelf.root.rename(tmp_path / "elsewhere")
        shelf.root = tmp_path / "elsewhere"
        found = shelf.cache().entry(NAME)
        assert found.files["model.bin"].path.read_bytes() == shelf.content("model.bin")

    @pytest.mark.parametrize(
        "name", ["../../../outside", "/etc/passwd", ".hidden", "a" * 500, "ä\ud800\0\n", "hf:o/r@main#../x", "..", "."]
    )
    def test_no_name_leaves_the_folder_of_entries(self, shelf, name):
        shelf.put("model.bin", 100)
        entry = shelf.fetch(entry=name)
        assert entry.root.parent.parent == shelf.root / "entries"
        assert entry.root.resolve().is_relative_to(shelf.root.resolve())
        assert shelf.cache().entry(name).name == name
        assert {path.name for path in shelf.root.parent.iterdir()} == {"models", "served"}

    def test_two_names_are_two_entries(self, shelf, entry):
        for other in (NAME.upper(), NAME + "/", NAME.replace(":", "%3A")):
            assert shelf.cache().entry(other) is None

    @pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "a\\b", "a\0b", "", "x" * 300])
    def test_a_file_name_that_leaves_its_entry_is_refused_before_it_is_fetched(self, shelf, name):
        shelf.put("model.bin", 100)
        file = shelf.files["model.bin"]
        shelf.files = {"x": type(file)(name, file.url, file.size, file.sha256)}
        with pytest.raises(CorruptFile, match="cannot be the name"):
            shelf.fetch()
        assert shelf.hub.requests == []
        assert not shelf.blobs()


class TestHealing:
    def test_a_file_that_was_only_touched_is_hashed_once_and_kept(self, shelf, entry, monkeypatch):
        blob = shelf.root / "blobs" / shelf.files["model.bin"].sha256
        os.utime(blob)
        shelf.hub.requests.clear()
        assert shelf.cache().entry(NAME) is not None
        monkeypatch.setattr("worker.store.entries.digest_of", pytest.fail)
        assert shelf.cache().entry(NAME) is not None
        assert shelf.hub.requests == []

    def test_a_copied_volume_is_believed_after_one_look(self, shelf, entry, tmp_path):
        shutil.copytree(shelf.root, tmp_path / "copy", symlinks=True, copy_function=shutil.copyfile)
        shelf.root = tmp_path / "copy"
        shelf.hub.requests.clear()
        assert shelf.cache().entry(NAME).total_bytes == entry.total_bytes
        assert shelf.hub.requests == []

    @pytest.mark.parametrize("text", ["", "{", "[]", '{"name": 1, "files": {}, "details": {}}', '{"files": 3}'])
    def test_a_damaged_manifest_is_no_entry_and_costs_no_transfer(self, shelf, entry, text):
        (entry.root.parent / ".ok").write_text(text)
        assert shelf.cache().entry(NAME) is None
        assert shelf.fetch().bytes_downloaded == 0

    def test_a_link_that_was_removed_is_put_back(self, shelf, entry):
        entry.files["model.bin"].path.unlink()
        assert shelf.cache().entry(NAME) is None
        assert shelf.fetch().bytes_downloaded == 0

    def test_what_a_killed_worker_had_fetched_already_is_hashed_and_used(self, shelf, entry):
        (entry.root.parent / ".ok").unlink()
        assert shelf.fetch().bytes_downloaded == 0
        (entry.root.parent / ".ok").unlink()
        (shelf.root / "blobs" / shelf.files["model.bin"].sha256).write_bytes(os.urandom(SIZE))
        assert shelf.fetch().bytes_downloaded == SIZE

    def test_an_entry_whose_source_names_another_content_now_is_renewed(self, shelf, entry):
        shelf.put("model.bin", SIZE, seed=1)
        renewed = shelf.fetch()
        assert renewed.files["model.bin"].path.read_bytes() == shelf.content("model.bin")


def test_a_new_model_reads_no_manifest_of_the_others_and_a_shared_file_no_more_than_it_needs(shelf, entry, monkeypatch):
    for number in range(30):
        shutil.copytree(entry.root.parent, entry.root.parent.with_name(f"other{number:02d}"), symlinks=True)
    manifests = []
    read = entries.read_small
    monkeypatch.setattr(Janitor, "sweep_now_and_then", lambda self: None)  # which looks at all, once in an hour
    monkeypatch.setattr(entries, "read_small", lambda path: manifests.append(path) or read(path))
    shelf.put("other.bin", SIZE, seed=7)
    shelf.fetch("other.bin", entry="new")
    assert len(manifests) <= 2, manifests
    manifests.clear()
    assert shelf.fetch(entry="again").bytes_downloaded == 0
    assert len(manifests) <= 4, manifests


def test_a_link_without_a_digest_is_not_taken_for_what_it_led_to_before(shelf):
    shelf.put("model.bin", SIZE, digest=False, sized=False)
    old = shelf.fetch(entry="before").files["model.bin"].path.read_bytes()
    (shelf.folder / "model.bin").write_bytes(os.urandom(SIZE))
    new = shelf.fetch(entry="after").files["model.bin"].path.read_bytes()
    assert new == shelf.content("model.bin") != old
    assert shelf.cache().entry("before").files["model.bin"].path.read_bytes() == old


class TestHousekeeping:
    def test_verify_names_what_is_damaged_and_removes_it(self, shelf, entry):
        blob = shelf.root / "blobs" / shelf.files["model.bin"].sha256
        state = blob.stat()
        blob.write_bytes(os.urandom(SIZE))
        os.utime(blob, ns=(state.st_mtime_ns, state.st_mtime_ns))
        cache = shelf.cache()
        assert cache.entry(NAME) is not None, "rotten disks do not move the time"
        assert cache.damaged(cache.matching(NAME)[0]) == ["model.bin"]
        assert blob.exists(), "to look changes nothing"
        assert cache.damaged(cache.matching(NAME)[0], removes=True) == ["model.bin"]
        assert not blob.exists()
        assert shelf.fetch().bytes_downloaded == SIZE
        assert cache.damaged(cache.matching(NAME)[0]) == []

    @pytest.mark.parametrize("text", [NAME, "org/big"])
    def test_a_model_is_removed_by_its_name_or_its_repository(self, shelf, entry, text):
        shelf.fetch("model.bin", entry="hf:org/other@main")
        cache = shelf.cache()
        (found,) = cache.matching(text)
        assert cache.remove(found) == 100, "the other model needs the large file"
        assert [left.name for left in cache.entries()] == ["hf:org/other@main"]

    @pytest.mark.parametrize("text", ["org/nothing", "../models", "..", "org", "", "big"])
    def test_another_name_means_nothing(self, shelf, entry, text):
        assert shelf.cache().matching(text) == []

    def test_entries_are_listed_the_last_used_first(self, shelf, entry):
        shelf.fetch("model.bin", entry="b")
        os.utime(entry.root.parent / ".ok", (time.time() - 500, time.time() - 500))
        cache = shelf.cache()
        assert [found.name for found in cache.entries()] == ["b", NAME]
        cache.entry(NAME)
        os.utime(shelf.root / "entries" / "b" / ".ok", (time.time() - 100, time.time() - 100))
        assert [found.name for found in cache.entries()] == [NAME, "b"]
        assert cache.used_bytes() == SIZE + 100

    def test_details_come_back_as_they_were_given(self, shelf):
        from tests.store.fetching import refused
        from worker.core.turn import StopSignal
        from worker.net.client import Client
        from worker.store.transfer import Fetch

        shelf.put("model.bin", 100)
        details = {"base": "SDXL 1.0", "words": ["a", "b"], "n": None}
        client = Client(allow_private=True)
        files = [*shelf.files.values()]
        shelf.cache().fetch(Fetch(NAME, files, client, "x", print, StopSignal(5), refused, details))
        assert shelf.cache().entry(NAME).details == details
