"""A LoRA is the same LoRA in every dialect: the image equals that of W + alpha / rank · up · down."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from tests import loras
from tests.engine.lora_bench import Bench, adapter, assert_same
from tests.images import assert_differs
from tests.loras import AB, Lora

_UNET_ATTENTION = r"attentions\.\d+\.transformer_blocks\.\d+\.attn[12]\.to_(q|k|v|out\.0)"
_UNET_WIDE = (
    _UNET_ATTENTION + r"|ff\.net\.(0\.proj|2)|attentions\.\d+\.proj_(in|out)|conv_in|time_embedding\.linear_1"
    r"|resnets\.\d+\.(conv[12]|conv_shortcut|time_emb_proj)"
)
_CLIP = r"self_attn\.(q|k|v|out)_proj|mlp\.fc[12]"
_T5 = r"SelfAttention\.[qkvo]|DenseReluDense\.w[io]"
_FLUX_BLOCKS = (
    r"^(single_)?transformer_blocks\.\d+\.(attn\.(to|add)_\w+(\.0)?|ff(_context)?\.net\.(0\.proj|2)|proj_mlp|proj_out"
    r"|norm\d?(_context)?\.linear)$"
)
_FLUX_XLABS = (
    r"^transformer_blocks\.\d+\.attn\.(to|add)_\w+(\.0)?$"
    r"|^single_transformer_blocks\.\d+\.(attn\.to_[qkv]|proj_out)$"
)
# component -> which of its modules; `narrow` is what every dialect can spell
SETS = {
    ("unet", "narrow"): {"unet": _UNET_ATTENTION},
    ("unet", "wide"): {"unet": _UNET_WIDE, "text_encoder": _CLIP, "text_encoder_2": _CLIP},
    ("unet", "encoder"): {"text_encoder": _CLIP},
    ("flux", "narrow"): {"transformer": _FLUX_BLOCKS},
    ("flux", "xlabs"): {"transformer": _FLUX_XLABS},
    ("flux", "wide"): {
        "transformer": _FLUX_BLOCKS + r"|^(x_embedder|context_embedder|norm_out\.linear|proj_out)$",
        "text_encoder": _CLIP, "text_encoder_2": _T5,
    },
}  # fmt: skip


@dataclass(frozen=True)
class Dialect:
    """How a file is spelled, and which modules it holds."""

    write: Callable[[loras.Numbers], Lora]
    holds: str = "narrow"
    mixed: bool = True  # whether rank and alpha can differ from module to module


def _plain(name: loras.Names, ends=(".lora_down.weight", ".lora_up.weight"), **options) -> Callable[..., Lora]:
    return lambda numbers: Lora(loras.spelled(numbers, name, ends=ends, **options))


def _with_metadata(numbers: loras.Numbers) -> Lora:
    part = next(iter(numbers))[0]
    name = loras.dotted(f"{part}.")
    return Lora(loras.spelled(numbers, name, ends=AB, alphas=False), loras.adapter_metadata(numbers))


def _peft(prefix: str, ends: tuple[str, str], fused: bool = False) -> Callable[..., Lora]:
    def write(numbers: loras.Numbers) -> Lora:
        spelled = loras.fused(numbers) if fused else numbers
        tensors = loras.spelled(spelled, lambda _, path: prefix + path, ends=ends, alphas=False)
        return Lora(tensors, config={"peft_type": "LORA", "r": loras.RANK, "lora_alpha": loras.ALPHA})

    return write


def _processors(numbers: loras.Numbers) -> Lora:
    """diffusers before peft: the LoRA lay in the attention's processor."""

    def name(component: str, path: str) -> str:
        stem, _, last = path.removesuffix(".0").rpartition(".")
        return f"{component}.{stem}.processor.{last}"

    return Lora(loras.spelled(numbers, name, ends=("_lora.down.weight", "_lora.up.weight")))


def _native(prefix: str, ends=(".lora_down.weight", ".lora_up.weight"), flat=False, t5="3") -> Callable[..., Lora]:
    """FLUX.1's own names: q, k, v and the MLP of a block lie in one tensor."""

    def name(component: str, path: str) -> str:
        if component == "transformer":
            return prefix + (path.replace(".", "_") if flat else path)
        number = {"text_encoder": "1", "text_encoder_2": t5}[component]
        return f"lora_te{number}_" + loras.with_text_model(component, path).replace(".", "_")

    return lambda numbers: Lora(loras.spelled(loras.fused(numbers), name, ends=ends))


