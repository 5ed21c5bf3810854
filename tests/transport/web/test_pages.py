"""What a browser finds without having read anything, what HEAD answers, and which address a server believes it has."""

import re
import subprocess
from urllib.parse import urljoin

import pytest

from tests.fakes.web_worker import WebWorker
from tests.waiting import LIMIT_S, until
from worker.app.settings import SettingsError, read_settings

BROWSER = {"Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}


def loaded(served, path, prefix=""):
    """Return the addresses that the page at `path` loads or links, as a browser makes them absolute."""
    page = served.http.get(prefix + path, headers=BROWSER)
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    links = re.findall(r'(?:href|src)="([^"]*)"', page.text)
    assert links
    return [urljoin(f"{served.origin}{prefix}{path}", link) for link in links]


def test_the_first_page_of_a_browser_and_all_that_it_links(served):
    for path in ("/", "/docs"):
        for link in loaded(served, path):
            assert link.startswith(served.origin)  # without the internet too
            assert served.http.get(link).status_code == 200, link
    assert served.http.get("/favicon.ico").headers["content-type"] == "image/x-icon"


def test_its_line_of_curl_saves_an_image(served, tmp_path):
    page = served.http.get("/", headers=BROWSER).text
    line = re.search(r"<code>(.*)</code>", page)[1].replace("&#x27;", "'").replace("&quot;", '"')
    subprocess.run(["bash", "-c", line], cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "apple.png").read_bytes().startswith(b"\x89PNG")


def test_a_program_gets_links_as_json(served):
    answer = served.http.get("/").json()
    assert answer["links"]["docs"] == f"{served.origin}/docs"
    for name in ("docs", "openapi", "health", "ready", "models"):
        assert served.http.get(answer["links"][name]).status_code == 200


@pytest.mark.parametrize("encoding", ["gzip", "identity"])
def test_swagger_comes_from_here_whatever_a_client_unpacks(served, encoding):
    script = served.http.get("/ui/swagger-ui-bundle.js", headers={"Accept-Encoding": encoding})
    assert script.headers["content-type"].startswith("text/javascript")
    assert "SwaggerUIBundle" in script.text
    assert served.http.get("/ui/..%2fpages.py").status_code == 404
    assert served.http.get("/ui/index.html").status_code == 404


def test_with_keys_the_pages_are_open_and_tell_of_them(tmp_path):
    with WebWorker(tmp_path, api_keys="key-0123456789abcdef") as served:
        page = served.http.get("/", headers=BROWSER).text
        assert "Authorization: Bearer YOUR_KEY" in page
        assert "tiny" not in page  # which models there are is told to callers with a key
        assert served.http.get("/models").status_code == 401


def test_head_is_answered_wherever_get_is(served):
    job = served.http.post("/v2/local/run", json={"input": {"prompt": "x"}}).json()["id"]
    routes = served.http.get("/openapi.json").json()["paths"]
    parts = {"id": job, "endpoint": "local", "owner": "local", "name": "tiny", "version_id": "none", "index": 0}
    paths = [path.format(**parts) for path, methods in routes.items() if "get" in methods]
    for path in (*paths, "/docs", "/favicon.ico", "/openapi.json", "/models/tiny", "/v1/models/tiny", "/nowhere"):
        if path.startswith(("/models/" + job, "/v1/models/" + job)):
            continue
        got, head = served.http.get(path), served.http.head(path)
        assert (head.status_code, head.content) == (got.status_code, b""), path
        assert head.headers.get("content-type") == got.headers.get("content-type")
    assert served.http.head("/run").status_code == 405
    assert served.http.post("/health").headers["allow"] == "GET, HEAD"


def test_head_of_a_stream_ends_at_once_and_uses_nothing_up(served):
    served.context.engine.gate.clear()
    job = served.http.post("/v2/local/run", json={"input": {"prompt": "x"}}).json()["id"]
    assert served.context.engine.inside.wait(LIMIT_S)
    assert served.http.head(f"/events/{job}").status_code == 200
    assert served.context.engine.inside.is_set()  # the job has not ended before
    served.context.engine.gate.set()
    until(lambda: served.http.get(f"/v2/local/status/{job}").json()["status"] == "COMPLETED")
    assert served.http.head(f"/v2/local/stream/{job}").status_code == 200
    assert "image" in served.http.get(f"/v2/local/stream/{job}").json()["stream"][-1]["output"]


def image_url(served, **headers):
    body = {"prompt": "x", "response_format": "url"}
    return served.http.post("/v1/images/generations", json=body, headers=headers).json()["data"][0]["url"]


def test_links_speak_https_behind_a_proxy_that_does(tmp_path):
    with WebWorker(tmp_path, api_hostnames="images.example.com") as served:
        url = image_url(served, **{"X-Forwarded-Proto": "https", "Host": "images.example.com"})
        assert url.startswith("https://images.example.com/v1/images/img-")
        assert image_url(served, **{"X-Forwarded-Proto": "gopher"}).startswith(f"{served.origin}/v1/images/img-")


@pytest.mark.parametrize("proxy_keeps_it", [True, False])
def test_a_public_address_with_a_prefix(tmp_path, proxy_keeps_it):
    public = "https://example.com/images"
    prefix = "/images" if proxy_keeps_it else ""
    with WebWorker(tmp_path, public_url=public + "/") as served:
        url = image_url(served)
        assert url.startswith(f"{public}/v1/images/img-")
        path = url.removeprefix("https://example.com" if proxy_keeps_it else public)
        assert served.http.get(path).content.startswith(b"\x89PNG")
        assert served.http.get(f"{prefix}/").json()["links"]["docs"] == f"{public}/docs"
        assert served.http.get(f"{prefix}/openapi.json").json()["servers"] == [{"url": public}]
        for link in loaded(served, "/docs", prefix):
            assert served.http.get(link).status_code == 200
        assert served.http.get("/images").json()["links"]["run"] == f"{public}/run"
        answer = served.http.post(f"{prefix}/run", json={"prompt": "x"}, headers={"Origin": "https://example.com"})
        assert answer.status_code == 200  # its own pages
        answer = served.http.post(f"{prefix}/run", json={"prompt": "x"}, headers={"Origin": "https://elsewhere.com"})
        assert answer.status_code == 403


@pytest.mark.parametrize(
    "value", ["images.example.com", "ftp://a.example", "https://a.example/?x=1", "https://u:p@a.b"]
)
def test_a_public_address_that_is_none_stops_the_start(monkeypatch, value):
    monkeypatch.setenv("PUBLIC_URL", value)
    with pytest.raises(SettingsError, match=r"PUBLIC_URL: .*https://images"):
        read_settings()
