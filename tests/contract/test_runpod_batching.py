"""RunPod's queue and BATCH_SIZE together: as many jobs are taken as two batches need."""

import pytest

from tests.contract.test_runpod_queue import HANDLER, worker_env
from tests.fakes.runpod_platform import RunPodPlatform
from tests.fakes.worker_process import WorkerProcess
from worker.app.settings import Settings


@pytest.mark.parametrize(
    ("batch_size", "concurrency", "taken"), [(1, 1, 1), (1, 2, 2), (4, 2, 8), (4, 20, 20), (32, 64, 64)]
)
def test_two_batches_worth_of_jobs_are_taken(batch_size, concurrency, taken):
    assert Settings(batch_size=batch_size, worker_concurrency=concurrency).jobs_taken == taken


@pytest.mark.slow
def test_jobs_of_the_queue_are_drawn_together(zoo, tmp_path):
    batching = {"BATCH_SIZE": "3", "BATCH_TIMEOUT_MS": "5000"}
    with RunPodPlatform() as platform, WorkerProcess(HANDLER, env=worker_env(platform, zoo, tmp_path, **batching)):
        ids = [platform.submit({"prompt": f"number {seed}", "seed": seed}) for seed in range(6)]
        records = [platform.wait(job_id) for job_id in ids]
    assert [record.output["seed"] for record in records] == [*range(6)]
    assert [record.output["timings"]["batch_size"] for record in records] == [3] * 6
