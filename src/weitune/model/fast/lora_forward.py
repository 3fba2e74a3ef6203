"""A group of projections in one pass: LoRA (arXiv 2106.09685) and DoRA (Liu et al., arXiv 2402.09353), few products.

    y = W x + b + (c - 1)∘W x' + s·c∘B A x'       c = m / n,  n = ‖W + s·B A‖ by rows, taken as constant
    dm = Σ over tokens of dy∘(W x' + s·B A x') / n

x' is x after dropout, and c = 1 without DoRA. With DoRA but without dropout, that is LoRA on c∘W with c∘B; with both, W
is multiplied by x and by x'. The gradient of m costs the product W x' once more.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from weitune.model.fast.dropout import DropoutDraws
from weitune.model.fast.matmul import add_linear, add_times, linear
from weitune.model.fast.projection import Factors, LoraGroup, Projection
from weitune.model.storage.weight_storage import ALL

ROW_NORM_ELEMENTS, ROW_NORM_ELEMENTS_CPU = 1 << 24, 1 << 19
"""Elements of a matrix whose row norms are computed at once, on an accelerator and on a CPU."""


def reference_lora(p: Projection, x: Tensor, mask: Tensor | None = None, dropout_scale: float = 1.0) -> Tensor:
    """Return the output of ``p`` for ``x`` (T, K): the specification of a :class:`GroupPass` with one projection.

    ``mask`` (T, K) is 1 where dropout keeps the adapter's input. Differentiable by autograd.
    """
    weight, bias = p.weight(x.dtype), p.bias(x.dtype)
    output: Tensor = F.linear(x, weight, bias)
    b, magnitude = p.b_rows, p.magnitude_rows
    if p.a is None or b is None:
        return output
    dropped = x if mask is None else x * mask * dropout_scale
    update: Tensor = p.scale * dropped @ p.a.T @ b.T
    if magnitude is None:
        return output + update
    c: Tensor = magnitude / (weight + p.scale * b @ p.a).norm(dim=1).detach()
    return output + (c - 1) * (dropped @ weight.T) + c * update


def reference_group(group: LoraGroup, x: Tensor, dropout: DropoutDraws | None) -> list[Tensor]:
    """Return the outputs of ``group`` for ``x`` (T, K) with the dropout that :meth:`GroupPass.begin` would draw."""
    mask, dropout = None, dropout if group.adapted and group.rate else None
    if dropout is not None:
        mask = dropout.mask(dropout.draw_offset(), (len(x), group.inputs))
    return [reference_lora(p, x, mask, dropout.scale if dropout else 1.0) for p in group.projections]


@dataclass(frozen=True, slots=True, eq=False)
class GroupPass:
    """A group in one pass. Its mask is identified by an offset, from which backward can make it again."""

    group: LoraGroup
    """with DoRA's c in the scale of B and, without dropout, in W"""
    dropout: DropoutDraws | None
    offset: int
    dropped_weights: list[Projection | None]
    """of each projection (c - 1)∘W for x', with DoRA and dropout"""
    magnitudes: list[Magnitude | None]
    """of each projection, with DoRA"""
    _factors: list[Factors | None] = field(default_factory=list)

    @classmethod
    def begin(cls, group: LoraGroup, dropout: DropoutDraws | None) -> GroupPass:
        """Begin a pass: draw the offset of the mask, if the group has dropout, and compute DoRA's row norms."""
        dropout = dropout if group.adapted and group.rate else None
        offset = dropout.draw_offset() if dropout else 0
        magnitudes = [Magnitude.measure(p) for p in group.projections]
        dropped_weights: list[Projection | None] = [None] * len(magnitudes)
        if not any(magnitudes):
            return cls(group, dropout, offset, dropped_weights, magnitudes)
        scaled = list(group.projections)
        for index, (p, magnitude) in enumerate(zip(group.projections, magnitudes, strict=True)):
            if magnitude is not None:
                c = magnitude.ratio
                scaled[index] = replace(p, scale=p.scale * c[:, None], row_factors=None if dropout else c)
                dropped_weights[index] = replace(p, row_factors=(c - 1) * dropout.scale) if dropout else None
        return cls(LoraGroup(scaled), dropout, offset, dropped_weights, magnitudes)

    @property
    def dropout_scale(self) -> float:
        """Dropout's factor for the inputs that it keeps."""
        return self.dropout.scale if self.dropout else 1.0

    def mask(self, rows: int) -> Tensor | None:
        """Return the mask (rows, K) of zeros and ones, or None without dropout."""
        return self.dropout.mask(self.offset, (rows, self.group.inputs)) if self.dropout else None

    def drop(self, x: Tensor) -> Tensor:
        """Return ``x`` (T, K), masked, but not multiplied by :attr:`dropout_scale`."""
        mask = self.mask(len(x))
        return x if mask is None else x * mask

    def factors(self, like: Tensor) -> Factors | None:
        """Return the adapters' matrices in the dtype of ``like``, which are made once in a pass."""
        if not self._factors:
            self._factors.append(self.group.factors(like.dtype, self.dropout_scale))
        return self._factors[0]

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """Return the outputs of the group for ``x`` (T, K), and its low-rank states (T, sum of R)."""
        factors = self.factors(x)
        if factors is None:
            return self.group.frozen(x), None
        dropped = self.drop(x)
        low = dropped @ factors.a.T
        return factors.add_to(self.frozen(x, dropped), low), low

    def frozen(self, x: Tensor, dropped: Tensor, outputs: slice = ALL) -> list[Tensor]:
        """Return the products of the frozen matrices with ``x`` and, with DoRA, with ``dropped``, both (T, K)."""
        products = self.group.frozen(x, outputs)
        self.add_frozen_of_dropped(products, dropped, outputs)
        return products

    def add_frozen_of_dropped(
        self, total: list[Tensor], dropped: Tensor, outputs: slice = ALL, inputs: slice = ALL
    ) -> None:
        """Add to each of ``total`` (T, N) the product of (c - 1)∘W with ``dropped`` (T, K), or with some columns."""
        for p, output in zip(self.dropped_weights, total, strict=True):
            if p is not None:
                add_linear(output, dropped, p.weight(dropped.dtype, outputs, inputs))

    def backward(self, grads: list[Tensor], low: Tensor | None, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the gradient of the input ``x``, and those of the adapters, from the gradients of the outputs."""
        grad_x, factors = grads[0].new_zeros(len(x), self.group.inputs), self.factors(x)
        grad_x = self.group.add_grad_of_input(grad_x, grads)
        if factors is None or low is None:
            return grad_x, []
        grad_low = factors.grad_of_low(grads)
        grad_dropped = grad_low @ factors.a
        self.add_grad_of_dropped(grad_dropped, grads)
        add_masked(grad_x, grad_dropped, self.mask(len(x)))
        return grad_x, self._adapter_grads(grads, low, grad_low, x)

    def backward_to_adapters(self, grads: list[Tensor], low: Tensor | None, x: Tensor) -> list[Tensor]:
        factors = self.factors(x)
        if factors is None or low is None:
            return []
        return self._adapter_grads(grads, low, factors.grad_of_low(grads), x)

    def add_grad_of_dropped(
        self, total: Tensor, grads: list[Tensor], outputs: slice = ALL, inputs: slice = ALL
    ) -> None:
        """Add to ``total`` (T, K) the part of the gradient of x' that goes through (c - 1)∘W, or some columns of it."""
        for p, grad in zip(self.dropped_weights, grads, strict=True):
            if p is not None:
                add_times(total, grad, p.weight(grad.dtype, outputs, inputs))

    def _adapter_grads(self, grads: list[Tensor], low: Tensor, grad_low: Tensor, x: Tensor) -> list[Tensor]:
        adapters, dropped = AdapterGrads(self), self.drop(x)
        adapters.add_a(grad_low, dropped)
        adapters.add_b(low, grads)
        adapters.add_magnitudes(dropped, grads)
        return adapters.result()


@dataclass(frozen=True, slots=True, eq=False)
class Magnitude:
    """DoRA's m of one projection in a pass."""

    frozen: Projection
    """without c"""
    norm: Tensor
    """(N,) n, in the adapter's dtype"""
    ratio: Tensor
    """(N,) c"""

    @classmethod
    def measure(cls, p: Projection) -> Magnitude | None:
        """Compute the norms of the rows of W + s·B A in the adapter's dtype; None without DoRA."""
        b, magnitude = p.b_rows, p.magnitude_rows
        if magnitude is None or p.a is None or b is None:
            return None
        with torch.no_grad():
            a, b = p.a.detach(), b.detach()
            elements = ROW_NORM_ELEMENTS_CPU if a.device.type == "cpu" else ROW_NORM_ELEMENTS
            rows = max(1, elements // a.shape[1])
            pieces = [slice(start, start + rows) for start in range(0, len(b), rows)]
            sums = (torch.addmm(p.weight(b.dtype, piece), b[piece], a, alpha=float(p.scale)) for piece in pieces)
            norm = torch.cat([torch.linalg.vector_norm(each, dim=1) for each in sums])
            return cls(p, norm, magnitude.detach() / norm)

    def grad(self, products: Tensor, grad_b: Tensor, dropout_scale: float) -> Tensor:
        """Return the gradient of m from the sum over tokens of dy∘(W x') and from B's gradient (N, R) without factors.

        Neither contains ``dropout_scale`` yet.
        """
        b = self.frozen.b_rows
        assert b is not None  # noqa: S101  (measure sees to it)
        adapter = (b.detach().to(grad_b.dtype) * grad_b).sum(1).mul_(self.frozen.scale)
        return adapter.add_(products).mul_(dropout_scale).to(self.norm.dtype).div_(self.norm)


class AdapterGrads:
    """The gradients of a group's adapters, collected at once or by slices of the columns of inputs or outputs."""

    def __init__(self, group_pass: GroupPass) -> None:
        self._pass, self._group = group_pass, group_pass.group
        self._a: list[Tensor] = []
        self._b: list[list[Tensor]] = [[] for _ in self._group.projections]
        self._products: list[list[Tensor]] = [[] for _ in self._group.projections]

    def add_a(self, grad_low: Tensor, dropped: Tensor) -> None:
        """Add columns of A's gradient, from that of the low-rank states (T, sum of R) and the masked inputs (T, K)."""
        self._a.append(grad_low.T @ dropped)

    def add_b(self, low: Tensor, grads: list[Tensor]) -> None:
        """Add rows of B's gradient, from the low-rank states (T, sum of R) and the gradients of the outputs (T, N)."""
        for rows, part, grad in zip(self._b, low.split(self._group.ranks, dim=1), grads, strict=True):
            if part.shape[1]:
                rows.append(part.T @ grad)

    def add_magnitudes(self, dropped: Tensor, grads: list[Tensor], outputs: slice = ALL, inputs: slice = ALL) -> None:
        """Add rows of the gradient of DoRA's m, or the part of all rows that these columns of the inputs give."""
        for rows, magnitude, grad in zip(self._products, self._pass.magnitudes, grads, strict=True):
            if magnitude is not None:
                weight = magnitude.frozen.weight(grad.dtype, outputs, inputs)
                part = linear(dropped, weight).mul_(grad).sum(0)
                if inputs == ALL or not rows:
                    rows.append(part)
                else:
                    rows[0].add_(part)

    def result(self) -> list[Tensor]:
        """Return the gradients in the order of the group's parameters."""
        if not self._a:
            return []
        result: dict[nn.Parameter, list[Tensor]] = defaultdict(list)
        scale = self._pass.dropout_scale
        grads_a = _joined(self._a, dim=1).split(self._group.ranks, dim=0)
        for index, (p, grad_a) in enumerate(zip(self._group.projections, grads_a, strict=True)):
            if p.a is None or p.b is None:
                continue
            grad_b = _joined(self._b[index], dim=1).T
            result[p.a].append(grad_a.to(p.a.dtype))
            result[p.b].append((grad_b * (p.scale * scale)).to(p.b.dtype))
            if p.magnitude is not None and (magnitude := self._pass.magnitudes[index]) is not None:
                grad = magnitude.grad(_joined(self._products[index], dim=0), grad_b, scale)
                result[p.magnitude].append(grad.to(p.magnitude.dtype))
        return [_of_parts(parts, parameter.shape) for parameter, parts in result.items()]


def _of_parts(parts: list[Tensor], shape: torch.Size) -> Tensor:
    """Return the gradient of a parameter of ``shape`` from those that fused projections give, of all rows or some."""
    if len(parts) == 1:
        return parts[0]
    return torch.stack(parts).sum(0) if parts[0].shape == shape else torch.cat(parts)


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)


def add_masked(total: Tensor, part: Tensor, mask: Tensor | None) -> Tensor:
    """Add ``part`` to ``total`` in place, where ``mask`` is 1."""
    return total.add_(part) if mask is None else total.addcmul_(part, mask)
