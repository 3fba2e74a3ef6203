"""Prepare data for training: read, frame, tokenize in batches, keep as Arrow, account for every row.

    sources ─▶ rows ─▶ Conversation ─▶ Draft ═══▶ Example ─▶ examples.arrow, report.json
                 one at a time               batches of 1024,
                                             Rust, all cores

Everything is found by a fingerprint of file contents, framing and options, so a second start only opens the file.
Memory holds one batch and 16 bytes a row. While one batch is in the tokenizer, the next one is read and framed.
"""

from __future__ import annotations

import gc
import hashlib
import json
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from weitune.data.cache import EXAMPLES, REPORT, building, data_cache
from weitune.data.conversation import Conversation, Example, Span
from weitune.data.encode import Draft, EncodingBatch
from weitune.data.formats import Options
from weitune.data.problems import Problem, Problems
from weitune.data.read import Reader
from weitune.data.render import Framing
from weitune.data.report import Accounts, DataReport, make_report
from weitune.data.store import ExampleWriter, StoredExamples
from weitune.errors import DataError, RecipeError
from weitune.recipe.schema import Recipe

Progress = Callable[[int, "int | None"], None]

_BATCH = 1024
_AHEAD = 2
"""Batches that are in the tokenizer while Python goes on, so that no core waits."""
_BATCH_CHARACTERS = 4_000_000
_VERSION = 1
"""Raised when the same data would be prepared differently."""


class Prepared(StoredExamples):
    """The examples of a recipe, by number, with their lengths, weights, fingerprint and report."""

    def __init__(self, folder: Path, fingerprint: str, report: DataReport) -> None:
        """Open a folder that :func:`prepare` published."""
        super().__init__(folder / EXAMPLES, [source["name"] for source in report.content["sources"]])
        self.fingerprint = fingerprint
        self.report = report


def prepare(
    recipe: Recipe, framing: Framing, progress: Progress | None = None, *, files: Sequence[str] | None = None
) -> Prepared:
    """Return the examples of ``recipe``'s data (or of ``files``), prepared now or found in the cache.

    ``progress`` is called with (rows done, rows in all or None). Raises DataError with every problem of every row, or
    if nothing is left to learn.
    """
    reader = Reader(recipe.data if files is None else files, read_options(recipe))
    if not reader.sources:
        raise reader.problems.error()
    fingerprint = _fingerprint(reader, recipe, framing)
    folder = data_cache() / fingerprint
    found = None if reader.problems else _open(folder, fingerprint, reader)
    if found is not None:
        return found
    with building(folder) as partial:
        report = _build(partial / EXAMPLES, reader, recipe, framing, progress)
        if reader.problems:
            raise reader.problems.error()
        if not report.content["examples"]["kept"]:
            raise DataError(
                "\n  ".join(["there is nothing left to learn:", *report.lines()]),
                "Raise `tokens.max_length`, or check the data with `weitune data check`.",
            )
        (partial / REPORT).write_text(json.dumps(report.to_json(), ensure_ascii=False, indent=1), encoding="utf-8")
    return Prepared(folder, fingerprint, report)


def read_options(recipe: Recipe) -> Options:
    """Return how ``recipe`` has rows read; the tutorial joins Alpaca's instruction and input without a newline."""
    joiner = "" if recipe.tokens.template == "tutorial" else "\n"
    return Options(recipe.format, recipe.columns, joiner)


def _source_weights(reader: Reader, recipe: Recipe) -> list[float]:
    """Return the weight of every source's rows. Raises RecipeError if a weight is for none of the recipe's files."""
    weights = recipe.weights or {}
    for name in weights:
        if name not in recipe.data:
            raise RecipeError(
                f"weights: '{name}' is not one of the files in `data`",
                f"Write it as in `data`: {', '.join(recipe.data)}.",
            )
    return [weights.get(source.given, 1.0) for source in reader.sources]


def account(
    reader: Reader, recipe: Recipe, framing: Framing, folder: Path, progress: Progress | None = None
) -> tuple[DataReport, StoredExamples]:
    """Prepare what can be prepared, for `weitune data check`: faulty rows are counted and stay in ``reader.problems``.

    The examples are written to ``folder``, which the caller owns.
    """
    report = _build(folder / EXAMPLES, reader, recipe, framing, progress)
    return report, StoredExamples(folder / EXAMPLES, [source["name"] for source in report.content["sources"]])


def _open(folder: Path, fingerprint: str, reader: Reader) -> Prepared | None:
    """Return what the cache has under ``fingerprint``, with the files' present names.

    Returns None if there is nothing, or nothing whole: then what there is goes, to make room.
    """
    try:
        content = json.loads((folder / REPORT).read_text(encoding="utf-8"))
        for source, now in zip(content["sources"], reader.reports, strict=True):
            source["name"] = now.name
        return Prepared(folder, fingerprint, DataReport(content))
    except (OSError, ValueError, KeyError, pa.ArrowException):
        shutil.rmtree(folder, ignore_errors=True)
        return None


