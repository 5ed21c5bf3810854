"""Images on the way: like the image that comes of it, for whoever asked, and without a trace in it."""

import asyncio
import base64
import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, FluxPipeline
from PIL import Image

from tests.asking import perform
from tests.fakes.engine import fresh_id
from tests.images import pixels
from worker.app.build import build_worker
from worker.app.settings import Settings
from worker.core.image import Raster
from worker.core.result import Progress
from worker.engine import previews
from worker.transport.progress import encode_progress


@pytest.fixture(autouse=True)
def every_step(monkeypatch):
    monkeypatch.setattr(previews, "EVERY_S", 0.0)


async def draw(worker, **fields):
    seen = []
    job = {"prompt": "a green frog", "seed": 7, **fields}
    answer = await perform(worker, job, fresh_id(), seen.append)
    return pixels(answer), [item.preview for item in seen if item.preview is not None]


async def test_the_last_preview_looks_like_the_image(tmp_path):
    worker = build_worker(Settings(volume_dir=tmp_path, device="cpu", warm_up=False))
    image, shown = await draw(worker, previews=True)
    last = np.frombuffer(shown[-1].data, np.uint8).reshape(shown[-1].height, shown[-1].width, 3)
    small = np.asarray(Image.fromarray(image).resize((shown[-1].width, shown[-1].height), Image.Resampling.BOX))
    assert np.corrcoef(last.ravel(), small.ravel())[0, 1] > 0.9


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize("model", ["tiny", "tiny-xl", "sd3", "flux"])
async def test_previews_change_no_pixel(worker, zoo, model):
    if model in ("sd3", "flux"):
        settings = worker.settings.model_copy(update={"models_yaml": zoo / "previews.yaml", "default_model": model})
        (zoo / "previews.yaml").write_text(f"models: {{{model}: {{source: 'file:models/{model}'}}}}")
        worker = build_worker(settings)
    steps = {"num_inference_steps": 4, "width": 64, "height": 64}
    plain, nothing = await draw(worker, model=model, **steps)
    watched, shown = await draw(worker, model=model, previews=True, **steps)
    assert np.array_equal(plain, watched)
    assert not nothing
    assert [(item.width, item.height) for item in shown] == [(8, 8)] * 4


def test_a_preview_is_told_as_a_jpeg():
    said = encode_progress(Progress("inference", 1, 4, preview=Raster("RGB", 8, 8, bytes(192))))
    assert Image.open(io.BytesIO(base64.b64decode(said["preview"]))).size == (8, 8)
    assert "preview" not in encode_progress(Progress("inference", 1, 4))


def test_a_vae_of_videos_is_fitted_too():
    torch.manual_seed(0)
    vae = AutoencoderKLWan(base_dim=8, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1).eval()
    assert previews._fit(vae).shape == (17, 3)


async def test_of_several_images_each_is_shown_while_it_is_drawn(worker):
    _, alone = await draw(worker, model="tiny", previews=True, num_inference_steps=3)
    _, both = await draw(worker, model="tiny", previews=True, num_inference_steps=3, num_images=2)
    assert [item.data for item in both[:3]] == [item.data for item in alone]  # one by one on a CPU
    assert len(both) == 6
    assert both[-1].data != alone[-1].data


async def test_jobs_that_are_drawn_together_are_not_shown_to_each_other(worker):
    settings = worker.settings.model_copy(update={"batch_size": 2, "batch_timeout_ms": 2_000})
    together = build_worker(settings)

    async def ask(seed):
        seen = []
        job = {"prompt": "x", "seed": seed, "previews": True}
        answer = await perform(together, job, fresh_id(), seen.append)
        return answer["timings"]["batch_size"], [item.preview for item in seen if item.preview]

    assert await asyncio.gather(ask(1), ask(2)) == [(2, []), (2, [])]


def test_latents_in_a_row_are_shown_packed_or_not_and_others_only_go_without(zoo):
    pipe = FluxPipeline.from_pretrained(zoo / "models" / "flux")
    scale = pipe.vae_scale_factor
    previewer = previews.Previewer(pipe, SimpleNamespace(params={"height": 8 * scale, "width": 4 * scale}))
    plane = torch.randn(1, pipe.vae.config.latent_channels, 8, 4)
    packed = pipe._pack_latents(plane, 1, plane.shape[1], 8, 4)
    shown = previewer.image(plane)
    assert (shown.width, shown.height) == (4, 8)
    assert previewer.image(packed) == previewer.image(plane.flatten(2).transpose(1, 2)) == shown
    assert previewer.image(packed[:, :3]) is None  # an image on the way is never worth the job
