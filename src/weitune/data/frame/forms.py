"""Frame rows of one kind by filling in a form, which a chat template rendered once.

    kind       user, assistant                  roles, and which turns are learned
    rendered   <|im_start|>user\\n⟦0⟧<|im_end|>\\n<|im_start|>assistant\\n⟦1⟧<|im_end|>\\n
    form       the pieces of this rendering, cut as for training, with places for the contents of the turns
    row        the same pieces with its own contents

Jinja renders some 5,000 rows a second, a form several times as many. A form holds for every row of its kind if the
template does not look into contents. That is found out in three ways:

- The contents with which a form is rendered have what templates change: quotes, brackets, letters, line breaks. A form
  is only made if they come out unchanged, each once.
- The strings that a template looks for (``'</think>' in content``) are in its source. A row whose contents have one of
  them is rendered. So is a row with an empty content, with white space at the edge of one, with a look-alike of a
  control token, with tools or reasoning.
- The first rows of every kind are framed in both ways, and then one of every 64. If a row differs, :class:`FormDiffers`
  is raised, and the caller begins again without forms.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

from jinja2 import nodes

from weitune.data.conversation import Conversation, Role, Turn
from weitune.data.frame.control_tokens import ControlTokens
from weitune.data.frame.encode import Draft, Learned, Piece, Text
from weitune.data.frame.template import ChatTemplate
from weitune.data.frame.tracing import environment_of
from weitune.errors import DataError

_FIRST, _EVERY = 3, 64
"""Rows of a kind that are framed in both ways: the first ones, and then one of so many."""
_MOST_KINDS = 1024
_MARK = re.compile("\ufdd0(\\d+) [^\ufdd1]*\ufdd1")
_TRIMS = frozenset({"strip", "lstrip", "rstrip", "trim"})
_PARTS = ("role", "type")

_Node = TypeVar("_Node", bound=nodes.Node)

Kind = tuple[tuple[Role, bool], ...]
"""The role of every turn, and whether it is learned."""


class FormDiffers(Exception):  # noqa: N818  (always caught)
    """A form and the template made different drafts of a row."""


class Slots(NamedTuple):
    """Text with places for contents: ``strings`` has one more item than ``turns``, whose contents go between them."""

    strings: tuple[str, ...]
    turns: tuple[int, ...]
    bare: bool

    def filled(self, turns: Sequence[Turn]) -> Text:
        parts = [self.strings[0]]
        for string, turn in zip(self.strings[1:], self.turns, strict=True):
            parts += (turns[turn].content, string)
        return Text("".join(parts), self.bare)


class Form(NamedTuple):
    """One draft of a kind; in ``learned`` the weight is the number of the turn."""

    pieces: tuple[Piece | Slots, ...]
    learned: tuple[tuple[int, int, int], ...]

    def filled(self, conversation: Conversation) -> Draft:
        turns = conversation.turns
        pieces = tuple([piece.filled(turns) if isinstance(piece, Slots) else piece for piece in self.pieces])
        learned = tuple([Learned(start, stop, turns[turn].weight) for start, stop, turn in self.learned])
        return Draft(pieces, learned, conversation.origin)


class FormDrafts:
    """Drafts conversations with forms where that gives what ``draft`` gives, which renders each with ``template``."""

    def __init__(
        self, draft: Callable[[Conversation], list[Draft]], template: ChatTemplate, controls: ControlTokens
    ) -> None:
        self._draft = draft
        self._controls = controls
        self._looked_for = _looked_for(template)
        self._forms: dict[Kind, list[Form] | None] = {}
        self._rows: Counter[Kind] = Counter()

    def draft(self, conversation: Conversation) -> list[Draft]:
        """Return the drafts of a conversation. Raises DataError as ``draft`` does, and FormDiffers."""
        kind = self._kind(conversation)
        if kind is None:
            return self._draft(conversation)
        row = self._rows[kind] = self._rows[kind] + 1
        if row == 1:  # it may be the only one
            return self._draft(conversation)
        if row == 2:
            self._forms[kind] = self._form(kind)
        forms = self._forms[kind]
        if forms is None:
            return self._draft(conversation)
        filled = [form.filled(conversation) for form in forms]
        if (row <= 1 + _FIRST or row % _EVERY == 0) and filled != self._draft(conversation):
            raise FormDiffers
        return filled

    def _kind(self, conversation: Conversation) -> Kind | None:
        """Return the kind of a conversation; None if it has to be rendered."""
        if self._looked_for is None or conversation.tools:
            return None
        kind = []
        for role, content, weight, reasoning, calls, name, answered in conversation.turns:
            if reasoning is not None or calls or name is not None or answered is not None or not self._opaque(content):
                return None
            kind.append((role, bool(weight)))
        key = tuple(kind)
        return key if key in self._rows or len(self._rows) < _MOST_KINDS else None

    def _opaque(self, content: str) -> bool:
        """Return whether a template that looks for its own strings only sees nothing in ``content``."""
        if not content or content[0].isspace() or content[-1].isspace() or self._controls.dangerous(content):
            return False
        assert self._looked_for is not None  # noqa: S101  (for mypy)
        return self._looked_for.search(content) is None

    def _form(self, kind: Kind) -> list[Form] | None:
        """Return the drafts of ``kind`` with places for contents; None if contents do not come out unchanged."""
        turns = tuple(Turn(role, _mark(i), i + 1.0 if learned else 0.0) for i, (role, learned) in enumerate(kind))
        if not all(self._opaque(turn.content) for turn in turns):
            return None
        try:
            drafts = self._draft(Conversation(turns))
        except DataError:
            return None
        forms = [_with_slots(draft) for draft in drafts]
        return None if None in forms else [form for form in forms if form is not None]


def _mark(turn: int) -> str:
    return f"\ufdd0{turn} Aé'\"\\/<&>{{}}*_\n\n  \t中。\ufdd1"


def _with_slots(draft: Draft) -> Form | None:
    """Return ``draft`` of a marked conversation with slots in place of the marks; None if a mark was changed."""
    pieces: list[Piece | Slots] = []
    for piece in draft.pieces:
        if not isinstance(piece, Text):
            pieces.append(piece)
            continue
        found = list(_MARK.finditer(piece.text))
        turns = tuple(int(match[1]) for match in found)
        strings = _between(piece.text, found)
        if any(match[0] != _mark(turn) for match, turn in zip(found, turns, strict=True)):
            return None
        if any("\ufdd0" in string or "\ufdd1" in string for string in strings):
            return None
        pieces.append(Slots(strings, turns, piece.bare) if turns else piece)
    learned = tuple((start, stop, int(weight) - 1) for start, stop, weight in draft.learned)
    return Form(tuple(pieces), learned)


def _between(text: str, found: Sequence[re.Match[str]]) -> tuple[str, ...]:
    starts = [0, *(match.end() for match in found)]
    stops = [*(match.start() for match in found), len(text)]
    return tuple(text[start:stop] for start, stop in zip(starts, stops, strict=True))


def _looked_for(template: ChatTemplate) -> re.Pattern[str] | None:
    """Return a pattern for the strings that ``template`` looks for in contents; None if forms cannot be used."""
    strings = {value for value in template.arguments.values() if isinstance(value, str)}
    for source in {template.source, template.with_tools}:
        tree = environment_of(source).parse(source)
        if "strftime_now" in source or _trims_characters(tree):
            return None
        strings.update(_strings_looked_for(tree))
    strings.discard("")
    return re.compile("|".join(map(re.escape, sorted(strings))) or r"(?!)")


def _strings_looked_for(tree: nodes.Template) -> Iterator[str]:
    """Yield the strings with which ``tree`` compares, or that it gives to a test, a filter, a method or a macro.

    A name stands for all strings that are ever assigned to it. White space does not count there: it is only written.
    """
    asked = [operand for comparison in tree.find_all(nodes.Compare) for operand in _operands(comparison)]
    for called, arguments in _calls(tree):
        if called not in _TRIMS:
            asked += arguments
    yield from _strings(asked)
    names = {name.name for name in _all(nodes.Name, asked)}
    given: list[tuple[nodes.Node, nodes.Node]] = [(each.target, each.node) for each in tree.find_all(nodes.Assign)]
    given += [(each.target, each.iter) for each in tree.find_all(nodes.For)]
    for target, value in given:
        if not names.isdisjoint(name.name for name in _all(nodes.Name, [target])):
            yield from filter(str.strip, _strings([value]))


def _operands(comparison: nodes.Compare) -> list[nodes.Expr]:
    """Return what is compared; nothing if that is the role of a message, or the type of a content's part."""
    operands = [comparison.expr, *(operand.expr for operand in comparison.ops)]
    if any(map(_is_part, operands)):
        return []
    return [operand for operand in operands if not isinstance(operand, nodes.Compare)]  # which comes by itself


