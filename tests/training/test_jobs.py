"""Trainings as jobs: admitted, told of, cancelled and gone on with as any caller sees it; serving goes on meanwhile."""

import base64
import io
import itertools
import json
import shutil
import zipfile
from pathlib import Path

import pytest
import yaml
from aiohttp import web
from PIL import Image
from pydantic import SecretStr
from safetensors.torch import load_file

from tests.asking import perform
from tests.fakes import FakeServer
from tests.fakes.bucket import FakeBucket
from tests.fakes.hub import FakeHub
from tests.images import assert_differs, pixels
from tests.waiting import until_true
from worker.core.errors import (
    InvalidRequest,
    Overloaded,
    ParameterOutOfRange,
    UnknownParameter,
    UnsupportedModel,
)
from worker.service.jobs.record import JobOptions, Status
from worker.service.jobs.store import JobStore
from worker.store import parquet_images
from worker.transport.job_input import read_input

FEW = {"action": "train", "model": "tiny", "rank": 2, "learning_rate": 0.02, "steps": 3, "save_every": 2}
PROMPT = "a red apple"
_ids = itertools.count()


def sent(images):
    """The images as a caller sends them."""
    files = sorted(images.glob("*.png"))
    return [
        {"image": base64.b64encode(file.read_bytes()).decode(), "caption": file.with_suffix(".txt").read_text()}
        for file in files
    ]


def zipped(images):
    with zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
        for file in sorted(images.iterdir()):
            archive.write(file, file.name)
    return base64.b64encode(buffer.getvalue()).decode()


def weights(volume, name):
    tensors = load_file(volume / f"loras/{name}.safetensors")
    return {key: value.numpy().tobytes() for key, value in tensors.items()}


async def ask(worker, payload, told=None, caller=None):
    told = [] if told is None else told
    return await perform(worker, payload, f"job-{next(_ids)}", told.append, caller)


async def test_what_was_trained_is_drawn_with_by_its_name_at_once(trains, images, settings):
    worker, told = trains(gpu_price_per_hour=3.6), []
    job = FEW | {"data": sent(images), "name": "mine", "samples": [PROMPT], "trigger": "sks"}
    plan = await ask(worker, job | {"action": "train_plan"})
    assert (plan["dataset"]["images"], plan["dataset"]["captions"]) == (4, 4)
    assert sum(size["images"] for size in plan["sizes"]) == 4
    assert (plan["fits"], plan["expected_s"]) == (True, None)
    answer = await ask(worker, job, told)
    assert (answer["done"], answer["steps"], answer["use"], answer["next"]) == (True, 3, {"loras": ["mine"]}, None)
    assert answer["usage"]["cost_usd"] == pytest.approx(
        answer["usage"]["gpu_seconds"] / 1000, abs=1e-6
    )  # told to the ms
    assert [each.step for each in told if each.phase == "train"] == [1, 2, 3]
    assert all("learning rate" in each.message and "left" in each.message for each in told if each.phase == "train")
    for file in answer["files"]:
        assert (settings.volume / file["path"]).is_file()
    assert not list((settings.volume / "trained/mine").glob("data*/*")), "what was sent is not kept"
    page = (settings.volume / "trained/mine/README.md").read_text()
    head = yaml.safe_load(page.split("---")[1])
    assert (head["base_model"], head["instance_prompt"], head["tags"][0]) == ("tiny", "sks", "lora")
    assert "samples/step-000003-1.png" in page
    assert PROMPT not in page
    assert {file["path"].rpartition("/")[2] for file in answer["files"]} >= {"README.md", "mine-kohya.safetensors"}
    plain, mine = [await ask(worker, {"prompt": PROMPT, "seed": 0, "loras": loras}) for loras in ([], ["mine"])]
    assert mine["loras"][0]["matched"] == mine["loras"][0]["total"] > 0
    assert_differs(pixels(mine), pixels(plain))
    (sample,) = (settings.volume / "trained/mine/samples").glob("step-000003-1.png")
    assert (pixels({"image": base64.b64encode(sample.read_bytes()).decode()}) == pixels(mine)).all()
    again = await ask(worker, FEW | {"action": "train_plan", "data": sent(images)})
    assert again["expected_s"] > 0
    assert again["expected_usd"] == pytest.approx(again["expected_s"] / 1000, rel=0.05)


