"""The measures of the HTTP server. CPU only, one torch thread; wall seconds unless a figure says otherwise."""

import asyncio
import base64
import http.client
import io
import json
import os
import socket
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import uvicorn
from PIL import Image

from benchmarks.figures import Figure
from tests.fakes.worker_process import WorkerProcess
from worker.app.settings import Settings

PROJECT = Path(__file__).resolve().parent.parent


@asynccontextmanager
async def _served(settings: Settings) -> AsyncIterator[aiohttp.ClientSession]:
    """A client of a worker's HTTP server; both on this loop, so that the client's work counts as the server's."""
    from worker.app.build import build_worker
    from worker.app.server import build_app

    server = uvicorn.Server(uvicorn.Config(build_app(build_worker(settings)), port=0, log_config=None))
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110 -- it offers no event
        await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", raise_for_status=True) as session:
        yield session
    server.should_exit = True
    await serving


async def _post(session: aiohttp.ClientSession, job: dict[str, Any]) -> tuple[dict[str, Any], float]:
    """An answer, and the seconds from sending the request to having its last byte."""
    started = time.perf_counter()
    async with session.post("/run", json=job) as answer:
        body = await answer.read()
    seconds = time.perf_counter() - started
    return json.loads(body), seconds


def batching() -> list[Figure]:
    """What BATCH_SIZE=4 gives and costs at the HTTP server, against plain diffusers' own batch, with a small model.

    In turn within one run: four prompts in four calls and in one; twelve jobs at once, singly and in batches; and one
    short job alone, without the timer and with it. CPU seconds beside wall seconds: they hold on a busy machine too.
    """
    import torch
    from diffusers import DiffusionPipeline

    from tests.builders import tiny_sd1

    torch.set_num_threads(1)
    rounds, pairs, steps, wait_ms = 5, 25, 10, 50.0
    prompts = [f"an image of {index} apples" for index in range(4)]

    def plain(pipe: Any, groups: list[list[str]]) -> None:
        for group in groups:
            pipe(group, num_inference_steps=steps, generator=[torch.Generator("cpu").manual_seed(7) for _ in group])

    async def serve(session: aiohttp.ClientSession, jobs: int, steps: int = steps) -> list[dict[str, Any]]:
        sent = [{"prompt": prompts[index % 4], "steps": steps, "seed": index} for index in range(jobs)]
        return [answer for answer, _ in await asyncio.gather(*(_post(session, job) for job in sent))]

    async def measure(folder: Path) -> tuple[dict[str, list[tuple[float, float]]], list[int]]:
        model = tiny_sd1(folder / "models" / "tiny")
        (folder / "models.yaml").write_text('{"models": {"tiny": {"source": "file:models/tiny"}}}')
        pipe = DiffusionPipeline.from_pretrained(model, dtype=torch.float32)
        pipe.set_progress_bar_config(disable=True)
        usual = Settings(
            models_yaml=folder / "models.yaml",
            default_model="tiny",
            volume_dir=folder,
            device="cpu",
            warm_up=False,  # two engines of one process must not load at once: transformers patches torch meanwhile
        )
        in_batches = usual.model_copy(update={"batch_size": 4, "batch_timeout_ms": wait_ms})
        found: dict[str, list[tuple[float, float]]] = {}
        sizes: list[int] = []

        async def timed(name: str, work: Awaitable[Any]) -> Any:
            wall, cpu = time.perf_counter(), time.process_time()
            answers = await work
            found.setdefault(name, []).append((time.perf_counter() - wall, time.process_time() - cpu))
            return answers

        async with _served(usual) as single, _served(in_batches) as batched:
            for _ in range(rounds + 1):
                await timed("calls", asyncio.to_thread(plain, pipe, [[prompt] for prompt in prompts]))
                await timed("call", asyncio.to_thread(plain, pipe, [prompts]))
                await timed("singly", serve(single, 12))
                sizes += [answer["timings"]["batch_size"] for answer in await timed("batched", serve(batched, 12))]
            for _ in range(pairs):
                await timed("alone", serve(single, 1, steps=1))
                await timed("alone, batched", serve(batched, 1, steps=1))
        return found, sizes[12:]

    with tempfile.TemporaryDirectory() as folder:
        found, sizes = asyncio.run(measure(Path(folder)))
    # The first round loads and warms up.
    wall, cpu = (
        {name: statistics.median(run[unit] for run in runs[1:]) for name, runs in found.items()} for unit in (0, 1)
    )
    figures = [
        Figure(f"{name}, {unit}", seconds[one] / seconds[other], "x", rounds, at_least=promised)
        for unit, seconds in (("wall", wall), ("CPU", cpu))
        for name, one, other, promised in (
            ("diffusers' own batch of 4", "calls", "call", 1.6),  # for a model where it is, the next is promised
            ("BATCH_SIZE 4, twelve jobs at once", "singly", "batched", 1.5),
        )
    ]
    waits = [batched[0] - single[0] for single, batched in zip(found["alone"], found["alone, batched"], strict=True)]
    return [
        *figures,
        Figure("jobs of those in one call", statistics.mean(sizes), "mean", len(sizes)),
        Figure(
            f"added to a lone job by a timer of {wait_ms:g} ms",
            statistics.median(waits) * 1e3,
            "ms",
            pairs,
            at_most=wait_ms + 5,
        ),
    ]


