"""`python -m worker cache` and `lock`: an operator's day with a volume, against a Hub in miniature."""

import json
import os
import shutil

import pytest

from tests.app.commands import failed, invoke, said, use_volume
from tests.fakes.hub import FakeHub
from tests.store.conftest import WEIGHTS, weights, write_pipeline

REGISTRY = """
models:
  org/model:
    aliases: [it]
    loras: [{model: org/style, weight_name: style.safetensors}]
  local: {source: "file:models/local"}
"""


@pytest.fixture
def hub(tmp_path):
    with FakeHub() as server:
        write_pipeline(tmp_path / "served")
        server.commit = server.add_repo("org/model", tmp_path / "served")
        weights(tmp_path / "style" / "style.safetensors")
        weights(tmp_path / "style" / "other.safetensors")
        server.add_repo("org/style", tmp_path / "style")
        yield server


@pytest.fixture
def run(hub, tmp_path, monkeypatch):
    """Runs a command on an empty volume."""
    use_volume(monkeypatch, tmp_path, REGISTRY, hub.endpoint)
    return invoke


def test_an_empty_volume_has_nothing_to_list_or_to_sweep(run, tmp_path):
    assert "last used" in said(run("cache", "ls"))
    assert "0 files, 0.00 GB freed" in said(run("cache", "prune"))
    assert said(run("cache", "verify"))
    assert not (tmp_path / "volume").exists()


def test_pull_fetches_a_model_with_its_loras_and_ls_shows_them(run, hub):
    assert hub.commit in said(run("cache", "pull", "it"))
    listed = said(run("cache", "ls"))
    assert f"hf:org/model@{hub.commit} " in listed
    assert "hf:org/style@" in listed
    assert listed.count("hf:org/model") == 1
    assert hub.count("other.safetensors", "GET") == 0
    hub.requests.clear()
    said(run("cache", "pull", "org/model", "--revision", hub.commit))
    assert hub.count("/resolve/") == 0


def test_a_pin_is_shown_and_taken_back(run):
    said(run("cache", "pull", "it"))
    for name in ("org/model", "it"):  # the repository, and what the registry calls it
        assert said(run("cache", "pin", name)).count("is pinned") == 1
    assert "pinned" in said(run("cache", "ls"))
    assert "is not pinned" in said(run("cache", "unpin", "org/model"))
    assert "pinned" not in said(run("cache", "ls"))


def test_verify_names_what_is_damaged(run, tmp_path):
    said(run("cache", "pull", "it"))
    assert "none" in said(run("cache", "verify"))
    (unet,) = (tmp_path / "volume" / "models" / "entries").glob(f"*/files/unet/{WEIGHTS}")
    unet.resolve().write_bytes(os.urandom(unet.stat().st_size))
    for _ in range(2):  # to look changes nothing
        result = run("cache", "verify", "org/model")
        assert "1 damaged files would be removed" in failed(result)
        assert f"unet/{WEIGHTS}" in result.stdout
        assert unet.is_file()
    assert "1 damaged files were removed" in failed(run("cache", "verify", "org/model", "--remove"))
    assert not unet.is_file()
    assert "1 damaged" not in said(run("cache", "pull", "it"))
    said(run("cache", "verify"))


def test_rm_gives_the_space_back(run, tmp_path):
    said(run("cache", "pull", "it"))
    assert "GB freed" in said(run("cache", "rm", "org/model"))
    assert "org/model" not in said(run("cache", "ls"))
    assert not list((tmp_path / "volume").rglob(f"unet/{WEIGHTS}"))
    for command in ("rm", "pin", "unpin", "verify"):
        assert "org/model is not in the cache" in failed(run("cache", command, "org/model"))


def test_prune_takes_what_is_old_enough(run, tmp_path):
    said(run("cache", "pull", "it"))
    part = tmp_path / "volume" / "models" / "partial" / "0abc.part"
    part.write_bytes(b"x" * 1_000)
    assert "0 files" in said(run("cache", "prune"))
    assert "1 files" in said(run("cache", "prune", "--older-than-hours", "0"))
    assert not part.exists()


def test_models_of_other_programs_are_listed_with_their_place(run, hub, tmp_path):
    snapshot = tmp_path / "volume" / "huggingface" / "hub" / "models--org--sdxl" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "model_index.json").write_text("{}")
    line = next(line for line in said(run("cache", "ls")).splitlines() if "org/sdxl" in line)
    assert "in /" in line
    assert "not in the cache" in failed(run("cache", "rm", "org/sdxl"))
    assert snapshot.exists()


class TestLock:
    def test_a_deploy_is_repeated_though_the_branch_moved_on(self, run, hub, tmp_path):
        assert "models.lock: 2 locked" in said(run("lock"))
        assert hub.count(".safetensors", "GET") == 0
        first = (tmp_path / "models.lock").read_bytes()
        assert set(json.loads(first)["models"]) == {"org/model", "org/style#style.safetensors"}
        shutil.copytree(tmp_path / "served", tmp_path / "newer")
        weights(tmp_path / "newer" / "unet" / WEIGHTS, 10, seed=3)
        newer = hub.add_repo("org/model", tmp_path / "newer")
        assert hub.commit in said(run("cache", "pull", "it"))
        said(run("lock"))
        assert json.loads((tmp_path / "models.lock").read_text())["models"]["org/model"]["revision"] == newer
        (tmp_path / "models.lock").write_bytes(first)
        assert hub.commit in said(run("inspect", "it"))

    def test_another_file_than_the_locked_one_is_refused_by_name(self, run, tmp_path, monkeypatch):
        said(run("lock", "--output", str(tmp_path / "mine.lock")))
        text = (tmp_path / "mine.lock").read_text()
        digest = json.loads(text)["models"]["org/model"]["files"][f"unet/{WEIGHTS}"]["sha256"]
        (tmp_path / "mine.lock").write_text(text.replace(digest, "0" * 64))
        monkeypatch.setenv("MODELS_LOCK", str(tmp_path / "mine.lock"))
        assert f"unet/{WEIGHTS} of org/model is not the file" in failed(run("cache", "pull", "it"))
        monkeypatch.setenv("MODELS_LOCK", "off")
        said(run("cache", "pull", "it"))

    def test_a_lockfile_that_is_named_must_be_there(self, run, tmp_path, monkeypatch):
        monkeypatch.setenv("MODELS_LOCK", str(tmp_path / "none.lock"))
        assert "MODELS_LOCK: none.lock cannot be read" in failed(run("plan", "it"))
        said(run("lock"))
        said(run("plan", "it"))

    @pytest.mark.parametrize("written", ["base: org/model", "vae: org/model"])
    def test_of_another_repository_only_the_needed_parts_are_fetched_and_checked(self, run, hub, tmp_path, written):
        weights(tmp_path / "tune" / "tune.safetensors")
        hub.add_repo("org/tune", tmp_path / "tune")
        entry = f"  tune: {{source: org/tune#tune.safetensors, architecture: sd1, {written}}}"
        with (tmp_path / "models.yaml").open("a") as registry:
            print(entry, file=registry)
        assert "models.lock: 3 locked" in said(run("lock"))
        assert f"vae/{WEIGHTS}" not in hub.sent
        said(run("cache", "pull", "tune"))
        assert hub.sent.keys() >= {"tune.safetensors", f"vae/{WEIGHTS}"}
        assert f"unet/{WEIGHTS}" not in hub.sent
