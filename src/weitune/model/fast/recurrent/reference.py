"""The readable twins: one token after the other, each from the state of the token before it in its conversation."""

from __future__ import annotations

import torch
from torch import Tensor

from weitune.data.answers import Ints
from weitune.data.tree_chunks import tokens_back


def reference_delta_rule(
    query: Tensor, key: Tensor, value: Tensor, decay: Tensor, beta: Tensor, position_ids: Ints
) -> Tensor:
    """Compute what :func:`.scan.gated_delta_rule` does."""
    states: list[Tensor] = []
    for row, (_, before) in enumerate(tokens_back(position_ids, 2)):
        state = _before(states, int(before), key, value) * decay[row].exp()[:, None, None]
        known = _read(state, key[row])
        state = state + key[row][:, :, None] * (beta[row][:, None] * (value[row] - known))[:, None]
        states.append(state)
    return torch.stack([_read(state, q) for state, q in zip(states, query, strict=True)])


def reference_state_space(query: Tensor, key: Tensor, value: Tensor, decay: Tensor, position_ids: Ints) -> Tensor:
    """Compute what :func:`.scan.state_space` does."""
    states: list[Tensor] = []
    for row, (_, before) in enumerate(tokens_back(position_ids, 2)):
        state = _before(states, int(before), key, value) * decay[row].exp()[:, None, None]
        states.append(state + key[row][:, :, None] * value[row][:, None])
    return torch.stack([_read(state, q) for state, q in zip(states, query, strict=True)])


def reference_path_conv(x: Tensor, weight: Tensor, bias: Tensor | None, position_ids: Ints) -> Tensor:
    """Compute what :func:`.path_conv.path_conv` does."""
    taps = weight.shape[1]
    rows = []
    for own in tokens_back(position_ids, taps):
        inputs = [x[each] if each < len(x) else torch.zeros_like(x[0]) for each in own.tolist()]
        rows.append(sum((inputs[back] * weight[:, taps - 1 - back] for back in range(taps)), torch.zeros_like(x[0])))
    output = torch.stack(rows)
    return output if bias is None else output + bias


def _before(states: list[Tensor], before: int, key: Tensor, value: Tensor) -> Tensor:
    """Return the state (H, D, V) after row ``before``; zeros if there is none."""
    return states[before] if before < len(key) else key.new_zeros(*key.shape[1:], value.shape[2])


def _read(state: Tensor, query: Tensor) -> Tensor:
    """Return (H, V), what ``query`` (H, D) reads of ``state`` (H, D, V)."""
    return (query[:, :, None] * state).sum(1)
