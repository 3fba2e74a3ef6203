"""From pieces to tokens: control tokens pass through as ids, everything between them is encoded as plain text.

    pieces    [<|im_start|>] "user\\nhi" [<|im_end|>] "\\n" [<|im_start|>] "assistant\\n" | "hello" [<|im_end|>] "\\n"
    tokens        151644      872 198 6023   151645     198     151644        77091 198   |  14990     151645     198
                                                                                          cut      ╰── learned ──╯

A tokenizer first splits its input at added tokens and treats the text between them separately, so encoding the pieces
equals encoding the whole. Text cannot become a control token, since the encoder of the pieces does not know them. The
cut marks the beginning of an answer: at inference the prompt is tokenized without the answer, so here, too, no token
crosses the cut. Cost: one pass of the Rust tokenizer (all cores) over the texts that differ; what comes again within
the last ``_REMEMBERED_TOKENS`` (a system prompt, a question with several answers) is not tokenized again.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, pairwise
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer, models

from weitune.data.columns import ExampleColumns, Ints, ends_of, transposed
from weitune.data.conversation import Example, Origin, Span
from weitune.data.frame.control_tokens import ControlTokens, Disguise
from weitune.data.problems import data_problem, framing_error, shown

_REMEMBERED_TOKENS = 1 << 19
"""Tokens of texts that are kept, at most."""


class Text(NamedTuple):
    """Plain text between control tokens; ``bare``: the tokenizer adds no prefix of its own (SentencePiece's space)."""

    text: str
    bare: bool


Piece = Text | tuple[int, ...]
"""Text to be encoded, or known tokens: a control token, or constant framing."""
Known = dict[Piece, bytes]
"""The tokens of pieces, as int32."""


class Learned(NamedTuple):
    """Pieces ``start`` to ``stop`` (exclusive) of a draft are learned, each token with ``weight``."""

    start: int
    stop: int
    weight: float = 1.0


class Draft(NamedTuple):
    """An example before its texts are tokenized."""

    pieces: tuple[Piece, ...]
    learned: tuple[Learned, ...] = ()
    origin: Origin | None = None


class PieceEncoder:
    """Encodes pieces with a tokenizer's own model, normalizer and pre-tokenizer, but without its control tokens.

    It shares the model of ``tokenizer``; nothing large is copied.
    """

    def __init__(self, tokenizer: Tokenizer, controls: ControlTokens) -> None:
        self._controls = controls
        self._prefixing, self._bare, self._first_only = _plain_tokenizers(tokenizer, controls)
        self._known: Known = {}
        self._remembered = 0
        self._unknown = _unknown_id(tokenizer)
        self._control_ids = frozenset(controls.ids.values())
        # Without the other added tokens, a white-space token may get another id; this maps it to its own.
        kept = self._prefixing.get_added_tokens_decoder()
        own = {token.content: i for i, token in tokenizer.get_added_tokens_decoder().items()}
        self._renumber = {i: own[token.content] for i, token in kept.items() if own[token.content] != i}
        unusual = [*self._control_ids, *self._renumber]
        self._is_unusual = np.zeros(max([tokenizer.get_vocab_size(), *own.values(), *kept]) + 2, bool)
        self._is_unusual[unusual] = True

    def split(self, text: str, cuts: Iterable[int], disguise: Disguise | None) -> tuple[list[Piece], dict[int, int]]:
        """Split rendered ``text`` at its control tokens and at ``cuts`` (characters).

        Returns the pieces, and for every cut the number of pieces before it.
        """
        pieces: list[Piece] = []
        index: dict[int, int] = {}
        edges = sorted({0, *cuts, len(text)})
        for start, stop in pairwise(edges):
            index[start] = len(pieces)
            at = start
            for control in self._controls.find(text, start, stop):
                self._append(pieces, text[at : control.start], disguise)
                pieces.append((control.id,))
                at = control.stop
            self._append(pieces, text[at:stop], disguise)
        index[len(text)] = len(pieces)
        return pieces, index

    def _append(self, pieces: list[Piece], text: str, disguise: Disguise | None) -> None:
        if text:
            bare = bool(pieces) and (self._first_only or isinstance(pieces[-1], Text))
            pieces.append(Text(disguise.reveal(text) if disguise else text, bare))

    def encode(self, drafts: Sequence[Draft]) -> list[Example]:
        """Tokenize ``drafts`` together. Raises DataError if a string cannot be told from a control token."""
        batch = self.begin(drafts)
        batch.run()
        return batch.finish()

    def begin(self, drafts: Sequence[Draft]) -> EncodingBatch:
        """Return a batch whose texts are not tokenized yet, so that the caller can do something else meanwhile."""
        if self._remembered > _REMEMBERED_TOKENS:
            self._known, self._remembered = {}, 0  # pending batches keep the old dictionary
        known = self._known  # one for the whole batch, even if another thread begins one meanwhile
        by_tokenizer: dict[Tokenizer, list[Text]] = {self._prefixing: [], self._bare: []}
        for piece in set(chain.from_iterable([draft.pieces for draft in drafts])).difference(known):
            if isinstance(piece, Text):
                by_tokenizer[self._bare if piece.bare else self._prefixing].append(piece)
            else:
                known[piece] = _stored(piece)
        return EncodingBatch(self, drafts, by_tokenizer, known)

    def learn(self, texts: Sequence[Text], encodings: Sequence[Any], known: Known) -> None:
        """Add the checked tokens of ``texts`` to ``known``, and count them as remembered."""
        stored = [_stored(encoding.ids) for encoding in encodings]
        tokens = _tokens(b"".join(stored))
        last = len(self._is_unusual) - 1  # which no unusual token is: a vocabulary with gaps has larger ones
        if self._is_unusual[np.minimum(tokens, last)].any():  # hardly ever
            stored = [self._checked(text.text, encoding.ids) for text, encoding in zip(texts, encodings, strict=True)]
        known.update(zip(texts, stored, strict=True))
        self._remembered += len(tokens)

    def known(self, pieces: Sequence[Piece]) -> tuple[int, ...]:
        """Return the tokens of ``pieces`` as one piece, for constant framing."""
        return self.encode([Draft(tuple(pieces))])[0].input_ids

    def _checked(self, text: str, ids: list[int]) -> bytes:
        """Return ``ids``, the tokens of ``text``, with the tokenizer's own numbers; encode ``text`` otherwise if one is
        a control token. Raises DataError if that does not help."""
        ids = [self._renumber.get(token, token) for token in ids]
        return _stored(self._encode_split(text) if self._has_control(text, ids) else ids)

    def _has_control(self, text: str, ids: Iterable[int]) -> bool:
        """Return whether a control token is among ``ids``, the tokens of plain ``text``.

        The unknown token may be one, and also encodes characters that the model does not know.
        """
        controls = self._control_ids.intersection(ids)
        return bool(controls - {self._unknown}) or (bool(controls) and bool(self._controls.lookalikes(text)))

    def _encode_split(self, text: str) -> list[int]:
        """Encode ``text`` split after the first character of each look-alike.

        This is for models whose merges spell a control token, as SentencePiece vocabularies may.
        """
        edges = [0, *(at + 1 for at, _ in self._controls.lookalikes(text)), len(text)]
        parts = [text[a:b] for a, b in pairwise(edges)]
        head, *rest = parts
        encodings = [self._prefixing.encode(head, add_special_tokens=False)]
        encodings += [self._bare.encode(part, add_special_tokens=False) for part in rest]
        ids = [token for encoding in encodings for token in encoding.ids]
        ids = [self._renumber.get(token, token) for token in ids]
        if self._control_ids.intersection(ids) - {self._unknown}:
            raise framing_error(None, data_problem("data.encode.control_token_in_text", text=shown(text)))
        return ids


class EncodingBatch:
    """A batch to be tokenized: :meth:`run` is all Rust and may run in another thread, what follows is all Python.

    ``by_tokenizer`` has the texts that each tokenizer encodes; ``known`` has the tokens of all others, and gets these.
    """

    def __init__(
        self, encoder: PieceEncoder, drafts: Sequence[Draft], by_tokenizer: Mapping[Tokenizer, list[Text]], known: Known
    ) -> None:
        self._encoder = encoder
        self._drafts = drafts
        self._by_tokenizer = by_tokenizer
        self._known = known
        self._encodings: list[Any] = []

    def run(self) -> None:
        """Tokenize the texts, on all cores."""
        for tokenizer, texts in self._by_tokenizer.items():
            strings = [text.text for text in texts]
            self._encodings.append(tokenizer.encode_batch_fast(strings, add_special_tokens=False))

    def columns(self) -> ExampleColumns:
        """Return the examples as columns. Raises DataError if a string cannot be told from a control token."""
        self._learn()
        return _columns(self._drafts, self._known)

    def finish(self) -> list[Example]:
        """Return the examples of :meth:`columns`, one by one. Raises DataError as it does."""
        self._learn()
        return [_assemble(draft, self._known) for draft in self._drafts]

    def _learn(self) -> None:
        for texts, encodings in zip(self._by_tokenizer.values(), self._encodings, strict=True):
            self._encoder.learn(texts, encodings, self._known)


def _stored(tokens: Iterable[int]) -> bytes:
    return array("i", tokens).tobytes()


def _tokens(stored: bytes) -> Ints:
    return np.frombuffer(stored, np.int32)


def _assemble(draft: Draft, known: Known) -> Example:
    pieces, learned, origin = draft
    tokens: list[int] = []
    ends = [0]
    for piece in pieces:
        tokens += memoryview(known[piece]).cast("i")
        ends.append(len(tokens))
    # No logit predicts the first token of a sequence.
    spans = [(ends[start] or 1, ends[stop], weight) for start, stop, weight in learned]
    return Example(tuple(tokens), tuple([Span(*span) for span in spans if span[0] < span[1]]), origin)


def _columns(drafts: Sequence[Draft], known: Known) -> ExampleColumns:
    """Return what :func:`_assemble` makes of ``drafts``; no token passes through Python."""
    pieces = [known[piece] for draft in drafts for piece in draft.pieces]
    tokens = _tokens(b"".join(pieces))
    piece_ends = ends_of([len(piece) for piece in pieces]) // tokens.itemsize
    first_piece = ends_of([len(draft.pieces) for draft in drafts])
    ends = piece_ends[first_piece]
    first, after, weights = transposed([span for draft in drafts for span in draft.learned], 3)
    draft_of = np.repeat(np.arange(len(drafts)), np.array([len(draft.learned) for draft in drafts], int))
    starts = np.maximum(piece_ends[first_piece[draft_of] + np.array(first, int)] - ends[draft_of], 1)
    stops = piece_ends[first_piece[draft_of] + np.array(after, int)] - ends[draft_of]
    kept = starts < stops
    spans = np.bincount(draft_of[kept], minlength=len(drafts))
    return ExampleColumns(tokens, ends, starts[kept], stops[kept], np.array(weights, float)[kept], ends_of(spans))


def _plain_tokenizers(tokenizer: Tokenizer, controls: ControlTokens) -> tuple[Tokenizer, Tokenizer, bool]:
    """Return two tokenizers with the same model and without control tokens, the second of which adds no space before
    its input, and whether that space comes only at the very start of a string, not after every control token.

    If the first adds none either, the second is the first.
    """
    steps = Tokenizer(models.BPE())  # an empty model keeps the JSON small
    if tokenizer.normalizer is not None:
        steps.normalizer = tokenizer.normalizer
    if tokenizer.pre_tokenizer is not None:
        steps.pre_tokenizer = tokenizer.pre_tokenizer
    config = json.loads(steps.to_str())
    first_only = any(step.get("prepend_scheme") == "first" for step in _steps(config["pre_tokenizer"]))
    adds_none = json.loads(steps.to_str())
    for step in _steps(adds_none["pre_tokenizer"]):
        if "prepend_scheme" in step:
            step["prepend_scheme"] = "never"
        if "add_prefix_space" in step:
            step["add_prefix_space"] = False
    if any(step["type"] == "Prepend" for step in _steps(config["normalizer"])):
        normalizers = [step for step in _steps(config["normalizer"]) if step["type"] != "Prepend"]
        adds_none["normalizer"] = {"type": "Sequence", "normalizers": normalizers} if normalizers else None
    bare = Tokenizer.from_str(json.dumps(adds_none)) if adds_none != config else steps
    white_space = [t for t in tokenizer.get_added_tokens_decoder().values() if t.content not in controls.ids]
    for plain in (steps, bare):
        plain.model = tokenizer.model
        plain.add_tokens(white_space)
    return steps, bare, first_only


def _steps(config: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return the single steps of a normalizer's or pre-tokenizer's configuration."""
    if config is None:
        return []
    if config["type"] != "Sequence":
        return [config]
    inner = config.get("normalizers") or config.get("pretokenizers") or []
    return [step for part in inner for step in _steps(part)]


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    """Return the token with which the model itself spells what it does not know."""
    unknown = getattr(tokenizer.model, "unk_token", None)
    if unknown is None and isinstance(tokenizer.model, models.Unigram):
        unknown_id = json.loads(tokenizer.to_str())["model"].get("unk_id")
        return int(unknown_id) if unknown_id is not None else None
    return tokenizer.token_to_id(unknown) if unknown is not None else None
