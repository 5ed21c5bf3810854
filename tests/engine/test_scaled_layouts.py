"""Scaled fp8 in every layout, in full size and without memory: the scales are used up, and every tensor is placed."""

import diffusers
import pytest
import torch

from tests.catalog.corpus import index as header_of
from tests.engine.published import PUBLISHED
from tests.engine.test_layouts import QUICK, file_of, model_of
from worker.catalog.architectures import ARCHITECTURES
from worker.catalog.detector import detect_header
from worker.core.errors import CorruptFile
from worker.engine import conversion, layouts
from worker.engine.quantization import dequantize
from worker.engine.sizes import shape_of

TWINS = {row.id: row.twin for row in ARCHITECTURES}
PREFIX = "model.diffusion_model."


def scaled(shapes, scale):
    """As ComfyUI's and others' tools write it: matrices in fp8, a number beside each, and a marker."""
    tensors = {f"{PREFIX}scaled_fp8": torch.empty(0, dtype=torch.float8_e4m3fn)}
    for name, shape in shapes.items():
        matrix = len(shape) == 2 and name.endswith(".weight")
        dtype = torch.float8_e4m3fn if matrix else torch.bfloat16
        tensors[PREFIX + name] = torch.empty(shape, dtype=dtype, device="meta")
        if matrix:
            tensors[PREFIX + name.removesuffix("weight") + scale] = torch.empty((), device="meta")
    return tensors


CASES = [
    pytest.param(
        one,
        scale,
        id=f"{number}-{one.family}-{scale}",
        marks=() if one.family in QUICK and scale == "scale_weight" else pytest.mark.slow,
    )
    for number, one in enumerate(PUBLISHED)
    for scale in ("scale_weight", "weight_scale")
    if one.original is not None
]


@pytest.mark.quick_rows(2)
@pytest.mark.parametrize(("published", "scale"), CASES)
def test_scaled_fp8_in_its_authors_names_becomes_the_whole_model(published, scale):
    shapes, config = model_of(published)
    tensors = scaled(file_of(published), scale)
    header = header_of({name: tuple(tensor.shape) for name, tensor in tensors.items()})
    assert detect_header(header).architecture == (TWINS[published.family] or published.family)
    ((plain,),) = conversion.split(dequantize(tensors, torch.bfloat16)).values()
    cls = getattr(diffusers, published.model)
    fit = layouts.fit("transformer", cls, plain, {**config, **published.base})
    assert {name: shape_of(tensor) for name, tensor in fit.weights.items()} == shapes
    assert {tensor.dtype for tensor in fit.weights.values()} == {torch.bfloat16}


def test_a_scale_of_no_layer_is_damage():
    published = next(one for one in PUBLISHED if one.family == "z-image" and one.original)
    tensors = scaled(file_of(published), "scale_weight")
    tensors.pop(f"{PREFIX}layers.3.attention.qkv.weight")
    with pytest.raises(CorruptFile):
        dequantize(tensors, torch.bfloat16)
