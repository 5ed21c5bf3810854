"""The fakes of what a worker downloads from and uploads to, proved with the real clients."""

import hashlib
import os
from pathlib import Path

import boto3
import botocore.config
import botocore.exceptions
import numpy
import pytest
import requests
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors.numpy import save_file

from tests.fakes.bucket import FakeBucket
from tests.fakes.hub import FakeHub
from tests.fakes.worker_process import WorkerProcess


@pytest.fixture
def folder(tmp_path):
    """A small repository: plain files, one big one, one safetensors, one in a folder."""
    folder = tmp_path / "repo"
    (folder / "unet").mkdir(parents=True)
    (folder / "model_index.json").write_text('{"_class_name": "TinyPipeline"}')
    (folder / "big.bin").write_bytes(os.urandom(50_000))
    save_file({"weight": numpy.arange(6.0)}, folder / "unet" / "tiny.safetensors")
    return folder


@pytest.fixture
def hub(folder):
    with FakeHub() as hub:
        hub.commit = hub.add_repo("org/tiny", folder, pipeline_tag="text-to-image")
        yield hub


def _snapshot(hub, cache, **options):
    return Path(snapshot_download("org/tiny", endpoint=hub.endpoint, cache_dir=cache, **options))


class TestFakeHub:
    def test_a_cold_snapshot_fetches_every_file_and_a_warm_one_asks_once(self, hub, folder, tmp_path):
        got = _snapshot(hub, tmp_path / "cache")
        assert got.name == hub.commit
        for source in (path for path in folder.rglob("*") if path.is_file()):
            assert (got / source.relative_to(folder)).read_bytes() == source.read_bytes()
        assert hub.count("/resolve/", "GET") == 3
        before = len(hub.requests)
        assert _snapshot(hub, tmp_path / "cache") == got
        assert len(hub.requests) == before + 1
        assert _snapshot(hub, tmp_path / "cache", revision=hub.commit) == got
        assert len(hub.requests) == before + 1, "a full commit id that is cached needs no request"

    def test_one_file_comes_from_a_branch_a_commit_or_a_folder(self, hub, folder, tmp_path):
        for revision in (None, "main", hub.commit):
            path = hf_hub_download(
                "org/tiny",
                "tiny.safetensors",
                subfolder="unet",
                revision=revision,
                endpoint=hub.endpoint,
                cache_dir=tmp_path,
            )
            assert Path(path).read_bytes() == (folder / "unet" / "tiny.safetensors").read_bytes()
        assert hub.count("tiny.safetensors", "GET") == 1

    def test_a_new_commit_moves_the_branch_and_keeps_the_old(self, hub, folder, tmp_path):
        (folder / "new.txt").write_text("new")
        newer = hub.add_repo("org/tiny", folder)
        assert newer != hub.commit
        api = HfApi(endpoint=hub.endpoint)
        assert api.model_info("org/tiny").sha == newer
        assert "new.txt" not in api.list_repo_files("org/tiny", revision=hub.commit)

    def test_the_info_tells_sizes_and_hashes(self, hub, folder):
        api = HfApi(endpoint=hub.endpoint)
        info = api.model_info("org/tiny", files_metadata=True, timeout=60)
        big = next(file for file in info.siblings if file.rfilename == "big.bin")
        assert (info.sha, info.library_name, info.pipeline_tag) == (hub.commit, "diffusers", "text-to-image")
        assert big.size == 50_000
        assert big.lfs.sha256 == hashlib.sha256((folder / "big.bin").read_bytes()).hexdigest()
        assert next(file for file in info.siblings if file.rfilename == "model_index.json").lfs is None
        assert api.model_info("org/tiny").siblings[0].size is None
        assert [model.id for model in api.list_models(search="TINY")] == ["org/tiny"]

    def test_the_tree_and_single_paths_are_listed(self, hub):
        api = HfApi(endpoint=hub.endpoint)
        assert {entry.path for entry in api.list_repo_tree("org/tiny")} == {"unet", "model_index.json", "big.bin"}
        assert "unet/tiny.safetensors" in {entry.path for entry in api.list_repo_tree("org/tiny", recursive=True)}
        assert [entry.path for entry in api.list_repo_tree("org/tiny", "unet")] == ["unet/tiny.safetensors"]
        assert [entry.size for entry in api.get_paths_info("org/tiny", ["big.bin", "nope"])] == [50_000]

    def test_a_header_is_read_by_range(self, hub):
        metadata = HfApi(endpoint=hub.endpoint).parse_safetensors_file_metadata("org/tiny", "unet/tiny.safetensors")
        assert metadata.tensors["weight"].shape == [6]
        url = f"{hub.endpoint}/org/tiny/resolve/main/big.bin"
        part = requests.get(url, headers={"Range": "bytes=10-19"}, timeout=60)
        assert (part.status_code, len(part.content)) == (206, 10)
        assert part.headers["Content-Range"] == "bytes 10-19/50000"
        assert requests.get(url, headers={"Range": "bytes=60000-"}, timeout=60).status_code == 416
        head = requests.head(url, timeout=60).headers
        assert (head["Content-Length"], head["X-Linked-Size"], head["X-Repo-Commit"]) == ("50000", "50000", hub.commit)

    def test_what_does_not_exist_is_named(self, hub, tmp_path):
        api = HfApi(endpoint=hub.endpoint)
        with pytest.raises(RepositoryNotFoundError):
            api.model_info("org/absent")
        with pytest.raises(RevisionNotFoundError):
            api.model_info("org/tiny", revision="v9")
        with pytest.raises(RemoteEntryNotFoundError):
            hf_hub_download("org/tiny", "absent.txt", endpoint=hub.endpoint, cache_dir=tmp_path)

    def test_a_gated_repository_shows_its_info_and_keeps_its_files(self, hub, folder, tmp_path):
        hub.add_repo("org/gated", folder, gated=True)
        fetch = {"repo_id": "org/gated", "filename": "big.bin", "endpoint": hub.endpoint, "cache_dir": tmp_path}
        assert HfApi(endpoint=hub.endpoint).model_info("org/gated", token=False).gated == "manual"
        for token, status in ((False, 401), (hub.stranger, 403)):
            with pytest.raises(GatedRepoError) as refusal:
                hf_hub_download(**fetch, token=token)
            assert refusal.value.response.status_code == status
        assert hf_hub_download(**fetch, token=hub.token)

    def test_a_private_repository_and_a_bad_token_are_refused(self, hub, folder):
        hub.add_repo("org/private", folder, private=True)
        api = HfApi(endpoint=hub.endpoint)
        with pytest.raises(RepositoryNotFoundError):
            api.model_info("org/private", token=False)
        assert api.model_info("org/private", token=hub.token).private
        with pytest.raises(HfHubHTTPError) as refusal:
            api.model_info("org/tiny", token="hf_made_up")
        assert refusal.value.response.status_code == 401

    def test_a_hub_that_is_down_serves_the_cache_alone(self, hub, tmp_path):
        hub.down = True
        with pytest.raises(LocalEntryNotFoundError):
            _snapshot(hub, tmp_path / "cache")
        hub.heal()
        got = _snapshot(hub, tmp_path / "cache")
        hub.down = True
        assert _snapshot(hub, tmp_path / "cache") == got

    def test_a_hub_that_hangs_lets_go_at_the_end(self, hub):
        hub.hang = True
        with pytest.raises(Exception, match="timed out"):
            HfApi(endpoint=hub.endpoint).model_info("org/tiny", timeout=0.5)

    def test_a_truncated_download_breaks_off(self, hub):
        hub.truncate("big.bin", 1000)
        with pytest.raises(requests.exceptions.RequestException):
            requests.get(f"{hub.endpoint}/org/tiny/resolve/main/big.bin", timeout=60)

    def test_a_corrupted_file_has_its_size_and_not_its_hash(self, hub, folder, tmp_path):
        hub.corrupt("big.bin")
        got, real = (_snapshot(hub, tmp_path / "cache") / "big.bin").read_bytes(), (folder / "big.bin").read_bytes()
        assert len(got) == len(real)
        assert sum(one != other for one, other in zip(got, real, strict=True)) == 1

    def test_a_redirect_to_another_host_loses_the_token(self, folder, tmp_path):
        with FakeHub(cdn=True) as hub:
            hub.add_repo("org/tiny", folder)
            _snapshot(hub, tmp_path / "cache", token=hub.token)
            moved = [seen for seen in hub.requests if seen.path.startswith("/cdn/")]
            assert len(moved) == 2
            assert not any("authorization" in seen.headers for seen in moved)
            assert hub.count("/resolve/main/") == 0

    def test_a_new_process_is_sent_here_by_its_environment(self, hub, tmp_path):
        script = tmp_path / "fetch.py"
        script.write_text("from huggingface_hub import snapshot_download; print(snapshot_download('org/tiny'))")
        with WorkerProcess(script, env=hub.env()) as worker:
            assert worker.wait() == 0, worker.output
        assert hub.commit in worker.output
        assert hub.env()["HF_HOME"] in worker.output


