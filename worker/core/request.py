"""A caller's request, after the door has resolved aliases and before any rule is applied."""

from collections.abc import Mapping
from typing import Literal, TypeVar

from pydantic import ConfigDict, Field, JsonValue, SecretStr, field_serializer, field_validator
from pydantic.alias_generators import to_camel

from worker.core.finishing import RefinerSpec, UpscaleSpec
from worker.core.model import AdapterSpec, Parsed, Task
from worker.core.precision import Precision
from worker.core.quality import Quality
from worker.core.version import ALIASES, VERSION_NAME

Spec = TypeVar("Spec", bound=AdapterSpec)
MAX_PROMPT_CHARS = 8_000
MAX_SEED = 2**63 - 1
MAX_MARGIN = 4_096
MAX_IMAGES = 16  # of one request
MAX_FRAMES = 257  # of one video


Format = Literal["png", "jpeg", "webp", "gif", "mp4"]
CONTENT_TYPES: Mapping[Format, str] = {
    "png": "image/png",
    "jpeg": "image/jpeg",
    "webp": "image/webp",
    "gif": "image/gif",
    "mp4": "video/mp4",
}
IMAGE_FORMATS: tuple[Format, ...] = ("png", "jpeg", "webp")
FRAME_FORMATS: tuple[Format, ...] = ("png", "jpeg")  # of a video: its frames, each a file of its own
VIDEO_FORMATS: tuple[Format, ...] = ("mp4", "gif", "webp", *FRAME_FORMATS)
_IMAGE = "Base64, a data: URI or an https URL of a PNG, JPEG or WebP."
_SIDES = ("left", "top", "right", "bottom")


def format_named(value: object) -> object:
    """Return the format that a text names in another spelling, `jpg` say; anything else as it is."""
    if not isinstance(value, str):
        return value
    name = value.strip().lower().removeprefix("image/").removeprefix("video/").removeprefix(".")
    name = "jpeg" if name == "jpg" else name
    return name if name in CONTENT_TYPES else value


class OutputOptions(Parsed):
    """How images or videos come back. `quality` is for jpeg, webp and mp4, 1..100."""

    format: Format | None = Field(default=None, description="When left out, png for images and mp4 for videos.")
    quality: int = Field(default=92, ge=1, le=100)
    metadata: bool = False
    delivery: Literal["base64", "s3", "volume", "stream"] = "base64"

    @field_validator("format", mode="before")
    @classmethod
    def _usual_spelling(cls, value: object) -> object:
        return format_named(value)

    def format_of(self, *, video: bool) -> Format:
        """Return the requested format, else the usual one."""
        return self.format or ("mp4" if video else "png")


class S3Config(Parsed):
    """A caller's own S3-compatible bucket, as RunPod's API spells it."""

    model_config = ConfigDict(alias_generator=to_camel)

    endpoint_url: str = Field(min_length=1, max_length=2048, description="https URL of the store.")
    bucket_name: str = Field(pattern=r"^[A-Za-z0-9._-]{3,63}$")
    access_id: SecretStr = Field(min_length=1, max_length=512)
    access_secret: SecretStr = Field(min_length=1, max_length=512)
    region: str | None = Field(
        default=None, pattern=r"^[A-Za-z0-9-]{1,64}$", description="Where the endpoint does not tell it."
    )
    addressing_style: Literal["path", "virtual"] | None = Field(
        default=None, description="Where the bucket's name is sent; without it as the endpoint is known to take it."
    )


class Margins(Parsed):
    """How far an image is continued beyond its own borders, in pixels: at least beyond one."""

    model_config = ConfigDict(
        json_schema_extra={"anyOf": [{"properties": {side: {"minimum": 1}}, "required": [side]} for side in _SIDES]}
    )

    left: int = Field(default=0, ge=0, le=MAX_MARGIN)
    top: int = Field(default=0, ge=0, le=MAX_MARGIN)
    right: int = Field(default=0, ge=0, le=MAX_MARGIN)
    bottom: int = Field(default=0, ge=0, le=MAX_MARGIN)


