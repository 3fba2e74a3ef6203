"""A base model draws no dropout in training."""

from __future__ import annotations

import torch

from tests.families import family_model
from weitune.generate.decode.by_transformers import for_generation
from weitune.model.own_dropout import turn_off_own_dropout, turn_off_own_noise


def test_a_model_without_its_own_dropout_trains_as_it_answers() -> None:
    model = family_model("seed_oss", attention_dropout=0.2, residual_dropout=0.2)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        model.train()
        assert not torch.allclose(model(input_ids=ids).logits, expected)
        turn_off_own_dropout(model)
        torch.testing.assert_close(model(input_ids=ids).logits, expected)


def test_routers_choose_experts_in_training_as_in_answers() -> None:
    """Phi-3.5-MoE's draw among those that are nearly tied."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "phimoe", hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=128, num_local_experts=8, input_jitter_noise=0.1, router_jitter_noise=0.5,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    ids = torch.arange(40)[None]
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        model.train()
        assert not torch.allclose(model(input_ids=ids).logits, expected)
        turn_off_own_noise(model)
        torch.testing.assert_close(model(input_ids=ids).logits, expected)
        with for_generation(model):  # as an evaluation within training does
            assert not model.training
        torch.testing.assert_close(model(input_ids=ids).logits, expected)
    assert model.model.layers[0].training
