"""From a row to a :class:`Conversation`, a :class:`Pair` or a :class:`Judged`, as its format and its kind say.

    row ──▶ format (weitune.data.formats.dialogues): which fields hold the dialogue
       └──▶ kind (weitune.data.formats.kinds): one answer to learn, two that were compared, or one with a verdict

The first recognised row of a file decides both for the whole file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from weitune.data.conversation import Conversation, Origin
from weitune.data.formats.dialogues import FORMATS, Reading, join_system_prompts, read_dialogue, recognise
from weitune.data.formats.fields import Fields, Notes
from weitune.data.formats.kinds import ANY_KIND, CONVERSATIONS, Kind, kind_of
from weitune.data.formats.other_objectives import mixed_kinds, refuse_other_objectives
from weitune.data.formats.preferences.compared import read_pair
from weitune.data.formats.preferences.judged import read_judged
from weitune.data.preference.values import Judged, Pair
from weitune.data.problems import FaultyRow, data_problem, shown, shown_name
from weitune.errors import RecipeError

Row = Conversation | Pair | Judged
"""What is in a row, by its kind."""

_PARTS = ("user", "assistant"), ("system", "liked")
_PARTS_OF_PAIRS = ("user", "chosen", "rejected"), ("system",)
"""Parts of a row that the option ``columns`` must name, and others that it may."""


@dataclass(frozen=True, slots=True)
class Options:
    """How rows are read. Raises RecipeError for an unknown format or wrong ``columns``."""

    format: str | None = None
    """The name of the format; None to recognise it."""
    columns: Mapping[str, str] | None = None
    """The names of the columns with the parts of a row: ``user``, ``assistant``, and if need be ``system`` and
    ``liked`` (a verdict); or ``chosen`` and ``rejected`` in place of ``assistant``."""
    joiner: str = "\n"
    """Separator of ``instruction`` and ``input`` in Alpaca's format."""
    encoding: str | Mapping[str, str] | None = None
    """The encoding of all text files, or of some by name; None to detect it."""
    kinds: frozenset[Kind] = CONVERSATIONS
    """The kinds of rows that are read; a row of another kind is a fault."""

    def __post_init__(self) -> None:
        if self.format is not None and self.format not in FORMATS:
            raise RecipeError("data.parse.unknown_format_name", format=self.format, formats=", ".join(FORMATS))
        columns = {"user": "", "assistant": ""} if self.columns is None else self.columns
        needed, optional = _PARTS_OF_PAIRS if "chosen" in columns or "rejected" in columns else _PARTS
        if unknown := [part for part in columns if part not in needed + optional]:
            raise RecipeError("data.parse.unknown_part", part=unknown[0])
        if missing := [part for part in needed if part not in columns]:
            raise RecipeError("data.parse.missing_column", part=missing[0])

    @property
    def kind(self) -> Kind | None:
        """The kind of all rows, if ``columns`` names their answers."""
        if self.columns is None:
            return None
        return "pairs" if "chosen" in self.columns else "judged" if "liked" in self.columns else None


@dataclass(slots=True)
class RowReader:
    """Reads the rows of one file. The first recognised row determines format and kind of all of them."""

    options: Options
    format: str | None = None
    kind: Kind | None = None
    notes: Notes = field(default_factory=Notes)
    _columns: frozenset[str] = frozenset()
    _first: Origin | None = None
    """The row that determined the kind."""
    _is_mixed: bool = False
    _reading: Reading = field(init=False)

    def __post_init__(self) -> None:
        self.format = "columns" if self.options.columns is not None else self.options.format
        columns = self.options.columns or {}
        self._columns, self._reading = frozenset(columns.values()), Reading(self.options.joiner, columns)

    def read(self, row: object, origin: Origin) -> Row:
        """Return what is in ``row``. Raises FaultyRow with every problem of the row."""
        if not isinstance(row, dict):
            raise FaultyRow(data_problem("data.parse.not_an_object", value=shown(row)).at(origin))
        self.format = self.format or recognise(row)
        fields = Fields(self.notes)
        try:
            made = self._read(fields, row, origin)
        except RecursionError:  # from repr() of a wrong value, for a message
            raise FaultyRow(data_problem("data.parse.nested_too_deeply").at(origin)) from None
        fields.check_names()
        if made is None or fields.faults:
            raise FaultyRow(*(problem.at(origin) for problem in fields.faults))
        return made

    def _read(self, fields: Fields, row: Mapping[str, Any], origin: Origin) -> Row | None:
        """Return what is in ``row``, or None after noting a fault."""
        kind = self._kind(fields, row, origin)
        if fields.faults:  # further faults would only be consequences of these
            return None
        if self.format is None:
            names = ", ".join(shown_name(str(key)) for key in row)
            fields.fault("data.parse.unknown_format" if names else "data.parse.empty_row", field="", names=names)
            return None
        if self.kind is None:
            self.kind, self._first = kind, origin
        if kind == "pairs":
            return read_pair(fields, row, self.format, self._reading, origin)
        if kind == "judged":
            return read_judged(fields, row, self.format, self._reading, origin)
        turns, tools = read_dialogue(fields, row, self.format, self._reading)
        roles = [turn.role for turn in turns]
        if not fields.faults and "assistant" not in roles:
            fields.fault("data.parse.no_answer" if roles else "data.parse.no_turns", field="", roles=", ".join(roles))
        return Conversation(join_system_prompts(fields, turns), tools, origin)

    def _kind(self, fields: Fields, row: Mapping[str, Any], origin: Origin) -> Kind:
        """Return the kind of ``row``; note a fault if it is not wanted. Raises FaultyRow if its file has another."""
        kind = self.options.kind or kind_of(row, self._columns, self.kind)
        wanted = self.options.kinds if self.format is not None else ANY_KIND
        if self.kind is not None and self._first is not None and kind != self.kind:
            first_too = kind in wanted and not self._is_mixed
            self._is_mixed = True
            raise FaultyRow(*mixed_kinds(row, origin, self._columns, kind, self.kind, self._first, first_too=first_too))
        refuse_other_objectives(fields, row, self._columns, kind, wanted)
        return kind
