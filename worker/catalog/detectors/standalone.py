"""Repositories without a pipeline: one component of diffusers or transformers, or a peft adapter."""

from collections.abc import Mapping

from worker.catalog.architectures import ARCHITECTURES
from worker.catalog.base_models import declared_base
from worker.catalog.detectors.components import component_classes
from worker.catalog.detectors.controlnets import CONTROLNETS, configured_variant
from worker.core.model import Detection, Kind

Config = Mapping[str, object]

# Kinds of part by transformers' model_type. A type that is not listed stays a component.
_IMAGE_ENCODERS = ("clip_vision_model", "siglip_vision_model", "dinov2", "vit")
_TEXT_ENCODERS = ("clip_text_model", "t5", "umt5", "llama", "mistral", "gemma", "qwen", "phi", "chatglm", "bert")


def component(config: Config) -> Detection | None:
    """Detect a component by a config.json without a model_index.json beside it; None if it names no class."""
    name = _text(config.get("_class_name"))
    if name is not None:
        return _diffusers(name[:80], config)
    model = _text(config.get("model_type"))
    if model is None:
        return None
    kind = Kind.COMPONENT
    if model.startswith(_IMAGE_ENCODERS):
        kind = Kind.IMAGE_ENCODER
    elif model.startswith(_TEXT_ENCODERS):
        kind = Kind.TEXT_ENCODER
    architectures = config.get("architectures")
    class_name = architectures[0] if isinstance(architectures, list) and architectures else None
    return Detection(
        kind,
        "transformers",
        evidence=(f"config.json: model_type {model[:80]}, a transformers model",),
        quantization=quantization_method(config),
        component_class=_text(class_name),
    )


def _diffusers(name: str, config: Config) -> Detection:
    row = component_classes().get(name)
    kind = row.kind if row else Kind.COMPONENT
    return Detection(
        kind,
        "diffusers",
        architecture=_base(name, config, row.pipelines if row else ()),
        pipeline=row.pipelines[0] if row and kind is Kind.DENOISER and len(row.pipelines) == 1 else None,
        evidence=(f"config.json: {name}",),
        quantization=quantization_method(config),
        variant=configured_variant(name, config),
        component_class=name,
    )


def _base(name: str, config: Config, pipelines: tuple[str, ...]) -> str | None:
    """Return the family of a component: by its text width, or by the one family that uses its class."""
    width = config.get("cross_attention_dim")
    if type(width) is int and name in ("UNet2DConditionModel", "ControlNetModel", "ControlNetUnionModel"):
        return next((row.id for row in ARCHITECTURES if row.text_width == width), None)
    if name == "MotionAdapter":
        levels = config.get("block_out_channels")
        count = len(levels) if isinstance(levels, list) else 0
        return next((row.id for row in ARCHITECTURES if row.motion_levels == count), None)
    if name == "T2IAdapter":
        return next((row.id for row in ARCHITECTURES if config.get("adapter_type") in row.t2i_adapters), None)
    return _base_by_users(name, pipelines)


def _base_by_users(name: str, pipelines: tuple[str, ...]) -> str | None:
    """Return the one family whose ControlNets, or whose pipelines, are of this class."""
    bases = {row.architecture for row in CONTROLNETS if row.component_class == name and row.architecture}
    if not bases:
        users = set(pipelines)
        bases = {row.adapter_base for row in ARCHITECTURES if users & {*row.pipelines.values(), *row.classes}}
    return bases.pop() if len(bases) == 1 else None


def peft_adapter(config: Config) -> Detection:
    """Detect an adapter by its adapter_config.json, as peft writes it beside the weights."""
    algorithm = str(config.get("peft_type", "LORA")).lower()[:20]
    if algorithm == "lora" and config.get("use_dora") is True:
        algorithm = "dora"
    repository = _text(config.get("base_model_name_or_path")) or ""
    base = declared_base(repository.split("/", 1)[-1]) or declared_base(repository)
    evidence = [f"adapter_config.json: {algorithm}"]
    if repository:
        evidence.append(f"adapter_config.json: made for {repository[:80]}")
    return Detection(Kind.LORA, f"{algorithm}/peft", architecture=base, evidence=tuple(evidence))


def quantization_method(config: Config) -> str | None:
    """Return the method in a config's `quantization_config`: bitsandbytes_4bit, torchao, sdnq, nunchaku …, or None."""
    quantization = config.get("quantization_config")
    if not isinstance(quantization, Mapping):
        return None
    method = quantization.get("quant_method")
    if not isinstance(method, str) or not method:
        return "unnamed"
    if method == "bitsandbytes":
        return "bitsandbytes_4bit" if quantization.get("load_in_4bit") is True else "bitsandbytes_8bit"
    return method[:40]


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
