"""Which of several GPUs each component of a model is on, and what each of them needs: pure, without torch."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from worker.core.call import KnownModel
from worker.core.device import Card, DeviceInfo, DeviceMap
from worker.core.errors import UnsupportedModel
from worker.core.model import DENOISERS, Kind
from worker.core.precision import Quantizer, is_encoder

GIB = 2**30
HOME = 0
"""The GPU that a job's latents, the denoiser and the adapters are on."""
# Weights that move from GPU to GPU as plain tensors do.
MOVABLE: frozenset[Quantizer] = frozenset({"casting", "gguf"})
_WHOLE_FILE = "model"  # all that one file has, whose parts are not counted apart
_AT_HOME = frozenset({_WHOLE_FILE, "vae", "vqvae", "vqgan", "movq", "audio_vae", "vocoder"})
_READERS = frozenset({"image_encoder", "safety_checker"})


@dataclass(frozen=True, slots=True)
class Beside:
    """Bytes beside weights: of a GPU that computes images, of every GPU, and of adapters, which are on the first."""

    working: int
    overhead: int
    adapters: int = 0


@dataclass(frozen=True, slots=True)
class Layout:
    """The GPU of each component, and the bytes that each GPU needs.

    Before a repository is here its components are not counted: `cards` is empty, and the bytes are of all together.
    """

    cards: Mapping[str, int] = field(default_factory=dict)
    needed: tuple[int, ...] = ()

    def shortage(self, cards: Sequence[Card]) -> str | None:
        """Return what is too large for the free memory, with the numbers; None where all fits."""
        if not self.cards:
            needed, free = sum(self.needed), sum(card.free_bytes for card in cards)
            text = f"needs {needed / GIB:.1f} GiB on {len(cards)} GPUs, which have {free / GIB:.1f} GiB free together"
            return text if needed > free else None
        for number, (needed, card) in enumerate(zip(self.needed, cards, strict=False)):
            if needed > card.free_bytes:
                return (
                    f"needs {needed / GIB:.1f} GiB on GPU {number} for {self._on(number)}, and {card.name} has "
                    f"{card.free_bytes / GIB:.1f} GiB free"
                )
        return None

    def reason(self, cards: Sequence[Card]) -> str:
        """Return the sentence that says what is where, and why."""
        if not self.cards:
            return f"spread over {len(cards)} GPUs, as device_map says, once each component is counted"
        places = [
            f"{self._on(number)} on GPU {number} ({needed / GIB:.1f} of {cards[number].free_bytes / GIB:.1f} GiB free)"
            for number, needed in enumerate(self.needed)
        ]
        return f"spread as device_map says: {'; '.join(places)}"

    def _on(self, number: int) -> str:
        return ", ".join(sorted(name for name, place in self.cards.items() if place == number)) or "nothing"


def count_of(wanted: DeviceMap) -> int:
    """Return how many GPUs a map needs at least."""
    return 2 if isinstance(wanted, str) else 1 + max(wanted.values(), default=HOME)


def check_cards(model: KnownModel, wanted: DeviceMap, device: DeviceInfo) -> None:
    """Raise UnsupportedModel where a model, or this worker, does not go with its `device_map`."""
    what = f"device_map of {model.spec.id} (models.yaml)"
    kind = "an upscaler" if model.detection.kind is Kind.UPSCALER else None
    kind = "a modular pipeline" if model.detection.format == "modular" else kind
    if kind is not None:
        raise UnsupportedModel(f"{what}: {kind} is not spread over several GPUs; remove device_map.", field="model")
    if len(device.cards) < count_of(wanted):
        raise UnsupportedModel(
            f"{what} needs {count_of(wanted)} GPUs and this process has {len(device.cards)}; give it more (each of "
            "several API_WORKERS has one), or remove device_map.",
            field="model",
        )


def lay_out(
    wanted: DeviceMap, components: Mapping[str, int], packed: Collection[str], beside: Beside, cards: Sequence[Card]
) -> Layout:
    """Return where each component is, of these bytes each; those `packed` stay on the first GPU.

    Raises UnsupportedModel for a map of what the model does not have, or that moves what is packed.
    """
    if isinstance(wanted, str):
        placed = _balanced(components, packed, beside, cards)
    else:
        placed = _as_asked(wanted, components, packed)
    needed = [beside.overhead] * (1 + max(placed.values(), default=HOME))
    needed[HOME] += beside.working + beside.adapters
    for name, number in placed.items():
        needed[number] += components.get(name, 0)
    for number in {number for name, number in placed.items() if number != HOME and _computes_images(name)}:
        needed[number] += beside.working
    return Layout(placed, tuple(needed))


def _as_asked(wanted: Mapping[str, int], components: Mapping[str, int], packed: Collection[str]) -> dict[str, int]:
    unknown = sorted(wanted.keys() - components.keys())
    if unknown and _WHOLE_FILE not in components:
        raise UnsupportedModel(
            f"device_map names {', '.join(unknown)[:200]}, which this model does not have; its components with "
            f"weights are {', '.join(sorted(components))[:500]}.",
            field="model",
        )
    moved = sorted(name for name in packed if wanted.get(name, HOME) != HOME)
    if moved:
        raise UnsupportedModel(
            f"device_map moves {', '.join(moved)[:200]}, whose weights are stored quantized and do not move between "
            "GPUs; leave it on GPU 0, or use plain weights.",
            field="model",
        )
    return {name: wanted.get(name, HOME) for name in [*components, *unknown]}


def _balanced(
    components: Mapping[str, int], packed: Collection[str], beside: Beside, cards: Sequence[Card]
) -> dict[str, int]:
    """Keep the denoiser, and what decodes, on the first GPU; of the others the largest goes where most is left."""
    main = next((name for name in (*DENOISERS, "prior") if name in components), None)
    home = {*_AT_HOME, *packed, main or max(components, key=lambda name: components[name])}
    placed = {name: HOME for name in components if name in home}
    room = [card.free_bytes - beside.overhead for card in cards]
    room[HOME] -= beside.working + beside.adapters + sum(components[name] for name in placed)
    for name in sorted(components.keys() - placed.keys(), key=lambda name: (-components[name], name)):
        placed[name] = max(range(len(room)), key=lambda number: (room[number], -number))
        room[placed[name]] -= components[name]
    return placed


def _computes_images(name: str) -> bool:
    return not (is_encoder(name) or name in _READERS)
