"""Results in a bucket: put, read back through a presigned URL, refused in one sentence without a secret."""

import threading
import urllib.parse
import urllib.request

import pytest

from tests.fakes.bucket import FakeBucket
from worker.core.errors import SourceUnavailable
from worker.store import bucket as module
from worker.store.bucket import Bucket, BucketConfig

SECRET = "very-secret-word"


def config(endpoint: str, name: str = "pictures", key: str = "test-access") -> BucketConfig:
    return BucketConfig(endpoint, name, key, SECRET, url_expires_s=600)


def test_what_was_put_is_read_through_the_url():
    with FakeBucket(refuse_checksums=True) as fake:
        url = Bucket(config(fake.endpoint)).put("jobs/1/ä 0.png", b"\x89PNG", "image/png")
        with urllib.request.urlopen(url) as answer:
            assert (answer.read(), answer.headers["Content-Type"]) == (b"\x89PNG", "image/png")
        assert [(item.bucket, item.key, item.signed) for item in fake.objects.values()] == [
            ("pictures", "jobs/1/ä 0.png", True)
        ]


def test_the_url_is_signed_in_the_new_way_and_expires():
    with FakeBucket() as fake:
        url = Bucket(config(fake.endpoint)).put("a.png", b"x", "image/png")
    query = urllib.parse.parse_qs(urllib.parse.urlsplit(url).query)
    assert query["X-Amz-Expires"] == ["600"]
    assert query["X-Amz-Algorithm"] == ["AWS4-HMAC-SHA256"]
    assert SECRET not in url


@pytest.mark.parametrize(
    ("options", "name", "says"),
    [({"access_key": "other"}, "pictures", "InvalidAccessKeyId"), ({"buckets": ["mine"]}, "yours", "NoSuchBucket")],
)
def test_a_refusal_names_the_reason_and_no_secret(options, name, says):
    with FakeBucket(**options) as fake, pytest.raises(SourceUnavailable, match=says) as caught:
        Bucket(config(fake.endpoint, name)).put("a.png", b"x", "image/png")
    for hidden in (SECRET, "test-access", str(fake.port)):
        assert hidden not in f"{caught.value!r} {caught.value.message} {caught.value.details}"
    assert "BUCKET_" in caught.value.message


@pytest.mark.parametrize("endpoint", ["", "not an url", "http://127.0.0.1:9", "ftp://host"])
def test_an_endpoint_that_is_none_is_a_typed_failure(endpoint, monkeypatch):
    with pytest.raises(SourceUnavailable) as caught:
        Bucket(config(endpoint)).put("a.png", b"x", "image/png")
    assert SECRET not in caught.value.message


def test_keys_do_not_show_in_a_log_line():
    shown = f"{config('https://host')!r} {config('https://host')}"
    assert SECRET not in shown
    assert "test-access" not in shown


def test_several_threads_may_share_a_bucket():
    with FakeBucket() as fake:
        bucket = Bucket(config(fake.endpoint))
        threads = [
            threading.Thread(target=bucket.put, args=(f"{number}.png", b"%d" % number, "image/png"))
            for number in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert {item.key: item.body for item in fake.objects.values()} == {f"{n}.png": b"%d" % n for n in range(8)}


@pytest.mark.parametrize(
    ("endpoint", "region"),
    [
        ("https://s3.eu-west-1.amazonaws.com", "eu-west-1"),
        ("https://pictures.s3.us-east-2.amazonaws.com", "us-east-2"),
        ("https://s3-us-west-2.amazonaws.com", "us-west-2"),
        ("https://s3.amazonaws.com", "us-east-1"),
        ("https://fra1.digitaloceanspaces.com", "fra1"),
        ("https://s3.us-west-004.backblazeb2.com", "us-west-004"),
        ("https://s3api-eu-ro-1.runpod.io", "eu-ro-1"),
        ("https://abc.r2.cloudflarestorage.com", "us-east-1"),
        ("http://127.0.0.1:9000", "us-east-1"),
    ],
)
def test_the_signature_names_the_endpoints_own_region(endpoint, region):
    assert module._region(endpoint) == region
