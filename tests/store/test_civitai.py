"""CivitAI from reference to file: which file is chosen, who sees the token, and each way the site says no."""

import contextlib
import logging
from datetime import UTC, datetime, timedelta

import pytest

from tests.fakes.civitai import FakeCivitai
from tests.store.civitai_client import TOKEN, Client, weights
from worker.core.errors import (
    AccessDenied,
    CorruptFile,
    ModelNotFound,
    SourceUnavailable,
    UnsafeFormat,
    UnsupportedModel,
)
from worker.core.model import Declaration
from worker.core.turn import StopSignal
from worker.store import civitai as module
from worker.store import civitai_api, remote_header
from worker.store.civitai_api import civitai_hosts
from worker.store.refs import parse_reference


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    monkeypatch.setattr(civitai_api, "BACKOFF_S", 0.01)
    monkeypatch.setattr(remote_header, "_BACKOFF_S", 0.01)


@pytest.fixture
def site():
    """Model 100, a LoRA of versions 201 and 202; the newest has the files 302, its weights, and 303, training data."""
    with FakeCivitai(token=TOKEN) as fake:
        fake.add_model(100, "Grey Style", "LORA", tags=["style", "grey"])
        fake.add_version(100, 201, "SD 1.5")
        fake.add_file(201, 301, weights(1), "old.safetensors")
        fake.add_version(100, 202, "Pony", name="v2", trainedWords=["grey style", "g5"])
        fake.add_file(202, 302, weights(2), "Grey Style [v2].safetensors")
        fake.add_file(202, 303, b"PK", "data.zip", type="Training Data", format="Other")
        yield fake


@pytest.fixture
def client(site, tmp_path) -> Client:
    return Client(site, tmp_path / "volume")


