"""A group of projections in one pass: its dropout mask, and DoRA (Liu et al., arXiv 2402.09353) in plain LoRA's terms.

    y = W x + b + (c - 1)∘W x' + s·c∘B A x'       c = m / n,  n = ‖W + s·B A‖ by rows, taken as constant
    dm = Σ over tokens of dy∘(W x' + s·B A x') / n

x' is x after dropout. Where nothing is dropped, that is LoRA on c∘W with c∘B; where something is, W is wanted of x and
of x'. The gradient of m costs the product W x' once more.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from weitune.model.fast.dropout import DropoutString
from weitune.model.fast.matmul import add_linear, add_times, linear
from weitune.model.fast.projection import Factors, LoraGroup, Projection
from weitune.model.storage.weight_storage import ALL

PIECE_ELEMENTS = 1 << 24, 1 << 19
"""Elements of a matrix whose rows are measured at once, on an accelerator and on a CPU."""


@dataclass(frozen=True, slots=True, eq=False)
class GroupPass:
    """What backward needs to know of a group's forward: the mask by its offset, so that it can be made again."""

    group: LoraGroup
    """As it computes in this pass: with c in the scale of B, and in that of W where nothing is dropped."""
    dropout: DropoutString | None
    offset: int
    beside: list[Projection | None]
    """Of each projection (c - 1)∘W for x', with DoRA and where something is dropped."""
    magnitudes: list[Magnitude | None]
    """Of each projection, with DoRA."""
    _made: list[Factors] = field(default_factory=list)

    @classmethod
    def draw(cls, group: LoraGroup, dropout: DropoutString | None) -> GroupPass:
        """Begin a pass: take the next piece of ``dropout``, if this group drops anything."""
        dropout = dropout if group.adapted and group.rate else None
        offset = dropout.draw_offset() if dropout else 0
        magnitudes = [Magnitude.of(p) for p in group.projections]
        beside: list[Projection | None] = [None] * len(magnitudes)
        if not any(magnitudes):
            return cls(group, dropout, offset, beside, magnitudes)
        now = list(group.projections)
        for index, (p, found) in enumerate(zip(group.projections, magnitudes, strict=True)):
            if found is not None:
                stretch = found.ratio
                now[index] = replace(p, scale=p.scale * stretch[:, None], stretch=None if dropout else stretch)
                beside[index] = replace(p, stretch=(stretch - 1) * dropout.scale) if dropout else None
        return cls(LoraGroup(now), dropout, offset, beside, magnitudes)

    @property
    def kept(self) -> float:
        """Dropout's factor for what it kept."""
        return self.dropout.scale if self.dropout else 1.0

    def mask(self, rows: int) -> Tensor | None:
        """Return the mask (rows, K) of zeros and ones, if anything is dropped."""
        return self.dropout.mask(self.offset, (rows, self.group.inputs)) if self.dropout else None

    def drop(self, x: Tensor) -> Tensor:
        """Return ``x`` (T, K), masked, without the factor for what was kept."""
        mask = self.mask(len(x))
        return x if mask is None else x * mask

    def factors(self, like: Tensor) -> Factors | None:
        """Return the adapters' matrices in the format of ``like``: on a GPU those of forward, on a CPU made again."""
        if self._made:
            return self._made[0]
        factors = self.group.factors(like.dtype, self.kept)
        if factors is not None and like.is_cuda:
            self._made.append(factors)
        return factors

    def forward(self, x: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """Return the outputs of the group for ``x`` (T, K), and its low-rank states (T, sum of R)."""
        factors = self.factors(x)
        if factors is None:
            return self.group.frozen(x), None
        dropped = self.drop(x)
        low = dropped @ factors.a.T
        return factors.add_to(self.frozen(x, dropped), low), low

    def frozen(self, x: Tensor, dropped: Tensor, outputs: slice = ALL) -> list[Tensor]:
        """Return what the frozen matrices make of ``x`` (T, K) and of what dropout left of it."""
        found = self.group.frozen(x, outputs)
        self.add_frozen_of_dropped(found, dropped, outputs)
        return found

    def add_frozen_of_dropped(
        self, total: list[Tensor], dropped: Tensor, outputs: slice = ALL, inputs: slice = ALL
    ) -> None:
        """Add to each of ``total`` (T, N) what the frozen matrix beside makes of ``dropped`` (T, K), or of a part."""
        for p, output in zip(self.beside, total, strict=True):
            if p is not None:
                add_linear(output, dropped, p.weight(dropped.dtype, outputs, inputs))

    def backward(self, slopes: list[Tensor], low: Tensor | None, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the gradient of the input ``x``, and those of the adapters."""
        x_slope, factors = self.group.gradient_of_input(slopes), self.factors(x)
        if factors is None or low is None:
            return x_slope, []
        low_slope = factors.gradient_of_low(slopes)
        dropped_slope = low_slope @ factors.a
        self.add_gradient_of_dropped(dropped_slope, slopes)
        add_masked(x_slope, dropped_slope, self.mask(len(x)))
        return x_slope, self._adapters(slopes, low, low_slope, x)

    def backward_to_adapters(self, slopes: list[Tensor], low: Tensor | None, x: Tensor) -> list[Tensor]:
        """Return the gradients of the adapters alone."""
        factors = self.factors(x)
        return [] if factors is None or low is None else self._adapters(slopes, low, factors.gradient_of_low(slopes), x)

    def add_gradient_of_dropped(
        self, total: Tensor, slopes: list[Tensor], outputs: slice = ALL, inputs: slice = ALL
    ) -> None:
        """Add to ``total`` (T, K) the gradient of ``x'`` by way of the frozen matrices beside, from these outputs."""
        for p, slope in zip(self.beside, slopes, strict=True):
            if p is not None:
                add_times(total, slope, p.weight(slope.dtype, outputs, inputs))

    def _adapters(self, slopes: list[Tensor], low: Tensor, low_slope: Tensor, x: Tensor) -> list[Tensor]:
        found, dropped = AdapterGradients(self), self.drop(x)
        found.add_a(low_slope, dropped)
        found.add_b(low, slopes)
        found.add_magnitudes(dropped, slopes)
        return found.result()


@dataclass(frozen=True, slots=True, eq=False)
class Magnitude:
    """DoRA's m of one projection in a pass."""

    frozen: Projection
    """Without c."""
    norm: Tensor
    """n (N,), in the adapter's format"""
    ratio: Tensor
    """c (N,)"""

    @classmethod
    def of(cls, p: Projection) -> Magnitude | None:
        """Measure the rows of W + s·B A as they are now, in the adapter's format; None without DoRA."""
        if p.magnitude is None or p.a is None or p.b is None:
            return None
        with torch.no_grad():
            a, b = p.a.detach(), p.b.detach()
            rows = max(1, PIECE_ELEMENTS[a.device.type == "cpu"] // a.shape[1])
            pieces = [slice(start, start + rows) for start in range(0, len(b), rows)]
            sums = (torch.addmm(p.weight(b.dtype, piece), b[piece], a, alpha=float(p.scale)) for piece in pieces)
            norm = torch.cat([torch.linalg.vector_norm(each, dim=1) for each in sums])
            return cls(p, norm, p.magnitude.detach() / norm)

    def slope(self, products: Tensor, b_slope: Tensor, kept: float) -> Tensor:
        """Return the gradient of m from the sum over tokens of dy∘(W x'), and B's gradient (N, R) without factors."""
        if self.frozen.b is None:
            raise ValueError("a magnitude without an adapter")
        adapter = (self.frozen.b.detach().to(b_slope.dtype) * b_slope).sum(1).mul_(self.frozen.scale)
        return adapter.add_(products).mul_(kept).to(self.norm.dtype).div_(self.norm)


class AdapterGradients:
    """The gradients of a group's adapters, written whole or by slices of the columns of their inputs or outputs."""

    def __init__(self, run: GroupPass) -> None:
        """Begin with nothing."""
        self._run, self._group = run, run.group
        self._a: list[Tensor] = []
        self._b: list[list[Tensor]] = [[] for _ in run.group.projections]
        self._products: list[list[Tensor]] = [[] for _ in run.group.projections]

    def add_a(self, low_slope: Tensor, dropped: Tensor) -> None:
        """Make the next columns of A's from the gradient of the low-rank states (T, sum of R) and masked inputs."""
        self._a.append(low_slope.T @ dropped)

    def add_b(self, low: Tensor, slopes: list[Tensor]) -> None:
        """Make the next rows of B's from the low-rank states (T, sum of R) and the gradients of these outputs."""
        for found, part, slope in zip(self._b, low.split(self._group.ranks, dim=1), slopes, strict=True):
            if part.shape[1]:
                found.append(part.T @ slope)

    def add_magnitudes(self, dropped: Tensor, slopes: list[Tensor], outputs: slice = ALL, inputs: slice = ALL) -> None:
        """Make the next rows of DoRA's magnitudes, or their part that these inputs make."""
        for found, magnitude, slope in zip(self._products, self._run.magnitudes, slopes, strict=True):
            if magnitude is not None:
                weight = magnitude.frozen.weight(slope.dtype, outputs, inputs)
                part = linear(dropped, weight).mul_(slope).sum(0)
                if inputs == ALL or not found:
                    found.append(part)
                else:
                    found[0].add_(part)

    def result(self) -> list[Tensor]:
        """Return the gradients in the order of the group's parameters."""
        found: list[Tensor] = []
        if not self._a:
            return found
        kept = self._run.kept
        a_slopes = _joined(self._a, dim=1).split(self._group.ranks, dim=0)
        for index, (p, a_slope) in enumerate(zip(self._group.projections, a_slopes, strict=True)):
            if p.a is None or p.b is None:
                continue
            b_slope = _joined(self._b[index], dim=1).T
            found += [a_slope.to(p.a.dtype), (b_slope * (p.scale * kept)).to(p.b.dtype)]
            if p.magnitude is not None and (magnitude := self._run.magnitudes[index]) is not None:
                slope = magnitude.slope(_joined(self._products[index], dim=0), b_slope, kept)
                found.append(slope.to(p.magnitude.dtype))
        return found


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)


def add_masked(total: Tensor, part: Tensor, mask: Tensor | None) -> Tensor:
    """Add ``part`` to ``total`` in place, where ``mask`` is 1."""
    return total.add_(part) if mask is None else total.addcmul_(part, mask)
