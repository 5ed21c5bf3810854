"""Callers without keys, by their addresses: whom a forwarded address is believed of, and how often one may ask."""

import pytest
from starlette.requests import HTTPConnection

from tests.fakes.web_worker import WebWorker
from worker.app.settings import Settings, SettingsError, read_settings
from worker.service.limits.accounts import Accounts
from worker.service.limits.quotas import QuotaLimits, Quotas
from worker.transport.web.addresses import Addresses


def connection(peer, *forwarded):
    headers = [(b"x-forwarded-for", text.encode()) for text in forwarded]
    client = (peer, 1) if peer is not None else None
    return HTTPConnection({"type": "http", "headers": headers, "client": client})


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("1.2.3.4", (), "1.2.3.4"),
        ("1.2.3.4", ("9.9.9.9",), "1.2.3.4"),  # not of a proxy that is trusted
        ("10.0.0.1", ("9.9.9.9",), "9.9.9.9"),
        ("10.0.0.1", ("6.6.6.6, 9.9.9.9",), "9.9.9.9"),  # what the caller wrote there themselves
        ("10.0.0.1", ("6.6.6.6", "9.9.9.9, 10.0.0.2"), "9.9.9.9"),  # two proxies, two headers
        ("10.0.0.1", ("9.9.9.9:4711",), "9.9.9.9"),
        ("10.0.0.1", ("unknown",), "10.0.0.1"),
        ("10.0.0.1", (), "10.0.0.1"),
        ("::ffff:10.0.0.1", ("9.9.9.9",), "9.9.9.9"),
        ("fd00::1", ("[2a00:1:2:3::4]:80",), "2a00:1:2:3::/64"),
        ("2a00:1:2:3::4", (), "2a00:1:2:3::/64"),
        (None, ("9.9.9.9, 1.2.3.4",), "1.2.3.4"),  # of the front, which writes the last one
        ("", ("9.9.9.9, 10.0.0.1",), "9.9.9.9"),
    ],
)
def test_an_address_is_believed_of_trusted_proxies_only(peer, forwarded, address):
    assert Addresses(("10.0.0.0/8", "fd00::1")).of(connection(peer, *forwarded)) == address


def run(worker, address=None):
    headers = {"X-Forwarded-For": address} if address else {}
    return worker.http.post("/run", json={"prompt": "x"}, headers=headers)


def test_one_address_is_held_to_its_rate_and_another_is_not(tmp_path):
    given = {"rate_limit_per_address": 2, "trusted_proxies": "127.0.0.1"}
    with WebWorker(tmp_path, **given) as worker:
        assert [run(worker, "9.9.9.9").status_code for _ in range(3)] == [200, 200, 429]
        refused = run(worker, "9.9.9.9")
        assert refused.json()["code"] == "rate_limited"
        assert "2 requests a minute are taken from one address" in refused.json()["error"]
        assert int(refused.headers["Retry-After"]) >= 1
        assert worker.http.get("/models", headers={"X-Forwarded-For": "9.9.9.9"}).status_code == 429
        assert run(worker, "8.8.8.8").status_code == 200
        assert worker.http.get("/ping").status_code == 200


def test_without_a_trusted_proxy_the_header_is_nothing(tmp_path):
    with WebWorker(tmp_path, rate_limit_per_address=2) as worker:
        assert [run(worker, f"9.9.9.{index}").status_code for index in range(3)] == [200, 200, 429]


def test_with_keys_nobody_is_counted_by_address(tmp_path):
    with WebWorker(tmp_path, rate_limit_per_address=1, api_keys="anna's own secret key") as worker:
        headers = {"Authorization": "Bearer anna's own secret key"}
        answers = [worker.http.post("/run", json={"prompt": "x"}, headers=headers) for _ in range(3)]
        assert {answer.status_code for answer in answers} == {200}


def test_processes_behind_one_port_count_together_and_very_many_addresses_are_forgotten(tmp_path, monkeypatch):
    monkeypatch.setattr("worker.service.limits.quotas.MAX_ACCOUNTS", 10)
    first, second = (Quotas(QuotaLimits(2), Accounts(None, tmp_path / "shared")) for _ in range(2))
    first.charge_question("1.1.1.1")
    second.charge_question("1.1.1.1")
    with pytest.raises(Exception, match="2 requests a minute"):
        first.charge_question("1.1.1.1")
    for index in range(30):
        first.charge_question(f"2.2.2.{index}")
    with first._accounts.held() as accounts:
        assert len(accounts) <= 10
        assert "1.1.1.1" in accounts  # the one that may send least


def test_what_is_no_network_is_refused_and_what_does_nothing_is_warned_of(monkeypatch):
    monkeypatch.setenv("TRUSTED_PROXIES", "10.0.0.0/8, proxy.example")
    with pytest.raises(SettingsError, match=r"TRUSTED_PROXIES: name addresses or networks"):
        read_settings()
    monkeypatch.setenv("TRUSTED_PROXIES", "0.0.0.0/0")
    sentences = " ".join(Settings().server_warnings())
    assert "TRUSTED_PROXIES is for RATE_LIMIT_PER_ADDRESS" in sentences
    assert "any caller may say" in sentences
    sentences = " ".join(Settings(rate_limit_per_address=5, api_keys="anna's own secret key").server_warnings())
    assert "RATE_LIMIT_PER_ADDRESS is of callers without keys" in sentences
