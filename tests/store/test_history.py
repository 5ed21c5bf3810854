"""The history of versions on the volume: every change once and whole, whoever writes, and never an older state."""

import subprocess
import sys
import threading

import pytest

from tests.conftest import PROJECT
from tests.waiting import LIMIT_S
from worker.core.errors import SourceUnavailable
from worker.core.version import AliasMoved
from worker.store.history import HistoryFile


def move(to):
    return AliasMoved(
        kind="alias", at="2026-11-30T14:00:00.000+00:00", who="ann", model="m", alias="stable", moved_to=to
    )


def names(history):
    return [change.moved_to for change in history.read()]


def test_those_of_one_volume_know_it_by_one_id_and_no_other_has_it(tmp_path):
    path = tmp_path / "one" / "versions" / "history.jsonl"
    histories = [HistoryFile(path) for _ in range(4)]
    threads = [threading.Thread(target=history.identify) for history in histories]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    other = HistoryFile(tmp_path / "two" / "versions" / "history.jsonl")
    assert other.volume_id is None
    other.identify()
    (one,) = {history.volume_id for history in histories}
    assert None not in (one, other.volume_id)
    assert one != other.volume_id
    (tmp_path / "file").write_text("where a folder should be")
    nowhere = HistoryFile(tmp_path / "file" / "history.jsonl")
    nowhere.identify()
    assert nowhere.volume_id is None


def test_all_changes_of_all_writers_are_there_in_one_order(tmp_path):
    path = tmp_path / "versions" / "history.jsonl"
    histories = [HistoryFile(path) for _ in range(3)]  # as of three workers

    def write(history):
        for _ in range(4):
            history.change(lambda changes: [move(f"v{len(changes) + 1}")])

    writers = [threading.Thread(target=write, args=(history,)) for history in histories]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [names(history) for history in histories] == [[f"v{number}" for number in range(1, 13)]] * 3


PROGRAM = """
import sys
from pathlib import Path
from tests.store.test_history import move
from worker.store.history import HistoryFile
history = HistoryFile(Path(sys.argv[1]))
for _ in range(6):
    history.change(lambda changes: [move(f"v{len(changes) + 1}")])
"""


@pytest.mark.slow
def test_processes_that_write_at_the_same_time_take_turns(tmp_path):
    path = tmp_path / "history.jsonl"
    command = [sys.executable, "-c", PROGRAM, str(path)]
    writers = [subprocess.Popen(command, cwd=PROJECT) for _ in range(3)]
    assert [writer.wait(LIMIT_S) for writer in writers] == [0, 0, 0]
    assert names(HistoryFile(path)) == [f"v{number}" for number in range(1, 19)]


def test_a_change_is_read_by_others_at_once_and_without_one_nothing_is_read_again(tmp_path):
    one, other = HistoryFile(tmp_path / "h"), HistoryFile(tmp_path / "h")
    assert other.read() == ()
    one.change(lambda changes: [move("v1")])
    assert names(other) == ["v1"]
    assert other.read() is other.read()
    one.change(lambda changes: [])
    one.change(lambda changes: [move("v2")])
    assert names(other) == ["v1", "v2"]


def test_what_a_killed_writer_left_is_no_change_and_spoils_none(tmp_path, caplog):
    path = tmp_path / "h"
    history = HistoryFile(path)
    history.change(lambda changes: [move("v1")])
    with path.open("ab") as file:
        file.write(b'{"at":"2026-11-30T14:00:00.000+00:00","who":"a')
    assert names(history) == ["v1"]
    history.change(lambda changes: [move("v2")])
    assert names(history) == names(HistoryFile(path)) == ["v1", "v2"]
    assert "cannot be read" in caplog.text


def test_a_refused_change_writes_nothing(tmp_path):
    history = HistoryFile(tmp_path / "h")

    def refuse(changes):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        history.change(refuse)
    assert [path.name for path in tmp_path.iterdir()] == []


def test_a_history_that_is_gone_is_never_taken_for_none(tmp_path):
    path = tmp_path / "h"
    history = HistoryFile(path)
    history.change(lambda changes: [move("v1")])
    path.unlink()
    with pytest.raises(SourceUnavailable, match="history of versions"):
        history.read()
