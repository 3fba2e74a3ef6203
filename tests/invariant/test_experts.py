"""Adapters of experts learn as in plain PEFT, load in PEFT, merge, answer, and resume to the same bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from peft.tuners.lora.layer import ParamWrapper
from safetensors.torch import load_file

from bench.reference import in_plan_order, losses, make_trainer, rows_of
from tests.families import family_model, save_family, template_of
from tests.faults.test_several_processes import adapter, finish, weitune
from tests.invariant.test_adapter_family import assert_same_files
from tests.invariant.test_oracle import examples_with_forks
from tests.tiny import tiny_tokenizer
from tests.training.loops import Recorder
from tests.training.test_run import DIALOGUES, StopAfter
from weitune import Recipe, train
from weitune.data.schedule import Plan
from weitune.errors import Interrupted, ModelError, RecipeError
from weitune.forecast.meta_model import build_meta_model
from weitune.generate.open_model import attach_saved_adapter, merge_adapter
from weitune.model.load.locate import locate
from weitune.model.load.weights import load_model
from weitune.recipe.load import build_recipe, dump_recipe
from weitune.recipe.schema import Lora, Train
from weitune.training.build import make_loop, make_trainable
from weitune.training.resume.snapshot import Snapshot
from weitune.training.run import resume
from weitune.training.trainable import Trainable

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
FAMILIES = ["qwen3_moe", "mixtral", "gpt_oss", "llama4_text"]
STEPS, BATCH = 10, 4
LEARNING_RATE = 2e-3


def trainable_of(folder: Path, family: str, lora: Lora) -> Trainable:
    loaded = load_model(str(save_family(folder / "model", family)), precision="fp32", device="cpu")
    return make_trainable(loaded, lora, seed=1, base="tiny")


def logits(model: Any) -> torch.Tensor:
    """Return the logits of some tokens as transformers computes them."""
    plain = model.get_base_model() if isinstance(model, PeftModel) else model
    attention = plain.config._attn_implementation
    plain.set_attn_implementation("eager")
    with torch.no_grad():
        output: torch.Tensor = model.eval()(torch.arange(1, 60)[None]).logits
    plain.set_attn_implementation(attention)
    return output


def plain_peft(family: str, lora: Lora, start: dict[str, torch.Tensor]) -> Any:
    """Return the model with PEFT's adapter of the same parameters, which begins with ``start``."""
    model = family_model(family)
    experts = "feed_forward.experts" if family == "llama4_text" else "mlp.experts"
    names, rank = (
        [f"{experts}.gate_up_proj", f"{experts}.down_proj"],
        lora.r if family == "llama4_text" else lora.r // 2,
    )
    config = LoraConfig(
        r=lora.r, lora_alpha=lora.alpha, target_modules=list(lora.target_modules), target_parameters=names,
        rank_pattern=dict.fromkeys(names, rank), alpha_pattern=dict.fromkeys(names, lora.alpha * rank / lora.r),
    )  # fmt: skip
    adapted = get_peft_model(model, config)
    result = set_peft_model_state_dict(adapted, start)
    assert not result.unexpected_keys
    return adapted


