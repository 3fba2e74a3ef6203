"""The scan over chunks that a linear recurrence of matrices needs, on a prefix tree, forward and back.

The state after token i, S_i (D, V) for each head, follows from that before it, S_p, by

    S_i = exp(g_i) S_p + k_i u_iᵀ        o_i = S_iᵀ q_i

where g_i ≤ 0 is the logarithm of a decay. In a chunk that continues from S, with G_i the sum of g over the tokens of
the chunk on the path to i,

    o_i = exp(G_i) Sᵀ q_i + Σ over j on the path of A_ij u_j        A_ij = exp(G_i - G_j) q_i · k_j

(Dao and Gu, arXiv 2405.21060). In the delta rule (Yang et al., arXiv 2412.06464) u depends on the state itself:

    u_i = β_i (v_i - exp(g_i) S_pᵀ k_i)

    hence    (1 + L) u = r = β (v - exp(G) Sᵀ k)        L_ij = β_i exp(G_i - G_j) k_i · k_j

with L strictly lower triangular in the chunk's order. Its inverse does not depend on S. For backward, o, u, the inverse
and the states between chunks are kept; the other products of a chunk are computed again (:mod:`.scan_backward`).

Cost: C² + 2·D·V products of vectors a chunk and head, for the delta rule twice that, and log C steps for the inverse.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from weitune.model.fast.recurrent.chunks import Chunks
from weitune.model.fast.recurrent.inverse import unit_lower_inverse
from weitune.model.fast.recurrent.places import Places, ScanMemory, ScanRows, continued
from weitune.model.fast.recurrent.scan_backward import scan_backward


def gated_delta_rule(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    decay: Tensor,
    beta: Tensor,
    chunks: Chunks,
    memory: ScanMemory | None = None,
) -> Tensor:
    """Return what each token reads by the gated delta rule, (T, H, V).

    ``query`` and ``key`` are (T, H, D), ``value`` is (T, H, V), ``decay``, the logarithms, and ``beta`` are (T, H). An
    empty ``memory`` is filled; with one that the same inputs have filled, only the backward pass is left to do.
    """
    return _scan(ScanRows(query, key, value, decay, beta), chunks, memory)


def state_space(
    query: Tensor, key: Tensor, value: Tensor, decay: Tensor, chunks: Chunks, memory: ScanMemory | None = None
) -> Tensor:
    """Return what each token reads of a state to which every token adds its ``key`` · ``value``, (T, H, V).

    The rest is as in :func:`gated_delta_rule`. In Mamba-2 the inputs are C, B, x·dt and A·dt.
    """
    return _scan(ScanRows(query, key, value, decay, None), chunks, memory)


def _scan(rows: ScanRows, chunks: Chunks, memory: ScanMemory | None) -> Tensor:
    read: Tensor = _Scan.apply(*rows, chunks, ScanMemory() if memory is None else memory)  # type: ignore[no-untyped-call]
    return read


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        *rows, chunks, memory = inputs
        ctx.save_for_backward(*rows)
        ctx.chunks, ctx.memory = chunks, memory
        if memory.read is None:
            memory.read = _forward(ScanRows(*rows), chunks, memory)
        read: Tensor = memory.read.view_as(memory.read)
        return read

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return *scan_backward(grads[0], ScanRows(*ctx.saved_tensors), ctx.chunks, ctx.memory), None, None


def _forward(rows: ScanRows, chunks: Chunks, memory: ScanMemory) -> Tensor:
    """Compute the chunks level after level and fill ``memory``, but for what the tokens read, which is returned."""
    places, split, size = Places.of(rows, chunks), chunks.split, chunks.shape[1]
    wanted = rows.value
    if places.beta is not None and rows.beta is not None:
        wanted = wanted * rows.beta[..., None]
        memory.inverse = unit_lower_inverse(places.overlaps().mul_(places.beta))
    inverses = None if memory.inverse is None else split(memory.inverse)
    right = chunks.gather(wanted)
    read = torch.empty_like(right)
    memory.written = right if inverses is None else torch.empty_like(right)
    values, written, outputs = split(right), split(memory.written), split(read)
    keys, attends, readers = map(split, (places.key, places.attends(), places.readers()))
    between, since = split(places.between), split(places.since)
    left: Tensor | None = None
    for at, level in enumerate(chunks.levels):
        memory.states.append(left)
        state = continued(left, level)
        of_state = None if state is None else readers[at] @ state
        if inverses is not None:
            remaining = values[at] if of_state is None else values[at] - of_state[:, :, size:]
            torch.matmul(inverses[at], remaining, out=written[at])
        torch.matmul(attends[at], written[at], out=outputs[at])
        if of_state is not None:
            outputs[at].add_(of_state[:, :, :size])
        if level.leaving is not None:
            chunk, place = level.leaving
            path = between[at][chunk, :, place][..., None]  # the decays from each place on the path to the token
            left = (keys[at][chunk] * path).transpose(-1, -2) @ written[at][chunk]
            if state is not None:
                left += state[chunk] * since[at][chunk, :, place][..., None]
    return chunks.scatter(read)
