"""The ledger of money: sums that several processes share, a budget that none of them goes over, alerts told once."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from image_client.alerts import Alerts
from image_client.budget import Budget, Limits
from image_client.errors import ContentFiltered, GenerationFailed, RateLimited, UnknownOutcome
from image_client.paying import account
from image_client.prices import Price, PriceBook, PriceUnknown
from image_client.request import ImageRequest
from image_client.spending import BudgetExceeded, SpendingLedger
from tests.fakes.web_worker import Listener

APPLE = ImageRequest(prompt="a red apple", model="black-forest-labs/flux-schnell")


@pytest.fixture
def budget(tmp_path: Path) -> Callable[..., Budget]:
    ledger = SpendingLedger(tmp_path / "spending.sqlite")

    def budget(*, session: str | None = None, month: str | None = None, **fields: object) -> Budget:
        limits = Limits(session and Decimal(session), month and Decimal(month))
        return Budget(ledger, PriceBook.load(), session="test", limits=limits, **fields)

    return budget


def reserve(budget: Budget, key: str, request: ImageRequest = APPLE, provider: str = "replicate") -> None:
    budget.reserve(key, provider, request, budget.quote(provider, request))


def test_thousandths_add_up_to_the_cent(budget: Callable[..., Budget]) -> None:
    budget = budget(month="60")
    for number in range(500):
        reserve(budget, f"{number}")
        budget.settle(f"{number}", Decimal("0.003"), 1.0)
    assert budget.ledger.committed("session", "test") == Decimal("1.50")


def test_what_would_go_over_is_refused_before_it_is_sent(budget: Callable[..., Budget]) -> None:
    tight = budget(session="0.009")
    for key in "abc":
        reserve(tight, key)
    with pytest.raises(BudgetExceeded, match=r"session test is \$0.009.*raise it"):
        reserve(tight, "d")
    assert tight.ledger.committed("session", "test") == Decimal("0.009")
    tight.ledger.release("a")  # one cannot have run: there is room again
    reserve(tight, "d")
    reserve(budget(session="0.012"), "e")  # the budget was raised


def test_the_same_call_is_reserved_once(budget: Callable[..., Budget]) -> None:
    budget = budget(month="60")
    reserve(budget, "a")
    reserve(budget, "a")
    assert budget.ledger.committed("session", "test") == Decimal("0.003")
    budget.settle("a", Decimal("0.002"), 1.0)
    budget.settle("a", Decimal("0.009"), 1.0)
    assert budget.ledger.committed("session", "test") == Decimal("0.002")


def test_an_unknown_price_is_refused_unless_allowed_and_is_never_free(budget: Callable[..., Budget]) -> None:
    nobody_knows = ImageRequest(prompt="x", model="somebody/something")
    with pytest.raises(PriceUnknown, match="replicate/somebody/something"):
        reserve(budget(), "a", nobody_knows)
    allowed = budget(allow_unknown_price=True)
    reserve(allowed, "b", nobody_knows)
    allowed.settle("b", allowed.cost(None, allowed.quote("replicate", nobody_knows), 1.0), 1.0)
    (call,) = allowed.ledger.calls()
    assert (call.state, call.dollars) == ("settled", None)


def test_seconds_are_priced_once_they_were_measured(budget: Callable[..., Budget]) -> None:
    ours = Price(provider="selfhosted", model="*", unit="second", usd="0.0005", source="our bill", read="2026-11-01")
    billed = replace(budget(), prices=PriceBook((ours,)))
    with pytest.raises(PriceUnknown, match="billed by the second"):
        reserve(billed, "a", provider="selfhosted")
    guessed = replace(billed, seconds_per_image=4.0)
    for key, seconds in (("a", 1.0), ("b", 2.0), ("c", 6.0)):
        reserve(guessed, key, provider="selfhosted")
        quote = guessed.quote("selfhosted", APPLE)
        guessed.settle(key, guessed.cost(None, quote, seconds), seconds)
    quote = billed.quote("selfhosted", APPLE)
    assert (quote.likely, quote.most) == (Decimal("0.0010"), Decimal("0.0030"))  # the median; the longest
    assert billed.ledger.committed("session", "test") == Decimal("0.0045")


def test_a_dear_stand_in_is_reserved_for(budget: Callable[..., Budget]) -> None:
    dear = Price(
        provider="fal", model="fal-ai/flux/schnell", unit="image", usd="0.05", source="their page", read="2026-11-01"
    )
    both = replace(budget(), prices=PriceBook((*PriceBook.load().prices, dear)))
    assert both.quote("replicate", APPLE, ["fal"]).most == Decimal("0.05")
    assert both.quote("replicate", APPLE, ["openai"]).most is None  # nobody knows what that one takes


@pytest.mark.parametrize(
    ("error", "left"),
    [
        (RateLimited("too much"), "0"),
        (GenerationFailed("broken"), "0"),
        (ContentFiltered("blurred"), "0.003"),
        (UnknownOutcome("silence"), "0.003"),
    ],
)
def test_what_came_of_a_call_settles_it(budget: Callable[..., Budget], error: Exception, left: str) -> None:
    budget = budget()
    quote = budget.quote("replicate", APPLE)
    reserve(budget, "a")
    account(budget, "a", error, quote, 1.0)
    assert budget.ledger.committed("session", "test") == Decimal(left)


def test_each_threshold_is_told_once(budget: Callable[..., Budget], tmp_path: Path) -> None:
    told = tmp_path / "told.jsonl"
    script = tmp_path / "tell.py"
    script.write_text(f"import sys; open({str(told)!r}, 'a').write(sys.stdin.read() + '\\n')")
    alerts = Alerts(command=f"{sys.executable} {script}")
    tight = budget(session="0.03", alerts=alerts)
    for number in range(10):
        reserve(tight, f"{number}")
    for number in range(2):
        with pytest.raises(BudgetExceeded):
            reserve(tight, f"more {number}")
    alerts = [json.loads(line) for line in told.read_text().splitlines()]
    assert [alert["percent"] for alert in alerts] == [50, 80, 100]
    assert alerts[0]["committed_usd"] == 0.015 and alerts[0]["budget_usd"] == 0.03
    assert "Nothing more is sent" in alerts[2]["message"]


def test_a_webhook_hears_of_an_alert_and_a_broken_one_stops_nobody(
    budget: Callable[..., Budget], caplog: pytest.LogCaptureFixture
) -> None:
    with Listener(failures=[500]) as listener:
        told = budget(session="0.006", alerts=Alerts(webhook=f"{listener.origin}/hook"))
        reserve(told, "a")
        reserve(told, "b")
        bodies = [json.loads(seen.body) for seen in listener.requests]
    assert [body["percent"] for body in bodies] == [50, 80, 100] and bodies[0]["scope"] == "session"
    assert any("did not take the alert" in record.getMessage() for record in caplog.records)
    reserve(budget(session="0.010", alerts=Alerts("http://127.0.0.1:9/", "no-such-command-here")), "c")
    assert any("did not run" in record.getMessage() for record in caplog.records)


def test_the_default_budget_warns_at_30_dollars_and_stops_at_60(budget: Callable[..., Budget], caplog: object) -> None:
    default = replace(budget(), limits=Limits())
    dear = Price(provider="p", model="*", unit="image", usd="10", source="a test", read="2026-11-01")
    default = replace(default, prices=PriceBook((dear,)))
    for number in range(6):
        reserve(default, f"{number}", provider="p")
    with pytest.raises(BudgetExceeded):
        reserve(default, "7", provider="p")
    messages = [record.getMessage() for record in caplog.records]
    assert ["$30.00 of $60.00" in messages[0], "$50.00 of $60.00" in messages[1]] == [True, True]
    assert len(messages) == 3


_SPENDER = """
import sys
from decimal import Decimal
from pathlib import Path
from image_client.budget import Budget, Limits
from image_client.prices import PriceBook
from image_client.request import ImageRequest
from image_client.spending import BudgetExceeded, SpendingLedger

