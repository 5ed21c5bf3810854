"""tools/environment.py chooses what `make` installs: what the worker runs with first, and what tests it only then."""

import pytest

from tests.conftest import PROJECT
from tools import environment
from tools.environment import CPU_INDEX, SetupError, announcement, pinned, steps, torch_build, uv_environment

DEV_TOOLS = {"pytest", "mypy", "ruff", "hypothesis", "schemathesis", "radon", "openai"}


def words(calls):
    return [word for call in calls for word in call]


@pytest.mark.parametrize(
    ("wanted", "system", "gpu", "build"),
    [
        ("auto", "Linux", False, "cpu"),
        ("auto", "Linux", True, "cuda"),
        ("", "Linux", False, "cpu"),
        ("cuda", "Linux", False, "cuda"),
        ("cpu", "Linux", True, "cpu"),
        ("auto", "Darwin", False, "default"),
        ("cuda", "Darwin", False, "default"),
    ],
)
def test_the_cpu_build_of_torch_is_taken_unless_a_gpu_is_there(wanted, system, gpu, build):
    assert torch_build(wanted, system, gpu) == build


def test_an_unknown_build_is_refused_with_those_there_are():
    with pytest.raises(SetupError, match=r"TORCH must be auto, cpu or cuda; 'rocm'"):
        torch_build("rocm", "Linux", False)


@pytest.mark.parametrize("installer", ["pip", "uv"])
def test_on_plain_linux_torch_alone_comes_from_the_index_of_cpu_builds(installer):
    first, second, third = steps("cpu", installer, cpu_offered=False, dev=False)
    assert first[-4:] == ("--no-deps", "--index-url", CPU_INDEX, pinned("torch"))
    assert CPU_INDEX not in (*second, *third)
    assert second[-1] == "requirements.txt"


def test_where_the_machines_own_index_has_the_cpu_build_no_other_is_asked():
    assert CPU_INDEX not in words(steps("cpu", "uv", cpu_offered=True, dev=False))


def test_a_gpu_gets_what_the_gpu_image_has():
    calls = steps("cuda", "uv", cpu_offered=False, dev=False)
    assert calls[0][-1] == "requirements-gpu.txt"
    assert CPU_INDEX not in words(calls)


def test_running_needs_no_tool_that_tests():
    assert ".[dev]" not in words(steps("cpu", "pip", cpu_offered=True, dev=False))
    assert words(steps("cpu", "pip", cpu_offered=True, dev=True))[-1] == ".[dev]"
    files = ("requirements.txt", "requirements-gpu.txt", "requirements-spandrel.txt")
    named = {
        line.split("==")[0].strip().lower() for file in files for line in (PROJECT / file).read_text().splitlines()
    }
    assert named & DEV_TOOLS == set()


@pytest.mark.parametrize("build", ["cpu", "cuda", "default"])
def test_sizes_are_said_before_anything_is_downloaded(build, monkeypatch, capsys, tmp_path):
    said_at_first_call = []
    monkeypatch.setattr(environment, "torch_build", lambda *_: build)
    monkeypatch.setattr(environment, "make_environment", lambda *_: said_at_first_call.append(capsys.readouterr().out))
    monkeypatch.setattr(environment, "uv_of", lambda *_: None)
    monkeypatch.setattr(environment, "pip_of", lambda *_: None)
    with pytest.raises(SetupError, match="uv or pip could not be installed"):
        environment.set_up(tmp_path / ".venv", "auto", dev=False)
    assert said_at_first_call == [announcement(build, tmp_path / ".venv", dev=False) + "\n"]
    assert all(size in said_at_first_call[0] for size in environment.SIZES[build])


def test_pip_has_its_turn_where_uv_fails(monkeypatch, tmp_path):
    class Fake:
        def __init__(self, name, works):
            self.name, self.works, self.calls = name, works, []

        def offers(self, requirement):
            return True

        def run(self, *arguments):
            self.calls.append(arguments)
            return self.works

    uv, pip = Fake("uv", False), Fake("pip", True)
    monkeypatch.setattr(environment, "make_environment", lambda *_: None)
    monkeypatch.setattr(environment, "uv_of", lambda *_: uv)
    monkeypatch.setattr(environment, "pip_of", lambda *_: pip)
    environment.set_up(tmp_path / ".venv", "cpu", dev=False)
    assert len(uv.calls) == 1
    assert [call[-1] for call in pip.calls] == ["requirements.txt", "."]


def test_uv_is_told_what_pip_is_told():
    options = "\n".join(
        [
            "global.constraint='/etc/constraints.txt'",
            "global.extra-index-url='https://one.example/simple https://two.example/simple'",
            "global.find-links='/wheels\\n/more'",
            ":env:.default-timeout='180'",
        ]
    )
    told = uv_environment(options, {"HOME": "/home/anna", "UV_CONSTRAINT": "mine.txt"})
    assert told == {
        "HOME": "/home/anna",
        "UV_CONSTRAINT": "mine.txt",
        "UV_INDEX": "https://one.example/simple https://two.example/simple",
        "UV_INDEX_STRATEGY": "unsafe-best-match",
        "UV_FIND_LINKS": "/wheels,/more",
    }
