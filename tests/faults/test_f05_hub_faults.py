"""F5: the Hub fails, refuses, cuts or hangs. What passes is waited out; what does not is said; a copy still works."""

import time

import pytest

from tests.store.conftest import Client
from tests.store.conftest import client as client
from tests.store.conftest import folder as folder
from tests.store.conftest import hub as hub
from tests.store.conftest import hurried as hurried
from worker.core.errors import SourceUnavailable
from worker.store import hub_listing

FAULTS = {
    "two 500s": lambda hub: hub.failures.extend([500, 500]),
    "503, then 429 with Retry-After": lambda hub: hub.failures.extend([503, 429]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_passes_is_waited_out(client, hub, fault, figures):
    FAULTS[fault](hub)
    started = time.monotonic()
    assert client.ensure("org/model").revision == hub.commit
    figures("F5", f"until a model came after {fault}", time.monotonic() - started, "s", at_most=5, momentary=True)


LASTING = {
    "500 for ever": lambda hub: hub.failures.extend([500] * 50),
    "429 for ever": lambda hub: hub.failures.extend([429] * 50),
    "closed port": lambda hub: setattr(hub, "down", True),
    "silence": lambda hub: setattr(hub, "hang", True),
}


@pytest.mark.parametrize("fault", LASTING)
def test_what_lasts_is_a_typed_refusal_and_a_copy_still_works(client, hub, fault, figures, monkeypatch):
    monkeypatch.setattr(hub_listing, "LISTING_TIMEOUT_S", 0.5)
    root = client.ensure("org/model").root
    LASTING[fault](hub)
    started = time.monotonic()
    with pytest.raises(SourceUnavailable) as raised:
        Client(hub.endpoint, client.cache.with_name("empty")).ensure("org/model")
    refused_after = time.monotonic() - started
    assert raised.value.retryable
    figures("F5", f"until {fault} was said", refused_after, "s", at_most=30, momentary=True)
    used = Client(hub.endpoint, client.cache).ensure("org/model").root == root
    figures("F5", f"copies from before that are used during {fault}", used, "", at_least=1)
    hub.hang = False
