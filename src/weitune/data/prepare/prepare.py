"""Prepare data for training: read, frame, tokenize in batches, keep as Arrow, account for every row.

    sources ─▶ rows ─▶ Conversation ─▶ Draft ═══▶ Example ─▶ examples.arrow, report.json
                 one at a time               batches of 1024,
                                             Rust, all cores

Everything is found by a fingerprint of file contents, framing and options, so a second start only opens the file.
Memory holds a few batches and 16 bytes a row.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from weitune.data.conversation import Example
from weitune.data.formats.parse import Options
from weitune.data.frame.framing import Framing
from weitune.data.prepare.accounts import RowCounts
from weitune.data.prepare.batches import encoded_batches, without_cycle_collection
from weitune.data.prepare.cache import EXAMPLES, REPORT, building, data_cache
from weitune.data.prepare.report import DataReport
from weitune.data.prepare.store import ExampleWriter, StoredExamples
from weitune.data.prepare.truncate import truncate, weighted
from weitune.data.problems import shown_name
from weitune.data.read.conversations import Reader
from weitune.data.read.source import contains
from weitune.errors import DataError, RecipeError
from weitune.files.cache import cache_fix, mark_used
from weitune.files.json_files import json_text
from weitune.files.room import check_room
from weitune.progress import Progress
from weitune.recipe.schema import Recipe

_VERSION = 2
"""Raised when the same data would be prepared differently."""


class Prepared(StoredExamples):
    """The examples of a recipe, by number, with their lengths, weights, fingerprint and report."""

    def __init__(self, folder: Path, fingerprint: str, report: DataReport) -> None:
        """Open a folder that :func:`prepare` published."""
        super().__init__(folder / EXAMPLES, [source.name for source in report.sources])
        self.fingerprint = fingerprint
        self.report = report


def prepare(
    recipe: Recipe, framing: Framing, progress: Progress | None = None, *, files: Sequence[str] | None = None
) -> Prepared:
    """Return the examples of ``recipe``'s data (or of ``files``), prepared now or found in the cache.

    ``progress`` is called with (rows done, rows in all or None). Raises DataError with every problem of every row, or
    if nothing is left to learn.
    """
    reader = recipe_reader(recipe, files)
    if not reader.sources:
        raise reader.problems.error()
    fingerprint = _fingerprint(reader, recipe, framing)
    folder = data_cache() / fingerprint
    found = None if reader.problems else _open(folder, fingerprint, reader)
    if found is not None:
        return found
    check_room(data_cache(), _bytes_foreseen(reader), "the prepared data", cache_fix())
    with building(folder) as partial:
        report = _build(partial / EXAMPLES, reader, recipe, framing, progress)
        if reader.problems:
            raise reader.problems.error()
        if not report.examples.kept:
            raise DataError("data.prepare.nothing_left", lines="\n  ".join(report.lines()))
        (partial / REPORT).write_text(json_text(report.to_json(), indent=1), encoding="utf-8")
    return Prepared(folder, fingerprint, report)


def _bytes_foreseen(reader: Reader) -> int:
    """Return how many bytes the examples will take at least, by the size of the files: 4 bytes a token."""
    return sum(source.facts.size_bytes for source in reader.sources if source.facts) // 2


def read_options(recipe: Recipe) -> Options:
    """Return how ``recipe`` has rows read; the tutorial joins Alpaca's instruction and input without a newline."""
    joiner = "" if recipe.tokens.template == "tutorial" else "\n"
    return Options(recipe.format, recipe.columns, joiner, recipe.encoding)


def recipe_reader(recipe: Recipe, files: Sequence[str] | None = None) -> Reader:
    """Return what reads ``recipe``'s data, or ``files``.

    Raises RecipeError if `encoding` names a file that belongs neither to these nor to the recipe's other data.
    """
    reader = Reader(recipe.data if files is None else files, read_options(recipe))
    validation = recipe.validation_files
    if files is not None and list(files) != validation:
        return reader  # rows that the recipe does not name
    others = validation if files is None else recipe.data
    unknown = [name for name in reader.unused_encodings if not _belongs(name, others)]
    if unknown and not reader.problems:
        known = [name for source in reader.sources if source.is_text for name in (source.given, source.name)]
        near = difflib.get_close_matches(unknown[0], list(dict.fromkeys([*known, *others])), n=1, cutoff=0.0)
        hint = f" Did you mean '{shown_name(near[0])}'?" if near else ""
        raise RecipeError("data.prepare.encoding_not_text_files", unknown=shown_name(unknown[0]), hint=hint)
    return reader


