"""A prefix tree in chunks equals one token after the other, and so do the gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.model.fast.recurrent.trees import chunks_of, long_row, rows
from weitune.data.pack import PackedBatch
from weitune.model.fast.recurrent.inverse import unit_lower_inverse
from weitune.model.fast.recurrent.reference import reference_delta_rule, reference_state_space
from weitune.model.fast.recurrent.scan import gated_delta_rule, state_space

HEADS, KEYS, VALUES = 2, 3, 4
EXACT = 1e-9
Compute = Callable[..., Tensor]


def drawn(row: PackedBatch, seed: int, dtype: torch.dtype, scale: float = 1.0) -> list[Tensor]:
    """Return query, key, value, decay and beta; the decays range from hardly any to strong ones."""
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(len(row), HEADS, *shape, generator=draw, dtype=dtype)

    query, key = F.normalize(normal(KEYS), dim=-1), F.normalize(normal(KEYS), dim=-1)
    return [query, key, normal(VALUES), -scale * F.softplus(4 * normal()), normal().sigmoid()]


def with_gradients(compute: Compute, inputs: list[Tensor], *more: object) -> list[Tensor]:
    """Return the output, and the gradient of every input for a fixed gradient of the output."""
    leaves = [each.clone().requires_grad_() for each in inputs]
    output = compute(*leaves, *more)
    draw = torch.Generator().manual_seed(9)
    output.backward(torch.randn(output.shape, generator=draw, dtype=torch.float64).to(output.dtype))
    return [output.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def assert_close(ours: list[Tensor], theirs: list[Tensor], tolerance: float) -> None:
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert (a.double() - b.double()).abs().max() < tolerance * b.double().abs().max().clamp_min(1)


@settings(max_examples=40)
@given(rows(), st.integers(1, 9), st.integers(0, 99))
def test_the_delta_rule_equals_its_readable_twin(row: PackedBatch, size: int, seed: int) -> None:
    inputs = drawn(row, seed, torch.float64)
    ours = with_gradients(gated_delta_rule, inputs, chunks_of(row, size))
    assert_close(ours, with_gradients(reference_delta_rule, inputs, row.position_ids), EXACT)


@settings(max_examples=40)
@given(rows(), st.integers(1, 9), st.integers(0, 99))
def test_the_state_space_equals_its_readable_twin(row: PackedBatch, size: int, seed: int) -> None:
    inputs = drawn(row, seed, torch.float64)[:4]
    ours = with_gradients(state_space, inputs, chunks_of(row, size))
    assert_close(ours, with_gradients(reference_state_space, inputs, row.position_ids), EXACT)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_long_rows_are_exact_in_float64_and_near_in_float32(scale: float) -> None:
    row = long_row(2000)
    inputs = drawn(row, 1, torch.float64, scale)
    expected = with_gradients(reference_delta_rule, inputs, row.position_ids)
    assert_close(with_gradients(gated_delta_rule, inputs, chunks_of(row, 64)), expected, EXACT)
    rounded = [each.float() for each in inputs]
    assert_close(with_gradients(gated_delta_rule, rounded, chunks_of(row, 64)), expected, 1e-3)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_long_rows_of_a_state_space_are_exact_in_float64_and_near_in_float32(scale: float) -> None:
    row = long_row(2000)
    inputs = drawn(row, 1, torch.float64, scale)[:4]
    expected = with_gradients(reference_state_space, inputs, row.position_ids)
    assert_close(with_gradients(state_space, inputs, chunks_of(row, 64)), expected, EXACT)
    rounded = [each.float() for each in inputs]
    assert_close(with_gradients(state_space, rounded, chunks_of(row, 64)), expected, 1e-3)


def test_tokens_that_write_nothing_and_forget_nothing_leave_the_state_alone() -> None:
    """So that padding may stand anywhere on a path."""
    row = long_row(300)
    inputs = drawn(row, 2, torch.float64)
    idle = torch.zeros(len(row), dtype=torch.bool)
    idle[::7] = True
    muted = [each.masked_fill(idle.view(-1, *(1,) * (each.dim() - 1)), 0) for each in inputs]
    whole = reference_delta_rule(*muted, row.position_ids)
    assert torch.allclose(gated_delta_rule(*muted, chunks_of(row, 16)), whole, atol=1e-12)
    keys_only = [muted[0], inputs[1], muted[2], muted[3], muted[4]]  # beta is 0: the key does not matter
    assert torch.allclose(gated_delta_rule(*keys_only, chunks_of(row, 16)), whole, atol=1e-12)


def test_the_library_computes_the_same_of_a_single_line() -> None:
    """transformers' own rule is the oracle of what a gated delta rule is."""
    from transformers.models.qwen3_5.modeling_qwen3_5 import torch_chunk_gated_delta_rule

    from weitune.data.conversation import Example, Span
    from weitune.data.pack import pack

    row = pack([Example(tuple(range(151)), (Span(150, 151),))])
    inputs = drawn(row, 3, torch.float32)
    query, key, value, decay, beta = (each[None] for each in inputs)
    theirs, _ = torch_chunk_gated_delta_rule(query, key, value, g=decay, beta=beta)
    ours = gated_delta_rule(inputs[0] * KEYS**-0.5, *inputs[1:], chunks_of(row, 64))
    assert torch.allclose(ours, theirs[0], atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3, 16, 37])
def test_the_inverse_is_one(size: int) -> None:
    lower = torch.randn(2, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    system = torch.eye(size) + lower.tril(-1)
    assert torch.allclose(unit_lower_inverse(lower) @ system, torch.eye(size, dtype=torch.float64), atol=1e-9)
