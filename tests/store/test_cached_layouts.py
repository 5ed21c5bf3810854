"""Caches that somebody else filled: RunPod's cached models, a cache baked into the image. Read first, never written."""

import json
import os
import shutil
import stat

import pytest

from tests.store.conftest import WEIGHTS, Client, files_below, weights, write_pipeline


@pytest.fixture
def baked(hub, folder, tmp_path):
    """A read-only cache in RunPod's layout: refs and snapshots, plain files and no blobs."""
    root = tmp_path / "baked" / "models--org--model"
    shutil.copytree(folder, root / "snapshots" / hub.commit)
    (root / "refs").mkdir()
    (root / "refs" / "main").write_text(hub.commit)
    _protect(tmp_path / "baked", writable=False)
    yield tmp_path / "baked"
    _protect(tmp_path / "baked", writable=True)


def _protect(root, *, writable):
    for path in [root, *root.rglob("*")]:
        mode = path.stat().st_mode
        path.chmod(mode | stat.S_IWUSR if writable else mode & ~0o222)


def _seen(root):
    return {path: path.stat().st_mtime_ns for path in [root, *root.rglob("*")]}


@pytest.fixture
def worker(hub, baked, tmp_path):
    """A client whose own cache is empty."""
    return Client(hub.endpoint, tmp_path / "cache", lookup=(tmp_path / "absent", baked))


@pytest.mark.parametrize("revision", ["", "@main", "@{commit}"])
def test_a_cached_model_needs_no_request_and_is_not_touched(worker, hub, baked, revision):
    before, reference = _seen(baked), "org/model" + revision.format(commit=hub.commit)
    outline, files = worker.peek(reference), worker.ensure(reference)
    assert files.root == baked / "models--org--model" / "snapshots" / hub.commit
    assert (files.revision, files.bytes_downloaded, outline.revision) == (hub.commit, 0, hub.commit)
    assert outline.weight_bytes == sum((files.root / part / WEIGHTS).stat().st_size for part in ("unet", "vae"))
    assert worker.ensure(f"{reference}#unet/{WEIGHTS}").is_single_file
    assert hub.requests == []
    assert _seen(baked) == before
    assert not worker.cache.exists()


def test_a_layout_without_refs_gives_its_snapshot(worker, hub, baked):
    _protect(baked, writable=True)
    shutil.rmtree(baked / "models--org--model" / "refs")
    assert worker.ensure("org/model").revision == hub.commit
    assert hub.requests == []


@pytest.mark.parametrize("reference", ["org/model@" + "0" * 40, "org/model@v2"])
def test_another_revision_is_not_taken_from_it(worker, hub, folder, baked, reference):
    hub.add_repo("org/model", folder, branch="v2")
    hub.requests.clear()
    try:
        files = worker.ensure(reference)
    except Exception:
        files = None
    assert hub.requests, "the Hub was asked"
    assert files is None or files.root.is_relative_to(worker.cache)


@pytest.mark.parametrize(
    "missing",
    [f"unet/{WEIGHTS}", "vae/config.json", "scheduler/scheduler_config.json", "tokenizer", "model_index.json"],
)
def test_an_incomplete_cached_model_is_fetched_whole_into_the_workers_own_cache(worker, hub, folder, baked, missing):
    _protect(baked, writable=True)
    path = baked / "models--org--model" / "snapshots" / hub.commit / missing
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    before = _seen(baked)
    files = worker.ensure("org/model")
    assert files.root.is_relative_to(worker.cache)
    assert files_below(files.root).items() <= files_below(folder).items()
    assert (files.root / "unet" / WEIGHTS).is_file()
    assert _seen(baked) == before


def test_what_the_pipeline_does_not_load_may_be_missing(worker, hub, baked):
    _protect(baked, writable=True)
    shutil.rmtree(baked / "models--org--model" / "snapshots" / hub.commit / "safety_checker")
    assert worker.ensure("org/model").root.is_relative_to(baked)


def test_a_missing_shard_is_noticed_in_the_variant_that_is_wanted(hub, tmp_path):
    folder = write_pipeline(tmp_path / "sharded")
    unet = folder / "unet"
    (unet / WEIGHTS).rename(unet / "diffusion_pytorch_model.fp16.safetensors")
    shards = [f"diffusion_pytorch_model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    for seed, name in enumerate(shards):
        weights(unet / name, 20, seed)
    index = json.dumps({"weight_map": {f"weight{n}": name for n, name in enumerate(shards)}})
    (unet / "diffusion_pytorch_model.safetensors.index.json").write_text(index)
    hub.add_repo("org/sharded", folder)
    baked = tmp_path / "baked" / "models--org--sharded" / "snapshots" / ("0" * 40)
    shutil.copytree(folder, baked)
    worker = Client(hub.endpoint, tmp_path / "cache", lookup=[tmp_path / "baked"])
    assert worker.ensure("org/sharded").root == baked
    (baked / "unet" / shards[1]).unlink()
    assert worker.ensure("org/sharded", "fp16").variant == "fp16"
    assert hub.requests == []
    assert worker.ensure("org/sharded").root.is_relative_to(tmp_path / "cache")


def test_the_only_file_of_a_cached_repository_stands_for_it(hub, tmp_path):
    snapshot = tmp_path / "baked" / "models--org--lora" / "snapshots" / hub.lora_commit
    weights(snapshot / "style.safetensors")
    worker = Client(hub.endpoint, tmp_path / "cache", lookup=[tmp_path / "baked"])
    assert worker.ensure("org/lora").root == snapshot / "style.safetensors"
    assert worker.peek("org/lora").header.tensors == {"weight": ("F32", (64,))}
    assert hub.requests == []


def test_names_of_repositories_are_told_apart_by_case(worker, hub, tmp_path):
    hub.add_repo("Org/Model", write_pipeline(tmp_path / "upper", 10))
    assert worker.ensure("Org/Model").root.is_relative_to(worker.cache)


class TestBaked:
    """A model in the image, in the layout of the volume cache."""

    @pytest.fixture
    def image(self, hub, tmp_path):
        Client(hub.endpoint, tmp_path / "image").ensure("org/model")
        _protect(tmp_path / "image", writable=False)
        yield tmp_path / "image"
        _protect(tmp_path / "image", writable=True)

    @pytest.mark.parametrize("revision", ["", "@main", "@{commit}"])
    def test_it_needs_no_request_and_is_not_touched(self, hub, tmp_path, image, revision):
        before, reference = _seen(image), "org/model" + revision.format(commit=hub.commit)
        hub.requests.clear()
        worker = Client(hub.endpoint, tmp_path / "cache", baked=[image])
        assert worker.ensure(reference).root.is_relative_to(image)
        assert worker.peek(reference).configs
        assert hub.requests == []
        assert _seen(image) == before
        assert not (tmp_path / "cache").exists()

    def test_whole_seconds_are_enough_to_know_it_by(self, hub, tmp_path, image, monkeypatch):
        """Layers of an image keep no finer times; a cold start must not hash gigabytes because of that."""
        for path in (image / "blobs").iterdir():
            seconds = int(path.stat().st_mtime)
            os.utime(path, (seconds, seconds))
        hub.requests.clear()
        monkeypatch.setattr("worker.store.entries.digest_of", pytest.fail)
        assert Client(hub.endpoint, tmp_path / "cache", baked=[image]).ensure("org/model").root.is_relative_to(image)
