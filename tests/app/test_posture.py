"""What an installation leaves open is said with its fix."""

import os

import pytest

from worker.app import posture
from worker.app.posture import (
    FLOORS,
    installation_warnings,
    old_libraries,
    runpod_volume_is_open,
    shared_mount,
    untrusted_paths,
)
from worker.app.settings import Settings


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """Settings whose registry and volume are this user's alone."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models.yaml").touch(0o644)
    (tmp_path / "volume" / "models").mkdir(parents=True, mode=0o755)
    for path in (tmp_path / "volume", tmp_path / "volume" / "models"):
        path.chmod(0o755)
    return Settings(models_yaml=tmp_path / "models.yaml", volume_dir=tmp_path / "volume")


def test_nothing_is_said_of_what_is_in_order(settings):
    assert installation_warnings(settings) == []


@pytest.mark.parametrize("name", ["models.yaml", "volume", "volume/models"])
def test_what_everybody_may_write_is_named(settings, tmp_path, name):
    (tmp_path / name).chmod(0o777)
    (sentence,) = untrusted_paths(settings)
    assert str(tmp_path / name) in sentence
    assert "chmod o-w" in sentence
    (tmp_path / name).chmod(0o1777)  # /tmp's way: others may add, not replace
    assert untrusted_paths(settings) == []


def test_a_volume_as_runpod_makes_it_is_for_the_doctor_alone(settings, tmp_path, monkeypatch):
    for name in ("volume", "volume/models"):
        (tmp_path / name).chmod(0o777)
    assert not runpod_volume_is_open(settings)
    monkeypatch.setattr(posture, "RUNPOD_VOLUME", tmp_path / "volume")
    assert installation_warnings(settings) == []
    assert runpod_volume_is_open(settings)
    (tmp_path / "volume").chmod(0o755)
    assert not runpod_volume_is_open(settings)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_another_user_owns_is_named(settings, tmp_path):
    os.chown(tmp_path / "volume", 12345, -1)
    (sentence,) = untrusted_paths(settings)
    assert "uid 12345" in sentence


def test_keys_that_everybody_may_read_are_named(settings, tmp_path):
    for name in (".env", "keys"):
        (tmp_path / name).touch()
        (tmp_path / name).chmod(0o644)
    sentences = untrusted_paths(settings.model_copy(update={"api_keys_file": tmp_path / "keys"}))
    assert [sentence.split(":")[0] for sentence in sentences] == ["API_KEYS_FILE", ".env"]
    assert all("chmod 600" in sentence for sentence in sentences)
    for name in (".env", "keys"):
        (tmp_path / name).chmod(0o600)
    assert untrusted_paths(settings.model_copy(update={"api_keys_file": tmp_path / "keys"})) == []


def test_an_old_library_is_named_with_the_version_to_install(monkeypatch):
    assert old_libraries() == []
    real = posture._version_of
    monkeypatch.setattr(posture, "_version_of", lambda name: "2.9.1+cu126" if name == "torch" else real(name))
    (sentence,) = old_libraries()
    assert "torch 2.9.1+cu126" in sentence
    assert "torch>=2.10" in sentence
    assert FLOORS["torch"] == (2, 10)


def test_a_network_mount_is_told_from_the_machines_own_disk(tmp_path):
    mounts = tmp_path / "mounts"
    mounts.write_text(
        "overlay / overlay rw 0 0\nserver:/x /runpod-volume nfs4 rw 0 0\n/dev/sda1 /runpod-volume/own ext4 rw 0 0\n"
    )
    assert shared_mount("/runpod-volume/models", mounts) == "nfs4"
    assert shared_mount("/runpod-volume/own/models", mounts) is None
    assert shared_mount("/srv", mounts) is None
    assert shared_mount("/srv", tmp_path / "none") is None
