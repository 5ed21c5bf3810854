"""One large file on a fake Hub, and caches that fetch it: in this process, or in one that can be killed."""

import hashlib
import json
import os
import random
import subprocess
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.fakes.hub import FakeHub
from tests.store.fetching import QUICK, TIMES, fetch
from worker.core.result import Progress
from worker.store.cache import VolumeCache
from worker.store.entries import Entry
from worker.store.transfer import RemoteFile

PROJECT = Path(__file__).resolve().parent.parent.parent
NAME = "hf:org/big@main"


@dataclass
class Shelf:
    """A cache on `root`, and a Hub that serves `files` by name."""

    hub: FakeHub
    folder: Path
    root: Path
    files: dict[str, RemoteFile] = field(default_factory=dict)
    events: list[Progress] = field(default_factory=list)

    def put(self, name: str, size: int, *, digest: bool = True, sized: bool = True, seed: int = 0) -> RemoteFile:
        """Serve a file of random bytes; without `digest` and `sized` its source says less of it."""
        content = random.Random(f"{name}{seed}").randbytes(size)
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        commit = self.hub.add_repo("org/big", self.folder)
        self.files[name] = RemoteFile(
            name,
            f"{self.hub.endpoint}/org/big/resolve/{commit}/{name}",
            size if sized else None,
            hashlib.sha256(content).hexdigest() if digest else None,
        )
        return self.files[name]

    def content(self, name: str) -> bytes:
        return (self.folder / name).read_bytes()

    def cache(self, **options) -> VolumeCache:
        return VolumeCache(self.root, **{"patience": QUICK, "reserve_bytes": 0, **TIMES, **options})

    def fetch(self, *names: str, entry: str = NAME, timeout_s: float = 20.0, **options) -> Entry:
        """The entry with these files, or all."""
        return fetch(
            self.cache(**options), [self.files[name] for name in names or self.files], self.events, entry, timeout_s
        )

    def blobs(self) -> list[Path]:
        folder = self.root / "blobs"
        return sorted(folder.iterdir()) if folder.is_dir() else []

    def parts(self) -> list[Path]:
        return sorted((self.root / "partial").glob("*.part"))

    def leases(self) -> list[Path]:
        return sorted((self.root / "leases").glob("*"))

    def child(self, *names: str, entry: str = NAME) -> subprocess.Popen:
        """A process that fetches these files and prints how many bytes it received, and the highest progress."""
        task = {
            "root": str(self.root),
            "entry": entry,
            "files": [asdict(self.files[name]) for name in names or self.files],
        }
        env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(PROJECT), "HOME": str(self.folder)}
        command = [sys.executable, "-m", "tests.store.fetching", json.dumps(task)]
        return subprocess.Popen(command, env=env, cwd=PROJECT, stdout=subprocess.PIPE, text=True)