class TestChoice:
    def test_the_newest_version_of_a_model_is_described_without_its_weights_and_then_fetched(self, client, site):
        outline = client.peek("civitai:100")
        assert outline.revision == "202"
        assert set(outline.header.tensors) == {"weight"}
        assert outline.declared == Declaration(
            base="Pony", kind="LORA", tags=("style", "grey"), trigger_words=("grey style", "g5"), name="Grey Style v2"
        )
        files = client.ensure("https://civitai.com/models/100/grey-style")
        assert files.root.read_bytes() == weights(2)
        assert files.root.name == "Grey_Style_v2.safetensors"
        assert (files.revision, files.bytes_downloaded) == ("202", len(weights(2)))
        assert client.events[-1].step == client.events[-1].total == len(weights(2))
        assert {seen.query["fileId"] for seen in site.requests if "download" in seen.path} == {"302"}

    @pytest.mark.parametrize(
        "reference",
        ["civitai:100@201", "civitai:@201", "https://civitai.com/models/100?modelVersionId=201", "civitai:@201#301",
         "urn:air:sd1:lora:civitai:100@201", "https://civitai.com/api/download/models/201?type=Model&format=SafeTensor"],
    )  # fmt: skip
    def test_a_version_by_its_number_is_that_version(self, client, reference):
        assert client.ensure(reference).root.read_bytes() == weights(1)
        assert client.peek(reference).declared.base == "SD 1.5"

    def test_the_newest_version_is_one_that_is_published_and_free_for_all(self, client, site):
        later = (datetime.now(UTC) + timedelta(days=2)).isoformat()
        site.add_version(100, 203, publishedAt=None, status="Draft")
        site.add_version(100, 204, publishedAt=later, status="Scheduled")
        site.add_version(100, 205, availability="EarlyAccess")
        site.add_version(100, 206, status="Unpublished")
        assert client.peek("civitai:100").revision == "202"

    @pytest.mark.parametrize(
        ("reference", "chosen"),
        [
            ("civitai:@210", 3),  # a SafeTensor before the primary pickle, the primary before the others
            ("civitai:@210?fp=fp16", 4),
            ("civitai:@210?size=pruned&fp=fp16", 4),
            ("civitai:@210?format=gguf", 5),
            ("civitai:@210?quantType=Q4_0&format=GGUF", 6),
            ("civitai:@210?type=VAE", 7),
            ("civitai:@210#8", 8),
            ("civitai:@210#MODEL Q8_0.gguf", 5),
            ("civitai:@210?format=PickleTensor", 2),
        ],
    )
    def test_the_file_is_the_safest_main_one_unless_the_reference_says_more(self, site, reference, chosen, tmp_path):
        site.add_model(110, "Checkpoint", "Checkpoint")
        site.add_version(110, 210)
        site.add_file(210, 1, b"", "workflow.json", type="Workflow", format="Other", primary=False)
        site.add_file(210, 2, b"", "model.ckpt", format="PickleTensor", primary=True)
        site.add_file(210, 3, b"", "model.safetensors", fp="fp32", primary=True)
        site.add_file(210, 4, b"", "model-fp16.safetensors", type="Pruned Model", size="pruned", primary=False)
        site.add_file(210, 5, b"", "model Q8_0.gguf", format="GGUF", fp=None)
        site.add_file(210, 6, b"", "model Q4_0.gguf", format="GGUF", fp=None)
        site.add_file(210, 7, b"", "vae.safetensors", type="VAE", fp="fp32")
        site.add_file(210, 8, b"", "negative.safetensors", type="Negative")
        client = Client(site, tmp_path / "volume", allow_pickles=True)
        with contextlib.suppress(CorruptFile):  # all are empty here; the right one is reached
            client.ensure(reference)
        assert {seen.path for seen in site.storage.requests} == {f"/signed/{chosen}"}

    def test_a_file_that_is_not_there_is_refused_with_those_that_are(self, client):
        assert "302 (Grey Style [v2].safetensors: Model SafeTensor full fp16)" in client.refused(
            ModelNotFound, "civitai:100@202#999"
        )
        assert "302 (" in client.refused(ModelNotFound, "civitai:100@202?fp=nf4")

    def test_words_and_shapes_that_nobody_knows_yet_do_no_harm(self, site, client):
        site.add_model(111, "New", "HoloModel", tags=[None, 7, "x\ny"])
        site.add_version(111, 211, "Brand New Base 9", trainedWords=None, availability=3, baseModelType=[])
        site.versions[211]["files"].append("garbage")
        site.add_file(211, 311, weights(), "../../new.safetensors", hashes=None, metadata=None, virusScanResult=None)
        site.versions[211]["files"][1]["metadata"] = None
        outline = client.peek("civitai:111")
        assert (outline.declared.base, outline.declared.kind) == ("Brand New Base 9", "HoloModel")
        files = client.ensure("civitai:111")
        assert files.root.name == "new.safetensors"
        assert files.root.is_relative_to(client.folder)


class TestToken:
    def test_the_token_is_for_the_site_and_never_for_the_storage_behind_it(self, site, tmp_path, caplog):
        caplog.set_level(logging.DEBUG)
        site.members_only.add(202)
        client = Client(site, tmp_path / "volume", token=TOKEN)
        client.peek("civitai:100")
        assert client.ensure("civitai:100").root.read_bytes() == weights(2)
        assert all(seen.headers.get("authorization") == f"Bearer {TOKEN}" for seen in site.requests)
        assert site.storage.requests
        assert TOKEN not in site.told
        assert "authorization" not in site.told.lower()
        assert TOKEN not in "".join(f"{seen.path} {seen.query}" for seen in site.requests)
        assert TOKEN not in caplog.text
        assert not any(TOKEN.encode() in path.read_bytes() for path in client.folder.rglob("*") if path.is_file())

    def test_without_a_token_nothing_is_sent_and_public_files_come(self, client, site):
        client.ensure("civitai:100")
        assert not any("authorization" in seen.headers for seen in site.requests)

    def test_civitais_own_names_share_a_token_and_a_mirror_has_it_alone(self):
        assert set(civitai_hosts("https://civitai.com/", "x")) == {
            "https://civitai.com", "https://civitai.green", "https://civitai.red",
        }  # fmt: skip
        assert civitai_hosts("https://mirror.example", "x") == {"https://mirror.example": "x"}


