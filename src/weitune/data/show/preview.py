"""Examples as the model sees them: the text in parts, each of which is framing, prompt or learned.

<|im_start|>user⏎hi<|im_end|>⏎<|im_start|>assistant⏎hello<|im_end|>⏎
control     prompt control    control     prompt    ╰── learned ──╯

The answers of a pair follow the prompt that they share. Text that only looks like a control token is shown with the
borders of its tokens, ``┊<┊|im┊_end┊|>┊``, so that it can be told from the token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby, islice, pairwise
from typing import Any, Literal, NamedTuple

from weitune.data.conversation import Conversation, Example, Origin, Span
from weitune.data.formats.parse import Row
from weitune.data.frame.framing import Framing
from weitune.data.partition import shared_length
from weitune.data.preference.values import Judged, Pair
from weitune.data.prepare.accounts import has_empty_answer
from weitune.data.prepare.groups import answers_of, dialogues, draft_answers
from weitune.data.prepare.prepare import source_weights
from weitune.data.prepare.truncate import within_limit
from weitune.data.problems import Problem
from weitune.data.read.conversations import Reader
from weitune.data.read.source import BlankRow, blank_reason
from weitune.errors import DataError
from weitune.messages import say
from weitune.recipe.schema import Recipe, Tokens

BORDER = "┊"
"""The sign between two tokens."""
Kind = Literal["control", "prompt", "learned"]


@dataclass(frozen=True, slots=True)
class Part:
    """Successive tokens of one kind, decoded. A control token that is learned counts as ``learned``."""

    text: str
    kind: Kind
    tokens: int
    weight: float = 0.0
    borders: tuple[int, ...] = ()
    """Where the tokens that spell a look-alike of a control token begin and end in ``text``."""

    @property
    def pieces(self) -> list[str]:
        """The text, cut at its :attr:`borders`."""
        return [self.text[a:b] for a, b in pairwise([0, *self.borders, len(self.text)])]


@dataclass(frozen=True, slots=True)
class PreviewAnswer:
    """An answer to the prompt of an item, which the model learns to give (``liked``) or not to give."""

    liked: bool
    title: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class PreviewItem:
    """One example to look at, or a row without one; ``tags`` name what is special about it.

    Of a row with preferences, ``parts`` are the prompt and ``answers`` what follows it.
    """

    place: str
    parts: tuple[Part, ...]
    tags: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()
    answers: tuple[PreviewAnswer, ...] = ()

    @property
    def all_parts(self) -> tuple[Part, ...]:
        """The parts of the prompt, or the example, and of all answers."""
        return (*self.parts, *(part for answer in self.answers for part in answer.parts))

    @property
    def tokens(self) -> int:
        return sum(part.tokens for part in self.all_parts)

    @property
    def learned(self) -> tuple[str, ...]:
        return tuple(part.text for part in self.all_parts if part.kind == "learned")

    @property
    def learned_tokens(self) -> int:
        return sum(part.tokens for part in self.all_parts if part.kind == "learned")


def parts(example: Example, tokenizer: Any, framing: Framing) -> tuple[Part, ...]:
    """Cut ``example`` where kind or weight changes, and decode the parts with its transformers ``tokenizer``."""
    mask = example.loss_mask
    controls = framing.control_ids
    kinds: list[tuple[Kind, float]] = [
        ("learned" if weight else "control" if token in controls else "prompt", weight)
        for token, weight in zip(example.input_ids, mask, strict=True)
    ]
    result = []
    for (kind, weight), run in groupby(range(len(kinds)), key=kinds.__getitem__):
        ids = [example.input_ids[i] for i in run]
        text = _decoded(tokenizer, ids)
        result.append(Part(text, kind, len(ids), weight, _borders(text, ids, tokenizer, framing)))
    return tuple(result)


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
    return text


def _borders(text: str, ids: Sequence[int], tokenizer: Any, framing: Framing) -> tuple[int, ...]:
    """Return where tokens begin and end within the look-alikes of ``text``, the decoded ``ids``."""
    lookalikes = framing.lookalikes(text)
    if not lookalikes:
        return ()
    ends = list(accumulate(len(_decoded(tokenizer, [token])) for token in ids))
    if ends[-1] != len(text):  # a character in several tokens, or a space that only the first token loses
        ends = [len(_decoded(tokenizer, ids[: n + 1])) for n in range(len(ids))]
    controls = {span for span, token in zip(pairwise([0, *ends]), ids, strict=True) if token in framing.control_ids}
    borders = {
        edge for a, b in lookalikes if (a, b) not in controls for edge in (a, b, *(e for e in ends if a < e < b))
    }
    return tuple(sorted(borders))


def preview(
    reader: Reader, framing: Framing, tokenizer: Any, recipe: Recipe, row: int | None = None
) -> Iterator[PreviewItem]:
    """Yield the examples of all rows of ``reader``, or of the ``row``-th (from 1), or what is wrong with a row.

    Raises RecipeError if the recipe has a weight for a file that is none of its data.
    """
    seen: set[int] = set()
    weights = source_weights(reader, recipe)
    items = reader.items() if row is None else islice(reader.items(), row - 1, row)
    for number, item in items:
        if isinstance(item, BlankRow):
            yield PreviewItem(str(item.origin), (), (say("data.preview.set_aside", reason=blank_reason()),))
            continue
        if not isinstance(item, Conversation | Pair | Judged):
            yield _faulty(item)
            continue
        read = item.with_system(recipe.system, replace_blank=True)
        key = hash(repr(_texts(read)))
        try:
            frame = _Frame(framing, tokenizer, recipe.tokens, weights[number])
            yield from _shown(read, frame, is_copy=key in seen)
        except DataError as error:
            yield _faulty(tuple(problem for problem in error.problems if isinstance(problem, Problem)))
        seen.add(key)


class _Frame(NamedTuple):
    """How a row becomes tokens, and the weight of its file."""

    framing: Framing
    tokenizer: Any
    tokens: Tokens
    weight: float

    def trained(self, example: Example) -> tuple[Example, Example | None]:
        """Return ``example`` with the weights of training, and what training takes of it."""
        spans = (span._replace(weight=span.weight * self.weight) for span in example.spans)
        weighted = replace(example, spans=tuple(span for span in spans if span.weight)) if self.weight != 1 else example
        return weighted, within_limit(weighted, self.tokens)


def _shown(row: Row, frame: _Frame, *, is_copy: bool) -> list[PreviewItem]:
    """Return the examples of ``row``, or its answers. Raises DataError if it cannot be framed."""
    place = "" if row.origin is None else str(row.origin)
    if not isinstance(row, Conversation):
        return [_with_answers(place, row, frame, is_copy=is_copy)]
    items = []
    for each in frame.framing.examples(row):
        example, trained = frame.trained(each)
        tags = _tags(row, example, trained, is_copy=is_copy)
        items.append(PreviewItem(place, parts(trained or example, frame.tokenizer, frame.framing), tuple(tags)))
    return items


def _with_answers(place: str, row: Pair | Judged, frame: _Frame, *, is_copy: bool) -> PreviewItem:
    """Return a row's answers after what is common to them: the prompt."""
    framing, tokenizer = frame.framing, frame.tokenizer
    examples = framing.encode(draft_answers(framing.draft, row))
    shown: list[Example] = []
    tags: dict[str, None] = {}
    for each, dialogue in zip(examples, dialogues(row), strict=True):
        example, trained = frame.trained(each)
        shown.append(trained or example)
        tags |= dict.fromkeys(_tags(dialogue, example, trained, is_copy=is_copy))
    if isinstance(row, Pair) and row.chosen == row.rejected:
        tags[say("data.preview.equal_answers")] = None
    common = min(span.start for example in shown for span in (*example.spans[:1], Span(len(example.input_ids), 0)))
    common = min(common, shared_length(shown[0].input_ids, shown[-1].input_ids))
    prompt = parts(Example(shown[0].input_ids[:common], ()), tokenizer, framing)
    rests = [parts(_after(example, common), tokenizer, framing) for example in shown]
    liked = (True, False) if isinstance(row, Pair) else (row.liked,)
    answers = tuple(PreviewAnswer(good, _title(row, good), rest) for good, rest in zip(liked, rests, strict=True))
    return PreviewItem(place, prompt, tuple(tags), answers=answers)