def _is_part(node: nodes.Expr) -> bool:
    if isinstance(node, nodes.Getattr):
        return node.attr in _PARTS
    return isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const) and node.arg.value in _PARTS


def _calls(tree: nodes.Template) -> Iterator[tuple[str, list[nodes.Expr]]]:
    """Yield name and arguments of everything that ``tree`` calls."""
    for call in tree.find_all((nodes.Call, nodes.Test, nodes.Filter)):
        fields: Any = call
        name = call.name if isinstance(call, nodes.Test | nodes.Filter) else getattr(fields.node, "attr", "")
        yield name, [*fields.args, *(keyword.value for keyword in fields.kwargs)]


def _trims_characters(tree: nodes.Template) -> bool:
    """Return whether ``tree`` trims other characters than white space."""
    return any(text.strip() for name, arguments in _calls(tree) if name in _TRIMS for text in _strings(arguments))


def _strings(expressions: Iterable[nodes.Node]) -> Iterator[str]:
    return (const.value for const in _all(nodes.Const, expressions) if isinstance(const.value, str))


def _all(kind: type[_Node], expressions: Iterable[nodes.Node]) -> Iterator[_Node]:
    """Yield the ``expressions`` and their parts that are of ``kind``."""
    for expression in expressions:
        if isinstance(expression, kind):
            yield expression
        yield from expression.find_all(kind)
