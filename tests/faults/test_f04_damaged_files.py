"""F4: files are truncated, flipped, replaced or of another size, on the wire and on disk. None is drawn with."""

import os
import shutil
import socket
import threading
from pathlib import Path

import pytest

from tests.store.conftest import WEIGHTS, Client
from tests.store.conftest import folder as folder
from tests.store.conftest import hub as hub
from tests.store.conftest import shelf as shelf
from tests.store.shelf import NAME
from worker.core.errors import CorruptFile
from worker.store.places import clear_away, state_of
from worker.store.rehash import Rehash

SIZE = 50_000


def flipped(path):
    """One bit of a file turned, its size and time as before."""
    state = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def other_place(path, how):
    """Something that is no file at `path`; closes what it opened."""
    clear_away(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if how == "folder":
        (path / "inside").mkdir(parents=True)
        (path / "inside/file").write_text("x")
    elif how == "pipe":
        os.mkfifo(path)
    elif how == "dangling link":
        path.symlink_to("nowhere/at/all")
    elif how == "loop":
        path.symlink_to(path.name)
    else:
        here = Path.cwd()
        os.chdir(path.parent)  # an address of a socket is short
        try:
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(path.name)
        finally:
            os.chdir(here)


# Places below a cache, by what stands there.
PLACES = {
    "blob": lambda shelf, file: shelf.root / "blobs" / file.sha256,
    "manifest": lambda shelf, file: shelf.fetch().root.parent / ".ok",
    "link": lambda shelf, file: shelf.fetch().files["model.bin"].path,
    "folder of links": lambda shelf, file: shelf.fetch().root / "unet",
    "entry": lambda shelf, file: shelf.fetch().root.parent,
    "part": lambda shelf, file: shelf.root / "partial" / f"{file.key}.part",
    "etag": lambda shelf, file: shelf.root / "partial" / f"{file.key}.etag",
    "lease": lambda shelf, file: shelf.root / "leases" / file.key,
}


@pytest.mark.parametrize("how", ["folder", "pipe", "dangling link", "loop", "socket"])
def test_what_is_no_file_is_cleared_away_and_the_file_fetched(shelf, how, figures):
    file = shelf.put("model.bin", SIZE)
    shelf.put("unet/config.json", 100)
    healed = 0
    for name, place in PLACES.items():
        path = place(shelf, file)
        if name not in {"folder of links", "entry"} or how != "folder":
            other_place(path, how)
        if name in {"part", "etag", "lease"}:
            clear_away(shelf.root / "blobs" / file.sha256)
        entry = shelf.fetch(timeout_s=30)
        healed += all(item.path.read_bytes() == shelf.content(name) for name, item in entry.files.items())
        assert shelf.cache().entry(NAME) is not None, name
    figures("F4", f"places that held a {how} and were healed", healed, "", at_least=len(PLACES))


def test_garbage_that_is_no_file_is_swept(shelf):
    shelf.put("model.bin", SIZE)
    shelf.fetch()
    for name in ("blobs/" + "0" * 64, "partial/x.part", "leases/y", "digests/x", "checked/x", "entries/x"):
        other_place(shelf.root / name, "folder")
    shelf.cache().prune(-3600.0)
    assert [path.name for path in shelf.blobs()] == [shelf.files["model.bin"].sha256]
    assert not [*shelf.root.glob("*/x*")]


def test_a_flipped_bit_with_its_old_time_is_found_by_reading_back_and_healed(shelf, figures):
    shelf.put("model.bin", SIZE)
    shelf.put("other.bin", SIZE)
    entry = shelf.fetch()
    blob = entry.files["model.bin"].path.resolve()
    flipped(blob)
    assert shelf.cache().entry(NAME) is not None  # neither its size nor its time says so
    rested = []
    rehash = Rehash(shelf.root, 1e6, every_s=-3600)
    assert rehash.round(rested.append) == [blob.name]
    figures("F4", "bytes a second that are read back at 1 MB/s", 2 * SIZE / sum(rested), "", at_most=1.001e6)
    assert shelf.cache().entry(NAME) is None
    assert shelf.fetch().bytes_downloaded == SIZE
    assert blob.read_bytes() == shelf.content("model.bin")
    assert rehash.round(rested.append) == []


def test_a_file_is_read_back_once_a_week_by_one_worker_and_can_be_broken_off(shelf):
    shelf.put("model.bin", SIZE)
    blob = shelf.fetch().files["model.bin"].path.resolve()
    read = []
    weekly = Rehash(shelf.root, 1e9)
    weekly.round(read.append)
    assert read == []  # it was verified when it came
    long_ago = blob.stat().st_mtime - 8 * 24 * 3600
    os.utime(blob, (long_ago, long_ago))
    weekly.round(lambda seconds: read.append(seconds) or True)  # broken off: it stays due
    weekly.round(read.append)
    assert len(read) == 2
    weekly.round(read.append)
    assert len(read) == 2
    os.utime(shelf.root / "checked" / blob.name, (long_ago, long_ago))
    (shelf.root / "leases/rehash").write_bytes(b"another worker")
    weekly.round(read.append)
    assert len(read) == 2


def linked(hub, folder, root):
    """A cache of another tool as huggingface_hub lays it out: links to blobs by their digest."""
    repo = root / "models--org--model"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs/main").write_text(hub.commit)
    (repo / "blobs").mkdir()
    for path in folder.rglob("*"):
        if path.is_file():
            name = path.relative_to(folder).as_posix()
            blob = repo / "blobs" / hub.repos["org/model"].commits[hub.commit][name].etag
            shutil.copyfile(path, blob)
            link = repo / "snapshots" / hub.commit / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(blob, link.parent))
    return repo / "snapshots" / hub.commit


