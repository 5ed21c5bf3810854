"""Who is let in at which door, how a refusal looks there, and whose jobs are whose."""

import hashlib
import json
import logging
import re
import subprocess
import sys
import time
import uuid

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.fakes.web_worker import WebWorker
from tests.transport.web.test_guards import LISTED
from tests.transport.web.uploads import png
from tests.waiting import connect
from worker.app import server
from worker.app.server import build_keyring
from worker.app.settings import Settings, SettingsError
from worker.service.limits.api_keys import KeyListError, Keyring, new_key, parse_keys, read_api_keys
from worker.service.usage.log import read_usage
from worker.transport.web.auth import Authenticator
from worker.transport.web.tokens import LIFE_S

ANNA, BEN = "anna's own secret key", "ben's own secret key"
FORM = {"files": {"image": png(64, 64)}, "data": {"prompt": "x"}}

# Every door that draws: what is sent to it, and how its refusals name themselves.
DRAWING = [
    ("/run", {"json": {"prompt": "x"}}, lambda body: body["code"]),
    ("/runsync", {"json": {"prompt": "x"}}, lambda body: body["code"]),
    ("/diffusers/generate?model_id=tiny", {"json": {"inputs": "x"}}, lambda body: body["code"]),
    ("/diffusers/generate/tiny", {"json": {"inputs": "x"}}, lambda body: body["code"]),
    ("/models/tiny", {"json": {"inputs": "x"}}, lambda body: body["code"]),
    ("/edit", FORM, lambda body: body["error"]),
    ("/v1/images/generations", {"json": {"prompt": "x"}}, lambda body: body["error"]["code"]),
    ("/v1/images/edits", FORM, lambda body: body["error"]["code"]),
]


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture
def guarded(tmp_path):
    with WebWorker(
        tmp_path, api_keys=f"{ANNA},{BEN}", admin_keys="the operator's own key", edit_model="tiny"
    ) as worker:
        yield worker


@pytest.mark.quick_rows(4)
@pytest.mark.parametrize(("path", "sent", "code_of"), DRAWING)
def test_every_door_that_draws_asks_for_a_key_in_its_own_shape(guarded, path, sent, code_of):
    for headers in ({}, bearer("wrong"), {"Authorization": f"Basic {ANNA}"}, {"Authorization": "Bearer"}):
        answer = guarded.http.post(path, headers=headers, **sent)
        assert (answer.status_code, code_of(answer.json())) == (401, "unauthenticated")
        assert answer.headers["www-authenticate"] == "Bearer"
        assert ANNA not in answer.text
    assert guarded.context.builder.built == 0
    assert guarded.http.post(path, headers=bearer(ANNA), **sent).status_code == 200


@pytest.mark.parametrize("header", [ANNA, f"bearer  {ANNA}"])
def test_a_key_may_come_without_the_word_bearer_as_runpods_examples_have_it(guarded, header):
    for path, sent in (("/v2/x/run", {"input": {"prompt": "x"}}), ("/run", {"prompt": "x"})):
        assert guarded.http.post(path, json=sent, headers={"Authorization": header}).status_code == 200


@pytest.mark.parametrize("header", ["", "Bearer", f"Basic {ANNA}", f"{ANNA} x", f"{ANNA}x", ANNA.upper()])
def test_any_other_header_is_refused(guarded, header):
    assert guarded.http.post("/run", json={"prompt": "x"}, headers={"Authorization": header}).status_code == 401


def test_so_does_every_other_route_but_health(guarded):
    document = guarded.http.get("/openapi.json").json()
    open_to_all = {"/", "/health", "/ping", "/ready", "/v1/images/{id}/content", "/v1/predictions/{id}/output/{index}"}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            status = guarded.http.request(method, re.sub(r"\{\w+\}", "1", path)).status_code
            assert (status == 401) is (path not in open_to_all), path
            assert ("401" in operation["responses"]) is (path not in open_to_all), path
    with pytest.raises(InvalidStatus, match="403"):
        connect(f"ws://127.0.0.1:{guarded.port}/ws")
    with connect(f"ws://127.0.0.1:{guarded.port}/ws", additional_headers=bearer(ANNA)) as socket:
        socket.ping().wait(60)


