"""Keys of LoRA files, sorted by module and role, and the scale that a file gives its changes."""

import json

import pytest

from tests.catalog.corpus import NAMES, stored
from worker.catalog.lora_keys import read_keys, read_scaling, trigger_words
from worker.core.errors import UnsupportedModel

Q = "blocks.0.attn.to_q"


def read(*keys: str):
    return read_keys(dict.fromkeys(keys, (4, 4)))


@pytest.mark.parametrize(
    ("key", "component", "name", "role"),
    [
        ("lora_unet_blocks_0_attn_to_q.lora_down.weight", "denoiser", "blocks_0_attn_to_q", "down"),
        ("lora_unet__blocks_0_attn_to_q.lora_up.weight", "denoiser", "blocks_0_attn_to_q", "up"),
        ("lora_te_text_model_x_0_mlp_fc1.alpha", "text_encoder", "text_model_x_0_mlp_fc1", "alpha"),
        ("lora_te1_x.lora_mid.weight", "text_encoder", "x", "mid"),
        ("lora_te2_x.lora_up.weight", "text_encoder_2", "x", "up"),
        ("lora_te3_x.lora_up.weight", "text_encoder_3", "x", "up"),
        ("lora_transformer_blocks_0_attn_to_q.hada_w1_a", "denoiser", "blocks_0_attn_to_q", "hada_w1_a"),
        ("lycoris_blocks_0_attn_to_q.lokr_w2_b", "denoiser", "blocks_0_attn_to_q", "lokr_w2_b"),
        (f"transformer.{Q}.lora_A.weight", "denoiser", Q, "down"),
        (f"transformer.{Q}.lora_B.bias", "denoiser", Q, "up_bias"),
        (f"unet.{Q}.lora.up.weight", "denoiser", Q, "up"),
        (f"unet.{Q}.lora_linear_layer.down.weight", "denoiser", Q, "down"),
        ("unet.b.0.attn1.processor.to_q_lora.down.weight", "denoiser", "b.0.attn1.to_q", "down"),
        ("text_encoder.text_model.x.lora_A.weight", "text_encoder", "text_model.x", "down"),
        ("text_model.x.lora_A.weight", "text_encoder", "text_model.x", "down"),
        ("text_encoders.clip_g.transformer.text_model.x.lora_A.weight", "text_encoder_2", "text_model.x", "down"),
        (f"base_model.model.{Q}.lora_A.default.weight", "denoiser", Q, "down"),
        (f"base_model.model.{Q}.lora_magnitude_vector.default.weight", "denoiser", Q, "dora_scale"),
        (f"base_model.model.base_model.model.{Q}.lora_B.weight", "denoiser", Q, "up"),
        (f"diffusion_model.{Q}.lora_B.weight", "denoiser", Q, "up"),
        (f"model.diffusion_model.{Q}.diff_b", "denoiser", Q, "diff_b"),
        (f"{Q}.lora_A", "denoiser", Q, "down"),
        ("double_blocks.0.processor.qkv_lora2.up.weight", "denoiser", "double_blocks.0.qkv2", "up"),
        ("single_blocks.0.processor.proj_lora.down.weight", "denoiser", "single_blocks.0.proj", "down"),
        ("lora_unet_x.w_norm", "denoiser", "x", "diff"),
        ("diffusion_model.blocks.0.diff_m", "denoiser", "blocks.0.modulation", "diff"),
        ("lora_unet_blocks_0.diff_m", "denoiser", "blocks_0.modulation", "diff"),
        ("clip_l.text_model.x.lora_down.weight", "clip_l", "text_model.x", "down"),
        ("t5.encoder.block.0.x.lora_up.weight", "text_encoder_3", "encoder.block.0.x", "up"),
        ("text_embedding_projection.aggregate_embed.lora_A.weight", "connectors", "aggregate_embed", "down"),
    ],
)  # fmt: skip
def test_every_spelling_names_component_module_and_role(key, component, name, role):
    (module,) = read(key).modules
    assert (module.component, module.name, dict(module.keys)) == (component, name, {role: key})


