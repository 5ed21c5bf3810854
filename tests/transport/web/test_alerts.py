"""The operator's alerts over a real worker: jobs that fail, and what webhook, mail, log, status and /admin get."""

import json
import logging

import pytest

from tests.fakes.mail_server import MailServer
from tests.fakes.web_worker import Listener, WebWorker
from tests.waiting import until
from worker.app.settings import Settings, SettingsError
from worker.core.errors import InvalidOutput
from worker.service.alerts import watch

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
ADMIN = {"Authorization": "Bearer the operator's own key"}


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr(watch, "EVERY_S", 0.01)


def write(tmp_path, **file):
    path = tmp_path / "alerts.yaml"
    path.write_text(json.dumps(file))
    return path


def states(worker):
    return {each["name"]: each for each in worker.http.get("/admin/alerts", headers=ADMIN).json()["alerts"]}


def test_jobs_that_fail_are_told_by_webhook_mail_log_and_status(tmp_path, caplog):
    caplog.set_level(logging.INFO, "worker.service.alerts")
    with Listener(failures=[]) as hook, MailServer() as mail:
        rules = {
            "errors": {"measure": "error_rate", "above": 0.5, "min_jobs": 2, "model": "small"},
            "budget": {"measure": "cost_usd", "above": 100},
        }
        email = {"sender": "worker@example.com", "to": ["ops@example.com"]}
        file = write(tmp_path, webhook=f"{hook.origin}/hook", email=email, rules=rules)
        given = {"alerts": file, "smtp_url": f"smtp://127.0.0.1:{mail.port}", "webhook_secret": SECRET}
        keys = {"admin_keys": "the operator's own key"}
        with WebWorker(tmp_path, allow_private_urls=True, **given, **keys) as worker:
            assert worker.http.get("/health").json()["alerts"] == []
            worker.context.engine.failures += [InvalidOutput("No image.")] * 2
            for _ in range(2):
                assert worker.http.post("/run", json={"prompt": "a secret wish", "model": "tiny"}).status_code == 503
            until(lambda: worker.http.get("/health").json()["alerts"] == ["errors"])
            told = states(worker)
            assert (told["errors"]["state"], told["errors"]["value"], told["budget"]["state"]) == ("firing", 1, "quiet")
            for _ in range(2):
                assert worker.http.post("/run", json={"prompt": "a secret wish"}).status_code == 200
            until(lambda: states(worker)["errors"]["state"] == "quiet")
            assert hook.wait_until(lambda: len(hook.requests) == 2)
            until(lambda: len(mail.mails) == 2)
            assert worker.http.get("/admin/alerts").status_code == 403
    bodies = [json.loads(request.body) for request in hook.requests]
    assert {body["type"] for body in bodies} == {"alert.firing", "alert.over"}
    firing = next(body["data"] for body in bodies if body["type"] == "alert.firing")
    assert (firing["alert"], firing["measure"], firing["value"], firing["model"]) == ("errors", "error_rate", 1, "tiny")
    assert all(request.headers["webhook-signature"].startswith("v1,") for request in hook.requests)
    assert "errors is firing: error_rate of tiny is 1, and the bound is above 0.5" in caplog.text
    assert "secret wish" not in caplog.text + str(bodies) + str(mail.mails)


def test_rules_are_read_again_and_one_with_a_mistake_changes_nothing(tmp_path, caplog):
    rule = {"measure": "queue_length", "above": 5}
    file = write(tmp_path, rules={"queue": rule})
    with WebWorker(tmp_path, alerts=file) as worker:
        file.write_text("rules: {queue: {measure: nothing}}")
        worker.context.worker.reload()
        assert [*states(worker)] == ["queue"]
        assert "the alerts are not reloaded: ALERTS: alerts.yaml:1: " in caplog.text
        write(tmp_path, rules={"queue": rule, "disk": {"measure": "disk_free_gb", "below": 1e9}})
        worker.context.worker.reload()
        until(lambda: states(worker)["disk"]["state"] == "firing")
        assert states(worker)["disk"]["value"] > 0


def test_what_was_spent_before_counts_after_a_restart(tmp_path):
    file = write(tmp_path, rules={"budget": {"measure": "cost_usd", "above": 0.0001, "over_s": 86400}})
    priced = {"gpu_price_per_hour": 3.6, "alerts": file}
    with WebWorker(tmp_path, **priced) as worker:
        assert worker.http.post("/run", json={"prompt": "x"}).status_code == 200
        until(lambda: states(worker)["budget"]["state"] == "firing")
        before = states(worker)["budget"]["value"]
    with WebWorker(tmp_path, **priced) as worker:
        until(lambda: states(worker)["budget"]["state"] == "firing")
        assert states(worker)["budget"]["value"] == pytest.approx(before, rel=1e-3)


@pytest.mark.parametrize(
    ("file", "given", "sentence"),
    [
        ({"rules": {"x": {"measure": "lost"}}}, {}, r"ALERTS: alerts.yaml:1: rules.x .*one of above and below"),
        ({"rules": {"x": {"measure": "lost", "above": 0, "model": "tiny"}}}, {}, r"says model, and lost"),
        ({"webhook": "http://10.0.0.1/", "rules": {"x": {"measure": "lost", "above": 0}}}, {}, "webhook cannot be"),
        (
            {"email": {"sender": "a@b", "to": ["c@d"]}, "rules": {"x": {"measure": "lost", "above": 0}}},
            {},
            "SMTP_URL is not set, and alerts.yaml has email",
        ),
        ({"rules": {"x": {"measure": "lost", "above": 0}}}, {"smtp_url": "imap://me:word@host"}, r"SMTP_URL: name a"),
        ({"rules": {"x": {"measure": "lost", "above": 0}}}, {"webhook_secret": "whsec_!"}, "whsec_ is not base64"),
    ],
)
def test_a_mistake_stops_the_start_with_its_line(tmp_path, file, given, sentence):
    with pytest.raises(SettingsError, match=sentence) as refused:
        WebWorker(tmp_path, alerts=write(tmp_path, **file), **given)
    assert "word" not in str(refused.value).replace("password", "")


def test_a_mail_server_without_rules_is_warned_of():
    assert any("SMTP_URL is set and ALERTS is not" in text for text in Settings(smtp_url="smtp://x").warnings())
