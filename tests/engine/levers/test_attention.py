"""Kernels of the Hub: from the operator's folder alone, at one revision, and off again after the call."""

import sys
from pathlib import Path
from types import SimpleNamespace

import diffusers
import pytest
import torch
from diffusers.models import attention_dispatch

from tests import builders
from worker.app.kernels import allowed_kernels
from worker.app.settings import Settings, SettingsError
from worker.engine.levers.attention import hub_kernel
from worker.engine.levers.row import Ground

REVISION = "0123456789abcdef0123456789abcdef01234567"
FA3 = "kernels-community/flash-attn3"


@pytest.fixture
def kernel(monkeypatch):
    """A package `kernels` that hands out one function, and the folders it was asked for."""
    asked = []

    def attend(q, k, v, **options):
        out = torch.nn.functional.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, v)))
        return out.transpose(1, 2).contiguous() * 0.5

    def local(folder):
        asked.append(folder)
        inner = SimpleNamespace(_flash_attn_forward=None, _flash_attn_backward=None)
        return SimpleNamespace(flash_attn_func=attend, flash_attn_interface=inner)

    monkeypatch.setitem(sys.modules, "kernels", SimpleNamespace(get_local_kernel=local))
    name = attention_dispatch.AttentionBackendName("_flash_3_hub")
    config = attention_dispatch._HUB_KERNELS_REGISTRY[name]
    monkeypatch.setattr(config, "kernel_fn", None)
    monkeypatch.setattr(attention_dispatch._AttentionBackendRegistry, "_checks_enabled", False)
    return asked


def test_a_kernel_is_read_from_its_folder_used_for_the_call_and_off_again(tmp_path, kernel):
    pipe = diffusers.DiffusionPipeline.from_pretrained(builders.tiny_flux(tmp_path / "flux"), dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)

    def draw():
        generator = torch.Generator("cpu").manual_seed(1)
        return pipe("a", height=64, width=64, num_inference_steps=1, generator=generator, output_type="pt").images

    plain = draw()
    applies, on = hub_kernel("_flash_3_hub", FA3)
    assert not applies(Ground(pipe, "cuda"))  # nobody allows it
    ground = Ground(pipe, "cuda", kernels={FA3: Path("/opt/kernels/x")})
    assert applies(ground)
    off = on(ground)
    assert kernel == [Path("/opt/kernels/x")]
    assert not torch.equal(draw(), plain)
    off()
    assert torch.equal(draw(), plain)
    on(ground)()
    assert len(kernel) == 1


def test_a_kernel_that_is_not_pinned_or_not_there_stops_the_start(tmp_path):
    def allowed(text):
        return allowed_kernels(Settings(attention_kernels=(text,), kernels_dir=tmp_path))

    for text in (FA3, f"{FA3}@main", f"{FA3}@{REVISION[:12]}"):
        with pytest.raises(SettingsError, match="not pinned"):
            allowed(text)
    with pytest.raises(SettingsError, match="is not in"):
        allowed(f"{FA3}@{REVISION}")
    folder = tmp_path / f"kernels--kernels-community--flash-attn3/snapshots/{REVISION}"
    folder.mkdir(parents=True)
    assert allowed(f"{FA3}@{REVISION}") == {FA3: folder}
    assert any("ATTENTION_KERNELS" in text for text in Settings(attention_kernels=(f"{FA3}@{REVISION}",)).warnings())
