"""What serving draws for a training: samples with the file of a checkpoint, and images of a subject's class."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from math import sqrt
from pathlib import Path

from worker.core.image import Raster
from worker.core.result import Emit, Progress
from worker.core.training import TrainingOptions
from worker.media.images import fit
from worker.training.dataset import Dataset, Example, read_dataset

_SOURCE_PIXELS = 2**20  # at most: editors read no more, and a request holds no more as PNG than some 4 MB
_PROMPT = 2_000  # letters, as many as a prompt of `samples` may have
# Draws a prompt with an adapter's file and a seed, and makes it of an image, where there is one. Returns a PNG.
Draw = Callable[[Path | None, str, int, Raster | None], Awaitable[bytes]]


@dataclass(frozen=True, slots=True)
class Drawing:
    """Has images drawn into the folder of a training."""

    folder: Path
    options: TrainingOptions
    dataset: Dataset
    draw: Draw

    @property
    def prompts(self) -> tuple[str, ...]:
        """What is drawn at every checkpoint: `samples`, else captions, of the images held out before the others."""
        learnt, held = self.dataset.split(self.options.held_out)
        # A caption is words to learn, and asks for no LoRA of somebody's.
        captions = dict.fromkeys(
            each.caption[:_PROMPT] for each in (*held, *learnt) if each.caption and "<lora:" not in each.caption
        )
        return self.options.samples or (*captions,)[: self.options.sample_captions]

    async def samples(self, file: Path | None, step: int, told: Callable[[int, Path], None]) -> None:
        """Draw every sample with the adapter of `step`; `told` gets the number and the file of each.

        A model that edits makes the first one of the first source that is held out, else of the first one learnt, and
        so on in turn.
        """
        for index, prompt in enumerate(self.prompts):
            target = self.folder / "samples" / f"step-{step:06d}-{index + 1}.png"
            target.parent.mkdir(exist_ok=True)
            partial = target.with_suffix(".partial")
            partial.write_bytes(await self.draw(file, prompt, self.options.seed, self._source(index)))
            partial.replace(target)  # who watches sees it whole
            told(index + 1, target)

    def _source(self, index: int) -> Raster | None:
        learnt, held = self.dataset.split(self.options.held_out)
        examples = held or learnt
        source = examples[index % len(examples)].source
        if source is None:
            return None
        raster = source.raster()
        scale = min(1.0, sqrt(_SOURCE_PIXELS / (raster.width * raster.height)))
        return fit(raster, max(1, int(raster.width * scale)), max(1, int(raster.height * scale)))

    async def of_class(self, emit: Emit) -> tuple[Example, ...]:
        """Return images of the class, drawn with the model alone; those of an earlier stretch are kept."""
        prompt, count = self.options.class_prompt, self.options.class_images
        if prompt is None:
            return ()
        place = self.folder / "class"
        place.mkdir(exist_ok=True)
        for index in range(count):
            file = place / f"{index:04d}.png"
            if not file.exists():
                emit(Progress("encode", index, count, "images of the class"))
                partial = file.with_suffix(".partial")
                partial.write_bytes(await self.draw(None, prompt, self.options.seed + index, None))
                partial.replace(file)
        return read_dataset(place, caption=prompt).examples
