"""models.lock: written from what the Hub says, it pins revisions and refuses other bytes; the same in, the same out."""

import json
import shutil

import pytest

from tests.store.conftest import WEIGHTS, Client, source_of, weights
from worker.core.errors import CorruptFile
from worker.core.turn import StopSignal
from worker.store.lockfile import LockedFile, LockedModel, Lockfile, LockfileError, lock_key
from worker.store.store import Store


@pytest.fixture
def locked(hub, tmp_path):
    """org/model and one LoRA, locked without a byte of weights fetched."""
    store = Store({"hf": Client(hub.endpoint, tmp_path / "locking").store})
    sources = [source_of("org/model"), source_of("org/lora#deep/other.safetensors")]
    found = {lock_key(source, None): store.lock(source, None, pytest.fail, StopSignal(10)) for source in sources}
    assert hub.count(".safetensors", "GET") == 0
    Lockfile(found).write(tmp_path / "models.lock")
    return tmp_path / "models.lock"


def store(hub, tmp_path, locked, **options) -> Store:
    client = Client(hub.endpoint, tmp_path / "cache", **options)
    return Store({"hf": client.store}, Lockfile.read(locked))


def ensure(store: Store, reference: str):
    return store.ensure(source_of(reference), None, lambda event: None, StopSignal(10))


def test_it_names_revision_and_every_file_and_is_stable(locked, hub, folder, tmp_path):
    value = json.loads(locked.read_text())
    model = value["models"]["org/model"]
    assert model["revision"] == hub.commit
    assert model["files"][f"unet/{WEIGHTS}"]["size"] == (folder / "unet" / WEIGHTS).stat().st_size
    assert "safety_checker/config.json" not in model["files"]
    assert all(len(file["sha256"]) == 64 for file in model["files"].values())
    assert set(value["models"]["org/lora#deep/other.safetensors"]["files"]) == {"deep/other.safetensors"}
    Lockfile.read(locked).write(tmp_path / "again.lock")
    assert (tmp_path / "again.lock").read_bytes() == locked.read_bytes()


def test_a_branch_that_moved_on_means_the_locked_commit(locked, hub, folder, tmp_path):
    old = (folder / "unet" / WEIGHTS).read_bytes()
    shutil.copytree(folder, tmp_path / "newer")
    weights(tmp_path / "newer" / "unet" / WEIGHTS, 77, seed=9)
    assert hub.add_repo("org/model", tmp_path / "newer") != hub.commit
    worker = store(hub, tmp_path, locked)
    assert worker.peek(source_of("org/model")).revision == hub.commit
    files = ensure(worker, "org/model")
    assert files.revision == hub.commit
    assert (files.root / "unet" / WEIGHTS).read_bytes() == old
    assert ensure(worker, "org/lora#deep/other.safetensors").is_single_file


def test_what_is_not_locked_is_served_as_ever(locked, hub, tmp_path):
    assert ensure(store(hub, tmp_path, locked), "org/lora#style.safetensors").revision == hub.lora_commit
    assert Lockfile().pin(source_of("org/model"), None) == source_of("org/model")


def relocked(locked, reference: str, name: str):
    """The lockfile with another digest for one file."""
    value = json.loads(locked.read_text())
    value["models"][reference]["files"][name]["sha256"] = "0" * 64
    locked.write_text(json.dumps(value))


def test_another_digest_is_refused_naming_model_and_file(locked, hub, tmp_path):
    relocked(locked, "org/model", f"vae/{WEIGHTS}")
    with pytest.raises(CorruptFile, match=rf"vae/{WEIGHTS} of org/model .*MODELS_LOCK"):
        ensure(store(hub, tmp_path, locked), "org/model")


def test_a_single_file_with_another_digest_is_not_even_fetched(locked, hub, tmp_path):
    relocked(locked, "org/lora#deep/other.safetensors", "deep/other.safetensors")
    with pytest.raises(CorruptFile, match=r"deep/other\.safetensors of org/lora"):
        ensure(store(hub, tmp_path, locked), "org/lora#deep/other.safetensors")
    assert hub.count(".safetensors", "GET") == 0


@pytest.mark.parametrize("harmed", [False, True])
def test_the_cache_of_another_tool_is_hashed_before_it_is_believed(locked, hub, folder, tmp_path, harmed):
    snapshot = tmp_path / "hf" / "models--org--model" / "snapshots" / hub.commit
    shutil.copytree(folder, snapshot)
    if harmed:
        weights(snapshot / "unet" / WEIGHTS, 5_000, seed=7)
    worker = store(hub, tmp_path, locked, lookup=[tmp_path / "hf"])
    if harmed:
        with pytest.raises(CorruptFile, match="unet"):
            ensure(worker, "org/model")
    else:
        assert ensure(worker, "org/model").root == snapshot
    assert not list(tmp_path.glob("cache/blobs/*"))


def test_a_variant_is_locked_by_itself(hub, folder, tmp_path):
    weights(folder / "unet" / "diffusion_pytorch_model.fp16.safetensors", 10)
    hub.add_repo("org/model", folder)
    source = source_of("org/model")
    made = Store({"hf": Client(hub.endpoint, tmp_path / "locking").store}).lock(
        source, "fp16", pytest.fail, StopSignal(10)
    )
    lock = Lockfile({lock_key(source, "fp16"): made})
    assert lock.find(source, None) is None
    assert f"unet/{WEIGHTS}" not in lock.find(source, "fp16").files


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"version": 2, "models": {}}',
        '{"version": 1, "models": {"a": {"revision": "x", "files": {}}}}',
        '{"version": 1, "models": {"a": {"revision": 3, "files": {"x": {"size": 1, "sha256": "0"}}}}}',
        '{"version": 1, "models": {"a": {"revision": null, "files": {"x": {"size": 1, "sha256": "short"}}}}}',
        "[" * 100_000,
    ],
)
def test_a_lockfile_that_cannot_be_read_is_named(tmp_path, text):
    (tmp_path / "models.lock").write_text(text)
    with pytest.raises(LockfileError, match=r"models\.lock"):
        Lockfile.read(tmp_path / "models.lock")


def test_a_single_file_is_pinned_by_its_digest_too():
    lock = Lockfile({"https://host/x.safetensors": LockedModel(None, {"x.safetensors": LockedFile(3, "a" * 64)})})
    source = source_of("https://host/x.safetensors")
    assert lock.pin(source, None).sha256 == "a" * 64
