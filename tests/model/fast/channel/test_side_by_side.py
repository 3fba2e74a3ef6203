"""Experts beside the feed-forward layer against their twin, by numbers, and against Gemma 4's own layer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.families import family_model
from weitune.model.fast.block import reference_block, run_block
from weitune.model.fast.channel.feed_forward import read_feed_forward
from weitune.model.fast.channel.side_by_side import SideBySide
from weitune.model.fast.dropout import DropoutDraws
from weitune.model.fast.experts.read import read_experts_beside
from weitune.model.fast.norm import Norm, read_norm
from weitune.model.fast.parts import BlockContext, BlockParts, Branch
from weitune.model.lora.adapter import attach_adapter
from weitune.recipe.schema import Lora

T, C = 7, 64
WITH_EXPERTS = {
    "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32,
    "num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0,
}  # fmt: skip


def adapted_layer(*, experts: bool = True, dropout: float = 0.0) -> Any:
    """Return a layer of a Gemma 4 in float64, with an adapter that does something."""
    torch.manual_seed(0)
    model = family_model("gemma4_text", **WITH_EXPERTS)
    adapted = attach_adapter(model, Lora(r=4, dropout=dropout, experts=experts), seed=1, base="tiny").double()
    for name, parameter in adapted.named_parameters():
        if ".lora_B." in name:
            parameter.data.normal_(0, 0.1)
    return adapted.get_base_model().model.layers[-1]


def norm_of(module: nn.Module) -> Norm:
    norm = read_norm(module)
    assert norm is not None
    return norm


def block_of(layer: Any) -> BlockParts:
    """Return a block of nothing but the feed-forward layer and the experts, with the norm after both."""
    dense, experts = (
        read_feed_forward(layer.mlp),
        read_experts_beside(layer, norm_of(layer.pre_feedforward_layernorm_2)),
    )
    assert dense is not None
    assert experts is not None
    mixer = SideBySide(
        [
            Branch(norm_of(layer.pre_feedforward_layernorm), dense, norm_of(layer.post_feedforward_layernorm_1)),
            Branch(None, experts, norm_of(layer.post_feedforward_layernorm_2)),
        ]
    )
    return BlockParts([Branch(None, mixer, norm_of(layer.post_feedforward_layernorm))], layer)


def hidden() -> Tensor:
    drawn = torch.randn(T, C, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return drawn.requires_grad_()


def context(dropout: float = 0.0, *, retain: bool = False) -> BlockContext:
    torch.manual_seed(2)
    draws = DropoutDraws(dropout, T * 2 * C, torch.device("cpu"), torch.float64) if dropout else None
    return BlockContext(None, draws, retain_graph=retain)


def test_output_equals_that_of_the_layer() -> None:
    layer, x = adapted_layer().float(), hidden().float()  # its experts take no float64
    dense = layer.post_feedforward_layernorm_1(layer.mlp(layer.pre_feedforward_layernorm(x)))
    _, weights, index = layer.router(x)
    routed = layer.post_feedforward_layernorm_2(layer.experts(layer.pre_feedforward_layernorm_2(x), index, weights))
    expected = x + layer.post_feedforward_layernorm(dense + routed)
    torch.testing.assert_close(run_block(block_of(layer), x, context()), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("experts", "dropout"), [(True, 0.0), (False, 0.4)])
def test_outputs_and_gradients_equal_those_of_the_readable_twin(experts: bool, dropout: float) -> None:
    block = block_of(adapted_layer(experts=experts, dropout=dropout))
    assert len(block.parameters) == (10 if experts else 6)

    def results(run: Any) -> list[Tensor]:
        x = hidden()
        output = run(block, x, context(dropout))
        weights = torch.arange(T * C, dtype=torch.float64).sin().view(T, C)
        return [output.detach(), *torch.autograd.grad((output * weights).sum(), [x, *block.parameters])]

    for ours, theirs in zip(results(run_block), results(reference_block), strict=True):
        assert theirs.abs().max() > 0
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-8)


def test_gradcheck() -> None:
    layer = adapted_layer()
    block = block_of(layer)
    layer.router.norm.forward = lambda x: x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()  # theirs is in float32

    def output(x: Tensor, *_: Tensor) -> Tensor:
        return run_block(block, x, context(retain=True))

    assert torch.autograd.gradcheck(output, (hidden(), *block.parameters), fast_mode=True)


def test_adapters_are_read_again() -> None:
    block = block_of(adapted_layer())
    again = block.with_adapters()
    assert again is not None
    assert [id(p) for p in again.parameters] == [id(p) for p in block.parameters]
