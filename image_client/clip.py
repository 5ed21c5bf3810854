"""How well an image fits its prompt, by CLIP: the extra `clip` (transformers and torch)."""

from importlib import import_module
from typing import Any

from image_client.scoring import Candidate, ScoringError

DEFAULT_MODEL = "openai/clip-vit-base-patch32"


class ClipScorer:
    """The cosine between image and prompt, 0 where they have nothing in common. Loads the model at the first image.

    `model` is a repository of the Hub or a folder with a CLIPModel and its processor.
    """

    name = "clip"

    def __init__(self, model: str = DEFAULT_MODEL) -> None:
        self._name = model
        self._loaded: tuple[Any, Any, Any] | None = None

    def score(self, candidate: Candidate) -> float | None:
        """Return the cosine; None for an image that has no prompt."""
        if not candidate.record.prompt:
            return None
        torch, model, processor = self._loaded = self._loaded or self._load()
        words = processor(
            text=[candidate.record.prompt], images=candidate.pixels, return_tensors="pt", padding=True, truncation=True
        )
        with torch.inference_mode():
            outcome = model(**words)
        image, text = outcome.image_embeds[0], outcome.text_embeds[0]
        return max(0.0, float(torch.nn.functional.cosine_similarity(image, text, dim=0)))

    def _load(self) -> tuple[Any, Any, Any]:
        try:
            torch, transformers = import_module("torch"), import_module("transformers")
        except ImportError as error:
            raise ScoringError(f"{error.name} is missing: pip install 'universal-image-client[clip]'.") from error
        try:
            model = transformers.CLIPModel.from_pretrained(self._name).eval()
            processor = transformers.CLIPProcessor.from_pretrained(self._name)
        except (OSError, ValueError) as error:
            raise ScoringError(f"{self._name} cannot be loaded as a CLIP model: name another, or go online.") from error
        return torch, model, processor
