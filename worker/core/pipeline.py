"""The facts about one diffusers pipeline class: plain data, written by the catalog and carried by each job."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from worker.core.model import Task
from worker.core.precision import DTYPES, DType

# The form of a pipeline's images: one, a list, one or a list for its ControlNets, a list for each prompt, a mask that
# is white (or black) where the image is regenerated, one with an alpha channel, rows of in-context examples, or
# diffusers' object for a condition.
Form = Literal["image", "images", "controls", "batch", "mask", "unmask", "transparent", "grid", "condition"]
# The count of IP-Adapters that a class takes, where its call has the parameters for them.
ImagePrompts = Literal["any", "one", "none"]
# Work before the call, by its name in `worker.engine.preparation`.
Preparation = Literal[
    "constant_guidance",
    "fitted_images",
    "guided_always",
    "inverted_diffedit",
    "inverted_ledits",
    "whole_chunks",
    "whole_video",
]
# Pipelines' names that doors read as one of the request's fields, so that they never come from a caller.
_ALIASED = frozenset({"mask"})


@dataclass(frozen=True, slots=True)
class Slot:
    """A parameter of a pipeline's call that takes media.

    `fields` are the request's fields that can fill it, the first choice first; its own name always can. A slot that is
    not `fitted` takes images of any size, whatever the output's: references and examples. A `bounded` slot takes only
    images of 64 pixels a side or more, and at most eight times as long as wide.
    """

    parameter: str
    fields: tuple[str, ...] = ()
    form: Form = "image"
    required: bool = False
    fitted: bool = True
    bounded: bool = False
    alpha: bool = False  # keeps transparency; for all others it is white

    @property
    def several(self) -> bool:
        """True if the slot takes more than one image."""
        return self.form not in ("image", "mask", "unmask", "transparent")

    @property
    def own_name(self) -> str | None:
        """The name of the parameter, where a request can use it."""
        return None if self.parameter in _ALIASED else self.parameter

    @property
    def moving(self) -> bool:
        """True if the slot takes a video."""
        return "video" in self.parameter or "video" in self.fields


@dataclass(frozen=True, slots=True)
class FrameGrid:
    """The numbers of frames that a class generates: `least`, and by `step` more; `lost` of them do not come back."""

    step: int = 1
    least: int = 1
    lost: int = 0

    def within(self, frames: int) -> int:
        """Return the largest number on the grid that a video of `frames` can fill."""
        return max(1, (frames - 1) // self.step * self.step + 1)

    def covering(self, frames: int) -> int:
        """Return the smallest number on the grid of which `frames` come back."""
        return self.least + max(0, -(-(frames + self.lost - self.least) // self.step)) * self.step


@dataclass(frozen=True, slots=True)
class Package:
    """A Python package that not every worker has, by its import name and by its name in an index."""

    name: str
    distribution: str


@dataclass(frozen=True, slots=True)
class Companion:
    """A parameter without which another one fails, and the least of it where it is a number."""

    parameter: str
    least: float | None = None


@dataclass(frozen=True, slots=True)
class PipelineRow:
    """The facts about one pipeline class that its name and its call's signature do not show.

    The defaults are those of an ordinary class, which needs no row.
    """

    name: str
    # Its tasks, where name and signature together mislead.
    tasks: tuple[Task, ...] = ()
    slots: tuple[Slot, ...] = ()  # parameters that take media in another way than their names suggest
    unused: frozenset[str] = frozenset()  # parameters that look like media and stay unset: another one carries the same
    untaken: frozenset[str] = frozenset()  # parameters that it lists and always fails on
    of_two_steps: frozenset[str] = frozenset()  # parameters that it takes, and has a default for, of two steps only
    least: Mapping[str, float] = field(default_factory=dict)  # the smallest numbers that it does not fail on
    most: Mapping[str, float] = field(default_factory=dict)  # and the largest
    multiples: Mapping[str, int] = field(default_factory=dict)  # parameters that are a multiple of a number
    companions: Mapping[str, Companion] = field(default_factory=dict)  # what a parameter that is not 0 needs beside it
    # Parameters beside strength that are a share of the steps, with their defaults: one step at least must be left.
    shares: Mapping[str, float] = field(default_factory=dict)
    step_places: tuple[str, ...] = ()  # parameters that name one of the steps, from 0
    image_prompts: ImagePrompts = "any"
    json_prompt: str = ""  # the key of its prompt, which is a JSON object, for what plain words say
    weighs_prompts: bool = True  # takes prompts as embeddings without loss
    denoises: bool = True  # makes steps at a size of its own choice; an upscaler's network does not
    size_multiple: int = (
        1  # its sides are multiples of so many pixels, whatever its parts: it works at smaller sizes too
    )
    inverts: bool = False  # an edit is several calls, and the first ones take the image
    # Its output.
    is_video: bool = False
    frame_grid: FrameGrid = FrameGrid()
    # The last frames of the sent video that its own continues, where a request names none; 0 if it continues none.
    lengthens: int = 0
    fps: float = 8.0  # where neither a request nor the model's family sets it
    # Its ability to run.
    refusal: str = ""  # the reason why it cannot be served, to stand after its name
    broken: str = ""  # the reason why it fails with the installed libraries, whatever its weights
    package: Package | None = None  # a package that it imports beyond the base requirements
    source: str = ""  # the file that defines it, below `worker`, or an operator's own; diffusers' when empty
    # The dtypes that it computes in; where a model's own is none of them, the first.
    dtypes: tuple[DType, ...] = tuple(DTYPES.values())
    # All that its networks have are convolutions, which no precision of fewer bits is for.
    convolutional: bool = False
    # Its call.
    own_scheduler: bool = False  # trained to one scheduler's steps: another class runs and generates something else
    alone: bool = False  # fails, or generates other images, when one call is for several
    image_per_prompt: bool = False  # repeats an adapter's image for every image of one prompt, not for every prompt
    preparation: Preparation | None = None
    steps_by_scheduler: bool = False  # its callback reports a part of the work only, or fails
    tiled_decoding: bool = False  # its VAE decodes in tiles or not at all
    casts_images: bool = False  # makes images of one dtype, whatever its VAE's is
    swaps_sides: bool = False  # gives its image's width where its height is meant
