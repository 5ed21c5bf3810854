"""The scorers by their names: one row each."""

from collections.abc import Callable, Iterable

from image_client.clip import ClipScorer
from image_client.errors import InvalidRequest
from image_client.scoring import Exposure, NearDuplicate, Nsfw, Scorer, Sharpness

# Those that need neither a model nor a device.
BUILT_IN: dict[str, Callable[[], Scorer]] = {
    "sharpness": Sharpness,
    "exposure": Exposure,
    "near_duplicate": NearDuplicate,
    "nsfw": Nsfw,
}
SCORERS: dict[str, Callable[[], Scorer]] = {**BUILT_IN, "clip": ClipScorer}


def scorers_named(names: Iterable[str]) -> list[Scorer]:
    """Return new scorers; raises InvalidRequest for a name that is none."""
    scorers = []
    for name in names:
        if name not in SCORERS:
            raise InvalidRequest(f"{name!r} is no score: known are {', '.join(SCORERS)}.")
        scorers.append(SCORERS[name]())
    return scorers
