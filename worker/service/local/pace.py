"""How many images a call should have: learnt from the calls that were made, so that a batch never lowers throughput.

A call of more images is faster for each of them where one image leaves the device idle, and slower where it does not.
Which it is depends on the model, the size and the device. So the seconds of calls of one kind are remembered by their
number of images; the number is taken at which images come fastest. What was learnt of one size is the first guess for
another one of the same model: a budget of pixels for a call.
"""

from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

# Of calls of one kind and number, the fastest of the last few counts: what disturbs makes them slower, never faster.
LAST = 5
# So many calls of one number, and another number is tried, to compare.
_ENOUGH = 3
# Fewer images in a call are preferred where more gain less than this: each of them waits for all.
_GAIN = 1.02
MEMORY = 256


@dataclass(frozen=True, slots=True)
class CallKind:
    """What calls have in common that take equally long for one image. `pixels` are those of one image."""

    model: str
    work: str
    pixels: int


@dataclass(frozen=True, slots=True)
class Pace:
    """What is known of one kind of calls of a model: seconds for one image, by the number of images in the call."""

    work: str
    pixels: int
    seconds: Mapping[int, Sequence[float]]


@dataclass(slots=True)
class _Seen:
    """Seconds for one image, by the number of images in the call. The first call of each number is a warm-up."""

    seconds: dict[int, deque[float]] = field(default_factory=dict)
    warmed: set[int] = field(default_factory=set)

    def add(self, images: int, seconds: float) -> None:
        if images not in self.warmed:
            self.warmed.add(images)
            return
        self.seconds.setdefault(images, deque(maxlen=LAST)).append(seconds / images)

    @property
    def best(self) -> int:
        """The fewest images with which each is about as fast as with any number."""
        fastest = min(min(seconds) for seconds in self.seconds.values())
        return min(images for images, seconds in self.seconds.items() if min(seconds) <= fastest * _GAIN)

    def most(self, bound: int) -> int:
        """Return the number of images to take next: the best, or another one that is not known enough."""
        if not self.seconds:
            return bound
        best = self.best
        if len(self.seconds[best]) >= _ENOUGH:
            for other in (best // 2, min(2 * best, bound)):
                if other and other != best and len(self.seconds.get(other, ())) < _ENOUGH:
                    return other
        return best


class Paces:
    """What was learnt of calls. Pure: no clock, no engine."""

    def __init__(self) -> None:
        self._seen: OrderedDict[CallKind, _Seen] = OrderedDict()
        self._budgets: dict[str, int] = {}

    def note(self, kind: CallKind, images: int, seconds: float) -> None:
        """Note a call that came to its end, with all of its images."""
        seen = self._seen.setdefault(kind, _Seen())
        seen.add(images, seconds)
        self._bound(kind, seen)

    def _bound(self, kind: CallKind, seen: _Seen) -> None:
        self._seen.move_to_end(kind)
        if len(self._seen) > MEMORY:
            self._seen.popitem(last=False)
        if len(seen.seconds) > 1:
            self._budgets[kind.model] = seen.best * kind.pixels

    def known(self, model: str) -> tuple[Pace, ...]:
        """Return all that is known of a model, the last used last."""
        return tuple(
            Pace(kind.work, kind.pixels, {images: tuple(each) for images, each in seen.seconds.items()})
            for kind, seen in self._seen.items()
            if kind.model == model and seen.seconds
        )

    def take_in(self, model: str, paces: Sequence[Pace]) -> None:
        """Take in what other workers, or earlier ones, have learnt of a model. What is known here stays."""
        for pace in paces:
            kind = CallKind(model, pace.work, pace.pixels)
            seen = self._seen.setdefault(kind, _Seen())
            for images, seconds in pace.seconds.items():
                seen.seconds.setdefault(images, deque(seconds, maxlen=LAST))
            self._bound(kind, seen)

    def budget(self, model: str) -> int | None:
        """Return the pixels that a call of this model should have; None as long as that is not known."""
        return self._budgets.get(model)

    def of(self, kind: CallKind, images: int) -> float | None:
        """Return the seconds for one image of `images` in a call: of the next smaller number that is known enough."""
        seen = self._seen.get(kind)
        known = {} if seen is None else {count: each for count, each in seen.seconds.items() if len(each) >= _ENOUGH}
        if not known:
            return None
        return min(known[max((count for count in known if count <= images), default=min(known))])

    def most(self, kind: CallKind, bound: int) -> int:
        """Return how many images the next call of this kind should have, from 1 to `bound`."""
        seen = self._seen.get(kind)
        if seen is not None and seen.seconds:
            return max(1, min(bound, seen.most(bound)))
        budget = self.budget(kind.model)
        return bound if budget is None else max(1, min(bound, budget // max(1, kind.pixels)))
