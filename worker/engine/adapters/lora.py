"""LoRAs of every kind for the length of one job: matched to the pipeline, verified, added, and taken off again.

A LoRA is not loaded into the model. Plain layers point to copies with its changes in them while the job runs
(`merging.py`), and the others get a forward hook that adds the change to their output (`attaching.py`). Chosen over
diffusers' `load_lora_weights` and over peft's injection, which both replace the modules themselves:

- The model's weights and its module tree are never written. So removal is exact, whatever happened in between, and
  switching costs microseconds a layer.
- One way serves every algorithm, any mixture of them, and pipelines that have no LoRA loader. peft has a class for
  LoRA, LoHa and LoKr each, wraps them around one another, scales DoRA so that weight 0 is not "none", and has none for
  whole differences, norms, IA3, GLoRA and column-normed DoRA.
- Offloaded and quantized weights work as they are: nothing needs them but algorithms that are defined by them.

The price of copies is memory, within a budget; that of hooks one or two thin products per changed layer and step.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import starmap
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn

from worker.core.adapter import LoraFiles
from worker.core.errors import CorruptFile, IncompatibleAdapter, UnsupportedModel
from worker.core.model import LoraSpec
from worker.core.result import LoraReport
from worker.engine.adapters.adapter_cache import AdapterCache, AdapterCaches, denoiser_of
from worker.engine.adapters.attaching import Placed, attached
from worker.engine.adapters.embeddings import Word, embedded
from worker.engine.adapters.host import Effect, Host
from worker.engine.adapters.matching import DENOISERS, MatchedLora, match_lora
from worker.engine.adapters.merging import MergeCache
from worker.engine.adapters.mixing import Mixture, Unmixable, key_of, mixed
from worker.engine.weight_file import mapped_tensors

# Below this share of matched modules a LoRA was made for something else: every silent no-op has matched none.
MINIMUM_MATCH = 0.95
_SAMPLES = 3
_KINDS = 6


def _report(adapter: LoraFiles, matched: MatchedLora) -> LoraReport:
    return LoraReport(
        model=adapter.model,
        weight=adapter.adapter.spec.weight,
        matched=matched.matched,
        total=matched.total,
        sha256=adapter.sha256,
        algorithm=adapter.keys.algorithm,
        unmatched=tuple(matched.lost[:_SAMPLES]),
        trigger_words=adapter.trigger_words,
    )


def _notes(adapter: LoraFiles, matched: MatchedLora) -> Iterator[str]:
    """Yield a warning of the layers that another variant of the model's family has, and this one does not."""
    if not matched.absent:
        return
    kinds = list(dict.fromkeys(re.sub(r"\d+", "N", name) for name in matched.absent))
    more = " …" if len(kinds) > _KINDS else ""
    yield (
        f"loras: {adapter.model} was trained for a variant with more layers: {len(matched.absent)} of its "
        f"{matched.core_total} are no part of this model and were left out ({', '.join(kinds[:_KINDS])}{more})."
    )


class LoraCache:
    """The LoRAs of all resident pipelines. Used from the engine's thread only.

    Each pipeline keeps the last `capacity` of its LoRAs, by their files' content, ready to be hooked in again; they are
    dropped with the pipeline. With 0 nothing is kept. `merges` keeps the copies of weights with LoRAs in them.
    """

    def __init__(self, capacity: int, merges: MergeCache | None = None) -> None:
        self._caches: AdapterCaches[MatchedLora] = AdapterCaches(capacity)
        self._merges = merges or MergeCache(capacity)

    @contextmanager
    def applied(self, host: Host, adapters: Sequence[LoraFiles]) -> Iterator[Effect]:
        """Put `adapters` on the pipeline, yield a report of each one's match, and take them off whatever happens.

        Their changes add up, in any order and mixture. Those of the host's own mixture are put on where there is one.
        Raises IncompatibleAdapter when fewer than 95 % of a LoRA's
        denoiser modules find their place: a LoRA that does nothing is an error, never a warning.
        """
        pipe, model = host.pipe, host.model
        denoiser = denoiser_of(pipe)
        if denoiser is None:
            raise UnsupportedModel(
                f"{model} takes no loras: {type(pipe).__name__} has no UNet or transformer; leave loras out.",
                field="loras",
            )
        with self._caches.opened(denoiser) as cache:
            if host.mixture is not None:
                with _mixed(cache, pipe, host.mixture, model):
                    yield Effect()
                return
            residents = [_resident(cache, pipe, adapter, model) for adapter in adapters]
            changes = placed(adapters, residents)
            key = tuple(key_of(adapter) for adapter in adapters)
            with ExitStack() as stack:
                others = stack.enter_context(
                    self._merges.applied(pipe, denoiser, key, changes, room=host.room, check=host.check)
                )
                stack.enter_context(attached(pipe, others))
                for adapter, resident in zip(adapters, residents, strict=True):
                    words = [Word(text, parts, adapter.model) for text, parts in resident.embeddings.items()]
                    stack.enter_context(embedded(pipe, words, "loras"))
                notes = [note for pair in zip(adapters, residents, strict=True) for note in _notes(*pair)]
                yield Effect([*map(_report, adapters, residents)], notes=notes)


