"""Drafts change how fast tokens come, never which: the model chooses every one."""

from __future__ import annotations

from typing import Any

import pytest

from tests.generate.decode.test_decode import CPU, tokens
from tests.generate.test_engine import argmax_loop
from tests.tiny import tiny_model
from weitune.generate.decode.choose import Chooser
from weitune.generate.decode.decoder import StepDecoder
from weitune.generate.decode.draft import Draft, Repeats, Speculation
from weitune.generate.decode.probe import decodable_blocks
from weitune.generate.decode.rows import Row, decode_rows
from weitune.generate.sampling import Sampling

SAMPLED = Sampling(max_new_tokens=40, temperature=0.9, top_p=0.95, repetition_penalty=1.2, seed=5)


def drafting(family: str = "qwen2", **overrides: Any) -> tuple[Any, StepDecoder, Draft]:
    model = tiny_model(family, **overrides)
    blocks = decodable_blocks(model)
    assert blocks is not None
    decoder = StepDecoder(model, blocks, fixed=True)
    draft = Draft.of(decoder)
    if draft is None:
        pytest.skip("this processor does not multiply by four bits fast")
    return model, decoder, draft


def alone(decoder: StepDecoder, draft: Draft | None, prompt: list[int], sampling: Sampling) -> list[int]:
    row = Row(0, prompt, sampling.max_new_tokens, Chooser(sampling, prompt, CPU))
    return [token for _, token in decode_rows(decoder, [row], frozenset(), 1, lambda: draft)]


@pytest.mark.parametrize("family", ["qwen2", "llama"])
def test_drafted_tokens_are_the_models_own_likeliest(family: str) -> None:
    model, decoder, draft = drafting(family)
    prompt = tokens(20, 0)
    assert alone(decoder, draft, prompt, Sampling(max_new_tokens=40)) == argmax_loop(model, prompt, 40)


def test_a_wrong_draft_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, decoder, draft = drafting()
    guesses = iter(tokens(1000, 1))
    monkeypatch.setattr(Draft, "next", lambda *_: (next(guesses), True))
    prompt = tokens(20, 0)
    assert alone(decoder, draft, prompt, Sampling(max_new_tokens=40)) == argmax_loop(model, prompt, 40)
    assert next(guesses, None) is not None, "drafts that are wrong go on for ever"


def test_sampling_is_drafted_with_the_same_noise() -> None:
    _, decoder, draft = drafting()
    prompt = tokens(20, 0)
    assert alone(decoder, draft, prompt, SAMPLED) == alone(decoder, None, prompt, SAMPLED)


def test_most_drafts_are_right() -> None:
    _, decoder, draft = drafting()
    speculation, cache = Speculation(decoder, draft, prompt := tokens(20, 0)), decoder.new_cache(1)
    chooser = Chooser(SAMPLED, prompt, CPU)
    said = [int(decoder.read([prompt], cache, 0).argmax())]
    for _ in range(8):
        said += list(speculation.next(said, cache, chooser))
    assert len(said) > 1.5 * 8
    assert speculation.pays


def test_weights_that_may_change_are_not_copied() -> None:
    model, decoder, _ = drafting()
    assert Draft.of(StepDecoder(model, decoder.blocks)) is None


def test_what_followed_a_run_before_is_found() -> None:
    repeats = Repeats([1, 2, 3, 4, 5, 6])
    assert repeats.continued(5) == []
    assert repeats.add([9, 1, 2, 3]) == 10
    assert repeats.continued(5) == []
    assert repeats.add([9, 1, 2, 3, 4]) == 11
    assert repeats.continued(5) == [5, 6, 9, 1, 2]
    assert repeats.continued(1) == [5]
    repeats.add([9, 1, 2, 3, 4, 7, 1, 2, 3, 4])
    assert repeats.continued(2) == [7, 1], "the latest place counts"