@pytest.mark.parametrize("kind", ["lookup", "shared"])
@pytest.mark.parametrize("harmed", [f"unet/{WEIGHTS}", "vae/config.json"])
def test_a_flipped_bit_in_another_tools_cache_is_found_before_first_use(hub, folder, tmp_path, kind, harmed, figures):
    root = tmp_path / "theirs"
    snapshot = linked(hub, folder, root)
    client = Client(hub.endpoint, tmp_path / "cache", **{kind: (root,)})
    assert client.ensure("org/model").root == snapshot  # whole: taken where it lies
    other = (snapshot / harmed).resolve()
    content = other.read_bytes()
    flipped(other)
    os.utime(other)  # noticed without a digest that was computed before
    fresh = Client(hub.endpoint, tmp_path / "other", **{kind: (root,)})
    files = fresh.ensure("org/model")
    drawn_with = (files.root / harmed).read_bytes()
    figures(
        "F4", f"damaged files taken from another tool's cache ({kind}, {harmed})", drawn_with != content, "", at_most=0
    )
    assert not files.root.is_relative_to(root)


def test_another_tools_files_are_read_once_and_remembered_on_the_volume(hub, folder, tmp_path, monkeypatch, figures):
    root = tmp_path / "theirs"
    linked(hub, folder, root)
    read = []
    original = __import__("worker.store.digests", fromlist=["digest_of"]).digest_of
    monkeypatch.setattr(
        "worker.store.digests.digest_of", lambda path, *rest: read.append(path.name) or original(path, *rest)
    )
    first = Client(hub.endpoint, tmp_path / "cache", lookup=(root,))
    first.peek("org/model")
    assert read == []  # to describe a model costs no reading of weights
    for _ in range(2):
        first.ensure("org/model")
    once = len(read)
    assert once > 3
    Client(hub.endpoint, tmp_path / "cache", lookup=(root,)).ensure("org/model")
    figures("F4", "files of another tool read again by the next worker", len(read) - once, "", at_most=0)


@pytest.mark.parametrize("how", ["truncated", "grown", "rewritten", "one bit"])
def test_what_is_harmed_on_disk_is_never_taken_and_fetched_again_alone(shelf, how, figures):
    shelf.put("model.bin", SIZE)
    shelf.put("unet/config.json", 100)
    blob = shelf.fetch().files["model.bin"].path.resolve()
    content = blob.read_bytes()
    blob.write_bytes(
        {
            "truncated": content[:1_000],
            "grown": content + b"x",
            "rewritten": os.urandom(SIZE),
            "one bit": bytes([content[0] ^ 1]) + content[1:],
        }[how]
    )
    os.utime(blob)
    shelf.hub.requests.clear()
    assert shelf.cache().entry(NAME) is None
    wrong = shelf.fetch().files["model.bin"].path.read_bytes() != content
    assert len(shelf.hub.requests) == 1
    figures("F4", f"wrong files accepted from disk ({how})", wrong, "", at_most=0)


@pytest.mark.parametrize("how", ["flip", "short", "page"])
def test_what_arrives_damaged_is_never_published(shelf, how, figures):
    file = shelf.put("model.bin", SIZE)
    path = shelf.folder / "model.bin"
    content = path.read_bytes()
    path.write_bytes(
        {
            "flip": bytes([content[0] ^ 1]) + content[1:],
            "short": content[: SIZE // 2],
            "page": b"<!doctype html>" + content,
        }[how]
    )
    published = 0
    try:
        shelf.fetch(timeout_s=20)
        published = 1
    except Exception as error:
        assert isinstance(error, CorruptFile) or error.code in {"source_unavailable", "corrupt_file"}
    assert file.sha256 not in {blob.name for blob in shelf.blobs()}
    figures("F4", f"wrong files accepted from the wire ({how})", published, "", at_most=0)


def test_a_place_is_judged_without_being_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    judged = threading.Thread(target=lambda: state_of(tmp_path / "pipe"), daemon=True)
    judged.start()
    judged.join(10)
    assert not judged.is_alive()