class TestRefusals:
    """Each names its own reason and fix; no two are the same."""

    def test_a_login_that_is_missing_and_one_that_is_refused(self, client, site, tmp_path):
        site.members_only.add(202)
        missing = client.refused(AccessDenied, "civitai:100")
        assert "members only; set CIVITAI_TOKEN" in missing
        site.refusals[202] = (401, {"error": "Unauthorized"}, {})
        refused = Client(site, tmp_path / "other", token=TOKEN).refused(AccessDenied, "civitai:100")
        assert "disabled downloads" in refused
        assert TOKEN not in refused

    def test_a_token_that_the_api_does_not_know(self, site, tmp_path):
        client = Client(site, tmp_path / "volume", token="canary-wrong")
        message = client.refused(AccessDenied, "civitai:100")
        assert "set CIVITAI_TOKEN to a valid API key" in message
        assert "canary" not in message

    @pytest.mark.parametrize("token", [None, TOKEN])
    def test_a_login_page_in_place_of_a_file_is_recognised(self, site, tmp_path, token):
        site.login_pages.add(202)
        assert "CIVITAI_TOKEN" in Client(site, tmp_path / "volume", token=token).refused(AccessDenied, "civitai:100")

    def test_early_access_is_told_with_its_end(self, client, site):
        site.refusals[202] = (403, {"error": "Early Access", "deadline": "2026-12-24T18:00:00.000Z"}, {})
        assert "early access until 2026-12-24T18:00:00.000Z" in client.refused(AccessDenied, "civitai:100")

    @pytest.mark.parametrize(
        ("status", "error", "words"),
        [
            (403, AccessDenied, "blocks the download"),
            (451, AccessDenied, "in this worker's region, for legal reasons"),
            (404, ModelNotFound, "no longer on CivitAI"),
            (410, ModelNotFound, "archived by its creator"),
            (400, ModelNotFound, "cannot deliver"),
            (429, SourceUnavailable, "limit of this account or address is used up; send the job again in 3600 s"),
            (500, SourceUnavailable, "in a minute"),
        ],
    )
    def test_each_status_of_a_download_is_told_apart(self, client, site, status, error, words):
        site.refusals[202] = (status, {"error": "no"}, {"Retry-After": "3600"})
        assert words in client.refused(error, "civitai:100")

    @pytest.mark.parametrize(
        "page", [{"cf-mitigated": "challenge"}, {"Content-Type": "text/html; charset=UTF-8"}], ids=["header", "page"]
    )
    def test_a_page_for_browsers_is_told_as_one_by_download_and_api(self, site, tmp_path, page):
        site.refusals[202] = (403, {}, page)
        client = Client(site, tmp_path / "volume", token=TOKEN)
        assert "protection against robots" in client.refused(SourceUnavailable, "civitai:100")
        site.api_refusals = [(403, page)] * 2
        assert "protection against robots" in client.refused(SourceUnavailable, "civitai:@201")

    def test_a_region_that_the_api_does_not_serve(self, client, site):
        site.api_refusals = [(451, {})] * 2
        assert "for legal reasons" in client.refused(AccessDenied, "civitai:@201")

    def test_a_number_that_nobody_has(self, client):
        assert "has no civitai:999" in client.refused(ModelNotFound, "civitai:999")
        assert "has no civitai:@999" in client.refused(ModelNotFound, "civitai:@999")
        assert "belongs to civitai:100" in client.refused(ModelNotFound, "civitai:101@202")

    def test_a_busy_api_is_asked_again_and_a_long_wait_is_told_and_not_waited_for(self, client, site):
        site.api_refusals = [(503, {"Retry-After": "0"}), (429, {"Retry-After": "0"})]
        assert client.peek("civitai:100").revision == "202"
        site.api_refusals = [(429, {"Retry-After": "7200"})] * 2
        assert "in 7200 s" in client.refused(SourceUnavailable, "civitai:@201")

    def test_an_api_that_answers_with_something_else(self, client, site):
        site.api_refusals = [(200, {})] * 2
        assert "no model version" in client.refused(SourceUnavailable, "civitai:@202")

    @pytest.mark.parametrize(
        ("kind", "words"),
        [
            ("Workflows", "workflow"),
            ("Wildcards", "prompt words"),
            ("Poses", "pose images"),
            ("Detection", "detector"),
        ],
    )
    def test_what_has_no_weights_is_refused_by_name(self, client, site, kind, words):
        site.add_model(120, "Other", kind)
        site.add_version(120, 220)
        site.add_file(220, 320, b"PK", "x.zip", format="Other")
        assert words in client.refused(UnsupportedModel, "civitai:120")

    def test_a_base_that_runs_at_its_owners_only_is_refused_by_name(self, site, tmp_path):
        site.add_model(121, "Video", "Checkpoint")
        site.add_version(121, 221, "Veo 3")
        client = Client(site, tmp_path / "volume", hosted_only={"Veo 3"})
        assert "Veo 3, which its owner runs as a service only" in client.refused(UnsupportedModel, "civitai:121")

    def test_a_version_without_weights_is_refused_with_what_it_has(self, client, site):
        site.add_model(122, "Empty", "Checkpoint")
        site.add_version(122, 222)
        assert "it has no files" in client.refused(UnsupportedModel, "civitai:122")
        site.add_version(122, 223)
        site.add_file(223, 323, b"x", "model.onnx", format="ONNX")
        assert "ONNX" in client.refused(UnsupportedModel, "civitai:@223")
        assert "ONNX" in client.refused(UnsupportedModel, "civitai:@223#323")

    def test_what_may_only_be_used_on_the_site_is_refused(self, client, site):
        site.versions[202]["usageControl"] = "InternalGeneration"
        assert "does not allow downloads (usageControl InternalGeneration)" in client.refused(
            AccessDenied, "civitai:100"
        )

    @pytest.mark.parametrize(("mode", "words"), [("Archived", "archived by"), ("TakenDown", "taken down by CivitAI")])
    def test_a_model_that_was_withdrawn_is_refused(self, client, site, mode, words):
        site.models[100]["mode"] = mode
        assert words in client.refused(ModelNotFound, "civitai:100")
        assert site.count("download") == 0

    @pytest.mark.parametrize("scan", ["virusScanResult", "pickleScanResult"])
    @pytest.mark.parametrize(
        ("result", "error", "words"),
        [
            ("Danger", UnsafeFormat, "found it dangerous"),
            ("Error", UnsafeFormat, "ended with 'Error'"),
            ("Pending", SourceUnavailable, "not yet scanned"),
        ],
    )
    def test_a_file_that_the_sites_scans_do_not_clear_is_not_touched(self, client, site, scan, result, error, words):
        site.versions[202]["files"][0][scan] = result
        assert words in client.refused(error, "civitai:100")
        assert site.count("download") == 0

    def test_a_pickle_is_not_even_downloaded(self, client, site):
        site.add_version(100, 204)
        site.add_file(204, 304, b"\x80\x02}q\x00.", "lora.pt", format="PickleTensor")
        assert "pickle, which can run code" in client.refused(UnsafeFormat, "civitai:100@204")
        assert site.count("download") == 0

    def test_a_file_that_is_not_what_its_format_says_is_refused_by_its_first_bytes(self, client, site):
        site.storage.files[302] = b"\x80\x02}q\x00." + bytes(100_000)
        assert "can run code" in client.refused(UnsafeFormat, "civitai:100")


