"""One frozen matrix per expert, and the adapters on them: y = (W_e + s B_e A_e) x + b_e.

PEFT keeps the A and the B of all experts in one matrix each (:mod:`weitune.model.lora.experts`). Here they are called
by what they do to a row x: it is multiplied by ``first`` (R, K), then by ``second`` (N, R).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weitune.model.fast.experts.rows import Piece, SortedRows


@dataclass(frozen=True, slots=True, eq=False)
class ExpertAdapter:
    """LoRA on a parameter (E, ., .), as PEFT lays it out."""

    a: nn.Parameter
    """(E·R, ·) row e·R + r is row r of A_e"""
    b: nn.Parameter
    """(·, E·R) column r·E + e is column r of B_e"""
    scale: float
    experts: int
    swapped: bool
    """Whether B_e is multiplied by the row first: PEFT takes inputs for outputs where a transposed parameter does not
    say that it is one (Llama 4)."""

    @property
    def rank(self) -> int:
        return self.a.shape[0] // self.experts

    def factors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return ``first`` (E, R, K) and ``second`` (E, R, N), which has the scale, in ``dtype``."""
        a = self.a.detach().view(self.experts, self.rank, -1)
        b = self.b.detach().view(-1, self.rank, self.experts).permute(2, 1, 0)
        first, second = (b, a) if self.swapped else (a, b)
        return first.to(dtype).contiguous(), (second * self.scale).to(dtype).contiguous()

    def grads(self, first: Tensor, second: Tensor) -> list[Tensor]:
        """Return the gradients of A and B from those of :meth:`factors`."""
        second = second * self.scale
        a, b = (second, first) if self.swapped else (first, second)
        grad_b = b.permute(2, 1, 0).reshape(self.b.shape)
        return [a.reshape(self.a.shape).to(self.a.dtype), grad_b.to(self.b.dtype)]

    def update(self, expert: int) -> Tensor:
        """Return s B_e A_e of one expert as rows are multiplied by it (K, N), differentiable."""
        a = self.a.view(self.experts, self.rank, -1)[expert]
        b = self.b.view(-1, self.rank, self.experts)[:, :, expert]
        product = self.scale * b @ a
        return product if self.swapped else product.T


@dataclass(frozen=True, slots=True, eq=False)
class ExpertMatrices:
    """A parameter of a module of experts: a matrix of N outputs and K inputs for each of E."""

    module: Any
    """The module that has the parameter: sharding may exchange it"""
    name: str
    transposed: bool
    """Whether it is (E, K, N), not (E, N, K)"""
    biased: bool
    """Whether there is a bias (E, N), whose name ends with ``_bias``"""
    adapter: ExpertAdapter | None = None

    @property
    def weight(self) -> Tensor:
        weight: Tensor = getattr(self.module, self.name)
        return weight

    @property
    def bias(self) -> Tensor | None:
        return getattr(self.module, f"{self.name}_bias") if self.biased else None

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [self.adapter.a, self.adapter.b] if self.adapter else []

    def reference(self, expert: int, x: Tensor) -> Tensor:
        """Return the outputs (n, N) of one expert for ``x`` (n, K), differentiable by autograd."""
        weight = self.weight[expert].to(x.dtype)
        weight = weight if self.transposed else weight.T
        if self.adapter is not None:
            weight = weight + self.adapter.update(expert).to(x.dtype)
        product: Tensor = x @ weight
        return product if self.bias is None else product + self.bias[expert].to(x.dtype)


@dataclass(slots=True, eq=False)
class _Factors:
    """The adapters of all experts in one pass, and the sums of their gradients."""

    first: Tensor
    """(E, R, K)"""
    second: Tensor
    """(E, R, N), with the scale"""
    grad_first: Tensor
    grad_second: Tensor

    @classmethod
    def begin(cls, adapter: ExpertAdapter, dtype: torch.dtype, *, rank_unit: int) -> _Factors:
        missing = -adapter.rank % rank_unit
        first, second = (F.pad(each, (0, 0, 0, missing)) if missing else each for each in adapter.factors(dtype))
        return cls(first, second, torch.zeros_like(first), torch.zeros_like(second))


