"""Parts that models have in common: one copy in memory, and nothing of one model's job in another's image."""

import json
import os
import shutil
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.asking import perform
from tests.builders import tiny_sd1
from tests.engine.test_plan import plan as planned
from tests.engine.test_ram_tier import ApartTier, model, use
from tests.images import assert_differs, pixels
from tests.loras import build, lora
from worker.app.build import build_worker
from worker.app.settings import Settings
from worker.core.errors import EngineFailure
from worker.engine.pool import PipelinePool
from worker.engine.ram_tier import RamTier, size_of


def blobs_of(folder: Path, volume: Path) -> Path:
    """Have a model's weights lie as the volume's cache keeps them: links to files that are named by their digest."""
    (volume / "blobs").mkdir(parents=True, exist_ok=True)
    for path in folder.rglob("*.safetensors"):
        blob = volume / "blobs" / sha256(path.read_bytes()).hexdigest()
        shutil.copy(path, blob)
        path.unlink()
        path.symlink_to(os.path.relpath(blob, path.parent))
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Path:
    """Two models with one text encoder and one VAE, and denoisers of their own; each came with its own config."""
    root = tmp_path_factory.mktemp("pair")
    one, two = tiny_sd1(root / "one", seed=1), tiny_sd1(root / "two", seed=2)
    for part in ("text_encoder", "vae"):
        shutil.rmtree(two / part)
        shutil.copytree(one / part, two / part)
    config = two / "text_encoder/config.json"
    config.write_text(config.read_text().replace("{", '{"_name_or_path": "elsewhere", ', 1))
    for folder in (one, two):
        blobs_of(folder, root)
    return root


@pytest.fixture
def shared_worker(pair, tmp_path):
    """A worker with both models, and a LoRA of the text encoder."""
    defaults = {"num_inference_steps": 2, "width": 64, "height": 64}
    models = {name: {"source": f"file:{pair / name}", "defaults": defaults} for name in ("one", "two")}
    (tmp_path / "models.yaml").write_text(json.dumps({"models": models}))

    def make(residents=2, **settings):
        return build_worker(
            Settings(
                models_yaml=tmp_path / "models.yaml", default_model="one", allowed_model_dirs=[pair, tmp_path],
                volume_dir=tmp_path / "volume", device="cpu", warm_up=False, max_resident_models=residents, **settings,
            )
        )  # fmt: skip

    return make


async def drawn(worker, name, **job):
    return pixels(await perform(worker, {"prompt": "a red plum", "seed": 3, "model": name} | job))


def residents(worker):
    return {each.model: each for each in worker.engine.submit(lambda engine: engine._pool.residents, "test").result()}


async def test_two_models_have_one_text_encoder_and_one_vae(shared_worker, pair, tmp_path):
    alone = {name: await drawn(shared_worker(1, ram_tier_gb=0), name) for name in ("one", "two")}
    worker = shared_worker()
    for name in ("one", "two"):
        assert np.array_equal(await drawn(worker, name), alone[name])
    found = residents(worker)
    one, two = found["one"].pipe, found["two"].pipe
    assert one.text_encoder is two.text_encoder
    assert one.vae is two.vae
    assert one.unet is not two.unet
    together = size_of(*found.values())
    assert together == size_of(found["one"]) + size_of(found["two"]) - _bytes(one.text_encoder) - _bytes(one.vae)
    # A LoRA of the shared encoder is one model's job's, and no other's
    path = tmp_path / "words.safetensors"
    layers = [name for name, _ in one.text_encoder.named_modules() if name.endswith(("q_proj", "fc1"))]
    build(one, "text_encoder", layers, lora, seed=3).save(path)
    assert_differs(await drawn(worker, "one", loras=[f"file:{path}"]), alone["one"])
    assert np.array_equal(await drawn(worker, "two"), alone["two"])
    assert np.array_equal(await drawn(worker, "one"), alone["one"])
    # One that is unloaded leaves the other all that it needs
    encoder = one.text_encoder
    del found, one, two
    assert worker.engine.submit(lambda engine: engine.unload("one"), "test").result() == 1
    assert np.array_equal(await drawn(worker, "two"), alone["two"])
    assert residents(worker)["two"].pipe.text_encoder is encoder


