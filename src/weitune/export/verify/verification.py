"""Open an export as its users will, and compare it with base + adapter on dialogues of the run's data."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch

from weitune.errors import InputError
from weitune.export.formats.gguf_file import write_gguf
from weitune.export.options import ExportOptions, gguf_name
from weitune.export.source.export_source import ExportSource
from weitune.export.verify.compare import Bounds, Verdict, compare
from weitune.export.verify.outputs import ANSWER_TOKENS, Outputs, Subject, merged_subject, reference
from weitune.export.verify.prompts import VerificationPrompt, choose_prompts
from weitune.gguf.types import GgufType
from weitune.progress import Progress, Stage

BOUNDS = {
    "float64": Bounds(1e-4, 1e-3),
    "float32": Bounds(1e-4, 1e-3),
    "float16": Bounds(0.005, 0.05),
    "bfloat16": Bounds(0.05, 0.5),
    "F32": Bounds(1e-3, 0.01),
    "F16": Bounds(0.005, 0.05),
    "BF16": Bounds(0.03, 0.4),
    "Q8_0": Bounds(0.1, 1.6),
    "Q4_0": Bounds(0.9, 6.0),
}
"""At least twice the largest measured; docs/export.md has the figures. bfloat16 leaves room for computing in it too."""


def verdict_on(folder: Path, tuned: ExportSource, order: ExportOptions, stage: Stage) -> Verdict:
    """Compare the export in ``folder`` with base + adapter. Raises InputError if there is nothing to compare on."""
    probes, notes = choose_prompts(tuned, order.prompts)
    if not probes:
        raise InputError("export.verification.there_no_dialogue_compare")
    run = reference(tuned)
    bounds = bounds_of(tuned, order, run.dtype)
    expected = observed(run, probes, stage("asking base + adapter"))
    del run  # one model at a time
    with opened(folder, tuned, order, probes, stage) as subject:
        found = observed(subject, probes, stage("asking the export"))
        running_on = [token for token in tuned.stop_tokens if not subject.stops_at(token)]
        sooner = frozenset() if order.format == "merged" else ending_sooner(subject, tuned, expected)
        engine = subject.engine
    text_of = _text_of(tuned)
    if sooner:
        names = ", ".join(repr(text_of(token)) for token in sorted(sooner))
        notes.append(f"the export also ends an answer at {names}, at which base + adapter goes on")
    expected = [observation.ended_at(sooner) for observation in expected]
    checks = compare(probes, expected, found, bounds, text_of, running_on)
    return Verdict(engine, len(probes), bounds, checks, tuple(notes))


def observed(subject: Subject, probes: list[VerificationPrompt], progress: Progress) -> list[Outputs]:
    """Try every probe on ``subject``."""
    found = []
    with ThreadPoolExecutor(subject.at_once) as pool:
        for done, observation in enumerate(pool.map(subject.observe, probes), 1):
            found.append(observation)
            progress(done, len(probes))
    return found


def ending_sooner(subject: Subject, tuned: ExportSource, expected: list[Outputs]) -> frozenset[int]:
    """Return the control tokens in the expected answers at which ``subject`` ends an answer all the same.

    llama.cpp knows some by their text alone (``<|end_of_text|>``, ``<end_of_turn>``), whatever a file says.
    """
    written = {token for observation in expected for token in observation.greedy}
    return frozenset(token for token in written & set(tuned.tokenizer.added_tokens_decoder) if subject.stops_at(token))


@contextmanager
def opened(
    folder: Path, tuned: ExportSource, order: ExportOptions, probes: list[VerificationPrompt], stage: Stage
) -> Iterator[Subject]:
    """Open an export in the engine it is for."""
    if order.format == "merged":
        with merged_subject(folder, tuned) as subject:
            yield subject
        return
    from weitune.export.verify.outputs_gguf import gguf_subject

    longest = max(max(len(probe.prompt) + ANSWER_TOKENS, len(probe.context + probe.answer)) for probe in probes)
    path, end = folder / gguf_name(tuned, order), tuned.framing.end_of_turn
    if order.format != "gguf-adapter":
        with gguf_subject(path, None, end, longest + 1) as subject:
            yield subject
        return
    with _base_file(folder, tuned, stage) as base, gguf_subject(base, path, end, longest + 1) as subject:
        yield subject


@contextmanager
def _base_file(folder: Path, tuned: ExportSource, stage: Stage) -> Iterator[Path]:
    """Give a GGUF file of the base to try its adapter on: the base itself if it is one, a passing one if not."""
    if tuned.files.gguf:
        yield tuned.files.folder / tuned.files.gguf
        return
    scratch = folder.with_name(f"{folder.name}.base")
    scratch.mkdir(exist_ok=True)
    try:
        path = scratch / "base.gguf"
        progress = stage("writing the base")
        write_gguf(
            path, tuned, tuned.base, _trial_type(tuned), template=tuned.template_without_system, progress=progress
        )
        yield path
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def bounds_of(tuned: ExportSource, order: ExportOptions, computed: torch.dtype) -> Bounds:
    """Return how much an export may differ from base + adapter, whose answers are ``computed`` in that dtype."""
    if order.format == "merged":
        written = _name(order.dtype or _base_dtype(tuned))
    elif order.format == "gguf-adapter":
        written = "Q8_0" if tuned.files.gguf else _trial_type(tuned)
    else:
        written = order.gguf_type
    of_file, of_reference = BOUNDS[written], BOUNDS[_name(computed)]
    return Bounds(
        max(of_file.mean_difference, of_reference.mean_difference), max(of_file.margin, of_reference.margin)
    )  # fmt: skip


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _trial_type(tuned: ExportSource) -> GgufType:
    """Return the type of the base on which an adapter is tried: no narrower than the base's own weights."""
    return "F32" if _base_dtype(tuned).itemsize > 2 else "F16"


def _base_dtype(tuned: ExportSource) -> torch.dtype:
    return max((slot.dtype for slot in tuned.base.slots.values()), key=lambda dtype: dtype.itemsize)


def _text_of(tuned: ExportSource) -> Callable[[int], str]:
    return lambda token: str(tuned.tokenizer.decode([token]))
