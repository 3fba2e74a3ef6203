"""Encoding pieces equals encoding the whole, for tokenizers with every awkward habit."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from tests.data.frame.families import FAMILIES, tokenizer_of
from weitune.data.frame import encode as encode_module
from weitune.data.frame.control_tokens import ControlTokens
from weitune.data.frame.encode import Draft, Learned, PieceEncoder, Text
from weitune.errors import DataError


def encoder_of(tokenizer: Tokenizer) -> PieceEncoder:
    return PieceEncoder(tokenizer, ControlTokens(tokenizer))


def split_and_encoded(tokenizer: Tokenizer, text: str) -> list[int]:
    encoder = encoder_of(tokenizer)
    [example] = encoder.encode([Draft(tuple(encoder.split(text, (), None)[0]))])
    return list(example.input_ids)


def whole(tokenizer: Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


LETTERS = st.characters(exclude_categories=("Cs",), exclude_characters="▁")


@pytest.mark.parametrize("name", sorted(FAMILIES))
@given(data=st.data())
def test_pieces_equal_the_whole(name: str, data: st.DataObject) -> None:
    tokens = [*FAMILIES[name].special, *FAMILIES[name].plain, "\n", " ", "the"]
    parts = data.draw(st.lists(st.sampled_from(tokens) | st.text(LETTERS, max_size=5), max_size=8))
    tokenizer = tokenizer_of(name).backend_tokenizer
    assert split_and_encoded(tokenizer, "".join(parts)) == whole(tokenizer, "".join(parts))


def greedy(*tokens: AddedToken) -> Tokenizer:
    """Return a byte-level tokenizer with ``tokens``."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({char: i for i, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(list(tokens))
    return tokenizer


@pytest.mark.parametrize("text", ["<end>\n\n a", "a <end> b", "<end><end>", " <end>", "a", "<end> \n", "\n<mask> b"])
def test_tokens_that_take_blanks_with_them_and_prefix_spaces(text: str) -> None:
    tokenizer = greedy(
        AddedToken("<end>", rstrip=True, normalized=False), AddedToken("<mask>", lstrip=True, normalized=False)
    )
    assert split_and_encoded(tokenizer, text) == whole(tokenizer, text)


def test_white_space_tokens_beyond_the_vocabulary_keep_their_numbers() -> None:
    """As in GPT-NeoX: runs of spaces are added tokens, numbered after control tokens that the encoder leaves out."""
    tokenizer = greedy(AddedToken("<|end|>", normalized=False), AddedToken("    ", normalized=False))
    text = "a<|end|>    b"
    assert split_and_encoded(tokenizer, text) == whole(tokenizer, text)
    encoder = encoder_of(tokenizer)
    [example] = encoder.encode([Draft((Text("x    <|end|>", bare=False),))])
    assert tokenizer.token_to_id("    ") in example.input_ids
    assert tokenizer.token_to_id("<|end|>") not in example.input_ids


@pytest.mark.parametrize("name", ["mistral", "mistral-legacy", "gemma"])
def test_merges_that_spell_a_control_token_are_broken(name: str) -> None:
    tokenizer = tokenizer_of(name).backend_tokenizer
    assert "<s>" in tokenizer.get_vocab()
    encoder = encoder_of(tokenizer)
    for text in ("<s>", "a<s>b", "<<s>>", "<s><s>"):
        [example] = encoder.encode([Draft((Text(text, bare=True),))])
        assert not set(example.input_ids) & set(ControlTokens(tokenizer).ids.values())
        assert tokenizer.decode(list(example.input_ids), skip_special_tokens=False).strip() == text


def test_text_that_can_only_be_a_control_token_is_refused() -> None:
    tokenizer = Tokenizer(models.WordLevel({"word": 0, "<unk>": 1}, unk_token="<unk>"))  # noqa: S106
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_tokens([AddedToken("word", normalized=False), AddedToken("<unk>", normalized=False)])
    encoder = encoder_of(tokenizer)
    [example] = encoder.encode([Draft((Text("other", bare=False),))])
    assert example.input_ids == (1,)  # the unknown token stands for what the model does not know
    unigram = Tokenizer(models.Unigram([("<unk>", 0.0), ("w", -1.0)], unk_id=0, byte_fallback=False))
    unigram.add_tokens([AddedToken("w", normalized=False)])
    with pytest.raises(DataError, match="can tell from a control token"):
        encoder_of(unigram).encode([Draft((Text("w", bare=False),))])


