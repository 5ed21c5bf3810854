"""`python -m worker quantize`: smaller once, kept, measured; and refused before anything is written."""

import json

import pytest

from tests.app.commands import failed, invoke, said
from tests.engine.test_precision import NEAR


@pytest.fixture
def volume(zoo, tmp_path, monkeypatch):
    """A volume of a worker that serves the zoo."""
    values = {"MODELS_YAML": zoo / "models.yaml", "DEFAULT_MODEL": "tiny", "VOLUME_DIR": tmp_path / "volume"}
    for name, value in {**values, "DEVICE": "cpu", "ALLOW_PRECISION": "false"}.items():
        monkeypatch.setenv(name, str(value))
    return tmp_path / "volume"


def test_a_single_file_is_refused_and_nothing_is_written(volume):
    sentence = failed(invoke("quantize", "tiny-file", "--to", "fp8"))
    assert "quantize keeps diffusers repositories" in sentence
    assert not (volume / "reduced").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("model", "precision"), [("tiny-flux", "int8"), ("tiny", "fp8")])
def test_a_model_is_made_smaller_once_and_the_report_is_of_what_was_kept(volume, model, precision):
    report = json.loads(said(invoke("quantize", model, "--to", precision, "--json")))
    assert (report["precision"], report["quantizer"]) == (precision, NEAR[precision][0])
    assert len(report["psnr_db"]) == 3
    assert min(report["psnr_db"]) > NEAR[precision][1]
    (entry,) = (volume / "reduced").glob("*/*")
    assert str(entry) == report.pop("folder")
    manifest = json.loads((entry / "reduced.json").read_text())
    assert manifest["report"] == report
    assert {name.partition("/")[0] for name in manifest["files"]} >= {"text_encoder"}
    again = said(invoke("quantize", model, "--to", precision))  # in the place of the first
    assert [*(volume / "reduced").glob("*/*")] == [entry]
    assert f"with precision {precision} take it" in again
    assert "psnr_db" in again
