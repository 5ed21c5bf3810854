"""What a model's first training will take, by what serving has learnt of its pace: an estimate, and told as one.

A step of serving is one pass through the denoiser for each image, and two with guidance. A step of training is one
pass forward and one backward, which does twice the work; on a GPU the forward pass is done once more, since gradient
checkpointing keeps nothing of it. What else a job of serving has (words, its VAE, an upscaler) is in its pace, so that
the estimate is rather too high.
"""

from worker.catalog.call import Model
from worker.core.answer import PlanReport
from worker.core.training import TrainingOptions, TrainingPlan

_FORWARD, _BACKWARD, _GUIDED = 1, 2, 2
_CLASSIFIER_FREE = "true_cfg_scale"  # of classes that take another guidance as a number beside


def passes(model: Model, device: str) -> float:
    """Return how much more work a step of training is than one of serving, for the same image."""
    again = _FORWARD if device != "cpu" else 0
    return (_FORWARD + _BACKWARD + again) / (_GUIDED if _is_guided(model) else 1)


def seconds_by_serving(model: Model, options: TrainingOptions, plan: TrainingPlan, report: PlanReport) -> float | None:
    """Return the seconds of a training by the pace of serving's last jobs; None where there were none."""
    if report.pace is None or report.plan is None:
        return None
    images = sum(plan.sizes.values())
    megapixels = sum(width * height * count for (width, height), count in plan.sizes.items()) / images / 1e6
    learnt = options.steps * options.images_a_step * (1 if options.class_prompt is None else 2)
    return report.pace.seconds * megapixels * learnt * passes(model, report.plan.device)


def _is_guided(model: Model) -> bool:
    """Return whether an image is two passes a step: a distilled model is only told its guidance."""
    row = model.architecture
    if row is None or not row.negative_prompt or not model.tasks:
        return False
    told = model.call(model.tasks[0]).takes(_CLASSIFIER_FREE)
    scale = {**row.defaults, **model.spec.defaults}.get(_CLASSIFIER_FREE if told else row.guidance)
    return isinstance(scale, int | float) and scale > 1
