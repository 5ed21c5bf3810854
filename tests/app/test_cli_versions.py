"""`python -m worker versions`: an operator's day with two revisions of a model on a Hub in miniature, and a LoRA."""

import json
import shutil
from datetime import UTC, datetime

import pytest

from tests.app.commands import failed, invoke, said, use_volume
from tests.app.test_cli_cache import REGISTRY
from tests.fakes.hub import FakeHub
from tests.store.conftest import WEIGHTS, weights, write_pipeline
from worker.app.settings import Settings
from worker.core.pair import Choice, Pair
from worker.store.pairs import PairFolder


@pytest.fixture
def hub(tmp_path):
    with FakeHub() as server:
        write_pipeline(tmp_path / "served")
        server.commits = [server.add_repo("org/model", tmp_path / "served")]
        weights(tmp_path / "style" / "style.safetensors")
        server.add_repo("org/style", tmp_path / "style")
        yield server


@pytest.fixture
def run(hub, tmp_path, monkeypatch):
    """Runs a command on an empty volume."""
    use_volume(monkeypatch, tmp_path, REGISTRY, hub.endpoint)

    def versions(*arguments):
        return invoke("versions", *arguments)

    return versions


@pytest.fixture
def moved_on(hub, tmp_path):
    """Has the repository of the model move on to another commit."""

    def move():
        shutil.copytree(tmp_path / "served", tmp_path / "newer")
        weights(tmp_path / "newer" / "unet" / WEIGHTS, 77, seed=9)
        hub.commits.append(hub.add_repo("org/model", tmp_path / "newer"))

    return move


def listed(run, *arguments):
    (model,) = json.loads(said(run("list", "it", "--json")))["models"]
    return {each["version"]: each for each in model["versions"]}


def test_a_version_is_a_commit_with_its_lora_and_no_weights_are_fetched_to_make_one(run, hub, moved_on):
    assert "v1" in said(run("promote", "it", "entry", "--why", "the first"))
    moved_on()
    said(run("promote", "org/model", "entry", "--as", "candidate"))
    versions = listed(run)
    assert [each["revision"] for each in versions.values()] == hub.commits
    assert [each["aliases"] for each in versions.values()] == [["stable"], ["candidate"]]
    assert versions["v1"]["why"] == "the first"
    assert versions["v1"]["who"]
    assert len(versions["v1"]["loras"]) == 1
    assert hub.count(".safetensors", "GET") == 0


def test_a_rollback_fetches_nothing_and_what_it_goes_back_to_is_not_removed(run, hub, moved_on):
    said(run("promote", "it", "entry"))
    said(invoke("cache", "pull", f"org/model@{hub.commits[0]}"))
    moved_on()
    said(run("promote", "it", "entry"))
    said(invoke("cache", "pull", f"org/model@{hub.commits[1]}"))
    hub.requests.clear()
    assert "served or can be gone back to" in failed(invoke("cache", "rm", f"hf:org/model@{hub.commits[0]}"))
    del hub.repos["org/model"]
    said(run("rollback", "it", "--why", "it was worse"))
    assert listed(run)["v1"]["aliases"] == ["stable"]
    assert hub.count("/resolve/") == 0
    history = said(run("history", "it"))
    assert "@stable: v2 → v1" in history
    assert "it was worse" in history


def test_a_rollback_to_what_is_nowhere_any_more_is_refused(run, hub, moved_on):
    said(run("promote", "it", "entry"))
    moved_on()
    said(run("promote", "it", "entry"))
    del hub.repos["org/model"]
    assert "org/model@v1 cannot be served" in failed(run("rollback", "it"))
    assert listed(run)["v2"]["aliases"] == ["stable"]


def test_a_split_is_told_and_ended(run, hub, moved_on):
    said(run("promote", "it", "entry"))
    moved_on()
    said(run("promote", "it", "entry", "--as", "candidate"))
    assert "org/model is split: stable 90 candidate 10" in said(
        run("split", "it", "--arm", "stable=90", "--arm", "candidate=10", "--halt-slower", "off", "--halt-jobs", "9")
    )
    (model,) = json.loads(said(run("list", "it", "--json")))["models"]
    assert model["halt"] == {"errors": 0.2, "slower": None, "jobs": 9}
    paired = ("split", "it", "--arm", "stable=90", "--arm", "candidate=10", "--paired", "2.5")
    assert "stable 90 candidate 10, 2.5 % paired" in said(run(*paired))
    assert "paired must be" in failed(run(*paired[:-1], "101"))
    assert "is split" not in said(run("split", "it"))
    assert "write a version or alias and its share" in failed(run("split", "it", "--arm", "candidate"))
    assert said(run("report", "it")).split()[:3] == ["version", "arm", "jobs"]


def test_pairs_and_what_people_chose_stand_in_the_report(run, hub, tmp_path):
    said(run("promote", "it", "entry"))
    book = PairFolder(Settings().volume / "versions/pairs", "a worker", 0)
    for number, distance in ((1, 0.1), (2, 0.3)):
        facts = {"first": "v1", "second": "v2", "outcome": "ok", "first_s": 1.0, "second_s": 1.5, "second_usd": 0.001}
        at = datetime.now(UTC).isoformat()
        book.add(Pair(id=f"{number:032x}", at=at, model="org/model", distance=distance, **facts))
        book.add(Choice(pair=f"{number:032x}", at=at, who="ann", model="org/model", choice="v2"))
    row = said(run("report", "it")).splitlines()[-1]
    for cell in (
        "v1, v2",
        "0.2 (0.004 to 0.396)",
        "0.5 (0.5 to 0.5)",
        "0.002000",
        "v1 0, v2 2, equal 0",
        "v2 100 %",
        "0.5",
    ):
        assert cell in row, row
    (pairs,) = json.loads(said(run("report", "it", "--json")))["pairs"]
    assert [each["choice"] for each in pairs["newest"]] == ["v2", "v2"]


def test_what_served_at_a_time_is_said(run, hub):
    said(run("promote", "it", "entry"))
    assert "org/model at 2100-01-01T00:00:00+00:00: v1" in said(run("history", "--at", "2100-01-01"))
    assert "v1" not in said(run("history", "it", "--at", "2001-01-01T14:03"))
    assert "at must be a time" in failed(run("history", "--at", "noon"))