# The start of a key of each way to spell one, and the component and module that the rest belongs to.
STARTS = {
    "": ("denoiser", Q), "unet.": ("denoiser", Q), "transformer.": ("denoiser", Q), "diffusion_model.": ("denoiser", Q),
    "text_encoder.": ("text_encoder", "text_model.x.q_proj"), "text_encoder_2.": ("text_encoder_2", "encoder.q"),
    "lora_unet_": ("denoiser", Q.replace(".", "_")), "lora_te1_": ("text_encoder", "text_model_x_q_proj"),
    "lycoris_": ("denoiser", Q.replace(".", "_")),
}  # fmt: skip
WRAPPERS = (
    "base_model.model.", "module.", "_orig_mod.", "_orig_mod.module.", "module._orig_mod.", "module.base_model.model.",
    "base_model.model._orig_mod.", "_fsdp_wrapped_module.", "base_model.model.base_model.model.",
)  # fmt: skip


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("start", STARTS)
def test_wrappers_are_stripped_wherever_they_stand(start, wrapper):
    component, name = STARTS[start]
    # kohya spells what it finds below `lora_unet_`
    inside = "_" + wrapper.replace(".", "_") if start.endswith("_") else wrapper
    keys = [f"{start}{inside}{name}"] + ([f"{wrapper}{start}{name}"] if start.endswith(".") else [])
    if "." in name and "_orig_mod" in wrapper:  # blocks are compiled one by one
        keys.append(f"{start}{name.replace('.', '._orig_mod.', 1)}")
    for key in keys:
        (module,) = read(f"{key}.lora_A.weight", f"{key}.lora_B.weight").modules
        assert (module.component, module.name) == (component, name)


def test_whole_layers_beside_a_lora_are_modules_and_those_of_a_checkpoint_are_not():
    pair = [f"base_model.model.{Q}.lora_A.weight", f"base_model.model.{Q}.lora_B.weight"]
    whole = ["base_model.model.proj_out.weight", "base_model.model.proj_out.bias"]
    spelled = [
        "base_model.model.norm.modules_to_save.default.weight",
        "base_model.model.norm.original_module.weight",  # as it was: nothing to apply
        f"base_model.model.{Q}.base_layer.bias",
    ]
    keys = read(*pair, *whole, *spelled)
    assert {module.name: (module.algorithm, set(module.keys)) for module in keys.modules} == {
        Q: ("lora", {"down", "up", "whole_bias"}),
        "proj_out": ("whole", {"whole", "whole_bias"}),
        "norm": ("whole", {"whole"}),
    }
    assert (keys.unknown, keys.algorithm) == ((), "whole+lora")
    assert read(*whole, "x.alpha").unknown == tuple(whole)


@pytest.mark.parametrize(
    ("shapes", "widths"),
    [
        ({"lora_down.weight": (4, 768), "lora_up.weight": (320, 4)}, (768, 320)),
        ({"lora_A": (4, 768, 3, 3), "lora_B": (320, 4, 1, 1)}, (768, 320)),
        ({"hada_w1_a": (320, 4), "hada_w1_b": (4, 768)}, (768, None)),
        ({"lokr_w1": (16, 24), "lokr_w2": (20, 32)}, (768, None)),
        ({"lokr_w1_b": (4, 24), "lokr_w2_b": (4, 32)}, (768, None)),
        ({"a1.weight": (768, 4), "a2.weight": (4, 768), "b1.weight": (320, 4), "b2.weight": (4, 768)}, (768, 320)),
        ({"a1.weight": (4, 768), "a2.weight": (768, 4), "b1.weight": (4, 768), "b2.weight": (320, 4)}, (768, 320)),
        ({"diff": (320, 768), "diff_b": (320,)}, (768, 320)),
        ({"w_norm": (320,), "alpha": ()}, (None, None)),
    ],
)
def test_shapes_tell_the_channels_of_a_module(shapes, widths):
    (module,) = read_keys({f"unet.x.{role}": shape for role, shape in shapes.items()}).modules
    assert (module.inputs, module.outputs) == widths


