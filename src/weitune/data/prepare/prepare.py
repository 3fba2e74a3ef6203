"""Prepare data for training: read, frame, tokenize in batches, keep as Arrow, count every row.

    sources ─▶ rows ─▶ Conversation ─▶ Draft ═══▶ Example ─▶ examples.arrow, report.json
                       Pair, Judged                Group      and groups.safetensors
                 one at a time               batches of 1024,
                                             Rust, all cores

Prepared data are cached under a fingerprint of file contents, framing and options; a second start only opens the file.
Memory: a few batches, and 16 bytes a row.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa

from weitune.data.conversation import Conversation
from weitune.data.frame.encode import Draft
from weitune.data.frame.forms import FormDiffers
from weitune.data.frame.framing import Framing
from weitune.data.preference.values import Group
from weitune.data.prepare.accounts import RowCounts
from weitune.data.prepare.batches import encoded_batches, without_cycle_collection
from weitune.data.prepare.cache import EXAMPLES, REPORT, building, data_cache
from weitune.data.prepare.group_store import GroupWriter, StoredGroups, prompt_key
from weitune.data.prepare.groups import draft_answers, fit
from weitune.data.prepare.recipe_reader import read_options, recipe_reader
from weitune.data.prepare.report import DataReport
from weitune.data.prepare.store import ExampleWriter, StoredExamples
from weitune.data.prepare.truncate import kept_examples
from weitune.data.read.conversations import Reader
from weitune.data.read.source import Source
from weitune.data.read.text_file import examine
from weitune.errors import DataError, InputError, RecipeError
from weitune.files.cache import fingerprint_of, mark_used, shortage
from weitune.files.json_files import json_text
from weitune.progress import Progress
from weitune.recipe.schema import Recipe

_Draft = Callable[[Conversation], list[Draft]]
_Write = Callable[[Path, Reader, Recipe, Framing, _Draft, Progress | None], DataReport]
_VERSION = 4
"""Raised when the same data would be prepared differently."""


class Prepared(StoredExamples):
    """The examples of a recipe, by number, with their lengths, weights, fingerprint and report."""

    def __init__(self, folder: Path, fingerprint: str, report: DataReport) -> None:
        super().__init__(folder / EXAMPLES, [source.name for source in report.sources])
        self.fingerprint = fingerprint
        self.report = report


class PreparedGroups(StoredGroups):
    """The groups of a recipe with ``preference``, by number, with their lengths, fingerprint and report."""

    def __init__(self, folder: Path, fingerprint: str, report: DataReport) -> None:
        super().__init__(folder, [source.name for source in report.sources])
        self.fingerprint = fingerprint
        self.report = report


P = TypeVar("P", Prepared, PreparedGroups)


def prepare(
    recipe: Recipe, framing: Framing, progress: Progress | None = None, *, files: Sequence[str] | None = None
) -> Prepared:
    """Return the examples of ``recipe``'s data (or of ``files``), prepared now or read from the cache.

    ``progress`` is called with (rows done, rows in all or None). Raises DataError with every problem of every row, or
    if nothing is left to learn.
    """
    return _prepared(Prepared, recipe, framing, progress, files)


def prepare_groups(
    recipe: Recipe, framing: Framing, progress: Progress | None = None, *, files: Sequence[str] | None = None
) -> PreparedGroups:
    """Return the groups of ``recipe``, which has a ``preference``, as :func:`prepare` returns examples."""
    return _prepared(PreparedGroups, recipe, framing, progress, files)


def prepare_items(
    recipe: Recipe, framing: Framing, progress: Progress | None = None, *, files: Sequence[str] | None = None
) -> Prepared | PreparedGroups:
    """Return the groups of ``recipe`` if it has a ``preference``, else its examples."""
    made: Callable[..., Prepared | PreparedGroups] = prepare_groups if recipe.preference else prepare
    return made(recipe, framing, progress, files=files)


def _prepared(
    kind: type[P], recipe: Recipe, framing: Framing, progress: Progress | None, files: Sequence[str] | None
) -> P:
    reader = recipe_reader(recipe, files)
    if not reader.sources:
        raise reader.problems.error()
    fingerprint = _fingerprint(reader, recipe, framing)
    folder = data_cache() / fingerprint
    cached = None if reader.problems else _open(kind, folder, fingerprint, reader)
    if cached is not None:
        return cached
    if short := shortage(data_cache(), _least_bytes(reader)):
        raise InputError("data.prepare.too_little_room", **short)
    with building(folder) as aside:
        report = _build(aside, reader, recipe, framing, progress)
        if reader.problems:
            raise reader.problems.error()
        if changed := [source.name for source in reader.sources if _has_changed(source)]:
            raise InputError("data.prepare.changed_meanwhile", files=", ".join(changed))
        if not report.examples.kept:
            raise DataError("data.prepare.nothing_left", lines="\n  ".join(report.lines()))
        (aside / REPORT).write_text(json_text(report.to_json(), indent=1), encoding="utf-8")
    return kind(folder, fingerprint, report)


def _has_changed(source: Source) -> bool:
    """Return whether a file has other contents than when it was examined, whose hash names what is prepared."""
    if source.path is None or source.facts is None:
        return False
    try:
        return examine(source.path, text=False).sha256 != source.facts.sha256
    except OSError:
        return True


def _least_bytes(reader: Reader) -> int:
    """Return a lower bound for the size of the prepared examples, by the size of the files: 4 bytes a token."""
    return sum(source.facts.size_bytes for source in reader.sources if source.facts) // 2


def source_weights(reader: Reader, recipe: Recipe) -> list[float]:
    """Return the weight of each source's rows. Raises RecipeError if a weight names none of the recipe's files."""
    weights = recipe.weights or {}
    for name in weights:
        if name not in recipe.data:
            raise RecipeError("data.prepare.weight_of_no_file", name=name, data=", ".join(recipe.data))
    return [weights.get(source.given, 1.0) for source in reader.sources]


def prepare_valid_rows(
    reader: Reader, recipe: Recipe, framing: Framing, folder: Path, progress: Progress | None = None
) -> tuple[DataReport, StoredExamples]:
    """Prepare the valid rows, for `weitune data check`; the others are counted and stay in ``reader.problems``.

    The examples are written to ``folder``, which the caller owns.
    """
    report = _build(folder, reader, recipe, framing, progress)
    return report, StoredExamples(folder / EXAMPLES, [source.name for source in report.sources])


def prepare_valid_groups(
    reader: Reader, recipe: Recipe, framing: Framing, folder: Path, progress: Progress | None = None
) -> tuple[DataReport, StoredGroups]:
    """Prepare the valid rows with preferences as :func:`prepare_valid_rows` does conversations.

    Pairs are divided if the ``preference`` of ``recipe`` looks at single answers.
    """
    report = _building(folder, reader, recipe, framing, progress, _write_groups)
    return report, StoredGroups(folder, [source.name for source in report.sources])


def _open(kind: type[P], folder: Path, fingerprint: str, reader: Reader) -> P | None:
    """Return what the cache has under ``fingerprint``, with the names that the files have now.

    Returns None if there is nothing, or if it is damaged; then it is removed.
    """
    try:
        report = DataReport.from_json(json.loads((folder / REPORT).read_text(encoding="utf-8")))
        report = report.with_source_names([source.name for source in reader.reports])
        mark_used(folder / REPORT)
        return kind(folder, fingerprint, report)
    except FileNotFoundError:
        if not folder.is_dir():  # perhaps another process is about to publish it
            return None
        shutil.rmtree(folder, ignore_errors=True)
        return None
    except (OSError, ValueError, TypeError, AttributeError, pa.ArrowException):
        shutil.rmtree(folder, ignore_errors=True)
        return None


def _fingerprint(reader: Reader, recipe: Recipe, framing: Framing) -> str:
    """Return a hash of everything that decides the examples: not where the files are or what they are called."""
    import tokenizers
    import transformers

    parts: dict[str, Any] = {
        "version": [_VERSION, tokenizers.__version__, transformers.__version__],
        "sources": [
            [s.kind, s.facts.sha256 if s.facts else s.name, s.facts.encoding if s.facts else "", s.part]
            for s in reader.sources
        ],
        "framing": framing.describe(),
        "specials": dict(framing.specials),  # of tokenizer_config.json, which no other hash covers
        "system": recipe.system,
        "columns": recipe.columns,
        "format": recipe.format,
        "weights": source_weights(reader, recipe),
        "max_length": recipe.tokens.max_length,
        "truncation": recipe.tokens.truncation,
        "joiner": read_options(recipe).joiner,
    }
    if recipe.preference:
        parts["groups"] = "pairs" if recipe.preference.needs_pairs else "judged"
    return fingerprint_of(parts)


def _build(folder: Path, reader: Reader, recipe: Recipe, framing: Framing, progress: Progress | None) -> DataReport:
    """Write what ``recipe`` learns from all valid rows into ``folder``; other rows go to the reader's problems."""
    write = _write_groups if recipe.preference else _write_examples
    return _building(folder, reader, recipe, framing, progress, write)


