"""A Hub that is down, slow, gated or wrong: a typed answer in time, the cached copy where there is one."""

import shutil
import threading
from collections import namedtuple

import pytest

from tests.store.conftest import WEIGHTS, Client, weights
from worker.core.errors import (
    AccessDenied,
    CorruptFile,
    DiskFull,
    JobCancelled,
    JobTimeout,
    ModelNotFound,
    SourceError,
    SourceUnavailable,
    UnsupportedModel,
)
from worker.core.turn import StopSignal
from worker.store import hub_listing, huggingface

Usage = namedtuple("Usage", "total used free")


class TestDown:
    def test_without_a_copy_the_job_may_be_sent_again(self, client, hub):
        hub.down = True
        for ask in (client.peek, client.ensure):
            with pytest.raises(SourceUnavailable) as caught:
                ask("org/model")
            assert caught.value.retryable
            assert str(hub.port) not in caught.value.message

    @pytest.mark.parametrize("revision", ["", "@main", "@v1"])
    def test_a_copy_from_before_is_used(self, client, hub, folder, revision):
        hub.add_repo("org/model", folder, branch="v1")
        root = client.ensure(f"org/model{revision}").root
        hub.down = True
        later = Client(hub.endpoint, client.cache)
        assert later.peek(f"org/model{revision}").revision == hub.commit
        assert later.ensure(f"org/model{revision}").root == root

    def test_the_newest_copy_is_used_and_not_any(self, client, hub, folder, tmp_path):
        roots = [client.ensure("org/model").root]
        for seed in range(1, 4):
            weights(folder / "unet" / WEIGHTS, 100, seed)
            hub.add_repo("org/model", folder)
            roots.append(Client(hub.endpoint, client.cache).ensure("org/model").root)
        hub.down = True
        assert Client(hub.endpoint, client.cache).ensure("org/model").root == roots[-1]

    def test_a_newer_file_does_not_hide_the_older_pipeline(self, client, hub, folder):
        whole = client.ensure("org/model").root
        weights(folder / "extra.safetensors")
        hub.add_repo("org/model", folder)
        Client(hub.endpoint, client.cache).ensure("org/model#extra.safetensors")
        hub.down = True
        assert Client(hub.endpoint, client.cache).ensure("org/model").root == whole

    def test_a_hub_that_was_down_is_not_asked_by_every_job(self, client, hub):
        client.ensure("org/model")
        hub.down = True
        later = Client(hub.endpoint, client.cache)
        later.ensure("org/model")
        asked = len(hub.requests)
        for _ in range(3):
            later.peek("org/model")
            later.ensure("org/model")
        assert len(hub.requests) == asked

    def test_two_failures_in_a_row_are_waited_out(self, client, hub):
        hub.failures = [503, 429]
        assert client.ensure("org/model").revision == hub.commit

    def test_a_refusal_is_not_repeated(self, client, hub):
        with pytest.raises(ModelNotFound):
            client.ensure("org/nothing")
        assert len(hub.requests) == 1


