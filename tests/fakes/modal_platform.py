"""A Modal of our own on this machine: the control plane that the real SDK deploys to, and containers in this process.

It speaks Modal's gRPC, from the messages in the SDK's own package, as far as `modal deploy` and a class's methods need
it: what it does not know is UNIMPLEMENTED. An input wakes a container of its class, which is the class itself, run
with its enter hooks; everything asked for is recorded.
"""

# ruff: noqa: N802 -- the RPCs have Modal's names

import asyncio
import itertools
import threading
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpclib
import modal
from google.protobuf.empty_pb2 import Empty
from grpclib.server import Server
from modal._partial_function import _find_callables_for_obj, _PartialFunctionFlags
from modal._serialization import deserialize, serialize
from modal_proto import api_pb2 as api
from modal_proto.api_grpc import ModalClientBase

from tests.waiting import LIMIT_S

_Result = api.GenericResult


@dataclass
class Call:
    """One call of a function: its task in a container, and its result."""

    function: str
    method: str
    arguments: tuple[tuple[Any, ...], dict[str, Any]]
    result: "asyncio.Future[api.FunctionGetOutputsItem]"
    task: "asyncio.Task[None] | None" = None


@dataclass
class Records:
    """What the platform was told, and what it did."""

    functions: dict[str, api.Function] = field(default_factory=dict)
    """Name -> what was deployed of it."""
    volumes: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, dict[str, str]] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)
    cancelled: list[Call] = field(default_factory=list)
    commits: list[str] = field(default_factory=list)
    containers: Counter[str] = field(default_factory=Counter)
    """Class -> how many containers were started."""
    published: list[api.AppPublishRequest] = field(default_factory=list)
    asked: Counter[str] = field(default_factory=Counter)
    """RPC -> how often it was called."""


