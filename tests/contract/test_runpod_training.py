"""Trainings through RunPod's SDK: told of on the way, cancelled and gone on with, and jobs between two steps."""

import numpy as np
import pytest

from tests.contract.test_runpod_queue import HANDLER, worker_env
from tests.fakes.runpod_platform import RunPodPlatform
from tests.fakes.worker_process import WorkerProcess
from tests.images import encoded
from tests.waiting import until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


def dataset():
    random = np.random.RandomState(0)
    images = [(random.rand(64, 64, 3) * 255).astype("uint8") for _ in range(3)]
    return [{"image": encoded(image), "caption": f"thing {index}"} for index, image in enumerate(images)]


@pytest.fixture(scope="module")
def served(zoo, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    with RunPodPlatform() as platform:
        env = worker_env(platform, zoo, folder, TRAINING="shared")
        with WorkerProcess(HANDLER, env=env):
            platform.volume = folder / "volume"
            yield platform


def job(**changes):
    few = {"action": "train", "data": dataset(), "rank": 2, "learning_rate": 0.02, "save_every": 100_000}
    return few | changes


def begun(platform, payload):
    """The id of a training that has told of a step; the one before may have a moment to end."""

    def tried():
        job_id = platform.submit(payload)
        record = platform.records[job_id]
        assert platform.wait_until(lambda: record.final or steps_told(platform, job_id))
        assert not record.final or record.output["code"] == "overloaded", record.error
        return not record.final and job_id

    return until(tried)


def steps_told(platform, job_id):
    return [item["step"] for item in platform.progress(job_id) if item["phase"] == "train"]


def test_a_training_tells_its_progress_and_its_adapter_is_there_at_once(served):
    job_id = served.submit(job(steps=200, name="mine"))
    record = served.wait(job_id)
    assert record.status == "COMPLETED", record.error
    assert record.output["done"]
    told = steps_told(served, job_id)
    assert told == sorted(told)
    assert any("learning rate" in item["message"] for item in served.progress(job_id) if item["phase"] == "train")
    drawn = served.wait(served.submit({"prompt": "thing", "seed": 1, "loras": ["mine"]})).output
    assert drawn["loras"][0]["matched"] == drawn["loras"][0]["total"] > 0
    assert drawn["image"] != served.wait(served.submit({"prompt": "thing", "seed": 1})).output["image"]


def test_a_job_is_served_between_two_steps_and_a_cancelled_training_goes_on(served):
    payload = job(steps=100_000, name="long")
    job_id = begun(served, payload)
    drawn = served.wait(served.submit({"prompt": "thing", "seed": 2}))
    assert drawn.status == "COMPLETED"
    before = steps_told(served, job_id)[-1]
    assert served.wait_until(lambda: steps_told(served, job_id)[-1] > before), "it goes on after the job"
    served.cancel(job_id)
    until(lambda: list((served.volume / "trained/long/checkpoints").glob("step-*/state.json")))
    until((served.volume / "loras/long.safetensors").exists)
    usable = served.wait(served.submit({"prompt": "thing", "seed": 2, "loras": ["long"]}))
    assert usable.output["loras"][0]["matched"] == usable.output["loras"][0]["total"]
    again = begun(served, payload)
    assert steps_told(served, again)[0] > before, "it goes on where it was"
    served.cancel(again)
    assert served.wait(served.submit({"prompt": "thing"})).status == "COMPLETED"
