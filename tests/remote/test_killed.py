"""Two hundred jobs by a gateway before two real workers of which one is killed: each is answered, and drawn once."""

import json
import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.conftest import PROJECT
from tests.contract.test_standalone import until_ready
from tests.fakes.runpod_platform import RunPodPlatform
from tests.fakes.web_worker import WebGateway
from tests.fakes.worker_process import WorkerProcess
from tests.ports import free_port

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

HANDLER = PROJECT / "handler.py"
JOBS = 200
DOT = {"prompt": "a dot", "width": 64, "height": 64, "num_inference_steps": 2}


class Crowd:
    """Callers who send the jobs, each with a seed of its own, and keep what they are answered."""

    def __init__(self, gateway, jobs=JOBS):
        self.answers = {}
        self._gateway = gateway
        self._pool = ThreadPoolExecutor(24)
        self._lock = threading.Lock()
        self._work = [self._pool.submit(self._ask, seed) for seed in range(jobs)]

    def _ask(self, seed):
        with httpx.Client(base_url=self._gateway.origin, timeout=300) as http:
            answer = http.post("/run", json=DOT | {"seed": seed}, headers={"Idempotency-Key": f"job-{seed}"})
        with self._lock:
            self.answers.setdefault(seed, []).append((answer.status_code, answer.json()))

    def until(self, count):
        while len(self.answers) < count and not all(work.done() for work in self._work):
            time.sleep(0.02)

    def all(self):
        for work in self._work:
            work.result()
        self._pool.shutdown()
        return self.answers


def check(answers, jobs=JOBS):
    assert len(answers) == jobs
    assert {len(each) for each in answers.values()} == {1}
    failed = [body for ((status, body),) in answers.values() if status != 200]
    assert failed == [], failed[:3]
    assert all(body["seed"] == seed for seed, ((_, body),) in answers.items())
    assert len({body["id"] for ((_, body),) in answers.values()}) == jobs
    return [body for ((_, body),) in answers.values()]


def drawn(volume):
    """The gateway's ids of the jobs that a process has drawn, as its usage log has them."""
    ids = []
    for path in Path(volume).rglob("*.jsonl"):
        for line in path.read_text().splitlines():
            record = json.loads(line)
            if record["action"] == "generate" and record["outcome"] == "ok":
                ids.append(record["request_id"])
    return ids


class Box:
    """A machine with a worker, which can be killed and started again; each process has a volume of its own."""

    def __init__(self, zoo, folder):
        self.zoo, self.folder, self.port, self.volumes = zoo, folder, free_port(), []

    def start(self):
        volume = self.folder / f"volume-{len(self.volumes)}"
        self.volumes.append(volume)
        env = {"STANDALONE_MODE": "1", "API_HOST": "127.0.0.1", "API_PORT": str(self.port), "DEVICE": "cpu"}
        env |= {"MODELS_YAML": str(self.zoo / "models.yaml"), "DEFAULT_MODEL": "tiny", "BATCH_SIZE": "4"}
        self.process = WorkerProcess(HANDLER, env=env | {"VOLUME_DIR": str(volume), "HOME": str(self.folder)})
        self.process.origin = f"http://127.0.0.1:{self.port}"
        self.process.__enter__()
        return self

    def kill(self):
        self.process.__exit__(None, None, None)


def test_two_http_workers_one_of_which_is_killed_three_times(zoo, tmp_path):
    boxes = [Box(zoo, tmp_path / name).start() for name in ("a", "b")]
    dice = random.Random(15)
    try:
        for box in boxes:
            until_ready(box.process)
        replicas = {f"box-{box.folder.name}": {"url": box.process.origin} for box in boxes}
        models = {"models_yaml": zoo / "models.yaml", "timeout_seconds": 600}
        with WebGateway(tmp_path / "gateway", replicas, **models) as gateway:
            crowd = Crowd(gateway)
            killed = []
            for count in (30, 80, 130):
                crowd.until(count)
                box = dice.choice(boxes)
                box.kill()
                killed.append(box.volumes[-1])
                box.start()
                until_ready(box.process)
            bodies = check(crowd.all())
    finally:
        for box in boxes:
            box.kill()
    draws, last = Counter(), Counter()
    for box in boxes:
        for volume in box.volumes:
            (last if volume in killed else draws).update(drawn(volume))
    assert max(draws.values()) == 1  # no process that lived to the end drew one twice, nor did two of them
    # Drawn again only where its first process was killed before it had answered.
    again = {id for id in draws if id in last}
    moved = [body for body in bodies if body["placement"]["attempts"] > 1]
    assert len(again) <= len(moved)
    print(f"\n{JOBS} jobs, three kills: {len(moved)} jobs went to another worker, {len(again)} were drawn again")


def test_two_runpod_workers_one_of_which_is_killed(zoo, tmp_path):
    with RunPodPlatform() as platform:
        models = {"MODELS_YAML": str(zoo / "models.yaml"), "DEFAULT_MODEL": "tiny", "DEVICE": "cpu"}
        workers = []
        for name in ("one", "two"):
            env = platform.worker_env(name) | models | {"VOLUME_DIR": str(tmp_path / name), "WORKER_CONCURRENCY": "8"}
            workers.append(WorkerProcess(HANDLER, env=env | {"BATCH_SIZE": "4"}).__enter__())
        try:
            for _ in workers:  # both have loaded
                platform.wait(platform.submit(DOT), 240)
            replica = {"runpod": platform.endpoint_id, "url": platform.url, "key": "FAKE_RUNPOD_KEY", "attempt_s": 30}
            settings = {"models_yaml": zoo / "models.yaml", "timeout_seconds": 600}
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("FAKE_RUNPOD_KEY", platform.api_key)
                gateway = WebGateway(tmp_path / "gateway", {"pool": replica | {"concurrency": 24}}, **settings)
            with gateway:
                crowd = Crowd(gateway)
                crowd.until(60)
                workers[0].kill()
                bodies = check(crowd.all())
        finally:
            for worker in workers:
                worker.__exit__(None, None, None)
        # Each job that the platform finished has one result, and each attempt that it ended has none.
        done = [record for record in platform.records.values() if record.results]
        assert {len(record.results) for record in done} == {1}
        assert len(done) == JOBS + 2
        lost = [record for record in platform.records.values() if record.status == "TIMED_OUT"]
        moved = [body for body in bodies if body["placement"]["attempts"] > 1]
        print(f"\n{JOBS} jobs, one kill: {len(lost)} attempts were lost, {len(moved)} jobs were sent again")
