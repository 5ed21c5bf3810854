"""Jobs with different LoRAs in one call: every image has the changes of its own job's, and of no other's.

A layer that any of the jobs changes gets one hook. It knows whose each row of its input is: a denoiser gets the images
of a call in their order, once or, with guidance, several times one after the other, and a text encoder the prompts. A
plain LoRA of a linear layer is then two thin products for all rows at once; every other change is made row by row.

Nothing is guessed. The denoiser's own input is compared with itself to see how often it has the images, and a layer
whose rows are anything else raises Unmixable: those jobs are then generated as if they had not met.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from worker.core.adapter import LoraFiles
from worker.core.job import Batch
from worker.core.result import LoraReport
from worker.engine.adapters.attaching import Placed, Weighted, by_target
from worker.engine.adapters.changes import LowRank
from worker.engine.adapters.targets import modules_of
from worker.engine.plan import resident_key

_MEMORY = 1_024


class Unmixable(Exception):
    """The jobs of this call cannot have their own LoRAs in it.

    `lasting` says whether that will be so next time: for the LoRAs of the sets `sets`, or for all.
    """

    def __init__(self, lasting: bool = True, sets: tuple[int, ...] = ()) -> None:
        super().__init__("these LoRAs cannot be mixed")
        self.lasting = lasting
        self.sets = sets


@dataclass(slots=True)
class Rows:
    """The rows of one call: whose each is, by the number of the job's set of LoRAs."""

    images: tuple[int, ...] = ()
    prompts: tuple[int, ...] = ()
    in_denoiser: int = 0  # rows of the denoiser's input, a multiple of the images; 0 as long as that is not known

    def owners(self, component: str, count: int) -> tuple[int, ...]:
        """Return whose each of `count` rows is; none where they are no images, or no prompts."""
        if component.startswith("text_encoder"):
            return self.prompts if count == len(self.prompts) else ()
        return self.images * (count // len(self.images)) if self.images and count == self.in_denoiser else ()


@dataclass(slots=True)
class Mixture:
    """The LoRAs of a batch whose jobs differ in them: its sets, which set is whose, and what they did.

    Used by one batch, in the engine's thread.
    """

    sets: tuple[tuple[LoraFiles, ...], ...]
    set_of: Mapping[str, int]  # job id -> number of its set
    reports: dict[str, tuple[LoraReport, ...]] = field(default_factory=dict)  # by the job's id
    notes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    rows: Rows = field(default_factory=Rows)

    @classmethod
    def of(cls, own_loras: Mapping[str, tuple[LoraFiles, ...]]) -> "Mixture":
        """Return the mixture of these jobs: those with the same LoRAs share a set."""
        numbers: dict[Hashable, int] = {}
        sets: list[tuple[LoraFiles, ...]] = []
        set_of = {}
        for job, loras in own_loras.items():
            key = tuple(map(key_of, loras))
            if key not in numbers:
                numbers[key] = len(sets)
                sets.append(loras)
            set_of[job] = numbers[key]
        return cls(tuple(sets), set_of)

    def is_one(self, jobs: Sequence[str]) -> bool:
        """True if these jobs have the same LoRAs: they are faster merged."""
        return len({self.set_of[job] for job in jobs}) == 1

    def note(self, reports: Sequence[tuple[LoraReport, ...]], notes: Sequence[tuple[str, ...]]) -> None:
        """Note for each set what came of it."""
        self.reports = {job: reports[number] for job, number in self.set_of.items()}
        self.notes = {job: notes[number] for job, number in self.set_of.items()}

    @contextmanager
    def calling(self, images: Sequence[str], prompts: Sequence[str]) -> Iterator[None]:
        """Say in which order a call has images and prompts, by the ids of their jobs."""
        self.rows.images = tuple(self.set_of[job] for job in images)
        self.rows.prompts = tuple(self.set_of[job] for job in prompts)
        self.rows.in_denoiser = 0
        try:
            yield
        finally:
            self.rows.images = self.rows.prompts = ()


class Mixable:
    """Which LoRAs can be in a call beside others, as far as it was tried. Used from the engine's thread only."""

    def __init__(self) -> None:
        self._never: set[Hashable] = set()

    def allows(self, batch: Batch) -> bool:
        """True unless it is known that the jobs' LoRAs cannot be mixed in this class of this model."""
        model = _place_of(batch)
        loras = {item.key for each in batch.own_loras.values() for item in each}
        return model not in self._never and not any((model, key) in self._never for key in loras)

    def note(self, batch: Batch, reason: Unmixable) -> None:
        """Note that they cannot."""
        if not reason.lasting:
            return
        if len(self._never) >= _MEMORY:
            self._never.clear()
        sets = Mixture.of(batch.own_loras).sets
        loras = {(_place_of(batch), item.key) for number in reason.sets for item in sets[number]}
        self._never |= loras or {_place_of(batch)}


def _place_of(batch: Batch) -> Hashable:
    call = batch.jobs[0].call
    return resident_key(call.spec, batch.files), call.pipeline


def key_of(adapter: LoraFiles) -> Hashable:
    """Return a key that is the same for the same changes of one pipeline."""
    spec = adapter.adapter.spec
    return adapter.key, spec.weight, tuple(sorted(spec.weights.items()))


@contextmanager
def mixed(pipe: Any, mixture: Mixture, changes: Sequence[Sequence[Placed]]) -> Iterator[None]:
    """Let the pipeline's modules add the changes of each set to its own images. `changes` are those of each set.

    Raises Unmixable for changes that are of no layer.
    """
    targets = [by_target(each) for each in changes]
    places = list(dict.fromkeys(place for each in targets for place in each))
    modules: dict[str, dict[str, nn.Module]] = {}
    for component, _ in places:
        if component not in modules:
            modules[component] = modules_of(getattr(pipe, component))
    bare = [place for place in places if place[1] not in modules[place[0]]]
    if bare:
        raise Unmixable(sets=tuple(number for number, each in enumerate(targets) if any(map(each.get, bare))))
    with ExitStack() as stack:
        for component in modules:
            if not component.startswith("text_encoder"):
                counting = _counting(mixture.rows)
                handle = getattr(pipe, component).register_forward_pre_hook(counting, with_kwargs=True)
                stack.callback(handle.remove)
        for component, path in places:
            parts = [each.get((component, path), []) for each in targets]
            module = modules[component][path]
            hook = _adding(component, mixture.rows, parts, _stacked(module, parts))
            stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
        yield


def _counting(rows: Rows) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
    """Return a hook that sees how often a denoiser's input has the images of the call.

    With guidance the latents come several times, all images first, then all of them again. Every image has its own
    noise: so where row i is the same as row i less the number of images, no other order is possible.
    """

    def count(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = args[0] if args else next((kwargs[name] for name in _LATENTS if name in kwargs), None)
        if not rows.images or not isinstance(given, Tensor | list):
            raise Unmixable
        size, images = len(given), len(rows.images)
        if size == rows.in_denoiser:
            return
        if size % images or any(not isinstance(item, Tensor) for item in given[:1]):
            raise Unmixable
        if any(not torch.equal(given[index], given[index % images]) for index in range(images, size)):
            raise Unmixable
        rows.in_denoiser = size

    return count


_LATENTS = ("hidden_states", "sample", "x", "latent_model_input")


@dataclass(frozen=True, slots=True)
class _Stack:
    """Plain LoRAs of one linear layer, one on the other: down (sets, rank, in) and up (sets, out, rank)."""

    down: Tensor
    up: Tensor

    def added(self, x: Tensor, y: Tensor, owners: Tensor) -> Tensor:
        """Return `y` plus the change of each row's own set."""
        down, up = (half[owners].to(y.dtype) for half in (self.down, self.up))
        rows, wide = x.shape[0], y.reshape(y.shape[0], -1, y.shape[-1])
        inner = torch.bmm(x.reshape(rows, -1, x.shape[-1]), down.transpose(1, 2))
        return torch.baddbmm(wide, inner, up.transpose(1, 2)).reshape(y.shape)


def _stacked(module: nn.Module, parts: Sequence[Sequence[Weighted]]) -> Callable[[Tensor], _Stack] | None:
    """Return what stacks the changes on the device of a tensor, once; None where they are not all plain LoRAs."""
    changes = [change for each in parts for change, _ in each]
    if not isinstance(module, nn.Linear) or not all(isinstance(each, LowRank) and each.is_plain for each in changes):
        return None
    made: list[_Stack] = []

    def stack(like: Tensor) -> _Stack:
        if not made or made[0].down.device != like.device:
            made[:] = [_stack(module, parts, like)]
        return made[0]

    return stack


def _stack(module: nn.Linear, parts: Sequence[Sequence[Weighted]], like: Tensor) -> _Stack:
    downs, ups = [], []
    for each in parts:
        halves = [(*change.halves(like), weight) for change, weight in each if isinstance(change, LowRank)]
        downs.append(torch.cat([like.new_zeros(0, module.in_features), *(down for down, _, _ in halves)]))
        ups.append(torch.cat([like.new_zeros(module.out_features, 0), *(up * weight for _, up, weight in halves)], 1))
        for change, _ in each:
            change.rest()  # they are in the stack now
    rank = max(map(len, downs))
    return _Stack(
        torch.stack([pad(down, (0, 0, 0, rank - len(down))) for down in downs]),
        torch.stack([pad(up, (0, rank - up.shape[1])) for up in ups]),
    )


def _adding(
    component: str, rows: Rows, parts: Sequence[Sequence[Weighted]], stacked: Callable[[Tensor], _Stack] | None
) -> Callable[..., Tensor | None]:
    """Return a hook that adds to each row of a module's output the changes of its own set."""
    inside = False
    indices: dict[tuple[object, ...], list[Tensor]] = {}

    def add(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], y: Tensor) -> Tensor | None:
        nonlocal inside
        if inside:  # a change asks the module itself
            return None
        x = args[0] if args else next(iter(kwargs.values()))
        owners = rows.owners(component, x.shape[0] if x.ndim else 0)
        if not owners or y.shape[:1] != x.shape[:1]:
            # Weighted prompts are encoded before the call, each by itself: that is not for ever.
            raise Unmixable(bool(rows.images), tuple(number for number, each in enumerate(parts) if each))
        if x.is_floating_point() and x.dtype != y.dtype:
            x = x.to(y.dtype)
        key = owners, y.device
        if key not in indices:
            whose = torch.tensor(owners, device=y.device)
            each = [(whose == number).nonzero().flatten() for number in range(len(parts))]
            indices[key] = each if stacked is None else [whose]
        if stacked is not None:
            return stacked(y).added(x, y, indices[key][0])
        inside = True
        try:
            return _by_owner(module, x, y, indices[key], parts)
        finally:
            inside = False

    return add


def _by_owner(
    module: nn.Module, x: Tensor, y: Tensor, rows: Sequence[Tensor], parts: Sequence[Sequence[Weighted]]
) -> Tensor:
    """Return `y` with the changes of each set added to its own rows."""
    total = y.clone()
    for own, changes in zip(rows, parts, strict=True):
        if not changes or not len(own):
            continue
        its_x, its_y = x[own], y[own]
        result = its_y
        for change, weight in changes:
            result = torch.add(result, change.added(module, its_x, its_y), alpha=weight)
        total[own] = result
    return total
