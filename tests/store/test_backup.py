"""Backup and restore: what is in, what is put back, and what no file from elsewhere can do."""

import contextlib
import hashlib
import io
import json
import os
import sqlite3
import tarfile

import pytest

from tests.app.commands import failed, invoke, said
from tests.conftest import PROJECT
from tests.contract.test_docs import rows
from worker.store.backup import LEFT_OUT, MANIFEST, BackupError, write_backup
from worker.store.restore import restore

KEPT = {
    "usage/2026-11-30-a.jsonl": b'{"action": "generate"}\n',
    "state/quotas-a.json": b"{}",
    "state/levers/tiny.json": b'{"compile": "on"}',
    "outputs/job/0.png": b"image",
    "trained/anna/lora.safetensors": b"weights",
    "something new/with a name": b"\x00\xff",
}


@pytest.fixture
def volume(tmp_path):
    folder = tmp_path / "volume"
    for name, content in {
        **KEPT,
        "models/blobs/x": b"downloaded",
        "converted/y": b"made again",
        "versions/volume.id": b"of one volume",
    }.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_backed_up_is_put_back(volume, tmp_path):
    (volume / "state/quotas-a.json").chmod(0o600)
    lock = tmp_path / "models.lock"
    lock.write_text("locked")
    made = write_backup(tmp_path / "x.tar", volume, {"models.lock": lock, "alerts.yaml": tmp_path / "none"})
    assert (made.files, made.bytes) == (len(KEPT) + 1, sum(map(len, KEPT.values())) + 6)
    assert (tmp_path / "x.tar").stat().st_mode & 0o077 == 0
    there = tmp_path / "other"
    done = restore(tmp_path / "x.tar", there, {"models.lock": there / "models.lock"})
    assert content(there) == {**KEPT, "models.lock": b"locked"}
    assert len(done.written) == len(KEPT) + 1
    assert (there / "state/quotas-a.json").stat().st_mode & 0o777 == 0o600
    before = (volume / "usage/2026-11-30-a.jsonl").stat().st_mtime
    assert abs((there / "usage/2026-11-30-a.jsonl").stat().st_mtime - before) < 2
    again = restore(tmp_path / "x.tar", there, {"models.lock": there / "models.lock"})
    assert (again.written, again.same) == ((), len(KEPT) + 1)


def test_nothing_is_written_over_unless_it_is_said(volume, tmp_path):
    write_backup(tmp_path / "x.tar", volume, {})
    with pytest.raises(BackupError, match=r"is there already; name another file, or say --replace"):
        write_backup(tmp_path / "x.tar", volume, {})
    (volume / "usage/2026-11-30-a.jsonl").write_bytes(b"newer")
    (volume / "trained/anna/lora.safetensors").unlink()
    with pytest.raises(BackupError, match=r"1 files are there already and differ, the first is .*2026-11-30-a.jsonl"):
        restore(tmp_path / "x.tar", volume, {})
    assert not (volume / "trained/anna/lora.safetensors").exists()
    restore(tmp_path / "x.tar", volume, {}, replace=True)
    assert {name: file for name, file in content(volume).items() if name in KEPT} == KEPT
    assert (volume / "models/blobs/x").exists()


def test_a_file_that_grows_a_database_and_a_link_are_backed_up_as_they_can_be(volume, tmp_path, monkeypatch):
    log = volume / "usage/2026-11-30-a.jsonl"
    database = volume / "state/spending.sqlite"
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("pragma journal_mode=wal")
        connection.execute("create table paid (usd)")
        connection.execute("insert into paid values (0.25)")
        connection.commit()  # which is in the file beside it as long as this is open
        (volume / "link").symlink_to("/etc/passwd")
        (volume / "folder").symlink_to("/etc")
        os.mkfifo(volume / "pipe")
        fstat = os.fstat

        def grown(descriptor):
            status = fstat(descriptor)
            with log.open("ab") as file:
                file.write(b"more\n")
            return status

        monkeypatch.setattr(os, "fstat", grown)
        made = write_backup(volume / "x.tar", volume, {}, results=False)
        monkeypatch.undo()
    assert sorted(made.skipped) == ["folder", "link", "pipe"]
    there = tmp_path / "other"
    restore(volume / "x.tar", there, {})
    assert "outputs" not in {path.name for path in there.iterdir()}
    assert (there / "usage/2026-11-30-a.jsonl").read_bytes().startswith(KEPT["usage/2026-11-30-a.jsonl"])
    with contextlib.closing(sqlite3.connect(there / "state/spending.sqlite")) as connection:
        assert connection.execute("select usd from paid").fetchall() == [(0.25,)]
    assert not [path for path in there.rglob("*") if path.name.startswith((".restore", "x.tar"))]


def member(name, data=b"data", kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, len(data), link
    return info, data


def archive(path, *members, named=None):
    """Write an archive of these members, with a manifest that names them or what is said."""
    files = {info.name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} for info, data in members}
    manifest = json.dumps({"version": 1, "files": files if named is None else named}).encode()
    with tarfile.open(path, "w") as tar:
        for info, data in [*members, member(MANIFEST, manifest)]:
            tar.addfile(info, io.BytesIO(data))
    return path


