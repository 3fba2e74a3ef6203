"""Several processes of one run: the process group, agreement on what is on disk, and errors if a process fails."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from weitune.errors import InputError, RunError, first_line
from weitune.ranks import local_rank, world_size
from weitune.training.distributed.rendezvous import use_new_store

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from torch import nn

T = TypeVar("T")

LONGEST_WAIT = timedelta(hours=2)
"""Timeout of the process group: one process may prepare data, or wait for a full disk, while others wait for it."""
_PEER_FAILED = ("onnection closed by peer", "onnection reset by peer", "roken pipe", "[Rank ")
"""Words of gloo and NCCL, which raise plain RuntimeErrors with no other mark."""
_ENGINES = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "accelerate's FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}
"""Variables of accelerate's launcher for engines that wrap model and optimizer themselves."""


def check_device(device: str | None) -> None:
    """Raise InputError if this is one of several processes, and ``device`` the number of one that is not its own."""
    import torch

    if device is None or world_size() == 1:
        return
    given = torch.device(device)
    if given.type != "cpu" and given.index not in {None, local_rank()}:
        raise InputError("training.processes.one_device", device=device, processes=world_size())


def make_accelerator(device: torch.device) -> Accelerator:
    """Join the process group of this run, if a launcher has set one up.

    Raises InputError if accelerate's configuration asks for an engine that this run would not use.
    """
    for variable, engine in _ENGINES.items():
        if os.environ.get(variable, "").lower() in {"1", "true"}:
            raise InputError("training.processes.engine_not_supported", engine=engine)
    import torch
    from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
    from accelerate.utils import GradientAccumulationPlugin

    use_new_store()
    # Buffers are constants of the model and need no broadcast.
    handlers = [InitProcessGroupKwargs(timeout=LONGEST_WAIT), DistributedDataParallelKwargs(broadcast_buffers=False)]
    cpu = device.type == "cpu"
    if not cpu and world_size() == 1:
        torch.accelerator.set_device_index(device.index or 0)  # accelerate takes the current one
    # Given here, because accelerate would otherwise take both from the environment: backward would divide the loss
    # once more, or the model be compiled.
    return Accelerator(
        cpu=cpu,
        mixed_precision="no",
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        dynamo_backend="no",
        kwargs_handlers=handlers,
    )


def averaging_adapters(model: nn.Module) -> nn.Module:
    """Return ``model`` in DDP over its trained parameters alone, so that backward averages their gradients.

    The others may be sharded; accelerate wraps no model with a sharded weight in DDP.
    """
    from torch.nn.parallel import DistributedDataParallel

    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, frozen)
    return DistributedDataParallel(model, broadcast_buffers=False)


def agreed(accelerator: Accelerator, view: Callable[[], T] | None) -> T:
    """Return what ``view`` returns, or raise the InputError that it raises, on every process alike.

    A process without a ``view`` gets what the others see. Raises RunError if these differ.
    """
    views: list[tuple[T | None, InputError | None]] = []
    if view is not None:
        try:
            views = [(view(), None)]
        except InputError as refusal:
            views = [(None, refusal)]
    if accelerator.num_processes > 1:
        from accelerate.utils import gather_object

        views = gather_object(views)
    result, error = views[0]
    if error is not None:
        raise error
    if any(each != views[0] for each in views[1:]):
        raise RunError("training.processes.folders_differ")
    return cast("T", result)


def check_same_step(accelerator: Accelerator, step: int, run: Path) -> None:
    """Raise RunError on every process unless all find the same newest checkpoint in ``run``."""
    if accelerator.num_processes == 1:
        return
    from accelerate.utils import gather_object

    steps = sorted(set(gather_object([step])))
    if len(steps) > 1:
        raise RunError("training.processes.checkpoints_differ", run=run, first=steps[0], last=steps[-1])


@contextmanager
def peer_failures_explained(accelerator: Accelerator, command: str) -> Iterator[None]:
    """Raise RunError if another process of the run fails during the block; ``command`` resumes the run."""
    import torch

    try:
        yield
    except RuntimeError as error:
        failed = isinstance(error, torch.distributed.DistError) or any(words in str(error) for words in _PEER_FAILED)
        if accelerator.num_processes == 1 or not failed:
            raise
        raise RunError("training.processes.peer_gone", reason=first_line(error), command=command) from error