@pytest.mark.slow
async def test_a_lora_becomes_the_candidate_of_its_model_where_that_is_asked_for(trains, images):
    worker = trains()
    before = await ask(worker, {"prompt": PROMPT, "seed": 3})
    answer = await ask(worker, FEW | {"data": sent(images), "name": "mine", "candidate": True})
    assert answer["version"] == "v2"
    mine = await ask(worker, {"prompt": PROMPT, "seed": 3, "loras": ["mine"]})
    candidate = await ask(worker, {"model": "tiny@candidate", "prompt": PROMPT, "seed": 3})
    assert candidate["image"] == mine["image"]
    assert (await ask(worker, {"prompt": PROMPT, "seed": 3}))["image"] == before["image"], "and serves nobody else"
    word = {"method": "embedding", "trigger": "<x>", "candidate": True, "data": sent(images)}
    with pytest.raises(InvalidRequest, match="candidate"):
        await ask(worker, {"action": "train", "model": "tiny"} | word)


async def test_a_cancelled_training_leaves_an_adapter_and_goes_on_to_the_same_bits(trains, images, settings):
    worker = trains()
    job = FEW | {"data": zipped(images), "steps": 12, "save_every": 1_000}
    await ask(worker, job | {"name": "whole"})
    store, jobs = JobStore(worker.operations.perform), read_input(job | {"name": "torn"})
    record = store.submit(jobs, "a", JobOptions())
    await until_true(lambda: record.progress and record.progress.phase == "train" and record.progress.step >= 3)
    store.cancel(record)
    await store.settled(record)
    assert record.status is Status.CANCELLED
    assert "send the same request again" in record.error.message
    at = json.loads(next((settings.volume / "trained/torn/checkpoints").glob("*/state.json")).read_text())["step"]
    assert 3 <= at <= 12
    drawn = await ask(worker, {"prompt": PROMPT, "loras": ["torn"]})
    assert drawn["loras"][0]["matched"] == drawn["loras"][0]["total"]
    answer = await ask(worker, job | {"name": "torn"})
    assert (answer["resumed_at"], answer["steps"]) == (at, 12)
    assert weights(settings.volume, "torn") == weights(settings.volume, "whole")


async def test_others_are_served_between_two_steps_and_only_one_training_runs(trains, images):
    worker = trains()
    store = JobStore(worker.operations.perform)
    record = store.submit(read_input(FEW | {"data": sent(images), "steps": 100_000}), "a", JobOptions())
    await until_true(lambda: record.progress and record.progress.phase == "train")
    drawn = await ask(worker, {"prompt": PROMPT, "seed": 1})
    assert not record.over
    step = record.progress.step
    with pytest.raises(Overloaded, match="trains already"):
        await ask(worker, FEW | {"data": sent(images), "name": "other"})
    await until_true(lambda: record.progress.step > step)
    store.cancel(record)
    await store.settled(record)
    assert drawn["image"] == (await ask(worker, {"prompt": PROMPT, "seed": 1}))["image"], "it left no trace"


@pytest.mark.slow
async def test_who_lost_the_folder_to_another_worker_writes_nothing_more_there(trains, images, settings):
    store, folder = JobStore(trains().operations.perform), settings.volume / "trained/lost"
    record = store.submit(read_input(FEW | {"data": sent(images), "steps": 100_000, "name": "lost"}), "a", JobOptions())
    await until_true(lambda: record.progress and record.progress.phase == "train")
    (folder / "lease").write_bytes(b"another worker")
    await until_true(lambda: record.over)
    assert record.error.code == "overloaded"
    assert "Another process trains" in record.error.message
    await store.settled(record)
    kept = {file: file.stat().st_mtime_ns for file in folder.rglob("*") if "lease" not in file.name}
    assert (folder / "lease").read_bytes() == b"another worker"
    assert {file: file.stat().st_mtime_ns for file in kept} == kept