OUTSIDE = [
    "../evil",
    "volume/../evil",
    "volume/x/../../evil",
    "/etc/evil",
    "volume//etc/evil",
    "volume/./evil",
    "volume\\..\\evil",
    "volume/..\\evil",
    "beside/unknown",
    "beside/../models.lock",
    "elsewhere/evil",
    "evil",
    "volume/models/blobs/evil",
    "volume",
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_path_that_has_no_place_is_refused_and_nothing_is_written(name, tmp_path):
    file = archive(tmp_path / "x.tar", member("volume/usage/good"), member(name))
    with pytest.raises(BackupError, match="has no place on this volume"):
        restore(file, tmp_path / "volume", {"models.lock": tmp_path / "models.lock"})
    assert content(tmp_path) == {"x.tar": file.read_bytes()}


KINDS = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_plain_file_is_refused(kind, tmp_path):
    file = archive(tmp_path / "x.tar", member("volume/usage/x", b"", kind, "/etc/passwd"))
    with pytest.raises(BackupError, match="is no plain file"):
        restore(file, tmp_path / "volume", {})
    assert content(tmp_path / "volume") == {}


def test_a_link_that_is_there_leads_nobody_outside(tmp_path):
    volume, outside = tmp_path / "volume", tmp_path / "outside"
    volume.mkdir()
    outside.mkdir()
    (volume / "usage").symlink_to(outside)
    (volume / "file").symlink_to(outside / "file")
    file = archive(tmp_path / "x.tar", member("volume/usage/x"))
    with pytest.raises(BackupError, match="would lie outside the volume"):
        restore(file, volume, {}, replace=True)
    file = archive(tmp_path / "y.tar", member("volume/file"))
    restore(file, volume, {}, replace=True)
    assert content(outside) == {}
    assert (volume / "file").read_bytes() == b"data"
    assert not (volume / "file").is_symlink()


GOOD = member("volume/usage/x")
LINE = {"sha256": hashlib.sha256(b"data").hexdigest(), "bytes": 4}


@pytest.mark.parametrize(
    ("members", "named", "sentence"),
    [
        ([GOOD], {"volume/usage/x": LINE | {"sha256": "0" * 64}}, "is not what its digest says"),
        ([GOOD], {"volume/usage/x": LINE | {"bytes": 5}}, "is not as long as the manifest says"),
        ([GOOD], {}, "and not in both"),
        ([GOOD], {"volume/usage/x": LINE, "volume/y": LINE}, "and not in both"),
        ([GOOD], [], "is of version"),
        ([GOOD, GOOD], None, "is twice in the backup"),
        ([GOOD, member("volume/usage/x/y")], None, "a file where a folder is"),
    ],
)
def test_a_backup_that_does_not_agree_with_itself_is_refused(members, named, sentence, tmp_path):
    file = archive(tmp_path / "x.tar", *members, named=named)
    with pytest.raises(BackupError, match=sentence):
        restore(file, tmp_path / "volume", {})
    assert content(tmp_path / "volume") == {}


def test_a_backup_that_was_cut_off_is_refused(volume, tmp_path):
    write_backup(tmp_path / "x.tar", volume, {})
    whole = (tmp_path / "x.tar").read_bytes()
    for length in (0, 100, 700, len(whole) // 2):
        (tmp_path / "y.tar").write_bytes(whole[:length])
        with pytest.raises(BackupError):
            restore(tmp_path / "y.tar", tmp_path / "other", {})
        assert content(tmp_path / "other") == {}


def test_a_failure_amid_the_writing_leaves_no_file(volume, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space"):
        write_backup(tmp_path / "x.tar", volume, {})
    assert [path.name for path in tmp_path.iterdir()] == ["volume"]


def test_the_commands(volume, tmp_path, monkeypatch):
    (tmp_path / "models.yaml").write_text("models: {demo: {source: org/demo}}\n")
    monkeypatch.setenv("VOLUME_DIR", str(volume))
    monkeypatch.setenv("MODELS_YAML", str(tmp_path / "models.yaml"))
    file = tmp_path / "x.tar"
    assert f"{len(KEPT) + 1} files" in said(invoke("backup", file))
    assert "say --replace" in failed(invoke("backup", file))
    monkeypatch.setenv("VOLUME_DIR", str(tmp_path / "other"))
    told = json.loads(said(invoke("restore", file, "--json")))
    assert (len(told["written"]), told["same"]) == (len(KEPT), 1)  # models.yaml is the same
    assert content(tmp_path / "other") == KEPT
    (tmp_path / "models.yaml").write_text("models: {other: {source: org/other}}\n")
    assert "models.yaml; say --replace" in failed(invoke("restore", file))
    said(invoke("restore", file, "--replace"))
    assert "org/demo" in (tmp_path / "models.yaml").read_text()
    assert failed(invoke("restore", tmp_path / "none")) == f"error: {tmp_path / 'none'} is not there."


def test_the_page_says_what_is_in_no_backup():
    page = (PROJECT / "docs/deploy.md").read_text()
    said_there = {row[0].strip("`/") for row in rows(page, "### Backup") if row[1] == "no"}
    assert said_there == {*LEFT_OUT}
