"""The validation loss is what a plain transformers + PEFT computation gives over the same rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import PeftModel

from tests.faults.runs import make_inputs
from tests.invariant.test_oracle import examples_with_forks
from tests.tiny import longrope, tiny_model
from weitune.data.conversation import Example
from weitune.data.frame.choose import framing_for
from weitune.data.layout import SEPARATE, SHARED, Layout
from weitune.data.prepare.holdout import hold_out
from weitune.data.prepare.prepare import prepare
from weitune.evaluate.loss import evaluating, measure_loss
from weitune.model.capabilities import probe
from weitune.model.fast.decoder import BlockDecoder
from weitune.model.load.weights import load_model
from weitune.model.lora.adapter import attach_adapter
from weitune.model.supervised import SupervisedModel
from weitune.recipe.schema import Lora, Recipe
from weitune.run.events import read_events
from weitune.training.run import train

CPU = torch.device("cpu")


def plain_loss(model: Any, examples: list[Example]) -> float:
    """One example a forward pass, labels shifted by hand, no weitune."""
    total, count = 0.0, 0
    with torch.no_grad():
        for example in examples:
            ids = torch.tensor([example.input_ids])
            learned = torch.tensor(example.loss_mask[1:]) > 0
            logits = model(input_ids=ids).logits[0, :-1][learned].float()
            total += float(F.cross_entropy(logits, ids[0, 1:][learned], reduction="sum"))
            count += int(learned.sum())
    return total / count


@pytest.mark.parametrize("layout", [SHARED, SEPARATE])
@pytest.mark.parametrize("micro_tokens", [40, 4096])
def test_any_layout_and_split_give_the_plain_loss(layout: Layout, micro_tokens: int) -> None:
    examples = examples_with_forks(30, vocabulary=400)
    model = tiny_model()
    expected = plain_loss(model, examples)
    abilities = probe(model)
    if layout is SEPARATE:
        model.set_attn_implementation("sdpa")
    blocks = BlockDecoder.from_model(model) if abilities.plain_blocks else None
    found = measure_loss(SupervisedModel(model, blocks=blocks), examples, layout, micro_tokens, CPU)
    assert found.mean == pytest.approx(expected, rel=1e-5)
    assert found.perplexity == pytest.approx(2.718281828**expected, rel=1e-4)


def test_rows_on_both_sides_of_a_change_of_rotation_give_the_plain_loss() -> None:
    examples = examples_with_forks(30, vocabulary=400)
    lengths = sorted(len(example.input_ids) for example in examples)
    short = next(each for each in lengths[10:] if each + 1 not in lengths)
    assert lengths[0] < short < lengths[-1]
    model = tiny_model(rope_parameters=longrope(short))
    expected = plain_loss(model, examples)
    abilities = probe(model)
    supervised = SupervisedModel(model, blocks=BlockDecoder.from_model(model))
    assert measure_loss(supervised, examples, abilities.layout, 4096, CPU).mean == pytest.approx(expected, rel=1e-5)
    assert measure_loss(supervised, examples, SHARED, 4096, CPU).mean != pytest.approx(expected, rel=1e-3)


def test_dropout_is_off_and_every_module_as_before() -> None:
    adapted = attach_adapter(tiny_model(), Lora(dropout=0.5), seed=0, base="")
    model = SupervisedModel(adapted.get_base_model())
    model.train()
    model.model.lm_head.eval()
    before = {name: module.training for name, module in model.named_modules()}
    state = torch.random.get_rng_state()
    with evaluating(model):
        assert not any(module.training for module in model.modules())
    assert {name: module.training for name, module in model.named_modules()} == before
    assert torch.equal(torch.random.get_rng_state(), state)


def check_against_peft(recipe: Recipe) -> None:
    run = train(recipe, device="cpu")
    loaded = load_model(recipe.model, precision="fp32", device="cpu")
    prepared = prepare(recipe, framing_for(loaded.tokenizer, recipe.tokens))
    assert isinstance(recipe.validation, float)
    held = hold_out(prepared, recipe.validation)[1]
    tuned = PeftModel.from_pretrained(loaded.model, run.path / "adapter").eval()
    expected = plain_loss(tuned, [held[i] for i in range(len(held))])
    found = [event["loss"] for event in read_events(run.path) if event["event"] == "validation"]
    assert found[-1] == pytest.approx(expected, rel=0, abs=1e-4)
    assert abs(found[0] - found[-1]) > 1e-2  # so that the adapter plays a part


def test_of_a_run_equals_peft(tmp_path: Path) -> None:
    check_against_peft(make_inputs(tmp_path / "in").recipe(tmp_path / "run", validation=0.3, **{"train.epochs": 1}))


@pytest.mark.slow
def test_of_a_run_of_smollm2_equals_peft(smollm2_folder: Path, tmp_path: Path) -> None:
    train_keys = {"batch_size": 4, "max_steps": 2, "learning_rate": 1e-3, "precision": "fp32"}
    tree = {
        "model": str(smollm2_folder),
        "data": ["builtin:captain-en"],
        "validation": 0.1,
        "output": str(tmp_path / "run"),
    }
    check_against_peft(Recipe.model_validate({**tree, "train": {**train_keys, "sample_prompts": []}}))
