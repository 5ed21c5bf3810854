"""The list of jobs: each caller's own, with an admin key everybody's, and no prompt in the latter."""

import time

import pytest

from tests.fakes.web_worker import WebWorker

ANNA, BEN, ADMIN = "anna's own secret key", "ben's own secret key", "the operator's own key"


@pytest.fixture
def guarded(tmp_path):
    with WebWorker(tmp_path, api_keys=f"{ANNA},{BEN}", admin_keys=ADMIN) as worker:
        yield worker


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


def hand_in(served, prompt="an apple", **headers):
    return served.http.post("/v2/x/run", json={"input": {"prompt": prompt}}, headers=headers).json()["id"]


def listed(served, path="/jobs", **headers):
    answer = served.http.get(path, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()["jobs"]


def until(served, id, status, **headers):
    ends = time.monotonic() + 60
    while time.monotonic() < ends:
        (job,) = [job for job in listed(served, **headers) if job["id"] == id]
        if job["status"] == status:
            return job
        time.sleep(0.02)
    raise AssertionError(job)


def test_a_job_is_listed_from_its_queue_to_its_end(served):
    served.context.engine.gate.clear()
    first = hand_in(served, "an apple " * 50)
    assert served.context.engine.inside.wait(60)
    second = hand_in(served, "a pear")
    assert [job["id"] for job in listed(served)] == [second, first]  # the newest first
    running = until(served, first, "IN_PROGRESS")
    assert (running["action"], running["prompt"]) == ("generate", ("an apple " * 50)[:200])
    assert running["progress"]["phase"] in ("load", "inference")
    assert "output" not in running
    assert [job["id"] for job in listed(served, "/jobs?limit=1")] == [second]
    served.http.post(f"/v2/x/cancel/{second}")
    served.context.engine.gate.set()
    done = until(served, first, "COMPLETED")
    assert (done["model"], done["prompt"]) == ("tiny", ("an apple " * 50)[:200])
    assert "progress" not in done
    gone = until(served, second, "CANCELLED")
    assert (gone["code"], gone["error"]) == ("job_cancelled", "The job was cancelled.")


def test_everybody_sees_their_own_jobs_only(guarded):
    of_anna, of_ben = hand_in(guarded, **bearer(ANNA)), hand_in(guarded, **bearer(BEN))
    assert [job["id"] for job in listed(guarded, **bearer(ANNA))] == [of_anna]
    assert [job["id"] for job in listed(guarded, **bearer(BEN))] == [of_ben]
    assert listed(guarded, **bearer(ADMIN)) == []
    assert guarded.http.get("/jobs?all=true", headers=bearer(ANNA)).status_code == 403
    everything = listed(guarded, "/jobs?all=true", **bearer(ADMIN))
    assert {job["id"] for job in everything} == {of_anna, of_ben}
    assert all(job["caller"] and "prompt" not in job and "error" not in job for job in everything)


def test_an_admin_key_cancels_anybodys_job_and_no_other_key_does(guarded):
    guarded.context.engine.gate.clear()
    job = hand_in(guarded, **bearer(ANNA))
    assert guarded.http.post(f"/v2/x/cancel/{job}", headers=bearer(BEN)).status_code == 404
    assert guarded.http.get(f"/v2/x/status/{job}", headers=bearer(ADMIN)).status_code == 404  # what it made is Anna's
    assert guarded.http.post(f"/v2/x/cancel/{job}", headers=bearer(ADMIN)).json()["status"] == "CANCELLED"
    guarded.context.engine.gate.set()
    assert until(guarded, job, "CANCELLED", **bearer(ANNA))["code"] == "job_cancelled"
