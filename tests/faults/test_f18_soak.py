"""F18: two thousand mixed jobs, two hundred at once, leave a worker as they found it, and its books right."""

import asyncio
import base64
import io
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from PIL import Image

from tests.builders import lora_for, tiny_sd1
from tests.conftest import PROJECT
from tests.fakes.worker_process import WorkerProcess
from tests.ports import free_port

JOBS = 2_000
AT_ONCE = 200
_TERMINAL = ("COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT")
_DAY_S = 1_500


class Worker:
    """A server in a process of its own, and what that process holds."""

    def __init__(self, folder: Path) -> None:
        models = folder / "models"
        models.mkdir()
        model = tiny_sd1(models / "tiny")
        lora_for(model, models / "lora.safetensors", dialect="kohya", seed=5)
        (folder / "models.yaml").write_text(
            json.dumps({
                "models": {
                    "tiny": {"source": "file:models/tiny", "defaults": {"num_inference_steps": 2}},
                    "style": {"source": "file:models/lora.safetensors"},
                }
            })
        )  # fmt: skip
        self.port = free_port()
        self.process = WorkerProcess(
            PROJECT / "handler.py",
            env={
                "STANDALONE_MODE": "1", "API_PORT": str(self.port), "MODELS_YAML": str(folder / "models.yaml"),
                "DEFAULT_MODEL": "tiny", "VOLUME_DIR": str(folder / "volume"), "DEVICE": "cpu",
                "HOME": str(folder),
                # Answers are kept for those who ask again. It is full by job 200: what grows after that is lost.
                "JOB_RETENTION_MB": "4",
            },
        )  # fmt: skip

    def held(self) -> dict[str, int]:
        """Memory in MB, open files and threads, as the kernel counts them."""
        root = Path("/proc") / str(self.process.pid)
        status = dict(line.split(":", 1) for line in (root / "status").read_text().splitlines())
        return {
            "MB": int(status["VmRSS"].split()[0]) // 1024,
            "files": len([*(root / "fd").iterdir()]),
            "threads": int(status["Threads"]),
        }


def request(index: int) -> tuple[str, dict[str, Any]]:
    """What job `index` is: its kind, and its input. The same for every run."""
    chance = random.Random(index)
    prompt = f"{chance.choice(['a red', 'a green', 'a blue'])} apple number {index}"
    kind = ("plain", "plain", "lora", "image", "queued", "cancelled", "twice", "bad", "unknown", "hostile")[index % 10]
    job: dict[str, Any] = {"prompt": prompt, "seed": index, "width": 64, "height": 64}
    if kind == "lora":
        job["loras"] = [{"model": "style", "weight": chance.uniform(0.1, 1)}]
    elif kind == "image":
        job |= {"image": PNG, "strength": 0.7}
    elif kind == "cancelled":
        job["num_inference_steps"] = 50
    elif kind == "bad":
        job |= chance.choice([{"width": -1}, {"guidance_scale": "high"}, {"nonsense": 1}, {"num_images": 10**9}])
    elif kind == "unknown":
        job["model"] = f"org/never-{index}"
    elif kind == "hostile":
        job |= chance.choice(
            [
                {"image": "https://169.254.169.254/latest/meta-data"},
                {"image": base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(4_000)).decode()},
                {"prompt": "\u202e" * 30_000},
                {"loras": [{"model": "style", "weight": 1e300}]},
                {"model": "../../etc/passwd"},
            ]
        )
    return kind, job


