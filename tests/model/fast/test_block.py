"""The fast block against PEFT's own layers inside the model's own modules: losses, gradients, dropout, partial rows.

The modules compute norms in float32 even in a float64 model, so equal means equal to about five digits here.
"""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from tests.invariant.test_oracle import examples_with_forks
from tests.model.fast.test_attention import text
from tests.tiny import TEMPLATE_OF, tiny_model
from weitune.data.pack import pack
from weitune.model.batch import TensorBatch, to_tensors
from weitune.model.capabilities import probe
from weitune.model.fast import matmul
from weitune.model.fast.block import reference_block, run_block
from weitune.model.fast.decoder import BlockDecoder
from weitune.model.fast.dropout import DropoutDraws
from weitune.model.fast.loss import PLAIN_LOGITS, LogitForm
from weitune.model.fast.tree import Tree
from weitune.model.lora.adapter import attach_adapter
from weitune.model.supervised import SupervisedModel
from weitune.recipe.schema import PROJECTIONS, Lora, Recompute

CPU = torch.device("cpu")


def adapted_model(family: str, dtype: torch.dtype = torch.float64, **lora: Any) -> Any:
    """Return a model whose adapter already does something: B is not zero."""
    model = tiny_model(family)
    assert probe(model).plain_blocks
    adapted = attach_adapter(model, Lora(**{"dropout": 0.0, **lora}), seed=1, base="tiny").to(dtype)
    draw = torch.Generator().manual_seed(2)
    for name, parameter in adapted.named_parameters():
        if ".lora_B." in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=draw, dtype=dtype)
        elif "magnitude" in name:
            parameter.data *= 1 + 0.2 * torch.randn(parameter.shape, generator=draw, dtype=dtype)
    return adapted


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def loss_and_gradients(
    adapted: Any, row: TensorBatch, *, fast: bool, recompute: Recompute = "none", head: LogitForm | None = PLAIN_LOGITS
) -> tuple[torch.Tensor, dict]:
    model = adapted.get_base_model()
    blocks = BlockDecoder.from_model(model) if fast else None
    supervised = SupervisedModel(model, head=head, blocks=blocks, recompute=recompute)
    supervised.train()
    adapted.zero_grad()
    loss = supervised(row)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in adapted.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
@pytest.mark.parametrize("recompute", ["none", "feed-forward", "block"])
@pytest.mark.parametrize("family", TEMPLATE_OF)
def test_losses_and_gradients_equal_those_of_the_modules(family: str, recompute: Recompute, dora: bool) -> None:
    adapted = adapted_model(family, dora=dora)
    row = to_tensors(pack(examples_with_forks(12, vocabulary=400)), CPU)
    loss, gradients = loss_and_gradients(adapted, row, fast=True, recompute=recompute)
    expected_loss, expected = loss_and_gradients(adapted, row, fast=False)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=0)
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0
        assert distance(gradients[name], gradient) < 1e-4, name


@pytest.mark.parametrize("targets", [["q_proj"], ["v_proj", "down_proj"], ["up_proj"], ["o_proj"], list(PROJECTIONS)])
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_any_choice_of_projections(targets: list[str], dora: bool) -> None:
    adapted = adapted_model("qwen2", target_modules=targets, r=3, dora=dora)
    row = to_tensors(pack(examples_with_forks(6, vocabulary=400)), CPU)
    loss, gradients = loss_and_gradients(adapted, row, fast=True)
    expected_loss, expected = loss_and_gradients(adapted, row, fast=False)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=0)
    assert gradients.keys() == expected.keys()
    for name, gradient in expected.items():
        assert distance(gradients[name], gradient) < 1e-4, name


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_outputs_and_gradients_equal_those_of_the_readable_twin(dora: bool, dropout: float) -> None:
    decoder = BlockDecoder.from_model(adapted_model("qwen2", r=3, dropout=dropout, dora=dora).get_base_model())
    block, draw = decoder.parts[0], torch.Generator().manual_seed(0)
    tree = Tree.from_batch(pack([text(1, 2, 3), text(1, 2, 4, 5), text(6)]), CPU)
    hidden, weights = (torch.randn(6, 64, dtype=torch.float64, generator=draw) for _ in range(2))
    context = decoder.begin(hidden, tree, training=True)

    def results(run: Any) -> list[torch.Tensor]:
        torch.manual_seed(3)  # the same masks
        output = run(block, hidden.requires_grad_(), context)
        return [output.detach(), *torch.autograd.grad((output * weights).sum(), [hidden, *block.parameters])]

    for ours, theirs in zip(results(run_block), results(reference_block), strict=True):
        assert theirs.abs().max() > 0
        assert distance(ours, theirs) < 1e-5


