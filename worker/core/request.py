"""What a caller asks for, after the door has taken aliases and before any rule was applied."""

from typing import Literal

from pydantic import Field, JsonValue

from worker.core.model import LoraSpec, Parsed, Task

MAX_PROMPT_CHARS = 8_000
MAX_SEED = 2**63 - 1


class OutputOptions(Parsed):
    """How the pictures come back. `quality` is for jpeg and webp, 1..100."""

    format: Literal["png", "jpeg", "webp"] = "png"
    quality: int = Field(default=92, ge=1, le=100)
    metadata: bool = False
    delivery: Literal["base64", "s3"] = "base64"


class GenerationRequest(Parsed):
    """One generation, in canonical field names (CONTRACT §1). `params` holds what only the model's schema knows."""

    model: str | None = Field(default=None, max_length=512, description="A model id of models.yaml, or a reference.")
    task: Task | None = Field(default=None, strict=False, description="Inferred from the inputs when left out.")
    prompt: str | None = Field(default=None, max_length=MAX_PROMPT_CHARS, description="What to draw.")
    negative_prompt: str | None = Field(default=None, max_length=MAX_PROMPT_CHARS, description="What to keep out.")
    image: str | None = Field(default=None, description="Base64, a data: URI or an https URL of a PNG, JPEG or WebP.")
    loras: tuple[LoraSpec, ...] = Field(default=(), strict=False, description="LoRAs to apply, in order.")
    lightning: bool | None = Field(default=None, description="Whether to use the model's own distillation LoRA.")
    seed: int | None = Field(default=None, ge=0, le=MAX_SEED, description="Random, and reported, when left out.")
    num_images: int = Field(default=1, ge=1, description="Pictures to make; image i uses seed + i.")
    output: OutputOptions = Field(default_factory=OutputOptions)
    timeout_s: float | None = Field(default=None, gt=0, le=86_400, allow_inf_nan=False)
    progress: bool = Field(default=True, description="Whether progress updates are sent.")
    params: dict[str, JsonValue] = Field(default_factory=dict)