def _title(row: Pair | Judged, liked: bool) -> str:
    if isinstance(row, Pair):
        return say("data.preview.chosen") if liked else say("data.preview.rejected")
    return say("data.preview.liked") if liked else say("data.preview.disliked")


def _after(example: Example, start: int) -> Example:
    """Return the tokens of ``example`` from ``start`` on, which is in no span."""
    spans = (Span(span.start - start, span.stop - start, span.weight) for span in example.spans)
    return Example(example.input_ids[start:], tuple(spans))


def _texts(row: Row) -> tuple[object, ...]:
    """Return what two rows have alike if one is a copy of the other."""
    if isinstance(row, Conversation):
        return row.turns, row.tools
    return row.prompt.turns, row.prompt.tools, answers_of(row), isinstance(row, Judged) and row.liked


def _faulty(problems: tuple[Problem, ...]) -> PreviewItem:
    first = problems[0]
    place = first.file if first.row is None else str(Origin(first.file, first.row))
    return PreviewItem(place, (), (say("data.preview.faulty"),), problems)


def _tags(conversation: Conversation, example: Example, trained: Example | None, *, is_copy: bool) -> Iterator[str]:
    """Yield what is special about ``example`` of ``conversation``, of which ``trained`` is what training takes."""
    if trained is None:
        yield say("data.preview.too_long")
    elif trained is not example:
        yield say("data.preview.cut")
    if not (trained or example).spans:
        yield say("data.preview.nothing_learned")
    if has_empty_answer(conversation):
        yield say("data.preview.empty_answer")
    if is_copy:
        yield say("data.preview.exact_copy")
