"""Images behind links: opened without the token, at public addresses, within a limit, and whole."""

import asyncio
import ssl

import pytest
from aiohttp import web

from image_client import ClientOptions, ImageClient, guard
from image_client.drawing import drawn
from image_client.errors import GenerationFailed, ResultLost
from image_client.transport import Transport
from tests.image_client import fake_providers as fakes
from tests.net.conftest import certificate as certificate

APPLE = drawn("an apple", 64, 64, 7)


class Files(fakes.OpenAI):
    """Links that lead where a test wants; `answers` are what /files serves next."""

    def __init__(self):
        super().__init__()
        self.answers = []

    async def file(self, request):
        answer = self.answers.pop(0) if self.answers else APPLE
        if isinstance(answer, bytes):
            return web.Response(body=answer, content_type="image/png")
        if isinstance(answer, int):
            return web.Response(status=answer)
        return web.Response(status=302, headers={"Location": answer, "Set-Cookie": "who=me"})


@pytest.fixture
def files(monkeypatch):
    monkeypatch.setattr("image_client.collection.backoff", lambda number: 0.01)
    with Files() as server:
        yield server


async def ask(server, **options):
    async with ImageClient(
        "openai", api_token=fakes.TOKEN, base_url=f"{server.origin}/v1", model="links", options=ClientOptions(**options)
    ) as images:
        return await images.generate("an apple", seed=7)


@pytest.mark.quick_rows(4)
@pytest.mark.parametrize(
    "link",
    [
        "https://10.0.0.1/a.png",
        "https://169.254.169.254/latest/meta-data",
        "https://[::1]/a.png",
        "https://[::ffff:10.0.0.1]/a.png",
        "https://0x7f.1/a.png",
        "https://user@example.com/a.png",
        "http://localhost:80/a.png",
        "https://example.com/a b.png",
    ],
)
async def test_a_private_or_odd_link_is_not_opened(files, link):
    files.link = link
    with pytest.raises(ResultLost, match="is not opened"):
        await ask(files)
    files.link, files.answers = None, [link.replace(" ", "%00 ")]
    with pytest.raises(ResultLost, match="is not opened"):
        await ask(files)  # nor where a good one redirects to it


def test_only_addresses_of_the_public_internet_are_public():
    public = ("8.8.8.8", "1.1.1.1", "2606:4700::1111")
    private = ("127.0.0.1", "10.1.2.3", "100.64.0.1", "192.168.0.1", "169.254.169.254", "0.0.0.0", "224.0.0.1", "::1")
    tunnels = (
        "64:ff9b::a00:1",
        "2002:a00:1::",
        "2001::1",
        "fe80::1%eth0",
        "fd00::1",
        "::ffff:10.0.0.1",
        "168.63.129.16",
    )
    assert [address for address in (*public, *private, *tunnels) if guard.is_public(address)] == [*public]


async def test_redirects_are_followed_a_few_times_without_token_or_cookie(files):
    files.answers = [f"{files.origin}/files/2.png", "/files/3.png"]
    assert (await ask(files)).data == APPLE
    hops = [seen for seen in files.requests if seen.path.startswith("/files/")]
    assert len(hops) == 3
    assert not any({"authorization", "cookie"} & set(seen.headers) for seen in hops)
    files.answers = ["/files/round.png"] * 99
    with pytest.raises(ResultLost, match="redirects more than 5 times"):
        await ask(files)


async def test_what_is_no_image_or_too_large_or_cut_off_is_lost(files):
    files.answers = [b"<html>log in</html>"]
    with pytest.raises(ResultLost, match="no image"):
        await ask(files)
    files.answers = [APPLE + bytes(2**20)]
    with pytest.raises(ResultLost, match="larger than 1 MB"):
        await ask(files, max_image_mb=1)
    files.answers = [APPLE[:-40], 503, APPLE]
    assert (await ask(files)).data == APPLE  # a link may be opened again
    files.answers = [APPLE[:-40]] * 9
    with pytest.raises(ResultLost, match="cut off"):
        await ask(files)
    files.answers = [404]
    with pytest.raises(ResultLost, match="no longer served"):
        await ask(files)
    assert len(files.jobs) == 5


async def test_a_prediction_is_asked_again_for_a_link_that_has_expired():
    class Expiring(fakes.Replicate):
        async def file(self, request):
            gone = request.match_info["name"] == "old.png"
            return web.Response(status=404) if gone else await super().file(request)

    with Expiring() as server:
        server.link = f"{server.origin}/files/old.png"
        async with ImageClient("replicate", api_token=fakes.TOKEN, base_url=server.origin) as images:
            with pytest.raises(ResultLost) as failure:
                await images.generate("a", seed=1)
            assert failure.value.job.job_id == "p1" and len(server.jobs) == 1
            for job in server.jobs.values():
                job["output"] = [server.origin + "/files/" + name for name in server.files]
            (image,) = await images.collect(failure.value.job)
    assert image.data == drawn("a", 64, 64, 1)


async def test_inline_images_are_read_with_care():
    class Broken(fakes.OpenAI):
        def answered(self, request, fields):
            return web.json_response({"data": [{"b64_json": fields["prompt"]}]})

    with Broken() as server:
        base = f"{server.origin}/v1"
        async with ImageClient("openai", api_token=fakes.TOKEN, base_url=base) as images:
            for words, kind in (
                ("***", GenerationFailed),
                ("aGVsbG8=", ResultLost),
                ("data:image/png;base64,iVBO", ResultLost),
            ):
                with pytest.raises(kind):
                    await images.generate(words)


async def test_over_https_the_certificate_is_that_of_the_name_and_the_connection_that_of_the_address(
    certificate, monkeypatch
):
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    looked_up = []

    async def resolve(host, port, **_):
        looked_up.append(host)
        return [(2, 1, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
    monkeypatch.setattr(guard, "is_public", lambda address: True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    heard = []

    async def converse(reader, writer):
        heard.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(APPLE) + APPLE)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(converse, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    transport = Transport("https://api.example", concurrency=2, max_image_bytes=2**20)
    try:
        assert await transport.fetch(f"https://images.example:{port}/a.png") == APPLE
        assert b"Host: images.example:%d" % port in heard[0] and b"GET /a.png" in heard[0]
        with pytest.raises(ResultLost, match="no connection"):
            await transport.fetch(f"https://other.example:{port}/a.png")  # not its certificate
        assert looked_up == ["images.example", "other.example"]
    finally:
        await transport.close()
        server.close()
