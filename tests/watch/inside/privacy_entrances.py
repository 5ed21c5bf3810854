"""The places at which private things come into a worker, and what of them is private. Standard library only.

Used in the tests' own processes and, through `sitecustomize`, in the workers that tests start. It has its own idea of
what is private and knows nothing of the worker's (`worker/service/usage/privacy.py`): all that a job holds is private
but what `PUBLIC` names, so that a field which the worker forgot to hide is found.
"""

import base64
import functools
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import parse_qsl, urlsplit

Tell = Callable[[str, list[str]], None]
WORDS, SHOWN_WORDS, KEY, IMAGE, FOLDER, SAID = "words", "shown words", "key", "image", "folder", "said"

# Fields whose texts say which model, which method and which kind of answer.
_MODELS = {"model", "model_id", "lora_model", "base_model", "base_model_path", "source", "variant", "weight_name"}
_MODELS |= {"reference", "base", "kind"}
# As texts: their parts inside have fields of their own.
_BESIDE = {
    "loras",
    "vae",
    "upscale",
    "fallback",
    "controlnets",
    "ip_adapters",
    "embeddings",
    "hypernetworks",
    "refiner",
}
_METHODS = {"task", "scheduler", "sampler", "sampler_name", "schedule", "timestep_spacing", "prediction_type"}
_ANSWERS = {"format", "output_format", "response_format", "size", "quality", "background", "delivery", "type"}
_JOBS = {"action", "id", "policy", "traceparent", "webhook", "bucketName", "endpointUrl"}
# Models and methods in the words of other APIs.
_ELSEWHERE = {
    "version",
    "sd_model_checkpoint",
    "sd_vae",
    "upscaler_1",
    "hr_upscaler",
    "refiner_checkpoint",
    "sampler_index",
}
_ELSEWHERE |= {"aspect_ratio", "endpoint", "hr_checkpoint_name", "hr_sampler_name", "webhook_events_filter", "module"}
# What an operator writes into the history of versions and the choices between pairs, for whoever reads them.
_HISTORY = {"why", "alias", "at", "pair", "choice"}
PUBLIC = frozenset(_HISTORY | _ELSEWHERE | _MODELS | _BESIDE | _METHODS | _ANSWERS | _JOBS)
SHORTEST = 8  # shorter texts are found by chance
_BASE64_FROM = 120
_MUCH = 4_096  # of a text, by which it is known again
_DEEPEST, _MOST = 16, 2_000


def listen(tell: Tell) -> None:
    """Have `tell(kind, texts)` called for all that comes into this process's worker, whenever that is imported."""
    sys.meta_path.insert(0, _Finder(tell))
    for name, wrap in ENTRANCES.items():
        if name in sys.modules:
            wrap(sys.modules[name], tell)


def tell_payload(payload: object, tell: Tell) -> None:
    """Tell what is private in a job's input or in a request's body."""
    found: dict[str, list[str]] = {}
    words = SHOWN_WORDS if _wants_metadata(payload) else WORDS
    for count, (kind, text) in enumerate(_private(payload)):
        if count == _MOST:
            break
        found.setdefault(words if kind == WORDS else kind, []).append(text)
    for kind, texts in found.items():
        tell(kind, texts)


def _tell_request(request: Any, tell: Tell) -> None:
    """Tell what is private in a request that was read; there is nothing in what is none."""
    if hasattr(request, "model_dump"):
        tell_payload(request.model_dump(exclude={"task"}, exclude_none=True), tell)


def _private(value: object, *, public: bool = False, depth: int = 0) -> Iterator[tuple[str, str]]:
    if depth > _DEEPEST:
        return
    if isinstance(value, dict):
        for name, part in value.items():
            yield from _private(part, public=name in PUBLIC, depth=depth + 1)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _private(part, public=public, depth=depth + 1)
    elif isinstance(value, str) and len(value) >= SHORTEST:
        if value.startswith(("http://", "https://")):
            yield from ((KEY, text) for text in _keys_of_link(value))
        elif not public:
            is_base64 = len(value) >= _BASE64_FROM and " " not in value[:_BASE64_FROM]
            yield IMAGE if is_base64 else WORDS, value[:_MUCH]


def _keys_of_link(link: str) -> Iterator[str]:
    try:
        parts = urlsplit(link[:_MUCH])
        yield from (text for text in (parts.username, parts.password) if text)
        yield from (text for _, text in parse_qsl(parts.query))
    except ValueError:  # no link
        return


def _wants_metadata(payload: object) -> bool:
    """Whether the caller asks for files that say what they were drawn from."""
    output = payload.get("output") if isinstance(payload, dict) else None
    return isinstance(output, dict) and output.get("metadata") is True


