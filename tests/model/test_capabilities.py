"""Capabilities that are probed on models of many architectures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from tests.families import DENSE, FAMILIES, FAST, HYBRID, MOE, family_model
from tests.tiny import SHAPE, TEMPLATE_OF, longrope, tiny_model
from weitune.data import tree_chunks
from weitune.data.conversation import Example, Span
from weitune.generate.decode.probe import decodable_blocks
from weitune.model.capabilities import _TOLERANCE, probe
from weitune.model.decoder_of import decoder_of
from weitune.model.fast import attention
from weitune.model.fast.decoder import BlockDecoder
from weitune.model.fast.loss import PLAIN_LOGITS
from weitune.model.fast.recurrent.chunks import Chunks


def build(family: str, **overrides: Any) -> Any:
    from transformers import AutoConfig, AutoModelForCausalLM

    shape = {**SHAPE, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1, **overrides}
    del shape["attn_implementation"]
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **shape), dtype=torch.float32).eval()


@pytest.mark.parametrize("family", TEMPLATE_OF)
def test_the_common_families_share_rows(family: str) -> None:
    model = tiny_model(family)
    abilities = probe(model)
    assert abilities.shares_rows, abilities.why_not
    assert abilities.head == PLAIN_LOGITS
    assert model.config._attn_implementation == attention.BLOCKS


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("olmo2", {}),
        ("qwen3_moe", {}),
        ("gemma3_text", {}),
        ("phi3", {}),
        ("gemma2", {"attn_logit_softcapping": 2.0}),
        ("gpt_oss", {"num_local_experts": 2, "num_experts_per_tok": 1}),
    ],
)
def test_other_softmax_families_share_rows_without_being_named(family: str, overrides: dict[str, Any]) -> None:
    abilities = probe(build(family, **overrides))
    assert abilities.shares_rows, abilities.why_not


@pytest.mark.parametrize(
    ("family", "overrides", "reason"),
    [
        ("jamba", FAMILIES["jamba"], "linear_attention"),
        ("llama4_text", FAMILIES["llama4_text"], "chunked_attention"),
        ("mamba", {}, ""),
    ],
)
def test_models_with_other_layers_or_attention_do_not_share_rows(
    family: str, overrides: dict[str, Any], reason: str
) -> None:
    model = build(family, **overrides)
    before = model.config._attn_implementation
    abilities = probe(model)
    assert not abilities.shares_rows
    assert reason in abilities.why_not
    assert model.config._attn_implementation == before


@pytest.mark.parametrize("family", [name for name in HYBRID if name in FAST])
def test_of_recurrent_families_the_blocks_alone_share_rows(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = family_model(family)
    before = model.config._attn_implementation
    abilities = probe(model)
    assert abilities.shares_rows
    assert abilities.plain_blocks
    assert abilities.why_not
    assert model.config._attn_implementation == before
    by_modules = abilities.by_modules()
    assert not by_modules.shares_rows
    assert not by_modules.plain_blocks
    monkeypatch.setattr(tree_chunks, "tokens_back", _rows_before)
    assert not probe(model).shares_rows  # its convolutions see other branches


def _rows_before(position_ids: Any, taps: int) -> Any:
    back = np.arange(len(position_ids))[:, None] - np.arange(taps)
    return np.where(back < 0, len(position_ids), back)


def test_states_that_get_lost_between_chunks_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The texts of the probe are shorter than a chunk in training."""
    model = family_model("qwen3_5_text")
    assert probe(model).shares_rows
    split = Chunks.from_numbers

    def forgetful(cut: Any, device: torch.device) -> Chunks:
        chunks = split(cut, device)
        return replace(chunks, levels=[replace(level, states=None) for level in chunks.levels])

    monkeypatch.setattr(Chunks, "from_numbers", forgetful)
    assert not probe(model).shares_rows


@pytest.mark.parametrize(
    "family",
    [name for name, entry in {**DENSE, **MOE}.items() if "sliding_window" in entry] + ["phi3", "mixtral", "exaone4"],
)
def test_windows_shorter_than_the_texts_of_the_probe_are_kept(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    abilities = probe(family_model(family, sliding_window=3))
    assert abilities.shares_rows, abilities.why_not
    rule = attention.Tree.seen
    monkeypatch.setattr(attention.Tree, "seen", lambda tree, rows, keys, window=None: rule(tree, rows, keys))
    assert "mix" in probe(family_model(family, sliding_window=3)).why_not


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("phimoe", {"sliding_window": 4096, "num_local_experts": 2}),
        ("qwen2_moe", {"use_sliding_window": True, "sliding_window": 4096, "num_experts": 4}),
    ],
)
def test_windows_that_attention_is_not_told_of_prevent_sharing(family: str, overrides: dict[str, Any]) -> None:
    """The texts of the probe are too short to show them."""
    assert "window" in probe(build(family, **overrides)).why_not
    del overrides["sliding_window"]
    assert probe(build(family, **{**overrides, "use_sliding_window": False})).shares_rows


@pytest.mark.parametrize(("family", "shares"), [("qwen2", True), ("stablelm", False)])
def test_rows_that_are_rotated_otherwise_have_passes_of_their_own(family: str, shares: bool) -> None:
    abilities = probe(build(family, rope_parameters=longrope(20)))
    assert abilities.shares_rows == shares
    short, long = [Example(tuple(range(tokens)), (Span(1, tokens),)) for tokens in (21, 22)]
    assert abilities.layout.split([long, short], 1000) == [[short], [long]]
    assert abilities.by_modules().layout.split([long, short], 1000) == [[short], [long]]
    assert len(probe(build(family)).layout.split([long, short], 1000)) == 1


def test_an_output_layer_that_is_called_a_decoder_is_none() -> None:
    model = build("modernbert-decoder")
    assert decoder_of(model) is model.model
    assert probe(model).shares_rows


@pytest.mark.parametrize(("family", "shares"), [("lfm3", False), ("beam", True)])
def test_layers_without_rotary_embeddings_of_their_own_are_left_to_the_modules(family: str, shares: bool) -> None:
    model = build(family, num_hidden_layers=4)
    assert BlockDecoder.from_model(model) is None
    assert decodable_blocks(model) is None
    assert probe(model).shares_rows == shares


def test_a_leaking_attention_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe must reject every row whose branches see each other."""
    everything_before = lambda tree, rows, keys, window=None: keys[None, :] <= rows[:, None]  # noqa: E731
    monkeypatch.setattr(attention.Tree, "seen", everything_before)
    assert "mix" in probe(tiny_model("qwen2")).why_not


@pytest.mark.parametrize("leaks", [False, True])
def test_rounding_is_not_taken_for_a_leak(leaks: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deep model in 16 bits may differ by more than the tolerance; then an example alone in a row differs as much."""
    model = tiny_model().bfloat16()
    if leaks:
        monkeypatch.setattr(attention.Tree, "seen", lambda tree, rows, keys, window=None: keys[None] <= rows[:, None])
    for tolerance, passes in ((3e-3, True), (5e-4, False)):  # its rounding is 4e-3
        monkeypatch.setitem(_TOLERANCE, torch.bfloat16, tolerance)
        abilities = probe(model)
        assert abilities.shares_rows is (passes and not leaks)
        assert ("mix" in abilities.why_not) is not abilities.shares_rows
        model.set_attn_implementation("eager")
