"""Repositories that lack a file: named before any weights are fetched, on the Hub and in a folder alike."""

import json

import pytest

from tests.store.conftest import WEIGHTS, Client, weights, write_pipeline
from worker.catalog.formats.headers import read_header
from worker.core.errors import CorruptFile
from worker.core.model import ModelSource
from worker.core.turn import StopSignal
from worker.store.local import LocalFolders

SHARDS = [f"diffusion_pytorch_model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
INDEX = f"{WEIGHTS}.index.json"


@pytest.fixture
def repository(tmp_path):
    """A pipeline whose UNet is sharded."""
    folder = write_pipeline(tmp_path / "complete")
    (folder / "unet" / WEIGHTS).unlink()
    for seed, name in enumerate(SHARDS):
        weights(folder / "unet" / name, seed=seed + 10)
    (folder / "unet" / INDEX).write_text(json.dumps({"weight_map": {name: name for name in SHARDS}}))
    return folder


LACKS = [
    [f"unet/{SHARDS[1]}"],
    [f"unet/{SHARDS[2]}"],
    [f"unet/{INDEX}"],
    [f"vae/{WEIGHTS}"],
    ["vae/config.json"],
    ["scheduler/scheduler_config.json"],
    ["tokenizer/merges.txt"],
]


@pytest.mark.parametrize("names", LACKS, ids=lambda names: names[0])
def test_a_missing_file_is_named_before_the_download(repository, client, hub, names):
    for name in names:
        (repository / name).unlink()
    hub.add_repo("org/lacking", repository)
    local = LocalFolders([repository], read_header)
    folder = ModelSource(scheme="file", locator=str(repository))
    asks = [lambda: client.peek("org/lacking"), lambda: client.ensure("org/lacking")]
    if names != [f"vae/{WEIGHTS}"]:  # of a folder, only who loads it asks for weights
        asks.append(lambda: local.peek(folder, None))
        asks.append(lambda: local.ensure(folder, None, pytest.fail, StopSignal(5)))
    shown = "vae/*.safetensors" if names == [f"vae/{WEIGHTS}"] else names[0]
    for ask in asks:
        with pytest.raises(CorruptFile) as error:
            ask()
        assert error.value.details == {"missing": [shown]}
        assert shown in error.value.message
        assert (error.value.field, error.value.retryable) == ("model", False)
    assert hub.count(".safetensors", "GET") == hub.count(".safetensors.index.json", "GET") <= 1


@pytest.mark.parametrize(
    ("part", "shown"),
    [
        ("unet", "unet/*.safetensors"),
        ("scheduler", "scheduler/scheduler_config.json"),
        ("tokenizer", "tokenizer/tokenizer.json"),
    ],
)
def test_a_part_that_is_not_there_at_all_is_named(repository, client, hub, part, shown):
    for file in (repository / part).iterdir():
        file.unlink()
    hub.add_repo("org/lacking", repository)
    with pytest.raises(CorruptFile, match=r"org/lacking lacks") as error:
        client.ensure("org/lacking")
    assert error.value.details == {"missing": [shown]}


def test_an_index_that_names_other_shards_is_told(repository, client, hub):
    (repository / "unet" / INDEX).write_text(json.dumps({"weight_map": {"a": "other-00001-of-00001.safetensors"}}))
    hub.add_repo("org/lacking", repository)
    with pytest.raises(CorruptFile, match=r"unet/other-00001-of-00001\.safetensors"):
        client.ensure("org/lacking")


def test_what_is_not_wanted_may_be_missing(repository, client, hub):
    (repository / "vae" / WEIGHTS).unlink()
    hub.add_repo("org/lacking", repository)
    source = ModelSource(scheme="hf", locator="org/lacking", without=("vae",))
    assert client.store.ensure(source, None, print, StopSignal(10)).total_bytes > 0


def test_a_copy_of_everything_serves_whoever_wants_less(repository, client, hub):
    hub.add_repo("org/whole", repository)
    root = client.ensure("org/whole").root
    offline = Client(hub.endpoint, client.cache, offline=True).store
    for parts in ({"without": ("vae",)}, {"only": ("unet",)}):
        source = ModelSource(scheme="hf", locator="org/whole", **parts)
        assert offline.ensure(source, None, print, StopSignal(10)).root == root
        assert "model_index.json" in offline.peek(source, None).configs


def test_a_component_alone_lacks_a_shard(client, hub, tmp_path):
    folder = tmp_path / "control"
    for name in SHARDS[:2]:
        weights(folder / name)
    (folder / INDEX).write_text(json.dumps({"weight_map": {name: name for name in SHARDS}}))
    (folder / "config.json").write_text('{"_class_name": "ControlNetModel"}')
    hub.add_repo("org/control", folder)
    with pytest.raises(CorruptFile, match=f"lacks {SHARDS[2]}"):
        client.peek("org/control")
