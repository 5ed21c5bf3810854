"""The operator's safety checker: a classifier of every finished image, and the action on unsafe ones."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
from PIL import Image, ImageFilter

from worker.core.errors import LoadFailed, WorkerError
from worker.core.finishing import SafetyVerdict
from worker.core.image import Raster
from worker.core.json_text import parse_bounded
from worker.core.model import ModelFiles
from worker.core.result import Artifact
from worker.engine.devices import is_out_of_memory
from worker.engine.pretrained import load_pretrained
from worker.media.images import to_pil

SafetyAction = Literal["report", "blur", "black"]
# Labels that published classifiers have for images that not everybody wants to see.
UNSAFE_LABELS = frozenset(
    {
        *("nsfw", "unsafe", "porn", "pornography", "hentai", "sexy", "sexual", "erotic", "explicit"),
        *("nude", "nudity", "naked", "gore", "violence", "blood"),
    }
)
# Frames of a video that are checked: the first, the last and those between, evenly.
_FRAMES = 8
_BLUR_SHARE = 12  # a radius of a twelfth of the longer side leaves colours and no shapes

Judge = Callable[[Image.Image], tuple[str, float]]


@dataclass(frozen=True, slots=True)
class SafetyPolicy:
    """The labels that count as unsafe, the score (0..1) from which they do, and the action on such an image."""

    threshold: float = 0.5
    action: SafetyAction = "report"
    labels: tuple[str, ...] = ()  # the classifier's own, in place of UNSAFE_LABELS


class SafetyChecker:
    """A classifier that is resident as long as the worker. Used from the engine's thread only."""

    def __init__(self, policy: SafetyPolicy, device: torch.device) -> None:
        self._policy = policy
        self._device = device
        self._judges: dict[Path, Judge] = {}

    def judge_of(self, files: ModelFiles) -> Judge:
        """Return the classifier, loaded if need be. Raises LoadFailed, so that no image is generated unchecked."""
        if files.root not in self._judges:
            self._judges[files.root] = self._load(files.root)
        return self._judges[files.root]

    def check(
        self, artifacts: Sequence[Artifact], files: ModelFiles
    ) -> tuple[tuple[Artifact, ...], tuple[SafetyVerdict, ...]]:
        """Return the artifacts as they may be shown, and a verdict on each."""
        judge = self.judge_of(files)
        verdicts = tuple(self._verdict(judge, item) for item in artifacts)
        shown = (
            self._hidden(item) if verdict.flagged else item for item, verdict in zip(artifacts, verdicts, strict=True)
        )
        return tuple(shown), verdicts

    def _verdict(self, judge: Judge, artifact: Artifact) -> SafetyVerdict:
        frames = artifact.frames or (artifact.raster,)
        sampled = frames[:: max(1, -(-len(frames) // _FRAMES))]
        label, score = max(
            (judge(to_pil(frame).convert("RGB")) for frame in (*sampled, frames[-1])),
            key=lambda judgement: judgement[1],
        )
        return SafetyVerdict(score >= self._policy.threshold, label, round(score, 4))

    def _hidden(self, artifact: Artifact) -> Artifact:
        if self._policy.action == "report":
            return artifact
        hide = _blurred if self._policy.action == "blur" else _blackened
        frames = tuple(hide(frame) for frame in artifact.frames)
        return replace(artifact, raster=frames[0] if frames else hide(artifact.raster), frames=frames)

    def _load(self, folder: Path) -> Judge:
        what = "SAFETY_CHECKER"
        try:
            config = parse_bounded((folder / "config.json").read_bytes())
            options = {"local_files_only": True, "use_safetensors": True, "dtype": torch.float32}
            if "StableDiffusionSafetyChecker" in (config.get("architectures") or ()):
                model = load_pretrained(StableDiffusionSafetyChecker, folder, what, field=what, **options)
                # Stable Diffusion's pipelines keep the processor in a folder beside; its defaults stand in.
                processor = transformers.CLIPImageProcessor()
                return _concepts(model.eval().to(self._device), processor)
            processor = transformers.AutoImageProcessor.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
            cls = transformers.AutoModelForImageClassification
            model = load_pretrained(cls, folder, what, field=what, trust_remote_code=False, **options)
            return _classifier(model.eval().to(self._device), processor, self._policy.labels)
        except WorkerError:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise
            raise LoadFailed(
                f"SAFETY_CHECKER could not be loaded ({type(error).__name__}), and without it this worker answers no "
                "images; the operator has to name a transformers image classifier, or unset it.",
                field="SAFETY_CHECKER",
            ) from None


def _classifier(model: Any, processor: Any, unsafe_labels: Sequence[str]) -> Judge:
    """Return a judge by a transformers image classifier.

    Its score is the probability of all unsafe labels together; its label is the likeliest of them.
    """
    names: Mapping[int, str] = model.config.id2label
    labels = {name.lower() for name in unsafe_labels} or UNSAFE_LABELS
    unsafe = [index for index, name in names.items() if name.lower() in labels]
    if not unsafe:
        raise LoadFailed(
            f"None of the labels of SAFETY_CHECKER ({', '.join(names.values())[:200]}) is known to be unsafe; "
            "the operator has to say which are with SAFETY_LABELS.",
            field="SAFETY_CHECKER",
        )

    def judge(image: Image.Image) -> tuple[str, float]:
        pixels = processor(images=image, return_tensors="pt")["pixel_values"].to(model.device)
        with torch.inference_mode():
            shares = model(pixel_values=pixels).logits[0].float().softmax(-1)
        return names[max(unsafe, key=lambda index: float(shares[index]))], float(shares[unsafe].sum())

    return judge


def _concepts(model: Any, processor: Any) -> Judge:
    """Return a judge by Stable Diffusion's own checker. It names no concepts: its score is 0 or 1."""

    def judge(image: Image.Image) -> tuple[str, float]:
        pixels = processor(images=image, return_tensors="pt")["pixel_values"].to(model.device)
        with torch.inference_mode():
            _, flags = model(clip_input=pixels, images=[torch.zeros(1)])
        return "nsfw", float(flags[0])

    return judge


def _blurred(raster: Raster) -> Raster:
    radius = max(raster.width, raster.height) / _BLUR_SHARE
    return replace(raster, data=to_pil(raster).filter(ImageFilter.GaussianBlur(radius)).tobytes())


def _blackened(raster: Raster) -> Raster:
    return Raster("L", raster.width, raster.height, bytes(raster.width * raster.height))