def serving() -> list[Figure]:
    """What the server adds to a lone image of 512x512, from request to result.

    The request's seconds at a client in another process, less those of the pipeline's own call and of the PNG encoder
    within this very request (`timed_handler.py`). All else counts: HTTP, checking, the engine, callbacks, base64, an
    answer that has its image four times. Not less a second, bare call: of two equal calls, in whichever order, the
    second is milliseconds faster, since the first one finds caches that other work has filled.

    A virtual machine's speed moves by a third within minutes, and with it every millisecond here. So there are rounds,
    and the figures are of the one in which the pipeline's own call was fastest.
    """
    rounds, runs = 5, 20
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        quick_model(folder / "models")
        (folder / "models.yaml").write_text('{"models": {"quick": {"source": "file:models/quick"}}}')
        told = folder / "seconds"
        env = {"MODELS_YAML": str(folder / "models.yaml"), "DEFAULT_MODEL": "quick", "BENCH_SECONDS": str(told)}
        with _server_process(folder, PROJECT / "benchmarks" / "timed_handler.py", **env) as (worker, client):
            _until_ready(worker, client)
            for index in range(3 + rounds * runs):
                body = json.dumps({"prompt": "a red apple", "steps": 4, "seed": index, "width": 512, "height": 512})
                started = time.perf_counter()
                client.request("POST", "/run", body, {"Content-Type": "application/json"})
                sent_back = client.getresponse().read()
                request = time.perf_counter() - started
                image = Image.open(io.BytesIO(base64.b64decode(json.loads(sent_back)["image"])))
                assert image.size == (512, 512)
                call, png = map(float, told.read_text().splitlines()[-1].split())
                rows.append((request, call, png, request - call - png))
    # The first ones load and warm up.
    medians = [
        [statistics.median(column) * 1e3 for column in zip(*rows[start : start + runs], strict=True)]
        for start in range(3, len(rows), runs)
    ]
    request_ms, call_ms, png_ms, rest_ms = min(medians, key=lambda columns: columns[1])
    measured = (
        ("request to result", request_ms),
        ("the pipeline's own call", call_ms),
        ("PNG encoding", png_ms),
        ("overhead: what is left of the request", rest_ms),
    )
    figures = [Figure(f"512x512, {name}", value, "ms", runs) for name, value in measured]
    figures[-1].at_most = 15.0
    # On a busy machine the difference is the scheduler's, and may be less than nothing.
    return [*figures, Figure("512x512, the machine's load meanwhile", os.getloadavg()[0], "", 1, at_most=1.5)]


def starting() -> list[Figure]:
    """How soon a server process answers /health, and how soon it is ready for jobs."""
    runs = 3
    first, ready, early = [], [], 0
    for _ in range(runs):
        with tempfile.TemporaryDirectory() as name, _server_process(Path(name)) as (worker, client):
            _until_answered(worker, client)
            first.append(time.monotonic() - worker.started_at)
            early += "libtorch" not in Path(f"/proc/{worker.pid}/maps").read_text()
            _until_ready(worker, client)
            ready.append(time.monotonic() - worker.started_at)
    return [
        Figure("process start to an answer of /health", statistics.median(first), "s", runs),
        Figure("of these, before torch was imported", early / runs, "of 1", runs, at_least=1.0),
        Figure("process start to ready, with the demo model", statistics.median(ready), "s", runs),
    ]


def quick_model(folder: Path) -> Path:
    """A Stable Diffusion 1 pipeline that draws 512x512 in a tenth of a second: no attention, hardly a channel."""
    from diffusers import StableDiffusionPipeline

    from tests.builders import tiny_sd1, unet, vae

    pipe = StableDiffusionPipeline.from_pretrained(tiny_sd1(folder / "tiny"))
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    parts = {
        "unet": unet(block_out_channels=(4, 8), norm_num_groups=4, **blocks),
        "vae": vae(block_out_channels=(4,) * 4, mid_block_add_attention=False),
    }
    StableDiffusionPipeline(**pipe.components | parts, requires_safety_checker=False).save_pretrained(folder / "quick")
    return folder / "quick"


@contextmanager
def _server_process(
    folder: Path, script: Path = PROJECT / "handler.py", **env: str
) -> Iterator[tuple[WorkerProcess, http.client.HTTPConnection]]:
    """A server as an operator starts it, and one connection to it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {"STANDALONE_MODE": "1", "API_HOST": "127.0.0.1", "API_PORT": str(port), "DEVICE": "cpu"}
    settings |= {"VOLUME_DIR": str(folder / "volume"), "HOME": str(folder)}
    with WorkerProcess(script, env=settings | env, cwd=folder) as worker:
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        yield worker, client
        client.close()


def _until_answered(worker: WorkerProcess, client: http.client.HTTPConnection) -> str:
    """The state that /health tells, once it is there."""
    while True:
        try:
            client.request("GET", "/health")
            return str(json.loads(client.getresponse().read())["status"])
        except OSError:
            client.close()
            if worker.returncode is not None:
                raise RuntimeError(worker.output[-2000:]) from None
            time.sleep(0.005)


def _until_ready(worker: WorkerProcess, client: http.client.HTTPConnection) -> None:
    while _until_answered(worker, client) != "ready":
        time.sleep(0.01)
