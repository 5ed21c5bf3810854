"""Scheduler names: diffusers classes, and the names people use for them, as one table."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pydantic import JsonValue

from worker.core.job import SchedulerChoice


@dataclass(frozen=True, slots=True)
class Scheduler:
    """One row: `options` are laid over the model's own scheduler config. `flow` is for flow-matching models."""

    name: str
    cls: str
    aliases: tuple[str, ...] = ()
    options: Mapping[str, JsonValue] = field(default_factory=dict)
    flow: bool = False

    @property
    def choice(self) -> SchedulerChoice:
        """What the engine needs of this row."""
        return SchedulerChoice(self.name, self.cls, self.options)


_KARRAS: dict[str, JsonValue] = {"use_karras_sigmas": True}
_SDE: dict[str, JsonValue] = {"algorithm_type": "sde-dpmsolver++"}

SCHEDULERS: tuple[Scheduler, ...] = (
    Scheduler("DDIMScheduler", "DDIMScheduler", ("ddim",)),
    Scheduler("DDPMScheduler", "DDPMScheduler", ("ddpm",)),
    Scheduler("PNDMScheduler", "PNDMScheduler", ("pndm", "plms")),
    Scheduler("LCMScheduler", "LCMScheduler", ("lcm",)),
    Scheduler("TCDScheduler", "TCDScheduler", ("tcd",)),
    Scheduler("EulerDiscreteScheduler", "EulerDiscreteScheduler", ("euler", "k_euler")),
    Scheduler("euler_karras", "EulerDiscreteScheduler", ("euler karras",), _KARRAS),
    Scheduler(
        "EulerAncestralDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        ("euler_a", "euler a", "k_euler_a", "k_euler_ancestral", "euler_ancestral"),
    ),
    Scheduler("HeunDiscreteScheduler", "HeunDiscreteScheduler", ("heun", "k_heun")),
    Scheduler("KDPM2DiscreteScheduler", "KDPM2DiscreteScheduler", ("dpm2", "k_dpm_2")),
    Scheduler("KDPM2AncestralDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", ("dpm2 a", "k_dpm_2_a")),
    Scheduler("UniPCMultistepScheduler", "UniPCMultistepScheduler", ("unipc", "uni_pc")),
    Scheduler("DEISMultistepScheduler", "DEISMultistepScheduler", ("deis",)),
    Scheduler(
        "DPMSolverMultistepScheduler", "DPMSolverMultistepScheduler", ("dpm++ 2m", "dpmpp_2m", "dpmsolvermultistep")
    ),
    Scheduler("dpmpp_2m_karras", "DPMSolverMultistepScheduler", ("dpm++ 2m karras", "k_dpmpp_2m_karras"), _KARRAS),
    Scheduler("dpmpp_2m_sde", "DPMSolverMultistepScheduler", ("dpm++ 2m sde",), _SDE),
    Scheduler("dpmpp_2m_sde_karras", "DPMSolverMultistepScheduler", ("dpm++ 2m sde karras",), {**_SDE, **_KARRAS}),
    Scheduler("DPMSolverSinglestepScheduler", "DPMSolverSinglestepScheduler", ("dpm++ 2s", "dpmpp_2s")),
    Scheduler("FlowMatchEulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler", ("flow_euler", "euler"), flow=True),
    Scheduler("FlowMatchHeunDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", ("flow_heun", "heun"), flow=True),
)
# The families whose noise schedule is a diffusion one; every newer family is flow-matching.
_DIFFUSION = frozenset(
    {"sd1", "sd2", "sdxl", "sdxl-refiner", "pixart", "kolors", "hunyuan-dit", "cogvideox", "animatediff"}
)


def schedulers_for(architecture: str | None) -> tuple[Scheduler, ...]:
    """The rows that fit a family; all of them when the family is not known."""
    if architecture is None:
        return SCHEDULERS
    return tuple(row for row in SCHEDULERS if row.flow is not (architecture in _DIFFUSION))


def scheduler_names(architecture: str | None) -> tuple[str, ...]:
    """What a request may say, canonical names first."""
    rows = schedulers_for(architecture)
    return tuple(dict.fromkeys([row.name for row in rows] + [alias for row in rows for alias in row.aliases]))


def find_scheduler(name: str, architecture: str | None) -> Scheduler | None:
    """The row of a name or alias; case, spaces, `-` and `_` do not matter."""
    wanted = _folded(name)
    for row in schedulers_for(architecture):
        if wanted in {_folded(row.name), _folded(row.cls) if not row.options else "", *map(_folded, row.aliases)}:
            return row
    return None


def _folded(name: str) -> str:
    return "".join(char for char in name.lower() if char.isalnum() or char == "+").removesuffix("scheduler")
