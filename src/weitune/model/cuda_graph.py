"""Forward and backward of a packed row as one CUDA graph, recorded once for its shape and replayed.

A pass over a few hundred tokens is thousands of kernels of a few microseconds each, and Python launches them more
slowly than a large GPU finishes them. A graph launches them all at once (CUDA C++ Programming Guide, CUDA Graphs):

    first pass of a shape      runs eagerly: libraries compile, load and choose their kernels
    second                     is recorded, then replayed
    later ones                 copy their row into the graph's inputs, and replay it

Rows are rounded up so that there are few shapes. All three give the same bits: a replay draws dropout anew, and the
offsets of its masks, which the graph keeps, depend on the shape alone. If recording fails, later passes run eagerly.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from weitune.data.pack import PackedBatch
from weitune.errors import first_line
from weitune.messages import say
from weitune.model.batch import PackedTensors, to_tensors
from weitune.model.supervised import AnswerPass, SupervisedModel

TOKENS, PREDICTIONS = 128, 256
"""Sizes are rounded up to multiples of these. A tile of a matrix product has 128 rows; a prediction costs a fiftieth of
a token."""
MOST_RECORDED_TOKENS = 4096
"""Longer passes keep a GPU busy even if they run eagerly."""
MOST_RECORDINGS = 32
_FAILED: list[torch.cuda.CUDAGraph] = []
"""Graphs whose recording failed. They must not be freed, because the allocator of torch 2.11 still calls them."""


@dataclass(frozen=True, slots=True, eq=False)
class _Recording:
    row: PackedTensors
    """The graph's inputs"""
    result: Tensor | AnswerPass
    """its outputs"""
    graph: torch.cuda.CUDAGraph


class CudaGraphPasses:
    """The passes of a model on one GPU. The gradients of its trained parameters are views of one tensor.

    Rows of more than ``most_tokens`` are not recorded; the results are the same to the bit.
    """

    def __init__(self, model: SupervisedModel, most_tokens: int = MOST_RECORDED_TOKENS) -> None:
        self._model, self._device = model, model.model.device
        self._most_tokens = most_tokens
        self._loss_grad = torch.zeros((), device=self._device)
        self._recordings: dict[tuple[int, ...], _Recording | None] = {}
        self._pool: Any = None
        self._records = True
        """False once a recording has failed"""
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._grads = torch.zeros(sum(p.numel() for p in trained), device=self._device)
        for parameter, part in zip(trained, self._grads.split([p.numel() for p in trained]), strict=True):
            parameter.grad = part.view_as(parameter)

    def accepts(self, batch: PackedBatch) -> bool:
        """Return whether ``batch`` is small enough to gain from being recorded."""
        return len(batch) <= MOST_RECORDED_TOKENS

    def clip_grad_norm(self, max_norm: float) -> Tensor:
        """Scale all gradients so that their norm is at most ``max_norm``; return the norm before."""
        norm: Tensor = torch.linalg.vector_norm(self._grads)
        self._grads.mul_((max_norm / (norm + 1e-6)).clamp_(max=1.0))  # as torch.nn.utils.clip_grad_norm_ does
        return norm

    def zero_grad(self) -> None:
        self._grads.zero_()

    def run(self, batch: PackedBatch, loss_grad: float) -> Tensor | AnswerPass:
        """Return what the model gives for ``batch``, in float64, and add ``loss_grad`` times its loss's gradient."""
        row = to_tensors(batch, torch.device("cpu")).rounded_up(TOKENS, PREDICTIONS)
        shape = row.input_ids.shape[1], *(len(x) for x in (row.rows, row.targets))
        if row.others:
            shape = *shape, 1
        if row.answers is not None:
            shape = *shape, len(row.answers.prediction), len(row.answers.liked)
        self._loss_grad.fill_(loss_grad)
        recording = self._recording(shape, row)
        if recording is None:
            result = self._pass(row.to(self._device))
        else:
            for place, tensor in zip(recording.row.tensors, row.tensors, strict=True):
                place.copy_(tensor)
            recording.graph.replay()
            result = recording.result
        if isinstance(result, Tensor):
            return _copied(result)
        count = len(batch.answers.lengths) if batch.answers is not None else None
        return AnswerPass(_copied(result.loss), _copied(result.sums[:count]))

    def _recording(self, shape: tuple[int, ...], row: PackedTensors) -> _Recording | None:
        """Return the recording for ``shape``, which is made when a ``row`` has it for the second time."""
        if not self._records:
            return None
        if shape not in self._recordings:
            if len(self._recordings) < MOST_RECORDINGS and shape[0] <= self._most_tokens:
                self._recordings[shape] = None
            return None
        if self._recordings[shape] is None:
            self._recordings[shape] = self._record(row)
        return self._recordings[shape]

    def _pass(self, row: PackedTensors) -> Tensor | AnswerPass:
        with torch.random.fork_rng(devices=[]):  # the host draws the offsets of dropout masks
            torch.default_generator.manual_seed(row.input_ids.shape[1])
            result: Tensor | AnswerPass = self._model(row)
            loss = result.loss if isinstance(result, AnswerPass) else result
            torch.autograd.backward(loss, self._loss_grad.to(loss.dtype))
        return loss.detach() if isinstance(result, Tensor) else AnswerPass(loss.detach(), result.sums)

    def _record(self, row: PackedTensors) -> _Recording | None:
        row, graph = row.to(self._device), torch.cuda.CUDAGraph()
        try:
            with torch.cuda.stream(torch.cuda.current_stream()), torch.cuda.graph(graph, pool=self._pool):
                result = self._pass(row)
        except RuntimeError as error:  # the pass does something that cannot be recorded; nothing has run
            warnings.warn(say("model.cuda_graph.cannot_record", reason=first_line(error)), RuntimeWarning, stacklevel=2)
            _FAILED.append(graph)
            self._recordings, self._records = {}, False
            _release_generator(self._device)
            return None
        self._pool = graph.pool()  # graphs share it, because no two run at once
        return _Recording(row, result, graph)


def _copied(output: Tensor) -> Tensor:
    """Return ``output`` in float64, in memory that no replay overwrites."""
    return output.to(torch.float64, copy=True)


def can_record(model: nn.Module) -> bool:
    """Return whether ``model`` is on one GPU and its trained parameters are in float32."""
    parameters = list(model.parameters())
    devices = {parameter.device for parameter in parameters}
    exact = all(parameter.dtype == torch.float32 for parameter in parameters if parameter.requires_grad)
    return len(devices) == 1 and devices.pop().type == "cuda" and exact


def _release_generator(device: torch.device) -> None:
    """Let the generator of ``device`` draw again after a failed recording, from the state before it.

    In torch 2.11 a failed recording leaves the generator's state in recording mode, so the generator gets a new one.
    Earlier recordings refer to the old state, which seeding no longer reaches: they must not be replayed.
    """
    generator = torch.cuda.default_generators[device.index]
    generator.graphsafe_set_state(generator.clone_state())
