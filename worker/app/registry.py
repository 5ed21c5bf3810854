"""The models that are served: models.yaml with the environment's additions."""

from pydantic import JsonValue

from worker.app.custom_pipelines import custom_pipelines
from worker.app.settings import Settings, SettingsError, tier_overrides
from worker.catalog.classes.custom import serve_custom
from worker.catalog.compatibility_file import Matrix, read_compatibility
from worker.catalog.interface.checking import with_defaults
from worker.catalog.recipes.file import load_recipes
from worker.catalog.registry import Registry, load_registry
from worker.core.errors import WorkerError
from worker.core.model import LoraSpec, ModelSpec
from worker.store.refs import parse_reference


def build_registry(settings: Settings) -> Registry:
    """Build the registry: models.yaml with the environment's additions, and the recipes. Raises FileError,
    SettingsError.
    """
    serve_custom(custom_pipelines(settings))  # which its models may name
    registry = load_registry(settings.models_yaml, parse_source=parse_reference, overrides=tier_overrides())
    default = registry.find(settings.default_model_id)
    if settings.model_id is not None and (default is None or settings.model_revision is not None):
        try:
            source = default.source if default else parse_reference(settings.model_id)
        except WorkerError as error:
            raise SettingsError(f"MODEL_ID: {error.message}") from None
        if settings.model_revision is not None:
            source = source.model_copy(update={"revision": settings.model_revision})
        default = (default or ModelSpec(id=settings.model_id, source=source)).model_copy(update={"source": source})
        registry = registry.with_model(default)
    if default is None:
        raise SettingsError(
            f"DEFAULT_MODEL {settings.default_model!r} is not in {settings.models_yaml.name}; name one that is, "
            "or set MODEL_ID to a Hugging Face repository."
        )
    if settings.loras:
        loras = (*default.loras, *(LoraSpec(model=text) for text in settings.loras))
        default = default.model_copy(update={"loras": loras})
    registry = registry.with_model(_with_defaults(default, settings))
    registry = _with_lightning(registry, settings)
    place = settings.recipes_place
    return registry if place is None else registry.with_recipes(load_recipes(place))


def build_matrix(settings: Settings) -> Matrix:
    """Build the operator's matrix of what works; an empty one without a file. Raises CompatibilityError."""
    return read_compatibility(settings.compatibility_place) if settings.compatibility_place else Matrix()


def registry_warnings(registry: Registry, settings: Settings) -> list[str]:
    """Return one sentence for each setting that a model makes ineffective; printed at start."""
    default = registry.find(settings.default_model_id)
    if default is None or default.lightning is None or not default.lightning.by_default:
        return []
    names = [name for name in ("DEFAULT_STEPS", "DEFAULT_GUIDANCE") if getattr(settings, name.lower()) is not None]
    if not names:
        return []
    return [
        f"{' and '.join(names)} hold for requests with lightning: false only, since {default.id} has a Lightning "
        "LoRA; set USE_LIGHTNING_LORA=false to have them hold for all."
    ]


def _with_defaults(default: ModelSpec, settings: Settings) -> ModelSpec:
    """Return the default model with the environment's defaults. Raises SettingsError where it does not take one."""
    variables = {"num_inference_steps": "DEFAULT_STEPS", "guidance_scale": "DEFAULT_GUIDANCE"}
    for name, variable in variables.items():
        value: JsonValue = getattr(settings, variable.lower())
        if value is None:
            continue
        try:
            default = with_defaults(default, {name: value})
        except WorkerError as error:
            raise SettingsError(f"{variable}={value}: {error.message}") from None
    return default


def _with_lightning(registry: Registry, settings: Settings) -> Registry:
    """Return the registry with the Lightning LoRAs that the environment chooses. Raises SettingsError without any."""
    use, steps = settings.use_lightning_lora, settings.lightning_steps
    fit: list[str] = []
    for spec in registry.models.values():
        lightning = spec.lightning
        if lightning is None:
            continue
        if steps in lightning.others:
            lightning = lightning.model_copy(update={"lora": lightning.others[steps], "steps": steps})
        if use is not None:
            lightning = lightning.model_copy(update={"by_default": use})
        if steps in (None, lightning.steps):
            fit.append(spec.id)
        registry = registry.with_model(spec.model_copy(update={"lightning": lightning}))
    wanted = [name for name, asked in (("USE_LIGHTNING_LORA", use), ("LIGHTNING_STEPS", steps)) if asked]
    default = registry.find(settings.model_id) if settings.model_id else None
    if wanted and (default.id not in fit if default else not fit):
        of_steps = f" of {steps} steps" if steps else ""
        model = f"{default.id} has no" if default else "no model has a"
        raise SettingsError(
            f"{' and '.join(wanted)}: {model} Lightning LoRA{of_steps} in "
            f"{settings.models_yaml.name}; add one there, or leave {' and '.join(wanted)} unset."
        )
    return registry
