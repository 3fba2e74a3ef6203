"""Every kind of adapter learns, loads in plain PEFT and merges with the same logits, and resumes to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from tests.invariant.test_oracle import examples_with_forks
from tests.model.fast.test_block import distance, loss_and_gradients
from tests.tiny import save_tiny, tiny_model
from tests.training.loops import Recorder
from tests.training.test_run import StopAfter, recipe_for
from weitune import train
from weitune.data.pack import pack
from weitune.data.schedule import Plan
from weitune.errors import Interrupted, ModelError, RecipeError
from weitune.generate.open_model import merge_adapter
from weitune.model.batch import to_tensors
from weitune.model.load.weights import load_model
from weitune.recipe.load import build_recipe
from weitune.recipe.schema import Lora, Train
from weitune.training.build import make_loop, make_trainable
from weitune.training.resume.snapshot import Snapshot
from weitune.training.run import resume
from weitune.training.trainable import Trainable

CPU = torch.device("cpu")
FAST: dict[str, dict[str, Any]] = {
    "plain": {},
    "gaussian": {"init": "gaussian"},
    "rslora": {"rslora": True},
    "dora": {"dora": True},
    "dora with rslora and patterns": {"dora": True, "rslora": True, "rank_pattern": {"q_proj": 2}},
    "pissa": {"init": "pissa"},
    "pissa with rslora and patterns": {
        "init": "pissa", "rslora": True, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"down_proj": 5},
    },
    "olora": {"init": "olora"},
    "eva": {"init": "eva"},
    "lora+": {"plus_ratio": 16},
    "lora-fa": {"freeze_a": True},
    "all-linear": {"target_modules": "all-linear"},
    "one layer": {"layers": "1"},
    "patterns": {"rank_pattern": {"q_proj": 2, "mlp.down_proj": 5}, "alpha_pattern": {"q_proj": 3}},
}  # fmt: skip
"""What weitune's blocks compute themselves."""
SLOW: dict[str, dict[str, Any]] = {
    "norms": {"modules_to_save": ["input_layernorm"]},
    "head": {"modules_to_save": ["lm_head"]},
}
"""What PEFT's layers compute."""
FAST_WITH_TOKENS: dict[str, dict[str, Any]] = {"tokens": {"train_tokens": "a,b,c,d,e,f,g,h"}}
KINDS = FAST | SLOW | FAST_WITH_TOKENS


def lora_of(kind: str, **more: Any) -> Lora:
    return Lora.model_validate({"r": 4, "alpha": 8, "dropout": 0.0, **KINDS[kind], **more})


def trainable_of(folder: Path, lora: Lora) -> Trainable:
    loaded = load_model(str(save_tiny(folder / "model")), precision="fp32", device="cpu")
    examples = examples_with_forks(8, vocabulary=400)
    return make_trainable(loaded, lora, seed=1, base="tiny", steps=[examples, examples[:6]])


def logits(model: Any) -> torch.Tensor:
    """Return the logits of some tokens as transformers computes them."""
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    attention = plain.config._attn_implementation
    plain.set_attn_implementation("sdpa")
    with torch.no_grad():
        output: torch.Tensor = model.eval()(torch.arange(1, 60)[None]).logits
    plain.set_attn_implementation(attention)
    return output


@pytest.mark.parametrize("kind", KINDS)
def test_it_learns_and_loads_in_plain_peft_and_merges(kind: str, tmp_path: Path) -> None:
    from accelerate import Accelerator

    lora = lora_of(kind)
    trainable = trainable_of(tmp_path, lora)
    before = logits(tiny_model())
    torch.testing.assert_close(logits(trainable.trained.model), before, rtol=0, atol=1e-4)  # nothing has changed yet
    assert trainable.capabilities.plain_blocks == (kind not in SLOW)

    examples = examples_with_forks(12, vocabulary=400)
    loop = make_loop(
        trainable, Train(batch_size=12, learning_rate=1e-2), examples, Plan(12, 12, epochs=10, seed=0),
        accelerator=Accelerator(cpu=True), plus_ratio=lora.plus_ratio,
    )  # fmt: skip
    watcher = Recorder()
    loop.run(0, watcher)
    losses = [record.loss for record in watcher.records]
    assert losses[-1] < 0.9 * losses[0]

    trained = trainable.trained
    for name, data in Snapshot.take(10, trained, loop.optimizer, {}).files():
        (tmp_path / name).write_bytes(data)
    after = logits(trained.model)
    assert (after - before).abs().max() > 0.1
    torch.testing.assert_close(logits(PeftModel.from_pretrained(tiny_model(), tmp_path)), after, rtol=0, atol=2e-4)
    torch.testing.assert_close(logits(merge_adapter(tiny_model(), tmp_path)), after, rtol=0, atol=2e-4)


@pytest.mark.parametrize("kind", FAST | FAST_WITH_TOKENS)
def test_gradients_equal_those_of_pefts_layers(kind: str, tmp_path: Path) -> None:
    trainable = trainable_of(tmp_path, lora_of(kind))
    draw = torch.Generator().manual_seed(2)
    adapted: Any = trainable.trained.model
    for name, parameter in adapted.named_parameters():
        if ".lora_B." in name and not parameter.any():
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=draw)
    row = to_tensors(pack(examples_with_forks(12, vocabulary=400)), CPU)
    loss, gradients = loss_and_gradients(adapted, row, fast=True, head=trainable.capabilities.head)
    expected_loss, expected = loss_and_gradients(adapted, row, fast=False, head=None)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=0)
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0, name
        assert distance(gradients[name], gradient) < 1e-3, name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in {"plain", "gaussian"}])
