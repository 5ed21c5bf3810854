"""Fetching from the Hub: what is asked for, what is told on the way, and what is never asked for again."""

import threading

import pytest

from tests.store.conftest import COMPONENTS, WEIGHTS, Client, files_below, weights, write_pipeline
from worker.core.errors import (
    InvalidRequest,
    JobCancelled,
    ModelNotFound,
    UnsafeFormat,
    UnsupportedModel,
)
from worker.core.model import ModelSource
from worker.core.turn import StopSignal
from worker.store import hub_listing


def served(hub, *parts: str) -> int:
    """How many times one of the files was sent."""
    return sum(hub.count(part, "GET") for part in parts)


class TestCold:
    def test_every_file_of_the_pipeline_arrives_and_nothing_else(self, client, hub, folder):
        files = client.ensure("org/model")
        expected = {name: body for name, body in files_below(folder).items() if not name.startswith("safety_checker/")}
        assert files_below(files.root) == expected
        assert files.revision == hub.commit
        assert files.variant is None
        assert not files.is_single_file
        assert files.total_bytes == sum(map(len, expected.values()))

    def test_progress_counts_up_to_the_total(self, client):
        files = client.ensure("org/model")
        steps = [event.step for event in client.events]
        assert {event.phase for event in client.events} == {"download"}
        assert {event.message for event in client.events} == {"org/model"}
        assert {event.total for event in client.events} == {files.total_bytes}
        assert steps == sorted(steps)
        assert steps[-1] == files.total_bytes
        assert files.total_bytes - 2_000 < files.bytes_downloaded <= files.total_bytes

    def test_progress_reaches_the_total_when_half_of_it_was_there_already(self, client, hub):
        client.ensure("org/model#unet/diffusion_pytorch_model.safetensors")
        client.events.clear()
        files = client.ensure("org/model")
        assert client.events[-1].step == client.events[-1].total == files.total_bytes
        assert files.bytes_downloaded < files.total_bytes / 1.5
        assert served(hub, "unet/diffusion_pytorch_model") == 1

    def test_a_repository_with_fp16_weights_alone_says_so(self, hub, tmp_path):
        half = write_pipeline(tmp_path / "half")
        for name in ("unet", "vae"):
            (half / name / WEIGHTS).rename(half / name / "diffusion_pytorch_model.fp16.safetensors")
        hub.add_repo("org/half", half)
        files = Client(hub.endpoint, tmp_path / "cache").ensure("org/half")
        assert files.variant == "fp16"
        again = Client(hub.endpoint, tmp_path / "cache").ensure("org/half")
        assert again == type(files)(**{**{k: getattr(files, k) for k in files.__slots__}, "bytes_downloaded": 0})

    def test_the_wanted_variant_is_fetched_and_both_may_lie_side_by_side(self, client, hub, folder):
        weights(folder / "unet" / "diffusion_pytorch_model.fp16.safetensors", 10)
        hub.add_repo("org/model", folder)
        half = client.ensure("org/model", "fp16")
        assert half.variant == "fp16"
        assert not (half.root / "unet" / WEIGHTS).exists()
        full = client.ensure("org/model")
        assert full.variant is None
        assert (full.root / "unet" / WEIGHTS).exists()
        assert full.total_bytes > half.total_bytes
        assert served(hub, "vae/diffusion") == 1, "what both have in common"
        assert client.ensure("org/model", "fp16").root == half.root

    def test_a_token_is_sent_when_there_is_one_and_none_of_the_environment_when_not(self, hub, tmp_path, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", hub.stranger)
        Client(hub.endpoint, tmp_path / "a").ensure("org/model")
        assert not any("authorization" in seen.headers for seen in hub.requests)
        Client(hub.endpoint, tmp_path / "b", token=hub.token).ensure("org/model")
        assert hub.requests[-1].headers["authorization"] == f"Bearer {hub.token}"

    def test_a_pickle_only_repository_is_refused_before_any_weights(self, client, hub, tmp_path):
        folder = write_pipeline(tmp_path / "pickled")
        (folder / "unet" / WEIGHTS).rename(folder / "unet" / "diffusion_pytorch_model.bin")
        hub.add_repo("org/pickled", folder)
        for ask in (client.ensure, client.peek):
            with pytest.raises(UnsafeFormat, match="unet"):
                ask("org/pickled")
        assert served(hub, "/unet/diffusion", "/vae/diffusion") == 0


class TestWarm:
    def test_a_pinned_commit_makes_no_request_in_a_new_process(self, client, hub, tmp_path):
        first = client.ensure(f"org/model@{hub.commit}")
        hub.requests.clear()
        second = Client(hub.endpoint, tmp_path / "cache")
        again, outline = second.ensure(f"org/model@{hub.commit}"), second.peek(f"org/model@{hub.commit}")
        assert again.root == first.root
        assert again.bytes_downloaded == 0
        assert outline.revision == hub.commit
        assert hub.requests == []
        assert second.events == []

    def test_a_branch_makes_one_request_per_process_and_none_while_it_is_remembered(self, client, hub, tmp_path):
        client.ensure("org/model")
        hub.requests.clear()
        client.peek("org/model")
        client.ensure("org/model")
        assert hub.requests == []
        second = Client(hub.endpoint, tmp_path / "cache")
        second.peek("org/model")
        second.ensure("org/model")
        assert len(hub.requests) == 1

    def test_after_the_memory_a_branch_is_asked_for_once_more_and_followed(self, client, hub, folder, monkeypatch):
        old = client.ensure("org/model")
        weights(folder / "unet" / WEIGHTS, 100, seed=9)
        newer = hub.add_repo("org/model", folder)
        assert client.ensure("org/model").revision == old.revision, "remembered"
        monkeypatch.setattr(hub_listing, "MEMORY_S", 0.0)
        files = client.ensure("org/model")
        assert files.revision == newer
        assert (files.root / "unet" / WEIGHTS).read_bytes() == (folder / "unet" / WEIGHTS).read_bytes()

    def test_a_file_that_went_missing_from_the_cache_is_fetched_again(self, client, hub, folder):
        files = client.ensure(f"org/model@{hub.commit}")
        blob = (files.root / "unet" / WEIGHTS).resolve()
        blob.unlink()
        assert client.ensure(f"org/model@{hub.commit}").bytes_downloaded > 0
        assert blob.read_bytes() == (folder / "unet" / WEIGHTS).read_bytes()

    def test_a_file_that_was_cut_short_on_disk_is_healed(self, client, hub, folder):
        files = client.ensure(f"org/model@{hub.commit}")
        with (files.root / "unet" / WEIGHTS).resolve().open("r+b") as file:
            file.truncate(100)
        healed = client.ensure(f"org/model@{hub.commit}")
        assert (healed.root / "unet" / WEIGHTS).read_bytes() == (folder / "unet" / WEIGHTS).read_bytes()


class TestPeek:
    def test_a_pipeline_is_described_without_its_weights(self, client, hub, folder):
        outline = client.peek("org/model")
        assert set(outline.configs) == {
            "model_index.json",
            "unet/config.json",
            "vae/config.json",
            "scheduler/scheduler_config.json",
        }
        assert outline.configs["model_index.json"]["unet"] == COMPONENTS["unet"]
        assert outline.weight_bytes == sum((folder / part / WEIGHTS).stat().st_size for part in ("unet", "vae"))
        assert outline.revision == hub.commit
        assert served(hub, ".safetensors") == 0

    def test_disk_and_hub_describe_a_pipeline_alike(self, client, hub):
        remote = client.peek("org/model")
        client.ensure("org/model")
        local = client.peek("org/model")
        assert (local.configs, local.weight_bytes) == (remote.configs, remote.weight_bytes)

    def test_a_download_after_a_peek_fetches_the_rest(self, client, hub, folder):
        client.peek("org/model")
        files = client.ensure("org/model")
        assert (files.root / "unet" / WEIGHTS).read_bytes() == (folder / "unet" / WEIGHTS).read_bytes()
        assert (files.root / "tokenizer" / "merges.txt").exists()

    @pytest.mark.parametrize("as_lookup", [False, True])
    def test_what_a_peek_left_is_not_taken_for_the_model(self, client, hub, tmp_path, as_lookup):
        client.peek("org/model")
        if as_lookup:
            other = Client(hub.endpoint, tmp_path / "other", lookup=[client.cache])
            assert other.ensure("org/model").root.is_relative_to(tmp_path / "other")
        else:
            hub.down = True
            with pytest.raises(Exception, match="did not deliver"):
                Client(hub.endpoint, client.cache).ensure("org/model")

    def test_a_single_file_is_described_by_its_header_alone(self, client, hub, tmp_path):
        weights(tmp_path / "big" / "big.safetensors", 500_000)
        hub.add_repo("org/big", tmp_path / "big")
        outline = client.peek("org/big")
        assert outline.header.tensors == {"weight": ("F32", (500_000,))}
        assert outline.header.file_bytes == (tmp_path / "big" / "big.safetensors").stat().st_size
        ranges = [seen.headers["range"] for seen in hub.requests if "resolve" in seen.path]
        assert len(ranges) == 1
        assert int(ranges[0].split("-")[1]) < 300_000
        assert not list(client.cache.rglob("*.safetensors"))

    def test_other_json_in_the_repository_is_neither_fetched_nor_parsed(self, client, hub, folder):
        (folder / "prompts.json").write_text("[1, 2]")
        (folder / "huge").mkdir()
        (folder / "huge" / "config.json").write_text('{"x": "' + "y" * 4_000_000 + '"}')
        hub.add_repo("org/model", folder)
        assert "prompts.json" not in client.peek("org/model").configs
        assert served(hub, "prompts.json", "huge") == 0
        files = client.ensure("org/model")
        assert set(client.peek("org/model").configs) == set(client.peek(f"org/model@{files.revision}").configs)


class TestSingleFiles:
    def test_a_named_file_is_fetched_alone(self, client, hub, tmp_path):
        files = client.ensure("org/lora#deep/other.safetensors")
        assert files.is_single_file
        assert files.root.read_bytes() == (tmp_path / "lora" / "deep" / "other.safetensors").read_bytes()
        assert served(hub, "style.safetensors") == 0
        hub.requests.clear()
        assert client.ensure("org/lora#deep/other.safetensors").root == files.root
        assert hub.requests == []

    def test_the_only_file_of_a_repository_needs_no_name(self, client, hub, tmp_path):
        weights(tmp_path / "one" / "one.safetensors")
        hub.add_repo("org/one", tmp_path / "one")
        assert client.ensure("org/one").root.name == "one.safetensors"
        assert client.peek("org/one").header.tensors == {"weight": ("F32", (64,))}

    def test_of_two_files_one_must_be_named(self, client):
        for ask in (client.ensure, client.peek):
            with pytest.raises(UnsupportedModel, match=r"org/lora#deep/other\.safetensors"):
                ask("org/lora")

    @pytest.mark.parametrize("name", ["style.ckpt", "../../../x.safetensors", "README.md"])
    def test_a_bad_file_name_is_refused_without_a_request(self, client, hub, name):
        source = ModelSource(scheme="hf", locator="org/lora", filename=name)
        for ask in (client.store.peek, lambda s, v: client.store.ensure(s, v, print, StopSignal(5))):
            with pytest.raises((InvalidRequest, UnsupportedModel, UnsafeFormat)):
                ask(source, None)
        assert hub.requests == []


class TestNotThere:
    @pytest.mark.parametrize(
        ("reference", "says"),
        [
            ("org/nothing", "does not exist"),
            ("org/model@nowhere", "no revision 'nowhere'"),
            ("org/lora#no.safetensors", "no file 'no.safetensors'"),
        ],
    )
    def test_what_does_not_exist_is_named(self, client, reference, says):
        for ask in (client.peek, client.ensure):
            with pytest.raises(ModelNotFound, match=says) as caught:
                ask(reference)
            assert caught.value.field == "model"


def started(client, stop) -> threading.Thread:
    """A job for org/model in a thread of its own, which will be cancelled."""

    def work():
        with pytest.raises(JobCancelled):
            client.ensure("org/model", stop=stop)

    thread = threading.Thread(target=work)
    thread.start()
    return thread


class TestTogether:
    def test_two_jobs_for_one_model_fetch_it_once(self, client, hub):
        found = []
        threads = [threading.Thread(target=lambda: found.append(client.ensure("org/model"))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({files.root for files in found}) == 1
        assert 0 < sum(files.bytes_downloaded for files in found) <= found[0].total_bytes, "they may share the work"
        assert served(hub, "unet/diffusion") == served(hub, "vae/diffusion") == 1

    def test_a_slow_model_does_not_hold_up_another(self, client, hub):
        hub.slow.add(f"unet/{WEIGHTS}")
        stop = StopSignal(30)
        slow = started(client, stop)
        assert hub.wait_until(lambda: hub.count("unet/diffusion", "GET"))
        assert client.ensure("org/lora#style.safetensors").is_single_file
        assert slow.is_alive()
        stop.cancel()
        slow.join()

    def test_a_job_that_waits_for_anothers_download_can_be_cancelled(self, client, hub):
        hub.slow.add(f"unet/{WEIGHTS}")
        first, second = StopSignal(30), StopSignal(30)
        slow = started(client, first)
        assert hub.wait_until(lambda: hub.count("unet/diffusion", "GET"))
        threading.Timer(0.2, second.cancel).start()
        with pytest.raises(JobCancelled):
            client.ensure("org/model", stop=second)
        first.cancel()
        slow.join()
