"""What torch.compile joins on a GPU can be joined, and means the same; shown without a GPU or a compiler."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from tests.tiny import tiny_model
from weitune.model.fast import norm
from weitune.model.fast.channel import feed_forward, sliced
from weitune.model.fast.channel.activation import ACTIVATIONS
from weitune.model.fast.compiled import fused


def joined(function: Any) -> Any:
    """Return ``function`` as one graph, which fails if it is not one."""
    torch.compiler.reset()
    return torch.compile(function.__wrapped__, backend="aot_eager", fullgraph=True, dynamic=True)


def drawn(*shapes: tuple[int, ...]) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=draw) for shape in shapes]


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("rows", [3, 8])
def test_the_functions_of_the_feed_forward_layer(rows: int, name: str) -> None:
    act, write = ACTIVATIONS[name]
    gate, up, mask = drawn(*[(rows, 10)] * 3)
    for function, rest in ((feed_forward._gated, act), (sliced._dropped, None), (sliced._dropped, mask)):
        for other in (up, None):
            torch.testing.assert_close(joined(function)(gate, other, rest), function(gate, other, rest))
    for dropped, seen in ((None, None), (up, None), (up, mask)):
        results = []
        for function in (joined(feed_forward._write_grads), feed_forward._write_grads):
            wide, inner, more, active = drawn(*[(rows, 10)] * 4)
            function(wide, inner, more, active, dropped, seen, write)
            without, alone = drawn(*[(rows, 10)] * 2)
            function(without, alone, None, active, dropped, seen, write)
            results.append((wide, inner, without, alone))
        torch.testing.assert_close(*results)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_norms_that_round_once(dtype: torch.dtype) -> None:
    x, grad = (each.to(dtype) for each in drawn((5, 12), (5, 12)))
    (weight,) = drawn((12,))
    compiled, inverse = joined(norm._exact_rms_norm)(x, weight, 1e-6)
    torch.testing.assert_close(compiled, norm._exact_rms_norm(x, weight, 1e-6)[0])
    expected = norm._exact_rms_norm_backward(grad, x, weight, inverse)
    torch.testing.assert_close(joined(norm._exact_rms_norm_backward)(grad, x, weight, inverse), expected)


@pytest.mark.parametrize("family", ["qwen2", "llama", "mistral", "gemma"])
def test_rotary_positions_of_a_family(family: str) -> None:
    attention = tiny_model(family).get_decoder().layers[0].self_attn
    rotate = fused(sys.modules[type(attention).__module__].apply_rotary_pos_emb)
    results = []
    for function in (joined(rotate), rotate):
        query, key, cos, sin = drawn((1, 5, 4, 16), (1, 5, 2, 16), (1, 5, 16), (1, 5, 16))
        leaves = query.requires_grad_(), key.requires_grad_()
        turned = function(query.transpose(1, 2), key.transpose(1, 2), cos, sin)
        results.append((*turned, *torch.autograd.grad(sum(x.square().sum() for x in turned), leaves)))
    torch.testing.assert_close(*results)


def test_nothing_is_compiled_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weitune.model.fast.compiled._compiled", None)
    gate, up = drawn((3, 4), (3, 4))
    assert sliced._dropped(gate, up, None).equal(gate * up)