def test_an_unknown_model_is_refused_by_those_that_do_not_draw_too(served):
    for method, path, status, code_of in [
        ("POST", "/inspect", 400, lambda body: body["code"]),
        ("POST", "/plan", 400, lambda body: body["code"]),
        ("GET", "/models/nope", 404, lambda body: body["code"]),
        ("GET", "/models/nope/schema", 404, lambda body: body["code"]),
        ("GET", "/v1/models/nope", 404, lambda body: body["error"]["code"]),
    ]:
        answer = served.http.request(method, path, **({"json": {"model": "nope"}} if method == "POST" else {}))
        assert (answer.status_code, code_of(answer.json())) == (status, "model_not_found"), path
    answer = served.http.post("/diffusers/generate/nope", content=png(8, 8))  # an image, whose model stands in the path
    assert (answer.status_code, answer.json()["supported_models"]) == (400, LISTED)
    assert served.context.builder.built == 0


URL_SAFE = "anna-s_own.secret~key"


def drawn(socket):
    socket.send(json.dumps({"type": "run", "input": {"prompt": "x"}}))
    while (message := json.loads(socket.recv(timeout=60)))["type"] not in ("result", "failed"):
        pass
    return message["type"]


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        (["realtime", f"openai-insecure-api-key.{URL_SAFE}"], "realtime"),
        ([f"key.{URL_SAFE}", "worker"], "worker"),
        ([f"key.{URL_SAFE}"], f"key.{URL_SAFE}"),  # a browser gives up unless it hears one that it offered
    ],
)
def test_a_browser_opens_a_websocket_with_its_key_as_a_subprotocol(tmp_path, offered, chosen):
    with WebWorker(tmp_path, api_keys=URL_SAFE) as served:
        address = f"ws://127.0.0.1:{served.port}/ws"
        with connect(address, subprotocols=offered) as socket:
            assert (socket.subprotocol, drawn(socket)) == (chosen, "result")
        for wrong in (["key.wrong-key-of-a-good-length"], ["realtime"]):
            with pytest.raises(InvalidStatus, match="403"):
                connect(address, subprotocols=wrong)
        with pytest.raises(InvalidStatus, match="403"):  # an address stands in logs
            connect(f"{address}?api_key={URL_SAFE}&token={URL_SAFE}")
        with pytest.raises(InvalidStatus, match="403"):
            connect(address, subprotocols=offered, origin="https://evil.example")
    assert URL_SAFE not in "".join(file.read_text() for file in (tmp_path / "volume/usage").iterdir())


def test_a_token_of_a_few_minutes_opens_a_browsers_connections_and_nothing_else(tmp_path, monkeypatch, caplog):
    with WebWorker(tmp_path, api_keys=f"{ANNA},{BEN}") as served, caplog.at_level(logging.INFO, "uvicorn.error"):
        assert served.http.post("/tokens").status_code == 401
        answer = served.http.post("/tokens", headers=bearer(ANNA))
        assert answer.headers["cache-control"] == "no-store"
        token = {"token": answer.json()["token"]}
        job = served.http.post("/v2/x/run", json={"input": {"prompt": "x"}}, headers=bearer(ANNA)).json()["id"]
        assert "event: result" in served.http.get(f"/events/{job}", params=token).text
        assert served.http.get(f"/v2/x/status/{job}", params=token).status_code == 401
        bens = {"token": served.http.post("/tokens", headers=bearer(BEN)).json()["token"]}
        assert served.http.get(f"/events/{job}", params=bens).status_code == 404
        claims, _, signature = token["token"].partition(".")
        for forged in (f"{claims}.{bens['token'].partition('.')[2]}", f".{signature}", claims, "a.b.c", "é.é", ""):
            assert served.http.get(f"/events/{job}", params={"token": forged}).status_code == 401, forged
        with connect(f"ws://127.0.0.1:{served.port}/ws?token={token['token']}") as socket:
            now = time.time()
            monkeypatch.setattr("worker.transport.web.tokens.time.time", lambda: now + LIFE_S + 1)
            assert drawn(socket) == "result"  # what is open stays open
        assert served.http.get(f"/events/{job}", params=token).status_code == 401
    assert 'WebSocket /ws"' in caplog.text
    assert token["token"] not in "".join(record.getMessage() for record in caplog.records if "uvicorn" in record.name)


