"""A run at a terminal: files go into a folder, and the answer names them in their place."""

import itertools
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from worker.core.answer import Answer, AnyAnswer
from worker.core.profile import TRACE_NAME
from worker.transport.serverless import Handler
from worker.wire.result import encode_answer, encode_generation


class LocalRun:
    """Saves the files of jobs into `folder`, and reports saved files and failures."""

    def __init__(self, folder: Path, say: Callable[[str], None]) -> None:
        self._folder = folder
        self._say = say

    def encode(self, answer: AnyAnswer) -> dict[str, JsonValue]:
        """Save the files of `answer` and write it with their paths; uploaded ones stay where they are."""
        if not isinstance(answer, Answer) or not answer.files[0].data:
            return encode_answer(answer)
        paths = [str(path) for path in save_files(answer, self._folder)]
        answer, traces = with_trace_saved(answer, self._folder)
        for path in [*paths, *traces]:
            self._say(f"saved {path}")
        return encode_generation(answer, paths)

    def reporting(self, handler: Handler) -> Handler:
        """Return `handler`, with its failures reported too."""

        async def handle(job: dict[str, Any]) -> dict[str, Any]:
            answer = await handler(job)
            if "error" in answer:
                self._say(f"failed: {answer['error']}")
            return answer

        return handle


def save_files(answer: Answer, folder: Path) -> list[Path]:
    """Write each file under a name that describes it, and never over another one."""
    folder.mkdir(parents=True, exist_ok=True)
    slug = re.sub(r"[^a-z0-9]+", "-", answer.prompt.lower()).strip("-")[:48] or "image"
    extension = "jpg" if answer.format == "jpeg" else answer.format
    per_seed = len(answer.files) // len(answer.seeds)  # several when the files are a video's frames
    return [
        _write_new(file.data, folder, f"{slug}-{answer.seeds[index // per_seed]}", extension)
        for index, file in enumerate(answer.files)
    ]


def with_trace_saved(answer: Answer, folder: Path) -> tuple[Answer, list[str]]:
    """Write the trace of an answer's profile, if it has one. Return the answer with its path, and the paths written."""
    profile = answer.profile
    if profile is None or not profile.trace:
        return answer, []
    path = str(_write_new(profile.trace, folder, "profile", TRACE_NAME))
    return replace(answer, profile=replace(profile, trace=b"", path=path)), [path]


def _write_new(data: bytes, folder: Path, stem: str, extension: str) -> Path:
    for count in itertools.count():
        path = folder / f"{stem}{f'-{count}' if count else ''}.{extension}"
        try:
            with path.open("xb") as file:
                file.write(data)
            return path
        except FileExistsError:
            continue
    raise AssertionError("unreachable")
