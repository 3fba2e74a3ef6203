"""A model is probed from its configuration alone, in small, with the answer that training would find."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import DeepseekV3Config
from transformers.models.gemma4.configuration_gemma4 import Gemma4TextConfig

from tests.families import FAST, family_config, save_family
from weitune.forecast.meta_model import _probe_small, build_meta_model
from weitune.model.load.locate import locate
from weitune.recipe.schema import Lora


@pytest.mark.parametrize(
    "name", ["qwen3", "deepseek_v3", "glm4_moe", "gpt_oss", "phi3", "gemma4_text", "gemma4_text_26b", "gemma3n_text"]
)
def test_a_family_is_probed_as_it_trains(name: str) -> None:
    found = _probe_small(family_config(name))
    assert found.shares_rows
    assert found.plain_blocks == (name in FAST)
    assert found.head is not None


@pytest.mark.parametrize(
    ("lora", "head", "modules"),
    [({}, False, False), ({"modules_to_save": ["lm_head"]}, True, True), ({"train_tokens": ["!"]}, True, True),
     ({"modules_to_save": ["input_layernorm"]}, False, True)],
)  # fmt: skip
def test_where_the_model_runs_by_its_modules_they_are_measured(
    lora: dict[str, Any], head: bool, modules: bool, tmp_path: Path
) -> None:
    """As training runs it, with a trained head or other trained parts (:mod:`weitune.training.build`)."""
    folder = save_family(tmp_path, "qwen3", tie_word_embeddings=True)
    meta = build_meta_model(locate(str(folder)), Lora.model_validate(lora))
    assert (meta.capabilities.head is None, meta.modules is not None) == (head, modules)


@pytest.mark.parametrize(
    "config",
    [DeepseekV3Config(), Gemma4TextConfig(), Gemma4TextConfig(num_kv_shared_layers=10)],
    ids=lambda c: c.model_type,
)
def test_published_sizes_are_made_small(config: DeepseekV3Config | Gemma4TextConfig) -> None:
    found = _probe_small(config)
    assert (found.why_not, found.plain_blocks) == ("", True)
