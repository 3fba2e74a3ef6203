"""Per-layer embeddings against their twin, by numbers, and against the branch of Gemma 4's own layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.families import family_model
from weitune.model.fast.block import reference_block, run_block, run_recomputed
from weitune.model.fast.channel.per_layer import read_per_layer_input
from weitune.model.fast.dropout import DropoutDraws
from weitune.model.fast.norm import read_norm
from weitune.model.fast.parts import BlockContext, BlockParts, Branch
from weitune.model.lora.adapter import attach_adapter
from weitune.recipe.schema import Lora

T, C, P = 7, 64, 16
NAME = "e"


def adapted_layer(**lora: Any) -> nn.Module:
    """Return the last layer of a Gemma 4 in float64, with an adapter that does something."""
    torch.manual_seed(0)
    model = attach_adapter(family_model("gemma4_text"), Lora(r=3, **lora), seed=1, base="tiny").double()
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.data.normal_(0, 0.1)
    return model.get_base_model().model.layers[-1]  # type: ignore[no-any-return]


def block_of(layer: Any) -> BlockParts:
    """Return a block of nothing but the branch of per-layer embeddings."""
    mixer, post = read_per_layer_input(layer, NAME), read_norm(layer.post_per_layer_input_norm)
    assert mixer is not None
    assert post is not None
    return BlockParts([Branch(None, mixer, post)], layer, scale=float(layer.layer_scalar))


def inputs() -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    hidden, embedded = (torch.randn(T, n, dtype=torch.float64, generator=draw) for n in (C, P))
    return hidden.requires_grad_(), embedded.requires_grad_()


def context_with(embedded: Tensor, dropout: float = 0.0, *, retain: bool = False) -> BlockContext:
    torch.manual_seed(2)
    draws = DropoutDraws(dropout, T * C, torch.device("cpu"), torch.float64) if dropout else None
    return BlockContext(None, draws, retain_graph=retain, carried={NAME: embedded})


def test_output_equals_that_of_the_layer() -> None:
    layer: Any = adapted_layer(dropout=0.0)
    hidden, embedded = inputs()
    inner = layer.act_fn(layer.per_layer_input_gate(hidden)) * embedded
    expected = layer.post_per_layer_input_norm(layer.per_layer_projection(inner))
    output = run_block(block_of(layer), hidden, context_with(embedded))
    torch.testing.assert_close(output, (hidden + expected) * layer.layer_scalar, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("run", [run_block, run_recomputed])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_outputs_and_gradients_equal_those_of_the_readable_twin(dora: bool, dropout: float, run: Any) -> None:
    block = block_of(adapted_layer(dora=dora, dropout=dropout))
    assert len(block.parameters) == (6 if dora else 4)

    def results(run: Any) -> list[Tensor]:
        hidden, embedded = inputs()
        output = run(block, hidden, context_with(embedded, dropout))
        weights = torch.arange(T * C, dtype=torch.float64).sin().view(T, C)
        return [output.detach(), *torch.autograd.grad((output * weights).sum(), [hidden, embedded, *block.parameters])]

    for ours, theirs in zip(results(run), results(reference_block), strict=True):
        assert theirs.abs().max() > 0
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-9)


def test_gradcheck() -> None:
    block = block_of(adapted_layer(dropout=0.0))

    def output(hidden: Tensor, embedded: Tensor, *_: Tensor) -> Tensor:
        return run_block(block, hidden, context_with(embedded, retain=True))

    assert torch.autograd.gradcheck(output, (*inputs(), *block.parameters), fast_mode=True)


def test_below_the_first_adapter_only_adapters_get_gradients() -> None:
    block = block_of(adapted_layer(dropout=0.0))
    hidden, embedded = inputs()
    run_block(block, hidden.detach(), context_with(embedded.detach())).sum().backward()
    assert hidden.grad is None
    assert all(parameter.grad is not None for parameter in block.parameters)


def test_an_unknown_activation_is_left_to_the_model() -> None:
    layer: Any = adapted_layer(dropout=0.0)
    layer.act_fn = nn.Hardswish()
    assert read_per_layer_input(layer, NAME) is None
    assert replace(block_of(adapted_layer(dropout=0.0)), scale=1.0).with_adapters() is not None
