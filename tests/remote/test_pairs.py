"""Behind a gateway: a split's pairs, which the worker that answered makes by itself, and what is passed on to workers.

Those are golden prompts, and loads.
"""

import json

import pytest

from tests.fakes.web_worker import WebGateway, WebWorker
from tests.service.versions.shelf import write_steps
from tests.service.versions.test_pairs import by_steps
from tests.waiting import until
from worker.core.pair import Pair

ADMIN = "the operator's own key"
KEY = {"Authorization": f"Bearer {ADMIN}"}


class Fleet:
    """A gateway before two workers of one volume, whose model `tiny` has two versions, both on either device."""

    def __init__(self, root, gateway, workers):
        self.root, self.gateway, self.workers = root, gateway, workers

    def change(self, action, **fields):
        answer = self.gateway.http.post(f"/admin/versions/{action}", json={"model": "tiny", **fields}, headers=KEY)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def draw(self, **fields):
        job = {"prompt": "an apple", "model": "tiny", "width": 64, "height": 64, **fields}
        answer = self.gateway.http.post("/runsync", json={"input": job}, headers=KEY)
        assert answer.status_code == 200, answer.text
        return answer.json()["output"]

    @property
    def ran(self):
        return [job for worker in self.workers for job in worker.context.engine.ran]

    def pairs(self):
        return [line for line in self.gateway.served.versions.actions.pairs.lines() if isinstance(line, Pair)]


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    root = tmp_path_factory.mktemp("fleet")
    one = WebWorker(root, paired_images_mb=1, admin_keys=ADMIN, gpu_price_per_hour=3.6)
    settings = one.context.worker.settings
    shared = {"volume_dir": settings.volume, "admin_keys": ADMIN, "paired_images_mb": 1}
    two = WebWorker(root / "two", models_yaml=settings.models_yaml, **shared)
    with one, two:
        replicas = {name: {"url": worker.origin, "key": "FLEET_KEY"} for name, worker in (("one", one), ("two", two))}
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FLEET_KEY", ADMIN)
            with WebGateway(root / "gateway", replicas, models_yaml=settings.models_yaml, **shared) as gateway:
                served = Fleet(root, gateway, (one, two))
                served.change("promote", version="entry")
                write_steps(root, 7)
                for each in (one, two, gateway):
                    each.served.reload()
                served.change("promote", version="entry", alias="candidate")
                for worker in (one, two):
                    worker.context.engine.pixels = by_steps
                    for version in ("v1", "v2"):
                        worker.http.post("/run", json={"prompt": "x", "model": f"tiny@{version}"}, headers=KEY)
                yield served


def test_a_pair_is_made_by_the_worker_that_answered_and_stands_in_the_gateway_s_report(fleet):
    fleet.change("split", arms={"stable": 50, "candidate": 50}, paired=100)
    before = len(fleet.ran)
    answer = fleet.draw(seed=7, sticky="ann")
    assert until(lambda: len(fleet.pairs()) == 1), "no pair came"
    (pair,) = fleet.pairs()
    (worker,) = (each for each in fleet.workers if any(job.is_spare for job in each.context.engine.ran))
    first, second = worker.context.engine.ran[-2:]
    assert len(fleet.ran) == before + 2
    assert (first.prompt, first.seeds, second.prompt, second.seeds) == ("an apple", (7,), "an apple", (7,))
    assert (second.is_spare, second.request.arm, second.choice.version) == (True, None, pair.second)
    assert (pair.first, {pair.first, pair.second}) == (answer["version"], {"v1", "v2"})
    assert "arm" not in answer["reproduce"]["input"]
    (compared,) = fleet.gateway.http.get("/admin/versions/report?model=tiny", headers=KEY).json()["pairs"]
    assert (compared["first"], compared["second"], compared["pairs"], compared["failed"]) == ("v1", "v2", 1, 0)
    usage = fleet.gateway.http.get("/usage?by=model", headers=KEY).json()["usage"]["tiny"]
    # The first ones, and the answer: once, though worker and gateway have each a line of it. No second image.
    assert (usage["jobs"], usage["images"]) == (4 + 1, 4 + 1)
    report = fleet.gateway.http.get("/admin/versions/report?model=tiny", headers=KEY).json()
    assert sum(row["jobs"] for row in report["versions"] if row["arm"]) == 1
    assert sum(row["jobs"] for row in report["versions"] if not row["arm"]) == 4
    shown = fleet.gateway.http.get("/admin/versions/pairs?model=tiny", headers=KEY).json()
    assert (shown["waiting"], shown["pair"]) == (1, pair.id)
    fleet.change("choose", pair=pair.id, choice="left")
    (compared,) = fleet.gateway.http.get("/admin/versions/report?model=tiny", headers=KEY).json()["pairs"]
    assert sum(compared["choices"].values()) == 1


