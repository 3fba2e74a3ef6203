"""Packed copies of frozen matrices: the same products and gradients, where they are made at all."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.invariant.test_oracle import examples_with_forks
from tests.model.fast.test_block import CPU, adapted_model, distance, loss_and_gradients
from weitune.data.pack import pack
from weitune.model.batch import to_tensors
from weitune.model.fast import packed
from weitune.model.fast.decoder import BlockDecoder
from weitune.model.fast.matmul import _has_bfloat16
from weitune.model.fast.packed import PackedMatrix, pack_layers, packed_matrix, packing_pays
from weitune.model.fast.projection import Projection

HALF = torch.bfloat16
needs_bfloat16 = pytest.mark.skipif(not _has_bfloat16(), reason="oneDNN packs bfloat16 on AVX-512 alone")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@needs_bfloat16
@pytest.mark.parametrize("rows", [1, 16, 37, 192])
def test_products_are_as_exact_as_pytorchs(rows: int) -> None:
    weight, bias = drawn(96, 160).to(HALF), drawn(96).to(HALF)
    x, grad, total = drawn(rows, 160).to(HALF), drawn(96, rows).to(HALF).T, drawn(rows, 160, seed=1).to(HALF)
    copies = PackedMatrix.of(weight)
    exact = weight.double()
    for ours, theirs, true in (
        (copies.linear(x, bias), x @ weight.T + bias, x.double() @ exact.T + bias.double()),
        (copies.linear(x), x @ weight.T, x.double() @ exact.T),
        (copies.times(grad), grad @ weight, grad.double() @ exact),
        (copies.add_times(total, grad), total + grad @ weight, total.double() + grad.double() @ exact),
        (copies.add_linear(grad, x), grad + x @ weight.T, grad.double() + x.double() @ exact.T),
    ):
        assert ours.shape == true.shape
        assert distance(ours.double(), true) < 1.05 * distance(theirs.double(), true)


@needs_bfloat16
@pytest.mark.parametrize("recompute", ["none", "block"])
@pytest.mark.parametrize("family", ["qwen2", "qwen3", "gemma"])
def test_losses_and_gradients_are_as_exact_as_without_copies(family: str, recompute: Any) -> None:
    row = to_tensors(pack(examples_with_forks(12, vocabulary=400)), CPU)
    true_loss, true = loss_and_gradients(adapted_model(family), row, fast=True)
    adapted = adapted_model(family, HALF)
    plain_loss, plain = loss_and_gradients(adapted, row, fast=True, recompute=recompute)
    blocks = BlockDecoder.from_model(adapted.get_base_model())
    assert blocks is not None
    pack_layers(blocks.packable())
    assert all(packed_matrix(layer) for layer in blocks.packable())
    loss, gradients = loss_and_gradients(adapted, row, fast=True, recompute=recompute)
    torch.testing.assert_close(loss, true_loss.to(loss.dtype), rtol=2e-2, atol=0)

    def error(found: dict[str, Tensor]) -> float:
        return sum(distance(found[name].double(), true[name].double()) for name in true) / len(true)

    assert error(gradients) < 1.1 * error(plain)
    torch.testing.assert_close(loss, plain_loss, rtol=2e-2, atol=0)


@needs_bfloat16
def test_only_whole_matrices_as_they_are_stored_are_read_from_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Linear(32, 48, bias=False).to(HALF).requires_grad_(False)
    pack_layers([layer])
    monkeypatch.setattr(packed, "multiply_packed", lambda x, *_: x.new_full((len(x), 48), 7.0))
    whole = Projection(layer, (48, 32))
    factors = torch.full((48,), 1.003)  # which bfloat16 would round to 1
    expected = (layer.weight.float() * factors[:, None]).bfloat16()
    assert torch.equal(replace(whole, row_factors=factors).weight(torch.bfloat16), expected)
    assert not torch.equal(expected, layer.weight)
    x = drawn(16, 32).to(HALF)
    assert (whole.linear(x) == 7).all()
    for other in (replace(whole, row_factors=torch.ones(48)), replace(whole, part=slice(0, 48))):
        assert torch.equal(other.linear(x), x @ layer.weight.T)
    assert torch.equal(whole.linear(x, slice(0, 48, None)), x @ layer.weight.T)
    assert whole.linear(x.float()).dtype == torch.float32


def test_a_copy_goes_with_its_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Tensor] = []
    monkeypatch.setattr(packed, "pack", lambda weight, rows: made.append(weight) or weight)
    layer = nn.Linear(4, 4, bias=False)
    pack_layers([layer])
    assert len(made) == packed.COPIES
    assert packed_matrix(layer) is not None
    before = len(packed._packed)
    del layer
    assert len(packed._packed) == before - 1


def test_a_replaced_matrix_has_no_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """An adapter that is taken from the base replaces it."""
    monkeypatch.setattr(packed, "pack", lambda weight, rows: weight)
    layer = nn.Linear(4, 4, bias=False)
    pack_layers([layer])
    layer.weight.data = layer.weight.data - 1
    assert packed_matrix(layer) is None
    pack_layers([layer])
    assert packed_matrix(layer) is not None


def test_matrices_whose_rows_dora_multiplies_are_not_copied() -> None:
    def packable(**lora: Any) -> int:
        blocks = BlockDecoder.from_model(adapted_model("qwen2", HALF, **lora).get_base_model())
        assert blocks is not None
        return len(blocks.packable())

    whole = packable()
    assert packable(dora=True, dropout=0.1) == whole > packable(dora=True)


@pytest.mark.parametrize("amx", [True, False])
def test_it_pays_on_processors_with_amx(amx: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "processor_features", lambda: {"amx_bf16": amx, "avx512_bf16": True})
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    assert packing_pays.__wrapped__() == amx
