"""Examples as the model sees them: the text in parts, each of which is framing, prompt or learned.

<|im_start|>user⏎hi<|im_end|>⏎<|im_start|>assistant⏎hello<|im_end|>⏎
control     prompt control    control     prompt    ╰── learned ──╯

Text that only looks like a control token is shown with the borders of its tokens, ``┊<┊|im┊_end┊|>┊``, so that it can
be told from the token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby, islice, pairwise
from typing import Any, Literal

from weitune.data.conversation import Conversation, Example, Origin
from weitune.data.frame.framing import Framing
from weitune.data.preference.values import Judged, Pair
from weitune.data.prepare.accounts import has_empty_answer
from weitune.data.prepare.truncate import within_limit
from weitune.data.problems import Problem
from weitune.data.read.conversations import Reader
from weitune.data.read.source import BlankRow, blank_reason
from weitune.errors import DataError
from weitune.messages import say
from weitune.recipe.schema import Recipe

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
class PreviewItem:
    """One example to look at, or a row without one; ``tags`` name what is special about it."""

    place: str
    parts: tuple[Part, ...]
    tags: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()

    @property
    def tokens(self) -> int:
        return sum(part.tokens for part in self.parts)

    @property
    def learned(self) -> tuple[str, ...]:
        return tuple(part.text for part in self.parts if part.kind == "learned")

    @property
    def learned_tokens(self) -> int:
        return sum(part.tokens for part in self.parts if part.kind == "learned")


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
    """Yield the examples of all rows of ``reader``, or of the ``row``-th (from 1), or what is wrong with a row."""
    seen: set[int] = set()
    items = (item for _, item in reader.items())
    for item in items if row is None else islice(items, row - 1, row):
        if isinstance(item, BlankRow):
            yield PreviewItem(str(item.origin), (), (say("data.preview.set_aside", reason=blank_reason()),))
            continue
        if isinstance(item, Pair | Judged):
            continue
        if not isinstance(item, Conversation):
            yield _faulty(item)
            continue
        conversation = item.with_system(recipe.system)
        try:
            examples = framing.examples(conversation)
        except DataError as error:
            yield _faulty(tuple(problem for problem in error.problems if isinstance(problem, Problem)))
            continue
        key = hash(repr((conversation.turns, conversation.tools)))
        is_copy = key in seen
        seen.add(key)
        place = "" if conversation.origin is None else str(conversation.origin)
        for example in examples:
            trained = within_limit(example, recipe.tokens)
            tags = _tags(conversation, example, trained, is_copy=is_copy)
            yield PreviewItem(place, parts(trained or example, tokenizer, framing), tuple(tags))


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