class _Plane:
    """The RPCs. Ids are words with a number; a name is looked up by its id."""

    def __init__(self, containers: Callable[[str], Any]) -> None:
        self.records = Records()
        self._containers = containers
        self._running: dict[str, Any] = {}
        self._numbers = itertools.count(1)
        self._names: dict[str, str] = {}
        self._calls: dict[str, Call] = {}
        self._handles: dict[str, api.FunctionHandleMetadata] = {}
        self._queues: dict[tuple[str, bytes], list[bytes]] = defaultdict(list)
        self._filled = asyncio.Condition()
        self._starting = asyncio.Lock()
        self._client: Any = None

    def new(self, kind: str, name: str = "") -> str:
        id_ = f"{kind}-{next(self._numbers)}"
        self._names[id_] = name
        return id_

    # ---- what a deploy asks for ----

    async def ClientHello(self, request: Empty) -> api.ClientHelloResponse:
        return api.ClientHelloResponse(image_builder_version="2025.06")

    async def EnvironmentGetOrCreate(self, request: Any) -> Any:
        metadata = api.EnvironmentMetadata(
            name="main", settings=api.EnvironmentSettings(image_builder_version="2025.06")
        )
        return api.EnvironmentGetOrCreateResponse(environment_id="en-1", metadata=metadata)

    async def AppGetByDeploymentName(self, request: Any) -> Any:
        return api.AppGetByDeploymentNameResponse()

    async def AppCreate(self, request: Any) -> Any:
        return api.AppCreateResponse(app_id=self.new("ap"), app_page_url="http://apps.test/1")

    async def AppGetOrCreate(self, request: Any) -> Any:
        return api.AppGetOrCreateResponse(app_id=self.new("ap"))

    async def AppPublish(self, request: api.AppPublishRequest) -> Any:
        self.records.published.append(request)
        return api.AppPublishResponse(url="http://apps.test/1", deployed_at=1.0)

    async def AppHeartbeat(self, request: Any) -> Any:
        return Empty()

    async def AppClientDisconnect(self, request: Any) -> Any:
        return Empty()

    async def ImageGetOrCreate(self, request: Any) -> Any:
        result = _Result(status=_Result.GENERIC_STATUS_SUCCESS)
        return api.ImageGetOrCreateResponse(image_id=self.new("im"), result=result)

    async def MountBatchedCheckExistence(self, request: Any) -> Any:
        return api.MountBatchedCheckExistenceResponse()

    async def MountPutFile(self, request: Any) -> Any:
        return api.MountPutFileResponse(exists=True)

    async def MountGetOrCreate(self, request: Any) -> Any:
        return api.MountGetOrCreateResponse(mount_id=self.new("mo"))

    async def VolumeGetOrCreate(self, request: api.VolumeGetOrCreateRequest) -> Any:
        id_ = self.new("vo", request.deployment_name)
        self.records.volumes[id_] = request.deployment_name
        return api.VolumeGetOrCreateResponse(volume_id=id_, version=1, metadata=api.VolumeMetadata(version=1))

    async def VolumeCommit(self, request: Any) -> Any:
        self.records.commits.append(self.records.volumes[request.volume_id])
        return api.VolumeCommitResponse()

    async def SecretGetOrCreate(self, request: Any) -> Any:
        id_ = self.new("st")
        self.records.secrets[id_] = dict(request.env_dict)
        return api.SecretGetOrCreateResponse(secret_id=id_)

    async def FunctionPrecreate(self, request: api.FunctionPrecreateRequest) -> Any:
        id_ = request.existing_function_id or self.new("fu", request.function_name)
        handle = api.FunctionHandleMetadata(
            function_name=request.function_name,
            function_type=request.function_type,
            supported_input_formats=request.supported_input_formats,
            supported_output_formats=request.supported_output_formats,
            max_object_size_bytes=2 * 2**20,
        )
        for name, method in request.method_definitions.items():
            handle.method_handle_metadata[name].CopyFrom(
                api.FunctionHandleMetadata(
                    function_name=method.function_name,
                    function_type=method.function_type,
                    is_method=True,
                    use_method_name=name,
                    supported_input_formats=method.supported_input_formats,
                    supported_output_formats=method.supported_output_formats,
                )
            )
        if request.HasField("webhook_config") and request.webhook_config.type:
            handle.web_url = f"http://{request.function_name}.test"
        self._handles[id_] = handle
        return api.FunctionPrecreateResponse(function_id=id_, handle_metadata=handle)

    async def FunctionCreate(self, request: api.FunctionCreateRequest) -> Any:
        id_ = request.existing_function_id
        function = request.function
        if not function.function_name:
            data = request.function_data
            function = data.ranked_functions[0].function if data.ranked_functions else function
        self.records.functions[self._names[id_].removesuffix(".*")] = function
        data = request.function_data
        if not data.ranked_functions:
            data = api.FunctionData()
            data.ranked_functions.add(rank=0, function=function)
        return api.FunctionCreateResponse(
            function_id=id_, function=function, function_data=data, handle_metadata=self._handles[id_]
        )

    async def ClassCreate(self, request: api.ClassCreateRequest) -> Any:
        metadata = api.ClassHandleMetadata(methods=request.methods)
        return api.ClassCreateResponse(class_id=self.new("cs"), handle_metadata=metadata)

    # ---- what a caller asks for ----

    async def FunctionMap(self, request: api.FunctionMapRequest) -> Any:
        id_, items = self.new("fc"), request.pipelined_inputs
        name = self._names[request.function_id].removesuffix(".*")
        put = [self._put(id_, name, item.input) for item in items]
        return api.FunctionMapResponse(function_call_id=id_, pipelined_inputs=put)

    async def FunctionGetOutputs(self, request: api.FunctionGetOutputsRequest) -> Any:
        call = self._calls[request.function_call_id]
        done, _ = await asyncio.wait({call.result}, timeout=request.timeout)
        outputs = [call.result.result()] if done else []
        return api.FunctionGetOutputsResponse(outputs=outputs, num_unfinished_inputs=0 if done else 1)

    async def FunctionCallCancel(self, request: Any) -> Any:
        call = self._calls[request.function_call_id]
        self.records.cancelled.append(call)
        if call.task is not None:
            call.task.cancel()
        return Empty()

    async def FunctionGetCurrentStats(self, request: Any) -> Any:
        name = self._names[request.function_id].removesuffix(".*")
        running = [call for call in self._calls.values() if call.function == name and not call.result.done()]
        return api.FunctionStats(num_total_tasks=int(name in self._running), num_running_inputs=len(running))

    async def QueueGetOrCreate(self, request: Any) -> Any:
        return api.QueueGetOrCreateResponse(queue_id=self.new("qu"))

    async def QueueHeartbeat(self, request: Any) -> Any:
        return Empty()

    async def QueuePut(self, request: api.QueuePutRequest) -> Any:
        async with self._filled:
            self._queues[request.queue_id, request.partition_key] += request.values
            self._filled.notify_all()
        return Empty()

    async def QueueGet(self, request: api.QueueGetRequest) -> Any:
        waiting = self._queues[request.queue_id, request.partition_key]
        try:
            async with asyncio.timeout(request.timeout), self._filled:
                await self._filled.wait_for(lambda: waiting)
        except TimeoutError:
            return api.QueueGetResponse()
        taken, waiting[:] = waiting[: request.n_values], waiting[request.n_values :]
        return api.QueueGetResponse(values=taken)

    # ---- containers ----

    def _put(self, id_: str, name: str, item: api.FunctionInput) -> Any:
        loop = asyncio.get_running_loop()
        call = Call(name, item.method_name, ((), {}), loop.create_future())
        self._calls[id_] = call
        self.records.calls.append(call)
        call.task = loop.create_task(self._run(call, item))
        return api.FunctionPutInputsResponseItem(input_id=self.new("in"))

    async def _run(self, call: Call, item: api.FunctionInput) -> None:
        try:
            if self._client is None:
                self._client = await modal.Client.from_env.aio()
            args, kwargs = deserialize(item.args, self._client)
            call.arguments = (args, kwargs)
            async with self._starting:
                if call.function not in self._running:
                    self._running[call.function] = await self._start(call.function)
            container = self._running[call.function]
            methods = _find_callables_for_obj(container, _PartialFunctionFlags.CALLABLE_INTERFACE)
            data = serialize(await methods[call.method](*args, **kwargs))
            result = _Result(status=_Result.GENERIC_STATUS_SUCCESS, data=data)
        except asyncio.CancelledError:
            result = _Result(status=_Result.GENERIC_STATUS_TERMINATED, exception="cancelled")
        except BaseException as error:
            result = _Result(status=_Result.GENERIC_STATUS_FAILURE, exception=repr(error), data=serialize(error))
        call.result.set_result(api.FunctionGetOutputsItem(result=result, data_format=api.DATA_FORMAT_PICKLE))

    async def _start(self, name: str) -> Any:
        """Start a container as Modal does: the class without arguments, then what it enters with, before the snapshot
        and behind it."""
        self.records.containers[name] += 1
        container = self._containers(name)
        for flag in (_PartialFunctionFlags.ENTER_PRE_SNAPSHOT, _PartialFunctionFlags.ENTER_POST_SNAPSHOT):
            for enter in _find_callables_for_obj(container, flag).values():
                await _finished(enter())
        return container

    async def stop_containers(self) -> None:
        """Stop every container, as Modal does when nothing came for its scaledown."""
        running, self._running = self._running, {}
        for container in running.values():
            for leave in _find_callables_for_obj(container, _PartialFunctionFlags.EXIT).values():
                await _finished(leave())


