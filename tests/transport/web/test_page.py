"""The page at /ui: what it may do in a browser, its weight, and that all of it is here. What it does: tests/page."""

import re
from html.parser import HTMLParser
from urllib.parse import urljoin

import pytest

from tests.fakes.web_worker import WebWorker
from worker.app.settings import PROJECT_DIR

FOLDER = PROJECT_DIR / "worker" / "transport" / "web" / "ui" / "app"
FILES = {path.name: path.read_text() for path in sorted(FOLDER.iterdir())}
SCRIPTS = {name: text for name, text in FILES.items() if name.endswith(".js")}
IMPORT = re.compile(r'^import \{([^}]*)\} from "([^"]*)";', re.M)
# What would run or parse a text, or let one out of its place.
DANGEROUS = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|srcdoc|createContextualFragment|"
    r"setAttribute\(\"(?:style|on)|import\(|javascript:"
)
BROWSER = {"Accept": "text/html"}


def policy(answer):
    parts = answer.headers["content-security-policy"].split("; ")
    return {part.split(" ")[0]: part.split(" ")[1:] for part in parts}


def test_the_page_is_served_with_a_policy_that_lets_nothing_in_and_nothing_out(served):
    for path in ("/ui", *(f"/ui/app/{name}" for name in FILES if name != "index.html")):
        answer = served.http.get(path)
        assert answer.status_code == 200, path
        rules = policy(answer)
        assert rules["default-src"] == ["'none'"]
        assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == ["'self'"]
        assert rules["require-trusted-types-for"] == ["'script'"]
        assert rules["frame-ancestors"] == rules["base-uri"] == rules["form-action"] == ["'none'"]
        assert not {"'unsafe-inline'", "'unsafe-eval'", "*", "https:", "http:"} & {
            x for each in rules.values() for x in each
        }
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"


def test_its_files_have_their_types_and_are_sent_again_only_when_they_changed(served):
    types = {"style.css": "text/css", "main.js": "text/javascript"}
    for name, kind in types.items():
        first = served.http.get(f"/ui/app/{name}")
        assert first.headers["content-type"].startswith(kind)
        again = served.http.get(f"/ui/app/{name}", headers={"If-None-Match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
    for name in ("index.html", "..%2fdocs.html", "..%2f..%2fpage.py", "none.js"):
        assert served.http.get(f"/ui/app/{name}").status_code == 404, name
    assert served.http.get("/ui/", follow_redirects=False).headers["location"] == "../ui"


def test_it_stays_small():
    assert sum(len(text.splitlines()) for text in FILES.values()) <= 3_000
    assert sum(len(text.encode()) for text in FILES.values()) <= 150_000
    assert max(len(text.splitlines()) for text in FILES.values()) <= 400


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.inline, self.loaded, self._in = [], [], ""

    def handle_starttag(self, tag, attrs):
        names = dict(attrs)
        self._in = tag
        self.inline += [name for name in names if name == "style" or name.startswith("on")]
        self.loaded += [names[name] for name in ("src", "href") if name in names]

    def handle_data(self, data):
        if self._in in ("script", "style") and data.strip():
            self.inline.append(data)

    def handle_endtag(self, tag):
        self._in = ""


def test_it_has_no_code_inline_and_loads_nothing_from_elsewhere(served):
    page = Page()
    page.feed(FILES["index.html"])
    assert not page.inline
    for link in page.loaded:
        if not link.startswith("#"):
            assert served.http.get(urljoin("/ui", link)).status_code == 200, link
    for name, text in FILES.items():
        assert not re.search(r"""["'(]\s*(?:https?:)?//[a-z0-9]""", text), name
        assert not re.search(r"@import|url\(", text), name


def test_no_script_of_it_writes_html_or_runs_a_text():
    assert {name: found for name, text in SCRIPTS.items() if (found := DANGEROUS.findall(text))} == {}


def test_every_module_finds_what_it_imports():
    exported = {
        name: set(re.findall(r"^export (?:async )?(?:function|class|const|let) (\w+)", text, re.M))
        | {part.strip() for each in re.findall(r"^export \{([^}]*)\}", text, re.M) for part in each.split(",")}
        for name, text in SCRIPTS.items()
    }
    reached, todo = set(), ["main.js"]
    while todo:
        name = todo.pop()
        if name in reached:
            continue
        reached.add(name)
        assert len(IMPORT.findall(SCRIPTS[name])) == len(re.findall(r"^import .*(?:;|,|\{)$", SCRIPTS[name], re.M)), (
            name
        )
        for names, target in IMPORT.findall(SCRIPTS[name]):
            assert target.startswith("./"), target
            wanted = {part.split(" as ")[0].strip() for part in names.split(",")}
            assert wanted <= exported[target[2:]], (name, target, wanted - exported[target[2:]])
            todo.append(target[2:])
    assert reached == SCRIPTS.keys()  # nothing lies about unused


def test_the_first_page_leads_to_it_unless_it_is_turned_off(served, tmp_path):
    assert 'href="ui"' in served.http.get("/", headers=BROWSER).text
    assert served.http.get("/").json()["links"]["ui"] == f"{served.origin}/ui"
    with WebWorker(tmp_path / "off", web_page=False) as plain:
        assert plain.http.get("/ui").status_code == plain.http.get("/ui/app/main.js").status_code == 404
        assert 'href="ui"' not in plain.http.get("/", headers=BROWSER).text
        assert "ui" not in plain.http.get("/").json()["links"]
        assert plain.http.get("/docs").status_code == plain.http.get("/ui/docs.js").status_code == 200


@pytest.mark.parametrize("prefix", ["", "/images"])
def test_it_is_open_and_tells_nothing_where_keys_are_asked_for(tmp_path, prefix):
    changes = {"public_url": "https://example.com/images"} if prefix else {}
    with WebWorker(tmp_path, api_keys="key-0123456789abcdef", **changes) as served:
        assert served.http.get(f"{prefix}/ui").text == FILES["index.html"]
        assert served.http.get(f"{prefix}/ui/app/main.js").status_code == 200
        assert served.http.get(f"{prefix}/jobs").status_code == 401
