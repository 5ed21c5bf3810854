"""Every family in every form and layout that docs/models.md promises, in full size and without memory.

A file's header is made from diffusers' class at the family's published size: names and shapes as diffusers saves them,
and as the authors publish them. The detector has to know it, and the loader has to name and shape each tensor of it as
the model has it. No weights, no download: all tensors are on the meta device.
"""

from functools import cache

import diffusers
import gguf
import pytest
import torch
import transformers
from accelerate import init_empty_weights
from diffusers.quantizers.gguf.utils import GGUFParameter

from tests import original_layouts as originals
from tests import original_videos as videos
from tests import single_files
from tests.catalog.corpus import index as header_of
from tests.engine.published import PUBLISHED, Published
from tests.zoo import RECIPES
from worker.catalog import coverage
from worker.catalog.architectures import ARCHITECTURES
from worker.catalog.detector import detect_header
from worker.catalog.detectors.storage import parts_of
from worker.catalog.formats.headers import read_header
from worker.core.device import LoadPlan
from worker.core.errors import CorruptFile, UnsupportedModel
from worker.core.model import Kind, TensorIndex
from worker.engine import conversion, layouts
from worker.engine.components import Component
from worker.engine.loader import load_pipeline
from worker.engine.quantization import unpack
from worker.engine.single_file import load_part
from worker.engine.sizes import shape_of

ROWS = {row.id: row for row in ARCHITECTURES}
PREFIXES = ("model.diffusion_model.", "", "diffusion_model.")
QUICK = {"z-image", "ltx", "lumina2", "sana", "flux2-klein"}  # each kind of converter; the rest takes minutes
CASES = [
    pytest.param(
        one,
        id=f"{number}-{one.family}-{one.layout}",
        marks=() if one.family in QUICK and one.original else pytest.mark.slow,
    )
    for number, one in enumerate(PUBLISHED)
]


@cache
def forms(family: str) -> tuple[str, ...]:
    return next(row.files for row in coverage.families() if row.architecture == family)


@cache
def model_of(published: Published) -> tuple[originals.Shapes, dict[str, object]]:
    """The tensors of the published model by diffusers' names, and its whole config."""
    with torch.device("meta"):
        model = getattr(diffusers, published.model).from_config(dict(published.config))
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}, dict(model.config)


def file_of(published: Published) -> originals.Shapes:
    shapes, _ = model_of(published)
    return published.original(shapes) if published.original else shapes


