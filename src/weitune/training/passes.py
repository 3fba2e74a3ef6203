"""How a process computes its part of a step's gradients: batch by batch under autograd, or by CUDA graphs."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from weitune.data.pack import PackedBatch
from weitune.model.batch import to_tensors
from weitune.model.cuda_graph import CudaGraphPasses
from weitune.training.objective.step_objective import Laid, PassResult

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Passes:
    """Forward and backward passes as PyTorch runs them, in one process or several."""

    model: nn.Module
    """A SupervisedModel, perhaps wrapped for data parallelism."""
    optimizer: torch.optim.Optimizer
    accelerator: Accelerator

    def run(self, batch: Laid, step_weight: float, *, counted: bool, last: bool) -> PassResult:
        """Add the gradient of ``batch``, divided by ``step_weight``; return its loss, and what comes with it.

        A batch that is not ``counted`` adds nothing; the ``last`` one of a step starts the reduction over processes.
        """
        world = self.accelerator.num_processes
        with nullcontext() if last else self.accelerator.no_sync(self.model):
            result = self.model(to_tensors(batch, self.accelerator.device))
            loss, *more = result if isinstance(result, tuple) else (result,)
            loss = loss * (1.0 if counted else 0.0)
            self.accelerator.backward(loss * (world / step_weight))  # reduction takes the mean over devices
        return _on_host(loss, *more)

    def clip(self, max_norm: float) -> float:
        """Scale the gradients so that their norm is at most ``max_norm``, and return the norm before."""
        alone = self.accelerator.num_processes == 1
        clip = nn.utils.clip_grad_norm_ if alone else self.accelerator.clip_grad_norm_  # which looks for DTensors
        return float(clip(self._trained, max_norm))

    @cached_property
    def _trained(self) -> list[nn.Parameter]:
        """Found once: SmolLM2 with its adapter has 2,498 modules to look through, which takes 2.3 ms."""
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    def zero_grad(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)


@dataclass(frozen=True)
class GraphPasses(Passes):
    """Passes of a process that is alone with its GPU: those of small packed rows are replayed as CUDA graphs."""

    graphs: CudaGraphPasses

    def run(self, batch: Laid, step_weight: float, *, counted: bool, last: bool) -> PassResult:
        if isinstance(batch, PackedBatch) and self.graphs.accepts(batch):
            result = self.graphs.run(batch, 1 / step_weight)
            return _on_host(*(result if isinstance(result, tuple) else (result,)))
        return Passes.run(self, batch, step_weight, counted=counted, last=last)

    def clip(self, max_norm: float) -> float:
        return float(self.graphs.clip_grad_norm(max_norm))

    def zero_grad(self) -> None:
        self.graphs.zero_grad()


def _on_host(*result: Tensor) -> PassResult:
    """Return the tensors of a pass, a loss and perhaps sums, in float64 on the CPU."""
    found = tuple(each.detach().double().cpu() for each in result)
    return found if len(found) == 2 else found[0]