class TestFakeBucket:
    def client(self, bucket, **options):
        return boto3.client(
            "s3",
            endpoint_url=bucket.endpoint,
            aws_access_key_id="key",
            aws_secret_access_key="secret",
            region_name="auto",
            config=botocore.config.Config(retries={"max_attempts": 1}, **options),
        )

    @pytest.mark.parametrize("signature", ["s3v4", "s3"])
    def test_an_object_is_put_and_read_by_its_presigned_address(self, signature):
        with FakeBucket() as bucket:
            client = self.client(bucket, signature_version=signature)
            client.put_object(Bucket="images", Key="a/b c.png", Body=b"png", ContentType="image/png")
            stored = bucket.objects["images", "a/b c.png"]
            assert (stored.body, stored.content_type, stored.signed) == (b"png", "image/png", True)
            url = client.generate_presigned_url("get_object", Params={"Bucket": "images", "Key": "a/b c.png"})
            answer = requests.get(url, timeout=60)
            assert (answer.content, answer.headers["Content-Type"]) == (b"png", "image/png")
            assert requests.get(url.partition("?")[0], timeout=60).status_code == 403
            stale = client.generate_presigned_url(
                "get_object", Params={"Bucket": "images", "Key": "a/b c.png"}, ExpiresIn=-5
            )
            assert requests.get(stale, timeout=60).status_code == 403

    def test_a_stream_is_put_whole(self, tmp_path):
        (tmp_path / "big").write_bytes(os.urandom(200_000))
        with FakeBucket() as bucket, (tmp_path / "big").open("rb") as stream:
            self.client(bucket).put_object(Bucket="images", Key="big", Body=stream)
            assert bucket.objects["images", "big"].body == (tmp_path / "big").read_bytes()

    def test_it_refuses_when_told_and_what_it_does_not_know(self):
        put = {"Bucket": "images", "Key": "k", "Body": b"x"}
        with FakeBucket(buckets={"other"}, access_key="key", refuse_checksums=True) as bucket:
            for expected in ("NoSuchBucket", "InvalidAccessKeyId", "NotImplemented", "AccessDenied"):
                bucket.buckets = {"other"} if expected == "NoSuchBucket" else None
                bucket.access_key = "else" if expected == "InvalidAccessKeyId" else "key"
                if expected == "AccessDenied":
                    bucket.refuse()
                with pytest.raises(botocore.exceptions.ClientError, match=expected):
                    self.client(bucket).put_object(**put)
            bucket.accept()
            self.client(bucket, request_checksum_calculation="when_required").put_object(**put)
            assert list(bucket.objects) == [("images", "k")]
