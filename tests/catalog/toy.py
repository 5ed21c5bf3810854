"""A family and an odd class that nobody has heard of, added as one row each before anything else is imported.

Run as a program of its own, which prints what the worker makes of them; `test_adding.py` reads that.
"""

import asyncio
import json
import sys
from pathlib import Path

import numpy as np

from worker.catalog.conditions import has_all
from worker.catalog.families import independent
from worker.catalog.families.row import Architecture, LoraRule, Name, alone
from worker.catalog.pipelines import image
from worker.core.model import Task
from worker.core.pipeline import PipelineRow, Slot

FAMILY = Architecture(
    id="toy",
    title="Toy",
    pipelines={Task.TEXT_TO_IMAGE: "ToyPipeline", Task.IMAGE_EDITING: "ToyPipeline"},
    native_size=512,
    max_pixels=1_048_576,
    defaults={"num_inference_steps": 12, "guidance_scale": 3.0},
    denoiser=alone(has_all("toy_blocks.0.weight")),
    civitai=(Name("Toy 1", "turbo"),),
    names=(Name("toy.?net"),),
    variants={"turbo": {"num_inference_steps": 2}},
    loras=(LoraRule(r"^toy_blocks_\d"),),
    noise="diffusion",
    scheduler="DDIMScheduler",
)
LORA = ("lora_unet_toy_blocks_0.lora_down.weight", "lora_unet_toy_blocks_0.lora_up.weight")
CLASS = """
class ToyPipeline:
    def __call__(
        self,
        prompt: str = None,
        image: PipelineImageInput = None,
        num_inference_steps: int = 20,
        guidance_scale: float = 5.0,
        toy_power: float = 1.0,
        toy_curse: float = 1.0,
        generator: torch.Generator = None,
    ): ...
"""


def add(root: Path) -> None:
    """Add both rows. The class stands in a file of `root`, as one of diffusers' would in its own folder."""
    (root / "toy_pipeline.py").write_text(CLASS)
    independent.INDEPENDENT += (FAMILY,)
    image.IMAGES += (
        PipelineRow(
            "ToyPipeline",
            source=str(root / "toy_pipeline.py"),
            untaken=frozenset({"toy_curse"}),
            slots=(Slot("image", ("image", "images"), "images", fitted=False),),
            alone=True,
        ),
    )


async def report(root: Path) -> dict[str, object]:
    """What the worker says of a file, a LoRA and a page of that family, its schema, and two requests for it."""
    from tests.fakes.engine import make_context
    from tests.images import encoded
    from worker.catalog.base_models import known_base
    from worker.catalog.detector import detect_header
    from worker.core.errors import WorkerError
    from worker.core.model import TensorIndex

    def header(*names: str) -> TensorIndex:
        return TensorIndex(dict.fromkeys(names, ("F16", (8, 8))), {}, "safetensors", 1_000)

    folder = root / "models" / "toy"
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "ToyPipeline"}))
    (root / "toys.yaml").write_text(json.dumps({"models": {"toy": {"source": f"file:{folder}"}}}))
    context = make_context(root / "worker", models_yaml=root / "toys.yaml", default_model="toy")
    image = encoded(np.zeros((64, 64, 3), "uint8"))
    job = await context.accept(images=[image, image])
    try:
        refused = "nothing"
        await context.accept(toy_curse=2.0)
    except WorkerError as error:
        refused = error.message
    return {
        "file": detect_header(header("model.diffusion_model.toy_blocks.0.weight")).architecture,
        "lora": detect_header(header(*LORA)).architecture,
        "page": [known_base("Toy 1").variant, known_base("org/toynet-v2").architecture],
        "schema": (await context.ask(action="schema", model="toy"))["properties"],
        "job": {
            "task": job.call.task.value,
            "pipeline": job.call.pipeline,
            "alone": job.call.row.alone,
            "steps": job.params["num_inference_steps"],
            "images": len(job.media[0].images),
        },
        "refused": refused,
    }


if __name__ == "__main__":
    root = Path(sys.argv[1])
    add(root)
    print(json.dumps(asyncio.run(report(root))))
