"""The adapter: its size on the model of the tutorial, its start, and names that do not exist."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.invariant.test_oracle import examples_with_forks
from tests.tiny import tiny_model
from tests.training.loops import fit
from weitune.data.schedule import Plan
from weitune.errors import ModelError
from weitune.model.lora.adapter import attach_adapter, count_adapted, count_parameters
from weitune.recipe.schema import Lora, Train

QWEN25_7B = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 32768,
    "rope_theta": 1000000.0,
    "tie_word_embeddings": False,
}
"""The configuration of Qwen2.5-7B-Instruct as published."""


def test_qwen25_7b_has_the_tutorials_number_of_trainable_parameters() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("qwen2", **QWEN25_7B))
        adapted = attach_adapter(model, Lora(), seed=0, base="Qwen/Qwen2.5-7B-Instruct")
    count = count_parameters(adapted)
    assert (count.trainable, count.total) == (20_185_088, 7_635_801_600)
    assert str(count) == "trainable parameters: 20,185,088 of 7,635,801,600 (0.2643 %)"


@pytest.mark.parametrize(
    "keys",
    [
        {}, {"target_modules": ["all-linear"]}, {"target_modules": ["self_attn.q_proj", "down_proj"]},
        {"layers": ["1"]}, {"rank_pattern": {"down_proj": 3, r"layers\.0\..*q_proj": 5}}, {"dora": True},
        {"freeze_a": True},
    ],
    ids=str,
)  # fmt: skip
def test_the_adapter_is_counted_as_peft_makes_it(keys: dict[str, Any]) -> None:
    lora = Lora.model_validate(keys)
    counted = count_adapted(tiny_model(), lora)
    assert counted == count_parameters(attach_adapter(tiny_model(), lora, seed=0, base="tiny"))


def test_a_fresh_adapter_changes_nothing_and_depends_on_the_seed_alone() -> None:
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        plain = tiny_model()(tokens).logits
        one = attach_adapter(tiny_model(), Lora(), seed=5, base="tiny")
        torch.rand(7)
        same = attach_adapter(tiny_model(), Lora(), seed=5, base="tiny")
        other = attach_adapter(tiny_model(), Lora(), seed=6, base="tiny")
        assert torch.equal(one.eval()(tokens).logits, plain)
    trained = [{name: p for name, p in model.named_parameters() if p.requires_grad} for model in (one, same, other)]
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])
    assert any(not torch.equal(trained[0][name], trained[2][name]) for name in trained[0])
    # LoRA's start: A is Kaiming uniform with a = sqrt(5), that is uniform within 1/sqrt(columns)
    a = torch.cat([p.flatten() * p.shape[1] ** 0.5 for name, p in trained[0].items() if ".lora_A." in name])
    assert float(a.detach().abs().max()) <= 1
    assert float(a.detach().std()) == pytest.approx(3**-0.5, rel=0.05)
    assert all(not p.any() for name, p in trained[0].items() if ".lora_B." in name)


def test_an_unknown_target_module_is_named_with_those_that_exist() -> None:
    with pytest.raises(ModelError) as caught:
        attach_adapter(tiny_model(), Lora(target_modules=["q_proj", "qkv_proj"]), seed=0, base="tiny")
    assert "'qkv_proj'" in caught.value.message
    assert "'q_proj'" not in caught.value.message
    assert "q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj" in caught.value.fix


@pytest.mark.parametrize("tied", [False, True])
def test_modules_that_are_trained_whole_learn_in_float32_beside_bfloat16(tied: bool) -> None:
    """A step of 1e-4 would vanish in bfloat16, whose numbers near 1 are 0.008 apart."""
    base, model = (tiny_model("qwen2", tie_word_embeddings=tied).bfloat16() for _ in range(2))
    lora = Lora(dropout=0.0, modules_to_save=["lm_head", "input_layernorm"])
    adapted = attach_adapter(model, lora, seed=1, base="tiny")
    saved = {name: p for name, p in adapted.named_parameters() if ".modules_to_save." in name}
    assert len(saved) == 3
    assert {parameter.dtype for parameter in saved.values()} == {torch.float32}
    ids = torch.arange(5, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(adapted(ids).logits, base(ids).logits, rtol=2e-2, atol=2e-2)
    before = {name: parameter.detach().clone() for name, parameter in saved.items()}
    examples = examples_with_forks(8, vocabulary=400)
    fit(adapted, examples, Plan(len(examples), 4, epochs=2, seed=0), Train(batch_size=4, learning_rate=1e-4))
    for name, parameter in saved.items():
        moved = (parameter - before[name]).abs()
        assert 1e-5 < float(moved.max()) < 1e-3, name
