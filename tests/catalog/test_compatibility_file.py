"""compatibility.yaml: which rows hold, and mistakes by their line."""

import re

import pytest

from tests.conftest import PROJECT
from worker.catalog.compatibility_file import CompatibilityError, Matrix, Subject, read_compatibility
from worker.core.device import DeviceInfo

GPU = DeviceInfo("cuda", "NVIDIA GeForce RTX 3090", 24 * 2**30, 20 * 2**30)
CPU = DeviceInfo("cpu", "a CPU", 64 * 2**30, 60 * 2**30)
ROWS = """
rows:
  - {model: sdxl, with: org/style, is: works, because: Tried by hand.}
  - {model: sdxl, with: "*", is: broken, then: warn, because: "Its LoRAs drift"}
  - {model: good, is: works}
  - {model: "*", device: rtx 3090, is: broken, because: Its fan is loud.}
  - {model: large, is: needs, needs: {vram_gb: 24}}
  - model: distilled
    is: needs
    needs: {parameters: {guidance_scale: 1.0}}
"""


@pytest.fixture
def matrix(tmp_path) -> Matrix:
    path = tmp_path / "compatibility.yaml"
    path.write_text(ROWS)
    return read_compatibility(path)


def said(matrix, *names, beside=(), device=CPU, parameters=None):
    facts = matrix.facts(Subject(names, [(name,) for name in beside], parameters), device)
    return [(fact.state, fact.refuses) for fact in facts]


def test_of_rows_about_the_same_thing_the_first_counts(matrix):
    assert said(matrix, "sdxl", beside=["org/style"]) == [("works", False)]
    assert said(matrix, "SDXL", beside=["org/other"]) == [("broken", False)]
    assert said(matrix, "sdxl", beside=["org/style", "org/other"]) == [("works", False), ("broken", False)]
    assert said(matrix, "sdxl") == []
    assert said(matrix, "good", device=GPU) == [("works", False)]
    assert said(matrix, "bad", device=GPU) == [("broken", True)]
    assert said(matrix, "bad", device=CPU) == said(matrix, "bad", device=None) == []


def test_a_need_is_told_where_it_is_not_met(matrix):
    small = DeviceInfo("cuda", "Small", 12 * 2**30, 12 * 2**30)
    assert said(matrix, "large", device=small) == [("needs", True)]
    assert said(matrix, "large", device=DeviceInfo("cuda", "L4", int(23.5 * 2**30), 2**30)) == []
    assert said(matrix, "large", device=None) == []
    assert said(matrix, "distilled", parameters={"guidance_scale": 5.0}) == [("needs", True)]
    assert said(matrix, "distilled", parameters={"guidance_scale": 1.0}) == []
    assert said(matrix, "distilled") == [], "a model by itself has no parameters yet"


def test_a_fact_names_its_line_and_its_reason(matrix):
    (fact,) = matrix.facts(Subject(["bad"]), GPU)
    assert fact.text == "does not work on rtx 3090, by compatibility.yaml:6: Its fan is loud"
    (fact,) = matrix.facts(Subject(["large"]), DeviceInfo("cuda", "Small", 12 * 2**30, 0))
    assert "needs 24 GB of memory, and Small has 12.0 GiB" in fact.text


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{model: x}", "is is missing"),
        ("{model: x, is: slow}", "is must be"),
        ("{model: x, is: needs}", "says what"),
        ("{model: x, is: needs, needs: {}}", "says what"),
        ("{model: x, is: works, needs: {vram_gb: 2}}", "says what"),
        ("{model: x, is: broken, wiht: y}", "unknown key"),
        ("{model: x, is: needs, needs: {vram: 2}}", "unknown key"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path, row, said):
    path = tmp_path / "compatibility.yaml"
    path.write_text(f"# ours\nrows:\n  - {{model: y, is: works}}\n  - {row}\n")
    with pytest.raises(CompatibilityError) as failure:
        read_compatibility(path)
    assert str(failure.value).startswith("compatibility.yaml:4: ")
    assert said in str(failure.value)


def test_the_example_of_the_page_is_read_and_means_what_it_says(tmp_path):
    (text,) = re.findall(r"```yaml\n(.*?)```", (PROJECT / "docs/compatibility.md").read_text(), re.S)
    path = tmp_path / "compatibility.yaml"
    path.write_text(text)
    example = read_compatibility(path)
    assert said(example, "sdxl", beside=["org/good-style"]) == [("works", False)]
    assert said(example, "sdxl", beside=["org/other"]) == [("broken", False)]
    small = DeviceInfo("cuda", "NVIDIA GeForce RTX 3060", 12 * 2**30, 12 * 2**30)
    assert said(example, "flux1", device=small) == [("broken", True)]
    assert said(example, "civitai:123456", device=small) == [("needs", True)]
    assert said(example, "sdxl-lightning", parameters={"guidance_scale": 5.0}) == [("needs", False)]
