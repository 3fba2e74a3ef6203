"""Answers in the tree ≡ answers alone: their log-probabilities, and the gradient of any loss of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from tests.data.preference.groups import answer, groups
from tests.tiny import tiny_model
from weitune.data.pack import PackedBatch
from weitune.data.pack_groups import pack_groups, pad_groups
from weitune.data.pad import PaddedBatch
from weitune.data.preference.values import Group
from weitune.model.batch import AnswerTensors, TensorBatch, to_tensors
from weitune.model.cuda_graph import PREDICTIONS, TOKENS
from weitune.model.fast.attention import use_tree_attention
from weitune.model.fast.decoder import BlockDecoder
from weitune.model.lora.adapter import attach_adapter
from weitune.model.supervised import AnswerPass, SupervisedModel
from weitune.recipe.schema import Lora

CPU = torch.device("cpu")
PASSES: list[dict[str, Any]] = [{"blocks": True}, {}, {"head": None}]


def adapted() -> Any:
    """Return a model whose adapter does something."""
    model = tiny_model("qwen2")
    attach_adapter(model, Lora(dropout=0.0), seed=1, base="tiny")
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.05)
    return model


ALONE, TREE = adapted(), adapted()
use_tree_attention(TREE)


def objective(sums: Tensor, answers: AnswerTensors) -> Tensor:
    """A loss that bends, in which every answer counts differently."""
    return (answers.coefficient * torch.tanh((sums - answers.reference) / answers.lengths / 4)).sum()


def supervised(model: Any = TREE, *, blocks: bool = False, **options: Any) -> SupervisedModel:
    decoder = BlockDecoder.from_model(model) if blocks else None
    return SupervisedModel(model, blocks=decoder, objective=objective, **options)


def numbered(batch: PackedBatch | PaddedBatch, first: int = 0) -> TensorBatch:
    """Give the answers of ``batch`` numbers that depend on their place, counted from ``first``."""
    assert batch.answers is not None
    place = np.arange(first, first + len(batch.answers.lengths))
    answers = replace(batch.answers, reference=-1.0 * place, coefficient=np.cos(place))
    return to_tensors(replace(batch, answers=answers), CPU)


def by_itself(drawn: Sequence[Group]) -> Tensor:
    """Return the log-probability of every answer (S,), each computed alone: the specification."""
    sums = []
    for own in (own for group in drawn for own in group.answers):
        logits = ALONE(input_ids=torch.tensor([own.input_ids]), use_cache=False).logits[0].double()
        log_probs = torch.log_softmax(logits, dim=-1)
        sums.append(torch.stack([log_probs[depth - 1, token] for depth, token, _ in own.predictions()]).sum())
    return torch.stack(sums)


def gradient(model: Any, loss: Tensor) -> Tensor:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, trained)])


def passed(module: SupervisedModel, batch: TensorBatch) -> AnswerPass:
    result = module(batch)
    assert isinstance(result, AnswerPass)
    assert not result.sums.requires_grad
    return result


def ways(drawn: list[Group]) -> Iterator[tuple[SupervisedModel, list[TensorBatch]]]:
    """Yield all ways to compute the answers of ``drawn``: a module, and the batches it is given."""
    packed = numbered(pack_groups(drawn))
    for options in PASSES:
        yield supervised(**options), [packed]
    yield supervised(blocks=True), [packed.rounded_up(TOKENS, PREDICTIONS)]
    yield supervised(ALONE), [numbered(pad_groups(drawn))]
    for half in range(1, len(drawn), 4):
        first = half * len(drawn[0].answers)
        yield supervised(blocks=True), [numbered(pack_groups(drawn[:half])), numbered(pack_groups(drawn[half:]), first)]


@given(groups())
@settings(max_examples=20, deadline=None)
def test_log_probabilities_and_gradients_are_those_of_the_answers_alone(drawn: list[Group]) -> None:
    alone, numbers = by_itself(drawn), numbered(pack_groups(drawn)).answers
    assert numbers is not None
    expected = objective(alone, numbers)
    direction = gradient(ALONE, expected)
    for module, batches in ways(drawn):
        results = [passed(module, batch) for batch in batches]
        sums = torch.cat([result.sums for result in results])[: len(alone)]
        torch.testing.assert_close(sums, alone.detach(), rtol=1e-5, atol=1e-5)
        loss = torch.stack([result.loss for result in results]).sum()
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
        assert (gradient(module.model, loss) - direction).norm() <= 1e-4 * direction.norm() + 1e-6


def test_padding_changes_no_shape_but_to_multiples_and_no_sum_of_a_real_answer() -> None:
    pair = Group((answer([1, 2], [0, 1]), answer([1, 2], [2])), (True, False))
    batch = numbered(pack_groups([pair] * 16))
    rounded = batch.rounded_up(TOKENS, PREDICTIONS)
    assert rounded.answers is not None
    assert batch.answers is not None
    assert {len(x) % 256 for x in (rounded.targets, rounded.answers.prediction)} == {0}
    assert len(rounded.answers.liked) == 64  # there is always padding, to which added predictions belong
    assert rounded.answers.lengths.min() == 1
    log_probs = -torch.rand(len(rounded.targets))
    sums = rounded.answers.sums(log_probs)
    assert torch.equal(sums[:32], batch.answers.sums(log_probs[: len(batch.targets)]))
    assert torch.isfinite(sums).all()


def test_without_an_objective_the_loss_is_the_cross_entropy_of_the_answers() -> None:
    drawn = [Group((answer([1, 2], [0, 1]), answer([1, 2], [2])), (True, False))]
    result = passed(SupervisedModel(TREE), to_tensors(pack_groups(drawn), CPU))
    torch.testing.assert_close(result.loss, -by_itself(drawn).sum())


@pytest.mark.parametrize("count", [1, 3])
def test_sums_equal_those_by_index(count: int) -> None:
    """``index_add`` is the readable twin of the sums of segments."""
    generator = torch.Generator().manual_seed(count)
    lengths = torch.randint(1, 9, (count,), generator=generator)
    members = torch.randint(0, 5, (int(lengths.sum()),), generator=generator)
    zeros = torch.zeros(count, dtype=torch.float64)
    ends = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    answers = AnswerTensors(members, ends, lengths.double(), zeros.bool(), zeros, zeros, zeros, zeros[0])
    log_probs = -torch.rand(5, generator=generator)
    owner = torch.repeat_interleave(torch.arange(count), lengths)
    expected = torch.zeros(count, dtype=torch.float64).index_add(0, owner, log_probs[members].double())
    torch.testing.assert_close(answers.sums(log_probs), expected, rtol=1e-12, atol=0)