class MatricesPass:
    """The matrices of experts in one forward or one backward pass, and the gradients of their adapters."""

    def __init__(self, matrices: ExpertMatrices, rows: SortedRows, dtype: torch.dtype) -> None:
        self._matrices, self._dtype, adapter = matrices, dtype, matrices.adapter
        self._factors = _Factors.begin(adapter, dtype, rank_unit=rows.rank_unit) if adapter else None

    def forward(self, piece: Piece, x: Tensor, weights: Tensor | None = None) -> Tensor:
        """Return the outputs (n, N) for the rows ``x`` (n, K) of ``piece``.

        ``weights`` (n, 1) are what ``x`` was multiplied by and the bias is not.
        """
        matrices, factors = self._matrices, self._factors
        output = piece.times(x, matrices.weight) if matrices.transposed else piece.linear(x, matrices.weight)
        bias = self._bias(piece)
        if bias is not None:
            output = output.add_(bias) if weights is None else output.addcmul_(bias, weights)
        if factors is not None:
            output = output.add_(piece.low(piece.low(x, factors.first.mT), factors.second))
        return output

    def backward(self, piece: Piece, grad: Tensor, x: Tensor) -> Tensor:
        """Return the gradient of ``x`` (n, K) from ``grad`` (n, N), and add up those of the adapters."""
        matrices, factors = self._matrices, self._factors
        grad_x = piece.linear(grad, matrices.weight) if matrices.transposed else piece.times(grad, matrices.weight)
        if factors is not None:
            grad_low = piece.low(grad, factors.second.mT)
            grad_x = grad_x.add_(piece.low(grad_low, factors.first))
            piece.write_sums(factors.grad_first, grad_low, x)
            piece.write_sums(factors.grad_second, piece.low(x, factors.first.mT), grad)
        return grad_x

    def grad_of_weights(self, piece: Piece, grad: Tensor) -> Tensor | None:
        """Return what the bias adds to the gradient of the weights (n,) that multiply it, if there is one."""
        bias = self._bias(piece)
        return None if bias is None else bias.mul_(grad).sum(1)

    def _bias(self, piece: Piece) -> Tensor | None:
        """Return the bias (n, N) of each row's expert, if there is one."""
        bias = self._matrices.bias
        return None if bias is None else bias[piece.experts].to(self._dtype)

    def adapter_grads(self) -> list[Tensor]:
        """Return the gradients of A and B, if there are adapters."""
        adapter, factors = self._matrices.adapter, self._factors
        if adapter is None or factors is None:
            return []
        return adapter.grads(factors.grad_first[:, : adapter.rank], factors.grad_second[:, : adapter.rank])


def read_adapters(
    layer: Any, gate_up: ExpertMatrices, down: ExpertMatrices
) -> tuple[ExpertMatrices, ExpertMatrices] | None:
    """Return the matrices with the adapters that ``layer`` has: the module of the experts, perhaps in PEFT's layers.

    None if there is an adapter of another kind.
    """
    adapters: dict[str, ExpertAdapter] = {}
    while hasattr(layer, "base_layer"):
        plain = hasattr(layer, "parameter_name") and list(layer.lora_A) == layer.active_adapters == ["default"]
        if not plain or layer.merged or layer.parameter_name not in {gate_up.name, down.name}:
            return None
        matrices = gate_up if layer.parameter_name == gate_up.name else down
        swapped = matrices.transposed != bool(getattr(matrices.module, "is_transposed", False))
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        scale = float(layer.scaling["default"])
        adapters[matrices.name] = ExpertAdapter(a, b, scale, matrices.weight.shape[0], swapped)
        layer = layer.base_layer
    if layer is not gate_up.module:
        return None
    return replace(gate_up, adapter=adapters.get(gate_up.name)), replace(down, adapter=adapters.get(down.name))