def _bytes(part):
    return sum(tensor.nbytes for tensor in (*part.parameters(), *part.buffers()))


async def test_a_model_that_fails_takes_those_along_that_share_a_part_with_it(shared_worker):
    worker = shared_worker()
    expected = await drawn(worker, "two")
    await drawn(worker, "one")
    encoder = residents(worker)["two"].pipe.text_encoder

    def breaks(engine):
        pipe = engine._pool.residents[-1].pipe
        pipe.unet.forward = lambda *_, **__: 1 / 0

    worker.engine.submit(breaks, "test").result()
    with pytest.raises(EngineFailure):
        await drawn(worker, "one")
    assert residents(worker) == {}
    assert np.array_equal(await drawn(worker, "two"), expected)
    assert residents(worker)["two"].pipe.text_encoder is not encoder


async def test_files_of_other_content_are_other_parts(shared_worker, pair):
    path = next((pair / "two/text_encoder").glob("*.safetensors"))
    original = path.resolve()
    changed = original.read_bytes()[:-4] + b"\0\0\0\1"
    path.unlink()
    path.write_bytes(changed)  # not named by a digest: it is the same as itself only
    try:
        worker = shared_worker()
        for name in ("one", "two"):
            await drawn(worker, name)
        found = residents(worker)
        assert found["one"].pipe.text_encoder is not found["two"].pipe.text_encoder
        assert found["one"].pipe.vae is found["two"].pipe.vae
    finally:
        path.unlink()
        path.symlink_to(os.path.relpath(original, path.parent))


def sharing(name: str, part: torch.nn.Module):
    """A model with a part that others have too."""
    found = model(name, seed=ord(name))
    found.pipe.components["vae"] = part
    return found


@pytest.mark.parametrize("kind", [RamTier, ApartTier])
def test_a_part_stays_on_the_device_while_a_model_there_has_it(kind):
    part = torch.nn.Linear(64, 64)
    values = part.weight.clone()
    tier = kind(torch.device("cpu"))
    pool, loads = PipelinePool(1, tier), []

    def make(name):
        return sharing(name, part)

    use(pool, "a", loads, make)
    pool._capacity = 2
    use(pool, "b", loads, make)
    address = part.weight.data_ptr()
    pool.evict("a", may_wait=True)
    assert part.weight.data_ptr() == address
    assert tier.byte_size == size_of(model("x"))  # the part is b's
    use(pool, "a", loads, make)
    assert part.weight.data_ptr() == address
    for name in "ab":
        pool.evict(name, may_wait=True)
    assert tier.models == ["a", "b"]
    assert tier.byte_size == 2 * size_of(model("x")) + _bytes(part)
    for name in "ba":
        use(pool, name, loads, make)
        assert torch.equal(part.weight, values)
    assert loads == ["a", "b"]


def test_a_part_that_nobody_on_the_device_has_does_not_stay_there():
    part, tier = torch.nn.Linear(64, 64), ApartTier(torch.device("cpu"))
    pool, loads = PipelinePool(2, tier), []
    for name in "ab":
        use(pool, name, loads, lambda name: sharing(name, part))
    pool.evict("a", may_wait=True)
    pool.evict("b")
    assert (pool.models, tier.models) == ([], [])


def test_what_is_on_the_device_already_needs_no_room():
    alone, shared = planned("cuda", 24, dtype="float16"), planned("cuda", 24, dtype="float16", held=2**30)
    assert alone.estimated_bytes - shared.estimated_bytes == 2**30
    assert alone.reserve_bytes == shared.reserve_bytes