@pytest.mark.parametrize("by_token", [False, True])
def test_an_open_connection_ends_with_the_key_that_opened_it(tmp_path, monkeypatch, by_token):
    """A key may be exchanged for another of the same owner; a token is the owner's, whatever their key is now."""
    (old, first), (new, second) = new_key("anna"), new_key("anna")
    made = []
    monkeypatch.setattr(server, "Authenticator", lambda *parts: made.append(Authenticator(*parts)) or made[0])
    with WebWorker(tmp_path, api_keys=first) as served:
        token = served.http.post("/tokens", headers=bearer(old)).json()["token"]
        address = f"ws://127.0.0.1:{served.port}/ws"
        opened = connect(f"{address}?token={token}") if by_token else connect(address, additional_headers=bearer(old))
        with opened as socket:
            assert drawn(socket) == "result"
            made[0].replace_keys(Keyring(parse_keys([second])))
            if by_token:
                assert drawn(socket) == "result"
                made[0].replace_keys(Keyring(parse_keys([BEN])))
            with pytest.raises(ConnectionClosed, match="1008"):
                drawn(socket)
        assert served.http.get("/models", headers=bearer(new)).status_code == (401 if by_token else 200)


def test_a_token_ends_with_its_key(tmp_path):
    ring = Keyring(
        {hashlib.sha256(ANNA.encode()).hexdigest(): "anna"}, {hashlib.sha256(BEN.encode()).hexdigest(): "ben"}
    )
    assert (ring.named("anna").admin, ring.named("ben").admin, ring.named("carl"), ring.named(None)) == (
        *(False, True),
        *(None, None),
    )
    assert Keyring().named(None).name is None


def test_one_callers_jobs_are_not_anothers(guarded):
    headers = {**bearer(ANNA), "Idempotency-Key": "same"}
    body = {"input": {"prompt": "x"}}
    mine = guarded.http.post("/v2/x/run", json=body, headers=headers).json()["id"]
    assert guarded.http.post("/v2/x/run", json=body, headers=headers).json()["id"] == mine
    assert guarded.http.post("/v2/x/run", json=body, headers={**headers, **bearer(BEN)}).json()["id"] != mine
    assert guarded.http.get(f"/v2/x/status/{mine}", headers=bearer(ANNA)).status_code == 200
    for method, path in [("GET", "/v2/x/status"), ("GET", "/v2/x/stream"), ("POST", "/v2/x/cancel"),
                         ("POST", "/v2/x/retry"), ("GET", "/events")]:  # fmt: skip
        answer = guarded.http.request(method, f"{path}/{mine}", headers=bearer(BEN))
        assert (answer.status_code, answer.json()["code"]) == (404, "job_not_found"), path
        unknown = guarded.http.request(method, f"{path}/{uuid.uuid4()}", headers=bearer(BEN))
        assert answer.json() | {"request_id": ""} == unknown.json() | {"request_id": ""}, "it tells of no other's job"


def test_what_is_the_operators_needs_his_key(guarded):
    operator = bearer("the operator's own key")
    for action in ("preload", "unload", "train", "train_plan", "train_control"):
        body = {"action": action, "model": "tiny"}
        answer = guarded.http.post("/run", json=body, headers=bearer(ANNA))
        assert (answer.status_code, answer.json()["code"]) == (403, "access_denied")
        assert guarded.http.post("/v2/x/run", json={"input": body}, headers=bearer(ANNA)).status_code == 403
    assert guarded.http.post("/v2/x/purge-queue", headers=bearer(ANNA)).status_code == 403
    assert guarded.http.get("/metrics", headers=bearer(ANNA)).status_code == 403
    assert guarded.http.get("/metrics", headers=operator).status_code == 200
    assert guarded.context.builder.built == 0
    assert guarded.http.post("/v2/x/purge-queue", headers=operator).status_code == 200
    assert guarded.http.post("/run", json={"action": "unload", "model": "tiny"}, headers=operator).status_code == 200