@pytest.mark.parametrize(
    ("key", "spelling"),
    [
        ("unet.b.0.attn1.processor.to_q_lora.down.weight", "b.0.attn1.processor.to_q_lora"),
        ("double_blocks.0.processor.qkv_lora2.up.weight", "double_blocks.0.processor.qkv_lora2"),
        ("lora_unet__blocks_0.alpha", "_blocks_0"),
        ("lycoris_text_model_x.alpha", "text_model_x"),
    ],
)
def test_the_spelling_of_a_module_is_kept(key, spelling):
    (module,) = read(key).modules
    assert module.spelling == spelling


@pytest.mark.parametrize(
    ("roles", "algorithm"),
    [
        (["lora_down.weight", "lora_up.weight", "alpha"], "lora"),
        (["lora_A.weight", "lora_B.weight", "dora_scale"], "dora"),
        (["lora_A.weight", "lora_B.weight", "diff_b"], "lora"),
        (["hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "dora_scale"], "loha+dora"),
        (["lokr_w1", "lokr_w2_a", "lokr_w2_b"], "lokr"),
        (["lokr_w1_a", "lokr_w1_b", "lokr_t2", "lokr_w2_a", "lokr_w2_b"], "lokr"),
        (["a1.weight", "a2.weight", "b1.weight", "b2.weight"], "glora"),
        (["weight", "on_input"], "ia3"),
        (["oft_blocks", "rescale"], "oft"),
        (["diff", "diff_b"], "full"),
        (["lora_up.weight", "alpha"], None),
        (["hada_w1_a", "hada_w1_b"], None),
        (["lokr_w1", "lokr_w2_a"], None),
        (["alpha"], None),
        (["lora_A.weight", "lora_B.weight", "hada_t1"], None),
    ],
)
def test_the_roles_name_the_algorithm_and_half_of_one_is_none(roles, algorithm):
    (module,) = read(*(f"lora_unet_x.{role}" for role in roles)).modules
    assert module.algorithm == algorithm


def test_embeddings_and_strangers_are_set_apart():
    keys = read(
        "bundle_emb.my.word.clip_l", "bundle_emb.old.string_to_param.*", "a.lora_A.weight", "a.lora_B.weight", "odd"
    )
    assert keys.embeddings == {
        "my.word": {"clip_l": "bundle_emb.my.word.clip_l"},
        "old": {"*": "bundle_emb.old.string_to_param.*"},
    }
    assert (len(keys.modules), keys.unknown, keys.algorithm) == (1, ("odd",), "lora")


@pytest.mark.parametrize(
    ("key", "shape", "name"),
    [
        ("lora_unet_x.oft_blocks", (2, 4, 8, 8), "BOFT"),
        ("x.oft_R.default.weight", (2, 6), "peft's OFT"),
        ("x.oft_diag", (8,), "the old OFT layout"),
        ("x.vera_lambda_b", (8,), "VeRA"),
        ("x.set_weight", (8,), "a LoRA that replaces whole weights"),
        ("lora_unet_x.oft_blocks", (2, 8, 8), None),
    ],
)
def test_what_nothing_can_apply_has_a_name(key, shape, name):
    assert read_keys({key: shape}).refused == name


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith(("lora-", "loha-", "lokr-", "dora-"))])
def test_every_tensor_of_every_stored_file_has_a_role(name):
    keys = read_keys({key: shape for key, (_, shape) in stored(name).tensors.items()})
    assert all(module.algorithm for module in keys.modules)
    # what gives a control LoRA its second input is no change of a module
    assert keys.unknown == () or name.endswith("-control")


