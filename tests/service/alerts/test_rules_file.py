"""alerts.yaml: what is read, and each mistake with its line and the fix."""

import json

import pytest

from worker.service.alerts.rules_file import AlertsError, read_rules

GOOD = """\
webhook: https://hooks.example.com/alerts
rules:
  errors:
    measure: error_rate
    model: small
    above: 0.1
    until: 0.05
    for_s: 60
  disk:
    measure: disk_free_gb
    below: 20
    to: []
"""


def read(tmp_path, text):
    path = tmp_path / "alerts.yaml"
    path.write_text(text)

    def check(url):
        if "private" in url:
            raise ValueError("webhook cannot be called: it is private; name a public https URL.")

    return read_rules(path, {"small": "tiny", "tiny": "tiny"}.get, check)


def test_rules_are_read_with_models_by_their_ids_and_outlets_that_there_are(tmp_path):
    file = read(tmp_path, GOOD)
    errors, disk = file.rules["errors"], file.rules["disk"]
    assert (errors.model, errors.bound, errors.over_s, errors.to) == ("tiny", 0.1, 300.0, ("webhook",))
    assert (disk.bound, disk.beyond(19), disk.beyond(21), disk.to) == (20, True, False, ())


@pytest.mark.parametrize(
    ("before", "after", "line", "sentence"),
    [
        ("error_rate", "eror_rate", 4, "rules.errors.measure must be 'error_rate', 'queue_s'"),
        ("above: 0.1\n", "above: 0.1\n    over: 5\n", 7, "unknown key rules.errors.over; did you mean over_s"),
        ("model: small", "model: big", 5, "rules.errors.model: big is not in models.yaml"),
        ("    above: 0.1\n    until: 0.05\n", "", 3, "rules.errors .*must have one of above and below"),
        ("until: 0.05", "until: 0.2", 3, "has until 0.2 beyond its bound 0.1"),
        ("below: 20", "below: 20\n    over_s: 60", 9, "says over_s, and disk_free_gb is looked at as it is now"),
        ("below: 20", "below: 20\n    model: small", 9, "says model, and disk_free_gb is of the whole worker"),
        ("below: 20", "below: 20\n    min_jobs: 3", 9, "says min_jobs"),
        ("to: []", "to: [email]", 12, "rules.disk.to names email, which this file does not set"),
        ("hooks.example.com", "private", 1, "webhook cannot be called: it is private"),
        ("for_s: 60", "for_s: 1m", 8, "rules.errors.for_s must be a valid number"),
        ("rules:", "rule:", 1, "rules is missing; add it"),
    ],
)
def test_a_mistake_is_told_with_its_line(tmp_path, before, after, line, sentence):
    assert before in GOOD
    with pytest.raises(AlertsError, match=sentence) as refused:
        read(tmp_path, GOOD.replace(before, after, 1))
    assert str(refused.value).startswith(f"alerts.yaml:{line}: ")


RULE = {"measure": "lost", "above": 0}
COUNTED = {"measure": "cost_usd", "above": 0}
MAIL = {"sender": "worker@example.com", "to": ["ops@example.com"]}


@pytest.mark.parametrize(
    ("file", "key"),
    [
        ({"webhook": "ftp://hooks.example.com/x"}, "webhook"),
        ({"webhook": "https://me:word@hooks.example.com/x"}, "webhook"),
        ({"webhook": f"https://hooks.example.com/{'x' * 2000}"}, "webhook"),
        ({"email": MAIL | {"sender": "worker@example.com\nBcc: all@example.com"}}, "email.sender"),
        ({"email": MAIL | {"sender": "worker"}}, "email.sender"),
        ({"email": MAIL | {"to": ["ops@example.com, all@example.com"]}}, "email.to"),
        ({"email": MAIL | {"to": []}}, "email.to"),
        ({"email": MAIL | {"to": [f"a{number}@example.com" for number in range(33)]}}, "email.to"),
        ({"rules": {"a b": RULE}}, "rules"),
        ({"rules": {"x" * 65: RULE}}, "rules"),
        ({"rules": {}}, "rules"),
        ({"rules": {f"r{number}": RULE for number in range(201)}}, "rules"),
        ({"rules": {"x": COUNTED | {"over_s": 9}}}, "rules.x.over_s"),
        ({"rules": {"x": COUNTED | {"over_s": 86_401}}}, "rules.x.over_s"),
        ({"rules": {"x": RULE | {"for_s": -1}}}, "rules.x.for_s"),
        ({"rules": {"x": RULE | {"for_s": 86_401}}}, "rules.x.for_s"),
        ({"rules": {"x": {"measure": "lost", "above": float("inf")}}}, "rules.x.above"),
        ({"rules": {"x": {"measure": "lost", "below": -float("inf")}}}, "rules.x.below"),
        ({"rules": {"x": COUNTED | {"min_jobs": 3}}}, "rules.x"),
    ],
)
def test_values_that_are_too_much_or_nobodys_address_are_refused_by_their_key(tmp_path, file, key):
    with pytest.raises(AlertsError) as refused:
        read(tmp_path, json.dumps({"rules": {"x": RULE}} | file, allow_nan=True).replace("Infinity", ".inf"))
    assert key in str(refused.value)
    assert "word" not in str(refused.value).replace("password", "")