def plain(shapes):
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def packed(shapes):
    """As GGUF: matrices in blocks of Q8_0, everything else plain."""
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType.Q8_0]
    tensors = {}
    for name, shape in shapes.items():
        if len(shape) == 2 and shape[1] % block == 0 and name.endswith(".weight"):
            data = torch.empty(shape[0], shape[1] // block * size, dtype=torch.uint8, device="meta")
            tensors[name] = GGUFParameter(data, quant_type=gguf.GGMLQuantizationType.Q8_0)
        else:
            tensors[name] = torch.empty(shape, device="meta")
    return tensors


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize("published", CASES)
def test_a_published_header_is_known_and_becomes_the_whole_model(published):
    shapes, config = model_of(published)
    file = file_of(published)
    for prefix in PREFIXES:
        named = {prefix + name: shape for name, shape in file.items()}
        for container in ("safetensors", "gguf") if "gguf" in forms(published.family) else ("safetensors",):
            header = header_of(named)
            header = TensorIndex(header.tensors, header.metadata, container, 0)
            detection = detect_header(header)
            assert detection.kind is Kind.DENOISER
            assert detection.architecture == (ROWS[published.family].twin or published.family)
        (part,) = conversion.split(plain(named)).values()
        assert part[0].keys() == file.keys()
    cls = getattr(diffusers, published.model)
    base = {**config, **published.base}  # what a base of the family says, where its sizes are others
    for tensors in (plain(file), packed(file)) if "gguf" in forms(published.family) else (plain(file),):
        fit = layouts.fit("transformer", cls, tensors, base)
        assert {name: shape_of(tensor) for name, tensor in fit.weights.items()} == shapes
        with torch.device("meta"):
            model = cls.from_config({**base, **fit.changes})
        assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == shapes


def test_what_the_page_promises_is_what_is_tried_here():
    promised = {
        (row.architecture, layout)
        for row in coverage.families()
        if {"denoiser", "gguf"} & set(row.files)
        for layout in row.layouts
    }
    tried = {(one.family, one.layout) for one in PUBLISHED}
    tried |= {(row.id, layout) for row in ARCHITECTURES for family, layout in tried if row.twin == family}
    assert promised == tried


SMALL = Published("z-image", "ZImageTransformer2DModel", {
    "dim": 64, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2, "cap_feat_dim": 32,
    "axes_dims": [8, 12, 12], "axes_lens": [16, 16, 16],
})  # fmt: skip
MOCHI = Published("mochi", "MochiTransformer3DModel", {})


class TestWhatIsMissing:
    """A small model of each kind of layout: renamed only, fused, popped one by one."""

    @pytest.mark.parametrize("original", [None, originals.z_image], ids=["diffusers", "original"])
    @pytest.mark.parametrize("lost", ["layers.1.feed_forward.w2.weight", "cap_embedder.1.bias"])
    def test_a_file_that_lacks_a_tensor_is_damaged_and_says_which(self, original, lost):
        shapes, config = model_of(SMALL)
        file = plain(original(shapes) if original else shapes)
        file.pop(lost)
        with pytest.raises(CorruptFile, match=f"lacks 1 tensors of its transformer \\({lost}"):
            layouts.fit("transformer", diffusers.ZImageTransformer2DModel, file, config)

    def test_a_tensor_that_a_converter_stumbles_over_is_named_too(self):
        shapes, config = model_of(MOCHI)
        file = plain(videos.mochi(shapes))
        file.pop("blocks.7.attn.proj_x.weight")
        with pytest.raises(CorruptFile, match=r"lacks 1 tensors of its transformer \(blocks.7.attn.proj_x.weight"):
            layouts.fit("transformer", diffusers.MochiTransformer3DModel, file, config)

    def test_a_file_of_another_kind_is_not_called_damaged(self):
        _, config = model_of(SMALL)
        file = plain(originals.flux2(model_of(Published("flux2", "Flux2Transformer2DModel", {}))[0]))
        with pytest.raises(UnsupportedModel, match="in a layout of a ZImageTransformer2DModel that is not read here"):
            layouts.fit("transformer", diffusers.ZImageTransformer2DModel, file, config)

    def test_another_version_is_not_called_damaged(self):
        shapes, config = model_of(SMALL)
        file = {name.replace("cap_embedder.", "caption_gate."): shape for name, shape in shapes.items()}
        with pytest.raises(UnsupportedModel, match=r"of another version than its base: it has caption_gate\.\S+ and"):
            layouts.fit("transformer", diffusers.ZImageTransformer2DModel, plain(file), config)

    def test_tensors_that_the_base_does_not_have_are_not_dropped_silently(self):
        shapes, config = model_of(SMALL)
        file = plain(shapes | {"siglip_embedder.1.weight": (64, 32)})
        with pytest.raises(UnsupportedModel, match=r"has 1 tensors \(siglip_embedder\.1\.weight, say\)"):
            layouts.fit("transformer", diffusers.ZImageTransformer2DModel, file, config)

    def test_other_sizes_than_the_bases_are_named(self):
        shapes, config = model_of(SMALL)
        file = plain(shapes | {"cap_embedder.1.weight": (64, 48)})
        with pytest.raises(UnsupportedModel, match=r"cap_embedder\.1\.weight of the transformer is \(64, 48\)"):
            layouts.fit("transformer", diffusers.ZImageTransformer2DModel, file, config)


def first_attention(tensors):
    """The names that diffusers gave attention before 0.18."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    names = {key: key for key in tensors}
    for layer, before in old.items():
        names = {key: name.replace(f"attentions.0.{layer}.", f"attentions.0.{before}.") for key, name in names.items()}
    return {names[key]: tensor for key, tensor in tensors.items()}


WAN = {
    "num_attention_heads": 2, "attention_head_dim": 16, "text_dim": 16, "freq_dim": 16, "ffn_dim": 64,
    "num_layers": 2, "rope_max_seq_len": 32, "in_channels": 12, "out_channels": 4,
}  # fmt: skip
LTX2 = {
    "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 8,
    "cross_attention_dim": 16, "audio_in_channels": 4, "audio_out_channels": 4, "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 4, "audio_cross_attention_dim": 8, "num_layers": 2, "caption_channels": 16,
}  # fmt: skip
KINDS = [
    pytest.param("ZImageTransformer2DModel", SMALL.config, {}, originals.z_image, id="fused"),
    pytest.param("WanTransformer3DModel", WAN, {}, videos.wan, id="exchanged"),
    pytest.param(
        "WanTransformer3DModel", WAN, {"image_dim": 16, "added_kv_proj_dim": 32, "num_layers": 3}, None, id="sized"
    ),
    pytest.param("LTX2VideoTransformer3DModel", LTX2, {}, videos.ltx2, id="renamed"),
    pytest.param(
        "AutoencoderKL",
        {"block_out_channels": [32, 32], "down_block_types": ["DownEncoderBlock2D"] * 2,
         "up_block_types": ["UpDecoderBlock2D"] * 2},
        {}, first_attention, id="old",
    ),
]  # fmt: skip


class TestWhatIsRead:
    """Small models with weights: every tensor that is read is the one that was published."""

    @staticmethod
    def read(tmp_path, name, config, base, original, container="safetensors"):
        torch.manual_seed(0)
        part = "vae" if name.startswith("Autoencoder") else "transformer"
        model = getattr(diffusers, name).from_config(config)
        with init_empty_weights():
            getattr(diffusers, name).from_config({**config, **base}).save_config(tmp_path / "base" / part)
        tensors = dict(model.state_dict())
        file = original(tensors) if original else tensors
        file = {key: one if isinstance(one, torch.Tensor) else torch.zeros(one) for key, one in file.items()}
        if container == "gguf":
            path = single_files.gguf(file, tmp_path / "model.gguf", "any")
        else:
            path = single_files.save({f"model.diffusion_model.{key}": one for key, one in file.items()}, tmp_path / "m")
            path = path.rename(tmp_path / "model.safetensors")
        index = {part: Component(part, "diffusers", name)}
        return model, load_part(index, part, path, tmp_path / "base", torch.float32)

    @pytest.mark.parametrize(("name", "config", "base", "original"), KINDS)
    def test_every_tensor_is_the_published_one(self, tmp_path, name, config, base, original):
        model, loaded = self.read(tmp_path, name, config, base, original)
        want, held = model.state_dict(), loaded.state_dict()
        assert held.keys() == want.keys()
        assert all(torch.equal(held[key], tensor) for key, tensor in want.items())

    def test_gguf_in_its_authors_names_stays_packed(self, tmp_path):
        config = {**SMALL.config}
        model, loaded = self.read(tmp_path, "ZImageTransformer2DModel", config, {}, originals.z_image, "gguf")
        assert isinstance(loaded.layers[0].attention.to_k.weight, GGUFParameter)
        plain_weights = unpack(dict(loaded.state_dict()), torch.float32)
        for key, tensor in model.state_dict().items():
            torch.testing.assert_close(plain_weights[key], tensor, atol=0.01, rtol=0.02)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "z-image"
    torch.manual_seed(0)
    next(recipe for recipe in RECIPES if recipe.pipeline == "ZImagePipeline").build().save_pretrained(folder)
    return folder


class TestAllInOne:
    """A file with its own text encoder and VAE, as ComfyUI saves it; its base gives the tokenizer and the sizes."""

    @pytest.mark.parametrize("spelling", ["text_encoders.qwen3_4b.transformer.model.", "text_encoder."])
    def test_its_own_encoder_and_vae_are_what_the_header_says_and_what_is_loaded(self, whole, tmp_path, spelling):
        encoder = {
            name.removeprefix("model."): tensor for name, tensor in single_files.weights(whole / "text_encoder").items()
        }
        denoiser = originals.z_image(single_files.weights(whole / "transformer"))
        denoiser.pop("norm_final.weight")
        file = {f"model.diffusion_model.{name}": tensor for name, tensor in denoiser.items()}
        file |= {f"vae.{name}": tensor for name, tensor in single_files.vae(whole).items()}
        file |= {f"{spelling}{name}": tensor for name, tensor in encoder.items()}
        path = single_files.save(file, tmp_path / "aio.safetensors")
        assert parts_of(read_header(path)) == ("denoiser", "vae", "text_encoder")
        config = single_files.config_of(whole, tmp_path / "config")
        plan = LoadPlan(path, "ZImagePipeline", "float32", "cpu", "none", 0, 0, format="safetensors", config=config)
        pipe = load_pipeline(plan)
        for part in ("transformer", "vae", "text_encoder"):
            want = single_files.weights(whole / part)
            held = {name.removeprefix("model."): tensor for name, tensor in getattr(pipe, part).state_dict().items()}
            assert held
            assert all(torch.equal(held[name.removeprefix("model.")], tensor) for name, tensor in want.items())

    def test_a_model_that_sees_is_read_in_the_names_that_comfy_keeps(self):
        config = transformers.Qwen2_5_VLConfig()
        config.text_config.num_hidden_layers, config.vision_config.depth = 2, 2
        with init_empty_weights():
            model = transformers.Qwen2_5_VLForConditionalGeneration(config)
        names = [name for name, _ in model.named_parameters()]
        old = {
            "transformer." + name.replace("model.visual.", "visual.").replace("model.language_model.", "model."): None
            for name in names
        }
        assert len(old) == len(names)
        assert conversion.language_model_names(old, model).keys() == set(names)
