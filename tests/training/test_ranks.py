"""Several processes for one training: they learn what one learns, and none of them is waited for in vain."""

import multiprocessing
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as distributed
from safetensors.torch import load_file

from tests.training.test_jobs import FEW, ask, sent
from tests.waiting import LIMIT_S, until_true
from worker.app.build import build_worker
from worker.core.device import DeviceInfo
from worker.core.errors import EngineFailure, UnsupportedModel
from worker.core.training import TrainingOptions
from worker.service.jobs.record import JobOptions, Status
from worker.service.jobs.store import JobStore
from worker.training import rank_child
from worker.training.adapter import weights_of
from worker.training.dataset import read_as_asked
from worker.training.lessons import Lessons
from worker.training.ranks import ALONE, Member, joined_by
from worker.training.trainer import Trainer
from worker.transport.job_input import read_input


def steps_of(made: Trainer, count: int) -> list[float]:
    torch.set_num_threads(1)
    return [made.step() for _ in range(count)]


def assert_alike(one, other):
    """Assert equal weights, but for rounding: where a gradient is nothing but that, AdamW makes a whole step of it."""
    assert one.keys() == other.keys()
    off = torch.cat([(one[key].float() - other[key].float()).abs().flatten() for key in one])
    assert float((off > 1e-5).float().mean()) < 2e-3


@pytest.mark.parametrize("options", [{"batch_size": 3, "ema": 0.9}])  # of two shapes, and not the same for both
def test_two_that_share_a_batch_learn_what_one_does(trainer, options):
    alone = trainer(**options)
    losses = steps_of(alone, 3)
    store = distributed.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    members = [trainer(**options) for _ in range(2)]
    members[1]._learning[0][1].data += 1  # it takes the first one's

    def learn(number: int) -> list[float]:
        made = members[number]
        made.share(Member(0, 2, store) if number == 0 else joined_by(1, 2, store.port))
        return steps_of(made, 3)

    with ThreadPoolExecutor(2) as threads:
        told = [each.result(LIMIT_S) for each in [threads.submit(learn, number) for number in range(2)]]
    assert told[0] == told[1] == pytest.approx(losses, rel=1e-4)
    ends = [weights_of(each.denoiser) for each in (*members, alone)]
    assert all(torch.equal(ends[0][key], value) for key, value in ends[1].items()), "equal to the bit among themselves"
    assert_alike(ends[0], ends[2])
    assert not all(torch.equal(weights_of(trainer(**options).denoiser)[key], value) for key, value in ends[2].items())


def test_each_image_of_a_step_is_computed_by_one_of_them():
    members = [Member(number, 3, None) for number in range(3)]
    for first, count in ((0, 4), (4, 1), (5, 3)):
        assert sorted(index for each in members for index in each.mine(first, count)) == list(range(count))
    assert [len(each.mine(0, 3)) for each in members] == [1, 1, 1]


@pytest.fixture
def trains(settings):
    """A function that builds a worker which trains by so many processes."""
    return lambda count: build_worker(settings.model_copy(update={"training": "shared", "training_processes": count}))


def learnt(settings, name):
    return load_file(settings.volume / f"loras/{name}.safetensors")


@pytest.mark.slow
async def test_two_processes_learn_what_one_does_and_any_number_goes_on(trains, images, settings):
    job = FEW | {"data": sent(images), "batch_size": 2, "steps": 4, "save_every": 2, "template": "of {caption}"}
    one, two = trains(1), trains(2)
    answer = await ask(one, job | {"name": "one"})
    together = await ask(two, job | {"name": "two"})
    assert together["loss"] == pytest.approx(answer["loss"], rel=1e-4)
    assert_alike(learnt(settings, "two"), learnt(settings, "one"))
    assert not multiprocessing.active_children(), "they end with it"
    first = await ask(two, job | {"name": "torn", "minutes": 1e-6})
    assert 1 <= first["steps"] < 4
    second = await ask(one, job | {"name": "torn"})
    assert second["resumed_at"] == first["steps"]
    assert_alike(learnt(settings, "torn"), learnt(settings, "one"))


@pytest.mark.slow
async def test_a_process_that_is_killed_ends_the_training_which_goes_on_from_its_checkpoint(trains, images):
    job = FEW | {"data": sent(images), "batch_size": 2, "steps": 400, "save_every": 2, "name": "killed"}
    two = trains(2)
    store = JobStore(two.operations.perform)
    record = store.submit(read_input(job), "a", JobOptions())
    await until_true(lambda: record.progress and record.progress.phase == "train" and record.progress.step >= 2)
    (other,) = multiprocessing.active_children()
    other.kill()
    await store.settled(record)
    assert record.status is Status.FAILED
    assert (record.error.code, record.error.retryable) == (EngineFailure.code, True)
    assert "Number 1 (status -9) of the 2 processes" in record.error.message
    assert not multiprocessing.active_children()
    again = await ask(two, job | {"minutes": 1e-6})
    assert again["steps"] > again["resumed_at"] >= 2


def test_more_processes_than_gpus_are_refused_before_anything_is_loaded(trains, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    trainer = replace(trains(4).trainer.own, device=lambda: DeviceInfo("cuda", "a GPU", 0, 0))
    with pytest.raises(UnsupportedModel, match="TRAINING_PROCESSES is 4 and this worker has 2 GPUs"):
        trainer._loading(SimpleNamespace(options=TrainingOptions(batch_size=4)), None, None)
    assert trainer._processes(SimpleNamespace(options=TrainingOptions(batch_size=2))) == 2, "one for each image at most"


def test_another_process_reads_the_captions_as_the_first_one_does(tiny, images, tmp_path, monkeypatch):
    options = TrainingOptions(rank=2, resolution=64, template="{caption}, drawn", crop="random", crops=2)
    first = Trainer(tiny("sd1"), options, 64, 16)
    first.prepare(read_as_asked(images, options).examples, (), Lessons(tmp_path / "lessons", "m"), lambda *_: None)
    kept = sorted(each.name for each in (tmp_path / "lessons").iterdir())
    monkeypatch.setattr(rank_child, "load_pipeline", lambda plan: tiny("sd1"))
    monkeypatch.setattr(rank_child, "view", lambda pipe, cls: pipe)
    monkeypatch.setattr(rank_child, "joined_by", lambda *_: ALONE)
    orders = SimpleNamespace(send_bytes=lambda word: None, recv_bytes=lambda: (_ for _ in ()).throw(EOFError))
    plan = SimpleNamespace(device="cpu")
    rank_child.Share(plan, "", options, 64, 16, "m", images, tmp_path)(1, 2, 0, orders)
    assert sorted(each.name for each in (tmp_path / "lessons").iterdir()) == kept, "it encodes nothing else"
