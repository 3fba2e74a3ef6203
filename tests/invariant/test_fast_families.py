"""Families that are fast stay so, and weitune's own blocks compute what the models' own modules do.

The oracle is the model itself with PEFT's layers, one padded conversation a row, without anything of weitune's. Windows
are so short that they hide something of every longer example. What dropout does cannot be compared with PEFT, which
draws it otherwise; there the readable twins of the blocks, with the same draws, are the oracle.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.families import FAMILIES, FAST, RECURRENT, save_family
from tests.invariant.test_families import EXPERTS
from tests.invariant.test_oracle import examples_with_forks
from weitune.data.conversation import Example, Span
from weitune.data.layout import SEPARATE, SHARED
from weitune.data.pack import PackedBatch
from weitune.data.pad import PaddedBatch
from weitune.model.batch import to_tensors
from weitune.model.fast import decoder
from weitune.model.fast.attention import tree_attention
from weitune.model.fast.block import reference_block, run_block
from weitune.model.load.weights import load_model
from weitune.model.supervised import SupervisedModel
from weitune.recipe.schema import Lora, Recompute
from weitune.training.build import make_trainable
from weitune.training.trainable import Trainable

CPU = torch.device("cpu")
WINDOW = 5
EXAMPLES = examples_with_forks(9, vocabulary=400)
ROW = SHARED.lay(EXAMPLES)
LORAS = {"lora": Lora(dropout=0.0), "dora": Lora(dropout=0.0, dora=True), "experts": Lora(dropout=0.0, experts=True)}

Folder = Callable[..., Path]
Result = tuple[float, dict[str, Tensor]]
"""The loss, and the gradient of every trained parameter."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    """Return the folder of a family's tiny model, by family and seed, written when it is first asked for."""

    @cache
    def saved(family: str, seed: int = 0) -> Path:
        text = FAMILIES[family].get("text_config", FAMILIES[family])
        short = {"sliding_window": WINDOW} if text.get("sliding_window") else {}
        return save_family(tmp_path_factory.mktemp(family), family, seed, **short)

    return saved


def made(folder: Path, lora: Lora, precision: str = "fp32") -> Trainable:
    """Return the model in ``folder`` as training makes it, whose adapter already does something: B is not zero."""
    trainable = make_trainable(load_model(str(folder), precision=precision, device="cpu"), lora, seed=1, base="tiny")
    draw = torch.Generator().manual_seed(2)
    for name, parameter in trainable.trained.model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.05, generator=draw)
        elif "magnitude" in name:
            parameter.data *= 1 + 0.2 * torch.randn(parameter.shape, generator=draw)
    return trainable


def by_blocks(trainable: Trainable, recompute: Recompute = "none", row: PackedBatch = ROW) -> Result:
    """Return the loss and gradients that the fast blocks compute of ``row``."""
    model, blocks, head = trainable.loaded.model, trainable.blocks, trainable.capabilities.head
    assert blocks is not None
    return result(trainable, SupervisedModel(model, head=head, blocks=blocks, recompute=recompute), row)


def by_modules(trainable: Trainable) -> Result:
    """Return what the model's own modules compute of the examples apart."""
    with tree_attention(trainable.loaded.model, on=False):
        return result(trainable, SupervisedModel(trainable.loaded.model, head=None), SEPARATE.lay(EXAMPLES))


def result(trainable: Trainable, supervised: SupervisedModel, batch: PackedBatch | PaddedBatch) -> Result:
    supervised.train()
    supervised.zero_grad()
    loss = supervised(to_tensors(batch, CPU))
    loss.backward()
    named = trainable.trained.model.named_parameters()
    return float(loss.detach()), {name: p.grad.clone() for name, p in named if p.requires_grad}


def assert_equal(ours: Result, theirs: Result, tolerance: float = 1e-4) -> None:
    """Compare losses, and gradients one by one; what is nothing but rounding counts as equal."""
    assert ours[0] == pytest.approx(theirs[0], rel=tolerance)
    assert ours[1].keys() == theirs[1].keys()
    rounding = 1e-2 * tolerance * max(float(gradient.norm()) for gradient in theirs[1].values())
    far = {
        name: distance / norm
        for name, gradient in theirs[1].items()
        if (distance := float((ours[1][name] - gradient).norm()))
        > tolerance * (norm := float(gradient.norm())) + rounding
    }
    assert not far


def _cases(*kinds: str) -> list[Any]:
    """Return the families with each kind of adapter that they can have."""
    return [(name, kind) for name in FAST for kind in kinds if kind != "experts" or name in EXPERTS]


@pytest.mark.parametrize("family", FAST)
def test_the_family_shares_rows_and_is_fast(folder: Folder, family: str) -> None:
    trainable = made(folder(family), LORAS["lora"])
    assert trainable.capabilities.shares_rows, trainable.capabilities.why_not
    assert trainable.capabilities.plain_blocks
    assert trainable.capabilities.head is not None


@pytest.mark.parametrize(("family", "kind"), _cases(*LORAS))
def test_packed_by_the_blocks_equals_separate_by_the_modules(folder: Folder, family: str, kind: str) -> None:
    trainable = made(folder(family), LORAS[kind])
    expected = by_modules(trainable)
    assert sum(gradient.abs().max() > 0 for gradient in expected[1].values()) > len(expected[1]) / 2
    assert_equal(by_blocks(trainable), expected)


