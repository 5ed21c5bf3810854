"""What a gateway costs: a job by it beside the same job at its replica, which answers at once with an image of 1 MB.

The replica stamps when a request is whole there and when its answer leaves, so that the way in and the way out are
measured apart. Client and replica are one process and the gateway is another: one clock for both.
"""

import asyncio
import base64
import io
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
from aiohttp import web
from PIL import Image

from benchmarks.figures import Figure
from tests.asking import an_answer
from tests.fakes.engine import shelf
from tests.fakes.worker_process import WorkerProcess
from tests.ports import free_port
from worker.core.result import AnswerFile
from worker.wire.result import encode_answer

PROJECT = Path(__file__).resolve().parent.parent
ROUNDS = 40


class _Replica:
    """A worker that answers at once. `came` and `left` are when its last job was whole there, and was answered."""

    def __init__(self) -> None:
        self.came = self.left = 0.0
        image = AnswerFile("png", random.Random(1).randbytes(1_000_000))
        output = encode_answer(an_answer(image, model="tiny"))
        done = {"id": "job", "status": "COMPLETED", "output": output}
        self._answer = json.dumps(done).encode()
        self._event = b"id: end\nevent: result\ndata: %b\n\n" % json.dumps(done).encode()

    async def start(self) -> int:
        app = web.Application(client_max_size=2**26)
        app.router.add_get("/health", self._health)
        app.router.add_post("/v2/x/runsync", self._direct)
        app.router.add_post("/v2/gateway/run", self._run)
        app.router.add_get("/events/job", self._events)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        port = free_port()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        return port

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ready", "jobs": {}, "resident_models": ["tiny"]})

    async def _direct(self, request: web.Request) -> web.Response:
        await request.read()
        self.came = self.left = time.perf_counter()
        return web.Response(body=self._answer, content_type="application/json")

    async def _run(self, request: web.Request) -> web.Response:
        await request.read()
        self.came = time.perf_counter()
        return web.json_response({"id": "job", "status": "IN_QUEUE"})

    async def _events(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await asyncio.sleep(0.02)  # what comes before the image is over, as while one is drawn
        self.left = time.perf_counter()
        await response.write(self._event)
        return response


async def _measure(replica: _Replica, session: aiohttp.ClientSession, path: str, body: bytes) -> tuple[float, float]:
    """Return the medians of the way in and the way out, in milliseconds."""
    ins, outs = [], []
    for _ in range(ROUNDS):
        sent = time.perf_counter()
        async with session.post(path, data=body, headers={"Content-Type": "application/json"}) as answer:
            await answer.read()
            assert answer.status == 200, await answer.text()
        ins.append((replica.came - sent) * 1000)
        outs.append((time.perf_counter() - replica.left) * 1000)
    return statistics.median(ins), statistics.median(outs)


@contextmanager
def _gateway(folder: Path, replica_port: int) -> Iterator[tuple[WorkerProcess, str]]:
    (folder / "fleet.yaml").write_text(json.dumps({"replicas": {"one": {"url": f"http://127.0.0.1:{replica_port}"}}}))
    env = {"GATEWAY_MODE": "1", "FLEET_FILE": str(folder / "fleet.yaml"), "MODELS_YAML": str(shelf(folder))}
    port = free_port()
    env |= {
        "JOB_RETENTION_SECONDS": "0",
        "DEFAULT_MODEL": "tiny",
        "API_HOST": "127.0.0.1",
        "API_PORT": str(port),
        "VOLUME_DIR": str(folder),
    }
    with WorkerProcess(PROJECT / "handler.py", env=env | {"OFFLINE": "1"}) as process:
        yield process, f"http://127.0.0.1:{port}"


async def _start(replica_port: int) -> float:
    """The seconds from the process's start to its first answer."""
    with tempfile.TemporaryDirectory() as folder, _gateway(Path(folder), replica_port) as (process, origin):
        async with aiohttp.ClientSession(origin) as session:
            await _until_answered(session)
            return time.monotonic() - process.started_at


async def _until_answered(session: aiohttp.ClientSession) -> None:
    while True:
        try:
            async with session.get("/ping") as answer:
                if answer.status == 200:
                    return
        except aiohttp.ClientError:
            pass
        await asyncio.sleep(0.005)


async def _run() -> list[Figure]:
    replica = _Replica()
    replica_port = await replica.start()
    ready = min([await _start(replica_port) for _ in range(3)])  # the first also compiles byte code
    text = json.dumps({"prompt": "an apple", "seed": 1}).encode()
    picture = base64.b64encode(_picture()).decode()
    image = json.dumps({"prompt": "an apple", "seed": 1, "image": picture, "strength": 0.5, "width": 64, "height": 64})
    with tempfile.TemporaryDirectory() as folder, _gateway(Path(folder), replica_port) as (process, origin):
        async with aiohttp.ClientSession(origin) as session:
            await _until_answered(session)
            memory = _megabytes(process.pid)
            direct = aiohttp.ClientSession(f"http://127.0.0.1:{replica_port}")
            figures = []
            for name, body in (("text", text), ("1 MB image", image.encode())):
                await _measure(replica, session, "/v2/x/runsync", b'{"input": %b}' % body)  # warm
                spent = _cpu_seconds(process.pid)
                through = await _measure(replica, session, "/v2/x/runsync", b'{"input": %b}' % body)
                beside = await _measure(replica, direct, "/v2/x/runsync", b'{"input": %b}' % body)
                each = (_cpu_seconds(process.pid) - spent) / ROUNDS * 1000
                figures += [
                    Figure(f"gateway: {name} in", through[0] - beside[0], "ms", ROUNDS, at_most=5),
                    Figure(f"gateway: 1 MB answer out ({name})", through[1] - beside[1], "ms", ROUNDS, at_most=5),
                    Figure(f"gateway: CPU time a job ({name})", each, "ms", ROUNDS),
                ]
            await direct.close()
            after = _megabytes(process.pid)
    return [
        *figures,
        Figure("gateway: start to first answer", ready, "s", 3, at_most=1.5),
        Figure("gateway: memory once started", memory, "MB", 1, at_most=150),
        Figure(f"gateway: memory after {4 * ROUNDS * 2} jobs", after, "MB", 1, at_most=150),
    ]


def gateway() -> list[Figure]:
    """The overhead of a gateway at p50, its start and its memory."""
    return asyncio.run(_run())


def _picture() -> bytes:
    """A PNG of 1 MB, of noise."""

    out = io.BytesIO()
    side = 578
    Image.frombytes("RGB", (side, side), random.Random(2).randbytes(side * side * 3)).save(out, "PNG", compress_level=1)
    return out.getvalue()


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _megabytes(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1000
