"""Which parameters are experts', what PEFT is told of them, and the update that a saved adapter holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

from tests.families import family_model
from tests.tiny import tiny_model
from weitune.model.load.names import ModelNames
from weitune.model.lora.experts import (
    ExpertUpdate,
    expert_parameters,
    expert_targets,
    experts_per_token,
    names_peft_takes_for_experts,
)
from weitune.model.lora.targets import find_targets
from weitune.model.lora.wrapped_adapter import config_in_wrapper
from weitune.recipe.schema import Lora

FAMILIES = ["qwen3_moe", "mixtral", "gpt_oss", "llama4_text", "granitemoe", "nemotron_h"]


def adapted_by_peft(model: Any, lora: Lora) -> Any:
    """Return ``model`` with adapters on its experts alone, all of whose matrices are random."""
    targets = expert_targets(model, lora)
    config = LoraConfig(
        r=lora.r, lora_alpha=lora.alpha, target_modules=[], target_parameters=targets.target_parameters,
        rank_pattern={**(lora.rank_pattern or {}), **targets.rank_pattern},
        alpha_pattern={**(lora.alpha_pattern or {}), **targets.alpha_pattern},
        use_rslora=lora.rslora, init_lora_weights=False,
    )  # fmt: skip
    return get_peft_model(model, config)


@pytest.mark.filterwarnings("ignore:The following .* keys did not match any targeted module")
@pytest.mark.parametrize("rslora", [False, True], ids=["lora", "rslora"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_update_is_the_one_that_peft_adds(family: str, rslora: bool) -> None:
    from peft.tuners.lora.layer import ParamWrapper

    model = family_model(family)
    lora = Lora(r=6, alpha=20, rslora=rslora)
    targets, shapes = expert_targets(model, lora), {name: p.shape for name, p in model.named_parameters()}
    adapted = adapted_by_peft(model, lora)
    saved = {name.removeprefix("base_model.model."): t for name, t in get_peft_model_state_dict(adapted).items()}
    wrappers = [each for each in adapted.modules() if isinstance(each, ParamWrapper)]
    assert len(wrappers) == len(targets.parameters) > 0
    assert 2 * len(wrappers) == len(saved)
    assert sum(t.numel() for t in saved.values()) == sum(targets.adapter_numbers())
    scale = 20 / 6 if not rslora else 20 / 6**0.5
    for parameter in targets.parameters:
        a, b = (saved[f"{parameter.adapter}.lora_{letter}.weight"] for letter in "AB")
        update = ExpertUpdate(a, b, scale, parameter.shape[0], parameter.transposed)
        wrapper: Any = adapted.get_submodule(f"base_model.model.{parameter.adapter}")
        assert wrapper.parameter_name == parameter.name
        assert wrapper.scaling["default"] == pytest.approx(scale, rel=1e-12)
        assert update.rank == wrapper.r["default"] == max(1, 6 // experts_per_token(model.config))
        assert update.shape == tuple(parameter.shape) == tuple(shapes[parameter.full_name])
        torch.testing.assert_close(torch.stack(list(update.of_all())), wrapper.get_delta_weight("default"))


@pytest.mark.parametrize("family", ["qwen2_moe", "ernie4_5_moe", "hunyuan_v1_moe", "qwen3_next", "lfm2_moe"])
def test_only_experts_are_taken_and_never_routers_or_shared_experts(family: str) -> None:
    names = {parameter.full_name for parameter in expert_parameters(family_model(family))}
    assert names
    assert {name.rsplit(".", 2)[-2] for name in names} == {"experts"}
    assert {name.rsplit(".", 1)[-1] for name in names} == {"gate_up_proj", "down_proj"}


def test_a_dense_model_has_no_experts() -> None:
    targets = expert_targets(tiny_model(), Lora())
    assert targets.parameters == targets.target_parameters == []
    assert targets.rank_pattern == targets.alpha_pattern == {}


def test_the_rank_is_divided_by_the_experts_of_a_token_and_the_scale_kept() -> None:
    model = family_model("mixtral", num_experts_per_tok=3)
    for r, rank in ((1, 1), (2, 1), (8, 2), (9, 3)):
        targets = expert_targets(model, Lora(r=r, alpha=10))
        assert set(targets.ranks.values()) == {rank}
        for alpha in targets.alpha_pattern.values():
            assert alpha / rank == pytest.approx(10 / r, rel=1e-12)
        assert bool(targets.alpha_pattern) == (r != rank)


def test_layers_and_patterns_choose_among_experts() -> None:
    model = family_model("mixtral")
    gate_up, down = (f"mlp.experts.{name}" for name in ("gate_up_proj", "down_proj"))
    assert expert_targets(model, Lora(), layers={1}).target_parameters == [f"1.{gate_up}", f"1.{down}"]

    lora = Lora(rank_pattern={"down_proj": 3, rf"0\.{gate_up}": 5}, alpha_pattern={gate_up: 7})
    targets = expert_targets(model, lora)
    ranks = {name.removeprefix("model.layers."): rank for name, rank in targets.ranks.items()}
    assert ranks == {f"0.{gate_up}": 5, f"0.{down}": 3, f"1.{gate_up}": 4, f"1.{down}": 3}
    assert targets.rank_pattern == {f"1.{gate_up}": 4}  # no key that overlaps the recipe's
    assert targets.alpha_pattern == {}
    numbers = sum(p.numel() for p in adapted_by_peft(model, lora).parameters() if p.requires_grad)
    assert numbers == sum(targets.adapter_numbers())


@pytest.mark.parametrize("family", ["glm4_moe", "deepseek_v3", "ernie4_5_moe", "qwen3_next", "qwen2_moe", "gpt_oss"])
def test_names_that_peft_takes_for_experts_are_known(family: str) -> None:
    model = family_model(family)
    names = {"gate_proj", "up_proj", "down_proj"}
    taken = names_peft_takes_for_experts(model.config.model_type)
    assert taken.isdisjoint(names) or taken >= names
    config = get_peft_model(model, LoraConfig(target_modules=["q_proj", "q_b_proj", *names])).peft_config["default"]
    assert bool(config.target_parameters) == bool(taken)


def test_layers_that_peft_takes_for_experts_get_no_dora() -> None:
    targets = find_targets(family_model("deepseek_v3"), Lora(dora=True))
    assert {name.rsplit(".", 1)[-1] for name, why in targets.left_out.items() if why == "dora"} == {
        "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip
    assert targets.weights == ()
    assert "o_proj" in targets.target_modules
    assert "gate_proj" not in targets.target_modules


def test_an_adapter_is_named_as_peft_reads_it_in_a_wrapper_whose_tower_has_layers_of_the_same_names() -> None:
    assert names_peft_takes_for_experts("glm4v_moe_text") == names_peft_takes_for_experts("glm4v_moe") != frozenset()
    names = ModelNames((("model", "model.language_model"),), towers=("model.visual.blocks.0.mlp.gate_proj",))
    adapted = ["model.layers.0.mlp.gate_proj", "model.layers.1.mlp.shared_experts.gate_proj"]
    config = {"target_modules": [], "target_parameters": ["gate_proj.weight", "mlp.experts.down_proj"]}
    assert config_in_wrapper(config, adapted, [], names)["target_parameters"] == [
        "mlp.experts.down_proj",
        "model.language_model.layers.0.mlp.gate_proj.weight",
        "model.language_model.layers.1.mlp.shared_experts.gate_proj.weight",
    ]