@pytest.mark.slow
async def test_a_worker_that_is_stopped_keeps_the_step_that_it_came_to(trains, images, settings):
    worker = trains(training="exclusive")
    store = JobStore(worker.operations.perform)
    job = FEW | {"data": sent(images), "steps": 100_000, "save_every": 100_000, "name": "stopped"}
    record = store.submit(read_input(job), "a", JobOptions())
    await until_true(lambda: record.progress and record.progress.phase == "train")
    await worker.operations.generation.admission.close(1_000)
    assert record.error.code == "shutting_down"
    assert list((settings.volume / "trained/stopped/checkpoints").glob("*/state.json"))


@pytest.mark.slow
async def test_a_caller_pays_for_the_steps_that_were_learnt(trains, images, settings):
    worker = trains(quota_pixel_steps_per_day=3 * 64 * 64 + 1)
    job = FEW | {"data": sent(images), "resolution": 64}
    with pytest.raises(Overloaded, match="pixel-steps"):
        await ask(worker, job | {"name": "none", "steps": 4}, caller="one")
    assert not list((settings.volume / "trained/none").glob("checkpoints")), "it is refused before a step"
    await ask(worker, job | {"minutes": 1e-6}, caller="one")  # one step
    await ask(worker, job | {"name": "more", "steps": 1, "accumulation": 2}, caller="one")
    with pytest.raises(Overloaded, match="pixel-steps"):
        await ask(worker, job | {"name": "most", "steps": 1}, caller="one")


@pytest.mark.slow
async def test_minutes_and_dollars_end_it_with_a_checkpoint_and_the_way_on(trains, images):
    worker = trains(gpu_price_per_hour=1.0)
    job = FEW | {"data": sent(images), "steps": 50, "name": "slow"}
    first = await ask(worker, job | {"max_usd": 1e-9})
    assert not first["done"]
    assert f"after step {first['steps']}" in first["next"]
    second = await ask(worker, job | {"minutes": 1e-6})
    assert second["resumed_at"] == first["steps"] < second["steps"]
    with pytest.raises(InvalidRequest, match="GPU_PRICE_PER_HOUR"):
        await ask(trains(), job | {"max_usd": 1})


async def test_a_plan_tells_the_licence_of_the_model_by_its_page_or_models_yaml(trains, images, settings, tmp_path):
    job = {**FEW, "action": "train_plan", "data": sent(images)}
    with FakeHub() as hub:
        terms = {"license": "other", "license_name": "tiny-non-commercial-license"}
        hub.add_repo("org/tiny", settings.models_yaml.parent / "models/sd1", tags=["license:other"], cardData=terms)
        hub.add_repo("org/free", settings.models_yaml.parent / "models/sd1", tags=["license:mit"])
        worker = trains(hf_endpoint=hub.endpoint, allow_unregistered_models=True)
        named, free, local = [await ask(worker, job | {"model": model}) for model in ("org/tiny", "org/free", "tiny")]
    assert named["licence"] == "tiny-non-commercial-license"
    assert "tiny-non-commercial-license, forbids commercial use" in named["warnings"][0]
    assert (free["licence"], free["warnings"]) == ("mit", [])
    assert (local["licence"], len(local["warnings"])) == (None, 1)
    assert "licence of tiny is not known here" in local["warnings"][0]
    shutil.copytree(settings.models_yaml.parent / "models/sd1", tmp_path / "models/sd1")
    entry = {"source": "file:models/sd1", "licence": "cc-by-nc-4.0"}
    (tmp_path / "models.yaml").write_text(json.dumps({"models": {"tiny": entry}}))
    told = await ask(trains(models_yaml=tmp_path / "models.yaml"), job)
    assert (told["licence"], len(told["warnings"])) == ("cc-by-nc-4.0", 1)


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"steps": 0}, ParameterOutOfRange, "steps must be 1 or more"),
        ({"patience": 2}, InvalidRequest, "patience.*held_out"),
        ({"held_out": 0.1}, InvalidRequest, "one image"),
        ({"stps": 4}, UnknownParameter, "did you mean steps"),
        ({"data": 5}, InvalidRequest, "data is a number"),
        ({"data": [{"img": "x"}]}, InvalidRequest, r"data\[0\] must be"),
        ({"mask_floor": 2}, ParameterOutOfRange, "mask_floor must be at most 1"),
        ({"data": "bm90IGEgemlw"}, InvalidRequest, "ZIP"),
        ({"data": "volume:../models"}, InvalidRequest, "volume:"),
        ({"data": ["http://127.0.0.1:1/a.png"]}, InvalidRequest, r"data\[0\] cannot be had"),
        ({"data": "hf:../x"}, InvalidRequest, "hf:org/name"),
        ({"name": "../x"}, ParameterOutOfRange, "name"),
        ({"name": "operators"}, InvalidRequest, "on the volume already"),
        ({"model": "video"}, UnsupportedModel, "generates no images"),
        ({"model": "no-such"}, InvalidRequest, "no-such"),
    ],
)
async def test_a_training_that_cannot_be_is_one_sentence_and_loads_nothing(
    trains, images, settings, change, kind, words
):
    (settings.volume / "loras").mkdir(parents=True)
    (settings.volume / "loras/operators.safetensors").write_bytes(b"")
    worker = trains()
    with pytest.raises(kind, match=words):
        await ask(worker, FEW | {"data": sent(images)[:1]} | change)
    assert not worker.engine.ready or not worker.engine.resident_models


