"""What an image costs: dated rows with a source, the caller's own before the shipped ones, unknown never free."""

import json
from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest

from image_client.errors import InvalidRequest
from image_client.money import shown
from image_client.prices import PriceBook

SIZE = (1024, 1024)


def test_the_shipped_rows() -> None:
    book = PriceBook.load()
    schnell = book.image("replicate", "black-forest-labs/flux-schnell", SIZE)
    assert schnell == Decimal("0.003") and shown(500 * schnell) == "$1.50"
    stability = {"sd3.5-large": "0.065", "sd3.5-large-turbo": "0.04", "sd3.5-medium": "0.035"} | {
        "core": "0.03",
        "ultra": "0.08",
    }
    assert {model: str(book.image("stability", model, SIZE)) for model in stability} == stability
    assert book.image("mock", "anything", SIZE) == 0
    assert book.image("replicate", "somebody/else", SIZE) is None and book.image("selfhosted", None, SIZE) is None
    for row in (*book.prices, *book.gpus):
        assert row.source and date(2025, 1, 1) < row.read <= date(2026, 11, 30)


def test_a_megapixel_that_is_begun_is_charged_whole() -> None:
    book = PriceBook.load()
    cost = {size: book.image("fal", "fal-ai/flux/schnell", size) for size in ((512, 512), (1000, 1000), (1024, 1024))}
    assert [str(dollars) for dollars in cost.values()] == ["0.003", "0.003", "0.006"]


def test_rows_of_ones_own_win(tmp_path: Path) -> None:
    own = {"provider": "replicate", "model": "black-forest-labs/flux-schnell", "unit": "image", "usd": "0.002"}
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"prices": [own | {"source": "our contract", "read": "2026-11-30"}]}))
    assert PriceBook.load([path]).image("replicate", own["model"], SIZE) == Decimal("0.002")


@pytest.mark.parametrize("text", ["", "[]", '{"prices": [{"provider": "x"}]}', '{"prices": [{"usd": "-1"}]}'])
def test_what_is_no_price_file_is_told(tmp_path: Path, text: str) -> None:
    path = tmp_path / "own.json"
    path.write_text(text)
    with pytest.raises(InvalidRequest, match=r"own\.json is no price file"):
        PriceBook.load([path])
    with pytest.raises(InvalidRequest, match="cannot be read"):
        PriceBook.load([tmp_path / "none.json"])


@pytest.mark.parametrize(
    ("dollars", "text"),
    [("1.5", "$1.50"), ("0.003", "$0.003"), ("0", "$0.00"), ("1234.567", "$1,234.57"), ("0.000786432", "$0.000786")],
)
def test_sums_are_written_for_people(dollars: str, text: str) -> None:
    assert shown(Decimal(dollars)) == text