@contextmanager
def _mixed(cache: AdapterCache[MatchedLora], pipe: Any, mixture: Mixture, model: str) -> Iterator[None]:
    """Let every image of the call have the LoRAs of its own job. Raises Unmixable where that cannot be."""
    residents = [[_resident(cache, pipe, adapter, model) for adapter in adapters] for adapters in mixture.sets]
    if any(resident.embeddings for each in residents for resident in each):
        raise Unmixable
    pairs = [[*zip(*pair, strict=True)] for pair in zip(mixture.sets, residents, strict=True)]
    mixture.note(
        [tuple(starmap(_report, each)) for each in pairs],
        [tuple(note for pair in each for note in _notes(*pair)) for each in pairs],
    )
    with mixed(pipe, mixture, [placed(*pair) for pair in zip(mixture.sets, residents, strict=True)]):
        yield


def placed(adapters: Sequence[LoraFiles], residents: Sequence[MatchedLora]) -> list[Placed]:
    """Return the changes of these LoRAs, each with the job's weight for its module."""
    return [
        (component, path, change, _weight(adapter.adapter.spec, component, path))
        for adapter, resident in zip(adapters, residents, strict=True)
        for component, path, change in resident.changes
    ]


def _resident(cache: AdapterCache[MatchedLora], pipe: Any, adapter: LoraFiles, model: str) -> MatchedLora:
    _check_weights(adapter.adapter.spec, pipe)
    return cache.take(adapter.key, partial(match, pipe, adapter, model))


def match(pipe: Any, adapter: LoraFiles, model: str) -> MatchedLora:
    """Return the changes of a LoRA in `pipe`. Raises IncompatibleAdapter, CorruptFile, UnsupportedModel."""
    matched = match_lora(pipe, adapter.keys, read_tensors(adapter), adapter.scaling)
    _verify(matched, adapter, model)
    return matched


def read_tensors(adapter: LoraFiles) -> dict[str, Tensor]:
    """Return a file's tensors. Raises CorruptFile."""
    try:
        tensors = mapped_tensors(adapter.files.root)
    except (SafetensorError, OSError) as error:
        raise CorruptFile(
            f"LoRA {adapter.model} cannot be read ({type(error).__name__}); fetch it again.", field="loras"
        ) from None
    return tensors


def _verify(matched: MatchedLora, adapter: LoraFiles, model: str) -> None:
    if matched.core_total == 0 and matched.embeddings:
        return
    if matched.core_matched and matched.core_matched >= MINIMUM_MATCH * (matched.core_total - len(matched.absent)):
        return
    samples = matched.lost[:_SAMPLES]
    raise IncompatibleAdapter(
        f"LoRA {adapter.model} finds {matched.core_matched} of its {matched.core_total} layers in {model}, fewer "
        f"than {MINIMUM_MATCH:.0%} (not: {'; '.join(samples)}); use a LoRA trained for this model's family.",
        field="loras",
        details={
            "matched": matched.core_matched,
            "total": matched.core_total,
            "samples": samples,
            "algorithm": adapter.keys.algorithm,
        },
    )


def _weight(spec: LoraSpec, component: str, path: str) -> float:
    """Return the job's weight for one module: that of the longest name in `weights` that it lies below."""
    full_path = f"{component}.{path}."
    matches = [name for name in spec.weights if full_path.startswith(f"{name}.")]
    return spec.weights[max(matches, key=len)] if matches else spec.weight


def _check_weights(spec: LoraSpec, pipe: Any) -> None:
    components = {name: part for name, part in pipe.components.items() if isinstance(part, nn.Module)}
    for name in spec.weights:
        component, _, path = name.partition(".")
        try:
            components[component].get_submodule(path)
        except (KeyError, AttributeError):
            choices = [part for part in components if part in DENOISERS or part.startswith("text_encoder")]
            raise IncompatibleAdapter(
                f"loras: weights of {spec.model} names {name}, which this model does not have; "
                f"its components are {', '.join(choices)}, with their modules below them.",
                field="loras",
            ) from None
