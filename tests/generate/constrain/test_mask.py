"""Answers of a model are kept to JSON: its tokens, one by one, in every company and by every way of decoding."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from transformers.convert_slow_tokenizer import bytes_to_unicode

pytest.importorskip("llguidance")

from tests.generate.test_engine import QUESTIONS, conversation, tiny_engine
from tests.json_schemas import SCHEMAS, fits, is_refused
from tests.tiny import TEMPLATE_OF
from weitune.errors import InputError, MissingExtraError
from weitune.generate.constrain.schema import ANY_OBJECT
from weitune.generate.engine import Engine
from weitune.generate.sampling import Sampling

WORDS = ["high", "low", "涨潮", 'a "quote"', "higher"]
SAMPLED = Sampling(max_new_tokens=40, temperature=1.2, top_p=0.95, top_k=80, repetition_penalty=1.3, seed=3)
TIDE = {
    "type": "object",
    "properties": {"port": {"enum": WORDS}, "hours": {"type": "array", "items": {"enum": [3, 12]}, "maxItems": 2}},
    "required": ["port", "hours"],
    "additionalProperties": False,
}


def bytes_of(engine: Engine) -> dict[int, bytes]:
    """Return the bytes of every token that is text."""
    byte = {char: value for value, char in bytes_to_unicode().items()}
    special = engine.framing.special_ids
    return {
        token: bytes(byte[char] for char in text)
        for text, token in engine.tokenizer.get_vocab().items()
        if token not in special and all(char in byte for char in text)
    }


def may_follow(texts: dict[int, bytes], values: set[bytes], written: bytes) -> dict[int, set[bytes]]:
    """The slow twin: the tokens with which ``written`` still begins some of the ``values``, and which."""
    begun = {token: {value for value in values if value.startswith(written + text)} for token, text in texts.items()}
    return {token: some for token, some in begun.items() if some and texts[token]}


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama", "gemma"])
def test_tokens_that_may_follow_are_those_with_which_a_value_can_still_be_written(family: str) -> None:
    engine = tiny_engine(family)
    values = {json.dumps(word, ensure_ascii=False).encode() for word in WORDS}
    grammar = engine._grammars.of({"enum": WORDS})
    texts = bytes_of(engine)
    for seed in range(8):
        mask, generator = grammar.mask(), torch.Generator().manual_seed(seed)
        ids = torch.tensor([engine.prompt(conversation("x"))])
        written = b""
        for _ in range(40):
            scores = mask(ids, torch.zeros(1, 512))
            allowed = set(scores[0].isfinite().nonzero().flatten().tolist())
            assert (allowed & engine.stop_tokens == engine.stop_tokens) == (written in values)
            going_on, fitting = allowed - engine.stop_tokens, may_follow(texts, values, written)
            assert going_on <= set(fitting), written
            # A text that must follow may have to be written in the tokenizer's own tokens; nothing else is left out.
            open_values = {value for value in values if value.startswith(written)} - {written}
            assert set().union(*(fitting[token] for token in going_on)) == open_values
            chosen = sorted(allowed)[int(torch.randint(len(allowed), (), generator=generator))]
            ids = torch.cat([ids, torch.tensor([[chosen]])], dim=1)
            if chosen in engine.stop_tokens:
                break
            written += texts[chosen]
        assert json.loads(written) in WORDS


@pytest.mark.parametrize("sampling", [Sampling(max_new_tokens=40), SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("family", TEMPLATE_OF)
def test_answers_fit_alone_in_a_batch_and_streamed(family: str, sampling: Sampling) -> None:
    engine = tiny_engine(family)
    asked = [conversation(question) for question in QUESTIONS]
    alone = [engine.answers([each], sampling, schema=TIDE)[0] for each in asked]
    for answer in alone:
        assert answer.stopped
        assert json.loads(answer.text)["port"] in WORDS
    for size in (1, 3, 32):
        assert engine.answers(asked, sampling, batch_size=size, schema=TIDE) == alone
    assert ["".join(engine.stream(each, sampling, TIDE)) for each in asked] == [answer.text for answer in alone]
    assert engine.answers(asked, sampling) != alone


@pytest.mark.parametrize("sampling", [Sampling(max_new_tokens=40), SAMPLED], ids=["greedy", "sampled"])
def test_transformers_gives_the_same_answers(sampling: Sampling, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [conversation(question) for question in QUESTIONS]
    ours = tiny_engine().answers(asked, sampling, schema=TIDE)
    monkeypatch.setattr("weitune.generate.engine.decodable_blocks", lambda model: None)
    engine = tiny_engine()
    assert engine.answers(asked, sampling, batch_size=3, schema=TIDE) == ours
    assert "".join(engine.stream(asked[0], sampling, TIDE)) == ours[0].text


@pytest.mark.parametrize("sampling", [Sampling(max_new_tokens=40), SAMPLED], ids=["greedy", "sampled"])
def test_drafts_change_nothing(sampling: Sampling) -> None:
    plain, drafting = tiny_engine(), tiny_engine()
    drafting._fixed = True
    for schema in (TIDE, ANY_OBJECT):
        asked = conversation(QUESTIONS[0])
        assert "".join(drafting.stream(asked, sampling, schema)) == "".join(plain.stream(asked, sampling, schema))


ENGINE = tiny_engine()


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(schema=SCHEMAS)
def test_every_answer_fits_or_its_schema_is_refused(schema: Any) -> None:
    sampling = Sampling(max_new_tokens=24, temperature=1, seed=5)
    try:
        answer = ENGINE.answers([conversation("x")], sampling, schema=schema)[0]
    except InputError as error:
        assert "JSON schema" in error.message  # noqa: PT017
        assert is_refused(schema)
    else:
        if answer.stopped:
            assert fits(json.loads(answer.text), schema)


@pytest.mark.parametrize(
    "ask",
    [lambda engine, schema: engine.stream(conversation("x"), None, schema),
     lambda engine, schema: engine.answers([conversation("x")], schema=schema)],
)  # fmt: skip
def test_what_cannot_be_kept_to_is_refused_at_once(
    ask: Callable[[Engine, Any], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    with pytest.raises(InputError, match=r"the JSON schema cannot be kept to: .*uniqueItems"):
        ask(ENGINE, {"type": "array", "uniqueItems": True})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="llguidance"):
        ask(ENGINE, ANY_OBJECT)


def test_a_tokenizer_that_cannot_be_read_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("can't determine decoder type")

    monkeypatch.setattr("llguidance.hf.from_tokenizer", fail)
    with pytest.raises(InputError, match="llguidance cannot read this tokenizer: can't determine"):
        tiny_engine().stream(conversation("x"), None, ANY_OBJECT)