@pytest.mark.filterwarnings("ignore:The following .* keys did not match any targeted module")
@pytest.mark.parametrize("family", FAMILIES)
def test_experts_learn_as_in_plain_peft_and_peft_loads_them(family: str, tmp_path: Path) -> None:
    lora = Lora(r=4, alpha=8, dropout=0.0, target_modules=ATTENTION, experts=True)
    trainable = trainable_of(tmp_path, family, lora)
    model: Any = trainable.trained.model
    before = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    start = {name: tensor.clone() for name, tensor in trainable.trained.tensors().items()}
    untouched = logits(family_model(family))
    torch.testing.assert_close(logits(model), untouched, rtol=0, atol=1e-5)

    examples = examples_with_forks(24, vocabulary=400)
    plan = Plan(len(examples), BATCH, epochs=2, seed=3, max_steps=STEPS)
    theirs = plain_peft(family, lora, start)
    trainer = make_trainer(
        theirs, tiny_tokenizer(template_of(family)), rows_of(in_plan_order(examples, plan)),
        batch_size=BATCH, learning_rate=LEARNING_RATE,
    )  # fmt: skip
    trainer.train()

    settings = Train(batch_size=BATCH, learning_rate=LEARNING_RATE)
    loop = make_loop(trainable, settings, examples, plan, accelerator=Accelerator(cpu=True))
    watcher = Recorder()
    loop.run(0, watcher)
    assert len(watcher.records) == STEPS
    assert [record.loss for record in watcher.records] == pytest.approx(losses(trainer), rel=1e-4)

    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (".lora_" in name)
        if not parameter.requires_grad:  # the router among them
            assert parameter.grad is None
            assert torch.equal(parameter, before[name]), name
    moved = [name for name, tensor in trainable.trained.tensors().items() if not torch.equal(tensor, start[name])]
    assert sorted(moved) == sorted(start)

    for name, data in Snapshot.take(STEPS, trainable.trained, loop.optimizer, {}).files():
        (tmp_path / name).write_bytes(data)
    after = logits(model)
    assert (after - untouched).abs().max() > 0.01
    torch.testing.assert_close(logits(PeftModel.from_pretrained(family_model(family), tmp_path)), after, rtol=0, atol=0)
    torch.testing.assert_close(logits(merge_adapter(family_model(family), tmp_path)), after, rtol=0, atol=2e-4)


def recipe_of(folder: Path, family: str, lora: dict[str, Any], **keys: Any) -> Recipe:
    folder.mkdir()
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in DIALOGUES))
    fields = {
        "model": str(save_family(folder / "model", family)),
        "data": [str(data)],
        "output": str(folder / "run"),
        "lora": {"r": 4, "experts": True, "dropout": 0.2, **lora},
        "train": {"batch_size": 4, "epochs": 2, "checkpoint_every": 2, "learning_rate": 1e-3, **keys},
    }
    return Recipe.model_validate(fields)


@pytest.mark.parametrize(
    ("family", "lora", "keys"),
    [
        ("qwen2_moe", {}, {"precision": "fp32"}),
        ("gpt_oss", {"plus_ratio": 16}, {"precision": "bf16"}),
        ("llama4_text", {"freeze_a": True, "init": "gaussian"}, {"precision": "bf16", "storage": "bf16"}),
        ("mixtral", {"rslora": True, "layers": "1"}, {"precision": "fp32", "recompute": "block"}),
        ("glm4_moe", {"rank_pattern": {"down_proj": 3}}, {"precision": "fp32"}),
    ],
    ids=["qwen2_moe", "gpt_oss", "llama4", "mixtral", "glm4_moe"],
)
def test_a_run_is_counted_resumes_to_the_same_bits_and_answers(
    family: str, lora: dict[str, Any], keys: dict[str, Any], tmp_path: Path
) -> None:
    recipe = recipe_of(tmp_path / "a", family, lora, **keys)
    run = train(recipe, device="cpu")
    with pytest.raises(Interrupted):
        train(recipe_of(tmp_path / "b", family, lora, **keys), device="cpu", reporter=StopAfter(3))
    resume(tmp_path / "b" / "run", device="cpu")
    assert_same_files(run.path, tmp_path / "b" / "run", "adapter_model.safetensors")

    config = json.loads((run.path / "adapter" / "adapter_config.json").read_text())
    assert config["lora_dropout"] == 0.0
    assert config["target_parameters"]
    tensors = load_file(run.path / "adapter" / "adapter_model.safetensors")
    assert any("experts" in name and "shared" not in name for name in tensors)
    assert not any("router" in name or ".gate." in name for name in tensors)
    meta = build_meta_model(locate(recipe.model), recipe.adapter)
    frozen = sum(t.numel() for name, t in tensors.items() if ".lora_A." in name) if lora.get("freeze_a") else 0
    assert meta.trainable == sum(t.numel() for t in tensors.values()) - frozen
    assert isinstance(run.chat("Who are you?", device="cpu", max_new_tokens=5), str)

    theirs = PeftModel.from_pretrained(family_model(family), run.path / "adapter")
    merged = merge_adapter(family_model(family), run.path / "adapter")
    torch.testing.assert_close(logits(theirs), logits(merged), rtol=0, atol=2e-4)