async def test_without_the_operators_leave_nothing_is_trained(worker, images):
    for action in ("train", "train_plan"):
        with pytest.raises(UnsupportedModel, match="TRAINING"):
            await ask(worker, FEW | {"action": action, "data": sent(images)})
    assert not worker.engine.ready


@pytest.mark.slow
async def test_what_came_of_it_is_in_the_bucket_and_stays_on_the_volume_without_one(trains, images, settings):
    names = ("bucket_access_key_id", "bucket_secret_access_key")
    keys = {"bucket_name": "results", **dict(zip(names, map(SecretStr, ("test-access", "secret")), strict=True))}
    with FakeBucket() as bucket:
        worker = trains(bucket_endpoint_url=bucket.endpoint, **keys)
        job = FEW | {"data": sent(images), "name": "mine", "steps": 1}
        answer = await ask(worker, job)
        stored = {each.key: each.body for each in bucket.objects.values()}
        for file in answer["files"]:
            assert file["url"].startswith(bucket.endpoint)
            assert (
                stored.pop(f"trained/mine/{file['path'].rpartition('/')[2]}")
                == (settings.volume / file["path"]).read_bytes()
            )
        assert stored == {}
    again = await ask(worker, job)  # the bucket is gone
    assert [file["url"] for file in again["files"]] == [None] * len(answer["files"])
    assert "The files are on the volume." in again["warnings"][-1]


@pytest.mark.slow
async def test_a_name_belongs_to_one_training(trains, images):
    worker = trains()
    await ask(worker, FEW | {"data": sent(images), "name": "mine"})
    with pytest.raises(InvalidRequest, match="name holds another training"):
        await ask(worker, FEW | {"data": sent(images), "name": "mine", "seed": 1})
    with pytest.raises(InvalidRequest, match="name holds another training"):
        await ask(worker, FEW | {"data": sent(images)[:2], "name": "mine"})


class Files(FakeServer):
    """Serves a folder's files."""

    def __init__(self, folder):
        super().__init__()
        self.root = folder

    def add_routes(self, router):
        router.add_get("/{name}", self._file)

    async def _file(self, request):
        return web.FileResponse(self.root / request.match_info["name"])


