"""A process that fetches an entry and says what it took; it imports little, so that it is quickly there."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

from worker.core.errors import SourceUnavailable, WorkerError
from worker.core.result import Progress
from worker.core.turn import StopSignal
from worker.net.client import Client
from worker.store.cache import VolumeCache
from worker.store.entries import Entry
from worker.store.transfer import Fetch, Patience, RemoteFile

QUICK = Patience(attempts=3, backoff_s=0.01, max_wait_s=0.3, silence_s=1.0)
TIMES = {"beat_s": 0.1, "stale_s": 1.2}


def fetch(cache: VolumeCache, files: list[RemoteFile], events: list[Progress], entry: str, timeout_s: float) -> Entry:
    client = Client(allow_private=True)
    return cache.fetch(Fetch(entry, files, client, "org/big", events.append, StopSignal(timeout_s), refused))


def refused(file: RemoteFile, status: int, headers: Mapping[str, str]) -> WorkerError:
    return SourceUnavailable(f"{file.name} was refused with {status}.")


def main() -> None:
    task = json.loads(sys.argv[1])
    cache = VolumeCache(Path(task["root"]), patience=QUICK, reserve_bytes=0, **TIMES)
    events: list[Progress] = []
    entry = fetch(cache, [RemoteFile(**file) for file in task["files"]], events, task["entry"], 60.0)
    steps = [event.step for event in events]
    print(json.dumps({"received": entry.bytes_downloaded, "total": entry.total_bytes, "steps": steps}))


if __name__ == "__main__":
    main()