def _fingerprint(reader: Reader, recipe: Recipe, framing: Framing) -> str:
    """Return a hash of all that decides the examples; where the files lie and what they are called does not."""
    import tokenizers
    import transformers

    parts = {
        "version": [_VERSION, tokenizers.__version__, transformers.__version__],
        "sources": [[s.kind, s.facts.sha256 if s.facts else s.name, s.facts.encoding if s.facts else ""]
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


@contextmanager
def _without_cycle_collection() -> Iterator[None]:
    """Rows leave no reference cycles, but their many small objects make Python look for some all over the heap, which
    took a quarter of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


class _Row(NamedTuple):
    """A row on its way: its drafts, and later its examples, stand at ``start`` to ``stop`` of its batch."""

    source: int
    conversation: Conversation
    start: int
    stop: int


def _build(path: Path, reader: Reader, recipe: Recipe, framing: Framing, progress: Progress | None) -> DataReport:
    """Write the examples of all rows that are in order to ``path``; the other rows go to the reader's problems."""
    accounts = Accounts()
    weights = _source_weights(reader, recipe)
    with ExampleWriter(path) as writer, _without_cycle_collection():
        for rows, examples in _encoded(reader, recipe, framing):
            kept: list[tuple[int, Example]] = []
            for row in rows:
                made = examples[row.start : row.stop]
                if weights[row.source] != 1:
                    made = [_weighted(example, weights[row.source]) for example in made]
                settled = _settle(row.conversation, made, recipe, accounts, reader.problems)
                kept += [(row.source, example) for example in settled]
            writer.write(kept)
            if progress is not None:
                progress(reader.rows, None)
    sources = [report.to_json() for report in reader.reports]
    stored = StoredExamples(path, [source["name"] for source in sources])
    return make_report(accounts, sources, reader.problems.rows, stored.lengths, stored.supervised)


def _encoded(
    reader: Reader, recipe: Recipe, framing: Framing
) -> Iterator[tuple[list[_Row], list[Example | DataError]]]:
    """Yield batches of rows with their examples; some are in the tokenizer while the next one is framed."""
    waiting: deque[tuple[list[_Row], list[Draft], EncodingBatch, Future[None]]] = deque()
    with ThreadPoolExecutor(max_workers=1) as pool:
        for rows, drafts in _framed(reader, recipe, framing):
            batch = framing.begin(drafts)
            waiting.append((rows, drafts, batch, pool.submit(batch.run)))
            if len(waiting) > _AHEAD:
                yield _finished(framing, *waiting.popleft())
        while waiting:
            yield _finished(framing, *waiting.popleft())


def _finished(
    framing: Framing, rows: list[_Row], drafts: list[Draft], batch: EncodingBatch, run: Future[None]
) -> tuple[list[_Row], list[Example | DataError]]:
    """Wait for a batch; if one of its drafts cannot be encoded, find out which."""
    run.result()
    try:
        return rows, list(batch.finish())
    except DataError:
        return rows, [_encode_one(framing, draft) for draft in drafts]


def _encode_one(framing: Framing, draft: Draft) -> Example | DataError:
    try:
        return framing.encode([draft])[0]
    except DataError as error:
        return error


def _framed(reader: Reader, recipe: Recipe, framing: Framing) -> Iterator[tuple[list[_Row], list[Draft]]]:
    """Yield batches of rows with their drafts; a row that cannot be framed goes to the reader's problems."""
    rows: list[_Row] = []
    drafts: list[Draft] = []
    characters = 0
    for source, read in reader.conversations():
        conversation = read.with_system(recipe.system)
        try:
            made = framing.draft(conversation)
        except DataError as error:
            reader.problems.add([problem for problem in error.problems if isinstance(problem, Problem)])
            continue
        rows.append(_Row(source, conversation, len(drafts), len(drafts) + len(made)))
        drafts += made
        characters += sum(len(turn.content) for turn in conversation.turns) * len(made)
        if len(drafts) >= _BATCH or characters >= _BATCH_CHARACTERS:
            yield rows, drafts
            rows, drafts, characters = [], [], 0
    yield rows, drafts


def _settle(
    conversation: Conversation,
    examples: Sequence[Example | DataError],
    recipe: Recipe,
    accounts: Accounts,
    problems: Problems,
) -> list[Example]:
    """Return the examples of a row that are kept, cut if need be, and book the row."""
    limit, truncation = recipe.tokens.max_length, recipe.tokens.truncation
    kept: list[Example] = []
    reasons: list[str] = []
    faults: list[Problem] = []
    for example in examples:
        if isinstance(example, DataError):
            faults += [_standing(problem, conversation) for problem in example.problems if isinstance(problem, Problem)]
        elif not example.spans:
            reasons.append("without a learned token")
        elif len(example.input_ids) <= limit:
            kept.append(example)
        else:
            shorter = cut(example, limit)
            accounts.too_long += 1
            accounts.lost_by_cut += example.supervised - shorter.supervised
            if truncation == "error":
                faults.append(_too_long(conversation, len(example.input_ids), limit))
            elif truncation == "drop":
                reasons.append(f"longer than {limit:,} tokens")
            elif not shorter.spans:
                reasons.append(f"with nothing to learn in the first {limit:,} tokens")
            else:
                accounts.cut += 1
                kept.append(shorter)
    if faults:
        problems.add(faults)
        return []
    accounts.row(conversation, len(kept), reasons)
    return kept


def _weighted(example: Example | DataError, weight: float) -> Example | DataError:
    """Scale what is learned of an example by the weight of its file."""
    if isinstance(example, DataError):
        return example
    spans = [Span(span.start, span.stop, span.weight * weight) for span in example.spans]
    return Example(example.input_ids, tuple(span for span in spans if span.weight), example.origin)


def cut(example: Example, max_length: int) -> Example:
    """Return the first ``max_length`` tokens of ``example`` and what is learned of them."""
    spans = (Span(span.start, min(span.stop, max_length), span.weight) for span in example.spans)
    return Example(example.input_ids[:max_length], tuple(s for s in spans if s.start < s.stop), example.origin)


def _too_long(conversation: Conversation, tokens: int, limit: int) -> Problem:
    problem = Problem(
        "too long",
        f"at most {limit:,} tokens",
        f"{tokens:,} tokens",
        "Raise `tokens.max_length`, or let `tokens.truncation` drop or cut long examples.",
    )
    return _standing(problem, conversation)


def _standing(problem: Problem, conversation: Conversation) -> Problem:
    return problem.at(conversation.origin) if conversation.origin else problem
