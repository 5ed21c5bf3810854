"""Draw docs/gallery.png: every task on the model in the box, through the worker.

python -m tools.gallery [--out docs/gallery.png]
"""

import argparse
import asyncio
import base64
import io
import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from worker.app.build import Worker, build_worker
from worker.app.settings import PROJECT_DIR, Settings
from worker.core.answer import Answer
from worker.core.result import ignore_progress
from worker.transport.job_input import read_input

DEMO = PROJECT_DIR / "models/demo"
STYLE = PROJECT_DIR / "docs/examples/train-style"
_CELL, _GAP, _STRIP = 160, 8, 34


@dataclass(frozen=True)
class Row:
    """One line of the sheet: what was sent beside what came back, each with its caption."""

    title: str
    images: tuple[tuple[str, Image.Image], ...]


class Studio:
    """A worker with the demo model."""

    def __init__(self, folder: Path) -> None:
        entries = {"upscaler": {"source": f"file:{DEMO}/companions/sharp-x4-upscaler.safetensors"}}
        entries["demo"] = {
            "source": f"file:{DEMO}",
            "architecture": "sd1",
            "tasks": ["text-to-image", "image-to-image", "inpainting"],
            "defaults": {"num_inference_steps": 16, "guidance_scale": 2.5},
            "dtype": "float32",
        }
        (folder / "models.yaml").write_text(json.dumps({"models": entries}))
        settings = Settings(
            models_yaml=folder / "models.yaml",
            default_model="demo",
            allowed_model_dirs=(folder, DEMO),
            volume_dir=folder / "volume",
            device="cpu",
            warm_up=False,
            training="shared",
        )
        self._worker: Worker = build_worker(settings)
        self._runner = asyncio.Runner()  # one loop for all jobs, as a worker has
        self._jobs = 0

    def draw(self, prompt: str, **fields: Any) -> Image.Image:
        """What the worker answers; images may be sent as they are."""
        return self._answered(prompt=prompt, **fields)

    def train(self, folder: Path, name: str, **options: Any) -> None:
        """Have the worker train a LoRA on the images of a folder, which requests name then."""
        lines = map(json.loads, (folder / "metadata.jsonl").read_text().splitlines())
        data = [
            {"image": base64.b64encode((folder / line["file_name"]).read_bytes()).decode(), "caption": line["text"]}
            for line in lines
        ]
        payload = {"action": "train", "data": data, "name": name, **options}
        self._runner.run(self._worker.operations.perform(read_input(payload), name, ignore_progress))

    def enlarged(self, image: Image.Image) -> Image.Image:
        """`image` as the demo model's own upscaler makes it; a mask, which has no shades, as it is."""
        return image if len(image.getcolors() or ()) == 2 else self._answered(model="upscaler", image=image)

    def _answered(self, **fields: Any) -> Image.Image:
        self._jobs += 1
        sent = {name: _encoded(value) if isinstance(value, Image.Image) else value for name, value in fields.items()}
        payload = {"seed": 7, **sent}
        asked = self._worker.operations.perform(read_input(payload), f"gallery-{self._jobs}", ignore_progress)
        answer = self._runner.run(asked)
        if not isinstance(answer, Answer):
            raise TypeError(f"the worker answered with {type(answer).__name__}")
        return Image.open(io.BytesIO(answer.files[0].data)).convert("RGB")


def edit(studio: Studio) -> Row:
    """Image to image: another thing, where the first one was."""
    apple = moved(studio.draw("a red apple"), 8, 6)
    lemon = studio.draw("a lemon", image=apple, strength=0.3)
    return Row("image-to-image keeps the place", (("a red apple, moved", apple), ("a lemon, strength 0.3", lemon)))


def inpaint(studio: Studio) -> Row:
    """Inpainting: a hole is filled, and only the hole."""
    apple, mask = studio.draw("a red apple"), hole()
    filled = studio.draw("a lemon", image=apple, mask_image=mask)
    return Row("inpainting fills the hole", (("a red apple", apple), ("mask", mask), ("a lemon", filled)))


def outpaint(studio: Studio) -> Row:
    """Outpainting: an image goes on beyond its borders."""
    prompt = "a fox on a light blue background"
    half = studio.draw(prompt).crop((0, 0, 40, 64))
    whole = studio.draw(prompt, image=half, outpaint={"right": 24})
    return Row("outpainting goes on", (("a fox, cut off", half), ("24 pixels more", whole)))


def negative(studio: Studio) -> Row:
    """A negative prompt takes away what it names."""
    plain = studio.draw("a strawberry", guidance_scale=5)
    without = studio.draw("a strawberry", guidance_scale=5, negative_prompt="a red strawberry")
    return Row("negative prompt", (("a strawberry", plain), ("negative: a red strawberry", without)))


