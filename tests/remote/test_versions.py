"""Versions at a gateway: those of the volume that it has with its workers, and of no other."""

from tests.fakes.web_worker import WebGateway, WebWorker
from tests.waiting import until

ADMIN = "the operator's own key"
KEY = {"Authorization": f"Bearer {ADMIN}"}


def test_a_change_that_would_not_reach_a_worker_is_refused_by_its_name_and_nothing_is_changed(tmp_path, monkeypatch):
    monkeypatch.setenv("FLEET_KEY", ADMIN)
    here = {"admin_keys": ADMIN, "volume_dir": tmp_path / "shared"}
    one, two = WebWorker(tmp_path / "one", **here), WebWorker(tmp_path / "two", admin_keys=ADMIN)
    with one, two:
        replicas = {name: {"url": worker.origin, "key": "FLEET_KEY"} for name, worker in (("one", one), ("two", two))}
        with WebGateway(tmp_path / "gateway", replicas, **here) as gateway:

            def asked(served, action, **fields):
                return served.http.post(f"/admin/versions/{action}", json={"model": "tiny", **fields}, headers=KEY)

            def versions(served):
                (model,) = served.http.get("/admin/versions?model=tiny", headers=KEY).json()["models"]
                return [(version["version"], version["aliases"]) for version in model["versions"]]

            assert until(lambda: all(gateway.gateway.members.volumes().values())), "the gateway has not looked at them"
            ids = [each.http.get("/health").json()["volume_id"] for each in (one, two, gateway)]
            assert ids[0] == ids[2] != ids[1]
            for action, fields in (
                ("promote", {"version": "entry"}),
                ("rollback", {}),
                ("split", {"arms": {"stable": 90, "candidate": 10}}),
            ):
                refused = asked(gateway, action, **fields)
                assert (refused.status_code, refused.json()["code"]) == (400, "invalid_request"), refused.text
                assert refused.json()["error"].startswith(f"{action} does not reach two: ")
                assert [versions(each) for each in (one, two, gateway)] == [[], [], []]
            # As the sentence says: at each worker itself. What it serves then is what a caller of the gateway gets.
            assert asked(two, "promote", version="entry").status_code == 200
            assert (versions(two), versions(gateway)) == ([("v1", ["stable"])], [])
            jobs = [{"prompt": "x", "model": "tiny", "width": 64, "height": 64, "seed": seed} for seed in range(2)]
            drawn = [gateway.http.post("/run", json=job, headers=KEY) for job in jobs]
            assert [answer.status_code for answer in drawn] == [200, 200]


def test_what_shares_the_volume_follows_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("FLEET_KEY", ADMIN)
    shared = {"admin_keys": ADMIN, "volume_dir": tmp_path / "shared"}
    with WebWorker(tmp_path / "one", **shared) as one:
        models = one.served.settings.models_yaml
        replicas = {"one": {"url": one.origin, "key": "FLEET_KEY"}}
        with WebGateway(tmp_path / "gateway", replicas, models_yaml=models, **shared) as gateway:
            change = {"model": "tiny", "version": "entry"}
            assert gateway.http.post("/admin/versions/promote", json=change, headers=KEY).status_code == 200
            for door in (one, gateway):
                job = {"prompt": "x", "model": "tiny", "width": 64, "height": 64}
                assert door.http.post("/run", json=job, headers=KEY).json()["version"] == "v1"