async def _finished(result: Any) -> Any:
    return await result if asyncio.iscoroutine(result) else result


def _handlers(plane: _Plane) -> dict[str, grpclib.const.Handler]:
    """Return gRPC's handlers: those of `plane`, and for all other RPCs one that says so."""

    class Unknown(ModalClientBase):
        pass

    Unknown.__abstractmethods__ = frozenset()  # type: ignore[attr-defined]

    def handler(name: str, cardinality: Any, request_type: Any, reply_type: Any) -> grpclib.const.Handler:
        async def answer(stream: Any) -> None:
            plane.records.asked[name] += 1
            function = getattr(plane, name, None)
            if function is None:
                raise grpclib.GRPCError(grpclib.const.Status.UNIMPLEMENTED, f"this Modal knows no {name}")
            await stream.send_message(await function(await stream.recv_message()))

        return grpclib.const.Handler(answer, cardinality, request_type, reply_type)

    mapping = Unknown().__mapping__()
    return {
        path: handler(path.rpartition("/")[2], given.cardinality, given.request_type, given.reply_type)
        for path, given in mapping.items()
    }


class ModalPlatform:
    """The control plane in a thread of its own. `containers` makes a new object of a class, for its container."""

    def __init__(self, containers: Callable[[str], Any] = lambda name: None) -> None:
        self._containers = containers
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True, name="fake-modal")
        self.port = 0
        self.plane: _Plane

    @property
    def records(self) -> Records:
        return self.plane.records

    @property
    def environment(self) -> dict[str, str]:
        """What points the real SDK here."""
        return {
            "MODAL_SERVER_URL": f"http://127.0.0.1:{self.port}",
            "MODAL_TOKEN_ID": "ak-test",
            "MODAL_TOKEN_SECRET": "as-test",
            "MODAL_CONFIG_PATH": "/nonexistent",
        }

    def __enter__(self) -> "ModalPlatform":
        self._thread.start()
        assert self._ready.wait(LIMIT_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(LIMIT_S)

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._begin())
        self._ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(self._end())
        self._loop.close()

    async def _begin(self) -> None:
        self.plane = _Plane(self._containers)

        class Service:
            def __mapping__(self_) -> dict[str, grpclib.const.Handler]:  # noqa: N805
                return _handlers(self.plane)

        self._server = Server([Service()])
        await self._server.start("127.0.0.1", 0)
        self.port = self._server._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]

    def stop_containers(self) -> None:
        """Stop every container, so that the next input starts one again."""
        asyncio.run_coroutine_threadsafe(self.plane.stop_containers(), self._loop).result(LIMIT_S)

    async def _end(self) -> None:
        await self.plane.stop_containers()
        self._server.close()
        await self._server.wait_closed()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
