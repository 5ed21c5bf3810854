"""Finders of parts of an image: faces, or what a detector file of the operator's was made for.

Both libraries read plain numbers and no code. `faces` is scikit-image's cascade of local binary patterns, whose file
comes with it; a `.xml` is another cascade of that form. A `.onnx` is a YuNet, which OpenCV runs. The two are imported
where they are used: few workers have a recipe that needs them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from worker.core.errors import LoadFailed
from worker.core.image import Raster
from worker.media.images import to_pil
from worker.media.regions import Box

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FACES = "faces"
_SIDE = 512  # pixels of the longer side that a cascade looks at: it takes seconds for more
_SMALLEST = 1 / 16  # of the shorter side
_SCORE = 0.6  # of a YuNet, from which its authors draw a face
_NO_LIBRARY = (
    "finding {} needs scikit-image, which is not installed; install it, name a YuNet by find: file:NAME.onnx, or give "
    "regions by hand."
)


class Detector:
    """One detector, opened. Raises LoadFailed, with the fix, for one that cannot be used here."""

    def __init__(self, find: str) -> None:
        path = Path(find.removeprefix("file:"))
        if find != FACES and not path.is_file():
            raise _unusable(f"there is no detector {path.name}; put the file there, or give regions by hand.")
        self._cascade: Any = None if path.suffix == ".onnx" else _cascade(find, path)
        self._net: Any = _yunet(path) if path.suffix == ".onnx" else None

    def boxes(self, image: Raster, at_most: int) -> list[Box]:
        """Return what is found, the largest first. Of two that lie in one another the larger one is kept."""
        import numpy as np

        scale = min(1.0, _SIDE / max(image.width, image.height)) if self._net is None else 1.0
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        pixels = np.asarray(to_pil(image).convert("RGB").resize(size, Image.Resampling.BILINEAR))
        found = self._by_net(pixels) if self._net is not None else self._by_cascade(pixels)
        boxes: list[Box] = []
        for box in sorted(found, key=lambda each: (-each[2] * each[3], each)):
            here = _scaled(box, image, size)
            if here.width > 0 and here.height > 0 and not any(each.holds_centre_of(here) for each in boxes):
                boxes.append(here)
        return boxes[:at_most]

    def _by_cascade(self, pixels: NDArray[np.uint8]) -> list[tuple[float, ...]]:
        shorter = min(pixels.shape[:2])
        least = max(24, round(shorter * _SMALLEST))
        if shorter < least:
            return []
        found = self._cascade.detect_multi_scale(
            img=pixels, scale_factor=1.2, step_ratio=1, min_size=(least, least), max_size=(shorter, shorter)
        )
        return [tuple(float(each[name]) for name in ("c", "r", "width", "height")) for each in found]

    def _by_net(self, pixels: NDArray[np.uint8]) -> list[tuple[float, ...]]:
        self._net.setInputSize((pixels.shape[1], pixels.shape[0]))
        found = self._net.detect(pixels[..., ::-1].copy())[1]  # which reads blue first
        return [] if found is None else [tuple(map(float, each[:4])) for each in found]


def _scaled(box: tuple[float, ...], image: Raster, size: tuple[int, int]) -> Box:
    """Return a left, top, width and height in an image of `size` as a box of `image`, within it."""
    left, top, width, height = box
    across, down = image.width / size[0], image.height / size[1]
    return Box(
        max(0, round(left * across)),
        max(0, round(top * down)),
        min(image.width, round((left + width) * across)),
        min(image.height, round((top + height) * down)),
    )


def _cascade(find: str, path: Path) -> Any:
    try:
        from skimage.data import lbp_frontal_face_cascade_filename
        from skimage.feature import Cascade
    except ImportError:
        raise _unusable(_NO_LIBRARY.format(FACES if find == FACES else f"by {path.name}")) from None
    try:
        return Cascade(lbp_frontal_face_cascade_filename() if find == FACES else str(path))
    except Exception:  # its reader raises anything on another file
        raise _unusable(f"{path.name} is no cascade of local binary patterns; name another file.") from None


def _yunet(path: Path) -> Any:
    import cv2

    try:
        return cv2.FaceDetectorYN.create(str(path), "", (320, 320), _SCORE)
    except cv2.error:
        raise _unusable(f"{path.name} is no YuNet that OpenCV reads; name another file.") from None


def _unusable(sentence: str) -> LoadFailed:
    return LoadFailed(sentence, field="detail.find")
