"""What a page of CivitAI allows, asked for a training: by the model or one of its versions, and never from a cache."""

import pytest

from tests.fakes.civitai import FakeCivitai
from tests.store.civitai_client import Client
from worker.core.errors import ModelNotFound, SourceUnavailable
from worker.store.refs import parse_reference
from worker.store.store import Store


@pytest.fixture
def site():
    with FakeCivitai() as fake:
        terms = {"allowCommercialUse": ["Image", "Sell"], "allowNoCredit": False, "allowDerivatives": False}
        fake.add_model(100, "Grey", "Checkpoint", **terms)
        fake.add_version(100, 201, "SD 1.5")
        fake.add_model(101, "Silent", "Checkpoint")
        fake.add_version(101, 211, "SD 1.5")
        yield fake


@pytest.fixture
def store(site, tmp_path) -> Store:
    return Store({"civitai": Client(site, tmp_path).source})


@pytest.mark.parametrize("reference", ["civitai:100", "civitai:100@201", "civitai:@201"])
def test_the_terms_of_the_model_hold_for_each_of_its_versions(store, reference):
    told = store.licence(parse_reference(reference))
    assert told == "commercial use: Image, Sell; credit needed; no derivatives"


def test_a_page_that_says_nothing_has_no_licence_and_one_that_is_gone_is_told(store, site, tmp_path):
    assert store.licence(parse_reference("civitai:101")) is None
    with pytest.raises(ModelNotFound):
        store.licence(parse_reference("civitai:999"))
    offline = Store({"civitai": Client(site, tmp_path, offline=True).source})
    with pytest.raises(SourceUnavailable):
        offline.licence(parse_reference("civitai:100"))
