from worker.catalog.architectures import ARCHITECTURES
from worker.catalog.coverage import families, kinds, lora_spellings, refusals
from worker.core.model import Kind


def test_every_family_has_a_row_with_its_files():
    rows = {row.architecture: row for row in families()}
    assert list(rows) == [row.id for row in ARCHITECTURES]
    assert rows["sdxl"].files == ("diffusers", "checkpoint", "denoiser", "gguf")
    assert rows["flux1-kontext"].files == rows["flux1"].files, "its files look like FLUX.1's"
    assert rows["kandinsky-2.2"].files[0] == "diffusers"
    assert rows["sdxl"].loras_recognised
    assert not rows["svd"].loras_recognised
    assert "a ControlNet Union for FLUX.1" in rows["flux1-schnell"].controlnets


def test_every_kind_of_file_is_listed():
    listed = {row.kind for row in kinds()}
    models = {Kind.PIPELINE, Kind.CHECKPOINT, Kind.DENOISER, Kind.COMPONENT, Kind.LORA, Kind.UNKNOWN}
    assert listed == set(Kind) - models


def test_refusals_say_why():
    rows = list(refusals())
    assert len(rows) > 30
    assert all(row.what and row.why for row in rows)
    algorithms, dialects = lora_spellings()
    assert {"lora", "dora", "loha", "lokr", "oft", "full", "ia3", "glora"} <= set(algorithms)
    assert {"kohya", "diffusers", "peft", "comfy", "xlabs", "bare"} <= set(dialects)
