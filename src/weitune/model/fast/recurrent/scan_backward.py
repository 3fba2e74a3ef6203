"""The gradients of a scan: :mod:`.scan` read backwards, with its letters.

A state's gradient comes from the chunks that continue from it, so the last level is the first. With do given, and
dS_e for each token e whose state is left for another level,

    du = Aᵀ do + Σ over e of exp(G_e - G) k dS_e                          dA = do uᵀ
    dr = (1 + L)⁻ᵀ du                                                     dL = -dr uᵀ below the diagonal
    dS = (exp(G) q)ᵀ do - (β exp(G) k)ᵀ dr + Σ over e of exp(G_e) dS_e

The inverse needs no derivative of its own. Without the delta rule u = r = v.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from weitune.model.fast.recurrent.chunks import Chunks
from weitune.model.fast.recurrent.places import Places, ScanMemory, ScanRows, continued, summed


def scan_backward(grad: Tensor, rows: ScanRows, chunks: Chunks, memory: ScanMemory) -> ScanRows:
    """Return the gradients of ``rows`` from that of what they read (T, H, V)."""
    assert memory.written is not None  # noqa: S101  (forward has filled it)
    back = _Backward(rows, chunks, chunks.gather(grad))
    back.through_levels(memory, chunks.split(memory.written))
    back.through_products(memory.written)
    back.through_states()
    back.total += back.exchange.sum(-1, keepdim=True) - back.exchange.sum(-2).unsqueeze(-1)
    total = summed(chunks.seen.transpose(1, 2), back.total.squeeze(-1))
    query, key, wanted = (chunks.scatter(each) for each in (back.query, back.key, back.wanted))
    decay, beta = (chunks.scatter(each) for each in (total, back.beta.squeeze(-1)))
    if rows.beta is None:
        return ScanRows(query, key, wanted, decay, None)
    return ScanRows(query, key, wanted * rows.beta[..., None], decay, beta + (wanted * rows.value).sum(-1))


class _Backward:
    """Gradients at the places of N chunks, of which the last n continue from a state."""

    def __init__(self, rows: ScanRows, chunks: Chunks, grad_read: Tensor) -> None:
        self.places, self.chunks, self.read = Places.of(rows, chunks), chunks, grad_read
        self.attends = self.places.attends()
        self.query = torch.empty_like(self.places.query)
        self.key = torch.zeros_like(self.places.key)
        self.wanted = torch.empty_like(grad_read)
        """(N, H, C, V) dr"""
        self.readers = self.places.readers()
        """(N, H, C or 2C, D) what states are multiplied by; then, of the last n, the gradient of that"""
        self.exchange = torch.zeros_like(self.places.between)
        """(N, H, C, C) what G_i gains and G_j loses: the gradient of a decay times the decay"""
        self.total = torch.zeros_like(self.places.since)
        """(N, H, C, 1) of G, besides"""
        self.beta = torch.zeros_like(self.places.since)
        """(N, H, C, 1) besides what v has"""

    def through_levels(self, memory: ScanMemory, added: Sequence[Tensor]) -> None:
        """Compute dr and the gradients that states bring; ``added`` is u, level by level."""
        places, split = self.places, self.chunks.split
        attends, readers, reads, wanted = map(split, (self.attends, self.readers, self.read, self.wanted))
        between, since, keys = split(places.between), split(places.since), split(places.key)
        grad_key, exchange, total = split(self.key), split(self.exchange), split(self.total)
        inverses = None if memory.inverse is None else split(memory.inverse)
        later: Tensor | None = None  # (E, H, D, V) the gradients of the states that the level leaves
        for at, level in reversed(list(enumerate(self.chunks.levels))):
            left, state, grad = memory.states[at], continued(memory.states[at], level), reads[at]
            written = attends[at].transpose(-1, -2) @ grad
            if level.leaving is not None and later is not None:
                chunk, place = level.leaving
                path, own = between[at][chunk, :, place], keys[at][chunk]
                written.index_add_(0, chunk, (own * path[..., None]) @ later)
                pairs = added[at][chunk] @ later.transpose(-1, -2)
                grad_key[at].index_add_(0, chunk, pairs * path[..., None])
                exchange[at][chunk, :, place] = (pairs * own).sum(-1) * path
            if inverses is None:
                wanted[at].copy_(written)
            else:
                torch.matmul(inverses[at].transpose(-1, -2), written, out=wanted[at])
            if left is None or state is None or level.states is None:
                continue
            both = grad if inverses is None else torch.cat([grad, -wanted[at]], dim=2)
            grad_state = readers[at].transpose(-1, -2) @ both
            if level.leaving is not None and later is not None:
                through = later * since[at][chunk, :, place][..., None]
                total[at][chunk, :, place] = (through * state[chunk]).sum((-1, -2))[..., None]
                grad_state.index_add_(0, chunk, through)
            torch.matmul(both, state.transpose(-1, -2), out=readers[at])
            later = torch.zeros_like(left).index_add_(0, level.states, grad_state)

    def through_products(self, written: Tensor) -> None:
        """Add the gradients of A and L."""
        places = self.places
        products = self.read @ written.transpose(-1, -2)
        self.exchange.addcmul_(products, self.attends)
        products *= places.between
        torch.matmul(products, places.key, out=self.query)
        self.key += products.transpose(-1, -2) @ places.query
        if places.beta is None:
            return
        products = (self.wanted @ written.transpose(-1, -2)).tril_(-1).neg_()
        of_strength = products * places.overlaps()
        self.beta += of_strength.sum(-1, keepdim=True)
        self.exchange += of_strength.mul_(places.beta)
        products *= places.between * places.beta
        self.key += (products + products.transpose(-1, -2)) @ places.key

    def through_states(self) -> None:
        """Add the gradients of what the states of the last n chunks were multiplied by."""
        first, size = self.chunks.levels[0].count, self.chunks.shape[1]
        query, key, since = (each[first:] for each in (self.places.query, self.places.key, self.places.since))
        reads, *corrections = self.readers[first:].split(size, dim=2)
        self.query[first:].addcmul_(reads, since)
        of_since = (reads * query).sum(-1, keepdim=True)
        if self.places.beta is not None:
            beta = self.places.beta[first:]
            self.key[first:].addcmul_(corrections[0], beta * since)
            overlap = (corrections[0] * key).sum(-1, keepdim=True)
            self.beta[first:] += overlap * since
            of_since += overlap * beta
        self.total[first:] += of_since * since