def _xlabs(numbers: loras.Numbers) -> Lora:
    def name(_: str, path: str) -> str:
        return (
            re.sub(
                r"(img_attn|txt_attn)\.(qkv|proj)$",
                lambda match: f"processor.{match[2]}_lora{1 if match[1] == 'img_attn' else 2}",
                path,
            )
            .replace("linear1", "processor.qkv_lora")
            .replace("linear2", "processor.proj_lora")
        )

    return Lora(loras.spelled(loras.fused(numbers), name, ends=(".down.weight", ".up.weight")))


def _onetrainer(component: str, path: str) -> str:
    number = {"transformer": "transformer", "text_encoder": "te1", "text_encoder_2": "te2"}[component]
    return f"lora_{number}_" + loras.with_text_model(component, path).replace(".", "_")


_OMI = {"unet": "unet", "transformer": "transformer", "text_encoder": "clip_l"}


def _omi_unet(component: str, path: str) -> str:
    start = _OMI.get(component, "clip_g")
    return f"{start}.{loras.ldm(path) if component == 'unet' else loras.with_text_model(component, path)}"


def _omi_flux(numbers: loras.Numbers) -> Lora:
    """The Open Model Initiative's names: FLUX.1's own, with the parts of a fused layer by number."""

    def name(component: str, path: str) -> str:
        if component != "transformer":
            return f"{_OMI.get(component, 't5')}.{loras.with_text_model(component, path)}"
        native, part = ("img_in.proj", 0) if path == "x_embedder" else loras.native_flux(path)
        return f"transformer.{native}.{part}" if native.endswith((".qkv", ".linear1")) else f"transformer.{native}"

    last = ("transformer", "norm_out.linear")  # the original has shift before scale
    turned = {place: (down, torch.cat(up.chunk(2)[::-1]), alpha) for place, (down, up, alpha) in numbers.items()}
    return Lora(loras.spelled(numbers | {place: turned[place] for place in numbers if place == last}, name))


UNET = {
    "omi": Dialect(_plain(_omi_unet), "wide"),
    "peft, inside a component": Dialect(_peft("unet.base_model.model.", AB), mixed=False),
    "torch.compile, kohya": Dialect(_plain(lambda *place: loras.kohya(*place).replace("unet_", "unet__orig_mod_"))),
    "kohya": Dialect(_plain(loras.kohya), "wide"),
    "kohya, original block names": Dialect(_plain(loras.kohya_ldm), "wide"),
    "kohya, encoder only": Dialect(_plain(loras.kohya), "encoder"),
    "kohya, narrow": Dialect(_plain(loras.kohya)),
    "diffusers": Dialect(_with_metadata, "wide"),
    "diffusers, dotted pairs": Dialect(_plain(loras.dotted("unet."), (".lora.down.weight", ".lora.up.weight")), "wide"),
    "diffusers, linear layers": Dialect(
        _plain(loras.dotted("unet."), (".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight")), "wide"
    ),
    "diffusers, processors": Dialect(_processors),
    "peft": Dialect(_peft("base_model.model.", AB), mixed=False),
    "peft, named": Dialect(
        _peft("base_model.model.", (".lora_A.default.weight", ".lora_B.default.weight")), mixed=False
    ),
    "bare": Dialect(_plain(lambda _, path: path, AB)),
    "bare, original block names": Dialect(_plain(lambda _, path: loras.ldm(path), AB)),
    "comfy": Dialect(_plain(lambda _, path: f"diffusion_model.{loras.ldm(path)}")),
    "comfy, diffusers names": Dialect(_plain(lambda _, path: f"diffusion_model.{path}", AB)),
    "lycoris": Dialect(_plain(lambda _, path: "lycoris_" + path.replace(".", "_"))),
    "lora_transformer_": Dialect(_plain(lambda _, path: "lora_transformer_" + path.replace(".", "_"))),
}
FLUX = {
    "omi": Dialect(_omi_flux, "wide"),
    "diffusers": Dialect(_with_metadata, "wide"),
    "diffusers, with alphas": Dialect(_plain(loras.dotted("transformer."), AB), "wide"),
    "bare": Dialect(_plain(lambda _, path: path, AB)),
    "peft": Dialect(_peft("base_model.model.", AB), mixed=False),
    "peft, native names": Dialect(_peft("base_model.model.", AB, fused=True), mixed=False),
    "kohya": Dialect(_native("lora_unet_", flat=True), "wide"),
    "comfy": Dialect(_native("diffusion_model.")),
    "ai-toolkit, native names": Dialect(_native("diffusion_model.", AB)),
    "native, bare": Dialect(_native("", AB)),
    "onetrainer": Dialect(_plain(_onetrainer), "wide"),
    "onetrainer, native names": Dialect(_native("lora_transformer_", flat=True, t5="2"), "wide"),
    "lycoris": Dialect(_plain(lambda _, path: "lycoris_" + path.replace(".", "_"))),
    "xlabs": Dialect(_xlabs, "xlabs"),
}
CASES = [
    *[("sd1", name, dialect) for name, dialect in UNET.items()],
    *[("sdxl", name, dialect) for name, dialect in UNET.items()],
    *[("flux", name, dialect) for name, dialect in FLUX.items()],
]


