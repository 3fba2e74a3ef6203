"""Blocks run a row only where they compute what the model computes."""

from __future__ import annotations

import pytest
import torch

from tests.families import family_model
from weitune.data.conversation import Example, Span
from weitune.data.pack import pack
from weitune.model.batch import to_tensors
from weitune.model.fast.attention import use_tree_attention
from weitune.model.fast.decoder import BlockDecoder
from weitune.model.fast.loss import PLAIN_LOGITS
from weitune.model.fast.self_attention.observe import FOREVER
from weitune.model.supervised import SupervisedModel

_ORIGINAL = 64
_ROPE = {
    "rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": _ORIGINAL,
    "llama_4_scaling_beta": 0.5, "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0,
}  # fmt: skip


@pytest.mark.parametrize("length", [_ORIGINAL, _ORIGINAL + 40])
def test_a_row_beyond_the_original_context_is_run_by_the_models_own_modules(length: int) -> None:
    """Ministral 3 multiplies its queries by a number that grows beyond the original context; the blocks do not."""
    model = family_model("ministral3", rope_parameters=_ROPE)
    blocks = BlockDecoder.from_model(model)
    assert blocks is not None
    assert blocks.positions == _ORIGINAL
    use_tree_attention(model)
    words = torch.randint(500, (length + 1,), generator=torch.Generator().manual_seed(1)).tolist()
    batch = to_tensors(pack([Example(tuple(words), (Span(1, len(words)),))]), torch.device("cpu"))
    with torch.no_grad():
        own = SupervisedModel(model, head=PLAIN_LOGITS)(batch)
        assert SupervisedModel(model, head=PLAIN_LOGITS, blocks=blocks)(batch) == pytest.approx(float(own), rel=1e-6)
        blocks.positions = FOREVER
        unguarded = SupervisedModel(model, head=PLAIN_LOGITS, blocks=blocks)(batch)
    assert (abs(float(unguarded - own)) < 1e-4 * float(own)) == (length <= _ORIGINAL)


def test_other_families_have_no_such_position() -> None:
    for name in ("qwen3", "gpt_oss", "deepseek_v3"):
        blocks = BlockDecoder.from_model(family_model(name))
        assert blocks is not None
        assert blocks.positions == FOREVER