def test_the_books_say_who_asked_at_every_door(tmp_path):
    with WebWorker(tmp_path, api_keys=f"anna:{hashlib.sha256(ANNA.encode()).hexdigest()}", edit_model="tiny") as served:
        asking = [*((path, sent) for path, sent, _ in DRAWING), ("/v2/x/runsync", {"json": {"input": {"prompt": "x"}}})]
        asking += [("/inspect", {"json": {}}), ("/plan", {"json": {}})]
        for path, sent in asking:
            assert served.http.post(path, headers=bearer(ANNA), **sent).status_code in (200, 400), path
        assert served.http.get("/models/tiny/schema", headers=bearer(ANNA)).status_code == 200
        with connect(f"ws://127.0.0.1:{served.port}/ws", additional_headers=bearer(ANNA)) as socket:
            socket.send(json.dumps({"type": "run", "input": {"prompt": "x"}}))
            while json.loads(socket.recv(timeout=60))["type"] != "result":
                pass
    lines = list(read_usage(tmp_path / "volume/usage"))
    assert len(lines) == len(asking) + 2
    assert {line["caller"] for line in lines} == {"anna"}


def test_who_is_denied_access_is_in_the_books(guarded, tmp_path):
    ring = build_keyring(guarded.context.worker.settings)
    anna = ring.identify(ANNA).name
    for method, path, headers, code, caller in [
        ("POST", "/run", {}, "unauthenticated", None),
        ("GET", "/v1/models", bearer("a wrong key, and quite long"), "unauthenticated", None),
        ("GET", "/usage", bearer(ANNA), "access_denied", anna),
        ("POST", "/run", bearer(ANNA), "access_denied", anna),
        ("POST", "/run", {**bearer(ANNA), "Origin": "https://evil.example"}, "access_denied", None),
        ("WS", "/ws", {}, "unauthenticated", None),
    ]:
        if method == "WS":
            with pytest.raises(InvalidStatus, match="403"):
                connect(f"ws://127.0.0.1:{guarded.port}/ws")
        else:
            body = {"json": {"action": "unload", "model": "tiny"}} if method == "POST" else {}
            assert guarded.http.request(method, path, headers=headers, **body).status_code in (401, 403)
        guarded.context.worker.usage_log._thread.submit(lambda: None).result()  # all is written
        *_, line = read_usage(tmp_path / "volume/usage")
        assert (line["action"], line["outcome"], line["caller"]) == ("access", code, caller), path
    assert ANNA not in "".join(file.read_text() for file in (tmp_path / "volume/usage").iterdir())


def test_who_knocks_without_end_fills_no_disk(tmp_path, monkeypatch):
    monkeypatch.setattr("worker.service.usage.telemetry.MAX_DENIED_PER_MINUTE", 3)
    with WebWorker(tmp_path, api_keys=ANNA) as served:
        for _ in range(10):
            assert served.http.post("/run").status_code == 401
    assert 3 <= len(list(read_usage(tmp_path / "volume/usage"))) <= 6  # a minute may end in between


def test_who_is_turned_away_for_want_of_room_is_in_the_books_too(tmp_path):
    with WebWorker(
        tmp_path, api_keys=f"anna:{hashlib.sha256(ANNA.encode()).hexdigest()}", max_queued_mb=0.0001
    ) as served:
        served.context.engine.gate.clear()
        first = served.http.post("/v2/any/run", json={"input": {"prompt": "long " * 100}}, headers=bearer(ANNA))
        headers = {**bearer(ANNA), "X-Request-ID": "the-one"}
        assert served.http.post("/run", json={"prompt": "x"}, headers=headers).status_code == 429
        served.http.post(f"/v2/any/cancel/{first.json()['id']}", headers=bearer(ANNA))
        served.context.engine.gate.set()
    (line,) = [line for line in read_usage(tmp_path / "volume/usage") if line["request_id"] == "the-one"]
    assert (line["outcome"], line["caller"]) == ("overloaded", "anna")


def test_a_quota_is_that_of_a_key_at_every_door(tmp_path):
    with WebWorker(tmp_path, api_keys=f"{ANNA},{BEN}", rate_limit_per_minute=2) as served:
        assert served.http.post("/run", json={"prompt": "x"}, headers=bearer(ANNA)).status_code == 200
        assert (
            served.http.post(
                "/diffusers/generate?model_id=tiny", json={"inputs": "x"}, headers=bearer(ANNA)
            ).status_code
            == 200
        )
        answer = served.http.post("/v1/images/generations", json={"prompt": "x"}, headers=bearer(ANNA))
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "rate_limited")
        assert 1 <= int(answer.headers["retry-after"]) <= 30
        assert served.http.post("/run", json={"prompt": "x"}, headers=bearer(BEN)).status_code == 200
        kept = json.loads(next((tmp_path / "volume/state").glob("quotas-*.json")).read_text())
    assert len(kept) == 2
    assert not any(ANNA in name or BEN in name for name in kept)


