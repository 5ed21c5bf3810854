"""What a key may use: refused at every door with the field, not listed, and read again without a pause."""

import json

import pytest

from tests.fakes.web_worker import WebWorker
from tests.transport.web.test_auth import DRAWING, bearer
from tests.waiting import LIMIT_S, connect
from worker.app import server
from worker.app.server import build_keyring, reload
from worker.app.settings import Settings, SettingsError
from worker.service.limits.api_keys import new_key
from worker.service.limits.key_rights import KeyRight
from worker.transport.web.auth import Authenticator

KEYS = {name: new_key(name) for name in ("anna", "ben")}
ANNA, BEN = (bearer(KEYS[name][0]) for name in ("anna", "ben"))


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rights")
    (folder / "keys").write_text(f"{KEYS['anna'][1]} models=an*,org/* weight=2\n{KEYS['ben'][1]}  # everything\n")
    with pytest.MonkeyPatch.context() as patch:
        made = []
        patch.setattr(server, "Authenticator", lambda *parts: made.append(Authenticator(*parts)) or made[0])
        given = {"api_keys_file": folder / "keys", "edit_model": "tiny", "allow_unregistered_models": True}
        with WebWorker(folder, **given) as worker:
            worker.authenticator = made[0]
            yield worker


@pytest.mark.parametrize(("path", "sent", "code_of"), DRAWING)
def test_every_door_that_draws_refuses_a_model_that_is_not_the_keys(served, path, sent, code_of):
    answer = served.http.post(path, headers=ANNA, **sent)
    assert code_of(answer.json()) == "access_denied"
    assert answer.status_code == (400 if path == "/edit" else 403)  # that protocol has no other
    assert served.context.engine.ran == []


def test_it_is_refused_by_any_of_its_names_and_the_field_is_said(served):
    for name in ("tiny", "small", "file:models/sd1", "other/model", None):
        body = served.http.post("/run", headers=ANNA, json={"prompt": "x", "model": name}).json()
        assert (body["code"], body["field"]) == ("access_denied", "model"), name
    assert body["error"].startswith("model: this key may not use tiny; its models are an*, org/*")
    for field in ("upscale", "refiner"):
        body = {"prompt": "x", "model": "any", field: {"model": "tiny"}}
        assert served.http.post("/run", headers=ANNA, json=body).json()["field"] == field
    later = served.http.post("/v2/x/run", headers=ANNA, json={"input": {"prompt": "x", "model": "tiny"}})
    assert later.status_code == 403
    assert served.http.post("/sdapi/v1/txt2img", headers=ANNA, json={"prompt": "x"}).status_code == 403
    assert served.http.post("/v1/models/x/tiny/predictions", headers=ANNA, json={"input": {}}).status_code == 403
    with connect(f"ws://127.0.0.1:{served.port}/ws", additional_headers=ANNA) as socket:
        socket.send(json.dumps({"type": "run", "input": {"prompt": "x", "model": "tiny"}}))
        while "access_denied" not in (told := socket.recv(timeout=LIMIT_S)):
            assert '"result"' not in told
        assert '"field": "model"' in told or '"field":"model"' in told
    assert served.http.post("/run", headers=ANNA, json={"prompt": "x", "model": "any"}).status_code == 200


@pytest.mark.parametrize("path", ["plan", "inspect"])
def test_questions_about_it_are_refused_too(served, path):
    assert served.http.post(f"/{path}", headers=ANNA, json={"model": "tiny"}).json()["code"] == "access_denied"
    assert served.http.get("/schema/tiny", headers=ANNA).status_code in (403, 404)
    assert served.http.post(f"/{path}", headers=BEN, json={"model": "tiny"}).status_code == 200


LISTS = ["/models", "/v1/models", "/sdapi/v1/sd-models", "/diffusers/models"]


@pytest.mark.parametrize("path", LISTS)
def test_it_is_not_listed(served, path):
    own, all_of_them = (served.http.get(path, headers=headers) for headers in (ANNA, BEN))
    assert (own.status_code, all_of_them.status_code) == (200, 200)
    assert '"any"' in own.text
    assert '"tiny"' not in own.text
    assert '"editor"' not in own.text
    assert '"tiny"' in all_of_them.text


def test_the_refusal_of_an_unknown_model_names_only_those_that_are_the_keys(served):
    body = served.http.post("/run", headers=ANNA, json={"prompt": "x", "model": "org/unknown"}).json()
    assert not {"tiny", "editor"} & {*body.get("details", {}).get("supported_models", [])}
    assert served.http.get("/v1/models/x/tiny", headers=ANNA).status_code in (403, 404)


def test_rights_are_read_again(served, tmp_path):
    file = served.context.worker.settings.api_keys_file
    before = file.read_text()
    file.write_text(before.replace("an*", "tiny"))
    try:
        reload(served.context.worker, served.authenticator)
        assert served.http.post("/run", headers=ANNA, json={"prompt": "x"}).status_code == 200
        assert served.http.post("/run", headers=ANNA, json={"prompt": "x", "model": "any"}).status_code == 403
    finally:
        file.write_text(before)
        reload(served.context.worker, served.authenticator)


@pytest.mark.parametrize(
    ("rights", "sentence"),
    [
        ("model=demo", "keys:2: model=demo is no right of a key"),
        ("models=demo models=tiny", "models=tiny is no right of a key"),
        ("models=,", "models= names no model"),
        ("weight=0", "weight=0 is no number above 0"),
        ("weight=many", "weight=many is no number above 0"),
        ("weight=2000", "weight=2000 is no number above 0 and up to 1000"),
    ],
)
def test_a_right_that_is_none_stops_the_start_with_its_line(tmp_path, rights, sentence):
    file = tmp_path / "keys"
    file.write_text(f"# keys\n{KEYS['anna'][1]} {rights}\n")
    with pytest.raises(SettingsError, match=sentence):
        build_keyring(Settings(api_keys_file=file))


def test_rights_are_read_as_they_stand(tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"{KEYS['anna'][1]} weight=0.5 models=demo,flux-*  # May\n{KEYS['ben'][1]}\n")
    rights = build_keyring(Settings(api_keys_file=file)).rights
    assert rights == {"anna": KeyRight(("demo", "flux-*"), 0.5), "ben": KeyRight()}
    file.write_text(f"{KEYS['anna'][1]} weight=2\n{new_key('anna')[1]}\n")
    with pytest.raises(SettingsError, match="keys:2: anna has other rights in a line above"):
        build_keyring(Settings(api_keys_file=file))
