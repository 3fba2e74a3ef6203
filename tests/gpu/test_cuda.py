"""The same equalities on a GPU: compiled attention, fast blocks, a whole run in bf16. Skipped where there is none."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from tests.invariant.test_oracle import examples_with_forks
from tests.tiny import tiny_model
from tests.training.test_run import recipe_for
from weitune import train
from weitune.data.pack import pack
from weitune.model.adapter import attach_adapter
from weitune.model.attention import Tree, dense_tree_attention, flex_tree_attention
from weitune.model.decoder import BlockDecoder
from weitune.model.probe import probe
from weitune.model.supervised import Row, SupervisedModel
from weitune.recipe.schema import Lora

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
GPU = torch.device("cuda")


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (8, 2)])
def test_compiled_attention_equals_the_dense_one(heads: int, groups: int, window: int | None) -> None:
    tree = Tree.of(pack(examples_with_forks(40, vocabulary=50)), GPU)
    length = len(tree.subtree_end)
    draw = torch.Generator(GPU).manual_seed(0)
    inputs = [torch.randn(1, n, length, 64, generator=draw, device=GPU) for n in (heads, groups, groups)]
    slope = torch.randn(1, length, heads, 64, generator=draw, device=GPU)
    results = []
    for function in (dense_tree_attention, flex_tree_attention):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        out, _ = function(torch.nn.Module(), *leaves, None, tree=tree, scaling=0.125, sliding_window=window)
        out.backward(slope)
        results.append([out.detach(), *(leaf.grad for leaf in leaves)])
    for ours, theirs in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)  # TF32 and another order of sums


def test_fast_blocks_equal_the_modules() -> None:
    row = Row.of(pack(examples_with_forks(12, vocabulary=400)), GPU)
    found = []
    for fast in (False, True):
        model = copy.deepcopy(tiny_model("qwen2")).to(GPU)
        assert probe(model).plain_blocks
        adapted = attach_adapter(model, Lora(dropout=0.0), seed=1, base="tiny")
        supervised = SupervisedModel(model, blocks=BlockDecoder.of(model) if fast else None).train()
        loss = supervised(row)
        loss.backward()
        norms = [float(p.grad.norm()) for p in adapted.parameters() if p.requires_grad]
        found.append([float(loss), *norms])
    assert found[1] == pytest.approx(found[0], rel=1e-2)


def test_a_run_in_bfloat16_learns(tmp_path: Path) -> None:
    run = train(recipe_for(tmp_path))
    losses = [event["loss"] for event in run.events() if event["event"] == "step"]
    assert losses[-1] < losses[0]
