"""What is asked of a provider: one request, the same words for every provider."""

from typing import Literal, Self, TypedDict

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

Operation = Literal["generate", "edit", "inpaint", "upscale"]
OutputFormat = Literal["png", "jpeg", "webp"]


class RequestFields(TypedDict, total=False):
    """What a call may say beside prompt and images: fields of ImageRequest, and the request's id."""

    negative_prompt: str | None
    model: str | None
    width: int | None
    height: int | None
    seed: int | None
    num_inference_steps: int | None
    guidance_scale: float | None
    strength: float | None
    output_format: OutputFormat | None
    extra: dict[str, JsonValue]
    request_id: str | None


class UpscaleFields(RequestFields, total=False):
    """The same for upscaling, where a prompt may be left out."""

    prompt: str


class ImageRequest(BaseModel):
    """One request for `n` images; `None` leaves a field to the provider.

    `image` and `mask` are encoded files (PNG, JPEG or WebP); in JSON they are base64. A mask is white where the image
    is to be drawn anew. `extra` goes to the provider as it is, under the provider's own names.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_bytes="base64", val_json_bytes="base64")

    operation: Operation = "generate"
    prompt: str = ""
    negative_prompt: str | None = None
    model: str | None = None
    width: int | None = Field(default=None, ge=1, le=16384)  # pixels
    height: int | None = Field(default=None, ge=1, le=16384)  # pixels
    seed: int | None = Field(default=None, ge=0, lt=2**53)
    num_inference_steps: int | None = Field(default=None, ge=1, le=1000)
    guidance_scale: float | None = Field(default=None, ge=0, le=100)
    n: int = Field(default=1, ge=1, le=100)
    image: bytes | None = Field(default=None, repr=False)
    mask: bytes | None = Field(default=None, repr=False)
    strength: float | None = Field(default=None, ge=0, le=1)
    output_format: OutputFormat | None = None
    extra: dict[str, JsonValue] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.operation != "upscale" and not self.prompt.strip():
            raise ValueError("prompt is empty: say what the image shows.")
        if self.operation != "generate" and self.image is None:
            raise ValueError(f"image is missing: {self.operation} starts from one.")
        if self.operation == "inpaint" and self.mask is None:
            raise ValueError("mask is missing: inpaint needs one, white where the image is drawn anew.")
        if (self.width is None) != (self.height is None):
            raise ValueError("width and height go together: give both or neither.")
        return self
