"""A denoiser whose tokens are shared out between several processes, each with a GPU of its own: context parallel.

diffusers' hooks split a call's tokens and gather its output, and its attention exchanges heads for tokens between the
processes (Ulysses). The first process runs the whole pipeline, as for any model. The others have the denoiser alone and
call it with what the first one calls it with: they know of no prompt, scheduler or step, so that a job that stops
between two steps leaves them where they were.

diffusers' `enable_parallelism` is not called: it divides by the number of accelerators, which is 0 on a CPU.
"""

import inspect
import pickle
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta
from multiprocessing.connection import Connection
from types import NoneType
from typing import Any, get_args

import torch
import torch.distributed as distributed
from diffusers import ContextParallelConfig, ParallelConfig
from diffusers.hooks.context_parallel import apply_context_parallel
from torch import nn
from torch.distributed.device_mesh import init_device_mesh

from worker.core.device import LoadPlan
from worker.core.errors import ParameterOutOfRange, UnsupportedModel
from worker.core.model import DENOISERS
from worker.engine.classes import pipeline_class
from worker.engine.devices import RankLost
from worker.engine.other_processes import HERE, OtherProcesses
from worker.engine.spreading import on_device

# How long the others may take to load the denoiser, and all of them for one exchange.
_START_S, _STEP_S = 1_800.0, 300.0
_HANDLE = "_context_parallel"
Load = Callable[[LoadPlan], Any]
_UNEVEN = (
    "width and height make a number of tokens that context_parallel does not divide, which a CPU cannot share out; "
    "send multiples of 64, or let the operator remove context_parallel."
)


def check_parallel(plan: LoadPlan) -> None:
    """Raise UnsupportedModel for a pipeline whose denoiser cannot share out its tokens, before a weight is read."""
    what = f"context_parallel {plan.ranks} (models.yaml)"
    cls = pipeline_class(plan.pipeline)
    parts = inspect.signature(cls.__init__).parameters
    noted = [parts[name].annotation for name in DENOISERS if name in parts]
    classes = [cls for each in noted for cls in (get_args(each) or (each,)) if cls is not NoneType]
    if len(classes) != 1 or getattr(classes[0], "_cp_plan", None) is None:
        raise UnsupportedModel(
            f"{what}: diffusers has no plan for sharing out the tokens of a {plan.pipeline}'s denoiser; remove it.",
            field="model",
        )
    here = torch.cuda.device_count() if plan.device == "cuda" else plan.ranks
    if here < plan.ranks or plan.device not in ("cpu", "cuda"):
        raise UnsupportedModel(f"{what} needs as many GPUs, and this worker has {here}; set it to that.", field="model")


def share_out(pipe: Any, plan: LoadPlan, load: Load) -> None:
    """Have the denoiser of `pipe`, loaded by `plan`, compute with other processes, which `load` it too.

    Raises UnsupportedModel for a pipeline of two denoisers, and RankLost.
    """
    if any(pipe.components.get(f"{name}_2") is not None for name in DENOISERS):
        raise UnsupportedModel("context_parallel shares out one denoiser, and this model has two.", field="model")
    module = _denoiser(pipe)
    if distributed.is_initialized():  # of a model that has gone
        distributed.destroy_process_group()
    store = distributed.TCPStore(HERE, 0, is_master=True, wait_for_workers=False)
    others = OtherProcesses(plan.ranks, store.port, _Part(plan, load))
    try:
        others.wait(_START_S)  # for their imports
        _join(store, 0, plan)
        others.wait(_START_S)  # for the denoiser
        _split(module, plan, 0)
    except (RuntimeError, OSError, EOFError) as error:
        others.close()
        raise RankLost(others.ended()) from error
    led = _Led(module.forward, others)
    module.forward = led
    setattr(pipe, _HANDLE, others)


def end_ranks(pipe: Any) -> None:
    """End the processes that compute with `pipe`, if there are some: it is of no use afterwards."""
    others = getattr(pipe, _HANDLE, None)
    if others is not None:
        others.close()
        if distributed.is_initialized():
            distributed.destroy_process_group()


class _Led:
    """The denoiser's call in the first process: the others are told to make the same one."""

    def __init__(self, forward: Any, others: OtherProcesses) -> None:
        self._forward = forward
        self._others = others
        self._in_step = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not self._in_step:
            raise RankLost("Some")
        self._in_step = False
        try:
            self._others.order(pickle.dumps(on_device((args, kwargs), torch.device("cpu"))))
            output = self._forward(*args, **kwargs)
        except AssertionError:  # before anything was exchanged
            self._in_step = True
            raise ParameterOutOfRange(_UNEVEN, field="width") from None
        except (RuntimeError, OSError) as error:
            if isinstance(error, OSError) or _is_of_the_group(error):
                raise RankLost(self._others.ended()) from error
            raise
        self._in_step = True
        return output


@dataclass(frozen=True, slots=True)
class _Part:
    """What another process does: it loads the denoiser, and calls it as it is told to."""

    plan: LoadPlan
    load: Load

    def __call__(self, number: int, count: int, port: int, orders: Connection) -> None:
        """Take part until the first process ends this one. What it raises ends it alone."""
        device = _device(self.plan, number)
        if device.type == "cuda":
            torch.cuda.set_device(device)
        orders.send_bytes(b"here")
        _join(distributed.TCPStore(HERE, port, is_master=False), number, self.plan)
        module = _denoiser(self.load(replace(self.plan, ranks=1, device="cpu"))).to(device)
        _split(module, self.plan, number)
        orders.send_bytes(b"ready")
        with torch.inference_mode():
            while True:
                try:
                    args, kwargs = pickle.loads(orders.recv_bytes())  # noqa: S301 - of the process that started this
                except EOFError:
                    return
                args, kwargs = on_device((args, kwargs), device)
                with suppress(AssertionError):  # the first process says so
                    module(*args, **kwargs)


def _join(store: Any, number: int, plan: LoadPlan) -> None:
    backend = "nccl" if plan.device == "cuda" else "gloo"
    distributed.init_process_group(
        backend, store=store, rank=number, world_size=plan.ranks, timeout=timedelta(seconds=_STEP_S)
    )


def _split(module: Any, plan: LoadPlan, number: int) -> None:
    """Have this process compute its share of the tokens of each call of `module`."""
    mesh = init_device_mesh(_device(plan, number).type, (1, plan.ranks), mesh_dim_names=("ring", "ulysses"))
    # Any number of tokens takes gathers of different sizes, which gloo has not.
    config = ContextParallelConfig(ulysses_degree=plan.ranks, ulysses_anything=plan.device == "cuda")
    whole = ParallelConfig(context_parallel_config=config)
    whole.setup(number, plan.ranks, _device(plan, number), mesh=mesh)
    for part in module.modules():
        processor = getattr(part, "processor", None)
        if processor is not None and hasattr(processor, "_parallel_config"):
            processor._parallel_config = whole
    module._parallel_config = whole
    apply_context_parallel(module, config, module._cp_plan)


def _denoiser(pipe: Any) -> nn.Module:
    parts: Mapping[str, Any] = pipe.components
    module: nn.Module = next(parts[name] for name in DENOISERS if parts.get(name) is not None)
    return module


def _device(plan: LoadPlan, number: int) -> torch.device:
    return torch.device("cuda", number) if plan.device == "cuda" else torch.device(plan.device)


def _is_of_the_group(error: RuntimeError) -> bool:
    words = str(error).lower()
    return isinstance(error, distributed.DistBackendError) or any(
        word in words for word in ("gloo", "nccl", "connection", "timed out")
    )
