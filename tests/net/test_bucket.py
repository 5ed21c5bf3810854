"""Results in a bucket: put, read back through a presigned URL, refused in one sentence without a secret."""

import threading
import urllib.parse
import urllib.request
from dataclasses import replace

import pytest

from tests.fakes.bucket import FakeBucket
from tests.net.servers import RawServer, body, redirect
from worker.core.errors import InvalidRequest, SourceUnavailable
from worker.net.bucket import PART_BYTES, Bucket, BucketConfig, BucketSender
from worker.net.s3_address import s3_address

SECRET = "very-secret-word"


def config(endpoint: str, name: str = "images", key: str = "test-access") -> BucketConfig:
    return BucketConfig(endpoint, name, key, SECRET, url_expires_s=600)


def test_what_was_put_is_read_through_the_url():
    with FakeBucket(refuse_checksums=True) as fake:
        url = Bucket(config(fake.endpoint)).put("jobs/1/ä 0.png", b"\x89PNG", "image/png")
        with urllib.request.urlopen(url) as answer:
            assert (answer.read(), answer.headers["Content-Type"]) == (b"\x89PNG", "image/png")
        assert [(item.bucket, item.key, item.signed) for item in fake.objects.values()] == [
            ("images", "jobs/1/ä 0.png", True)
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
    [({"access_key": "other"}, "images", "InvalidAccessKeyId"), ({"buckets": ["mine"]}, "yours", "NoSuchBucket")],
)
def test_a_refusal_names_the_reason_and_no_secret(options, name, says):
    with FakeBucket(**options) as fake, pytest.raises(SourceUnavailable, match=says) as caught:
        Bucket(config(fake.endpoint, name)).put("a.png", b"x", "image/png")
    for hidden in (SECRET, "test-access", str(fake.port)):
        assert hidden not in f"{caught.value!r} {caught.value.message} {caught.value.details}"
    assert "BUCKET_" in caught.value.message


GUARDS = {"unguarded": None, "guarded": BucketSender(allow_private=True)}


