"""Packed ≡ separate: sharing changes what a step costs, never what it computes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.families import HYBRID, MOE, family_model
from tests.invariant.test_oracle import LORA, examples_with_forks
from tests.tiny import TEMPLATE_OF, tiny_model
from tests.training.loops import fit
from weitune.data.conversation import OTHERS, Example, Span
from weitune.data.layout import SEPARATE, SHARED, Layout
from weitune.data.pack import pack, pack_separately, visible
from weitune.data.partition import split
from weitune.data.schedule import Plan
from weitune.model.batch import to_tensors
from weitune.model.capabilities import probe
from weitune.model.fast.attention import tree_attention
from weitune.model.fast.loss import PLAIN_LOGITS
from weitune.model.lora.adapter import attach_adapter
from weitune.model.supervised import SupervisedModel
from weitune.recipe.schema import Train


@pytest.mark.parametrize(("family", "window"), [*((family, None) for family in TEMPLATE_OF), ("mistral", 5)])
def test_every_token_has_the_logits_it_has_alone(family: str, window: int | None) -> None:
    overrides = {"sliding_window": window} if window is not None else {}
    alone, packed = tiny_model(family, **overrides), tiny_model(family, **overrides)
    assert probe(packed).shares_rows
    examples = examples_with_forks(12, vocabulary=400)
    examples += [examples[0], Example(examples[1].input_ids[:6], (Span(3, 6),))]  # a duplicate, and a mere beginning
    batch = pack(examples)
    seen = visible(batch)
    row_of = {tuple(batch.input_ids[seen[row]].tolist()): row for row in range(len(batch))}
    with torch.no_grad():
        logits = packed(**to_tensors(batch, torch.device("cpu")).inputs()).logits[0]
        for example in examples:
            expected = alone(input_ids=torch.tensor([example.input_ids]), use_cache=False).logits[0]
            rows = [row_of[example.inputs[:n]] for n in range(1, len(example.inputs) + 1)]
            torch.testing.assert_close(logits[rows], expected[: len(rows)], rtol=0, atol=1e-4)


@pytest.mark.parametrize("micro_tokens", [64, 256])
def test_micro_tokens_never_change_the_losses(micro_tokens: int) -> None:
    examples = examples_with_forks(40, vocabulary=400)
    plan, train = Plan(len(examples), 8, epochs=2, seed=0), Train(batch_size=8, learning_rate=1e-3)

    def losses(tokens: int) -> list[float]:
        adapted = attach_adapter(tiny_model("qwen2"), LORA, seed=1, base="tiny")
        return [record.loss for record in fit(adapted, examples, plan, train, micro_tokens=tokens)]

    assert len(split(examples[:8], 64)) > len(split(examples[:8], 4096)) == 1
    assert losses(micro_tokens) == pytest.approx(losses(4096), rel=1e-5)


@pytest.mark.parametrize("layout", [SEPARATE, Layout(split, pack_separately)], ids=["padded", "packed apart"])
def test_layouts_that_share_nothing_give_the_same_losses(layout: Layout) -> None:
    examples = examples_with_forks(24, vocabulary=400)
    plan, train = Plan(len(examples), 8, epochs=2, seed=0), Train(batch_size=8, learning_rate=1e-3)

    def records(chosen: Layout) -> list:
        adapted = attach_adapter(tiny_model("llama"), LORA, seed=1, base="tiny")
        return fit(adapted, examples, plan, train, layout=chosen)

    shared, apart = records(SHARED), records(layout)
    assert [r.loss for r in apart] == pytest.approx([r.loss for r in shared], rel=1e-5)
    assert [r.grad_norm for r in apart] == pytest.approx([r.grad_norm for r in shared], rel=1e-4)
    assert sum(r.computed_tokens for r in shared) < 0.8 * sum(r.computed_tokens for r in apart)


@pytest.mark.parametrize("family", MOE)
def test_experts_are_chosen_alike_in_any_layout(family: str) -> None:
    """A router looks at one token. Models whose attention cannot share rows are held to :data:`SEPARATE` below."""
    model = family_model(family)
    if not probe(model).shares_rows:
        pytest.skip("it trains one conversation a row")
    adapted = SupervisedModel(_adapted(model))
    examples = examples_with_forks(9, vocabulary=400)
    shared = _loss_and_gradient(adapted, [SHARED.lay(examples)])
    with tree_attention(model, on=False):
        apart = _loss_and_gradient(adapted, [SEPARATE.lay(examples)])
    _assert_equal(shared, apart)


@pytest.mark.parametrize("family", [*HYBRID, "llama4_text", "stablelm"])
def test_padding_changes_no_row(family: str) -> None:
    """It follows the tokens, so neither a recurrent layer nor a router may carry anything of it to them."""
    model = family_model(family)
    assert not probe(model).by_modules().shares_rows
    adapted = SupervisedModel(_adapted(model), head=None)
    examples = examples_with_forks(9, vocabulary=400)
    assert len({len(example.inputs) for example in examples}) > 3
    padded = _loss_and_gradient(adapted, [SEPARATE.lay(examples)])
    _assert_equal(padded, _loss_and_gradient(adapted, [SEPARATE.lay([example]) for example in examples]))


def test_probabilities_are_learned_alike_in_any_layout_and_by_any_head() -> None:
    model = tiny_model("qwen2")
    assert probe(model).shares_rows
    adapted = _adapted(model)
    examples = [softened(example) for example in examples_with_forks(9, vocabulary=400)]
    batch = SHARED.lay(examples)
    assert (batch.targets == OTHERS).any()
    shared = _loss_and_gradient(SupervisedModel(adapted), [batch])
    _assert_equal(shared, _loss_and_gradient(SupervisedModel(adapted, head=None), [batch]))
    with tree_attention(model, on=False):
        for head in (PLAIN_LOGITS, None):
            apart = SupervisedModel(adapted, head=head)
            _assert_equal(shared, _loss_and_gradient(apart, [SEPARATE.lay([example]) for example in examples]))


def softened(example: Example) -> Example:
    """Return ``example`` with three alternatives to each learned token, which follow from the tokens before it."""
    made = []
    for depth, _, _ in example.predictions():
        draw = torch.Generator().manual_seed(sum(at * token for at, token in enumerate(example.input_ids[:depth], 1)))
        shares = torch.rand(3, generator=draw) / 3
        made.append(tuple(zip(torch.randperm(400, generator=draw)[:3].tolist(), shares.tolist(), strict=True)))
    return replace(example, alternatives=tuple(made))


def _adapted(model: Any) -> Any:
    """Return ``model`` with an adapter that changes its outputs, so that every matrix of it gets a gradient."""
    generator = torch.Generator().manual_seed(2)
    for name, parameter in attach_adapter(model, LORA, seed=1, base="tiny").named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.05, generator=generator)
    return model.train()


def _loss_and_gradient(model: SupervisedModel, batches: list) -> tuple[float, torch.Tensor]:
    model.zero_grad()
    loss = torch.stack([model(to_tensors(batch, torch.device("cpu"))) for batch in batches]).sum()
    loss.backward()
    gradients = [parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]
    return float(loss.detach()), torch.cat(gradients)


def _assert_equal(ours: tuple[float, torch.Tensor], theirs: tuple[float, torch.Tensor]) -> None:
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
    assert (ours[1] - theirs[1]).norm() < 1e-4 * theirs[1].norm()
