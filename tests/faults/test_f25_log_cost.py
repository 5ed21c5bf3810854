"""F25: a log line costs time by its own length, whatever is queued; nothing that was hidden before is seen."""

import asyncio
import json
import random
import re
import time

import httpx
import pytest

from tests.conftest import PROJECT
from tests.faults.attacks import rss_mb
from tests.faults.turns import LONG_S, served
from worker.service.usage import privacy, quotations
from worker.service.usage.privacy import kept, kept_in_turns, redact
from worker.service.usage.quotations import PIECE, Quotations

JOBS, CHARS = 1_000, 8_000
LINE = (
    "INFO worker.service.jobs.store [0123456789abcdef]: job 5f1c9a7e-1f0a-4a6e-9d1e-8c7b6a5d4e3f-u1: completed after "
    "12.5 seconds, 4 images of 1024x1024 in 30 steps"
)
WORDS = re.findall("[a-z]{2,12}", (PROJECT / "README.md").read_text().lower())


def prompts(count=JOBS):
    """Texts in a person's words, each of them another."""
    chance = random.Random(25)
    return [f"{index} {' '.join(chance.choices(WORDS, k=CHARS // 4))}"[:CHARS] for index in range(count)]


@pytest.fixture(scope="module")
def loaded():
    """The texts of a thousand queued jobs, kept."""
    texts, found = prompts(), Quotations()
    for text in texts:
        found.add(text)
    return found, texts


def hidden_by_definition(line, texts):
    """Places of `line` that quote a text: 16 characters in a row, or the whole of it, plain or escaped."""
    places = set()
    for text in texts:
        pieces = {text[at : at + PIECE] for at in range(len(text) - PIECE + 1)}
        pieces |= {text, repr(text)[1:-1], json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]}
        for piece in pieces:
            places.update(
                place for found in re.finditer(f"(?={re.escape(piece)})", line)
                for place in range(found.start(), found.start() + len(piece))
            )  # fmt: skip
    return places


SPELLINGS = (str, repr, json.dumps, lambda text: json.dumps(text, ensure_ascii=False), lambda text: repr(repr(text)))


@pytest.mark.parametrize("seed", range(40))
def test_all_that_quotes_a_text_is_hidden_and_nothing_else(seed):
    chance = random.Random(seed)
    letters = ["ab", "abc \n", "ab'\"\\", "äß漢字😀 x", "abcdefghijklmnopqrstuvwxyz \\n\"'"][seed % 5]
    texts = ["".join(chance.choices(letters, k=chance.randint(4, 60))) for _ in range(chance.randint(1, 12))]
    found = Quotations()
    for text in texts:
        found.add(text)
    for _ in range(30):
        text = chance.choice(texts)
        cut = slice(chance.randrange(len(text)), chance.randint(1, len(text)))
        said = chance.choice([text, text[cut], "".join(chance.choices(letters, k=20))])
        line = f"{chance.choice(texts)[:3]}# {chance.choice(SPELLINGS)(said)} #{chance.choice(texts)[-3:]}"
        expected = hidden_by_definition(line, texts)
        hidden = [place for place, is_hidden in enumerate(found.hidden(line)) if is_hidden]
        assert expected <= {*hidden}, (texts, line)
        if "\\" not in line:  # escaped pieces are found too, which the definition does not ask for
            assert expected == {*hidden}, (texts, line)


def test_a_text_in_part_in_any_spelling_is_hidden():
    text = 'a portrait of "Ünlike", who\'s 漢字 and 😀,\nin oils \\(style\\)'
    with kept({"prompt": text}):
        for spell in SPELLINGS:
            for said in (text, text[3:], text[:-9], text[5:45]):
                seen = redact(f"cannot read {spell(said)}!")
                assert "[private]" in seen, (spell, said)
                assert not re.search("portrait|nlike|oils|u6f22|ud83d|漢", seen), seen


def test_a_text_without_blanks_is_hidden_to_its_end():
    chinese = "".join(chr(0x4E00 + number * 7 % 5000) for number in range(2_000))
    with kept({"prompt": chinese, "negative_prompt": ",".join(map(str, range(2_000)))}):
        assert redact(f"of {chinese[1_900:1_950]} it") == "of [private] it"
        assert redact(f"of {'1290,1291,1292,1293'} it") == "of [private] it"


def test_of_a_very_long_line_both_ends_are_left_and_nothing_private():
    text = "the caller's very own words, of which nothing may be seen"
    with kept({"prompt": text}):
        seen = redact(f"begin {text} {'x y ' * 50_000} {text} end")
    assert len(seen) < 20_000
    assert (seen[:16], seen[-14:]) == ("begin [private] ", " [private] end")
    assert "characters are left out" in seen


