"""One answer out of those of all processes: how the server is, its jobs, its metrics."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus

from pydantic import JsonValue

from worker.transport.prediction_pages import PATH
from worker.transport.prediction_pages import merged as merged_pages

_Body = dict[str, JsonValue]
_SAMPLE = re.compile(r"([A-Za-z_:][A-Za-z0-9_:]*)(\{)?(.*)")
# Of the processes the readiest speaks for the server, since requests go to those that can take them.
_STATES = ("ready", "starting", "failed", "lost")
# Said by one process of its own body, and of the whole answer by the one that writes it.
_OWN_HEADERS = ("content-length", "transfer-encoding", "connection", "date")


@dataclass(frozen=True, slots=True)
class ProcessAnswer:
    """The answer of one process."""

    process: int
    status: int
    headers: tuple[str, ...]
    body: bytes = field(repr=False)

    def written(self, is_head: bool = False) -> bytes:
        """Return the answer as HTTP/1.1; without its body to a HEAD."""
        lines = [line for line in self.headers if line.partition(":")[0].strip().lower() not in _OWN_HEADERS]
        first = f"HTTP/1.1 {self.status} {HTTPStatus(self.status).phrase}"
        length = [] if self.status == HTTPStatus.NO_CONTENT else [f"content-length: {len(self.body)}"]
        head = "\r\n".join([first, *lines, *length, "connection: close", "", ""]).encode("latin-1")
        return head if is_head else head + self.body


def parse_answer(process: int, data: bytes) -> ProcessAnswer | None:
    """Read a whole answer; None for what is none, as of a process that ended amid it."""
    head, end, body = data.partition(b"\r\n\r\n")
    first, *headers = head.decode("latin-1").split("\r\n")
    words = first.split(" ")
    if not end or len(words) < 2 or not words[1].isdecimal():
        return None
    sizes = [line.partition(":")[2].strip() for line in headers if line.lower().startswith("content-length:")]
    if sizes and len(body) != int(sizes[0]):
        return None
    return ProcessAnswer(process, int(words[1]), tuple(headers), body)


def merge(path: str, answers: Sequence[ProcessAnswer], query: str = "") -> ProcessAnswer:
    """Make one answer of these to `path`. A refusal, which all of them give alike, is given on as it is."""
    last = path.rpartition("/")[2]
    if last in ("ping", "ready"):
        return min(answers, key=lambda answer: (200, 204, 503, answer.status).index(answer.status))
    if refused := [answer for answer in answers if answer.status not in (200, 503)]:
        return refused[0]
    if last == "metrics":
        text = merge_metrics({answer.process: answer.body.decode() for answer in answers})
        return ProcessAnswer(0, 200, answers[0].headers, text.encode())
    if path == PATH:
        page = merged_pages((json.loads(answer.body) for answer in answers), query)
        return ProcessAnswer(0, 200, answers[0].headers, json.dumps(page).encode())
    bodies: dict[int, _Body] = {answer.process: json.loads(answer.body) for answer in answers}
    if last == "jobs":
        merged = _listed([*bodies.values()])
    elif last == "alerts":
        merged = _with_process(bodies)
    else:
        merged = merge_health(bodies) if path == "/health" else _summed([*bodies.values()])
    status = 503 if merged.get("status") == "lost" else 200
    return ProcessAnswer(0, status, answers[0].headers, json.dumps(merged).encode())


def merge_health(bodies: Mapping[int, _Body]) -> _Body:
    """Make one report of several: the jobs are added up, and each process is listed with what is its own."""
    best = min(bodies.values(), key=lambda body: _STATES.index(str(body["status"])))
    listed: list[JsonValue] = [
        {"process": number}
        | {name: body[name] for name in ("status", "reason", "running", "jobs", "resident_models") if name in body}
        for number, body in sorted(bodies.items())
    ]
    running = ", ".join(str(body["running"]) for body in bodies.values() if body["running"])
    resident = {str(model) for body in bodies.values() for model in _list(body["resident_models"])}
    jobs = _summed([job for body in bodies.values() if isinstance(job := body["jobs"], dict)])
    return best | {
        "running": running or None,
        "jobs": jobs,
        "resident_models": [*sorted(resident)],
        "alerts": [*sorted({str(name) for body in bodies.values() for name in _list(body.get("alerts", []))})],
        "processes": listed,
    }


def merge_metrics(texts: Mapping[int, str]) -> str:
    """Put the metrics of all processes into one text, each series with the label `process`."""
    families: dict[str, tuple[list[str], list[str]]] = {}
    for process, text in sorted(texts.items()):
        heads: list[str] = []
        samples: list[str] = []
        for line in text.splitlines():
            if line.startswith("# HELP "):
                heads, samples = families.setdefault(line.split(" ")[2], ([], []))
                if not heads:
                    heads.append(line)
            elif line.startswith("#"):
                if line not in heads:
                    heads.append(line)
            elif match := _SAMPLE.fullmatch(line):
                name, brace, rest = match.groups()
                label = f'process="{process}"'
                samples.append(f"{name}{{{label},{rest}" if brace else f"{name}{{{label}}}{rest}")
    return "".join(f"{line}\n" for heads, samples in families.values() for line in (*heads, *samples))


def _listed(bodies: Sequence[_Body]) -> _Body:
    """Make one list of all jobs, the newest first."""
    jobs = [job for body in bodies for job in _list(body["jobs"]) if isinstance(job, dict)]
    return {"jobs": [*sorted(jobs, key=lambda job: float(str(job["age_s"])))]}


def _with_process(bodies: Mapping[int, _Body]) -> _Body:
    """Make one list of the alerts of all processes, each of which watches over its own jobs."""
    alerts = ((number, alert) for number, body in sorted(bodies.items()) for alert in _list(body["alerts"]))
    return {"alerts": [{"process": number, **alert} for number, alert in alerts if isinstance(alert, dict)]}


def _summed(bodies: Sequence[_Body]) -> _Body:
    """Add the numbers of equal bodies up; what is no number is the first one's."""
    merged: _Body = {}
    for name, value in bodies[0].items():
        values = [body.get(name) for body in bodies]
        if isinstance(value, dict):
            merged[name] = _summed([each for each in values if isinstance(each, dict)])
        elif isinstance(value, int) and not isinstance(value, bool):
            merged[name] = sum(each for each in values if isinstance(each, int))
        else:
            merged[name] = value
    return merged


def _list(value: JsonValue) -> list[JsonValue]:
    return value if isinstance(value, list) else []
