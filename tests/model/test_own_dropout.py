"""A base model draws no dropout in training."""

from __future__ import annotations

import torch

from tests.families import family_model
from weitune.model.own_dropout import turn_off_own_dropout


def test_a_model_without_its_own_dropout_trains_as_it_answers() -> None:
    model = family_model("seed_oss", attention_dropout=0.2, residual_dropout=0.2)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        model.train()
        assert not torch.allclose(model(input_ids=ids).logits, expected)
        turn_off_own_dropout(model)
        torch.testing.assert_close(model(input_ids=ids).logits, expected)
