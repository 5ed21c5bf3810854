"""F20: no secret and no private text is in a log line, an answer or a file.

The privacy watch (`tests/watch`) looks for them in the lines and files of the whole run; this one is about quotations.
"""

import io
import json
import logging
import random

from tests.fakes.engine import make_context
from worker.app.logs import JsonFormatter, TextFormatter
from worker.app.queue import build_door
from worker.service.usage.quotations import PIECE
from worker.service.usage.request_id import RequestIdFilter

PROMPT = 'canary-words: a "quoted" wing on the bough of an unlikely tree, ünlike \\(style\\) others; 漢字 and 😀 too'
SPELLINGS = (str, repr, json.dumps, lambda text: repr(repr(text)), lambda text: json.dumps(text, ensure_ascii=False))
FAILURES = (ValueError, KeyError, RuntimeError, TypeError, OSError)


def seen_of(text, place):
    """How many runs of 16 characters of `text`, as it is or escaped, `place` holds."""
    return sum(
        spelt[at : at + PIECE] in place
        for spelt in (text, repr(text), json.dumps(text))
        for at in range(len(spelt) - PIECE + 1)
    )


async def test_no_exception_of_a_library_tells_what_it_quotes(tmp_path, figures):
    log, root = io.StringIO(), logging.getLogger()
    handlers = [logging.StreamHandler(log) for _ in range(2)]
    for handler, formatter in zip(handlers, (JsonFormatter(), TextFormatter("%(message)s")), strict=True):
        handler.setFormatter(formatter)
        handler.addFilter(RequestIdFilter())
        root.addHandler(handler)
    context, chance, answers = make_context(tmp_path), random.Random(20), []
    door = build_door(context.worker, concurrency=1)
    try:
        for number in range(60):
            start = chance.randrange(len(PROMPT) - PIECE)
            cut = PROMPT[start : chance.randint(start + PIECE, len(PROMPT))]
            failure = FAILURES[number % len(FAILURES)](f"got {chance.choice(SPELLINGS)(cut)}…")
            context.engine.failures = [failure]
            answers.append(await door.handle({"id": f"job-{number}", "input": {"prompt": PROMPT}}))
    finally:
        for handler in handlers:
            root.removeHandler(handler)
    assert {answer["code"] for answer in answers} == {"internal_error"}
    assert log.getvalue().count("[private]") >= 60
    context.worker.usage_log.close()
    written = "".join(path.read_text("utf-8", "replace") for path in tmp_path.rglob("*.jsonl"))
    for name, place in {"log": log.getvalue(), "answers": json.dumps(answers), "files": written}.items():
        figures("F20", f"quotations of a prompt in the {name} of 60 failures", seen_of(PROMPT, place), at_most=0)