class TestContent:
    def test_a_file_with_another_digest_than_announced_is_not_kept(self, client, site):
        site.storage.files[302] = weights(3)
        with pytest.raises(CorruptFile, match="damaged"):
            client.ensure("civitai:100")
        assert not [path for path in client.folder.rglob("*") if path.is_file() and path.stat().st_size > 10_000]

    def test_the_callers_own_pin_decides_before_anything_is_fetched(self, client, site):
        digest = "ab" * 32
        with pytest.raises(ModelNotFound, match="not the pinned file"):
            client.ensure(f"civitai:100?sha256={digest}")
        assert site.count("download") == 0
        right = client.ensure("civitai:100").sha256
        assert client.ensure(f"civitai:100?sha256={right}").bytes_downloaded == 0

    def test_a_storage_without_ranges_still_gives_header_and_file(self, client, site):
        site.storage.ranges = False
        assert client.peek("civitai:100").header is not None
        assert client.ensure("civitai:100").root.read_bytes() == weights(2)


class TestLock:
    def test_a_lock_names_version_and_digest_without_a_download_and_holds_when_the_default_changes(self, client, site):
        source = parse_reference("civitai:100")
        locked = client.source.lock(source, None, StopSignal(30))
        ((name, file),) = locked.files.items()
        assert (locked.revision, name, file.size) == ("202", "Grey_Style_v2.safetensors", len(weights(2)))
        assert not [path for path in client.folder.rglob("*") if path.is_file()]
        site.versions[202]["files"][0]["primary"] = False
        site.add_file(202, 309, weights(9), "better.safetensors", primary=True)
        site.add_version(100, 205)
        pinned = source.model_copy(update={"revision": locked.revision, "sha256": file.sha256})
        files = client.source.ensure(pinned, None, client.events.append, StopSignal(30))
        assert files.root.read_bytes() == weights(2)
        assert files.root.name == name


