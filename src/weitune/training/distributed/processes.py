"""Several processes at one run: how they find each other, which of them writes, and what is said when one is gone."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from weitune.errors import InputError, RunError, first_line
from weitune.training.distributed.rendezvous import take_new_place

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator
    from torch import nn

T = TypeVar("T")

LONGEST_WAIT = timedelta(hours=2)
"""How long processes wait for each other: one prepares the data, one waits for a full disk."""
_GONE = ("onnection closed by peer", "onnection reset by peer", "roken pipe", "[Rank ")
"""What gloo and NCCL say."""
_ENGINES = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "accelerate's FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}
"""What accelerate's launcher says of engines that want model and optimizer for themselves."""


def make_accelerator(device: torch.device) -> Accelerator:
    """Join the other processes of this run, if a launcher's variables say that there are some.

    Raises InputError if accelerate's configuration asks for an engine that this run would not use.
    """
    for variable, engine in _ENGINES.items():
        if os.environ.get(variable, "").lower() in {"1", "true"}:
            raise InputError("training.processes.engine_not_supported", engine=engine)
    from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs

    take_new_place()
    # Buffers are constants of the model: nothing to broadcast at every step.
    handlers = [InitProcessGroupKwargs(timeout=LONGEST_WAIT), DistributedDataParallelKwargs(broadcast_buffers=False)]
    cpu = device.type == "cpu"
    return Accelerator(cpu=cpu, mixed_precision="no", kwargs_handlers=handlers)


def averaging_adapters(model: nn.Module) -> nn.Module:
    """Return ``model`` so that backward averages the gradients of what is trained of it over all processes.

    The rest may be sharded; accelerate puts no model that has a sharded weight into DDP.
    """
    from torch.nn.parallel import DistributedDataParallel

    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, frozen)
    return DistributedDataParallel(model, broadcast_buffers=False)


def agreed(accelerator: Accelerator, view: Callable[[], T] | None) -> T:
    """Return what ``view`` returns, or raise the InputError that it raises, on every process alike.

    A process without a ``view`` hears what the others see. Raises RunError if they see different things.
    """
    told: list[tuple[T | None, InputError | None]] = []
    if view is not None:
        try:
            told = [(view(), None)]
        except InputError as refusal:
            told = [(None, refusal)]
    if accelerator.num_processes > 1:
        from accelerate.utils import gather_object

        told = gather_object(told)
    found, error = told[0]
    if error is not None:
        raise error
    if any(each != told[0] for each in told[1:]):
        raise RunError("training.processes.folders_differ")
    return cast("T", found)


def check_same_step(accelerator: Accelerator, step: int, run: Path) -> None:
    """Raise RunError on every process unless all of them have found the same newest checkpoint in ``run``."""
    if accelerator.num_processes == 1:
        return
    from accelerate.utils import gather_object

    steps = sorted(set(gather_object([step])))
    if len(steps) > 1:
        raise RunError("training.processes.checkpoints_differ", run=run, first=steps[0], last=steps[-1])


def writes(accelerator: Accelerator, *, on_each_node: bool) -> bool:
    """Return whether this process writes the run's folder: one does, or one on each machine."""
    return bool(accelerator.is_local_main_process if on_each_node else accelerator.is_main_process)


@contextmanager
def peer_failures_explained(accelerator: Accelerator, command: str) -> Iterator[None]:
    """Raise RunError if another process of the run is gone in the block; ``command`` goes on with the run."""
    import torch

    try:
        yield
    except RuntimeError as error:
        gone = isinstance(error, torch.distributed.DistError) or any(words in str(error) for words in _GONE)
        if accelerator.num_processes == 1 or not gone:
            raise
        raise RunError("training.processes.peer_gone", reason=first_line(error), command=command) from error
