"""Blocks with norms before, after and around their mixers, parallel branches and multipliers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.families import family_model
from tests.model.fast.test_attention import text
from tests.model.fast.test_block import CPU, distance
from weitune.data.pack import pack
from weitune.model.capabilities import probe
from weitune.model.fast.block import reference_block, run_block, run_recomputed
from weitune.model.fast.decoder import BlockDecoder
from weitune.model.fast.parts import BlockContext, BlockParts
from weitune.model.fast.tree import Tree
from weitune.model.lora.adapter import attach_adapter
from weitune.recipe.schema import Lora

FAMILIES = ["gemma2", "olmo2", "glm4", "cohere2", "granite", "starcoder2"]
T = 6


def decoder_of_family(family: str, **lora: Any) -> BlockDecoder:
    """Return the blocks of ``family`` in float64, with an adapter that already does something."""
    model = family_model(family)
    assert probe(model).plain_blocks
    adapted = attach_adapter(model, Lora(**{"r": 2, "dropout": 0.0, **lora}), seed=1, base="tiny").double()
    draw = torch.Generator().manual_seed(2)
    for name, parameter in adapted.named_parameters():
        if ".lora_B." in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=draw, dtype=torch.float64)
    decoder = BlockDecoder.from_model(adapted.get_base_model())
    assert decoder is not None
    return decoder


def begin(decoder: BlockDecoder, training: bool = True) -> tuple[BlockParts, Tensor, BlockContext]:
    hidden = torch.randn(T, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    tree = Tree.from_batch(pack([text(1, 2, 3), text(1, 2, 4, 5), text(6)]), CPU)
    return decoder.parts[0], hidden, decoder.begin(hidden.detach(), tree, training=training)


@pytest.mark.parametrize("rows", [None, [0, 3, 4]], ids=["all", "some"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_and_gradients_equal_those_of_the_readable_twin(
    family: str, dropout: float, rows: list[int] | None
) -> None:
    if rows and dropout:
        pytest.skip("the masks of some rows are not those of all")
    block, hidden, context = begin(decoder_of_family(family, dropout=dropout))
    some = None if rows is None else torch.tensor(rows)
    weights = torch.randn(T, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def results(run: Any) -> list[Tensor]:
        torch.manual_seed(3)  # the same masks
        output = run()
        loss = (output * (weights if some is None else weights[some])).sum()
        return [output.detach(), *torch.autograd.grad(loss, [hidden, *block.parameters])]

    expected = results(lambda: reference_block(block, hidden, context)[slice(None) if some is None else some])
    for run in (run_block, run_recomputed):
        for ours, theirs in zip(results(lambda: run(block, hidden, context, some)), expected, strict=True):  # noqa: B023
            assert theirs.abs().max() > 0
            assert distance(ours, theirs) < 1e-6


@pytest.mark.parametrize("rows", [None, [0, 3, 4]], ids=["all", "some"])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradcheck(family: str, rows: list[int] | None) -> None:
    block, hidden, context = begin(decoder_of_family(family), training=False)
    context.retain_graph = True
    some = None if rows is None else torch.tensor(rows)
    leaves = (hidden, *block.parameters)
    assert torch.autograd.gradcheck(
        lambda hidden, *_: run_block(block, hidden, context, some), leaves, fast_mode=True, rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_an_input_that_needs_no_gradient_gets_none_and_the_others_keep_theirs(family: str) -> None:
    block, hidden, context = begin(decoder_of_family(family))

    def gradients(of: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(run_block(block, of, context).square().sum(), block.parameters))

    torch.testing.assert_close(gradients(hidden.detach()), gradients(hidden), rtol=0, atol=0)


def test_the_embeddings_of_a_family_with_a_multiplier() -> None:
    model = family_model("granite")
    ids, seen = torch.tensor([[1, 2, 3]]), []
    hook = model.model.layers[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    model(ids)
    hook.remove()
    decoder = BlockDecoder.from_model(model)
    assert decoder is not None
    assert torch.equal(decoder.embed(ids), seen[0])