def test_a_vocabulary_may_have_gaps() -> None:
    vocabulary = {letter: 1000 * at for at, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert split_and_encoded(tokenizer, "haze") == whole(tokenizer, "haze") == [vocabulary[letter] for letter in "haze"]


def test_learned_pieces_become_spans_and_the_first_token_is_never_learned() -> None:
    tokenizer = tokenizer_of("qwen2.5").backend_tokenizer
    encoder = encoder_of(tokenizer)
    end = tokenizer.token_to_id("<|im_end|>")
    pieces = (Text("hi", bare=False), (end,), Text("the end", bare=False), (end,))
    [example] = encoder.encode([Draft(pieces, (Learned(0, 2), Learned(2, 4, 0.5)))])
    assert example.spans[0].start == 1
    assert example.input_ids[example.spans[0].stop - 1] == end
    assert example.spans[1].stop == len(example.input_ids)
    assert example.spans[1].weight == 0.5


def test_normalizers_apply_to_pieces() -> None:
    tokenizer = greedy(AddedToken("<end>", normalized=False))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    text = "ABC<end>Cafe\u0301"
    assert split_and_encoded(tokenizer, text) == whole(tokenizer, text)


@pytest.mark.parametrize("name", sorted(FAMILIES))
@given(data=st.data())
def test_columns_are_the_examples(name: str, data: st.DataObject) -> None:
    encoder = encoder_of(tokenizer_of(name).backend_tokenizer)
    texts = st.builds(Text, st.text(LETTERS, max_size=4) | st.sampled_from(["<s>", "the end"]), st.booleans())
    tokens = st.lists(st.integers(0, 9), max_size=3).map(tuple)
    pieces = st.lists(texts | tokens, max_size=5)
    drafts = []
    for drawn in data.draw(st.lists(pieces, max_size=4)):
        edges = sorted(data.draw(st.sets(st.integers(0, len(drawn)), max_size=4)))
        learned = [Learned(*edge, 0.5) for edge in zip(edges[::2], edges[1::2], strict=False)]
        drafts.append(Draft(tuple(drawn), tuple(learned)))
    batch = encoder.begin(drafts)
    batch.run()
    columns = batch.columns()
    assert [columns.example(i) for i in range(len(columns))] == batch.finish() == encoder.encode(drafts)


def test_what_is_remembered_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tokenizer_of("qwen2.5").backend_tokenizer
    encoder = encoder_of(tokenizer)
    drafts = [Draft((Text(f"text {i % 5}", bare=False), Text("cafe\u0301", bare=i % 2 == 0))) for i in range(30)]
    alone = [encoder_of(tokenizer).encode([draft])[0] for draft in drafts]
    assert encoder.encode(drafts) == alone
    assert encoder.encode(drafts) == alone  # all from memory
    on_its_way = encoder.begin(drafts[:3])
    monkeypatch.setattr(encode_module, "_REMEMBERED_TOKENS", 2)
    assert encoder.encode(drafts) == alone  # after forgetting
    on_its_way.run()
    assert on_its_way.finish() == alone[:3]


def test_a_batch_that_another_thread_begins_takes_nothing_from_one_that_has_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    encoder = encoder_of(tokenizer_of("qwen2.5").backend_tokenizer)
    said = Text("said before", bare=False)
    [before] = encoder.encode([Draft((said,))])
    stored = encode_module._stored

    def another_thread_forgets(tokens: Any) -> bytes:
        encoder._remembered = encode_module._REMEMBERED_TOKENS + 1
        with monkeypatch.context() as patch:
            patch.setattr(encode_module, "_stored", stored)
            encoder.encode([Draft((Text("other", bare=False),))])
        return stored(tokens)

    monkeypatch.setattr(encode_module, "_stored", another_thread_forgets)
    batch = encoder.begin([Draft(((5,), said))])
    monkeypatch.undo()
    batch.run()
    assert batch.finish()[0].input_ids == (5, *before.input_ids)