class GenerationRequest(Parsed):
    """One generation, in canonical field names (docs/api.md). `params` holds the fields of the model's own schema."""

    model: str | None = Field(
        default=None, min_length=1, max_length=512, description="A model id of models.yaml, or a reference."
    )
    task: Task | None = Field(default=None, strict=False, description="Inferred from the inputs when left out.")
    prompt: str | None = Field(default=None, max_length=MAX_PROMPT_CHARS, description="What to draw.")
    negative_prompt: str | None = Field(default=None, max_length=MAX_PROMPT_CHARS, description="What to keep out.")
    image: str | None = Field(default=None, repr=False, description=_IMAGE)
    images: tuple[str, ...] = Field(default=(), strict=False, repr=False, description="Several images, each as image.")
    mask_image: str | None = Field(default=None, repr=False, description="White where the image is redrawn, as image.")
    outpaint: Margins | None = Field(default=None, description="Pixels to continue image by, beyond each border.")
    control_image: str | None = Field(
        default=None, repr=False, description="The image that a ControlNet follows, as image."
    )
    control_images: tuple[str, ...] = Field(
        default=(), strict=False, repr=False, description="One for each ControlNet."
    )
    video: tuple[str, ...] = Field(
        default=(), strict=False, repr=False, description="An MP4, GIF or WebP, sent like image; or a list of images."
    )
    # The adapters, kind by kind. Callers send a field for each kind (`catalog.interface.request_fields`).
    adapters: tuple[AdapterSpec, ...] = ()
    refiner: RefinerSpec | None = Field(default=None, description="The model that draws the last steps.")
    upscale: UpscaleSpec | None = Field(default=None, description="The upscaler that enlarges what was drawn.")
    lightning: bool | None = Field(default=None, description="Whether to use the model's own distillation LoRA.")
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED, description="Random, and reported, when left out.")
    num_images: int = Field(default=1, ge=1, description="Images to make; image i uses seed + i.")
    output: OutputOptions = Field(default_factory=OutputOptions)
    # Excluded from every dump: its keys belong into no digest, log or answer.
    s3Config: S3Config | None = Field(  # noqa: N815
        default=None, exclude=True, repr=False, description="Your own bucket; what is drawn is uploaded to it."
    )
    timeout_s: float | None = Field(
        default=None, gt=0, le=86_400, allow_inf_nan=False, description="Seconds that the job may take."
    )
    quality: Quality | None = Field(
        default=None,
        description="How far faster ways to generate may be from the plain one: exact, no further than rounding; high; "
        "or fast, which can show. What has not been proven for this model on this device is not used.",
    )
    precision: Precision | None = Field(
        default=None,
        description="How the model's weights are held in memory: bf16, fp16 or fp32, in which it then computes; fp8, "
        "int8, 8bit or 4bit, smaller and less exact; auto, whole where they fit, else the nearest that do.",
    )
    fallback: bool = Field(
        default=False, description="Whether another model of the same family may stand in for one that cannot be had."
    )
    sticky: str | None = Field(
        default=None,
        min_length=1,
        max_length=256,
        description="Who gets the same version while a model is split between several; else the API key's owner.",
    )
    arm: str | None = Field(
        default=None,
        max_length=32,
        pattern=rf"^({'|'.join(ALIASES)}|{VERSION_NAME})$",
        description="Of gateways: the arm that the version in `model` was chosen for; a pair may be made for it.",
    )
    progress: bool = Field(default=True, description="Whether progress updates are sent.")
    previews: bool = Field(default=False, description="Whether progress comes with small images of what is drawn.")
    profile: bool = Field(
        default=False,
        description="Whether the answer has a profile: where the seconds of the pipeline's calls went. With an admin "
        "key only, where there are some.",
    )
    params: dict[str, JsonValue] = Field(default_factory=dict)

    def adapters_of(self, kind: type[Spec]) -> tuple[Spec, ...]:
        """Return the adapters of one kind, in the order in which they were sent."""
        return tuple(spec for spec in self.adapters if isinstance(spec, kind))

    @field_serializer("adapters")
    def _by_kind(self, adapters: tuple[AdapterSpec, ...]) -> dict[str, list[JsonValue]]:
        by_kind: dict[str, list[JsonValue]] = {}
        for spec in adapters:
            by_kind.setdefault(spec.field, []).append(spec.model_dump(mode="json"))
        return by_kind