def lora(studio: Studio) -> Row:
    """A LoRA takes the colour out."""
    file = f"file:{DEMO}/companions/grey-style-lora.safetensors"
    weights = (0, 0.5, 1)
    pandas = [studio.draw("a panda on a pink background", loras=[{"model": file, "weight": w}]) for w in weights]
    drawn = zip((f"weight {weight:g}" for weight in weights), pandas, strict=True)
    return Row("LoRA", tuple(drawn))


def control(studio: Studio) -> Row:
    """A ControlNet follows the edges of an image."""
    castle = moved(studio.draw("a castle", seed=3), 7, 6)
    file = f"file:{DEMO}/companions/edge-control-lora.safetensors"
    edges = {"model": file, "image": _encoded(castle), "preprocess": "canny"}
    followed, free = studio.draw("a castle", controlnets=[edges]), studio.draw("a castle")
    return Row("ControlNet, canny", (("a castle, moved", castle), ("along its edges", followed), ("without", free)))


def word(studio: Studio) -> Row:
    """A textual inversion brings a word for something that the model has never seen."""
    file = f"file:{DEMO}/companions/mascot-token.safetensors"
    prompt = "a <mascot> on a yellow background"
    unknown, alone = studio.draw("a <mascot>"), studio.draw("a <mascot>", embeddings=[file])
    placed = studio.draw(prompt, embeddings=[file])
    return Row("textual inversion", (("a <mascot>, unknown", unknown), ("a <mascot>", alone), ("on yellow", placed)))


def trained(studio: Studio, steps: int = 300) -> Row:
    """A LoRA of the worker's own training: 24 blueprints, none of which shows these things."""
    studio.train(STYLE, "blue", steps=steps, batch_size=8, learning_rate=0.003, targets="all")
    prompts = ("a blueprint of a robot", "a blueprint of a panda")
    robot, panda = (studio.draw(prompt, loras=["blue"]) for prompt in prompts)
    plain = studio.draw(prompts[0])
    return Row(
        "a style, trained on 24 images", (("a blueprint of a robot", plain), ("trained", robot), ("a panda", panda))
    )


def weigh(studio: Studio) -> Row:
    """Two words of the prompt, each of which counts for more in its turn."""
    weights = (("1.6", "0.4"), ("1", "1"), ("0.4", "1.6"))
    drawn = [studio.draw(f"a (fox:{fox}) (panda:{panda})") for fox, panda in weights]
    captions = (f"fox {fox}, panda {panda}" for fox, panda in weights)
    return Row("weighted prompt: a (fox:…) (panda:…)", tuple(zip(captions, drawn, strict=True)))


ROWS = (edit, inpaint, outpaint, negative, lora, trained, control, word, weigh)


def moved(image: Image.Image, right: int, down: int) -> Image.Image:
    """`image` moved over a white page."""
    page = Image.new("RGB", image.size, "white")
    page.paste(image, (right, down))
    return page


def hole(side: int = 64) -> Image.Image:
    """A round mask in the middle."""
    mask = Image.new("RGB", (side, side), "black")
    ImageDraw.Draw(mask).ellipse((side // 4, side // 4, 3 * side // 4, 3 * side // 4), fill="white")
    return mask


def sheet(rows: list[Row]) -> Image.Image:
    """The rows below one another, each image with its caption."""
    widest = max(sum(_width(image) + _GAP for _, image in row.images) for row in rows)
    page = Image.new("RGB", (widest + _GAP, len(rows) * (_CELL + 2 * _STRIP) + _GAP), "white")
    pen, bold, small = ImageDraw.Draw(page), ImageFont.load_default(14), ImageFont.load_default(11)
    for index, row in enumerate(rows):
        top, left = index * (_CELL + 2 * _STRIP) + _GAP, _GAP
        pen.text((left, top), row.title, fill="black", font=bold)
        for caption, image in row.images:
            large = image.resize((_width(image), _CELL), Image.Resampling.BICUBIC)
            page.paste(large, (left, top + 22))
            pen.text((left, top + 24 + _CELL), caption, fill="black", font=small)
            left += large.width + _GAP
    return page


def _width(image: Image.Image) -> int:
    return round(_CELL * image.width / image.height)


def _encoded(image: Image.Image) -> str:
    out = io.BytesIO()
    image.save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def main() -> None:
    """Draw the sheet."""
    parser = argparse.ArgumentParser(prog="python -m tools.gallery", description=__doc__)
    parser.add_argument("--out", type=Path, default=PROJECT_DIR / "docs/gallery.png")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gallery-") as scratch:
        studio = Studio(Path(scratch).resolve())
        rows = [row(studio) for row in ROWS]
        large = [Row(row.title, tuple((text, studio.enlarged(image)) for text, image in row.images)) for row in rows]
        page = sheet(large)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    page.quantize(256).save(options.out, optimize=True)
    print(f"{options.out}: {options.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