async def test_data_comes_from_links_the_volume_and_the_hub(trains, images, settings, tmp_path, monkeypatch):
    images = Path(shutil.copytree(images, tmp_path / "images"))
    Image.linear_gradient("L").resize((64, 64)).save(images / "2.mask.png")
    (settings.volume / "datasets").mkdir(parents=True)
    (settings.volume / "datasets/four.zip").write_bytes(base64.b64decode(zipped(images)))
    (tmp_path / "four.zip").write_bytes(base64.b64decode(zipped(images)))
    with FakeHub() as hub, Files(images) as links, Files(tmp_path) as archives:
        hub.add_repo("org/four", images)
        worker = trains(allow_private_urls=True, hf_endpoint=hub.endpoint)
        kinds = {
            "links": [
                {"image": f"{links.origin}/{n}.png", "caption": (images / f"{n}.txt").read_text()}
                | ({"mask": f"{links.origin}/2.mask.png"} if n == 2 else {})
                for n in range(4)
            ],
            "archive": f"{archives.origin}/four.zip",
            "volume": "volume:four.zip",
            "hub": "hf:org/four",
        }
        plans = [await ask(worker, FEW | {"action": "train_plan", "data": data}) for data in kinds.values()]
        assert len({plan["dataset"]["sha256"] for plan in plans}) == 1
        assert [(plan["dataset"]["images"], plan["dataset"]["masks"]) for plan in plans] == [(4, 1)] * 4
        assert all("3 images have no mask" in plan["dataset"]["faults"][-1] for plan in plans)
        (tmp_path / "rows").mkdir()
        (tmp_path / "rows/train-0.parquet").write_bytes(b"PAR1")
        hub.add_repo("org/rows", tmp_path / "rows")
        monkeypatch.setattr(parquet_images, "find_spec", lambda name: None)
        with pytest.raises(UnsupportedModel, match=r"org/rows is kept as Parquet.*package pyarrow"):
            await ask(worker, FEW | {"action": "train_plan", "data": "hf:org/rows"})
        assert not any(seen.path.endswith(".parquet") for seen in hub.requests), "it is not fetched for nothing"
        with pytest.raises(InvalidRequest, match="no public dataset"):
            await ask(worker, FEW | {"action": "train_plan", "data": "hf:org/none"})


async def test_who_sent_a_training_watches_it_and_has_it_sample_save_and_stop(trains, images, settings):
    worker, folder = trains(), settings.volume / "trained/seen"
    store = JobStore(worker.operations.perform)
    job = FEW | {"data": sent(images), "steps": 100_000, "save_every": 100_000, "name": "seen", "samples": [PROMPT]}

    async def control(wish, caller="anna", **fields):
        asked = {"action": "train_control", "name": "seen", "control": wish, **fields}
        return await ask(worker, asked, caller=caller)

    record = store.submit(read_input(job), "a", JobOptions(), caller="anna")
    await until_true(lambda: record.progress and record.progress.phase == "train")
    first = await control("look")
    assert (first["running"], first["of"], first["model"]) == (True, 100_000, "tiny")
    assert [(each["step"], each["prompt"]) for each in first["samples"]] == [(0, 1)]
    with pytest.raises(InvalidRequest, match="no training that your key sent"):
        await control("stop", caller="ben")
    await control("sample")
    await until_true(lambda: len([*folder.glob("samples/*.png")]) == 2)
    drawn = (await control("look", samples_after=0))["samples"]
    file = folder / f"samples/step-{drawn[0]['step']:06d}-1.png"
    assert [base64.b64decode(each["image"]) for each in drawn] == [file.read_bytes()]
    await control("save")
    await until_true(lambda: not (folder / "wish").exists() and len([*folder.glob("checkpoints/*")]) == 2)
    assert not record.over
    await control("stop")
    await store.settled(record)
    answer = record.outcome()
    assert 0 < answer.steps < 100_000
    assert "send the same request again" in answer.next
    last = await control("look", samples_after=drawn[0]["step"])
    assert (last["running"], last["step"], len(last["samples"])) == (False, answer.steps, 1)
    assert last["losses"][-1][0] == answer.steps
    with pytest.raises(InvalidRequest, match="not under way"):
        await control("sample")
