"""What was compiled is every worker's that has the key, and nobody's code is run who has it not."""

import os
import subprocess
import sys
import threading

import pytest
import torch
from pydantic import ValidationError

from worker.app.settings import Settings
from worker.core.errors import JobCancelled
from worker.engine.levers.compile_cache import CompileCache

KEY = b"a key of some length"


class Torch:
    """Stands in for torch's own two functions: what was compiled, and what was handed over to be run."""

    def __init__(self):
        self.compiled = b"code"
        self.loaded = []


@pytest.fixture
def theirs(monkeypatch):
    theirs = Torch()
    monkeypatch.setattr(torch.compiler, "save_cache_artifacts", lambda: (theirs.compiled, None))
    monkeypatch.setattr(torch.compiler, "load_cache_artifacts", theirs.loaded.append)
    return theirs


def written(cache, name):
    made = cache.save(name)
    if made is not None:
        made.result()
    return made is not None


def nothing():
    pass


def test_the_next_worker_with_the_key_gets_what_the_first_has_compiled(tmp_path, theirs):
    assert written(CompileCache(tmp_path, KEY, 100), "model")
    other = CompileCache(tmp_path, KEY, 100)
    for name in ("model", "model", "another"):
        other.load(name, nothing)
    assert theirs.loaded == [b"code"]
    assert not written(other, "model")  # it has compiled nothing beyond that
    theirs.compiled = b"code and more"
    assert written(other, "model")
    CompileCache(tmp_path, KEY, 100).load("model", nothing)
    assert theirs.loaded == [b"code", b"code and more"]


@pytest.mark.parametrize("wrong", ["content", "signature", "name", "key", "empty", "short"])
def test_what_was_not_signed_with_the_key_is_never_handed_to_torch(tmp_path, theirs, caplog, wrong):
    key = b"another key, as long" if wrong == "key" else KEY
    written(CompileCache(tmp_path, key, 100), "model")
    path = tmp_path / "model.compiled"
    signed = path.read_bytes()
    changed = {"content": signed + b"!", "signature": b"0" * 32 + signed[32:], "empty": b"", "short": signed[:20]}
    path.write_bytes(changed.get(wrong, signed))
    if wrong == "name":
        path.rename(tmp_path / "other.compiled")
    CompileCache(tmp_path, KEY, 100).load("other" if wrong == "name" else "model", nothing)
    assert theirs.loaded == []
    assert "COMPILE_CACHE_KEY" in caplog.text


def test_the_files_used_longest_ago_make_room(tmp_path, theirs):
    theirs.compiled = b"x" * 8  # 40 bytes a file
    for age, name in enumerate(("new", "used", "old")):
        written(CompileCache(tmp_path, KEY, 125), name)
        os.utime(tmp_path / f"{name}.compiled", (1_000 - age, 1_000 - age))
    CompileCache(tmp_path, KEY, 125).load("old", nothing)  # it was used now
    written(CompileCache(tmp_path, KEY, 125), "fourth")
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["fourth", "new", "old"]
    theirs.compiled = b"x" * 200
    assert not written(CompileCache(tmp_path, KEY, 125), "large")


def test_a_job_that_comes_while_it_is_read_does_not_wait_for_that(tmp_path, theirs, monkeypatch):
    written(CompileCache(tmp_path, KEY, 100), "model")
    cache, read = CompileCache(tmp_path, KEY, 100), threading.Event()
    original = CompileCache._read
    monkeypatch.setattr(CompileCache, "_read", lambda self, name: read.wait() and original(self, name))

    def comes():
        raise JobCancelled("a job came")

    with pytest.raises(JobCancelled):
        cache.load("model", comes)
    assert theirs.loaded == []
    read.set()
    cache.load("model", nothing)
    assert theirs.loaded == [b"code"]


def test_a_volume_that_cannot_be_written_is_no_error(tmp_path, theirs, caplog):
    (tmp_path / "file").write_text("")
    assert written(CompileCache(tmp_path / "file/below", KEY, 100), "model")
    assert "cannot be written" in caplog.text


def test_the_key_is_the_operators_switch_and_is_warned_of():
    assert not any("COMPILE_CACHE_KEY" in text for text in Settings().warnings())
    settings = Settings(compile_cache_key="sixteen letters!")
    (sentence,) = (text for text in settings.warnings() if "COMPILE_CACHE_KEY" in text)
    assert "sixteen" not in sentence + repr(settings)
    with pytest.raises(ValidationError, match="compile_cache_key"):
        Settings(compile_cache_key="too short")


_PROCESS = """
import sys, torch
from pathlib import Path
from torch._dynamo.utils import counters
from worker.engine.levers.compile_cache import CompileCache

cache = CompileCache(Path(sys.argv[1]), b"a key of some length", 2**30)
cache.load("model", lambda: None)
block = torch.compile(lambda x: torch.nn.functional.gelu(x @ x), fullgraph=True)
block(torch.zeros(8, 8))
made = cache.save("model")
made and made.result()
print(counters["inductor"]["fxgraph_cache_hit"] + counters["aot_autograd"]["autograd_cache_hit"], made is not None)
"""


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_second_process_finds_what_the_first_has_compiled(tmp_path):
    """The real compiler, in processes with an empty cache of their own each."""
    said = []
    for name in ("one", "two"):
        env = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path / name), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
        command = [sys.executable, "-c", _PROCESS, str(tmp_path / "volume")]
        said.append(subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout.split())
    assert said[0] == ["0", "True"]
    assert int(said[1][0]) >= 1