def test_alphas_come_before_metadata_and_patterns_before_the_rest():
    text = {
        "unet.lora_alpha": 8,
        "unet.r": 4,
        "unet.alpha_pattern": {"mid.attn.to_q": 2, "to_v": 1},
        "text_encoder.r": 4,
    }
    scaling = read_scaling({"lora_adapter_metadata": json.dumps(text)})
    assert scaling.factor("unet", ["down.attn.to_q"], 4, None) == 2.0
    assert scaling.factor("unet", ["mid.attn.to_q"], 4, None) == 0.5
    assert scaling.factor("unet", ["x.to_v"], 4, None) == 0.25
    assert scaling.factor("unet", ["x.auto_v"], 4, None) == 2.0
    assert scaling.factor("unet", ["down.attn.to_q"], 4, 6.0) == 1.5
    assert scaling.factor("unet", ["down.attn.to_q"], 4, 0.0) == 1.0  # trainers write 0 for the rank
    assert scaling.factor("text_encoder", ["x"], 4, None) == 1.0
    assert scaling.factor("unet", ["x"], 0, 8.0) == 1.0  # nothing to divide by: two whole factors


@pytest.mark.parametrize(
    ("pattern", "fits", "not_"),
    [
        (r".*\.to_[qk]", "blocks.0.attn.to_q", "blocks.0.attn.to_v"),
        (r"blocks\.(0|1)\.attn\.to_q", "x.blocks.1.attn.to_q", "blocks.2.attn.to_q"),
        (r"^blocks\.\d+\.attn\.to_q", "blocks.12.attn.to_q", "x.blocks.1.attn.to_q"),
        (r"(.*attn.*)?to_q|proj_out", "proj_out", "proj_out.x"),
        ("attn.to_q", "x.attn.to_q", "attn_to_q"),
    ],
)
def test_an_alpha_pattern_is_a_regular_expression_as_in_peft(pattern, fits, not_):
    scaling = read_scaling({}, {"lora_alpha": 4, "alpha_pattern": {pattern: 16}})
    assert scaling.factor("transformer", [fits], 4, None) == 4.0
    assert scaling.factor("transformer", ["a.name.of.diffusers", fits], 4, None) == 4.0  # another name of the module
    assert scaling.factor("transformer", [not_], 4, None) == 1.0


@pytest.mark.parametrize("pattern", ["(a+)+b", "(.*)*x", ".*.*.*.*x", "(", "a{1,99999999999}", "(x|" * 900])
def test_an_alpha_pattern_that_could_run_for_ever_is_refused(pattern):
    scaling = read_scaling({}, {"lora_alpha": 4, "alpha_pattern": {pattern: 16}})
    with pytest.raises(UnsupportedModel, match="alpha_pattern"):
        scaling.factor("transformer", ["a" * 60], 4, None)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"unet.lora_alpha": "eight"}', '{"unet.lora_alpha": true}'])
def test_metadata_that_makes_no_sense_scales_nothing(text):
    assert read_scaling({"lora_adapter_metadata": text}).factor("unet", ["x"], 4, None) == 1.0


def test_peft_config_speaks_for_every_component():
    config = {"lora_alpha": 8, "use_rslora": True}
    assert read_scaling({}, config).factor("transformer", ["x"], 4, None) == 4.0


def test_trigger_words_are_bounded():
    metadata = {"modelspec.trigger_phrase": ", ".join(f"{i}" * 300 for i in range(40))}
    words = trigger_words(metadata, ["tok"])
    assert len(words) == 16
    assert max(map(len, words)) == 100


def test_a_file_without_a_mark_of_loras_reads_as_it_does_key_by_key(monkeypatch):
    shapes = {name: {key: shape for key, (_, shape) in stored(name).tensors.items()} for name in NAMES}
    quickly = {name: read_keys(keys) for name, keys in shapes.items()}
    assert {bool(keys.modules) for keys in quickly.values()} == {True, False}
    monkeypatch.setattr("worker.catalog.lora_keys._MARKS", ("",))
    assert quickly == {name: read_keys(keys) for name, keys in shapes.items()}