@pytest.mark.parametrize("rows", [None, [0, 3, 4]])
def test_gradcheck_of_the_block(rows: list[int] | None) -> None:
    adapted = adapted_model("qwen2", r=2)  # other families compute head norms in float32, too coarse for differences
    decoder = BlockDecoder.from_model(adapted.get_base_model())
    block = decoder.parts[0]
    tree = Tree.from_batch(pack([text(1, 2, 3), text(1, 2, 4, 5), text(6)]), CPU)
    hidden = torch.randn(6, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    run = decoder.begin(hidden, tree, training=False)
    run.retain_graph = True
    wanted = torch.tensor(rows) if rows else None
    parameters = block.parameters

    def output(hidden: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return run_block(block, hidden, run, wanted)

    leaves = (hidden.requires_grad_(), *parameters[:2], *parameters[-2:])
    assert torch.autograd.gradcheck(output, leaves, fast_mode=True)


def test_a_bfloat16_base_with_a_float32_adapter() -> None:
    adapted = adapted_model("llama", torch.float32)
    for parameter in adapted.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    row = to_tensors(pack(examples_with_forks(12, vocabulary=400)), CPU)
    loss, gradients = loss_and_gradients(adapted, row, fast=True)
    expected_loss, expected = loss_and_gradients(adapted, row, fast=False)
    assert float(loss) == pytest.approx(float(expected_loss), rel=0.01)
    for name, gradient in expected.items():
        assert gradients[name].dtype is torch.float32
        assert distance(gradients[name], gradient) < 0.1, name


@pytest.mark.parametrize("fast", [True, False], ids=["blocks", "modules"])
@pytest.mark.parametrize("count", [3, 12, 40])
def test_rounding_up_a_row_changes_neither_loss_nor_gradients(count: int, fast: bool) -> None:
    adapted = adapted_model("qwen2")
    row = to_tensors(pack(examples_with_forks(count, vocabulary=400)), CPU)
    rounded = row.rounded_up(64, 64)
    assert {x.shape[-1] % 64 for x in (rounded.input_ids, rounded.rows, rounded.index, rounded.weights)} == {0}
    assert len(rounded.rows.unique()) == len(rounded.rows)
    loss, gradients = loss_and_gradients(adapted, rounded, fast=fast)
    expected_loss, expected = loss_and_gradients(adapted, row, fast=fast)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-9, atol=0)
    for name, gradient in expected.items():
        assert distance(gradients[name], gradient) < 1e-6, name


@pytest.mark.parametrize(
    ("dtype", "onednn", "unit"), [(torch.bfloat16, False, 64), (torch.float32, False, 1), (torch.float32, True, 16)]
)
def test_what_onednn_multiplies_gets_round_sizes(
    dtype: torch.dtype, onednn: bool, unit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matmul, "onednn_is_faster", lambda: onednn)
    adapted = adapted_model("qwen2", torch.float32)
    model = adapted.get_base_model().bfloat16()  # stored in 16 bits either way
    seen: list[int] = []
    states = BlockDecoder.states

    def watched(blocks: BlockDecoder, input_ids: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
        seen.append(len(input_ids))
        return states(blocks, input_ids, *rest, **more)

    monkeypatch.setattr(BlockDecoder, "states", watched)
    row = to_tensors(pack(examples_with_forks(12, vocabulary=400)), CPU)
    length = row.input_ids.shape[1]
    assert length % 16
    loss = SupervisedModel(model, blocks=BlockDecoder.from_model(model, dtype))(row)
    assert loss.isfinite()
    assert seen == [length + -length % unit]


def test_dropout_agrees_with_pefts_on_average() -> None:
    """The means of loss and gradients over many masks are within two standard errors of PEFT's."""
    adapted = adapted_model("qwen2", torch.float32, dropout=0.3)
    row = to_tensors(pack(examples_with_forks(4, vocabulary=400)), CPU)
    name = next(n for n, p in adapted.named_parameters() if "layers.1.mlp.down_proj.lora_A" in n)

    def sample(fast: bool) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(7)
        runs = [loss_and_gradients(adapted, row, fast=fast) for _ in range(60)]
        return torch.stack([loss for loss, _ in runs]), torch.stack([grads[name].flatten() for _, grads in runs])

    (ours, our_grads), (theirs, their_grads) = sample(True), sample(False)
    spread = (ours.var() / 60 + theirs.var() / 60).sqrt()
    assert ours.std() > 0
    assert abs(ours.mean() - theirs.mean()) < 2 * spread
    assert float(ours.std()) == pytest.approx(float(theirs.std()), rel=0.5)
    errors = (our_grads.mean(0) - their_grads.mean(0)) / (our_grads.var(0) / 60 + their_grads.var(0) / 60).sqrt()
    assert float(errors.square().mean().sqrt()) < 1.2  # a standard normal has root mean square 1


def test_a_dropout_mask_is_made_again_from_its_offset() -> None:
    torch.manual_seed(0)
    draws = DropoutDraws(0.1, 40_000, CPU, torch.float32)
    masks = [draws.mask(draws.draw_offset(), (100, 400)) for _ in range(3)]
    assert all(set(mask.unique().tolist()) == {0.0, 1.0} for mask in masks)
    assert all(float(mask.mean()) == pytest.approx(0.9, abs=0.01) for mask in masks)
    assert not torch.equal(masks[0], masks[1])
    offset = draws.draw_offset()
    assert torch.equal(draws.mask(offset, (100, 400)), draws.mask(offset, (100, 400)))


def test_variants_that_peft_alone_computes_are_left_to_it() -> None:
    from peft import LoraConfig, get_peft_model

    model = tiny_model("qwen2")
    probe(model)
    biased = get_peft_model(copy.deepcopy(model), LoraConfig(r=2, lora_bias=True, target_modules=["q_proj"]))
    assert BlockDecoder.from_model(biased.get_base_model()) is None
    assert BlockDecoder.from_model(model) is not None
