"""F18: what a job leaves behind is free at once. Garbage that must be searched for holds images, and everybody up."""

import gc
import io
import time
from collections import Counter

import pytest
from PIL import Image

from tests.fakes.web_worker import WebWorker
from tests.waiting import LIMIT_S
from worker.core.errors import EngineFailure

TIMES = 5


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with WebWorker(tmp_path_factory.mktemp("garbage")) as worker:
        yield worker


def drawn(served):
    assert served.http.post("/run", json={"prompt": "a"}).status_code == 200


def refused(served):
    assert served.http.post("/run", json={"prompt": "a", "width": -1}).status_code == 400


def damaged(served):
    image = "iVBORw0KGgo" + "A" * 4_001
    assert served.http.post("/run", json={"prompt": "a", "image": image}).status_code == 400


def failed(served):
    served.context.engine.failures = [EngineFailure("It failed.")]
    assert served.http.post("/run", json={"prompt": "a"}).status_code == 503


def late(served):
    served.context.engine.gate.clear()
    assert served.http.post("/run", json={"prompt": "a", "timeout_s": 0.05}).status_code == 504
    served.context.engine.gate.set()


def cancelled(served, inside=True):
    served.context.engine.gate.clear()
    served.context.engine.inside.clear()
    job = served.http.post("/v2/any/run", json={"input": {"prompt": "a"}}).json()["id"]
    if inside:
        assert served.context.engine.inside.wait(LIMIT_S)
    assert served.http.post(f"/v2/any/cancel/{job}").status_code == 200
    served.context.engine.gate.set()


def cancelled_early(served):
    """Before the engine has it: amid whatever waits for a thread."""
    cancelled(served, inside=False)


def edited(served):
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(file, "PNG")
    sent = {"files": {"image": file.getvalue()}, "data": {"prompt": "a", "model": "tiny"}}
    assert served.http.post("/edit", **sent).status_code == 200


@pytest.mark.parametrize("ask", [drawn, refused, damaged, failed, late, cancelled, cancelled_early, edited])
def test_a_job_leaves_nothing_that_has_to_be_searched_for(served, ask, figures):
    ask(served)
    served.context.engine.ran.clear()
    time.sleep(0.1)
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for _ in range(TIMES):
            ask(served)
        served.context.engine.ran.clear()
        time.sleep(0.2)  # the last of them is being put away
        gc.collect()
        kinds = Counter(f"{type(thing).__module__}.{type(thing).__qualname__}" for thing in gc.garbage)
    finally:
        gc.set_debug(0)
        gc.enable()
        gc.garbage.clear()
    heavy = {
        kind: count
        for kind, count in kinds.items()
        if kind.startswith(("worker.core.image", "worker.core.answer", "worker.service", "worker.core.job", "PIL."))
        or kind in ("builtins.frame", "builtins.traceback", "builtins.coroutine")
    }
    figures("F18", f"jobs left to a search, {ask.__name__}", sum(heavy.values()), "", at_most=0)
