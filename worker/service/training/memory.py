"""What a training takes of the device's memory: an estimate by a formula, beside the plan of loading its model.

weights + what learns, its gradients and the optimizer's state + activations. These are the family's for serving, for as
many pixels as a batch has, times what the way back takes more: 2.5 where blocks compute forward again for it, as on a
GPU, and 10 where all is kept, as on a CPU. Tiny networks took 1.7 to 2.3, and 2.4 to 9.6 (docs/verified.md).
"""

from dataclasses import replace

from worker.core.answer import PlanReport
from worker.core.training import TrainingMemory, TrainingOptions, TrainingPlan

_GIB = 2**30
_AGAIN, _KEPT = 2.5, 10.0


def with_memory(plan: TrainingPlan, report: PlanReport, options: TrainingOptions) -> TrainingPlan:
    """Return the plan with what it takes of the memory, and if it fits."""
    load = report.plan
    if load is None:
        return replace(plan, fits=report.fits, reason=report.reason)
    if load.offload != "none":
        return replace(plan, fits=False, reason=f"{' and '.join(load.reasons)}; an offloaded model cannot be trained.")
    side = options.resolution or report.native_size
    more = _KEPT if load.device == "cpu" else _AGAIN
    activations = int(load.working_bytes_per_mp * side**2 / 1e6 * options.batch_size * more)
    memory = TrainingMemory(load.weight_bytes + load.reserve_bytes, plan.learnt_bytes or 0, activations)
    needed = max(memory.total, load.estimated_bytes)
    if needed <= report.free_bytes:
        return replace(plan, fits=report.fits, reason=report.reason, memory=memory)
    reason = (
        f"It needs some {needed / _GIB:.1f} GiB, and {report.free_bytes / _GIB:.1f} GiB are free on {report.device}; "
        "send a smaller batch_size with more accumulation, a lower resolution or rank, or a precision of fewer bits."
    )
    return replace(plan, fits=False, reason=reason, memory=memory)
