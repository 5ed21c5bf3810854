"""Versions at the doors: each serves the one that is named, and the operator's pages change which that is."""

import pytest

from tests.fakes.web_worker import WebGateway, WebWorker
from tests.service.versions.shelf import write_steps
from tests.transport.web.doors import DOORS
from worker.core.job_input import VERSION_FIELDS

ANNA, ADMIN = "anna's own secret key", "the operator's own key"
BOTH = {"Authorization": f"Bearer {ADMIN}"}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    root = tmp_path_factory.mktemp("versions")
    with WebWorker(root, api_keys=ANNA, admin_keys=ADMIN) as worker:
        change(worker, "promote", version="entry")
        write_steps(root, 7)
        worker.context.worker.reload()
        change(worker, "promote", version="entry", alias="candidate", why="two more steps")
        yield worker


def change(worker, action, **fields):
    answer = worker.http.post(f"/admin/versions/{action}", json={"model": "tiny", **fields}, headers=BOTH)
    assert answer.status_code == 200, answer.text
    return answer.json()["models"][0]


@pytest.mark.parametrize("door", DOORS)
def test_every_door_serves_the_version_that_is_named(served, door):
    for model, version in (("tiny@candidate", "v2"), ("tiny@v1", "v1"), ("small", "v1")):
        said = DOORS[door](served, {"model": model}, {"Authorization": f"Bearer {ANNA}"})
        assert said.code is None, said
        assert served.context.engine.ran[-1].call.spec.version == version


def test_an_answer_has_its_version_and_is_replayed_by_it(served):
    answer = served.http.post("/run", json={"prompt": "x", "model": "tiny@candidate"}, headers=BOTH).json()
    output = answer.get("output", answer)
    assert (output["version"], output["arm"], output["reproduce"]["input"]["model"]) == ("v2", None, "tiny@v2")


def test_the_operator_s_pages_are_for_the_operator(served):
    anna = {"Authorization": f"Bearer {ANNA}"}
    for path in ("", "/history", "/report?model=tiny"):
        assert served.http.get(f"/admin/versions{path}", headers=anna).status_code == 403
        assert served.http.get(f"/admin/versions{path}", headers=BOTH).status_code == 200
    for action in ("promote", "rollback", "split"):
        body = {"model": "tiny", "action": action}
        assert served.http.post(f"/admin/versions/{action}", json=body, headers=anna).status_code == 403
        assert served.http.post("/run", json=body, headers=anna).json()["code"] == "access_denied"
        assert served.http.post(f"/admin/versions/{action}", json=body, headers=BOTH).json()["field"] == "body"


def test_a_change_is_one_post_and_says_what_is_served_then(served):
    told = change(served, "promote", version="candidate", why="it looks better")
    assert (told["rollback_to"], told["versions"][1]["aliases"]) == ("v1", ["stable", "candidate"])
    told = change(served, "rollback", why="a caller complained")
    assert told["versions"][0]["aliases"] == ["stable"]
    told = change(served, "split", arms={"stable": 50, "candidate": 50}, halt={"jobs": 8})
    assert (told["arms"], told["halt"]["jobs"]) == ({"stable": 50.0, "candidate": 50.0}, 8)
    assert change(served, "split")["arms"] == {}
    history = served.http.get("/admin/versions/history?model=tiny&limit=2", headers=BOTH).json()["changes"]
    assert [(each["kind"], each["who"]) for each in history] == [("split", history[0]["who"])] * 2
    assert history[0]["who"] not in ("", "operator")  # the key's owner


@pytest.mark.parametrize("action", ["golden", *VERSION_FIELDS])
def test_versions_are_an_admin_s_at_every_action(served, action):
    job = {"input": {"action": action, "model": "tiny"}}
    answer = served.http.post("/runsync", json=job, headers={"Authorization": f"Bearer {ANNA}"})
    assert (answer.status_code, answer.json()["code"]) == (403, "access_denied"), answer.text


def test_a_gateway_of_the_same_volume_chooses_and_its_workers_serve_just_that(tmp_path):
    with WebWorker(tmp_path / "worker") as worker:
        settings = worker.context.worker.settings
        shared = {"models_yaml": settings.models_yaml, "volume_dir": settings.volume, "admin_keys": ADMIN}
        with WebGateway(tmp_path / "gateway", {"one": {"url": worker.origin}}, **shared) as gateway:
            change(gateway, "promote", version="entry")
            write_steps(tmp_path / "worker", 7)
            for served in (worker.served, gateway.served):
                served.reload()
            change(gateway, "promote", version="entry", alias="candidate")
            change(gateway, "split", arms={"stable": 50, "candidate": 50})
            arms = {}
            for number in range(10):
                job = {"prompt": "x", "model": "tiny", "sticky": f"n{number}", "width": 64, "height": 64}
                output = gateway.http.post("/runsync", json={"input": job}, headers=BOTH).json()["output"]
                ran = worker.context.engine.ran[-1]
                assert (output["version"], output["num_inference_steps"]) in (("v1", 5), ("v2", 7))
                assert (ran.call.spec.version, ran.choice.arm) == (output["version"], None)
                assert ran.request.arm == output["arm"]
                arms[output["arm"]] = output["version"]
            assert arms == {"stable": "v1", "candidate": "v2"}
            change(gateway, "promote", version="candidate")
            assert worker.http.post("/run", json={"prompt": "x"}).json()["version"] == "v2"


def test_the_documented_fields_are_those_that_are_read():
    from worker.core.job_input import VersionRequest
    from worker.transport.web.versions import _FIELDS

    read = VersionRequest.model_json_schema()
    assert _FIELDS.keys() == read["properties"].keys() - {"action"}
    bounds = ("minLength", "maxLength", "minimum", "maximum", "exclusiveMinimum", "default")
    for name, schema in _FIELDS.items():
        said = read["properties"][name]
        said = next((each for each in said.get("anyOf", []) if each["type"] != "null"), said)
        found = {bound: said[bound] for bound in bounds if bound in said and not isinstance(said[bound], dict)}
        assert {bound: schema[bound] for bound in bounds if bound in schema} == found, name
    rule = read["$defs"]["HaltRule"]["properties"]
    for name, schema in _FIELDS["halt"]["properties"].items():
        said = next((each for each in rule[name].get("anyOf", [])), rule[name])
        assert {bound: schema[bound] for bound in bounds if bound in schema} == {
            bound: said[bound] for bound in bounds[:-1] if bound in said
        }
