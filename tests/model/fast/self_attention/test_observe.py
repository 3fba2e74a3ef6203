"""What is read off a module that is watched, and that watching leaves no trace."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tests.families import family_model
from tests.tiny import tiny_model
from weitune.model.decoder_of import decoder_of
from weitune.model.fast.self_attention.mixer import read_attention
from weitune.model.fast.self_attention.observe import Rows, observe


def first_attention(model: Any) -> Any:
    return decoder_of(model).layers[0].self_attn


def test_scaling_window_cap_and_sinks_are_those_of_the_call() -> None:
    gemma = family_model("gemma2", sliding_window=7, attn_logit_softcapping=30.0, query_pre_attn_scalar=25)
    seen = observe(first_attention(gemma), Rows.of(decoder_of(gemma)))
    assert seen is not None
    assert (seen.scores.scaling, seen.scores.window, seen.scores.cap, seen.scores.sinks) == (0.2, 7, 30.0, None)
    gpt = family_model("gpt_oss", sliding_window=9)
    seen = observe(first_attention(gpt), Rows.of(decoder_of(gpt)))
    assert seen is not None
    assert (seen.scores.window, seen.scores.cap) == (9, None)
    assert seen.scores.sinks is first_attention(gpt).sinks


def test_watching_leaves_no_trace() -> None:
    model = tiny_model("qwen2")
    attention, before = first_attention(model), torch.get_rng_state()
    implementation = model.config._attn_implementation
    assert read_attention(attention, Rows.of(decoder_of(model)))
    assert torch.equal(torch.get_rng_state(), before)
    assert model.config._attn_implementation == implementation
    assert not any(child._forward_hooks for child in attention.children())


def test_a_module_that_does_anything_else_is_not_recognised() -> None:
    model = tiny_model("llama")
    decoder, attention = decoder_of(model), first_attention(model)
    assert read_attention(attention, Rows.of(decoder)) is not None
    hook = attention.o_proj.register_forward_pre_hook(lambda _, inputs: (1.01 * inputs[0],))
    assert read_attention(attention, Rows.of(decoder)) is None
    hook.remove()
    attention.q_norm = attention.k_norm = nn.RMSNorm(attention.head_dim)  # which the module does not call
    assert read_attention(attention, Rows.of(decoder)) is None


def test_one_module_of_each_kind_is_watched_and_each_has_its_own_tensors() -> None:
    decoder = decoder_of(
        family_model("gpt_oss", num_hidden_layers=4, layer_types=["sliding_attention", "full_attention"] * 2)
    )
    rows, calls = Rows.of(decoder), []
    modules = [layer.self_attn for layer in decoder.layers]
    for module in modules:
        module.register_forward_pre_hook(lambda module, _: calls.append(module))
    heads = [read_attention(module, rows).heads for module in modules]  # type: ignore[union-attr]
    assert list(dict.fromkeys(calls)) == modules[:2]
    assert [each.scores.window for each in heads] == [32, None, 32, None]
    for each, module in zip(heads, modules, strict=True):
        assert each.scores.sinks is module.sinks