def paths(bench: Bench, wanted: dict[str, str]) -> dict[str, list[str]]:
    """The modules of the pipeline whose names match, by component."""
    found = {}
    for component, pattern in wanted.items():
        part = bench.pipe.components.get(component)
        if part is not None:
            layers = (torch.nn.Linear, torch.nn.Conv2d)
            found[component] = [
                path for path, m in part.named_modules() if isinstance(m, layers) and re.search(pattern, path)
            ]
    return found


@pytest.mark.parametrize(("family", "name", "dialect"), CASES, ids=[f"{family}-{name}" for family, name, _ in CASES])
@pytest.mark.quick_rows(4)
def test_every_dialect_draws_what_the_merge_draws(benches, tmp_path, family, name, dialect):
    bench = benches(family)
    wanted = SETS["flux" if family == "flux" else "unet", dialect.holds]
    numbers = loras.low_rank(bench.pipe, paths(bench, wanted), seed=11, mixed=dialect.mixed)
    merge = Lora(deltas=loras.deltas_of(numbers))
    reference = bench.reference(f"{dialect.holds}{dialect.mixed}", [(merge, 0.8)])
    image, (report,) = bench.applied([adapter(dialect.write(numbers), tmp_path / "x.safetensors", 0.8)])
    assert_same(image, reference)
    assert_differs(reference, bench.plain)
    assert report.matched == report.total > 0
    assert (report.algorithm, report.unmatched) == ("lora", ())
    bench.assert_untouched()
    assert np.array_equal(bench.draw(), bench.plain)


def test_a_file_that_holds_fused_and_split_layers_is_applied_once(benches, tmp_path):
    bench = benches("flux")
    numbers = loras.low_rank(bench.pipe, paths(bench, SETS["flux", "narrow"]), seed=11, mixed=True)
    split = loras.spelled(numbers, lambda _, path: f"diffusion_model.{path}", ends=AB)
    native = _native("diffusion_model.", AB)(numbers).tensors
    both = split | {key: value for key, value in native.items() if ".qkv." in key or ".linear1." in key}
    reference = bench.reference("narrowTrue", [(Lora(deltas=loras.deltas_of(numbers)), 0.8)])
    image, _ = bench.applied([adapter(Lora(both), tmp_path / "x.safetensors", 0.8)])
    assert_same(image, reference)


def test_diffusers_own_loader_draws_the_same(benches, tmp_path):
    """An outside opinion, for the dialects that diffusers itself reads."""
    for family, write in (
        ("sd1", UNET["kohya"].write),
        ("sdxl", UNET["diffusers"].write),
        ("flux", FLUX["diffusers"].write),
    ):
        bench = benches(family)
        wanted = SETS["flux" if family == "flux" else "unet", "narrow"]
        numbers = loras.low_rank(bench.pipe, paths(bench, wanted), seed=11)
        file = adapter(write(numbers), tmp_path / f"{family}.safetensors")
        image, _ = bench.applied([file])
        own = type(bench.pipe).from_pretrained(bench.folder)
        own.set_progress_bar_config(disable=True)
        own.load_lora_weights(tmp_path, weight_name=f"{family}.safetensors")
        kept, bench.pipe = bench.pipe, own
        try:
            assert_same(image, bench.draw())
        finally:
            bench.pipe = kept
