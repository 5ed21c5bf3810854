"""A find goes into models.yaml by an admin's request: looked at again, written, served; or it waits for a review."""

import pytest
import yaml

from tests.fakes.civitai import FakeCivitai
from tests.fakes.hub import FakeHub
from tests.fakes.web_worker import WebWorker
from tests.service.discovery.conftest import patience as patience
from tests.service.discovery.pages import fill_civitai, fill_hub

ANNA, ADMIN = "anna's own secret key", "the operator's own key"


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    """Both sites in miniature, as settings."""
    with FakeCivitai() as site, FakeHub() as hub:
        fill_civitai(site)
        fill_hub(hub, tmp_path_factory.mktemp("hub"))
        yield {"civitai_endpoint": site.origin, "hf_endpoint": hub.endpoint, "allow_private_urls": True}


def served(root, sites, **settings):
    return WebWorker(root, api_keys=ANNA, admin_keys=ADMIN, OFFLINE=False, **sites, **settings)


def add(worker, name, model, key=ADMIN):
    return worker.http.post(
        "/admin/models/add", json={"name": name, "model": model}, headers={"Authorization": f"Bearer {key}"}
    )


def test_a_find_is_written_pinned_and_served_at_once(tmp_path, sites):
    with served(tmp_path, sites) as worker:
        models = worker.context.worker.settings.models_yaml
        models.write_text("# ours\nmodels:\n  tiny: {source: 'file:models/sd1'}  # stays\n")
        worker.context.worker.reload()
        before = models.read_text()
        assert add(worker, "xl", "org/anime-xl", ANNA).status_code == 403
        for name, model, field, words in (
            ("xl", "org/anime-gated", "model", "accept its licence"),
            ("xl", "civitai:11@110", "model", "was removed"),
            ("xl", "civitai:10@101", "model", "early access until 2027-01-31"),
            ("xl", "file:models/sd1", "reference", "no page of the Hub or CivitAI"),
            ("tiny", "org/anime-xl", "name", "has a model tiny already"),
            ("x l", "org/anime-xl", "name", "cannot be a model id"),
            ("", "org/anime-xl", "name", "name"),
        ):
            answer = add(worker, name, model)
            assert (answer.status_code, answer.json()["field"]) == (400, field), answer.text
            assert words in answer.json()["error"]
        assert models.read_text() == before
        answer = add(worker, "xl", "org/anime-xl").json()
        assert (answer["name"], answer["file"], answer["waits"]) == ("xl", "models.yaml", False)
        assert models.read_text().startswith(before)
        entry = yaml.safe_load(models.read_text())["models"]["xl"]
        assert entry["source"].startswith("org/anime-xl@")
        assert len(entry["source"].partition("@")[2]) == 40
        listed = worker.http.get("/models", headers={"Authorization": f"Bearer {ADMIN}"}).json()["models"]
        assert "xl" in [model["id"] for model in listed]


def test_where_the_operator_reviews_nothing_is_served_by_it(tmp_path, sites):
    review = tmp_path / "review.yaml"
    with served(tmp_path / "shelf", sites, models_review=review) as worker:
        before = worker.context.worker.settings.models_yaml.read_text()
        answer = add(worker, "lines", "civitai:20@200").json()
        assert (answer["file"], answer["waits"]) == ("review.yaml", True)
        assert yaml.safe_load(review.read_text())["models"]["lines"]["source"] == "civitai:20@200"
        assert worker.context.worker.settings.models_yaml.read_text() == before
        assert worker.context.worker.registry.find("lines") is None
