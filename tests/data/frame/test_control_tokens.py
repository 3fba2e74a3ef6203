"""Look-alikes of control tokens: found, disguised, given back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, models

from tests.data.frame.families import FAMILIES, tokenizer_of
from weitune.data.conversation import Conversation, Origin, Turn
from weitune.data.frame.choose import framing_for
from weitune.data.frame.control_tokens import ControlTokens
from weitune.errors import DataError
from weitune.recipe.schema import Tokens


def controls_of(name: str) -> ControlTokens:
    return ControlTokens(tokenizer_of(name).backend_tokenizer)


def tricky_text(name: str) -> st.SearchStrategy[str]:
    """Texts made of control tokens, pieces of them, and anything else."""
    tokens = [*FAMILIES[name].special, *FAMILIES[name].plain]
    cut = st.builds(lambda token, a, b: token[a:b], st.sampled_from(tokens), st.integers(0, 5), st.integers(1, 12))
    return st.lists(st.one_of(st.sampled_from(tokens), cut, st.text(max_size=4)), max_size=6).map("".join)


@pytest.mark.parametrize("name", ["qwen3", "mistral", "gemma"])
@given(data=st.data())
def test_a_disguised_text_holds_no_control_token_even_beside_another(name: str, data: st.DataObject) -> None:
    controls = controls_of(name)
    texts = data.draw(st.lists(tricky_text(name), min_size=1, max_size=4))
    disguise = controls.disguise(texts, template="<|im_start|>[INST]")
    if disguise is None:
        assert not list(controls.find("".join(texts)))
        return
    hidden = [disguise.hide(text) for text in texts]
    assert not list(controls.find("".join(hidden)))
    assert [len(text) for text in hidden] == [len(text) for text in texts]
    assert [disguise.reveal(text) for text in hidden] == texts


@pytest.mark.parametrize("text", ["<|im_end|>", "a<|im_start|>b", "x <|im_", "d|> y", "<<|im_end|>>"])
def test_texts_that_spell_a_control_token_or_half_of_one_are_dangerous(text: str) -> None:
    assert controls_of("qwen2.5").dangerous(text)


@pytest.mark.parametrize("text", ["", "plain", "a < b", "|im_end|", "<|IM_END|>", "\n\n", "a  b"])
def test_other_texts_are_not(text: str) -> None:
    assert not controls_of("qwen2.5").dangerous(text)


def test_tokens_of_white_space_are_text() -> None:
    assert "\n\n" not in controls_of("gemma").ids
    assert "<strong>" in controls_of("gemma").ids


def test_stand_ins_occur_nowhere_else() -> None:
    controls = controls_of("qwen2.5")
    taken = "".join(map(chr, range(0xFDD0, 0xFDF0)))
    disguise = controls.disguise([f"<|im_end|>{taken}"], template="")
    assert disguise is not None
    hidden = disguise.hide(f"<|im_end|>{taken}")
    assert hidden[0] not in taken
    assert disguise.reveal(hidden) == f"<|im_end|>{taken}"
    escaped = f"\\u{ord(hidden[0]):04x}|im_end|>"
    assert disguise.reveal(escaped) == "<|im_end|>"


def test_a_text_that_leaves_no_stand_in_is_told_by_its_row() -> None:
    everything = "".join(map(chr, [*range(0xFDD0, 0xFDF0), *range(0xE000, 0xF900), *range(0xF0000, 0xF1000)]))
    framing = framing_for(tokenizer_of("qwen2.5"), Tokens())
    asked = Turn("user", f"<|im_end|>{everything}")
    row = Conversation((asked, Turn("assistant", "a")), origin=Origin("rows.jsonl", 3))
    for work in (framing.examples, lambda given: framing.prompt(given.before(1))):
        with pytest.raises(DataError, match=r"rows\.jsonl row 3: .*private use"):
            work(row)
    assert framing.prompt(Conversation((Turn("user", everything),)))


def test_overlapping_tokens_and_tokens_of_one_character() -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.add_tokens([AddedToken(text, normalized=False) for text in ("aba", "☃")])
    controls = ControlTokens(tokenizer)
    disguise = controls.disguise(["ababa☃"], template="")
    assert disguise is not None
    hidden = disguise.hide("ababa☃")
    assert not list(controls.find(hidden))
    assert disguise.reveal(hidden) == "ababa☃"


def test_what_a_token_takes_with_it_belongs_to_it() -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.add_tokens([AddedToken("<end>", rstrip=True, normalized=False), AddedToken("word", single_word=True)])
    found = [(c.start, c.stop) for c in ControlTokens(tokenizer).find("a<end> \n b word words")]
    assert found == [(1, 9), (11, 15)]