class TestMemory:
    def test_a_version_once_fetched_is_never_asked_for_again(self, client, site, tmp_path):
        before = client.ensure("civitai:100@202")
        site.requests.clear()
        other = Client(site, client.folder)
        assert other.ensure("civitai:100@202").root == before.root
        assert other.peek("civitai:100@202").declared.trigger_words == ("grey style", "g5")
        assert site.requests == []

    def test_the_newest_version_is_asked_for_again_after_a_while_only(self, client, site, monkeypatch):
        client.ensure("civitai:100")
        site.add_version(100, 205)
        site.add_file(205, 305, weights(5), "newer.safetensors")
        asked = site.count("/api/")
        assert client.ensure("civitai:100").revision == "202"
        assert site.count("/api/") == asked
        monkeypatch.setattr(civitai_api, "MEMORY_S", 0.0)
        assert client.ensure("civitai:100").revision == "205"

    def test_two_ways_to_the_same_file_share_it(self, client, site):
        first = client.ensure("civitai:100")
        second = client.ensure("civitai:@202#302")
        assert second.root == first.root
        assert second.bytes_downloaded == 0

    def test_a_copy_outlives_the_site_and_is_used_without_asking_each_time(self, client, site, monkeypatch):
        kept = client.ensure("civitai:100").root
        monkeypatch.setattr(civitai_api, "MEMORY_S", 0.0)
        site.down = True
        site.requests.clear()
        assert client.ensure("civitai:100").root == kept
        assert client.peek("civitai:100").declared.base == "Pony"
        assert len(site.requests) == 1, "it is asked again after a minute, not for each job"
        monkeypatch.setattr(module, "_OUTAGE_MEMORY_S", 0.0)
        site.down = False
        assert client.ensure("civitai:100").root == kept

    def test_offline_a_copy_is_used_and_what_is_missing_is_told(self, client, site):
        kept = client.ensure("civitai:100").root
        site.requests.clear()
        offline = Client(site, client.folder, offline=True)
        assert offline.ensure("civitai:100").root == kept
        with pytest.raises(SourceUnavailable, match="offline"):
            offline.ensure("civitai:100@201")
        assert site.requests == []

    def test_a_site_that_is_down_is_told_without_a_copy(self, client, site):
        site.down = True
        assert "CivitAI did not deliver civitai:100" in client.refused(SourceUnavailable, "civitai:100")
