"""The scheduler that a model's weights were trained for, where their config says another one or none: pure."""

from collections.abc import Mapping

from pydantic import JsonValue

from worker.core.call import KnownModel
from worker.core.model import ModelFiles

# The schedulers of files trained in EDM's terms: Playground 2.5, and CosXL, which predicts velocities.
_EDM: Mapping[str, tuple[str, Mapping[str, JsonValue]]] = {
    "edm": ("EDMDPMSolverMultistepScheduler", {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5}),
    "edm_v_prediction": (
        "EDMEulerScheduler",
        {"sigma_min": 0.002, "sigma_max": 120.0, "sigma_data": 1.0, "prediction_type": "v_prediction"},
    ),
}


def schedule_of(model: KnownModel, files: ModelFiles) -> tuple[str | None, Mapping[str, JsonValue]]:
    """Return the scheduler class, where the config's own is wrong, and the options laid over its config.

    A single file says it in marker tensors or metadata; a repository has a config, which only the registry overrules.
    """
    spec, detection = model.spec, model.detection
    if not files.is_single_file:
        return None, {"prediction_type": spec.prediction_type} if spec.prediction_type else {}
    edm = _EDM.get(detection.prediction_type or "")
    if edm is not None:
        return edm
    few_steps = detection.few_steps
    scheduler, options = (few_steps.cls, dict(few_steps.options)) if few_steps else (None, {})
    if detection.prediction_type is not None:
        options["prediction_type"] = detection.prediction_type
    if detection.zero_snr:
        options |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    return scheduler, options