@pytest.mark.parametrize("guard", GUARDS.values(), ids=GUARDS)
def test_what_is_large_goes_in_parts_and_a_broken_one_goes_again(guard):
    video = bytes(range(256)) * (PART_BYTES // 256 * 2) + b"end"
    with FakeBucket(refuse_checksums=True) as fake:
        fake.break_parts(1)
        url = Bucket(config(fake.endpoint), guard).put("video.mp4", video, "video/mp4")
        (stored,) = fake.objects.values()
        assert (stored.parts, stored.content_type, stored.body == video) == (3, "video/mp4", True)
        with urllib.request.urlopen(url) as answer:
            assert answer.read() == video


def test_a_callers_bucket_is_spoken_to_as_the_operators_own_is():
    with FakeBucket(refuse_checksums=True) as fake:
        bucket = Bucket(config(fake.endpoint), BucketSender(allow_private=True))
        bucket.check()
        with urllib.request.urlopen(bucket.put("jobs/1/ä 0.png", b"\x89PNG", "image/png")) as answer:
            assert (answer.read(), answer.headers["Content-Type"]) == (b"\x89PNG", "image/png")
        fake.refuse(403, "AccessDenied")
        with pytest.raises(SourceUnavailable, match="AccessDenied"):
            bucket.put("a.png", b"x", "image/png")


@pytest.mark.parametrize(
    "endpoint",
    ["https://127.0.0.1:9000", "https://169.254.169.254", "https://[::1]", "https://localhost", "https://10.0.0.1"],
)
def test_a_callers_bucket_is_never_inside_the_workers_own_network(endpoint):
    bucket = Bucket(config(endpoint), BucketSender(allow_private=False))
    with pytest.raises(InvalidRequest, match="not a public one") as refused:
        bucket.check()
    assert refused.value.field == "s3Config"
    with pytest.raises(SourceUnavailable, match="not a public one"):  # nor later, when its name means another address
        bucket.put("a.png", b"x", "image/png")


def test_a_callers_bucket_has_to_have_a_host():
    with pytest.raises(InvalidRequest, match="cannot be used: its host cannot be found; name a public https endpoint"):
        Bucket(config("https://nobody.invalid"), BucketSender(allow_private=False)).check()


def test_a_callers_bucket_has_to_speak_https():
    with FakeBucket() as fake, pytest.raises(InvalidRequest, match="only https"):
        Bucket(config(fake.endpoint), BucketSender(allow_private=False)).check()


@pytest.mark.parametrize("endpoint", ["", "not an url", "http://127.0.0.1:9", "ftp://host"])
def test_an_endpoint_that_is_none_is_a_typed_failure(endpoint, monkeypatch):
    with pytest.raises(SourceUnavailable) as caught:
        Bucket(config(endpoint)).put("a.png", b"x", "image/png")
    assert SECRET not in caught.value.message


@pytest.mark.parametrize("guard", GUARDS.values(), ids=GUARDS)
def test_a_bucket_that_redirects_and_names_no_region_is_asked_twice_and_left(guard):
    with RawServer(redirect("/elsewhere", 301)) as server, pytest.raises(SourceUnavailable, match="redirects"):
        Bucket(config(server.url("")), guard).put("a.png", b"x", "image/png")
    assert [head.split(" ")[0] for head in server.heads] == ["PUT", "HEAD"]


def in_region(region):
    """A store that takes what is signed for one region, and says so to everything else."""

    def answer(connection, path):
        taken = f"/{region}/s3/" in server.heads[-1]
        lines = ["200 OK", 'ETag: "x"'] if taken else ["301 Moved", f"x-amz-bucket-region: {region}"]
        text = "" if taken else "<Error><Code>PermanentRedirect</Code></Error>"
        head = "\r\n".join([*lines, f"Content-Length: {len(text)}", "Connection: close"])
        connection.sendall(f"HTTP/1.1 {head}\r\n\r\n{text}".encode())

    server = RawServer(answer)
    return server


@pytest.mark.parametrize("guard", GUARDS.values(), ids=GUARDS)
def test_a_bucket_of_another_region_is_found_by_its_answer_and_remembered(guard):
    with in_region("eu-west-1") as server:
        bucket = Bucket(config(server.url("")), guard)
        assert "eu-west-1" in bucket.put("a.png", b"x", "image/png")
        assert "eu-west-1" in bucket.put("b.png", b"x", "image/png")
    assert [head.split(" ")[1][-5:] for head in server.heads] == ["a.png", "a.png", "b.png"]


@pytest.mark.parametrize("guard", GUARDS.values(), ids=GUARDS)
@pytest.mark.parametrize("status", [301, 302, 307, 308, 400])
def test_a_region_that_an_answer_names_is_tried_once(guard, status):
    text = b"<Error><Code>AuthorizationHeaderMalformed</Code><Region>eu-west-1</Region></Error>"
    head = f"HTTP/1.1 {status} X\r\nx-amz-bucket-region: eu-west-1\r\nContent-Length: {len(text)}\r\n\r\n".encode()
    with (
        RawServer(lambda connection, path: connection.sendall(head + text)) as server,
        pytest.raises(SourceUnavailable, match="refused the upload"),
    ):
        Bucket(config(server.url("")), guard).put("a.png", b"x", "image/png")
    assert len(server.heads) <= 2


@pytest.mark.parametrize("guard", GUARDS.values(), ids=GUARDS)
@pytest.mark.parametrize("size", [1, PART_BYTES + 1])
def test_a_page_that_answers_200_to_everything_has_stored_nothing(guard, size):
    with RawServer(body(b"<html>Log in</html>")) as server, pytest.raises(SourceUnavailable, match="refused"):
        Bucket(config(server.url("")), guard).put("a.png", b"x" * size, "image/png")


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
        ("https://images.s3.us-east-2.amazonaws.com", "us-east-2"),
        ("https://s3-us-west-2.amazonaws.com", "us-west-2"),
        ("https://s3.dualstack.ap-southeast-2.amazonaws.com/", "ap-southeast-2"),
        ("https://s3-fips.us-gov-west-1.amazonaws.com", "us-gov-west-1"),
        ("https://s3.cn-north-1.amazonaws.com.cn", "cn-north-1"),
        ("https://s3.amazonaws.com", "eu-south-1"),
        ("https://s3-accelerate.amazonaws.com", "eu-south-1"),
        ("https://fra1.digitaloceanspaces.com", "fra1"),
        ("https://images.fra1.digitaloceanspaces.com", "fra1"),
        ("https://s3.us-west-004.backblazeb2.com", "us-west-004"),
        ("https://s3.eu-central-1.wasabisys.com", "eu-central-1"),
        ("https://s3.fr-par.scw.cloud", "fr-par"),
        ("https://s3.gra.io.cloud.ovh.net", "gra"),
        ("https://fsn1.your-objectstorage.com", "fsn1"),
        ("https://S3API-EU-RO-1.runpod.io", "eu-ro-1"),
        ("https://abc.r2.cloudflarestorage.com", "eu-south-1"),
        ("http://127.0.0.1:9000", "eu-south-1"),
    ],
)
def test_the_signature_names_the_endpoints_own_region(endpoint, region):
    def signed(**told):
        return s3_address(
            endpoint, "images", **{"region": None, "usual_region": None, "addressing": None, **told}
        ).region

    assert signed(usual_region="eu-south-1") == region
    assert signed() == ("us-east-1" if region == "eu-south-1" else region)
    assert signed(region="mars-1", usual_region="eu-south-1") == "mars-1"


@pytest.mark.quick_rows(3)
@pytest.mark.parametrize(
    ("endpoint", "addressing", "where"),
    [
        ("https://s3.eu-west-1.amazonaws.com", None, "https://s3.eu-west-1.amazonaws.com/images/a.png"),
        ("https://s3.eu-west-1.amazonaws.com", "virtual", "https://images.s3.eu-west-1.amazonaws.com/a.png"),
        ("https://images.s3.eu-west-1.amazonaws.com", None, "https://images.s3.eu-west-1.amazonaws.com/a.png"),
        ("https://images.s3.eu-west-1.amazonaws.com", "path", "https://s3.eu-west-1.amazonaws.com/images/a.png"),
        ("https://images.fra1.digitaloceanspaces.com", None, "https://images.fra1.digitaloceanspaces.com/a.png"),
        ("https://fra1.digitaloceanspaces.com/images", None, "https://fra1.digitaloceanspaces.com/images/a.png"),
        ("https://oss-cn-hangzhou.aliyuncs.com", None, "https://images.oss-cn-hangzhou.aliyuncs.com/a.png"),
        ("http://127.0.0.1:9000/", None, "http://127.0.0.1:9000/images/a.png"),
    ],
)
def test_the_buckets_name_stands_where_the_store_wants_it(endpoint, addressing, where):
    bucket = Bucket(replace(config(endpoint), addressing=addressing))
    url = bucket._connect().generate_presigned_url("get_object", Params={"Bucket": "images", "Key": "a.png"})
    assert url.partition("?")[0] == where


def test_a_put_is_signed_for_the_region_that_is_named():
    with FakeBucket() as fake:
        url = Bucket(replace(config(fake.endpoint), region="eu-north-9")).put("a.png", b"x", "image/png")
        (stored,) = fake.objects.values()
    assert "/eu-north-9/s3/" in stored.headers["authorization"]
    assert "eu-north-9" in url