def _tell_answer(answer: Any, tell: Tell) -> None:
    # As base64, which is how a log would hold them; of an answer without files nothing is private.
    sent = [
        (file.url or file.path or base64.b64encode(file.data[: _MUCH * 3 // 4]).decode())[:_MUCH]
        for file in getattr(answer, "files", ())
    ]
    tell(IMAGE, [text for text in sent if len(text) >= _BASE64_FROM])


def _tell_settings(settings: Any, tell: Tell) -> None:
    # A list of keys is as secret as each of them, and so is what stands behind a header's name.
    texts = [part for secret in settings.secrets for part in [secret, *secret.split(",")]]
    tell(KEY, [*texts, *(text.partition("=")[2] for text in texts), *(text.partition(":")[2] for text in texts)])
    tell(FOLDER, [str(Path(folder).absolute()) for folder in (settings.volume, settings.outputs_dir)])


# --- where -----------------------------------------------------------------------------------------------------------


def _operations(module: ModuleType, tell: Tell) -> None:
    perform = module.Operations.perform

    @functools.wraps(perform)
    async def heard(self: Any, job: Any, *args: Any, **named: Any) -> Any:
        _tell_request(job.request, tell)
        answer = await perform(self, job, *args, **named)
        _tell_answer(answer, tell)
        return answer

    module.Operations.perform = heard


def _inputs(module: ModuleType, tell: Tell) -> None:
    # What was handed in, as it was: also what is refused.
    _before(module, "decode_input", lambda payload, *_: tell_payload(payload, tell))


def _before(owner: Any, name: str, note: Callable[..., None]) -> None:
    """Have `note` see the arguments of each call of `owner`'s function `name`."""
    function = getattr(owner, name)

    @functools.wraps(function)
    def heard(*args: Any, **named: Any) -> Any:
        note(*args, **named)
        return function(*args, **named)

    setattr(owner, name, heard)


def _generation(module: ModuleType, tell: Tell) -> None:
    def note(service: object, request: Any, *_: Any, **__: Any) -> None:
        _tell_request(request, tell)

    _before(module.GenerationService, "accept", note)


def _job_store(module: ModuleType, tell: Tell) -> None:
    def note(store: object, job: Any, id: str, options: Any, *_: Any, **__: Any) -> None:
        _tell_request(job.request, tell)
        tell(KEY, [*_keys_of_link(options.webhook or "")])

    _before(module.JobStore, "submit", note)


def _context(module: ModuleType, tell: Tell) -> None:
    parse = module.parse_json

    @functools.wraps(parse)
    def heard(body: bytes) -> Any:
        value = parse(body)
        tell_payload(value, tell)
        return value

    module.parse_json = heard


def _app(module: ModuleType, tell: Tell) -> None:
    _before(module.Worker, "__init__", lambda worker, settings, *_, **__: _tell_settings(settings, tell))


def _client(module: ModuleType, tell: Tell) -> None:
    def note(client: object, endpoints: Any = None, **_: Any) -> None:
        tell(KEY, _texts((endpoints or {}).values()))

    _before(module.Client, "__init__", note)


def _keys(module: ModuleType, tell: Tell) -> None:
    _before(module.Keyring, "identify", lambda ring, key: tell(KEY, _texts([key])))


def _metrics(module: ModuleType, tell: Tell) -> None:
    exposition = module.Metrics.exposition

    @functools.wraps(exposition)
    def heard(self: Any) -> bytes:
        said: bytes = exposition(self)
        tell(SAID, [said.decode()])
        return said

    module.Metrics.exposition = heard


def _tracing(module: ModuleType, tell: Tell) -> None:
    # Spans are made of a record and of nothing else.
    _before(module.Tracing, "note", lambda tracing, record: tell(SAID, [repr(record)]))


def _texts(values: Iterable[object]) -> list[str]:
    return [value for value in values if isinstance(value, str)]


ENTRANCES: dict[str, Callable[[ModuleType, Tell], None]] = {
    "worker.app.build": _app,
    "worker.service.generation": _generation,
    "worker.service.operations": _operations,
    "worker.wire.request": _inputs,
    "worker.service.limits.api_keys": _keys,
    "worker.service.usage.metrics": _metrics,
    "worker.service.jobs.store": _job_store,
    "worker.service.usage.tracing": _tracing,
    "worker.net.client": _client,
    "worker.transport.web.context": _context,
}


class _Finder(importlib.abc.MetaPathFinder):
    """Wraps an entrance as soon as its module is there, before anybody can take a name out of it."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell

    def find_spec(
        self, fullname: str, path: Any = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        wrap = ENTRANCES.get(fullname)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path) if wrap else None
        if wrap is None or spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            wrap(module, self._tell)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
