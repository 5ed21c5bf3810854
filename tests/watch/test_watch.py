"""The watch over the test run: whatever is written down of a private text turns the test red that did it."""

import os
import re
import subprocess
import sys

import pytest

from tests.conftest import PROJECT
from tests.watch.children import OFF, VARIABLE
from tests.watch.inside.privacy_entrances import IMAGE, KEY, SHOWN_WORDS, WORDS, tell_payload
from tests.watch.known import Known
from tests.watch.plugin import NAME

PROMPT = "a zebra crossing the quiet harbour, painted by nobody"
TOKEN = "neverToBeWrittenAnywhere-42"
IMAGE_TEXT = "iVBORw0KGgoAAAANSUhEUgAAAEAAAABACAIAAAAlC+aJAAAAs0lEQVR4nO3PQQkAMAzAwPo3vYngwyDQuwAQ8wMA" * 3

# Tests of a run of its own, each a body and what is said of it. Every worker draws PROMPT and has TOKEN.
CLEAN = {
    "nothing": "LOG.error('job 5 failed'); print('fine')",
    "hidden": "with kept({'prompt': PROMPT}): LOG.error('cannot read %s', PROMPT)",
    "no_workers": "subprocess.run([sys.executable, '-c', 'print(%r)' % PROMPT], check=True, capture_output=True)",
    "chatter": "logging.getLogger('diffusers').warning(PROMPT)",
}
LEAKS = {
    "record": ("LOG.warning('cannot read %r', PROMPT)", "log of some.library: words"),
    "piece": ("OTHER.propagate = False; OTHER.info(PROMPT[:30])", "log of other: words"),
    "key": ("LOG.error('refused: %s', TOKEN.encode())", "log of some.library: key"),
    "image": ("LOG.info('got %s', IMAGE[:40])", "log of some.library: image"),
    "printed": ("print(json.dumps({'said': PROMPT}))", "Captured stdout call: words"),
    "taken": ("print(PROMPT, file=sys.stderr); capsys.readouterr()", "stderr: words"),
    "usage": ("write('volume/usage/x.jsonl', PROMPT.encode())", "file usage/x.jsonl: words"),
    "trace": ("write('outputs/trace.json', TOKEN.encode())", "file trace.json: key"),
    "pixels": ("write('volume/outputs/0.png', PROMPT.encode('utf-16'))", "file outputs/0.png: words"),
    "child": ("child('print(TOKEN); print(PROMPT, file=sys.stderr)')", "python -c", "key", "words"),
    "childs_file": ("child('write(\"volume/y.jsonl\", PROMPT.encode())')", "file y.jsonl: words"),
}
WORKER = f"""
import asyncio, json, logging, subprocess, sys
from pathlib import Path
from tests.fakes.engine import make_context
from worker.service.usage.privacy import kept

LOG, OTHER = logging.getLogger("some.library"), logging.getLogger("other")
PROMPT, TOKEN, IMAGE = {PROMPT!r}, {TOKEN!r}, {IMAGE_TEXT!r}

def draw(root):
    context = make_context(root, hf_token=TOKEN)
    asyncio.run(context.draw(prompt=PROMPT))
    context.worker.usage_log.close()

    def write(name, data):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)

    return write
"""
CONFTEST = """
from tests.watch import plugin
from worker_of_tests import LOG, PROMPT

def pytest_configure(config):
    plugin.begin(config)

def pytest_sessionfinish():
    LOG.warning(PROMPT)
"""
TEST = """
from worker_of_tests import *

def test_{name}(tmp_path, capsys):
    write = draw(tmp_path)

    def child(code):
        lines = "from worker_of_tests import *; write = draw(Path(sys.argv[1])); "
        subprocess.run([sys.executable, "-c", lines + code, tmp_path / "child"], check=True, capture_output=True)

    {body}
"""
# Between the others by its name: a module that draws nothing, and one that writes when it ends.
STRANGER = """
from worker_of_tests import *

def test_stranger():
    LOG.warning(PROMPT)
"""
ENDING = """
import pytest
from worker_of_tests import *

@pytest.fixture(scope="module", autouse=True)
def drawn(tmp_path_factory):
    write = draw(tmp_path_factory.mktemp("ending"))
    yield
    write("volume/late.jsonl", PROMPT.encode())

def test_ending():
    pass
"""


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What a run of all these tests says, in a process of its own to which this run does not listen."""
    folder = tmp_path_factory.mktemp("watched")
    (folder / "worker_of_tests.py").write_text(WORKER)
    (folder / "conftest.py").write_text(CONFTEST)
    bodies = CLEAN | {name: body for name, (body, *_) in LEAKS.items()}
    for name, body in bodies.items():
        (folder / f"test_{name}.py").write_text(TEST.format(name=name, body=body))
    (folder / "test_ending.py").write_text(ENDING)
    (folder / "test_stranger.py").write_text(STRANGER)
    command = [sys.executable, "-m", "pytest", ".", "-c", os.devnull, "--rootdir=.", "--basetemp=tmp", "-n", "1", "-rA"]
    environment = {**os.environ, "PYTHONPATH": f"{PROJECT}:{folder}", VARIABLE: OFF}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("name", CLEAN)
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_tells_nothing_stays_green(said, name):
    assert f"PASSED test_{name}.py::test_{name}" in said
    assert f"ERROR test_{name}.py" not in said


@pytest.mark.parametrize("name", LEAKS)
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_leak_turns_its_test_red_and_is_not_told_again(said, name):
    _, *words = LEAKS[name]
    assert f"ERROR test_{name}.py::test_{name}" in said
    reported = re.search(rf"ERROR at teardown of test_{name} _.*?\n(privacy watch:.*?)\n[-_=]{{3}}", said, re.S)[1]
    assert all(word in reported for word in words), reported
    for text in (PROMPT, TOKEN, IMAGE_TEXT[:20]):
        assert text not in reported


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_a_module_writes_when_it_ends_turns_the_run_red(said):
    assert "privacy watch: written down between or after tests: file late.jsonl: words" in said
    assert "(by test_ending.py)" in said


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_module_may_write_what_another_one_sent(said):
    assert "PASSED test_stranger.py::test_stranger" in said
    assert "ERROR test_stranger.py" not in said


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_is_written_after_the_last_test_turns_the_run_red(said):
    assert "privacy watch: written down between or after tests: log of some.library: words" in said
    assert re.search(r"privacy watch: gw0 heard \d+ lines and \d+ files of 2 worker processes", said)


def test_this_run_is_watched(pytestconfig):
    assert pytestconfig.pluginmanager.has_plugin(NAME)


def told(payload):
    found = []
    tell_payload(payload, lambda kind, texts: found.extend((kind, text) for text in texts))
    return found


def test_all_of_a_job_is_private_but_what_names_models_and_methods():
    payload = {
        "model": "https://someone:password1@host/x.safetensors?token=abcdefgh12",
        "scheduler": "dpmpp_2m_karras",
        "prompt": PROMPT,
        "field_of_tomorrow": [{"said": "whatever it is"}],
        "image": IMAGE_TEXT,
        "s3Config": {"accessSecret": TOKEN},
        "steps": 5,
    }
    assert told(payload) == [
        *((KEY, text) for text in ("someone", "password1", "abcdefgh12")),
        *((WORDS, text) for text in (PROMPT, "whatever it is", TOKEN)),
        (IMAGE, IMAGE_TEXT),
    ]


def test_words_that_a_caller_wants_in_his_image_are_told_apart():
    shown = {"prompt": PROMPT, "output": {"metadata": True}}
    assert told(shown) == [(SHOWN_WORDS, PROMPT)]
    known = Known()
    known.add(SHOWN_WORDS, PROMPT)
    assert [leak.kind for leak in known.leaks(f"parameters: {PROMPT}")] == [SHOWN_WORDS]
    known.add(WORDS, PROMPT)  # another caller's, who asked for nothing
    assert [leak.kind for leak in known.leaks(f"parameters: {PROMPT}")] == [WORDS]


def test_keys_and_images_are_known_for_good():
    known = Known()
    known.add(KEY, TOKEN)
    known.add(IMAGE, IMAGE_TEXT)
    known.add(WORDS, TOKEN + " of words")
    known.forget_words()
    assert {leak.kind for leak in known.leaks(f"{IMAGE_TEXT} {TOKEN} of words")} == {KEY, IMAGE}


# The last is a name in the worker's own source, with which Hypothesis fills a prompt now and then.
@pytest.mark.parametrize("text", ["x" * 40, "0000000000", "a cat", "queue_seconds"])
def test_what_is_found_by_chance_is_not_looked_for(text):
    known = Known()
    known.add(WORDS, text)
    assert len(known) == 0


@pytest.mark.parametrize("text", ["a red apple", "a green apple"])  # of the examples in the worker's own documents
def test_an_examples_prompt_is_looked_for(text):
    known = Known()
    known.add(WORDS, text)
    assert known.leaks(f"cannot draw {text}")


def test_harmless_lines_hold_no_image():
    path = "/volume/models/blobs/" + "0123456789abcdef" * 4 + "/stabilityai/stable-diffusion-xl-base-1.0" * 4
    assert [*Known().leaks(path)] == []
    assert [leak.kind for leak in Known().leaks(f"got {IMAGE_TEXT[:20]}")] == [IMAGE]