def _png() -> str:
    file = io.BytesIO()
    Image.radial_gradient("L").convert("RGB").resize((64, 64)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


PNG = _png()


async def _answer(session: aiohttp.ClientSession, path: str, job: dict[str, Any], **headers: str) -> tuple[int, Any]:
    """Send a job until it is taken or refused for good."""
    while True:
        async with session.post(path, json={"input": job}, headers=headers) as response:
            body = await response.json()
            if response.status not in (429, 503):
                return response.status, body
            await asyncio.sleep(float(response.headers["Retry-After"]))


async def _finished(session: aiohttp.ClientSession, job_id: str) -> str:
    while True:
        async with session.get(f"/v2/any/status/{job_id}") as response:
            state = (await response.json())["status"]
        if state in _TERMINAL:
            return str(state)
        await asyncio.sleep(0.2)


async def _one(session: aiohttp.ClientSession, index: int) -> tuple[str, str]:
    """Have one job answered; return its kind, and what became of it."""
    kind, job = request(index)
    if kind in ("queued", "cancelled"):
        _, body = await _answer(session, "/v2/any/run", job)
        if kind == "cancelled":
            await asyncio.sleep(random.Random(-index).uniform(0, 0.5))
            async with session.post(f"/v2/any/cancel/{body['id']}"):
                pass
        state = await _finished(session, body["id"])
        assert await _finished(session, body["id"]) == state, "an answer changed"
        return kind, state
    if kind == "twice":
        both = await asyncio.gather(*(_answer(session, "/run", job, **{"Idempotency-Key": f"k{index}"}) for _ in "ab"))
        assert both[0][1]["image"] == both[1][1]["image"]
        return kind, "COMPLETED"
    status, body = await _answer(session, "/run", job)
    assert ("image" in body) is (status == 200), (kind, status, body)
    return kind, "COMPLETED" if status == 200 else f"refused with {status}"


async def _soak(worker: Worker) -> tuple[Counter[tuple[str, str]], dict[str, int], dict[str, int], dict[str, Any]]:
    held: dict[int, dict[str, int]] = {}
    outcomes: Counter[tuple[str, str]] = Counter()
    places = asyncio.Semaphore(AT_ONCE)
    connector = aiohttp.TCPConnector(limit=AT_ONCE + 10)
    timeout = aiohttp.ClientTimeout(total=_DAY_S)
    async with aiohttp.ClientSession(
        f"http://127.0.0.1:{worker.port}", connector=connector, timeout=timeout
    ) as session:
        while True:
            try:
                async with session.get("/ready") as response:
                    if response.status == 200:
                        break
            except aiohttp.ClientError:
                pass
            assert worker.process.returncode is None, worker.process.output
            await asyncio.sleep(0.2)

        async def one(index: int) -> None:
            async with places:
                outcomes[await _one(session, index)] += 1
                if outcomes.total() == JOBS // 10:
                    held[0] = worker.held()

        await asyncio.gather(*(one(index) for index in range(JOBS)))
        held[1] = worker.held()
        async with session.get("/usage?by=model") as response:
            books = (await response.json())["usage"]
    return outcomes, held[0], held[1], books


@pytest.mark.slow
@pytest.mark.timeout(_DAY_S)
def test_mixed_jobs_leave_nothing_behind_and_each_is_answered_once(tmp_path, figures):
    worker = Worker(tmp_path)
    with worker.process:
        outcomes, early, late, books = asyncio.run(_soak(worker))
    assert outcomes.total() == JOBS, outcomes
    drawn = {kind for kind, state in outcomes if state == "COMPLETED"}
    assert drawn >= {"plain", "lora", "image", "queued", "twice"}, outcomes
    assert not drawn & {"bad", "unknown"}, outcomes
    figures("F18", "jobs that were not answered", JOBS - outcomes.total(), at_most=0)
    figures("F18", "open files over those of job 200", late["files"] - early["files"], at_most=AT_ONCE / 10)
    # What an allocator keeps and how many threads are idle is of the moment: `make faults` holds it to its bar.
    figures("F18", "memory of job 2,000 over job 200", late["MB"] - early["MB"], "MB", at_most=20, momentary=True)
    figures("F18", "threads over those of job 200", late["threads"] - early["threads"], at_most=4, momentary=True)
    booked = sum(row["images"] for row in books.values())
    images = sum(count for (kind, state), count in outcomes.items() if state == "COMPLETED")
    figures("F18", "images in the books less those answered", booked - images, at_most=0, at_least=0)
