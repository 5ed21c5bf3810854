"""What Prometheus gets from the server: numbers that grow as jobs are drawn, and say how it is right now."""

import threading
import time

import httpx
from prometheus_client.parser import text_string_to_metric_families

from tests.fakes.web_worker import WebWorker
from tests.waiting import LIMIT_S, until


def scraped(served):
    answer = served.http.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    families = text_string_to_metric_families(answer.text)
    return {(item.name, *sorted(item.labels.values())): item.value for family in families for item in family.samples}


def test_the_server_counts_jobs_as_they_come_and_go(tmp_path):
    with WebWorker(tmp_path, max_concurrent_jobs=1) as served:
        engine = served.context.engine
        engine.gate.clear()
        threads = [
            threading.Thread(
                target=httpx.post, args=(f"{served.origin}/run",), kwargs={"json": {"prompt": word}, "timeout": 60}
            )
            for word in "ab"
        ]
        for thread in threads:
            thread.start()
        standing = ("imgworker_jobs_running",), ("imgworker_queue_length",)
        # One waits for a place once it was checked and has its files.
        until(lambda: (now := scraped(served)) and [now[name] for name in standing] == [1, 1])
        engine.gate.set()
        for thread in threads:
            thread.join()
        after = scraped(served)
    assert (after["imgworker_jobs_running",], after["imgworker_queue_length",]) == (0, 0)
    assert after["imgworker_requests_total", "ok", "text-to-image", "tiny"] == 2
    assert after["imgworker_http_responses_total", "200"] >= 3


def test_a_job_that_waits_for_company_waits(tmp_path):
    with WebWorker(tmp_path, batch_size=4, batch_timeout_ms=10_000) as served:
        engine = served.context.engine
        engine.gate.clear()

        def job(word, **more):
            return served.http.post("/v2/any/run", json={"input": {"prompt": word, **more}}).json()["id"]

        def said():
            """What each door says: jobs that are worked on, and jobs that wait."""
            numbers, health = scraped(served), served.http.get("/health").json()["jobs"]
            jobs = served.http.get("/v2/any/health").json()["jobs"]
            return [
                (numbers["imgworker_jobs_running",], numbers["imgworker_queue_length",]),
                (health["running"], health["queued"]),
                (jobs["inProgress"], jobs["inQueue"]),
            ]

        names = [job(word) for word in "abc"]
        until(lambda: said() == [(0, 3)] * 3)
        time.sleep(0.2)
        assert said() == [(0, 3)] * 3
        assert engine.ran == []
        names.append(job("d"))  # full: they begin
        until(lambda: said() == [(4, 0)] * 3)
        names += [job(word, width=128) for word in "ef"]  # another bucket, behind a busy engine
        until(lambda: said() == [(4, 2)] * 3)
        for name in names[4:]:
            assert served.http.post(f"/v2/any/cancel/{name}").json()["status"] == "CANCELLED"
        until(lambda: said() == [(4, 0)] * 3)
        engine.gate.set()
        until(lambda: said() == [(0, 0)] * 3)
    assert [sorted(call) for call in engine.calls] == [["a", "b", "c", "d"]]


def test_a_job_that_the_device_has_no_time_for_waits(tmp_path):
    with WebWorker(tmp_path) as served:
        release = threading.Event()
        thread = served.context.worker.engine
        busy = thread.submit(lambda engine: release.wait(LIMIT_S), "something else")
        name = served.http.post("/v2/any/run", json={"input": {"prompt": "x"}}).json()["id"]
        until(lambda: scraped(served)["imgworker_queue_length",] == 1)
        assert scraped(served)["imgworker_jobs_running",] == 0
        release.set()
        until(lambda: served.http.get(f"/v2/any/status/{name}").json()["status"] == "COMPLETED")
        assert scraped(served)["imgworker_queue_length",] == 0
        assert busy.done()


def test_what_is_turned_away_at_the_door_is_counted_too(tmp_path):
    with WebWorker(tmp_path, max_queued_mb=0.0001) as served:
        served.context.engine.gate.clear()
        served.http.post("/v2/any/run", json={"input": {"prompt": "long " * 100}})
        assert served.http.post("/run", json={"prompt": "x"}).status_code == 429
        served.context.engine.gate.set()
        assert served.http.get("/nowhere").status_code == 404
        found = scraped(served)
    assert found["imgworker_errors_total", "overloaded"] == 1
    assert found["imgworker_http_responses_total", "429"] == 1
    assert found["imgworker_http_responses_total", "404"] == 1


def test_a_job_that_ran_too_long_is_counted_as_late(served):
    served.context.engine.gate.clear()
    job = {"input": {"prompt": "x"}, "policy": {"executionTimeout": 1000}}
    name = served.http.post("/v2/any/run", json=job).json()["id"]
    until(lambda: served.http.get(f"/v2/any/status/{name}").json()["status"] == "TIMED_OUT")
    until(lambda: ("imgworker_errors_total", "job_timeout") in scraped(served))
    assert ("imgworker_errors_total", "job_cancelled") not in scraped(served)


def test_a_callers_trace_is_taken_from_the_header(served, tmp_path):
    from tests.service.usage.test_telemetry import CALLERS_TRACE, TRACEPARENT
    from worker.service.usage.request_id import traceparent

    seen = []
    run = served.context.engine.run
    served.context.engine.run = lambda batch, emit: seen.append(traceparent.get()) or run(batch, emit)
    for sent in (TRACEPARENT, "nonsense"):
        assert served.http.post("/run", json={"prompt": sent}, headers={"traceparent": sent}).status_code == 200
    assert seen == [TRACEPARENT, None]
    assert CALLERS_TRACE in TRACEPARENT
