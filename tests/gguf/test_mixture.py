"""Which number format each tensor gets, and what llama.cpp's quantizer makes of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gguf.quants import dequantize

from gguf import GGMLQuantizationType as Format
from weitune.errors import MissingExtraError, ModelError
from weitune.gguf import quantize
from weitune.gguf.mixture import Mixture
from weitune.gguf.quantize import quantized
from weitune.gguf.types import MIXTURES, GgufType

pytest.importorskip("xllamacpp")


def formats(wanted: GgufType, name: str, columns: int = 512, layers: int = 24, **model: Any) -> list[str]:
    """Return the formats of a tensor in every layer."""
    names = [f"blk.{layer}.{name}.weight" for layer in range(layers)]
    mixture = Mixture(wanted, layers, "output.weight", **model).over(names)
    return [mixture.format_of(each, (64, columns)).name for each in names]


def test_the_layers_with_more_bits_are_those_of_llama_cpp() -> None:
    # of 24 layers: the first and the last three, and of the others every third beginning with the third of them
    more = [0, 1, 2, 5, 8, 11, 14, 17, 20, 21, 22, 23]
    for name in ("ffn_down", "attn_v", "attn_qkv", "ffn_down_exps", "ffn_down_shexp"):
        for wanted, usual in (("Q4_K_M", "Q4_K"), ("Q5_K_M", "Q5_K")):
            found = formats(wanted, name)  # type: ignore[arg-type]
            assert [layer for layer, form in enumerate(found) if form == "Q6_K"] == more
            assert set(found) == {"Q6_K", usual}
    assert set(formats("Q4_K_M", "attn_q")) == {"Q4_K"}
    assert set(formats("Q6_K", "ffn_down")) == {"Q6_K"}


def test_layers_without_values_are_not_counted() -> None:
    names = [f"blk.{layer}.attn_v.weight" for layer in range(2, 48, 3)]  # 16 of 48 layers
    mixture = Mixture("Q4_K_M", 48, "output.weight").over(names)
    finer = [place for place, name in enumerate(names) if mixture.format_of(name, (64, 512)) == Format.Q6_K]
    assert finer == [0, 1, 4, 7, 10, 13, 14, 15]


def test_models_of_8_experts_and_of_70b_have_finer_attention() -> None:
    for wanted in MIXTURES:
        assert set(formats(wanted, "attn_v", experts=8)) == set(formats(wanted, "attn_k", experts=8)) == {"Q8_0"}
    assert set(formats("Q4_K_M", "attn_output", experts=8)) == {"Q5_K"}
    assert set(formats("Q4_K_M", "attn_output", experts=16)) == set(formats("Q4_K_M", "attn_k")) == {"Q4_K"}
    assert formats("Q4_K_M", "attn_v", columns=80, experts=8)[0] == "F16"
    assert set(formats("Q4_K_M", "attn_v", is_70b=True)) == {"Q5_K", "Q6_K"}
    assert formats("Q5_K_M", "attn_v", is_70b=True) == formats("Q5_K_M", "attn_v")


@pytest.mark.parametrize(("wanted", "narrower"), [("Q6_K", "Q8_0"), ("Q5_K_M", "Q5_0"), ("Q4_K_M", "Q5_0")])
def test_rows_that_are_no_multiple_of_256_get_narrower_blocks(wanted: GgufType, narrower: str) -> None:
    assert set(formats(wanted, "attn_q", 896)) == {narrower}
    assert set(formats(wanted, "attn_q", 80)) == {"F16"}


@pytest.mark.parametrize("wanted", ["Q8_0", "Q4_0", *MIXTURES])
def test_what_decides_about_every_token_is_finer(wanted: GgufType) -> None:
    mixture = Mixture(wanted, 2, "token_embd.weight", head_type="F16")
    head = mixture.format_of("token_embd.weight", (512, 512)).name
    assert head == ("Q6_K" if wanted in MIXTURES else "F16")
    for name in ("blk.0.ffn_gate_inp.weight", "blk.0.ssm_norm.weight", "blk.0.ssm_conv1d.weight", "blk.0.ssm_a"):
        assert mixture.format_of(name, (4, 512)) == Format.F32
    assert mixture.format_of("blk.0.attn_q.bias", (512,)) == Format.F32


@pytest.mark.parametrize("form", [Format.Q4_K, Format.Q5_K, Format.Q6_K, Format.Q5_0, Format.Q5_1])
def test_important_columns_lose_less(form: Format) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 16, 512, generator=generator)
    importance = torch.ones(512)
    importance[::7] = 400.0
    errors = []
    for weighed in (None, importance):
        stored = quantized(weight, form, weighed)
        assert (quantized(weight, form, weighed) == stored).all()
        back = torch.from_numpy(dequantize(stored, form)).reshape(weight.shape)
        errors.append(float(((back - weight).square() * importance).mean()))
    assert errors[1] < errors[0] < 2.0


def test_importances_of_other_columns_are_refused() -> None:
    pytest.importorskip("xllamacpp")
    with pytest.raises(ValueError, match="32 columns"):
        quantized(torch.ones(2, 32), Format.Q5_0, torch.ones(16))


def test_without_the_quantizer_the_types_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    quantize._quantizer.cache_clear()
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(MissingExtraError, match="xllamacpp"):
        quantize.require_quantizer()
    monkeypatch.undo()
    monkeypatch.setattr(quantize.ctypes, "CDLL", lambda path: object())
    with pytest.raises(ModelError, match="does not export") as error:
        quantize.require_quantizer()
    assert "Q8_0" in error.value.fix
