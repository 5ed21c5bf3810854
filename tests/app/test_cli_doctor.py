"""`python -m worker doctor`: a line for each part, and the fix where something is wrong."""

import json
import socket
from importlib import metadata

import pytest

from tests.app.commands import invoke
from tests.fakes.engine import shelf
from tests.fakes.hub import FakeHub
from worker.app.cli import doctor


@pytest.fixture
def examine(tmp_path, monkeypatch):
    """Runs the command and returns its status, and its findings by part."""
    for name, value in {
        "MODELS_YAML": shelf(tmp_path),
        "DEFAULT_MODEL": "tiny",
        "VOLUME_DIR": tmp_path / "volume",
        "DEVICE": "cpu",
        "OFFLINE": "1",
        "HF_TOKEN": "hf_a-secret-token",
    }.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.chdir(tmp_path)

    def run(*words):
        result = invoke("doctor", "--json", *words)
        assert "hf_a-secret-token" not in result.output
        answer = json.loads(result.stdout)
        assert answer["ok"] is (result.exit_code == 0)
        assert result.exit_code == int(any(item["state"] == "error" for item in answer["checks"]))
        return result.exit_code, {item["name"]: (item["state"], item["text"]) for item in answer["checks"]}

    return run


def test_a_machine_that_can_do_the_work(examine):
    status, found = examine()
    assert status == 0
    assert {state for state, _ in found.values()} <= {"ok", "warning"}  # free memory is the machine's own
    for name in ("torch", "diffusers"):
        assert found[name] == ("ok", metadata.version(name))
    assert found["device"][1].startswith("cpu")
    assert "free" in found["memory"][1]
    assert "0 models" in found["cache"][1]
    assert found["HF_TOKEN"] == ("ok", "set")
    assert found["CIVITAI_TOKEN"] == ("ok", "not set")
    assert "models.yaml" in found["models.yaml"][1]
    assert found["default model"] == ("ok", "tiny can be had")
    text = invoke("doctor").stdout
    assert text.count("\n") == len(found) + 1
    assert "hf_a-secret-token" not in text


@pytest.mark.parametrize(
    ("variable", "value", "part", "fix"),
    [
        ("MAX_IMAGES", "many", "settings", "MAX_IMAGES"),
        ("DEFAULT_MODEL", "none", "models.yaml", "name one that is"),
        ("DEFAULT_MODEL", "org/sdxl", "default model", "unset OFFLINE"),
        ("VOLUME_DIR", "/proc/none", "volume", "set VOLUME_DIR"),
        ("MODELS_YAML", "none.yaml", "models.yaml", "none.yaml"),
    ],
)
def test_what_is_wrong_is_named_with_its_fix(examine, monkeypatch, variable, value, part, fix):
    monkeypatch.setenv(variable, value)
    status, found = examine()
    assert status == 1
    assert found[part][0] == "error"
    assert fix in found[part][1]


def test_a_missing_package_is_named(examine, monkeypatch):
    monkeypatch.setattr(doctor, "_PACKAGES", ("torch", "no-such-package-of-all"))
    status, found = examine()
    assert status == 1
    assert "make run" in found["no-such-package-of-all"][1]


def test_the_network_is_asked_only_if_that_is_wanted(examine, monkeypatch):
    with FakeHub() as hub, socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))  # bound and not listening: refused at once
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        monkeypatch.setenv("CIVITAI_ENDPOINT", f"http://127.0.0.1:{deaf.getsockname()[1]}")
        monkeypatch.delenv("OFFLINE")
        assert examine()[0] == 0
        assert hub.requests == []
        status, found = examine("--network")
    assert status == 1
    assert hub.endpoint in found["network (HF)"][1]
    assert found["network (HF)"][0] == "ok"
    assert "firewall" in found["network (CivitAI)"][1]
