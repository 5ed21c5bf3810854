"""Processes that download, are killed, and are watched by what the server sent and the disk has."""

import json
import signal

from tests.waiting import LIMIT_S, until

MEGABYTE = 2**20


def finished(process) -> dict:
    out, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0
    return json.loads(out)


def kill(process) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def calm(shelf, file, *, at_most: int) -> None:
    """Send hardly a byte more until so few of those that were sent are not on disk: the rest is on its way."""
    shelf.hub.pace = 1.0
    until(lambda: shelf.hub.sent[file.name] - sum(part.stat().st_size for part in shelf.parts()) <= at_most)