class TestHanging:
    def test_a_copy_from_before_is_used_after_one_short_wait(self, client, hub, monkeypatch):
        client.ensure("org/model")
        monkeypatch.setattr(hub_listing, "LISTING_TIMEOUT_S", 0.5)
        hub.hang = True
        assert Client(hub.endpoint, client.cache).ensure("org/model").revision == hub.commit
        hub.hang = False

    @pytest.mark.parametrize("when", ["listing", "download"])
    def test_a_cancelled_job_ends_at_once(self, client, hub, when):
        if when == "download":
            hub.slow.add(f"unet/{WEIGHTS}")
        else:
            hub.hang = True
        stop = StopSignal(30)
        timer = threading.Timer(0.5, stop.cancel)
        timer.start()
        with pytest.raises(JobCancelled):
            client.ensure("org/model", stop=stop)
        hub.hang = False

    def test_the_deadline_ends_a_download_that_trickles(self, client, hub):
        hub.slow.add(f"unet/{WEIGHTS}")
        with pytest.raises(JobTimeout):
            client.ensure("org/model", stop=StopSignal(0.7))

    def test_a_download_that_was_stopped_is_finished_by_the_next_job(self, client, hub, folder):
        hub.slow.add(f"unet/{WEIGHTS}")
        with pytest.raises(JobTimeout):
            client.ensure("org/model", stop=StopSignal(0.5))
        hub.slow.clear()
        files = client.ensure("org/model")
        assert (files.root / "unet" / WEIGHTS).read_bytes() == (folder / "unet" / WEIGHTS).read_bytes()

    def test_a_peek_gives_up_in_time(self, client, hub, folder, monkeypatch):
        monkeypatch.setattr(huggingface, "_PEEK_TIMEOUT_S", 0.5)
        hub.slow.add("unet/config.json")
        (folder / "unet" / "config.json").write_text('{"x": "' + "y" * 100_000 + '"}')
        hub.add_repo("org/model", folder)
        with pytest.raises(SourceUnavailable, match="in time"):
            client.peek("org/model")


class TestOffline:
    def test_the_cache_serves_without_a_request(self, client, hub):
        client.ensure("org/model")
        client.ensure("org/lora#style.safetensors")
        hub.requests.clear()
        offline = Client(hub.endpoint, client.cache, offline=True)
        assert offline.ensure("org/model").revision == hub.commit
        assert offline.peek("org/model").configs
        assert offline.ensure("org/lora#style.safetensors").is_single_file
        assert hub.requests == []

    def test_what_is_not_cached_is_refused_with_the_way_out(self, client, hub):
        offline = Client(hub.endpoint, client.cache, offline=True)
        for ask in (offline.peek, offline.ensure):
            with pytest.raises(SourceUnavailable, match="OFFLINE"):
                ask("org/model")
        assert hub.requests == []

    @pytest.mark.parametrize(
        "missing", [f"unet/{WEIGHTS}", "unet/config.json", "tokenizer/vocab.json tokenizer/merges.txt"]
    )
    def test_half_a_model_is_not_taken_for_one(self, client, hub, tmp_path, missing):
        from huggingface_hub import snapshot_download

        snapshot_download("org/model", endpoint=hub.endpoint, cache_dir=tmp_path, ignore_patterns=missing.split())
        with pytest.raises(SourceUnavailable, match="OFFLINE"):
            Client(hub.endpoint, client.cache, shared=[tmp_path], offline=True).ensure("org/model")

    @pytest.mark.parametrize("state", ["offline", "down", "up"])
    def test_a_model_that_another_tool_fetched_is_used_where_it_lies(self, client, hub, tmp_path, state):
        from huggingface_hub import snapshot_download

        snapshot_download("org/model", endpoint=hub.endpoint, cache_dir=tmp_path / "hf")
        hub.down = state == "down"
        hub.requests.clear()
        worker = Client(hub.endpoint, client.cache, shared=[tmp_path / "hf"], offline=state == "offline")
        files = worker.ensure("org/model")
        assert files.revision == hub.commit
        assert files.root.is_relative_to(tmp_path / "hf")
        assert files.bytes_downloaded == 0
        assert hub.count(".safetensors", "GET") == 0
        assert not list(client.cache.rglob("*.safetensors"))


