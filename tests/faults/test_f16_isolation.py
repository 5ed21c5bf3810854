"""F16: a job leaves no trace: whatever came before, the next one has the pixels it has alone.

The long orders, of every kind of job, are in `tests/engine/test_isolation.py`.
"""

import pytest
import torch

from tests.engine.test_generation import draw
from tests.engine.test_isolation import failing_once, on_engine
from tests.images import encoded, gradient, pixels
from worker.core.errors import WorkerError

BEFORE = {
    "another sampler": {"scheduler": "dpmpp_2m_karras", "num_inference_steps": 4},
    "four images": {"num_images": 4},
    "an image": {"image": encoded(gradient(64, 64)), "strength": 0.6},
    "another size": {"width": 128, "height": 64},
    "a LoRA": {"loras": ["file:{zoo}/models/lora.safetensors"]},
    "refused": {"widht": 5},
    "fails midway": {"loras": ["file:{zoo}/models/lora.safetensors"], "scheduler": "euler_a"},
}
FAILURES = {"fails midway": RuntimeError("midway"), "memory runs out": torch.OutOfMemoryError("CUDA out of memory")}


@pytest.mark.slow
async def test_the_next_job_is_bit_identical_to_itself_alone(worker, zoo, figures):
    alone = pixels(await draw(worker))
    differ = 0
    for name, fields in {**BEFORE, "memory runs out": {}}.items():
        fields = {
            field: [text.format(zoo=zoo) for text in value] if field == "loras" else value
            for field, value in fields.items()
        }
        if name in FAILURES:
            on_engine(worker, lambda pipe, error=FAILURES[name]: failing_once(pipe, "unet", error))
        if name in ("refused", "fails midway"):
            with pytest.raises(WorkerError):
                await draw(worker, **fields)
        else:
            await draw(worker, **fields)
        differ += int((pixels(await draw(worker)) != alone).sum())
    figures("F16", f"values that differ after {len(BEFORE) + 1} kinds of jobs", differ, at_most=0)
