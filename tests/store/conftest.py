"""A Hub in miniature with a few repositories, and a client of it with an empty cache."""

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest
from aiohttp import web
from safetensors.numpy import save_file

from tests.fakes.hub import FakeHub
from tests.store.shelf import QUICK, TIMES, Shelf
from worker.catalog.formats.headers import header_end, parse_header, read_header
from worker.core.model import ModelFiles, ModelSource
from worker.core.result import Progress
from worker.core.turn import StopSignal
from worker.net import client as net
from worker.store import hub_listing
from worker.store.cache import VolumeCache
from worker.store.digests import ForeignDigests
from worker.store.hub_listing import HubListings
from worker.store.huggingface import HuggingFaceHub
from worker.store.other_caches import OtherCaches
from worker.store.refs import parse_reference
from worker.store.remote_header import HeaderReader

COMPONENTS = {
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
}
WEIGHTS = "diffusion_pytorch_model.safetensors"


def weights(path: Path, size: int = 64, seed: int = 0) -> None:
    """A safetensors file with `size` random numbers."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({"weight": numpy.random.default_rng(seed).standard_normal(size).astype(numpy.float32)}, path)


def write_pipeline(folder: Path, size: int = 5_000) -> Path:
    """A diffusers repository by its file names and sizes; nothing in it can draw."""
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline", **COMPONENTS}))
    for seed, name in enumerate(("unet", "vae", "safety_checker")):
        weights(folder / name / WEIGHTS, size, seed)  # equal files would be fetched once
        (folder / name / "config.json").write_text(json.dumps({"sample_size": 64, "part": name}))
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text('{"prediction_type": "epsilon"}')
    (folder / "tokenizer").mkdir()
    (folder / "tokenizer" / "vocab.json").write_text("{}")
    (folder / "tokenizer" / "merges.txt").write_text("")
    return folder


class SlowHub(FakeHub):
    """Sends the files named in `slow` at a crawl, and the last of them only when they are named there no more."""

    def __init__(self) -> None:
        super().__init__()
        self.slow: set[str] = set()
        self.failures: list[int] = []
        """Status codes of the next answers to a question for a repository."""

    async def _info(self, request):
        if self.failures:
            return web.Response(status=self.failures.pop(0), headers={"Retry-After": "0"})
        return await super()._info(request)

    async def _send(self, request, file, headers):
        if request.method == "HEAD" or file.path not in self.slow:
            return await super()._send(request, file, headers)
        response = web.StreamResponse(headers={**headers, "Content-Length": str(file.size), "ETag": f'"{file.etag}"'})
        await response.prepare(request)
        body = file.source.read_bytes()
        for start in range(0, len(body), 1_000):
            await response.write(body[start : start + 1_000])
            while file.path in self.slow:
                await asyncio.sleep(0.05)
                if start + 2_000 < len(body):
                    break
        return response


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The files of org/model."""
    return write_pipeline(tmp_path / "repo")


@pytest.fixture
def hub(folder: Path, tmp_path: Path) -> Iterator[SlowHub]:
    """Serves org/model, a pipeline, and org/lora, two files."""
    with SlowHub() as server:
        server.commit = server.add_repo("org/model", folder)
        weights(tmp_path / "lora" / "style.safetensors")
        weights(tmp_path / "lora" / "deep" / "other.safetensors")
        server.lora_commit = server.add_repo("org/lora", tmp_path / "lora")
        yield server
        # Downloads that were given up end now: left to retry, they would disturb the client they share with all others.
        server.heal()
        server.slow.clear()
        for thread in threading.enumerate():
            if thread.name == "download":
                thread.join(60)


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries come at once."""
    monkeypatch.setattr(hub_listing, "BACKOFF_S", 0.01)


class Client:
    """A HuggingFaceHub, with what a test reads of it."""

    def __init__(
        self, endpoint: str, cache: Path, *, baked=(), limits=None, token=None, offline=False, **options
    ) -> None:
        self.cache = cache
        self.volume = VolumeCache(cache, lookup=baked, patience=QUICK, **TIMES, **(limits or {}))
        cdn = endpoint.replace("127.0.0.1", "localhost")
        client = net.Client({endpoint: token, cdn: None})
        headers = HeaderReader(header_end, parse_header, read_header)
        listings = HubListings(endpoint, client, offline=offline)
        caches = OtherCaches(
            options.pop("lookup", ()), options.pop("shared", ()), ForeignDigests(cache / "foreign").are_right
        )
        self.store = HuggingFaceHub(self.volume, client, listings, headers, caches, **options)
        self.events: list[Progress] = []

    def ensure(self, reference: str, variant: str | None = None, stop: StopSignal | None = None) -> ModelFiles:
        return self.store.ensure(source_of(reference), variant, self.events.append, stop or StopSignal(30))

    def peek(self, reference: str, variant: str | None = None):
        return self.store.peek(source_of(reference), variant)


def source_of(reference: str) -> ModelSource:
    return parse_reference(reference)


@pytest.fixture
def client(hub: SlowHub, tmp_path: Path) -> Client:
    """A worker's client of the Hub, its cache empty."""
    return Client(hub.endpoint, tmp_path / "cache")


def files_below(root: Path) -> dict[str, bytes]:
    """Every file's content by its name below `root`."""
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    """An empty cache and a Hub without files."""
    with FakeHub() as server:
        yield Shelf(server, tmp_path / "served", tmp_path / "models")
        server.heal()
