"""docs/observability.md names every number and field there is, and no other."""

import re

import prometheus_client.parser
import pytest

from tests.conftest import PROJECT
from tests.contract.test_docs import rows
from tests.fakes.engine import make_context
from worker.core.quality import LeverReport
from worker.service.usage.log import read_usage

PAGE = (PROJECT / "docs/observability.md").read_text()


def described():
    """Name -> (type, labels), as the table has it."""
    return {row[0].strip("`"): (row[1], set(re.findall(r"`(\w+)`", row[2]))) for row in rows(PAGE, "## Metrics")}


@pytest.fixture
async def drawn(tmp_path):
    context = make_context(tmp_path, gpu_price_per_hour=1)
    context.engine.levers = (LeverReport("tiny", "compile", "exact", "on", "1.30 times as fast"),)
    await context.draw()
    await context.ask(action="promote", model="any", version="entry")
    await context.draw(model="any", steps=2)
    context.worker.metrics.answered(200)
    with pytest.raises(Exception, match="widht"):
        await context.draw(widht=1)
    context.worker.usage_log.close()
    return context.worker


async def test_the_table_of_metrics_is_the_codes(drawn):
    found = {}
    text = drawn.metrics.exposition().decode()
    for family in prometheus_client.parser.text_string_to_metric_families(text):
        labels = {name for sample in family.samples for name in sample.labels} - {"le"}
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found[name] = (family.type, labels)
    # A series without labels shows at once, the others once something happened; here something did to all of them.
    assert found == described()


async def test_buckets_are_those_that_the_page_says(drawn):
    edges = set(re.findall(r'imgworker_stage_seconds_bucket\{le="([^"]+)"', drawn.metrics.exposition().decode()))
    assert min(map(float, edges)) == 0.01
    assert sorted(map(float, edges))[-2] == 1200


async def test_the_table_of_usage_fields_is_the_codes(drawn):
    said = {name for row in rows(PAGE, "## The usage log") for name in re.findall(r"`(\w+)`", row[0])}
    lines = [*read_usage(drawn.settings.usage_dir)]
    assert {name for line in lines for name in line} == said
