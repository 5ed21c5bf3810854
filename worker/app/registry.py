"""The models that are served: models.yaml with the environment's additions."""

from worker.app.settings import Settings, SettingsError, tier_overrides
from worker.catalog.registry import Registry, load_registry
from worker.core.errors import WorkerError
from worker.core.model import LoraSpec, ModelSpec
from worker.store.refs import parse_reference


def build_registry(settings: Settings) -> Registry:
    """Build the registry: models.yaml with the environment's additions. Raises RegistryError, SettingsError."""
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
        registry = registry.with_model(default.model_copy(update={"loras": loras}))
    return registry
