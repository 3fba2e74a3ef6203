"""The scan over chunks that a linear recurrence of matrices needs, on a prefix tree.

The state after token i, S_i (D, V) for each head, follows from that before it, S_p, by

    S_i = exp(g_i) S_p + k_i u_iᵀ        o_i = S_iᵀ q_i

where g_i ≤ 0 is the logarithm of a decay. In a chunk that continues from S, with G_i the sum of g over the tokens of
the chunk on the path to i,

    o_i = exp(G_i) Sᵀ q_i + Σ over j on the path of exp(G_i - G_j) (q_i · k_j) u_j

(Dao and Gu, arXiv 2405.21060). In the delta rule (Yang et al., arXiv 2412.06464) u depends on the state itself:

    u_i = β_i (v_i - exp(g_i) S_pᵀ k_i)

    hence    (1 + L) u = β (v - exp(G) Sᵀ k)        L_ij = β_i exp(G_i - G_j) k_i · k_j

with L strictly lower triangular in the chunk's order. Its inverse does not depend on S.

Cost: C² + 2·D·V products of vectors a chunk and head, for the delta rule twice that, and log C steps for the inverse.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from weitune.model.fast.recurrent.chunks import Chunks
from weitune.model.fast.recurrent.inverse import unit_lower_inverse

SMALLEST = -50.0
"""Decays below exp(SMALLEST) count as 0: products of them would be denormal numbers, which CPUs multiply slowly."""


@dataclass(frozen=True, slots=True, eq=False)
class Decays:
    """The decays of N chunks."""

    between: Tensor
    """(N, H, C, C) from place j to place i; 0 unless j is on the path to i"""
    since: Tensor
    """(N, H, C, 1) from the start of the chunk to each place"""

    @classmethod
    def of(cls, logs: Tensor, chunks: Chunks) -> Decays:
        """Return the decays for the logarithm of each token's, ``logs`` (T, H)."""
        seen = chunks.seen[:, None]
        total = seen.to(logs.dtype) @ chunks.gather(logs)[..., None]
        gap = total - total.transpose(-1, -2)  # may be large between branches, and is not needed there
        between = gap.masked_fill(~seen | (gap < SMALLEST), -torch.inf).exp()
        return cls(between, total.masked_fill(total < SMALLEST, -torch.inf).exp())


def gated_delta_rule(query: Tensor, key: Tensor, value: Tensor, decay: Tensor, beta: Tensor, chunks: Chunks) -> Tensor:
    """Return what each token reads by the gated delta rule, (T, H, V).

    ``query`` and ``key`` are (T, H, D), ``value`` is (T, H, V), ``decay``, the logarithms, and ``beta`` are (T, H).
    """
    decays = Decays.of(decay, chunks)
    query, key, value = chunks.gather(query), chunks.gather(key), chunks.gather(value)
    strength = chunks.gather(beta)[..., None]
    keys = key.transpose(-1, -2)
    inverse = unit_lower_inverse(key @ keys * decays.between * strength)
    written = value * strength
    return _scan(query @ keys, query, key, written, decays, chunks, (inverse, key * (strength * decays.since)))


def state_space(query: Tensor, key: Tensor, value: Tensor, decay: Tensor, chunks: Chunks) -> Tensor:
    """Return what each token reads of a state to which every token adds its ``key`` · ``value``, (T, H, V).

    The shapes are those of :func:`gated_delta_rule`. In Mamba-2 they are C, B, x·dt and A·dt.
    """
    decays = Decays.of(decay, chunks)
    query, key, value = chunks.gather(query), chunks.gather(key), chunks.gather(value)
    return _scan(query @ key.transpose(-1, -2), query, key, value, decays, chunks, None)


def _scan(
    products: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    decays: Decays,
    chunks: Chunks,
    correction: tuple[Tensor, Tensor] | None,
) -> Tensor:
    """Return what the tokens read, from what is at the places of all chunks, level after level.

    ``products`` (N, H, C, C) are those of queries and keys. A state is corrected by the ``correction`` of the delta
    rule: the inverse of 1 + L (N, H, C, C), and what is read of the state (N, H, C, D).
    """
    split = chunks.split
    attends, reads = split(products * decays.between), split(query * decays.since)
    keys, values, between, since = split(key), split(value), split(decays.between), split(decays.since)
    inverses, corrections = map(split, correction) if correction else ((), ())
    outputs: list[Tensor] = []
    states: Tensor | None = None
    for at, level in enumerate(chunks.levels):
        state = None if states is None or level.states is None else states.index_select(0, level.states)
        written = values[at]
        if correction and state is not None:
            written = written - corrections[at] @ state
        if correction:
            written = inverses[at] @ written
        output = attends[at] @ written
        outputs.append(output if state is None else output + reads[at] @ state)
        if level.leaving is not None:
            chunk, place = level.leaving
            left = between[at][chunk, :, place][..., None]  # of each place on the path to the token
            states = (keys[at][chunk] * left).transpose(-1, -2) @ written[chunk]
            if state is not None:
                states = states + state[chunk] * since[at][chunk, :, place][..., None]
    return chunks.scatter(torch.cat(outputs))
