"""What other workers publish as their example inputs, drawn by the real engine as it is: tiny models of their kinds."""

import json

import pytest

from tests.asking import perform
from tests.images import pixels
from tests.wire.foreign.published import A1111, PUBLISHED, SDXL, TURBO, WORDS
from worker.app.build import build_worker
from worker.app.settings import Settings

WRAPPED = PUBLISHED["worker-a1111, wrapped"]


def small(sent):
    """Return an input at a size that tiny models draw in no time."""
    if "payload" in sent:
        return sent | {"payload": small(sent["payload"])}
    return sent | {"width": 64, "height": 64}


@pytest.fixture(scope="module")
def worker(zoo, tmp_path_factory):
    root = tmp_path_factory.mktemp("published")
    entries = {
        "sdxl": {"source": f"file:{zoo}/models/sdxl"},
        "any": {"source": f"file:{zoo}/models/sd1", "aliases": ["sd1"]},
    }
    (root / "models.yaml").write_text(json.dumps({"models": entries}))
    settings = Settings(
        models_yaml=root / "models.yaml",
        default_model="sdxl",
        allowed_model_dirs=[zoo],
        volume_dir=root / "volume",
        device="cpu",
        warm_up=False,
    )
    return build_worker(settings)


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize(
    ("name", "sent"),
    [("worker-sdxl", SDXL), ("worker-sdxl-turbo", TURBO), ("worker-a1111", A1111), ("worker-a1111, wrapped", WRAPPED)],
)
async def test_it_draws_as_it_is_but_for_its_size(worker, name, sent):
    answer = await perform(worker, small(sent), name.replace(", ", "-"), lambda progress: None)
    assert pixels(answer).shape == (64, 64, 3)
    assert answer["prompt"] == WORDS
    fields = sent.get("payload", sent)
    assert answer["seed"] == fields["seed"]
    assert answer["parameters"]["num_inference_steps"] == fields.get("steps", fields.get("num_inference_steps"))
    assert answer["parameters"]["guidance_scale"] == fields.get("cfg_scale", fields.get("guidance_scale"))


@pytest.mark.slow
async def test_sdxl_turbos_draws_at_its_own_size(worker):
    answer = await perform(worker, TURBO, "turbo-512", lambda progress: None)
    assert pixels(answer).shape == (512, 512, 3)
