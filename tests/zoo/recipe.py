"""What the zoo knows of one pipeline class: how to build it tiny, and what a caller would ask of it."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import diffusers
import numpy as np
import PIL.Image


@dataclass(frozen=True)
class Image:
    """An image that a caller sends: a colour gradient, mirrored and of other colours for another seed.

    RGB, or RGBA and opaque.
    """

    width: int = 64
    height: int = 64
    seed: int = 0
    mode: str = "RGB"

    def draw(self) -> PIL.Image.Image:
        x, y = np.meshgrid(np.linspace(0, 255, self.width), np.linspace(0, 255, self.height))
        x, y = (x[:, ::-1] if self.seed & 1 else x), (y[::-1] if self.seed & 2 else y)
        blue = np.full_like(x, (40 + 90 * self.seed) % 256)
        return PIL.Image.fromarray(np.stack([x, y, blue], axis=-1).astype(np.uint8)).convert(self.mode)


@dataclass(frozen=True)
class Mask:
    """A mask: white, to be painted anew, in the right half; black on the left."""

    width: int = 64
    height: int = 64

    def draw(self) -> PIL.Image.Image:
        mask = np.zeros((self.height, self.width), np.uint8)
        mask[:, self.width // 2 :] = 255
        return PIL.Image.fromarray(mask)


@dataclass(frozen=True)
class Video:
    """A short video, as a list of its frames."""

    frames: int = 5
    width: int = 64
    height: int = 64

    def draw(self) -> list[PIL.Image.Image]:
        return [Image(self.width, self.height, seed=index).draw() for index in range(self.frames)]


Values = Mapping[str, Any]
"""JSON values by name, with Image, Mask and Video where media belong."""


MOVED = "published repositories name a folder of diffusers that has moved"


@dataclass(frozen=True)
class Recipe:
    """One pipeline class: its tiny repository, and a request that it answers.

    `parts` makes its components by name, with random weights (float32, CPU, well under a second and some 3 MB); the
    harness seeds torch before it. `request` is what a caller sends to the worker (fields as on the wire; `model` and
    `seed` are added). `call` is what plain diffusers is called with; left out, the same names as the request. `before`
    is what plain diffusers must do to the loaded pipeline first; it may return more arguments. `needs` are modules
    without which diffusers cannot build or run it; `broken` says why the installed libraries cannot run it with
    everything installed. `moved` names the folder of diffusers that published repositories write for a component whose
    class diffusers has since moved to another folder. `values` are what to send for fields that `request` leaves
    out and for which any value of their type would not do; None leaves out what a model of this size has no use for.
    """

    pipeline: str
    parts: Callable[[], Mapping[str, Any]]
    request: Values = field(default_factory=dict)
    call: Values | None = None
    before: Callable[[Any], Values | None] | None = None
    needs: tuple[str, ...] = ()
    broken: str | None = None
    moved: Mapping[str, str] = field(default_factory=dict)
    values: Values = field(default_factory=dict)
    modular: bool = False

    def build(self) -> Any:
        """The pipeline, new."""
        cls = getattr(diffusers, self.pipeline)
        if not self.modular:
            return cls(**self.parts())
        pipeline = cls()
        known = {spec.name for spec in (*pipeline.blocks.expected_components, *pipeline.blocks.expected_configs)}
        pipeline.update_components(**{name: part for name, part in self.parts().items() if name in known})
        return pipeline

    def arguments(self) -> dict[str, Any]:
        """What plain diffusers is called with, images drawn."""
        return {name: _drawn(value) for name, value in (self.request if self.call is None else self.call).items()}

    def fields(self) -> dict[str, Any]:
        """What is sent to the worker: JSON, images as base64 of a PNG."""
        return {name: on_the_wire(value) for name, value in self.request.items()}


def _drawn(value: Any) -> Any:
    if isinstance(value, Image | Mask | Video):
        return value.draw()
    if isinstance(value, Mapping):
        return {name: _drawn(item) for name, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_drawn(item) for item in value]
    return value


def on_the_wire(value: Any) -> Any:
    """`value` as it is sent: media as base64 of PNG files."""
    if isinstance(value, Image | Mask):
        return _png(value.draw())
    if isinstance(value, Video):
        return [_png(frame) for frame in value.draw()]
    if isinstance(value, Mapping):
        return {name: on_the_wire(item) for name, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [on_the_wire(item) for item in value]
    return value


def _png(image: PIL.Image.Image) -> str:
    out = io.BytesIO()
    image.save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()
