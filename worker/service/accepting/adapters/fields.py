"""The check that a request's model takes its adapters at all, before anything is fetched."""

from worker.catalog.call import ModelCall
from worker.catalog.interface.adapters import adapter_fields, all_adapter_fields, takes_loras
from worker.core.errors import UnknownParameter
from worker.core.request import GenerationRequest

# What changes nothing in a model's own denoiser.
_BESIDE_THE_DENOISER = frozenset({"embeddings", "vae", "refiner", "upscale"})


def check_adapter_fields(request: GenerationRequest, call: ModelCall) -> None:
    """Raise UnknownParameter for an adapter field that the call does not take."""
    taken = adapter_fields(call)
    sent = {spec.field for spec in request.adapters}
    sent |= {"refiner"} if request.refiner is not None else set()
    sent |= {"upscale"} if request.upscale is not None and request.upscale.is_wanted else set()
    if "loras" in sent and not takes_loras(call):
        raise UnknownParameter(
            f"loras is not taken by {call.spec.id}, a modular repository whose class loads none; leave it out, or name "
            "a repository with a model_index.json.",
            field="loras",
        )
    if call.spec.context_parallel is not None and (parted := sorted(sent - _BESIDE_THE_DENOISER)):
        raise UnknownParameter(
            f"{parted[0]} is not taken by {call.spec.id}, whose denoiser is shared out between processes "
            "(context_parallel); leave it out.",
            field=parted[0],
        )
    for field in all_adapter_fields():
        if field in sent and field not in taken:
            named = ("loras", *taken) if takes_loras(call) else taken
            listed = f"; it takes {', '.join(named)}" if taken else ""
            raise UnknownParameter(
                f"{field} is not taken by {call.spec.id} for {call.task}{listed}; leave it out.", field=field
            )
