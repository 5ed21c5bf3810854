"""The worker on Ray Serve, as it really runs: two CPU replicas behind the gateway, in processes of their own.

make test-ray
"""

import asyncio
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

pytest.importorskip("ray", reason="make test-ray has an environment of its own for Ray")

from tests.deploy.ray_cluster import MODELS, RayCluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]
JOBS = 60


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    cluster = RayCluster(tmp_path_factory.mktemp("ray"), port)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


def loads(answers: list[dict[str, Any]]) -> int:
    return sum(answer["timings"]["load_s"] > 0 for answer in answers)


def until(condition: Any, within_s: float) -> None:
    ends = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < ends, "not in time"
        time.sleep(0.2)


def test_no_replica_runs_before_the_first_job_and_two_models_do_not_take_turns(cluster: RayCluster) -> None:
    assert not cluster.replicas("A10G")
    began = time.monotonic()
    with ThreadPoolExecutor(JOBS) as threads:
        first = list(threads.map(cluster.run, MODELS))
        print(f"\nfrom zero: {time.monotonic() - began:.1f} s to {len(first)} answers")
        assert [result["status"] for result in first] == ["COMPLETED"] * len(MODELS), first
        assert {result["output"]["placement"]["replica"] for result in first} == {"A10G-1", "A10G-2"}
        began = time.monotonic()
        models = [MODELS[index % len(MODELS)] for index in range(JOBS)]
        results = list(threads.map(cluster.run, models))
    assert [result["status"] for result in results] == ["COMPLETED"] * JOBS, results
    outputs = [result["output"] for result in results]
    placed = Counter(output["placement"]["replica"] for output in outputs)
    ours = loads(outputs)
    print(
        f"{JOBS} jobs of {len(MODELS)} models, placed: {ours} loads, {time.monotonic() - began:.1f} s, {dict(placed)}"
    )
    assert [output["model"] for output in outputs] == models
    assert placed.keys() == {"A10G-1", "A10G-2"}
    assert ours <= 8


def test_a_cancel_stops_the_step(cluster: RayCluster) -> None:
    before = cluster.ends()
    body = {"input": {"model": "one", "prompt": "a pear", "num_inference_steps": 100, "width": 256, "height": 256}}
    id_ = cluster.http.post("/v2/any/run", json=body).json()["id"]
    with cluster.http.stream("GET", f"/events/{id_}") as events:
        next(line for line in events.iter_lines() if '"inference"' in line and '"step":0' not in line.replace(" ", ""))
    cluster.http.post(f"/v2/any/cancel/{id_}")

    def ended() -> Counter[str]:
        return Counter(end for _, end in (cluster.ends() - before).elements())

    until(lambda: ended()["job_cancelled"] == 1, 300)
    assert cluster.run("one")["status"] == "COMPLETED"
    assert ended() == {"job_cancelled": 1, "completed": 1}


def test_every_job_is_answered_once_though_a_replica_is_killed(cluster: RayCluster) -> None:
    before = cluster.ends()
    deadline_s = 800  # of each job, and of no test: a busy machine takes its time
    with ThreadPoolExecutor(20) as threads:
        began = time.monotonic()
        jobs = [
            threads.submit(cluster.run, MODELS[index % 2], num_inference_steps=12, timeout_s=deadline_s)
            for index in range(20)
        ]
        until(lambda: sum(job.done() for job in jobs) >= 4, 600)
        (victim,) = cluster.replicas("A10G-1")
        os.kill(victim, signal.SIGKILL)
        results = [job.result(deadline_s + 60) for job in jobs]
    print(f"\n20 jobs and a replica killed: {time.monotonic() - began:.1f} s")
    assert [result["status"] for result in results] == ["COMPLETED"] * 20, results
    drawn = {key: count for (key, end), count in (cluster.ends() - before).items() if end == "completed"}
    assert len(drawn) == 20
    assert set(drawn.values()) == {1}
    assert victim not in cluster.replicas("A10G-1")


def test_a_tier_that_nobody_asks_for_comes_to_rest_and_starts_again(cluster: RayCluster) -> None:
    before = cluster.replicas("A10G")
    assert before
    until(lambda: not cluster.replicas("A10G"), 600)
    assert cluster.run("one")["status"] == "COMPLETED"
    assert not cluster.replicas("A10G") & before


def test_rays_own_multiplexing_is_measured_beside_it(cluster: RayCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray
    from ray import serve

    from tests.deploy.multiplexed import Multiplexed

    for name in ("RAY_TMPDIR", "PYTHONPATH"):
        monkeypatch.setenv(name, cluster.environment[name])
    ray.init(address="auto", log_to_driver=False)
    names = ("MODELS_YAML", "DEFAULT_MODEL", "ALLOWED_MODEL_DIRS", "VOLUME_DIR", "DEVICE", "TRIAL_LOADS")
    variables = {name: cluster.environment[name] for name in (*names, "OMP_NUM_THREADS", "PYTHONPATH")}
    options = {"num_cpus": 0, "runtime_env": {"env_vars": variables}}
    deployment = serve.deployment(Multiplexed).options(
        num_replicas=2, ray_actor_options=options, max_ongoing_requests=64
    )
    handle = serve.run(deployment.bind(), name="multiplexed", route_prefix=None)

    async def all_jobs() -> list[dict[str, int]]:
        calls = []
        for index in range(JOBS):
            model = MODELS[index % len(MODELS)]
            job = {"id": f"multiplexed-{index}", "input": {"model": model, "prompt": "a red apple", "seed": 5}}
            calls.append(handle.options(multiplexed_model_id=model).run.remote(job))
        return [await call for call in calls]

    began = time.monotonic()
    answers = asyncio.run(all_jobs())
    theirs = {answer["replica"]: 0 for answer in answers}
    for answer in answers:
        theirs[answer["replica"]] = max(theirs[answer["replica"]], answer["loads"])
    print(f"\n{JOBS} jobs, serve.multiplexed: {sum(theirs.values())} loads, {time.monotonic() - began:.1f} s")
    assert sum(theirs.values()) >= len(MODELS)
    serve.delete("multiplexed")
    ray.shutdown()
