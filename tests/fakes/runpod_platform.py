"""A RunPod Serverless endpoint in miniature: what a worker talks to, and what a caller talks to.

The worker side (job-take, job-take-batch, job-stop, job-done, job-stream, ping) serves the unmodified ``runpod`` SDK
started with :meth:`RunPodPlatform.worker_env`; the caller's side serves ``runpod.Endpoint`` with its base address set
to :attr:`RunPodPlatform.url`.
"""

import asyncio
import json
import time
import uuid
from collections import deque
from collections.abc import Callable
from typing import Any

from aiohttp import web

from tests.fakes import FakeServer, Handler, Seen
from tests.fakes.runpod_records import JobRecord, Post
from tests.waiting import LIMIT_S

MAX_CHUNK_BYTES = 1_000_000  # of a stream
_GPU = "gpu=NVIDIA+GeForce+RTX+4090"


class RunPodPlatform(FakeServer):
    """The platform; ``hold`` is how long an empty job-take or job-stop is kept open, in seconds."""

    def __init__(
        self,
        *,
        hold: float = 2.0,
        endpoint_id: str = "ep",
        api_key: str = "test-key",
        max_done_bytes: int | None = None,
        execution_timeout: float | None = None,
    ) -> None:
        super().__init__()
        self.hold = hold
        self.endpoint_id = endpoint_id
        self.api_key = api_key
        self.max_done_bytes = max_done_bytes
        self.execution_timeout = execution_timeout
        self.records: dict[str, JobRecord] = {}
        self.first_take_at: float | None = None
        self._queue: deque[dict[str, Any]] = deque()
        self._stops: dict[str, list[str]] = {}
        self._waiters: set[asyncio.Future[None]] = set()
        self._failures: dict[str, tuple[int, int]] = {}
        self._over = False

    # --- for tests ---------------------------------------------------------------------------------------------

    @property
    def url(self) -> str:
        """The base address for the official client (``RUNPOD_ENDPOINT_BASE_URL``)."""
        return f"{self.origin}/v2"

    def worker_env(self, worker_id: str = "pod123") -> dict[str, str]:
        """Return the variables that make ``python handler.py`` a worker of this endpoint.

        HOME is an empty folder: a configuration file of the SDK found there would replace the API key.
        """
        base = f"{self.url}/{self.endpoint_id}"
        return {
            "RUNPOD_WEBHOOK_GET_JOB": f"{base}/job-take/$ID?{_GPU}",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{base}/job-done/$RUNPOD_POD_ID/$ID?{_GPU}",
            "RUNPOD_WEBHOOK_POST_STREAM": f"{base}/job-stream/$RUNPOD_POD_ID/$ID?{_GPU}",
            "RUNPOD_WEBHOOK_PING": f"{base}/ping/$RUNPOD_POD_ID?{_GPU}",
            "RUNPOD_PING_INTERVAL": "1000",
            "RUNPOD_AI_API_KEY": self.api_key,
            "RUNPOD_POD_ID": worker_id,
            "RUNPOD_ENDPOINT_ID": self.endpoint_id,
            "RUNPOD_POD_HOSTNAME": f"{worker_id}-host",
            "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
            "RUNPOD_SKIP_GPU_CHECK": "true",
            "RUNPOD_LOG_LEVEL": "INFO",
            "HOME": self.folder,
        }

    def submit(self, input: Any, *, id: str | None = None, **extra: Any) -> str:
        """Queue a job and return its id; extra keys go to the worker as they are.

        ``policy={"executionTimeout": ms}`` limits this one job.
        """
        return self.submit_raw({"id": id or f"{uuid.uuid4()}-u1", "input": input, **extra})

    def submit_raw(self, *jobs: dict[str, Any]) -> str:
        """Queue jobs exactly as given, all at once; a known id is delivered again. Returns the first one's id."""
        ids = self.call(lambda: [self._enqueue(job) for job in jobs])
        return ids[0]

    def wait(self, job_id: str, timeout: float = LIMIT_S, *, results: int = 0) -> JobRecord:
        """Block until a job is over, and has at least so many results; raise TimeoutError otherwise."""
        record = self.records[job_id]
        if not self.wait_until(lambda: record.final and len(record.results) >= results, timeout):
            raise TimeoutError(f"job {job_id} is {record.status} after {timeout} s, refused: {len(record.refused)}")
        return record

    def wait_taken(self, job_id: str, timeout: float = LIMIT_S) -> JobRecord:
        """Block until a worker holds a job."""
        record = self.records[job_id]
        if not self.wait_until(lambda: record.taken_at is not None, timeout):
            raise TimeoutError(f"job {job_id} was not taken in {timeout} s")
        return record

    def cancel(self, job_id: str) -> JobRecord:
        """Cancel a job as a caller would: drop it from the queue, or tell its worker to stop."""
        self.call(lambda: self._end_early(self.records[job_id], "CANCELLED"))
        return self.records[job_id]

    def progress(self, job_id: str) -> list[Any]:
        """Return the progress outputs of a job, in order of arrival."""
        return [post.body.get("output") for post in self.records[job_id].progress]

    def seen(self, route: str) -> list[Seen]:
        """Return the requests to one route, such as ``ping`` or ``job-done``."""
        return [request for request in list(self.requests) if f"/{route}" in request.path]

    def fail_done(self, times: int, status: int = 500) -> None:
        """Answer the next results (not progress) with an HTTP error."""
        self.call(lambda: self._failures.update({"job-done": (times, status)}))

    def fail_take(self, times: int, status: int = 500) -> None:
        """Answer the next requests for jobs with an HTTP status, at once."""
        self.call(lambda: self._failures.update({"job-take": (times, status)}))

    # --- the worker's side -------------------------------------------------------------------------------------

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Register both sides."""
        routes = {
            "GET /job-take/{worker}": self._take,
            "GET /job-take-batch/{worker}": self._take,
            "GET /job-stop/{worker}": self._stop_signals,
            "POST /job-done/{worker}/{job}": self._done,
            "POST /job-stream/{worker}/{job}": self._stream_chunk,
            "GET /ping/{worker}": self._ping,
            "POST /run": self._run,
            "POST /runsync": self._run,
            "GET /status/{job}": self._status,
            "GET /stream/{job}": self._stream,
            "POST /cancel/{job}": self._cancel,
            "POST /retry/{job}": self._retry,
            "POST /purge-queue": self._purge,
            "GET /health": self._health,
        }
        for route, handler in routes.items():
            method, path = route.split()
            router.add_route(method, f"/v2/{self.endpoint_id}{path}", self._authorized(handler))

    def closing(self) -> None:
        """Answer every held request."""
        self._over = True
        self._wake()

    async def _take(self, request: web.Request) -> web.Response:
        self.first_take_at = self.first_take_at or time.monotonic()
        if status := self._failure("job-take"):
            return web.Response(status=status)
        await self._until(lambda: self._queue, self.hold)
        batch = "job-take-batch" in request.path
        jobs = []
        while self._queue and len(jobs) < (int(request.query.get("batch_size", "1")) if batch else 1):
            jobs.append(self._hand_out(self._queue.popleft(), request.match_info["worker"]))
        if not jobs:
            return web.Response(status=204)
        return web.json_response(jobs if batch else jobs[0])

    async def _stop_signals(self, request: web.Request) -> web.Response:
        worker = request.match_info["worker"]
        await self._until(lambda: self._stops.get(worker), self.hold)
        jobs = self._stops.pop(worker, [])
        return web.json_response({"jobsToStop": jobs}) if jobs else web.Response(status=204)

    async def _done(self, request: web.Request) -> web.Response:
        raw, worker = await request.read(), request.match_info["worker"]
        record = self._record_of(request)
        try:
            # the SDK writes NaN, which is not JSON: the strictest reader is the safest fake
            body = json.loads(raw, parse_constant=_refuse_constant)
        except ValueError:
            record.refused.append(Post({}, raw, time.monotonic(), worker, 400))
            return web.Response(status=400, text="not JSON")
        if body.get("status") == "IN_PROGRESS":
            (record.late_progress if record.final else record.progress).append(
                Post(body, raw, time.monotonic(), worker)
            )
            return web.Response()
        too_big = self.max_done_bytes is not None and len(raw) > self.max_done_bytes
        if status := 400 if too_big else self._failure("job-done"):
            record.refused.append(Post(body, raw, time.monotonic(), worker, status))
            return web.Response(status=status, text="refused")
        record.results.append(Post(body, raw, time.monotonic(), worker))
        if not record.final:
            record.output, record.error = body.get("output"), body.get("error")
            record.raw, record.stop_pod = raw, bool(body.get("stopPod"))
            self._finish(record, "FAILED" if record.error else "COMPLETED")
        return web.Response()

    async def _stream_chunk(self, request: web.Request) -> web.Response:
        record, raw = self._record_of(request), await request.read()
        if len(raw) > MAX_CHUNK_BYTES:
            return web.Response(status=400, text="refused")
        record.stream.append(json.loads(raw).get("output"))
        return web.Response()

    async def _ping(self, request: web.Request) -> web.Response:
        return web.Response()

    # --- the caller's side -------------------------------------------------------------------------------------

    async def _run(self, request: web.Request) -> web.Response:
        try:
            body = json.loads(await request.read())
        except ValueError:
            body = None
        if not isinstance(body, dict) or "input" not in body:
            return web.json_response({"error": "the body needs an input"}, status=400)
        sync = request.path.endswith("/runsync")
        job_id = f"sync-{uuid.uuid4()}-u1" if sync else f"{uuid.uuid4()}-u1"
        record = self.records[self._enqueue({**body, "id": job_id})]
        if not sync:
            return web.json_response({"id": record.id, "status": record.status})
        await self._until(lambda: record.final, int(request.query.get("wait", "90000")) / 1000)
        return web.json_response(record.view())

    async def _status(self, request: web.Request) -> web.Response:
        return web.json_response(self._record_of(request).view())

    async def _stream(self, request: web.Request) -> web.Response:
        record = self._record_of(request)
        chunks, record.streamed = record.stream[record.streamed :], len(record.stream)
        return web.json_response({"status": record.status, "stream": [{"output": chunk} for chunk in chunks]})

    async def _cancel(self, request: web.Request) -> web.Response:
        record = self._record_of(request)
        self._end_early(record, "CANCELLED")
        return web.json_response({"id": record.id, "status": record.status})

    async def _retry(self, request: web.Request) -> web.Response:
        record = self._record_of(request)
        if record.status not in {"FAILED", "TIMED_OUT"}:
            return web.json_response({"error": "only failed or timed-out jobs can be retried"}, status=400)
        self._enqueue(record.job)
        return web.json_response({"id": record.id, "status": record.status})

    async def _purge(self, request: web.Request) -> web.Response:
        queued = [self.records[job["id"]] for job in self._queue]
        for record in queued:
            self._end_early(record, "CANCELLED")
        return web.json_response({"removed": len(queued), "status": "completed"})

    async def _health(self, request: web.Request) -> web.Response:
        statuses = [record.status for record in self.records.values()]
        workers = {request.path.rsplit("/", 1)[1] for request in self.seen("job-take")}
        busy = {record.worker_id for record in self.records.values() if record.status == "IN_PROGRESS"}
        jobs = {"completed": "COMPLETED", "failed": "FAILED", "inProgress": "IN_PROGRESS", "inQueue": "IN_QUEUE"}
        return web.json_response(
            {
                "jobs": {name: statuses.count(status) for name, status in jobs.items()} | {"retried": 0},
                "workers": {"idle": len(workers - busy), "running": len(busy), "initializing": 0, "throttled": 0},
            }
        )

    # --- state; on the server's loop only ----------------------------------------------------------------------

    def _authorized(self, handler: Handler) -> Handler:
        async def checked(request: web.Request) -> web.StreamResponse:
            # workers send the bare key, callers a bearer
            if request.headers.get("Authorization", "").removeprefix("Bearer ") != self.api_key:
                raise web.HTTPUnauthorized
            return await handler(request)

        return checked

    def _record_of(self, request: web.Request) -> JobRecord:
        record = self.records.get(request.match_info["job"])
        if record is None:
            raise web.HTTPNotFound(text="job not found")
        return record

    def _enqueue(self, job: dict[str, Any]) -> str:
        record = self.records.setdefault(job["id"], JobRecord(job["id"], job))
        record.status, record.output, record.error, record.done_at = "IN_QUEUE", None, None, None
        self._queue.append(job)
        self._wake()
        return record.id

    def _hand_out(self, job: dict[str, Any], worker: str) -> dict[str, Any]:
        record = self.records[job["id"]]
        record.status, record.worker_id, record.taken_at = "IN_PROGRESS", worker, time.monotonic()
        record.deliveries += 1
        milliseconds = (job.get("policy") or {}).get("executionTimeout")
        limit = milliseconds / 1000 if milliseconds else self.execution_timeout
        if limit is not None:
            delivery = record.deliveries
            asyncio.get_running_loop().call_later(limit, self._time_out, record, delivery)
        return job

    def _time_out(self, record: JobRecord, delivery: int) -> None:
        if record.deliveries == delivery and record.status == "IN_PROGRESS":
            self._end_early(record, "TIMED_OUT")

    def _end_early(self, record: JobRecord, status: str) -> None:
        if record.final:
            return
        if record.status == "IN_PROGRESS" and record.worker_id is not None:
            self._stops.setdefault(record.worker_id, []).append(record.id)
        self._queue = deque(job for job in self._queue if job["id"] != record.id)
        self._finish(record, status)

    def _finish(self, record: JobRecord, status: str) -> None:
        record.status, record.done_at = status, time.monotonic()
        self._wake()

    def _failure(self, route: str) -> int:
        times, status = self._failures.get(route, (0, 0))
        self._failures[route] = (times - 1, status)
        return status if times > 0 else 0

    async def _until(self, reached: Callable[[], object], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not reached() and not self._over and (left := deadline - time.monotonic()) > 0:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                await asyncio.wait({waiter}, timeout=left)
            finally:
                self._waiters.discard(waiter)

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        self.changed()


def _refuse_constant(name: str) -> None:
    raise ValueError(name)
