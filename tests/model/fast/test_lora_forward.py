"""A group of projections with dropout and DoRA against PEFT's layers under the very same masks.

PEFT's side computes norms in float32 even in a float64 model, so equal means equal to about five digits here.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.model.fast.test_attention import text
from tests.model.fast.test_block import CPU, adapted_model, distance
from weitune.data.pack import pack
from weitune.model.fast.block import run_block
from weitune.model.fast.decoder import BlockDecoder
from weitune.model.fast.dropout import DropoutDraws
from weitune.model.fast.lora_forward import GroupPass, reference_lora
from weitune.model.fast.projection import Factors, LoraGroup
from weitune.model.fast.tree import Tree

T = 6


class Given(nn.Module):
    """Dropout with a given mask."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        return x * self.mask


def run_with_masks_of(block: Any, dropout: DropoutDraws, layer: Any) -> None:
    """Give PEFT's layers the masks that the block will draw."""
    torch.manual_seed(3)
    for group, names in zip(block.groups, (("q", "k", "v"), ("o",), ("gate", "up"), ("down",)), strict=True):
        drawn = GroupPass.begin(group, dropout)
        for name in names:
            owner = layer.self_attn if name in "qkvo" else layer.mlp
            projection = getattr(owner, f"{name}_proj")
            projection.lora_dropout["default"] = Given(drawn.mask(T) * drawn.dropout_scale)
    torch.manual_seed(3)


@pytest.mark.parametrize("rate", [0.0, 0.4])
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_outputs_and_gradients_equal_those_of_the_readable_twin(dora: bool, rate: float) -> None:
    adapted = adapted_model("qwen2", r=3, dropout=rate, dora=dora)
    group = BlockDecoder.from_model(adapted.get_base_model()).parts[0].groups[0]
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(T, 64, dtype=torch.float64, generator=draw).requires_grad_()
    grads = [torch.randn(T, p.shape[0], dtype=torch.float64, generator=draw) for p in group.projections]
    group_pass = GroupPass.begin(group, DropoutDraws(rate, T * 64, x.device, x.dtype) if rate else None)
    outputs, low = group_pass.forward(x.detach())
    grad_x, adapter_grads = group_pass.backward(grads, low, x.detach())

    mask, scale = group_pass.mask(T), group_pass.dropout_scale
    expected = [reference_lora(p, x, mask, scale) for p in group.projections]
    loss = sum((output * grad).sum() for output, grad in zip(expected, grads, strict=True))
    expected += torch.autograd.grad(loss, [x, *group.parameters])
    for ours, theirs in zip([*outputs, grad_x, *adapter_grads], expected, strict=True):
        assert theirs.abs().max() > 0
        assert distance(ours, theirs) < 1e-12


def test_the_matrices_of_adapters_are_made_once_in_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    group = BlockDecoder.from_model(adapted_model("qwen2", r=3).get_base_model()).parts[0].groups[0]
    made: list[torch.dtype] = []
    make = LoraGroup.factors

    def watched(self: LoraGroup, dtype: torch.dtype, dropout_scale: float) -> Factors | None:
        made.append(dtype)
        return make(self, dtype, dropout_scale)

    monkeypatch.setattr(LoraGroup, "factors", watched)
    x = torch.ones(T, 64, dtype=torch.float64)
    outputs = []
    for moved in range(2):
        group_pass = GroupPass.begin(group, None)
        found, low = group_pass.forward(x)
        group_pass.backward([torch.ones_like(each) for each in found], low, x)
        outputs.append(found[0])
        with torch.no_grad():
            group.projections[0].b.add_(1.0)  # as an optimizer does between two passes
        assert len(made) == moved + 1
    assert distance(*outputs) > 1e-3


@pytest.mark.parametrize("slices", [False, True], ids=["whole", "slices"])
@pytest.mark.parametrize("keep", [True, False], ids=["kept", "again"])
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_a_block_under_the_masks_of_peft(dora: bool, keep: bool, slices: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if slices:
        monkeypatch.setattr("weitune.model.fast.channel.feed_forward.SLICE_COLUMNS", (16, 48))
        monkeypatch.setattr("weitune.model.fast.lora_forward.ROW_NORM_ELEMENTS_CPU", 200)
    adapted = adapted_model("qwen2", r=3, dropout=0.4, dora=dora).train()
    model = adapted.get_base_model()
    decoder, layer = BlockDecoder.from_model(model), model.get_decoder().layers[0]
    block = decoder.parts[0]
    tree = Tree.from_batch(pack([text(1, 2, 3), text(1, 2, 4, 5), text(6)]), CPU)
    draw = torch.Generator().manual_seed(0)
    hidden, weights = (torch.randn(T, 64, dtype=torch.float64, generator=draw) for _ in range(2))
    run = decoder.begin(hidden, tree, training=True, keep_feed_forward=keep)
    run_with_masks_of(block, run.dropout, layer)

    def output_and_grads(function: Any) -> tuple[Tensor, list[Tensor]]:
        leaf = hidden.clone().requires_grad_()
        output = function(leaf)
        return output.detach(), list(torch.autograd.grad((output * weights).sum(), [leaf, *block.parameters]))

    rotary = run.attention.rotary_of(None)
    ours, our_grads = output_and_grads(lambda leaf: run_block(block, leaf, run))
    theirs, their_grads = output_and_grads(
        lambda leaf: layer(leaf[None], attention_mask=None, position_embeddings=rotary, tree=tree)[0]
    )
    assert distance(ours, theirs) < 1e-5
    assert len(our_grads) == 1 + 7 * (3 if dora else 2)
    for our, their in zip(our_grads, their_grads, strict=True):
        assert their.abs().max() > 0
        assert distance(our, their) < 1e-4


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_gradcheck_of_doras_magnitudes_and_input(dropout: float) -> None:
    """A and B are left out: DoRA takes the norm as constant, and differences of the output do not."""
    adapted = adapted_model("qwen2", r=2, dropout=dropout, dora=True)
    decoder = BlockDecoder.from_model(adapted.get_base_model())
    block = decoder.parts[0]
    tree = Tree.from_batch(pack([text(1, 2, 3), text(1, 2, 4, 5), text(6)]), CPU)
    hidden = torch.randn(T, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    run = decoder.begin(hidden, tree, training=True)
    run.retain_graph = True

    def output(hidden: Tensor, *_: Tensor) -> Tensor:
        torch.manual_seed(3)  # the same masks every time
        return run_block(block, hidden, run)

    magnitudes = [p.magnitude for group in block.groups for p in group.projections]
    assert len(magnitudes) == 7
    assert torch.autograd.gradcheck(output, (hidden.requires_grad_(), *magnitudes), fast_mode=True)
