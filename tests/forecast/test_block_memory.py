"""One layer of each kind stands for all of them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.families import family_config, family_model
from tests.forecast.test_own_modules import modules_of, taken_by_blocks
from weitune.data.conversation import Example, Span
from weitune.forecast.block_memory import layers_to_run
from weitune.model.batch import to_tensors
from weitune.model.capabilities import probe
from weitune.model.fast.decoder import BlockDecoder
from weitune.model.load.text_model import text_config
from weitune.model.lora.adapter import attach_adapter
from weitune.recipe.schema import Lora

LENGTH = 128
LINEAR, SLIDING, FULL = "linear_attention", "sliding_attention", "full_attention"
DEEP: dict[str, list[str]] = {
    "qwen3_5_text": [LINEAR, LINEAR, LINEAR, FULL] * 2,
    "gemma3_text": [SLIDING, SLIDING, SLIDING, SLIDING, SLIDING, FULL, SLIDING],
}


@given(st.text("lfs", min_size=1, max_size=12))
def test_every_kind_runs_between_the_first_layer_and_the_last(kinds: str) -> None:
    known = 1 + max(kinds.index(kind) for kind in kinds)
    order = layers_to_run(kinds, known)
    run = [kinds[at] for at in order]
    assert max(order) < known
    assert order[0] == 0
    assert run[-1] == kinds[-1]
    assert sorted(run[1:-1]) == sorted(set(kinds[1:-1]))
    assert run[-2:] == list(kinds[-2:])


def test_layers_that_give_keys_run_before_those_that_read_them() -> None:
    assert layers_to_run(["own", "own", "own", "reads", "reads", "reads"], 4) == [0, 2, 3, 3]


@pytest.mark.parametrize("family", DEEP)
def test_a_deep_model_takes_what_a_few_of_its_layers_tell(family: str) -> None:
    kinds = {"layer_types": DEEP[family], "num_hidden_layers": len(DEEP[family])}
    config, lora = text_config(family_config(family, **kinds)), Lora(dropout=0.1)
    model = family_model(family, **kinds)
    capabilities, decoder = probe(model), BlockDecoder.from_model(model)
    attach_adapter(model.requires_grad_(False), lora, seed=0, base="")
    blocks = decoder and decoder.with_adapters(torch.float32)
    assert blocks is not None
    examples = [Example(tuple(range(k, k + LENGTH + 1)), (Span(1, LENGTH + 1),)) for k in (10, 11, 12)]
    batch = to_tensors(capabilities.layout.lay(examples), torch.device("cpu"))
    kept, work = taken_by_blocks(model, blocks, batch, "none")
    footprint = modules_of(config, lora, capabilities).footprint(4, recompute="none", longest=LENGTH)
    assert footprint is not None
    assert footprint.kept.at(3, 3 * LENGTH) == pytest.approx(kept, rel=0.1)
    assert footprint.kept.at(3, 3 * LENGTH) + footprint.work.at(3, 3 * LENGTH) == pytest.approx(kept + work, rel=0.1)
