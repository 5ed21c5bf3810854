"""Scores of images: numbers by which they are sorted out before somebody looks at them.

`sharpness`       variance of the Laplacian of the grey image at 512 pixels; 0 is one colour, small is blurred
`exposure`        share of pixels that are neither black nor white, 0 to 1
`near_duplicate`  likeness to the likest earlier image of the batch, 0 to 1, by the gradients of 9×8 pixels
`nsfw`            what the worker's safety checker said of the image, 0 to 1, where its operator has one
`clip`            how well the image fits its prompt, about 0 to 1 (the extra `clip`, see image_client.clip)

The first three need Pillow, the extra `pil`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pydantic import JsonValue

from image_client.errors import ImageClientError
from image_client.ledger import Record

if TYPE_CHECKING:
    from PIL.Image import Image as PillowImage

_SIDE = 512  # pixels of the longer side: scores of images of different sizes can be compared
_DARKEST, _BRIGHTEST = 4, 251  # of 255: what counts as black and white


class ScoringError(ImageClientError):
    """An image could not be scored."""

    code = "scoring"


@dataclass(slots=True)
class Candidate:
    """An image to be scored: its lineage and its file."""

    record: Record
    path: Path
    _pixels: "PillowImage | None" = field(default=None, repr=False)

    @property
    def pixels(self) -> "PillowImage":
        """The image; raises ScoringError without Pillow, or for a file that is none."""
        if self._pixels is None:
            self._pixels = _opened(self.path)
        return self._pixels

    def grey(self) -> "PillowImage":
        """Return the image in grey, its longer side 512 pixels at most."""
        grey = self.pixels.convert("L")
        grey.thumbnail((_SIDE, _SIDE))
        return grey


class Scorer(Protocol):
    """Anything that gives an image a number under a name. It sees the images of a batch in order, each once."""

    @property
    def name(self) -> str:
        """The name of the score."""

    def score(self, candidate: Candidate) -> float | None:
        """Return the score, None where there is none to give."""


class Sharpness:
    """How much there is of fine detail."""

    name = "sharpness"

    def score(self, candidate: Candidate) -> float:
        """Return the variance of the Laplacian."""
        grey = candidate.grey()  # says what to install where there is no Pillow
        from PIL import ImageFilter, ImageStat

        if min(grey.size) < 3:
            return 0.0
        laplacian = ImageFilter.Kernel((3, 3), (0, 1, 0, 1, -4, 1, 0, 1, 0), scale=2, offset=128)
        inner = grey.filter(laplacian).crop((1, 1, grey.width - 1, grey.height - 1))
        return float(ImageStat.Stat(inner).var[0]) * 4  # halved above, so that few values are cut off


class Exposure:
    """How much of the image is neither black nor white."""

    name = "exposure"

    def score(self, candidate: Candidate) -> float:
        """Return the share."""
        counts = candidate.grey().histogram()
        return sum(counts[_DARKEST : _BRIGHTEST + 1]) / max(1, sum(counts))


class NearDuplicate:
    """How much the image is like an earlier one."""

    name = "near_duplicate"

    def __init__(self) -> None:
        self._hashes: list[int] = []

    def score(self, candidate: Candidate) -> float:
        """Return the likeness to the likest of those that were scored before."""
        grey = candidate.grey()
        from PIL import Image

        tiny = grey.resize((9, 8), Image.Resampling.BOX).tobytes()
        bits = 0
        for row in range(8):
            for column in range(8):
                bits = bits << 1 | (tiny[row * 9 + column] < tiny[row * 9 + column + 1])
        likest = max((1 - (bits ^ other).bit_count() / 64 for other in self._hashes), default=0.0)
        self._hashes.append(bits)
        return likest


class Nsfw:
    """What the worker's safety checker said when it drew the image."""

    name = "nsfw"

    def score(self, candidate: Candidate) -> float | None:
        """Return the score that came with the image."""
        return candidate.record.scores.get(self.name)


@dataclass(frozen=True, slots=True)
class Rule:
    """An image whose score is below `least` or above `most` is rejected."""

    name: str
    least: float | None = None
    most: float | None = None

    def reason(self, scores: dict[str, float]) -> str | None:
        """Return why an image is rejected, None where it is not, or has no such score."""
        score = scores.get(self.name)
        if score is None:
            return None
        if self.least is not None and score < self.least:
            return f"{self.name} {score:.3g} is below {self.least:g}"
        if self.most is not None and score > self.most:
            return f"{self.name} {score:.3g} is above {self.most:g}"
        return None


def scores_of(candidate: Candidate, scorers: Sequence[Scorer]) -> dict[str, float]:
    """Return the scores of an image; those that it had stay."""
    new = {scorer.name: scorer.score(candidate) for scorer in scorers}
    return candidate.record.scores | {name: round(score, 4) for name, score in new.items() if score is not None}


def told_by_worker(raw: JsonValue) -> dict[str, float]:
    """Return the `nsfw` score in the answer of a worker of ours, where its operator has a safety checker."""
    output = raw.get("output") if isinstance(raw, dict) else None
    verdicts = output.get("safety") if isinstance(output, dict) else None
    first = verdicts[0] if isinstance(verdicts, list) and verdicts else None
    score = first.get("score") if isinstance(first, dict) else None
    return {"nsfw": float(score)} if isinstance(score, int | float) else {}


def _opened(path: Path) -> "PillowImage":
    try:
        from PIL import Image
    except ImportError as error:
        raise ScoringError("Pillow is missing: pip install 'universal-image-client[pil]'.") from error
    try:
        with Image.open(path) as image:
            image.load()
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ScoringError(f"{path} cannot be read as an image: put it back, or reject it.") from error
