"""One answer out of those of all processes."""

import json
from urllib.parse import parse_qsl

from prometheus_client.parser import text_string_to_metric_families

from worker.service.limits.admission import Load
from worker.service.usage.metrics import Metrics
from worker.transport import prediction_pages
from worker.transport.processes.merging import ProcessAnswer, merge, merge_metrics, parse_answer


def answer(process, body, status=200):
    return ProcessAnswer(process, status, ("content-type: application/json",), json.dumps(body).encode())


def report(status, running=0, models=()):
    jobs = {"running": running, "queued": 1}
    return {"status": status, "running": "a" * running or None, "jobs": jobs, "resident_models": [*models]}


def test_the_server_is_as_ready_as_its_readiest_process_and_its_jobs_are_theirs():
    merged = merge("/health", [answer(1, report("starting")), answer(2, report("ready", 2, ["demo"]))])
    body = json.loads(merged.body)
    assert (merged.status, body["status"], body["running"]) == (200, "ready", "aa")
    assert (body["jobs"], body["resident_models"]) == ({"running": 2, "queued": 2}, ["demo"])
    assert [(each["process"], each["status"]) for each in body["processes"]] == [(1, "starting"), (2, "ready")]
    assert merge("/health", [answer(1, report("lost"), 503)]).status == 503


def test_readiness_needs_one_process():
    starting, failed = ProcessAnswer(1, 204, (), b""), answer(2, {"status": "failed"}, 503)
    assert merge("/ping", [failed, starting]).status == 204
    assert merge("/ping", [failed, starting, answer(3, {"status": "ready"})]).status == 200
    assert merge("/ready", [failed]).status == 503


def test_counts_of_an_endpoint_are_added_up():
    one = {"jobs": {"completed": 2, "failed": 0}, "workers": {"ready": 1}}
    assert json.loads(merge("/v2/x/health", [answer(1, one), answer(2, one)]).body) == {
        "jobs": {"completed": 4, "failed": 0},
        "workers": {"ready": 2},
    }
    removed = {"removed": 3, "status": "completed"}
    assert json.loads(merge("/v2/x/purge-queue", [answer(1, removed), answer(2, removed)]).body)["removed"] == 6


def test_alerts_are_those_of_all_processes_each_with_its_number():
    told = merge("/admin/alerts", [answer(2, {"alerts": [{"name": "errors"}]}), answer(1, {"alerts": [{"name": "x"}]})])
    assert json.loads(told.body)["alerts"] == [{"process": 1, "name": "x"}, {"process": 2, "name": "errors"}]
    firing = [answer(1, report("ready") | {"alerts": ["b"]}), answer(2, report("ready") | {"alerts": ["a", "b"]})]
    assert json.loads(merge("/health", firing).body)["alerts"] == ["a", "b"]


def prediction(number):
    when = f"2026-01-31T12:00:{number:02}.000Z"
    return {"id": f"p{number}", "created_at": when, "urls": {"get": f"http://host/v1/predictions/p{number}"}}


def test_a_page_of_predictions_is_the_newest_of_all_processes_and_its_cursors_lead_through_all(monkeypatch):
    monkeypatch.setattr(prediction_pages, "PAGE", 3)
    own = {1: [prediction(number) for number in (1, 4, 5, 6)], 2: [prediction(number) for number in (2, 3, 7)]}

    def asked(query):
        cursor = dict(parse_qsl(query)).get("cursor")
        pages = {
            process: prediction_pages.page_of(entries, lambda entry: (entry["created_at"], entry["id"]), cursor)
            for process, entries in own.items()
        }
        bodies = {number: {**page.links("", query), "results": page.entries} for number, page in pages.items()}
        return json.loads(merge("/v1/predictions", [answer(*body) for body in bodies.items()], query).body)

    query, found, back = "source=api", [], []
    while True:
        body = asked(query)
        found.append([entry["id"] for entry in body["results"]])
        if body["next"] is None:
            break
        assert body["next"].startswith("http://host/v1/predictions?source=api&cursor=")
        query = body["next"].partition("?")[2]
    assert found == [["p7", "p6", "p5"], ["p4", "p3", "p2"], ["p1"]]
    while body["previous"] is not None:
        body = asked(body["previous"].partition("?")[2])
        back.append([entry["id"] for entry in body["results"]])
    assert back == [["p4", "p3", "p2"], ["p7", "p6", "p5"]]


def test_the_jobs_of_all_processes_are_one_list_with_the_newest_first():
    one, other = {"jobs": [{"id": "a", "age_s": 1.5}, {"id": "b", "age_s": 9.0}]}, {"jobs": [{"id": "c", "age_s": 4.0}]}
    merged = json.loads(merge("/jobs", [answer(1, one), answer(2, other), answer(3, {"jobs": []})]).body)
    assert [job["id"] for job in merged["jobs"]] == ["a", "c", "b"]


def test_a_refusal_is_given_on():
    refusal = answer(1, {"code": "unauthenticated"}, 401)
    assert merge("/metrics", [refusal, refusal]) is refusal


def test_metrics_of_all_processes_are_one_text_with_the_process_as_a_label():
    metrics = Metrics("1.0", lambda: Load(0, 0))
    metrics.answered(200)
    text = merge_metrics({1: metrics.exposition().decode(), 2: metrics.exposition().decode()})
    families = {family.name: family for family in text_string_to_metric_families(text)}
    alone = {family.name for family in text_string_to_metric_families(metrics.exposition().decode())}
    assert families.keys() == alone
    assert [sample.labels for sample in families["imgworker_http_responses"].samples] == [
        {"status": "200", "process": "1"},
        {"status": "200", "process": "2"},
    ]
    assert text.count("# TYPE imgworker_jobs_running ") == 1


def test_an_answer_that_breaks_off_is_none():
    whole = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
    assert parse_answer(1, whole) == ProcessAnswer(1, 200, ("content-length: 2",), b"ok")
    assert parse_answer(1, whole[:-1]) is parse_answer(1, b"") is None
