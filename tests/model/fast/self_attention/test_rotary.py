"""Every form of the rotary embedding against the functions of the models that have it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.families import family_model
from weitune.model.decoder_of import decoder_of
from weitune.model.fast.self_attention.mixer import read_attention
from weitune.model.fast.self_attention.observe import Rows
from weitune.model.fast.self_attention.positions import Positions
from weitune.model.fast.self_attention.rotary import ModelRotation, Rotation, written_form

FORMS = {
    "llama": Rotation(False, False, "halves", False),
    "ernie4_5": Rotation(True, False, "halves", True),
    "cohere2": Rotation(True, False, "neighbours", True),
    "glm4": Rotation(True, False, "halves", False),
    "gpt_oss": Rotation(False, False, "", False),
    "deepseek_v3": Rotation(True, True, "halves", False),
}


def turned(family: str) -> tuple[ModelRotation, tuple[Tensor, ...]]:
    """Return how the family turns heads, and an embedding of some positions."""
    from weitune.model.fast.self_attention.latent import read_latent

    decoder = decoder_of(family_model(family))
    rows = Rows.of(decoder)
    module = decoder.layers[0].self_attn
    attention: Any = read_attention(module, rows) or read_latent(module, rows)
    positions = Positions.of(decoder, torch.zeros(1, dtype=torch.float64), torch.tensor([[0, 3, 50, 4]]))
    return attention.heads.rotation, positions.rotary_of("sliding_attention")


@pytest.mark.parametrize("family", FORMS)
def test_the_form_of_a_family_is_found_and_gives_its_values_and_gradients(family: str) -> None:
    rotation, embedding = turned(family)
    assert rotation.written == FORMS[family]
    draw = torch.Generator().manual_seed(0)
    size = 8 if family == "deepseek_v3" else 16
    heads = [torch.randn(1, 4, n, size, generator=draw, dtype=torch.float64) for n in (3, 2)]
    own = ModelRotation(rotation.function)

    def results(turn: Any, dtype: torch.dtype) -> list[Tensor]:
        leaves = [each.to(dtype).requires_grad_() for each in heads]
        outputs = turn(*leaves, tuple(each.to(dtype) for each in embedding))
        total = sum((output * output.cos().detach()).sum() for output in outputs)
        return [*outputs, *torch.autograd.grad(total, leaves)]

    bits = zip(results(rotation.written, torch.float32), results(own, torch.float32), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in bits)
    assert torch.autograd.gradcheck(
        lambda *leaves: rotation.written(*leaves, embedding),  # type: ignore[misc]
        [each.requires_grad_() for each in heads],
    )


def test_what_lies_beyond_the_turned_part_stays() -> None:
    form = Rotation(False, False, "halves", False)
    angles = torch.tensor([[[0.3, 0.3], [0.7, 0.7]]])
    query, key = torch.randn(1, 2, 3, 5), torch.randn(1, 2, 1, 5)
    for heads, result in zip((query, key), form(query, key, (angles.cos(), angles.sin())), strict=True):
        assert torch.equal(result[..., 2:], heads[..., 2:])
        assert not torch.equal(result[..., :2], heads[..., :2])


def test_a_function_that_does_more_has_no_written_form() -> None:
    rotation, embedding = turned("llama")
    assert rotation.function is not None
    function = rotation.function
    query, key = torch.randn(1, 4, 3, 16), torch.randn(1, 4, 2, 16)
    more = ModelRotation(lambda *arguments: tuple(1.5 * each for each in function(*arguments)))
    assert written_form(ModelRotation(function), query, key, embedding) == rotation.written
    assert written_form(more, query, key, embedding) is None
