"""The cache as an operator sees it: listed by size, removed whole."""

import pytest

from worker.store.cache import list_cache, remove_from_cache


def test_no_cache_is_an_empty_list(tmp_path):
    assert list_cache(tmp_path / "nothing") == []
    assert remove_from_cache(tmp_path / "nothing", "org/model") == 0


@pytest.mark.filterwarnings("error")
def test_repositories_are_listed_largest_first(client, hub):
    client.ensure("org/lora#style.safetensors")
    files = client.ensure("org/model")
    (client.cache / "datasets--org--data" / "snapshots" / ("0" * 40)).mkdir(parents=True)
    (client.cache / "datasets--org--data" / "refs").mkdir()
    model, lora = list_cache(client.cache)
    assert (model.name, model.revisions) == ("org/model", (hub.commit,))
    assert (lora.name, lora.revisions) == ("org/lora", (hub.lora_commit,))
    assert model.total_bytes == files.total_bytes
    assert 0 < lora.total_bytes < model.total_bytes
    assert model.last_used > 1_600_000_000


def test_what_was_removed_is_gone_and_can_be_fetched_again(client, hub):
    files = client.ensure(f"org/model@{hub.commit}")
    assert remove_from_cache(client.cache, "org/model") >= files.total_bytes
    assert list_cache(client.cache) == []
    assert not list(client.cache.rglob("*.safetensors"))
    assert not list(client.cache.rglob("*.json"))
    assert client.ensure(f"org/model@{hub.commit}").bytes_downloaded > 0


def test_what_an_interrupted_download_left_is_removed_with_it(client, hub):
    files = client.ensure("org/model")
    left = files.root.parent.parent / "blobs" / "abc.1234.incomplete"
    left.write_bytes(b"x" * 50_000)
    assert remove_from_cache(client.cache, "org/model") >= files.total_bytes + 50_000
    assert not left.exists()


@pytest.mark.parametrize("name", ["org/nothing", "../outside", "..", "org", ""])
def test_another_name_removes_nothing(client, tmp_path, name):
    (tmp_path / "outside").mkdir()
    client.ensure("org/lora#style.safetensors")
    assert remove_from_cache(client.cache, name) == 0
    assert len(list_cache(client.cache)) == 1
    assert (tmp_path / "outside").exists()