def test_only_requests_of_an_arm_as_it_is_now_are_paired(fleet):
    fleet.change("split", arms={"stable": 50, "candidate": 50}, paired=100)
    before = len(fleet.pairs())
    (worker, *_) = fleet.workers
    for sent in (
        {"model": "tiny@v1"},  # who names a version is in no arm
        {"model": "tiny@v1", "arm": "candidate"},  # the arm has another version
        {"model": "tiny@v1", "arm": "v1"},  # that is no arm of the split
    ):
        ran = len(worker.context.engine.ran)
        worker.http.post("/run", json={"prompt": "x", **sent}, headers=KEY)
        pairing = worker.context.worker.operations.pairing
        assert pairing._task is None or pairing._task.done(), sent
        assert len(worker.context.engine.ran) == ran + 1
    assert len(fleet.pairs()) == before
    refused = worker.http.post("/run", json={"prompt": "x", "arm": "main"}, headers=KEY).json()
    assert (refused["code"], refused["field"]) == ("parameter_out_of_range", "arm"), refused


def test_golden_prompts_are_compared_by_one_worker_and_shown_by_the_gateway(fleet):
    from base64 import b64decode

    from worker.media.decoding import decode_image

    fleet.change("split")
    (before,) = fleet.gateway.http.get("/admin/versions?model=tiny", headers=KEY).json()["models"]
    ran = [len(worker.context.engine.ran) for worker in fleet.workers]
    asked = {"input": {"action": "golden", "model": "tiny", "version": "candidate"}}
    answer = fleet.gateway.http.post("/runsync", json=asked, headers=KEY).json()["output"]
    assert (answer["old"], answer["new"], len(answer["prompts"])) == ("tiny@v1", "tiny@candidate", 4)
    drawn = sorted(len(worker.context.engine.ran) - count for worker, count in zip(fleet.workers, ran, strict=True))
    assert drawn == [0, 8]
    for each in answer["prompts"]:
        assert each["distance"] == pytest.approx(20 / 255 / 3**0.5, abs=1e-6)
        assert decode_image(b64decode(each["image"])).raster.width == 64 + 8 + 64
    (after,) = fleet.gateway.http.get("/admin/versions?model=tiny", headers=KEY).json()["models"]
    assert after == before


def test_what_a_worker_refuses_of_a_comparison_is_said_in_its_words(fleet):
    for fields, code in (
        ({"model": "tiny", "version": "v9"}, "model_not_found"),
        ({"model": "nonesuch"}, "model_not_found"),
        ({"model": "tiny", "version": "main"}, "invalid_request"),
    ):
        ran = len(fleet.ran)
        asked = {"input": {"action": "golden", **fields}}
        refused = fleet.gateway.http.post("/runsync", json=asked, headers=KEY).json()
        assert refused["code"] == code, refused
        assert len(fleet.ran) == ran


