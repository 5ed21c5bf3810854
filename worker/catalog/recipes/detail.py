"""A step that draws parts of an image again, each by itself and larger than it is: faces, or what is named by hand.

Each part is a job of inpainting like any other, and put back before the next one is cut out.
"""

from typing import Annotated, Self

from pydantic import Field, model_validator

from worker.catalog.classes.annotations import Schema
from worker.core.model import Parsed

MAX_REGIONS = 16
FACES = "faces"
LOCAL = "file:"
# What finds parts: a detector by name, or the operator's own file for one of the two libraries.
ENDINGS = (".onnx", ".xml")
_SIDE = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Region = tuple[_SIDE, _SIDE, _SIDE, _SIDE]
REGIONS_SCHEMA: Schema = {
    "type": "array",
    "minItems": 1,
    "maxItems": MAX_REGIONS,
    "items": {
        "type": "array",
        "minItems": 4,
        "maxItems": 4,
        "items": {"type": "number", "minimum": 0, "maximum": 1},
    },
}


class Detail(Parsed):
    """Which parts of an image are drawn again, and how they are cut out and put back.

    `regions` are left, top, right and bottom as shares of the image's sides, so that they hold at any size; where they
    are left out `find` finds them, the largest first. `padding` and `feather` are shares of a part's longer side: the
    surroundings that its model sees, and the seam in which it becomes the image again.
    """

    find: str | None = Field(default=None, max_length=512)
    regions: tuple[Region, ...] = Field(default=(), max_length=MAX_REGIONS)
    at_most: int = Field(default=4, ge=1, le=MAX_REGIONS)
    padding: float = Field(default=0.25, ge=0, le=2, allow_inf_nan=False)
    feather: float = Field(default=0.1, ge=0, le=0.5, allow_inf_nan=False)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.find is None and not self.regions:
            raise ValueError("needs regions, or find: faces")
        for left, top, right, bottom in self.regions:
            if left >= right or top >= bottom:
                raise ValueError("has a region without an inside; write each as left, top, right, bottom")
        if self.feather > self.padding:
            raise ValueError("has a feather wider than its padding, which it lies in; write a larger padding")
        if self.find is not None and self.find != FACES and not self.is_file:
            raise ValueError("finds faces, or what a detector of the operator's does: file:NAME.onnx or file:NAME.xml")
        return self

    @property
    def is_file(self) -> bool:
        """True if `find` names a file of the operator's."""
        return self.find is not None and self.find.startswith(LOCAL) and self.find.endswith(ENDINGS)

    @property
    def most(self) -> int:
        """The most parts that are drawn again."""
        return len(self.regions) or self.at_most
