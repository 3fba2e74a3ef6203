"""Copies of matrices multiply as the matrices do: packed ones to rounding, those of four bits to a few per cent."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from weitune.generate.decode.products import FourBits, can_be_packed, can_be_rounded, of_four_bits, packed
from weitune.model.fast.projection import LoraGroup, Projection, read_group

from . import adapted_layers

_FORMATS = [torch.float32, torch.bfloat16]


def layers(dtype: torch.dtype, *, bias: bool = True) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"q": 64, "k": 32, "v": 48}
    return nn.ModuleDict({name: nn.Linear(96, size, bias=bias and name != "v") for name, size in sizes.items()}).to(
        dtype
    )


def group_of(module: nn.Module) -> LoraGroup:
    group = read_group(module, ("q", "k", "v"))
    assert group is not None
    return group


@pytest.mark.parametrize("dtype", _FORMATS)
@pytest.mark.parametrize("adapted", [False, True])
@torch.no_grad()
def test_packed_matrices_multiply_as_the_layers_do(dtype: torch.dtype, adapted: bool) -> None:
    module = adapted_layers(layers(dtype)) if adapted else layers(dtype)
    group = group_of(module)
    if not can_be_packed([group], dtype):
        pytest.skip("this processor is no faster with them")
    times = packed(group, dtype)
    for rows in (1, 6, 33):
        x = torch.randn(rows, 96, dtype=dtype)
        for name, output in zip("qkv", times(x), strict=True):
            expected = module[name](x)  # type: ignore[operator, index]
            torch.testing.assert_close(output, expected, atol=1e-5 if dtype == torch.float32 else 1e-2, rtol=1e-2)


@pytest.mark.parametrize("dtype", _FORMATS)
@torch.no_grad()
def test_four_bits_are_within_half_a_step_of_each_number(dtype: torch.dtype) -> None:
    weights = [torch.randn(rows, 96).to(dtype) for rows in (1040, 48, 16)]
    weights[0][3] = 0
    whole = torch.cat(weights).float()
    product = FourBits.of(weights)(torch.eye(96, dtype=torch.bfloat16)).T.float()
    steps = (whole.view(-1, 3, 32).amax(-1) - whole.view(-1, 3, 32).amin(-1)) / 15
    errors = (product - whole).abs().view(-1, 3, 32).amax(-1)
    assert (errors <= 0.5 * steps + 0.02 * whole.abs().max()).all()


@torch.no_grad()
def test_biases_and_adapters_are_not_rounded_away() -> None:
    module = adapted_layers(layers(torch.float32))
    times = of_four_bits(group_of(module))
    x = torch.randn(1, 96)
    for name, output in zip("qkv", times(x.bfloat16()), strict=True):
        expected = module[name](x)  # type: ignore[operator, index]
        assert F.cosine_similarity(output.float(), expected).item() > 0.98


def test_what_is_not_plain_is_not_copied() -> None:
    plain, odd = (LoraGroup([Projection(nn.Linear(96, size), (size, 96))]) for size in (64, 63))
    assert not can_be_rounded([plain, odd], torch.float32)
    assert not can_be_rounded([plain], torch.bfloat16)
    quantized = LoraGroup([Projection(nn.Bilinear(2, 3, 4), (4, 3))])
    assert not can_be_packed([quantized], torch.float32)
