"""Searches that are not cut short: how much of them is done in time is a matter of the machine."""

import pytest

from tests.waiting import LIMIT_S
from worker.service import operations
from worker.service.discovery import finder


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    monkeypatch.setattr(finder, "SEARCH_S", LIMIT_S)
    monkeypatch.setattr(operations, "QUESTION_S", 2 * LIMIT_S)
