"""The operator's doors: what lies on the volume, who did what, and the settings; each for admin keys only."""

import pytest

from tests.fakes.web_worker import WebGateway, WebWorker
from worker.store.entries import Entries, EntryFile

ANNA, ADMIN = "anna's own secret key", "the operator's own key"
TELLING = ("/admin/settings", "/admin/audit", "/admin/cache")


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def guarded(tmp_path):
    with WebWorker(tmp_path, api_keys=ANNA, admin_keys=ADMIN, cache_max_gb=2.0) as worker:
        yield worker


def test_nobody_else_is_told_anything(guarded):
    for path in TELLING:
        assert guarded.http.get(path).status_code == 401
        assert guarded.http.get(path, headers=bearer(ANNA)).json()["code"] == "access_denied"
    for path in ("/admin/cache/pin", "/admin/cache/remove", "/admin/cache/pull"):
        assert guarded.http.post(path, json={}, headers=bearer(ANNA)).status_code == 403


def test_the_settings_are_told_and_no_secret_is(guarded):
    answer = guarded.http.get("/admin/settings", headers=bearer(ADMIN))
    settings = answer.json()["settings"]
    assert (settings["CACHE_MAX_GB"], settings["DEFAULT_MODEL"], settings["WEB_PAGE"]) == (2.0, "tiny", True)
    assert (settings["API_KEYS"], settings["ADMIN_KEYS"], settings["WEBHOOK_SECRET"]) == ("set", "set", None)
    assert ANNA not in answer.text
    assert ADMIN not in answer.text


def test_a_password_in_an_address_is_not_told(tmp_path):
    from worker.app.settings import Settings

    shown = Settings(volume_dir=tmp_path, OTEL_EXPORTER_OTLP_ENDPOINT="https://me:secret@traces.example/v1").shown()
    assert shown["OTEL_EXPORTER_OTLP_ENDPOINT"] == "https://traces.example"


def test_the_audit_log_has_the_newest_first_and_no_prompt(guarded):
    guarded.http.post("/run", json={"prompt": "a secret wish"}, headers=bearer(ANNA))
    guarded.http.post("/run", json={"prompt": "a secret wish", "width": 1}, headers=bearer(ANNA))
    guarded.http.get("/admin/audit", headers=bearer(ANNA))
    guarded.context.worker.usage_log.close()  # all of it is written
    answer = guarded.http.get("/admin/audit?limit=3", headers=bearer(ADMIN))
    told = [(line["action"], line["outcome"]) for line in answer.json()["operations"]]
    assert told == [("access", "access_denied"), ("generate", "parameter_out_of_range"), ("generate", "ok")]
    assert answer.json()["operations"][0]["caller"] == answer.json()["operations"][2]["caller"] is not None
    assert "secret wish" not in answer.text


@pytest.mark.parametrize("path", ["/run", "/runsync", "/v2/any/runsync"])
def test_a_profile_is_for_admin_keys_only_and_nothing_runs(guarded, path):
    body = {"input": {"prompt": "x", "profile": True}}
    refused = guarded.http.post(path, json=body, headers=bearer(ANNA))
    assert (refused.status_code, refused.json()["code"], refused.json()["field"]) == (403, "access_denied", "profile")
    assert refused.json()["error"].startswith("profile needs one of this worker's admin keys")
    assert not guarded.context.engine.ran
    asked = guarded.http.post(path, json={"input": {"prompt": "x", "profile": False}}, headers=bearer(ANNA))
    assert asked.status_code == 200
    answer = guarded.http.post(path, json=body, headers=bearer(ADMIN)).json()["output"]
    assert answer["profile"]["operators"][0]["name"] == "aten::mm"
    assert "profile" not in answer["reproduce"]["input"]


def test_what_lies_on_the_volume_is_listed_pinned_and_removed(guarded):
    entries = Entries(guarded.context.worker.settings.models_dir)
    blob = guarded.context.worker.settings.models_dir / "blobs" / "a"
    blob.parent.mkdir(parents=True)
    blob.write_bytes(b"weights")
    file = EntryFile(blob, 7, "0" * 64, blob.stat().st_mtime_ns)
    entries.publish("hf:org/model@main", {"model.safetensors": file}, {})

    def listed():
        return guarded.http.get("/admin/cache", headers=bearer(ADMIN)).json()

    def ask(path, **body):
        return guarded.http.post(f"/admin/cache/{path}", json=body, headers=bearer(ADMIN))

    assert listed()["max_bytes"] == 2_000_000_000
    (model,) = listed()["models"]
    assert (model["name"], model["bytes"], model["pinned"]) == ("hf:org/model@main", 7, False)
    assert ask("pin", name="org/model", pinned=True).status_code == 200
    assert listed()["models"][0]["pinned"]
    assert ask("pin", name="org/model", pinned="yes").json()["field"] == "pinned"
    assert ask("remove", name="nothing").json()["code"] == "model_not_found"
    assert ask("remove").json()["field"] == "name"
    assert ask("remove", name="hf:org/model@main").json()["name"] == "hf:org/model@main"
    assert listed()["models"] == []


def test_a_model_is_fetched_and_not_loaded(guarded):
    answer = guarded.http.post("/admin/cache/pull", json={"model": "tiny"}, headers=bearer(ADMIN))
    assert answer.status_code == 200
    assert answer.json()["bytes"] > 0
    refused = guarded.http.post("/admin/cache/pull", json={"model": "file:/nowhere"}, headers=bearer(ADMIN)).json()
    assert refused["code"] == "access_denied"


def test_a_gateway_asks_its_worker_for_the_models_on_the_volume(tmp_path):
    replicas = {"one": {"url": "http://127.0.0.1:9"}}
    with WebGateway(tmp_path, replicas, api_keys=ANNA, admin_keys=ADMIN) as served:
        assert (
            "The worker one does not answer" in served.http.get("/admin/cache", headers=bearer(ADMIN)).json()["error"]
        )
        assert served.http.get("/admin/settings", headers=bearer(ADMIN)).status_code == 200
        assert served.http.get("/jobs", headers=bearer(ANNA)).json() == {"jobs": []}


def test_keys_are_listed_by_name_with_their_rights_and_no_key_is_told(tmp_path):
    from worker.service.limits.api_keys import new_key

    anna, line = new_key("anna")
    file = tmp_path / "keys"
    file.write_text(f"{line} models=demo,tiny weight=2\n{new_key('ben')[1]}\n")
    with WebWorker(tmp_path, api_keys_file=file, admin_keys=ADMIN) as worker:
        answer = worker.http.get("/admin/keys", headers=bearer(ADMIN))
        first, second, operator = answer.json()["keys"]
        assert first == {"name": "anna", "admin": False, "models": ["demo", "tiny"], "weight": 2.0}
        assert second == {"name": "ben", "admin": False, "models": None, "weight": 1.0}
        assert (operator["name"][:4], operator["admin"]) == ("key-", True)
        assert not any(secret in answer.text for secret in (anna, ADMIN, line.partition(":")[2]))
        assert worker.http.get("/admin/keys", headers=bearer(anna)).status_code == 403