budget = Budget(SpendingLedger(Path(sys.argv[1])), PriceBook.load(), sys.argv[2], Limits(None, Decimal("0.30")))
request = ImageRequest(prompt="x", model="black-forest-labs/flux-schnell")
quote = budget.quote("replicate", request)
sent = 0
for number in range(100):
    try:
        budget.reserve(f"{sys.argv[2]}-{number}", "replicate", request, quote)
    except BudgetExceeded:
        break
    sent += 1
    budget.settle(f"{sys.argv[2]}-{number}", Decimal("0.003"), 1.0)
print(sent)
"""


def test_two_processes_never_overspend_together(tmp_path: Path) -> None:
    path = tmp_path / "spending.sqlite"
    SpendingLedger(path).close()
    command = [sys.executable, "-c", _SPENDER, str(path)]
    both = [subprocess.Popen([*command, name], stdout=subprocess.PIPE, text=True) for name in ("one", "two")]
    sent = [int(process.communicate(timeout=120)[0]) for process in both]
    assert sum(sent) == 100  # 0.30 / 0.003: not one more, and none less
    ledger = SpendingLedger(path)
    assert sum((call.dollars for call in ledger.calls()), Decimal(0)) == Decimal("0.30")
    assert len(ledger.calls()) == 100


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.sampled_from(["reserve", "settle", "release", "doubt"]), st.integers(0, 5), st.integers(0, 3)),
        max_size=40,
    )
)
def test_whatever_happens_the_sum_stays_within_the_budget(
    budget: Callable[..., Budget], steps: list[tuple[str, int, int]]
) -> None:
    """Settled below what was reserved: then the whole is never over the budget, and never below what was settled."""
    tight = budget(session="0.011")
    for call in tight.ledger.calls():
        tight.ledger._database.execute("DELETE FROM calls WHERE key = ?", (call.key,))
    settled: dict[str, Decimal] = {}
    for step, number, cost in steps:
        key = f"{number}"
        if step == "reserve":
            try:
                reserve(tight, key)
            except BudgetExceeded:
                continue
        elif step == "settle":
            known = {call.key: call.state for call in tight.ledger.calls()}
            if known.get(key) not in (None, "settled"):
                settled[key] = Decimal(cost) / 1000
            tight.settle(key, Decimal(cost) / 1000, 1.0)
        else:
            getattr(tight.ledger, step)(key)
        committed = tight.ledger.committed("session", "test")
        assert sum(settled.values(), Decimal(0)) <= committed <= Decimal("0.011")
