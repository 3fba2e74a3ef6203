"""The experts that a router chooses (Shazeer et al., arXiv 1701.06538), forward and backward.

    output = Σ over chosen experts of weight · down_e(gate(gate_up_e(x)))

A token's rows are multiplied by the weights before down, where they are narrowest. The gradient of a weight follows
from that of the inner values, so no expert's output is kept: gate and up of T·k rows are, unless memory is short.

Cost: the products of the chosen experts, twice. Memory beside that: what the experts of one piece need.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from weitune.model.fast.experts.gate import Gate, halves
from weitune.model.fast.experts.matrices import ExpertMatrices, MatricesPass
from weitune.model.fast.experts.router import Router
from weitune.model.fast.experts.rows import Piece, SortedRows, can_group, sort_rows
from weitune.model.fast.norm import Norm
from weitune.model.fast.parts import BlockContext


@dataclass(frozen=True, slots=True, eq=False)
class RoutedExperts:
    """The experts that a router chooses."""

    router: Router
    gate_up: ExpertMatrices
    """C inputs, 2·I outputs"""
    down: ExpertMatrices
    """I inputs, C outputs"""
    gate: Gate
    interleaved: bool
    """Whether gate and up lie by turns in the outputs of ``gate_up``"""
    weighs_input: bool
    """Whether a token is multiplied by its weight before its expert, as in Llama 4, not after it"""
    norm: Norm | None = None
    """Between x and the experts, where the router reads x itself, as in Gemma 4"""

    @property
    def parameters(self) -> list[nn.Parameter]:
        return self.gate_up.parameters + self.down.parameters

    def can_group(self, device: torch.device, dtype: torch.dtype) -> bool:
        """Return whether all experts are multiplied at once there; otherwise the host counts the rows of each."""
        return can_group(device, dtype, (*self.gate_up.weight.shape[1:], *self.down.weight.shape[1:]))

    def begin(self, context: BlockContext) -> RoutedPass:
        return RoutedPass(self, context.keep_feed_forward)

    def reference(self, x: Tensor, _: BlockContext | None = None) -> Tensor:
        weights, index = self.router.route(x)
        x = self.norm.reference(x) if self.norm else x
        output = torch.zeros_like(x)
        for expert in index.unique().tolist():
            tokens, choices = torch.where(index == expert)
            weight = weights[tokens, choices, None]
            given = x[tokens] * weight if self.weighs_input else x[tokens]
            inner = self.gate.inner(*halves(self.gate_up.reference(expert, given), self.interleaved))
            values = self.down.reference(expert, inner)
            output = output.index_add(0, tokens, values if self.weighs_input else values * weight)
        return output


@dataclass(slots=True, eq=False)
class SavedExperts:
    """What forward keeps for backward besides the input."""

    rows: SortedRows
    weights: Tensor
    """(S,)"""
    gate_up: list[Tensor]
    """(n, 2·I) piece by piece; empty if they are to be computed again"""


@dataclass(frozen=True, slots=True, eq=False)
class RoutedPass:
    """The routed experts in one pass."""

    mixer: RoutedExperts
    keep_inner: bool
    """keep gate and up for backward"""

    def forward(self, x: Tensor, base: Tensor | None, rows: Tensor | None = None) -> tuple[Tensor, SavedExperts]:
        mixer = self.mixer
        with torch.no_grad():
            weights, index = mixer.router.route(x)
        x = mixer.norm.forward(x)[0] if mixer.norm else x
        grouped = mixer.can_group(x.device, x.dtype)
        sorted_rows = sort_rows(index, mixer.router.experts, x.dtype, grouped=grouped)
        saved = SavedExperts(sorted_rows, sorted_rows.sort(weights), [])
        gate_up_pass, down_pass = (MatricesPass(each, sorted_rows, x.dtype) for each in (mixer.gate_up, mixer.down))
        output = torch.zeros_like(x) if base is None else base.clone()
        for piece in sorted_rows.pieces:
            weight = saved.weights[piece.rows, None]
            gate_up = gate_up_pass.forward(piece, self._given(piece, x, weight))
            inner = mixer.gate.inner(*halves(gate_up, mixer.interleaved))
            if mixer.weighs_input:
                piece.add_to(output, down_pass.forward(piece, inner))
            else:
                piece.add_to(output, down_pass.forward(piece, inner.mul_(weight), weight))
            if self.keep_inner:
                saved.gate_up.append(gate_up)
        return output, saved

    def backward(
        self, grad: Tensor, x: Tensor, saved: SavedExperts, *, retain: bool, needs_input: bool
    ) -> tuple[Tensor | None, list[Tensor]]:
        """Without ``retain`` the inner values in ``saved`` are overwritten, and freed one after another."""
        mixer = self.mixer
        if not needs_input and not mixer.parameters:
            return None, []
        gate_up_pass, down_pass = (MatricesPass(each, saved.rows, x.dtype) for each in (mixer.gate_up, mixer.down))
        read, statistics = mixer.norm.forward(x) if mixer.norm else (x, None)
        grad_x, grad_weights = torch.zeros_like(x), torch.zeros_like(saved.weights)
        kept = saved.gate_up[::-1]
        if not retain:
            saved.gate_up = []
        for piece in saved.rows.pieces:
            weight, grad_rows = saved.weights[piece.rows, None], grad[piece.tokens]
            given = self._given(piece, read, weight)
            gate_up = kept.pop() if kept else gate_up_pass.forward(piece, given)
            gate_up = gate_up.clone() if retain else gate_up
            of_weights = self._through_down(piece, gate_up, grad_rows, weight, down_pass)
            grad_given = gate_up_pass.backward(piece, gate_up, given)
            if mixer.weighs_input:
                of_weights = (grad_given * read[piece.tokens]).sum(1)
                grad_given.mul_(weight)
            grad_weights[piece.rows] = of_weights
            piece.add_to(grad_x, grad_given)
        if needs_input:
            grad_x = mixer.norm.backward(grad_x, x, statistics) if mixer.norm else grad_x
            grad_x += mixer.router.grad(saved.rows.unsort(grad_weights).view(len(x), -1), x)
        return grad_x if needs_input else None, gate_up_pass.adapter_grads() + down_pass.adapter_grads()

    def _given(self, piece: Piece, x: Tensor, weight: Tensor) -> Tensor:
        """Return what the experts of ``piece`` are given, (n, C)."""
        given = x[piece.tokens]
        return given.mul_(weight) if self.mixer.weighs_input else given

    def _through_down(self, piece: Piece, gate_up: Tensor, grad: Tensor, weight: Tensor, down: MatricesPass) -> Tensor:
        """Overwrite ``gate_up`` (n, 2·I) with its gradient, from ``grad`` (n, C). Return that of the weights (n,)."""
        mixer = self.mixer
        gate, up = halves(gate_up, mixer.interleaved)
        inner = mixer.gate.inner(gate, up)
        if mixer.weighs_input:
            grad_inner, grad_weights = down.backward(piece, grad, inner), weight
        else:
            grad_inner = down.backward(piece, grad, inner * weight)
            grad_weights = (grad_inner * inner).sum(1)
            of_bias = down.grad_of_weights(piece, grad)
            grad_weights = grad_weights if of_bias is None else grad_weights.add_(of_bias)
            grad_inner.mul_(weight)
        mixer.gate.write_grads(grad_inner, gate, up)
        return grad_weights
