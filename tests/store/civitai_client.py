"""A worker's CivitAI against the fake one, and what a refusal has to look like."""

from pathlib import Path

import numpy
import pytest
from safetensors.numpy import save

from tests.fakes.civitai import FakeCivitai
from worker.catalog.formats.headers import header_end, parse_header, read_header
from worker.core.errors import WorkerError
from worker.core.turn import StopSignal
from worker.net import client as net
from worker.store.cache import VolumeCache
from worker.store.civitai import CivitAI
from worker.store.civitai_api import CivitaiApi, civitai_hosts
from worker.store.refs import parse_reference
from worker.store.remote_header import HeaderReader
from worker.store.transfer import Patience

TOKEN = "canary-civitai-token"


def weights(seed: int = 0, size: int = 4_000) -> bytes:
    """A small file in the safetensors format."""
    return save({"weight": numpy.random.default_rng(seed).standard_normal(size).astype(numpy.float32)})


class Client:
    """A worker's CivitAI, with what a test reads of it."""

    def __init__(self, site: FakeCivitai, folder: Path, token: str | None = None, **options) -> None:
        self.folder, self.events = folder, []
        client = net.Client({**civitai_hosts(site.origin, token), site.storage.origin: None})
        cache = VolumeCache(folder, patience=Patience(attempts=2, backoff_s=0.01))
        api = CivitaiApi(client, site.origin, has_token=token is not None)
        self.source = CivitAI(cache, client, api, HeaderReader(header_end, parse_header, read_header), **options)

    def peek(self, reference: str):
        return self.source.peek(parse_reference(reference), None)

    def ensure(self, reference: str):
        return self.source.ensure(parse_reference(reference), None, self.events.append, StopSignal(30))

    def refused(self, error: type[WorkerError], reference: str) -> str:
        """The sentence of a refusal that is the same before and at the download, and leaves nothing behind."""
        with pytest.raises(error) as peeked:
            self.peek(reference)
        with pytest.raises(error) as caught:
            self.ensure(reference)
        assert caught.value.message == peeked.value.message
        assert caught.value.field == "model"
        assert not any("127.0.0.1" in text or "http" in text for text in (caught.value.message, str(caught.value.hint)))
        left = [path for path in self.folder.rglob("*") if path.is_file() and path.stat().st_size > 1_000]
        assert left == [], "nothing of a refused model is kept"
        return caught.value.message
