"""What of a model gets an adapter: automatic, by name, and as a run recorded it; PEFT and the count agree with it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn

from tests.families import FAMILIES, family_config
from weitune.errors import ModelError
from weitune.model.load.text_model import model_from_config, text_config
from weitune.model.lora.adapter import attach_adapter, count_adapted, count_parameters
from weitune.model.lora.linear_layers import LinearLayers
from weitune.model.lora.targets import Targets, find_targets, layer_numbers
from weitune.recipe.schema import PROJECTIONS, Lora

LLAMA_LIKE = ["qwen2", "qwen3", "llama", "mistral", "ministral", "ministral3", "ernie4_5", "granite", "seed_oss",
              "gemma", "gemma2", "gemma3_text", "smollm3", "olmo2", "olmo3", "exaone4", "cohere2", "hunyuan_v1_dense",
              "stablelm"]  # fmt: skip
EXPERTS = {"mlp.experts.gate_up_proj", "mlp.experts.down_proj"}
LLAMA4_EXPERTS = {"feed_forward.experts.gate_up_proj", "feed_forward.experts.down_proj"}


def meta_model(name: str, **overrides: Any) -> Any:
    """Return the text model of the family ``name`` without weights."""
    with torch.device("meta"):
        return model_from_config(text_config(family_config(name, **overrides)))


def adapted_by_peft(model: Any) -> list[str]:
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [name for name, module in model.get_base_model().named_modules() if isinstance(module, BaseTunerLayer)]


def left_out(targets: Targets) -> Mapping[str, set[str]]:
    return {why: set(counts) for why, counts in targets.counts_left_out().items()}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_linear_layer_is_adapted_or_named_and_peft_and_the_count_agree(name: str) -> None:
    model = meta_model(name)
    linear = [each for each, module in model.named_modules() if isinstance(module, nn.Linear)]
    targets, counted = find_targets(model, Lora()), count_adapted(model, Lora())
    assert set(linear) <= {*targets.adapted, *targets.left_out}
    assert not set(targets.adapted) & targets.left_out.keys()
    adapted = attach_adapter(model, Lora(), seed=0, base=name)
    assert sorted(adapted_by_peft(adapted)) == sorted(targets.adapted)
    assert count_parameters(adapted) == counted


@pytest.mark.parametrize("name", LLAMA_LIKE)
def test_auto_is_the_seven_projections_in_their_order_on_models_like_llama(name: str) -> None:
    targets = find_targets(meta_model(name), Lora())
    assert targets.target_modules == list(PROJECTIONS)
    assert left_out(targets) == {"head": {"lm_head"}}
    assert targets.counts() == {f"{'self_attn' if name[0] in 'qkvo' else 'mlp'}.{name}": 2 for name in PROJECTIONS}


@pytest.mark.parametrize(
    ("name", "also", "without"),
    [
        ("phi3", {"self_attn.qkv_proj", "mlp.gate_up_proj"}, {}),
        ("glm4", {"mlp.gate_up_proj"}, {}),
        ("starcoder2", {"mlp.c_fc", "mlp.c_proj"}, {}),
        ("gemma4_text", {"per_layer_input_gate", "per_layer_projection"},
         {"outside_blocks": {"model.per_layer_model_projection"}}),
        ("qwen3_5_text", {f"linear_attn.{each}" for each in ("in_proj_qkv", "in_proj_z", "in_proj_a", "out_proj")}, {}),
        ("qwen3_next", {"linear_attn.in_proj_ba", "linear_attn.out_proj", "mlp.shared_expert.down_proj"},
         {"experts": EXPERTS, "router": {"mlp.gate", "mlp.shared_expert_gate"}}),
        ("hunyuan_v1_moe", {"mlp.shared_mlp.up_proj"}, {"experts": EXPERTS, "router": {"mlp.gate.wg"}}),
        ("deepseek_v3", {"self_attn.kv_b_proj", "mlp.gate_proj", "mlp.shared_experts.gate_proj"},
         {"experts": EXPERTS, "router": {"mlp.gate"}}),
        ("gpt_oss", {"self_attn.q_proj"}, {"experts": EXPERTS, "router": {"mlp.router"}}),
        ("llama4_text", {"feed_forward.shared_expert.up_proj"},
         {"experts": LLAMA4_EXPERTS, "router": {"feed_forward.router"}}),
        ("lfm2", {"conv.in_proj", "conv.out_proj", "feed_forward.w2", "self_attn.out_proj"}, {}),
        ("falcon_h1", {"mamba.in_proj", "self_attn.q_proj"}, {"fused": {"mamba.out_proj"}}),
        ("bamba", {"mamba.in_proj"}, {"fused": {"mamba.out_proj"}}),
        ("nemotron_h", {"mixer.in_proj", "mixer.q_proj"}, {"fused": {"mixer.out_proj"}, "router": {"mixer.gate"}}),
        ("jamba", {"mamba.x_proj", "mamba.out_proj"},
         {"fused": {"mamba.dt_proj"}, "router": {"feed_forward.router"}}),
    ],
)  # fmt: skip
def test_layers_of_other_names_are_found_and_the_rest_is_named(
    name: str, also: set[str], without: Mapping[str, set[str]]
) -> None:
    targets = find_targets(meta_model(name), Lora())
    assert also <= targets.counts().keys()
    for why, kinds in without.items():
        assert kinds <= left_out(targets)[why]
    assert left_out(targets).keys() <= {"head", "experts", *without}


def test_an_indexer_is_left_out_since_it_gets_no_gradient() -> None:
    model = nn.Module()
    model.layers = nn.ModuleList([nn.ModuleDict({"indexer": nn.Linear(2, 2), "q_proj": nn.Linear(2, 2)})])
    model.config = family_config("qwen2")
    assert LinearLayers(model).reasons() == {"layers.0.indexer": "indexer", "layers.0.q_proj": None}


def test_a_class_that_computes_something_else_is_left_out_and_cannot_be_named() -> None:
    class Twice(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  (the parameter's name there)
            return super().forward(input).repeat(1, 2)

    class Slow(nn.Linear):
        def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002
            return input @ self.weight.T

    model = meta_model("qwen2")
    model.model.layers[0].mlp.up_proj = Twice(64, 128)
    model.model.layers[1].mlp.up_proj = Slow(64, 128, bias=False)
    targets = find_targets(model, Lora())
    assert targets.left_out["model.layers.0.mlp.up_proj"] == "own_forward"
    assert "model.layers.1.mlp.up_proj" in targets.adapted
    assert isinstance(targets.target_modules, str)
    model.model.layers[1].mlp.up_proj = Twice(64, 128)
    with pytest.raises(ModelError, match="'up_proj' cannot be adapted"):
        find_targets(model, Lora(target_modules=["up_proj"]))


def test_transposed_matrices_as_gpt_2_has_them_are_adapted() -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gpt2", n_layer=2, n_embd=32, n_head=2))
    targets, counted = find_targets(model, Lora()), count_adapted(model, Lora())
    assert targets.counts() == {"attn.c_attn": 2, "attn.c_proj": 2, "mlp.c_fc": 2, "mlp.c_proj": 2}
    assert count_parameters(attach_adapter(model, Lora(), seed=0, base="gpt2")) == counted


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("qwen3_5_text", {"layers": ["1"]}),
        ("qwen3_next", {"layers": ["0"], "rank_pattern": {"out_proj": 3, "shared_expert.up_proj": 5}}),
        ("glm4_moe", {"layers": ["1"], "freeze_a": True}),
        ("deepseek_v3", {"dora": True}),
        ("hunyuan_v1_moe", {"target_modules": ["gate.wg", "shared_mlp.up_proj"]}),
        ("glm4_moe", {"target_modules": ["gate_proj", "up_proj"]}),
        ("falcon_h1", {"target_modules": ["all-linear"], "modules_to_save": ["feed_forward"]}),
        ("phi3", {"modules_to_save": ["lm_head"], "train_tokens": ["a", "b"]}),
        ("lfm2", {"target_modules": ["out_proj"], "layers": ["0"], "dora": True}),
    ],
    ids=str,
)  # fmt: skip
def test_choices_of_layers_are_what_peft_adapts(name: str, keys: dict[str, Any]) -> None:
    lora, model = Lora.model_validate(keys), meta_model(name)
    targets, again = find_targets(model, lora), meta_model(name)
    counted = count_adapted(model, lora)
    tokens = range(len(lora.train_tokens or ()))
    adapted = attach_adapter(model, lora, seed=0, base=name, token_ids=tokens)
    from peft.tuners.lora.layer import LoraLayer

    with_adapter = [each for each, m in adapted.get_base_model().named_modules() if isinstance(m, LoraLayer)]
    assert sorted(with_adapter) == sorted(targets.adapted)
    if not (lora.modules_to_save or lora.train_tokens):
        assert count_parameters(adapted) == counted
    recorded = find_targets(again, lora, targets.record())
    assert (recorded.adapted, recorded.target_modules) == (targets.adapted, targets.target_modules)


def test_a_record_stands_whatever_auto_means() -> None:
    record = {"target_modules": ["q_proj", "mamba.out_proj"], "layers_to_transform": [1], "target_parameters": None}
    targets = find_targets(meta_model("falcon_h1"), Lora(), record)
    assert targets.adapted == ("model.layers.1.mamba.out_proj", "model.layers.1.self_attn.q_proj")
    assert targets.left_out["model.layers.0.mamba.in_proj"] == "other"


@pytest.mark.parametrize(
    ("name", "keys", "told"),
    [
        ("qwen2", {"target_modules": ["q_proj", "wq", "wk"]}, ["'wq', 'wk'", "q_proj, k_proj", "`auto`"]),
        ("qwen2", {"target_modules": ["lm_head"]}, ["'lm_head'"]),
        ("qwen3_moe", {"target_modules": ["mlp.gate"]}, ["no linear layer named 'mlp.gate'"]),
        ("llama4_text", {"target_modules": ["q_proj", "router"]}, ["'router' cannot be adapted"]),
        ("falcon_h1", {"target_modules": ["mamba.out_proj"]}, ["'mamba.out_proj' cannot be adapted", "fused kernel"]),
        ("qwen3_5_text", {"target_modules": ["self_attn.q_proj"], "layers": ["0"]}, ["leave no layer"]),
        ("qwen2", {"modules_to_save": ["head"]}, ["no module named 'head'", "lm_head"]),
        ("qwen2", {"modules_to_save": ["vision.norm"]}, ["no module named 'vision.norm'"]),
        ("qwen2", {"modules_to_save": ["norm"]}, ["input_layernorm, post_attention_layernorm as", ": model.norm."]),
        ("qwen2", {"rank_pattern": {"q_proj": 2, "wq": 4}}, ["lora.rank_pattern: 'wq'", "down_proj", "q_proj"]),
        ("qwen2", {"layers": ["0"], "alpha_pattern": {r"layers\.1\..*": 4}}, ["lora.alpha_pattern: 'layers"]),
    ],
)
def test_names_that_fit_nothing_are_explained(name: str, keys: dict[str, Any], told: list[str]) -> None:
    with pytest.raises(ModelError) as caught:
        find_targets(meta_model(name), Lora.model_validate(keys))
    assert all(part in f"{caught.value.message} {caught.value.fix}" for part in told), caught.value


def test_a_router_is_adapted_if_the_recipe_names_it_and_that_is_said() -> None:
    targets = find_targets(meta_model("qwen2_moe"), Lora(target_modules=["q_proj", "shared_expert_gate"]))
    assert targets.counts() == {"self_attn.q_proj": 2, "mlp.shared_expert_gate": 2}
    assert "routers of experts, which are adapted too: mlp.shared_expert_gate ×2" in "\n".join(targets.lines())


def test_what_is_adapted_and_what_is_not_is_said_by_kind() -> None:
    targets = find_targets(meta_model("qwen3_next"), Lora())
    adapted, not_adapted = targets.lines()
    assert adapted.startswith(
        "adapters on 13 layers: linear_attn.in_proj_qkvz, in_proj_ba, out_proj; mlp.shared_expert."
    )
    assert "mlp.gate, shared_expert_gate ×2 (router or gate of experts)" in not_adapted
    told = targets.to_json()
    assert told["adapted"]["mlp.shared_expert.up_proj"] == 2
    assert {"name": "lm_head", "count": 1, "why": "output head"} in told["not_adapted"]


@pytest.mark.parametrize("layers", ["1-0", "0,1-0", "7"])
def test_layers_that_are_not_there_are_refused(layers: str) -> None:
    with pytest.raises(ModelError, match="layer"):
        layer_numbers(meta_model("qwen2"), layers.split(","))
    assert layer_numbers(meta_model("qwen2"), ["0-1"]) == [0, 1]