@pytest.mark.slow
def test_two_processes_learn_the_same_experts_as_one(tmp_path: Path) -> None:
    keys = {"precision": "fp32", "epochs": 1}
    alone = train(recipe_of(tmp_path / "a", "qwen3_moe", {"dropout": 0.0}, **keys), device="cpu")
    recipe = recipe_of(tmp_path / "b", "qwen3_moe", {"dropout": 0.0}, **keys)
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    finish(weitune("--devices", "2", str(tmp_path / "recipe.yaml")))
    ours, theirs = (adapter(run) for run in (tmp_path / "b" / "run", alone.path))
    assert (ours - theirs).norm() / theirs.norm() < 1e-5


def test_linear_layers_keep_their_dropout_and_experts_have_none(tmp_path: Path) -> None:
    lora = Lora(dropout=0.3, target_modules=ATTENTION, experts=True)
    trainable = trainable_of(tmp_path, "qwen3_moe", lora)
    rates = {}
    for name, module in trainable.trained.model.named_modules():
        if hasattr(module, "lora_dropout"):
            dropout = module.lora_dropout["default"]
            rates["experts" in name, getattr(dropout, "p", 0.0)] = True
    assert set(rates) == {(False, 0.3), (True, 0.0)}


def test_a_start_depends_on_the_seed_alone_and_its_width_on_the_rank_of_one_expert(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    lora = Lora(target_modules=ATTENTION, experts=True, init="gaussian")
    one, two = (trainable_of(tmp_path / name, "mixtral", lora).trained.tensors() for name in ("a", "b"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    rank = 4
    drawn = [tensor.flatten() for name, tensor in one.items() if "experts" in name and ".lora_A." in name]
    assert float(torch.cat(drawn).std()) == pytest.approx(1 / rank, rel=0.05)  # not 1 / (experts · rank)
    assert all(not tensor.any() for name, tensor in one.items() if ".lora_B." in name)


def test_a_model_without_experts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"lora\.experts") as caught:
        trainable_of(tmp_path, "qwen2", Lora(experts=True))
    assert "lora.experts" in caught.value.fix


@pytest.mark.parametrize(
    "overrides",
    [
        {"lora.dora": True},
        {"lora.init": "pissa"},
        {"lora.init": "olora"},
        {"lora.init": "eva"},
        {"lora.init": "loftq", "train.storage": "nf4"},
        {"train.shard": True},
    ],
    ids=str,
)
def test_what_experts_cannot_have_is_refused_before_anything_is_loaded(overrides: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=r"lora\.experts"):
        build_recipe({"model": "m", "data": ["d.json"]}, {"lora.experts": True, **overrides})


def test_experts_beside_a_quantized_base_are_merged_to_answer(tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    run = train(recipe_of(tmp_path / "a", "mixtral", {"dropout": 0.0}, storage="int8", epochs=1), device="cpu")
    apart, merged = (load_model(run.recipe.model, storage="int8", device="cpu").model for _ in range(2))
    wrappers: list[list[Any]] = [
        [module for module in model.modules() if isinstance(module, ParamWrapper)]
        for model in (attach_saved_adapter(apart, run.path / "adapter"), merge_adapter(merged, run.path / "adapter"))
    ]
    assert len(wrappers[0]) == len(wrappers[1]) == 4
    for one, other in zip(*wrappers, strict=True):
        weight, update = one.get_param().float(), one.get_delta_weight("default").float()
        assert other.merged
        assert update.abs().max() > 0
        torch.testing.assert_close(other.get_param().float(), weight + update, rtol=2**-8, atol=0)
    assert isinstance(run.chat("Who are you?", device="cpu", max_new_tokens=3), str)