@pytest.mark.quick_rows(3)
@pytest.mark.parametrize("path", [path for path, _, _ in DRAWING])
def test_a_page_of_another_site_is_turned_away_unless_the_operator_names_it(tmp_path, path):
    sent = next(sent for each, sent, _ in DRAWING if each == path)
    with WebWorker(tmp_path, cors_origins="https://mine.example", edit_model="tiny") as served:
        answer = served.http.post(path, headers={"Origin": "https://evil.example"}, **sent)
        assert answer.status_code in (400, 403)
        assert served.context.builder.built == 0
        answer = served.http.post(path, headers={"Origin": "https://mine.example"}, **sent)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, "https://mine.example")
        assert served.http.post(path, headers={"Origin": served.origin}, **sent).status_code == 200


def test_a_browser_is_told_nothing_of_other_sites_by_default(served):
    asked = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in served.http.options("/run", headers=asked).headers


def test_a_preflight_needs_no_key(tmp_path):
    with WebWorker(tmp_path, cors_origins="https://mine.example", api_keys=ANNA) as served:
        asked = {"Origin": "https://mine.example", "Access-Control-Request-Method": "POST",
                 "Access-Control-Request-Headers": "authorization,content-type"}  # fmt: skip
        assert served.http.options("/run", headers=asked).status_code == 200


def test_keys_are_known_by_their_digest_only(tmp_path):
    key, line = new_key("anna")
    file = tmp_path / "keys"
    file.write_text(f"# who may\n\n{line}  # since May\n")
    assert key not in file.read_text()
    ring = Keyring(read_api_keys(file)[0])
    assert ring.identify(key).name == "anna"
    assert ring.identify(key + "x") is None
    assert ring.identify(line.partition(":")[2]) is None  # the digest opens nothing
    assert Keyring().identify(None).name is None
    assert parse_keys([ANNA]).keys() == parse_keys([f" {ANNA} ", ANNA]).keys()


@pytest.mark.parametrize("text", ["", "# nobody\n", "anna:short\n", "just a key that is long\n", "a b:" + "0" * 64])
def test_a_file_of_keys_with_a_mistake_opens_nothing(tmp_path, text):
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(SettingsError, match="API_KEYS_FILE: keys") as failure:
        build_keyring(Settings(api_keys_file=file))
    assert "just a key" not in str(failure.value)
    with pytest.raises(SettingsError, match="API_KEYS_FILE"):
        build_keyring(Settings(api_keys_file=tmp_path / "none"))


def test_a_short_key_is_refused_and_not_shown():
    for value in ("secret", f"{ANNA},secret", ","):
        with pytest.raises(SettingsError, match="API_KEYS: key") as failure:
            build_keyring(Settings(api_keys=value))
        assert "secret" not in str(failure.value)
    assert ANNA not in repr(Settings(api_keys=ANNA))
    with pytest.raises(KeyListError):
        new_key("two words")


def test_an_open_server_warns_unless_only_this_machine_reaches_it():
    assert any("API_KEYS" in text for text in Settings().server_warnings())
    for settings in (Settings(api_host="127.0.0.1"), Settings(api_host="localhost"), Settings(api_host="::1"),
                     Settings(api_keys=ANNA)):  # fmt: skip
        assert settings.server_warnings() == []
    assert any("RATE_LIMIT" in text for text in Settings(rate_limit_per_minute=5).server_warnings())
    assert not any("RATE_LIMIT" in text for text in Settings(rate_limit_per_minute=5, api_keys=ANNA).server_warnings())
    assert any("CORS_ORIGINS" in text for text in Settings(cors_origins="*", api_keys=ANNA).server_warnings())


def test_the_command_prints_a_key_and_its_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "worker", "keys", "new", "anna"], capture_output=True, text=True, timeout=60, check=True
    )
    key, line = (text.split(": ", 1)[1].strip() for text in done.stdout.splitlines())
    (tmp_path / "keys").write_text(line)
    with WebWorker(tmp_path, api_keys_file=tmp_path / "keys") as served:
        assert httpx.get(f"{served.origin}/models", headers=bearer(key), timeout=60).status_code == 200
        assert httpx.get(f"{served.origin}/models", timeout=60).status_code == 401