def test_what_is_dropped_leaves_nothing(figures):
    found = Quotations()
    texts = [*prompts(20), "a word", "a a" * 2_000, "seven", "a" * CHARS]
    for text in texts * 2:
        found.add(text)
    for text in texts:
        found.drop(text)
    inner = re.search("(?<=[a-z])[a-z].{40,60}[a-z](?=[a-z])", texts[3])[0]  # a quotation ends where the text does
    assert found.hide(f"of {inner} it", "[]") == "of [] it"  # each was added twice
    for text in texts:
        found.drop(text)
    figures("F25", "bytes of the index once all jobs are over", found.size + len(found), "", at_most=0)
    assert vars(found)["_common"] == vars(found)["_short"] == vars(found)["_numbered"] == {}


def test_a_thousand_long_prompts_cost_little_memory(loaded, figures):
    found, texts = loaded
    size = found.size / sum(map(len, texts))
    figures("F25", "bytes of the index for each private character", size, "B", at_most=2)


def test_a_line_under_a_thousand_long_prompts(loaded, figures):
    found, texts = loaded
    traceback = "\n".join(f'  File "/site-packages/torch/module.py", line {n}, in forward' for n in range(40))
    for name, line in {
        "a line": LINE,
        "a line that quotes 80 characters": f"{LINE}: {texts[5][100:180]}",
        "a line that quotes a whole prompt": f"{LINE}: {texts[7]}",
    }.items():
        started = time.process_time()
        for _ in range(50):
            found.hide(line, "[private]")
        spent = (time.process_time() - started) / 50 * 1e6
        figures("F25", f"{name}, 1,000 jobs of 8,000 characters queued", spent, "µs", at_most=1_000, momentary=True)
    assert found.hide(LINE, "[private]") == LINE
    assert found.hide(traceback, "[private]") == traceback
    assert found.hide(f"{LINE}: {texts[7]}", "[private]") == f"{LINE}: [private]"


def test_texts_made_of_our_own_words_do_not_make_our_lines_dear(monkeypatch, figures):
    """Who knows our lines can have each of them compared with each of his texts, were that not bounded."""
    found, compared = Quotations(), []
    for index in range(1_000):
        found.add("".join(f"{LINE[at : at + 13]}{index:03}{at:03}" for at in range(0, len(LINE) - 13, 2))[:CHARS])
    compare = quotations._common_span
    monkeypatch.setattr(quotations, "_common_span", lambda *about: compared.append(about) or compare(*about))
    found.hide(LINE, "[private]")
    most = 2 * quotations.MANY
    figures("F25", "comparisons for a character of a hostile line", len(compared) / len(LINE), at_most=most)


async def test_many_texts_of_one_job_are_noted_in_turns():
    """Others are served between them, and when the job is over none is left."""
    before, turns = len(privacy._quotations), 0

    async def others():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    serving = asyncio.create_task(others())
    async with kept_in_turns({"prompt": prompts(40)}):
        assert turns >= 10
        assert len(privacy._quotations) == before + 40
    turns = 0
    while len(privacy._quotations) > before:
        await asyncio.sleep(0)
    assert turns >= 10
    serving.cancel()


@pytest.mark.slow
def test_a_ping_is_answered_at_once_while_a_thousand_long_jobs_wait(tmp_path, figures):
    with served(tmp_path) as worker, httpx.Client(base_url=f"http://127.0.0.1:{worker.port}", timeout=60) as http:
        while http.get("/ping").status_code != 200:
            time.sleep(0.1)
        http.post("/run", json={"input": {"prompt": "warm"}}).raise_for_status()
        worker.tell("hold")
        worker.tell("turns")
        memory, times = rss_mb(worker.process.pid), []
        for index, prompt in enumerate(prompts()):
            sent = http.post("/v2/any/run", json={"input": {"prompt": prompt, "timeout_s": 3_000}})
            assert sent.status_code == 200, sent.text
            if index % 10 == 0:
                times.append(timed(http))
        turns = worker.tell("told")
        times += [timed(http) for _ in range(400)]
        memory = rss_mb(worker.process.pid) - memory
        waiting = http.get("/v2/any/health").json()["jobs"]
    assert waiting["inQueue"] + waiting["inProgress"] == JOBS
    long = [seconds for seconds in turns["longest"] if seconds > LONG_S]
    figures("F25", "turns over 25 ms while 1,000 such jobs come", len(long), "", at_most=2, momentary=True)
    figures("F25", "memory of 1,000 queued jobs of 8,000 characters", memory, "MB", at_most=150, momentary=True)
    p99 = sorted(times)[int(len(times) * 0.99)] * 1000
    figures("F25", "/ping p99 with 1,000 queued jobs of 8,000 characters", p99, "ms", at_most=50, momentary=True)


def timed(http):
    started = time.perf_counter()
    assert http.get("/ping").status_code == 200
    return time.perf_counter() - started