class TestRefused:
    @pytest.fixture
    def gated(self, hub, folder):
        hub.add_repo("org/gated", folder, gated=True)
        hub.add_repo("org/private", folder, private=True)

    @pytest.mark.parametrize("token", [None, "hf_stranger"])
    def test_a_gated_repository_says_what_to_do(self, hub, tmp_path, gated, token):
        with pytest.raises(AccessDenied) as caught:
            Client(hub.endpoint, tmp_path / "cache", token=token).ensure("org/gated")
        assert "org/gated is gated" in caught.value.message
        assert "HF_TOKEN" in caught.value.message
        assert "hf_stranger" not in caught.value.message

    def test_the_right_token_opens_gated_and_private(self, hub, tmp_path, gated):
        client = Client(hub.endpoint, tmp_path / "cache", token=hub.token)
        assert client.ensure("org/gated").total_bytes == client.ensure("org/private").total_bytes

    def test_a_private_repository_looks_like_none(self, client, gated):
        with pytest.raises(ModelNotFound, match="private"):
            client.ensure("org/private")

    def test_a_wrong_token_is_a_refusal_without_the_token(self, hub, tmp_path, gated):
        with pytest.raises(AccessDenied, match="HF_TOKEN") as caught:
            Client(hub.endpoint, tmp_path / "cache", token="hf_wrong").ensure("org/model")
        assert "hf_wrong" not in str(caught.value)


class TestDamaged:
    def test_a_flipped_bit_on_the_way_is_never_published(self, client, hub, folder):
        hub.corrupt(f"unet/{WEIGHTS}")
        with pytest.raises(CorruptFile, match="unet") as caught:
            client.ensure("org/model")
        assert caught.value.retryable
        assert not list(client.cache.rglob(f"unet/{WEIGHTS}"))
        hub.heal()
        files = client.ensure("org/model")
        assert (files.root / "unet" / WEIGHTS).read_bytes() == (folder / "unet" / WEIGHTS).read_bytes()

    def test_a_download_that_breaks_off_is_typed_and_leaves_no_garbage(self, client, hub):
        hub.truncate(f"unet/{WEIGHTS}", 1_000)
        with pytest.raises(SourceError):
            client.ensure("org/model")
        assert not list(client.cache.rglob(f"unet/{WEIGHTS}"))
        hub.heal()
        assert client.ensure("org/model").bytes_downloaded > 0
        assert not list(client.cache.rglob("*.part"))
        assert not list((client.cache / "leases").iterdir())

    def test_a_config_that_is_no_json_is_typed(self, client, hub, folder):
        (folder / "unet" / "config.json").write_text("<html>")
        hub.add_repo("org/model", folder)
        with pytest.raises(CorruptFile, match=r"config\.json"):
            client.peek("org/model")

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"<html>not found</html>" * 100,
            b"\xff" * 8 + b"{}",
            (2**40).to_bytes(8, "little") + b"{}",
            b"\x02" + b"\0" * 7 + b"[]",
            b"\x0e" + b"\0" * 7 + b'{"a":{"b":[]}}',
            (60_000).to_bytes(8, "little") + b"[" * 60_000,
        ],
    )
    def test_a_file_that_is_no_safetensors_is_typed(self, client, hub, tmp_path, body):
        (tmp_path / "bad").mkdir()
        (tmp_path / "bad" / "x.safetensors").write_bytes(body)
        hub.add_repo("org/bad", tmp_path / "bad")
        with pytest.raises((CorruptFile, UnsupportedModel)):
            client.peek("org/bad#x.safetensors")
        assert not list(client.cache.rglob("*.safetensors"))


class TestFullDisk:
    def test_a_model_that_does_not_fit_is_refused_before_it_is_fetched(self, client, hub, monkeypatch):
        monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9, 30_000))
        with pytest.raises(DiskFull, match="GiB") as caught:
            client.ensure("org/model")
        assert not caught.value.retryable
        assert hub.count(".safetensors", "GET") == 0

    def test_what_is_there_already_needs_no_space(self, hub, tmp_path, monkeypatch):
        client = Client(hub.endpoint, tmp_path / "cache", limits={"reserve_bytes": 0})
        client.ensure(f"org/model#unet/{WEIGHTS}")
        needed = 25_000  # the VAE and the small files; the UNet's 20 kB are on disk
        monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9, needed))
        assert client.ensure("org/model").total_bytes > needed