@pytest.mark.parametrize("family", RECURRENT)
def test_a_step_may_be_divided_into_rows(folder: Folder, family: str) -> None:
    """In a hybrid family a row is also cut into chunks, and others when it is divided."""
    trainable = made(folder(family), LORAS["lora"])
    parts = [by_blocks(trainable, row=SHARED.lay(part)) for part in (EXAMPLES[:4], EXAMPLES[4:])]
    total = sum(loss for loss, _ in parts), {n: g + parts[1][1][n] for n, g in parts[0][1].items()}
    assert_equal(total, by_blocks(trainable), tolerance=1e-5)


_TOKENS = Lora(dropout=0.0, train_tokens=["<|im_end|>"])


@pytest.mark.parametrize(
    "lora",
    [None, Lora(modules_to_save=["lm_head"]), Lora(modules_to_save=["input_layernorm"]), _TOKENS],
    ids=["whole", "head", "norms", "tokens"],
)
def test_where_the_blocks_do_not_train_a_hybrid_family_no_row_is_shared(tmp_path: Path, lora: Lora | None) -> None:
    """Its own modules would let the branches of a row mix."""
    saved = save_family(tmp_path, "qwen3_5_text", tie_word_embeddings=True)
    loaded = load_model(str(saved), precision="fp32", device="cpu")
    trainable = make_trainable(loaded, lora, seed=1, base="tiny")
    assert trainable.layout == SEPARATE
    assert trainable.blocks is None
    assert trainable.capabilities.why_not
    assert not trainable.capabilities.plain_blocks


@pytest.mark.parametrize("lora", [Lora(modules_to_save=["lm_head"]), _TOKENS], ids=["head", "tokens"])
def test_where_the_head_is_trained_the_modules_compute_in_what_the_recipe_says(tmp_path: Path, lora: Lora) -> None:
    saved = save_family(tmp_path, "qwen3", tie_word_embeddings=True)
    loaded = load_model(str(saved), precision="fp32", device="cpu", storage="bf16")
    trainable = make_trainable(loaded, lora, seed=1, base="tiny")
    assert trainable.layout == SHARED
    assert trainable.blocks is None
    assert not trainable.capabilities.plain_blocks
    assert {parameter.dtype for parameter in trainable.trained.model.parameters()} == {torch.float32}


def test_trained_tokens_of_a_hybrid_family_with_a_head_of_its_own(folder: Folder) -> None:
    trainable = made(folder("qwen3_5_text"), _TOKENS)
    assert trainable.layout == SHARED
    assert_equal(by_blocks(trainable), by_modules(trainable))


def test_a_start_that_looks_at_the_data_sees_no_mixed_branches(folder: Folder) -> None:
    """EVA runs the model's own modules over the examples; the blocks train what it leaves."""
    loaded = load_model(str(folder("qwen3_5_text")), precision="fp32", device="cpu")
    trainable = make_trainable(loaded, Lora(dropout=0.0, init="eva"), seed=1, base="tiny", steps=[EXAMPLES])
    assert trainable.layout == SHARED
    assert_equal(by_blocks(trainable), by_modules(trainable))


@pytest.mark.parametrize("recompute", ["feed-forward", "block"])
@pytest.mark.parametrize("family", FAST)
def test_recomputing_draws_the_same_dropout(folder: Folder, family: str, recompute: Recompute) -> None:
    trainable, results = made(folder(family), Lora(dropout=0.3)), []
    for way in ("none", recompute):
        torch.manual_seed(3)
        results.append(by_blocks(trainable, way))
    assert_equal(*results, tolerance=1e-5)
    assert by_blocks(trainable)[0] != results[0][0]  # other draws, another loss


@pytest.mark.parametrize(("family", "kind"), _cases(*LORAS))
def test_with_dropout_the_blocks_equal_their_readable_twins(
    folder: Folder, family: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On examples of which everything is learned: where blocks run for some rows only, masks are drawn for these."""

    def twin(parts: Any, hidden: Tensor, context: Any, rows: Tensor | None = None) -> Tensor:
        output = reference_block(parts, hidden, context)
        return output if rows is None else output[rows]

    row = SHARED.lay([Example(each.input_ids, (Span(1, len(each.input_ids)),)) for each in EXAMPLES])
    assert len(set(row.rows)) == len(row)
    trainable, results = made(folder(family), LORAS[kind].model_copy(update={"dropout": 0.3})), []
    for run in (run_block, twin):
        monkeypatch.setattr(decoder, "run_block", run)
        torch.manual_seed(3)
        results.append(by_blocks(trainable, row=row))
    assert_equal(*results)


@pytest.mark.parametrize("family", FAST)
def test_in_bfloat16_the_blocks_are_as_exact_as_the_modules(folder: Folder, family: str) -> None:
    """The nearest of three models, for rounding may send a token to another expert."""

    def flat(result: Result) -> Tensor:
        return torch.cat([gradient.float().flatten() for gradient in result[1].values()])

    errors = []
    for seed in range(3 if family in EXPERTS else 1):
        exact = flat(by_blocks(made(folder(family, seed), LORAS["lora"])))
        rounded = made(folder(family, seed), LORAS["lora"], "bf16")
        errors.append([float((flat(run(rounded)) - exact).norm() / exact.norm()) for run in (by_blocks, by_modules)])
    ours, theirs = (min(side) for side in zip(*errors, strict=True))
    assert 0 < ours < 1.5 * theirs + 0.01