def _building(
    folder: Path, reader: Reader, recipe: Recipe, framing: Framing, progress: Progress | None, write: _Write
) -> DataReport:
    try:
        return write(folder, reader, recipe, framing, framing.drafting(), progress)
    except FormDiffers:  # every row is rendered
        reader.restart()
        return write(folder, reader, recipe, framing, framing.draft, progress)


def _write_examples(
    folder: Path, reader: Reader, recipe: Recipe, framing: Framing, draft: _Draft, progress: Progress | None
) -> DataReport:
    accounts = RowCounts()
    weights = source_weights(reader, recipe)
    read = ((source, row.with_system(recipe.system, replace_blank=True)) for source, row in reader.conversations())
    with ExampleWriter(folder / EXAMPLES) as writer, without_cycle_collection():
        for batch in encoded_batches(read, draft, framing, reader.problems):
            writer.write(*kept_examples(batch, weights, recipe.tokens, accounts, reader.problems))
            if progress is not None:
                progress(reader.rows, None)
    return _report(folder, reader, accounts)


def _write_groups(
    folder: Path, reader: Reader, recipe: Recipe, framing: Framing, draft: _Draft, progress: Progress | None
) -> DataReport:
    accounts = RowCounts()
    weights = source_weights(reader, recipe)
    divided = recipe.preference is not None and not recipe.preference.needs_pairs
    read = ((source, row.with_system(recipe.system, replace_blank=True)) for source, row in reader.preferences())
    with GroupWriter(folder) as writer, without_cycle_collection():
        for batch in encoded_batches(read, partial(draft_answers, draft), framing, reader.problems):
            kept: list[tuple[int, int, Group]] = []
            for i, (source, row) in enumerate(batch.rows):
                made = batch.of_row(i, row.origin)
                groups = fit(row, made, weights[source], recipe.tokens, accounts, reader.problems, divided=divided)
                kept += [(source, prompt_key(row), group) for group in groups]
            writer.write(kept)
            if progress is not None:
                progress(reader.rows, None)
    return _report(folder, reader, accounts)


def _report(folder: Path, reader: Reader, accounts: RowCounts) -> DataReport:
    accounts.blank(reader.blank_rows, reader.blank_places)
    stored = StoredExamples(folder / EXAMPLES, [source.name for source in reader.reports])
    return accounts.report(reader, stored.lengths, stored.supervised)