def test_a_model_is_loaded_at_a_worker_and_unloaded_wherever_it_is(fleet):
    def ask(action):
        answer = fleet.gateway.http.post("/runsync", json={"input": {"action": action, "model": "any"}}, headers=KEY)
        return answer.json()["output"]

    loaded = ask("preload")
    assert (loaded["model"], loaded["resident"]) == ("any", True)
    assert loaded["device"].rpartition(" of ")[2] in ("one", "two")
    assert "any" in fleet.gateway.http.get("/health").json()["resident_models"]
    assert ask("unload") == {"model": "any", "unloaded": True}
    assert "any" not in fleet.gateway.http.get("/health").json()["resident_models"]
    assert ask("unload") == {"model": "any", "unloaded": False}
    held = {job.call.spec.id for job in fleet.ran}
    assert "any" not in held  # nothing was generated for it


def test_a_gateway_whose_key_is_no_admin_s_is_told_so_and_goes_on_generating(fleet, monkeypatch):
    monkeypatch.setenv("FLEET_KEY", "a key that is not known there")
    (worker, _) = fleet.workers
    settings = {"models_yaml": fleet.root / "models.yaml", "admin_keys": ADMIN}
    replicas = {"one": {"url": worker.origin, "key": "FLEET_KEY"}}
    with WebGateway(fleet.root / "other", replicas, **settings) as gateway:
        for _ in range(4):  # more than a breaker lets pass
            asked = {"input": {"action": "golden", "model": "tiny", "version": "candidate"}}
            refused = gateway.http.post("/runsync", json=asked, headers=KEY).json()
            assert (refused["code"], "admin keys" in refused["hint"]) == ("unreachable", True), json.dumps(refused)
        (state,) = gateway.gateway.members.states()
        assert state.health == "well"


def test_the_operator_sees_the_fleet_and_keeps_the_models_of_each_worker(fleet):
    http = fleet.gateway.http
    workers = http.get("/admin/fleet", headers=KEY).json()["workers"]
    assert [(each["worker"], each["kind"], each["has_cache"]) for each in workers] == [
        ("one", "http", True),
        ("two", "http", True),
    ]
    assert http.get("/admin/fleet").status_code == 403
    assert fleet.workers[0].http.get("/admin/fleet", headers=KEY).json() == {"workers": []}
    refused = http.get("/admin/cache", headers=KEY).json()
    assert (refused["field"], refused["error"]) == ("worker", "worker must be one of this gateway's: one, two.")
    direct = fleet.workers[1].http.get("/admin/cache", headers=KEY).json()
    assert http.get("/admin/cache?worker=two", headers=KEY).json() == direct
    pulled = http.post("/admin/cache/pull?worker=two", json={"model": "any"}, headers=KEY).json()
    assert pulled == fleet.workers[1].http.post("/admin/cache/pull", json={"model": "any"}, headers=KEY).json()
    for path, body in (("pin", {"name": "nothing", "pinned": True}), ("remove", {"name": "nothing"})):
        answer = http.post(f"/admin/cache/{path}?worker=one", json=body, headers=KEY).json()
        assert (answer["code"], answer["field"]) == ("model_not_found", "name"), answer  # the worker's own words
    refused = fleet.workers[0].http.get("/admin/cache?worker=one", headers=KEY).json()
    assert (refused["field"], "is for gateways" in refused["error"]) == ("worker", True)


def test_a_gateway_without_the_volume_keeps_its_callers_apart_for_the_split_of_its_workers(fleet):
    fleet.change("split", arms={"stable": 50, "candidate": 50})
    keys = [f"a key of caller number {number:04}" for number in range(12)]
    replicas = {"one": {"url": fleet.workers[0].origin, "key": "FLEET_KEY"}}
    settings = {"models_yaml": fleet.root / "models.yaml", "api_keys": ",".join(keys)}

    def version(gateway, key):
        job = {"prompt": "x", "model": "tiny", "width": 64, "height": 64}
        answer = gateway.http.post("/run", json=job, headers={"Authorization": f"Bearer {key}"})
        assert answer.status_code == 200, answer.text
        return answer.json()["version"]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLEET_KEY", ADMIN)
        with WebGateway(fleet.root / "apart", replicas, **settings) as gateway:
            first = [version(gateway, key) for key in keys]
            assert [version(gateway, key) for key in keys] == first
    assert {*first} == {"v1", "v2"}
    fleet.change("split")
