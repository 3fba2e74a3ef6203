"""Decoding with our own cache says what the model says, token by token, in any company."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.families import FAMILIES, family_model
from tests.generate.test_engine import argmax_loop
from tests.tiny import TEMPLATE_OF, tiny_model
from weitune.generate.decode.choose import Chooser
from weitune.generate.decode.decoder import StepDecoder
from weitune.generate.decode.probe import _one_of_each_kind, decodable_blocks
from weitune.generate.decode.rows import Row, common_prefix, decode_rows
from weitune.generate.sampling import Sampling

CPU = torch.device("cpu")
DECODED = {
    "qwen2",
    "qwen3",
    "llama",
    "mistral",
    "gemma",
    "gemma3_text",
    "smollm3",
    "olmo2",
    "olmo3",
    "exaone4",
    "cohere2",
    "hunyuan_v1_dense",
    "phi3",
    "glm4",
    "starcoder2",
    "qwen2_moe",
    "qwen3_moe",
    "mixtral",
    "olmoe",
    "gpt_oss",
    "deepseek_v3",
}
"""Families that must not fall back to transformers."""


def tokens(length: int, seed: int) -> list[int]:
    return torch.randint(512, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def decoder_of(model: Any) -> StepDecoder:
    blocks = decodable_blocks(model)
    assert blocks is not None
    return StepDecoder(model, blocks)


def decoded(
    decoder: StepDecoder, prompts: list[list[int]], limits: list[int], slots: int, stops: frozenset[int] = frozenset()
) -> list[list[int]]:
    rows = [
        Row(at, prompt, limit, Chooser(Sampling(), prompt, CPU))
        for at, (prompt, limit) in enumerate(zip(prompts, limits, strict=True))
    ]
    seen: list[list[int]] = [[] for _ in rows]
    for row, token in decode_rows(decoder, rows, stops, slots):
        seen[row.number].append(token)
    assert seen == [row.tokens for row in rows]
    return seen


@pytest.mark.parametrize("family", sorted(TEMPLATE_OF))
def test_every_token_is_the_models_own_likeliest(family: str) -> None:
    model = tiny_model(family)
    prompt = tokens(70, 0)
    assert decoded(decoder_of(model), [prompt], [40], 1) == [argmax_loop(model, prompt, 40)]


def test_a_window_that_attention_is_not_told_of_is_left_to_transformers() -> None:
    window = {"use_sliding_window": True, "sliding_window": 4096}
    assert decodable_blocks(family_model("qwen2_moe", **window)) is None
    assert decodable_blocks(family_model("qwen2_moe", **{**window, "use_sliding_window": False})) is not None


def test_a_sliding_window_hides_what_is_too_far_back() -> None:
    model = tiny_model("mistral", sliding_window=16)
    prompt = tokens(50, 1)
    expected = argmax_loop(model, prompt, 24)
    assert decoded(decoder_of(model), [prompt], [24], 1) == [expected]
    assert expected != argmax_loop(tiny_model("mistral"), prompt, 24)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_family_is_decoded_as_it_computes_or_left_to_transformers(family: str) -> None:
    model = family_model(family, 0)
    blocks = decodable_blocks(model)
    assert blocks is not None or family not in DECODED
    if blocks is None:
        pytest.skip("it is decoded by transformers")
    prompt = tokens(30, 2)
    assert decoded(StepDecoder(model, blocks), [prompt], [12], 1) == [argmax_loop(model, prompt, 12)]


@pytest.mark.parametrize("slots", [1, 2, 3, 8])
def test_rows_are_answered_alike_in_any_company(slots: int) -> None:
    model = tiny_model("qwen2")
    common = tokens(20, 3)
    prompts = [common + tokens(1 + 7 * k % 19, 10 + k) for k in range(7)]
    limits = [30, 3, 1, 17, 9, 30, 2]
    expected = [argmax_loop(model, prompt, limit) for prompt, limit in zip(prompts, limits, strict=True)]
    assert decoded(decoder_of(model), prompts, limits, slots) == expected
    stop = expected[0][5]
    cut = [row[: row.index(stop) + 1] if stop in row else row for row in expected]
    assert decoded(decoder_of(model), prompts, limits, slots, frozenset([stop])) == cut


def test_a_common_prefix_is_read_once() -> None:
    model = tiny_model("qwen2")
    decoder = decoder_of(model)
    read: list[int] = []
    model.get_input_embeddings().register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].numel()))
    prompts = [tokens(40, 3) + tokens(4, 20 + k) for k in range(5)]
    decoded(decoder, prompts, [1] * 5, 5)
    assert read == [48, 5 * 16]
    assert common_prefix([[1, 2, 3], [1, 2, 3]]) == 2
    assert common_prefix([[1], [2, 3]]) == 0


@pytest.mark.parametrize("slots", [1, 2, 3, 4, 5, 8, 16])
def test_equal_prompts_that_follow_each_other_are_read_once(slots: int) -> None:
    model = tiny_model("qwen2")
    decoder = decoder_of(model)
    different = [tokens(length, 50 + length) for length in (33, 40, 41, 64)]
    prompts = [prompt for prompt, times in zip(different, (3, 1, 4, 5), strict=True) for _ in range(times)]
    limits = [1 + 5 * k % 7 for k in range(len(prompts))]
    expected = [argmax_loop(model, prompt, limit) for prompt, limit in zip(prompts, limits, strict=True)]
    read: list[int] = []
    hook = model.get_input_embeddings().register_forward_pre_hook(lambda _, inputs: read.append(inputs[0].numel()))
    assert decoded(decoder, prompts, limits, slots) == expected
    assert decoded(decoder, prompts[:3] + prompts[:1], [9] * 4, slots) == [argmax_loop(model, prompts[0], 9)] * 4
    read.clear()
    decoded(decoder, prompts, [1] * len(prompts), slots)
    hook.remove()
    assert 3 * 48 + 64 <= sum(read) <= 4 * 64  # prompts that are read together are as long as the longest


def test_adapters_are_read_again_for_every_decoder() -> None:
    from peft import LoraConfig, get_peft_model

    model = tiny_model("qwen2")
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    prompt = tokens(12, 4)
    blocks = decodable_blocks(model)
    assert blocks is not None
    with torch.no_grad():
        for _ in range(2):
            expected = argmax_loop(model, prompt, 16)
            assert decoded(StepDecoder(model, blocks), [prompt], [16], 1) == [expected]
            for name, parameter in tuned.named_parameters():
                if "lora_B" in name:
                    parameter.mul_(-3)
    assert argmax_loop(model, prompt, 16) != expected


def test_a_long_prompt_is_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    from weitune.generate.decode import decoder as module

    model = tiny_model("llama")
    prompt = tokens(100, 5)
    expected = argmax_loop(model, prompt, 8)
    monkeypatch.setattr(module, "_PREFILL_TOKENS", 33)
    assert decoded(decoder_of(model), [prompt], [8], 1) == [expected]


def test_a_block_that_computes_something_else_is_left_to_transformers() -> None:
    model = tiny_model("llama")
    for layer in model.model.layers:
        layer.register_forward_hook(lambda _, __, output: output + output.flip(-1))
    assert decodable_blocks(model) is None


def test_a_layer_with_other_settings_than_the_first_is_tried_too() -> None:
    for turned, tried in (([1, 1], 1), ([1, 0], 2)):
        blocks = decodable_blocks(family_model("smollm3", no_rope_layers=turned))
        assert blocks is not None
        assert _one_of_each_kind(blocks) == tried


def test_a_seed_gives_the_same_answer_in_any_company() -> None:
    model = tiny_model("qwen2")
    sampling = Sampling(max_new_tokens=12, temperature=0.9, top_p=0.95, repetition_penalty=1.2, seed=5)
    prompts = [tokens(9 + k, k) for k in range(4)]

    def answers(chosen: list[int]) -> dict[int, list[int]]:
        rows = [Row(k, prompts[k], 12, Chooser(sampling, prompts[k], CPU)) for k in chosen]
        for _ in decode_rows(decoder_of(model), rows, frozenset(), 3):
            pass
        return {row.number: row.tokens for row in rows}

    together = answers([0, 1, 2, 3])
    assert {k: answers([k])[k] for k in range(4)} == together