def test_it_resumes_to_the_same_bits(kind: str, precision: Any, tmp_path: Path) -> None:
    keys = {"lora": lora_of(kind, dropout=0.2), "train": four_examples_a_step(precision)}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    train(recipe_for(tmp_path / "a", **keys), device="cpu")
    with pytest.raises(Interrupted):
        train(recipe_for(tmp_path / "b", **keys), device="cpu", reporter=StopAfter(3))
    resume(tmp_path / "b" / "run", device="cpu")
    assert_same_files(tmp_path / "a" / "run", tmp_path / "b" / "run", "adapter_model.safetensors")


def four_examples_a_step(precision: Any) -> Train:
    return Train(batch_size=4, epochs=2, checkpoint_every=2, learning_rate=1e-3, precision=precision)


def test_a_whole_model_learns_resumes_to_the_same_bits_and_answers(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    settings = four_examples_a_step("fp32")
    run = train(recipe_for(tmp_path / "a", lora="none", train=settings), device="cpu")
    losses = [event["loss"] for event in run.events() if event["event"] == "step"]
    assert losses[-1] < 0.9 * losses[0]
    with pytest.raises(Interrupted):
        train(recipe_for(tmp_path / "b", lora="none", train=settings), device="cpu", reporter=StopAfter(3))
    resume(tmp_path / "b" / "run", device="cpu")
    assert_same_files(run.path, tmp_path / "b" / "run", "model.safetensors")

    from transformers import AutoModelForCausalLM

    theirs = AutoModelForCausalLM.from_pretrained(run.path / "adapter", dtype=torch.float32)
    ours = run.engine(device="cpu").model
    assert torch.equal(logits(ours), logits(theirs))
    assert (logits(ours) - logits(tiny_model())).abs().max() > 0.1


def assert_same_files(a: Path, b: Path, name: str) -> None:
    ours, theirs = (load_file(run / "adapter" / name) for run in (a, b))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    configs = [json.loads((run / "adapter" / name.replace("model.safetensors", "config.json")).read_text())
               for run in (a, b)]  # fmt: skip
    for config in configs:
        config.pop("base_model_name_or_path", None)
    assert configs[0] == configs[1]


def test_lora_plus_moves_as_pefts_optimizer_does(tmp_path: Path) -> None:
    from peft.optimizers import create_loraplus_optimizer

    from weitune.training.optim import make_optimizer, set_learning_rate

    ours, theirs = (trainable_of(tmp_path, lora_of("lora+")).trained.model for _ in range(2))
    mine = make_optimizer(ours.named_parameters(), Train(learning_rate=1e-3), 16)
    other = create_loraplus_optimizer(theirs, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16, weight_decay=0.0)
    draw = torch.Generator().manual_seed(0)
    for _ in range(3):
        for (_, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
            if a.requires_grad:
                a.grad = torch.randn(a.shape, generator=draw)
                b.grad = a.grad.clone()
        set_learning_rate(mine, 1e-3)
        mine.step()
        other.step()
    for (name, a), (_, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7, msg=name)


def test_an_adapter_goes_on_from_another_and_must_be_of_its_kind(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = train(recipe_for(tmp_path / "a", lora=Lora(r=4)), device="cpu")
    second = recipe_for(tmp_path / "b", lora=Lora(r=4, init_from=str(first.path)), model=first.recipe.model)
    run = train(second, device="cpu")
    losses = [[e["loss"] for e in each.events() if e["event"] == "step"] for each in (first, run)]
    assert losses[1][0] < losses[0][0]
    with pytest.raises(ModelError, match=r"lora\.r is 8 in the recipe and 4 in the adapter"):
        train(recipe_for(tmp_path / "b", lora=Lora(init_from=str(first.path)), output=str(tmp_path / "c")))
    with pytest.raises(ModelError, match="no adapter"):
        train(recipe_for(tmp_path / "b", lora=Lora(init_from=str(tmp_path)), output=str(tmp_path / "c")))
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ({"layers": "1-2"}, "lora.layers"),
        ({"target_modules": ["qkv"]}, "lora.target_modules"),
        ({"modules_to_save": ["head"]}, "lora.modules_to_save"),
        ({"train_tokens": ["<|never|>"]}, "lora.train_tokens"),
        ({"init": "eva", "r": 999}, "lora.init eva"),
    ],
)
def test_what_the_model_does_not_have_is_refused(lora: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=message):
        trainable_of(tmp_path, Lora.model_validate({"target_modules": ["k_proj"], **lora}))


@pytest.mark.parametrize(
    "overrides",
    [
        {"lora.init": "loftq"},
        {"lora.init": "pissa", "train.storage": "nf4"},
        {"lora.init": "olora", "lora.dora": True},
        {"lora.freeze_a": True, "lora.plus_ratio": 16},
        {"lora.init": "eva", "lora.init_from": "runs/x"},
        {"lora": "none", "train.precision": "bf16"},
        {"lora": "none", "train.storage": "int8"},
    ],
)
def test_what_does_not_go_together_is_refused_by_name(overrides: dict[str, Any]) -> None:
    with pytest.raises(RecipeError) as caught:
        build_recipe({"model": "m", "data": ["d.json"]}, overrides)
    assert any(key in caught.value.message for key in overrides)