def _belongs(name: str, others: Sequence[str]) -> bool:
    """Tell whether ``name`` is one of ``others``, lies in one of them, or holds one."""
    return any(name == each or contains(each, Path(name)) or contains(name, Path(each)) for each in others)


def _source_weights(reader: Reader, recipe: Recipe) -> list[float]:
    """Return the weight of every source's rows. Raises RecipeError if a weight is for none of the recipe's files."""
    weights = recipe.weights or {}
    for name in weights:
        if name not in recipe.data:
            raise RecipeError("data.prepare.weights_not_files_data", name=name, data=", ".join(recipe.data))
    return [weights.get(source.given, 1.0) for source in reader.sources]


def account(
    reader: Reader, recipe: Recipe, framing: Framing, folder: Path, progress: Progress | None = None
) -> tuple[DataReport, StoredExamples]:
    """Prepare what can be prepared, for `weitune data check`: faulty rows are counted and stay in ``reader.problems``.

    The examples are written to ``folder``, which the caller owns.
    """
    report = _build(folder / EXAMPLES, reader, recipe, framing, progress)
    return report, StoredExamples(folder / EXAMPLES, [source.name for source in report.sources])


def _open(folder: Path, fingerprint: str, reader: Reader) -> Prepared | None:
    """Return what the cache has under ``fingerprint``, with the files' present names.

    Returns None if there is nothing, or nothing whole: then what there is goes, to make room.
    """
    try:
        report = DataReport.from_json(json.loads((folder / REPORT).read_text(encoding="utf-8")))
        report = report.with_source_names([source.name for source in reader.reports])
        mark_used(folder / REPORT)
        return Prepared(folder, fingerprint, report)
    except (OSError, ValueError, TypeError, AttributeError, pa.ArrowException):
        shutil.rmtree(folder, ignore_errors=True)
        return None


def _fingerprint(reader: Reader, recipe: Recipe, framing: Framing) -> str:
    """Return a hash of all that decides the examples; where the files lie and what they are called does not."""
    import tokenizers
    import transformers

    parts = {
        "version": [_VERSION, tokenizers.__version__, transformers.__version__],
        "sources": [[s.kind, s.facts.sha256 if s.facts else s.name, s.facts.encoding if s.facts else "", s.part]
                    for s in reader.sources],
        "framing": framing.describe(),
        "system": recipe.system,
        "columns": recipe.columns,
        "format": recipe.format,
        "weights": _source_weights(reader, recipe),
        "max_length": recipe.tokens.max_length,
        "truncation": recipe.tokens.truncation,
        "joiner": read_options(recipe).joiner,
    }  # fmt: skip
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _build(path: Path, reader: Reader, recipe: Recipe, framing: Framing, progress: Progress | None) -> DataReport:
    """Write the examples of all rows that are in order to ``path``; the other rows go to the reader's problems."""
    accounts = RowCounts()
    weights = _source_weights(reader, recipe)
    with ExampleWriter(path) as writer, without_cycle_collection():
        for rows, examples in encoded_batches(reader, framing, recipe.system):
            kept: list[tuple[int, Example]] = []
            for row in rows:
                made = examples[row.start : row.stop]
                if weights[row.source] != 1:
                    made = [weighted(example, weights[row.source]) for example in made]
                settled = truncate(row.conversation, made, recipe.tokens, accounts, reader.problems)
                kept += [(row.source, example) for example in settled]
            writer.write(kept)
            if progress is not None:
                progress(reader.rows, None)
    accounts.blank(reader.blank_rows, reader.blank_places)
    stored = StoredExamples(path, [source.name for source in reader.reports])
    return accounts.report(reader.reports, reader.problems.rows, stored.lengths, stored.supervised)
