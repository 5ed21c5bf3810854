"""Storages that the loader reads or refuses, as data: checked before a download, and printed in docs/models.md."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec

from worker.catalog.classes.modular import is_modular
from worker.catalog.classes.signatures import known_pipelines
from worker.catalog.pipelines.table import pipeline_row
from worker.core.errors import UnsupportedModel
from worker.core.model import Detection, ModelSpec


@dataclass(frozen=True, slots=True)
class Storage:
    """One way of storing weights. `refusal` is the reason why it is not read; `package` is needed to read it."""

    id: str
    title: str
    how: str = ""
    refusal: str = ""
    package: str = ""  # by its import name
    distribution: str = ""  # by its name in an index


# First those of single files, then quantized repositories by diffusers' name for their method.
STORAGES: Mapping[str, Storage] = {
    row.id: row
    for row in (
        Storage("fp8", "fp8", "made plain (bf16, fp16 or fp32) as it is read"),
        Storage("fp8-scaled", "fp8 with a scale for each layer", "multiplied with its scales and made plain"),
        Storage(
            "gguf",
            "GGUF",
            "matrices stay packed, unpacked layer by layer; of ComfyUI-GGUF's folded tensors the noted shapes count",
            package="gguf",
            distribution="gguf",
        ),
        Storage(
            "nf4",
            "bitsandbytes nf4 in one file",
            refusal="its 4-bit weights lost their layers' shapes, which bitsandbytes only finds in a repository",
        ),
        Storage(
            "svdquant",
            "SVDQuant (nunchaku)",
            refusal="its 4-bit weights need nunchaku's own kernels, which no package index offers",
        ),
        Storage("nvfp4", "nvfp4", "stays packed, as FLUX.2's authors publish it; unpacked layer by layer"),
        Storage(
            "nvfp4-comfy",
            "ComfyUI's nvfp4",
            refusal="its scales lie in the order of one kind of GPU; Black Forest Labs' nvfp4 files are read",
        ),
        Storage("mxfp8", "mxfp8", refusal="its weights are scaled in blocks, for one kind of GPU only"),
        Storage(
            "int8",
            "ComfyUI's int8",
            refusal="its int8 weights have scales, and with ConvRot are rotated too, which ComfyUI's kernels undo",
        ),
        Storage("int8-convrot", "ComfyUI's int8 with ConvRot", refusal="its int8 weights are rotated (ConvRot)"),
        Storage("bitsandbytes", "bitsandbytes", package="bitsandbytes", distribution="bitsandbytes"),
        Storage("torchao", "torchao", package="torchao", distribution="torchao"),
        Storage("quanto", "quanto", package="optimum", distribution="optimum-quanto"),
        Storage("modelopt", "NVIDIA ModelOpt", package="modelopt", distribution="nvidia-modelopt"),
        Storage("auto-round", "AutoRound", package="auto_round", distribution="auto-round"),
        Storage("sdnq", "SDNQ", package="sdnq", distribution="sdnq"),
        Storage("nunchaku_lite", "Nunchaku Lite", package="kernels", distribution="kernels"),
    )
}
# Packages that the classes of some parts import, by the name in model_index.json: without it their video processors do
# not exist.
PART_PACKAGES: Mapping[str, tuple[str, str]] = dict.fromkeys(
    ("Qwen2VLProcessor", "Qwen2_5_VLProcessor", "Qwen3VLProcessor", "PixtralProcessor"), ("torchvision", "torchvision")
)


def storage_of(detection: Detection) -> str | None:
    """Return the storage of a model's weights, by its id in STORAGES; None for plain weights."""
    if detection.quantization is not None:
        return detection.quantization
    suffix = detection.format.partition("/")[2]
    return suffix if suffix in STORAGES else None


def check_loadable(model: str, detection: Detection) -> None:
    """Refuse a model that no loader here can read.

    Raises UnsupportedModel with the kind, the reason and the way round."""
    storage = storage_of(detection)
    row = STORAGES.get(storage) if storage else None
    if storage is not None and row is None:
        raise UnsupportedModel(
            f"{model} is quantized as {storage[:40]}, which no loader here reads; "
            "use a plain version of it, or GGUF in Q8_0 or Q4_K.",
            field="model",
            details={"evidence": list(detection.evidence)},
        )
    if row is not None and row.refusal:
        raise UnsupportedModel(
            f"{model} is stored as {row.title}, which is not read here: {row.refusal}; "
            "use a plain fp16, bf16, fp8 or GGUF version of it.",
            field="model",
            details={"evidence": list(detection.evidence)},
        )
    if row is not None and row.package:
        _need(model, f"{row.title} weights", row.package, row.distribution)
    for name in detection.part_classes:
        if name in PART_PACKAGES:
            _need(model, name, *PART_PACKAGES[name])
    check_pipeline(model, detection.pipeline)
    if is_modular(detection.pipeline) and detection.format != "modular":
        raise UnsupportedModel(
            f"{model} is called a {detection.pipeline}, which is read from its modular repository only, whose index is "
            "modular_model_index.json; name that repository, without an architecture in models.yaml.",
            field="model",
        )
    if detection.format == "modular" and not is_modular(detection.pipeline):
        raise UnsupportedModel(
            f"{model} is a modular repository, which runs as its own class only, and not as {detection.pipeline}; "
            "remove pipeline and architecture in models.yaml.",
            field="model",
        )


def check_modular(spec: ModelSpec, detection: Detection) -> None:
    """Refuse what models.yaml adds to a modular repository and no loader here gives it. Raises UnsupportedModel."""
    added = {
        "vae": spec.vae, "components": spec.components, "base": spec.base, "config": spec.config,
        "loras": spec.loras, "lightning": spec.lightning,
    }  # fmt: skip
    field = next((name for name, value in added.items() if value), None)
    if detection.format == "modular" and field:
        raise UnsupportedModel(
            f"{spec.id} is a modular repository, which takes no {field} in models.yaml; remove it there, or name a "
            "repository with a model_index.json.",
            field="model",
        )


def check_pipeline(model: str, pipeline: str | None) -> None:
    """Refuse a pipeline class that cannot run with the installed libraries. Raises UnsupportedModel."""
    if pipeline is None:
        return
    row, known = pipeline_row(pipeline), known_pipelines()
    if known and pipeline not in known and not is_modular(pipeline) and not row.source:
        raise UnsupportedModel(
            f"{pipeline}, which {model} needs, is not in the installed diffusers {version('diffusers')}, and no model "
            "brings its own code here; use a model of another class.",
            field="model",
        )
    if row.broken:
        raise UnsupportedModel(
            f"{pipeline}, which {model} needs, is broken in the installed libraries: {row.broken}; use another model.",
            field="model",
        )
    if row.package is not None:
        _need(model, pipeline, row.package.name, row.package.distribution)


def _need(model: str, user: str, package: str, distribution: str) -> None:
    if find_spec(package) is None:
        raise UnsupportedModel(
            f"{user}, which {model} has, needs the Python package {distribution}, which is not installed here; "
            "let the operator add it to the image.",
            field="model",
            details={"package": distribution},
        )
