"""The predictions of Replicate's API: what was asked for by each, the pages of a caller's own, and their webhooks."""

import asyncio
import itertools
import json
from collections.abc import Collection
from contextlib import aclosing
from datetime import UTC, datetime
from weakref import WeakKeyDictionary

from fastapi import Request
from pydantic import JsonValue

from worker.core.errors import JobNotFound, ParameterOutOfRange
from worker.service.jobs.record import JobRecord
from worker.transport.prediction_pages import page_of
from worker.transport.web import replicate_schema as words
from worker.transport.web.auth import caller_of
from worker.transport.web.context import ServerContext
from worker.transport.web.replicate_schema import Asked

_LOGS_EVERY_S = 0.5


class Predictions:
    """What was asked for by each prediction, and the tasks that call their webhooks. Gone with their jobs."""

    def __init__(self, context: ServerContext) -> None:
        self.context = context
        self._asked: WeakKeyDictionary[JobRecord, Asked] = WeakKeyDictionary()
        self._telling: set[asyncio.Task[None]] = set()

    def add(self, record: JobRecord, asked: Asked) -> None:
        """Note what was asked for; the same prediction again was noted before."""
        self._asked.setdefault(record, asked)

    def find(self, request: Request, id: str) -> JobRecord:
        """Return a prediction of the caller. Raises JobNotFound, for a job of another door too."""
        record = self.context.find(request, id)
        if record not in self._asked:
            raise JobNotFound("No prediction of this caller has this id, or it is no longer kept.", field="id")
        return record

    def written(self, request: Request, record: JobRecord, status: str | None = None) -> dict[str, JsonValue]:
        """Write a prediction. Its files are URLs where the server is known by https, else the files themselves.

        A client of that API takes https and data: URIs for files, and anything else for text.
        """
        address = self.context.address(request)
        asked = self._asked[record]
        return words.encode_prediction(record, asked, address, as_url=address.startswith("https:"), status=status)

    def page(self, request: Request) -> dict[str, JsonValue]:
        """Write the page of the caller's own predictions that the request's query names. Its files are URLs.

        Raises ParameterOutOfRange for a cursor or a time that is none.
        """
        query, address = request.query_params, self.context.address(request)
        since, until = (_moment(query.get(name), name) for name in ("created_after", "created_before"))
        name = caller_of(request).name
        own = [
            (record, asked)
            for record, asked in [*self._asked.items()]
            if record.caller == name
            and self._is_kept(record)
            and (since is None or asked.created_at >= since)
            and (until is None or asked.created_at < until)
        ]
        entries = [] if query.get("source") == "web" else own
        page = page_of(entries, lambda entry: (words.written(entry[1].created_at), entry[0].id), query.get("cursor"))
        results: list[JsonValue] = [
            words.encode_prediction(record, asked, address, as_url=True) for record, asked in page.entries
        ]
        return {**page.links(address, request.url.query), "results": results}

    def _is_kept(self, record: JobRecord) -> bool:
        try:
            return self.context.job_store.find(record.id) is record
        except JobNotFound:
            return False

    def tell(self, request: Request, record: JobRecord, url: str, events: Collection[str]) -> None:
        """Call a webhook as the prediction goes on, in the background."""
        task = asyncio.get_running_loop().create_task(self._tell(request, record, url, events))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _tell(self, request: Request, record: JobRecord, url: str, events: Collection[str]) -> None:
        before: asyncio.Event | None = None
        numbers = itertools.count()

        def call(event: str, status: str | None = None) -> None:
            # One after the other, and what is outdated not again: the last that a receiver hears is the end.
            nonlocal before
            if event in events:
                is_end = event == "completed"
                body = json.dumps(self.written(request, record, status)).encode()
                name = record.id if is_end else f"{record.id}-{event}-{next(numbers)}"
                before = self.context.webhooks.call(record, url, body, name, after=before, again=is_end) or before

        call("start", "starting")
        loop, last = asyncio.get_running_loop(), 0.0
        async with aclosing(record.watch()) as updates:
            async for progress in updates:
                if before is not None and not before.is_set():
                    continue  # a slow receiver would hear of the end after all that it has not heard yet
                if progress.phase == "inference" and loop.time() - last >= _LOGS_EVERY_S:
                    last = loop.time()
                    call("logs")
        if record.answer is not None:
            call("output", "processing")
        call("completed")


def _moment(text: str | None, name: str) -> datetime | None:
    if not text:
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ParameterOutOfRange(f"{name} must be a time as 2026-01-31T12:00:00Z.", field=name) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
