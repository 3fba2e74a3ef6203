"""Open an export in its engine, and compare it with base + adapter on dialogues of the run's data."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import torch

from weitune.errors import InputError
from weitune.export.formats.gguf_file import write_gguf
from weitune.export.formats.written import formats_note, written_formats
from weitune.export.options import ExportOptions, gguf_name
from weitune.export.source.export_source import ExportSource
from weitune.export.verify.compare import Bounds, Perplexity, Verdict, compare
from weitune.export.verify.outputs import ANSWER_TOKENS, Computing, EngineModel, Outputs, open_merged, open_reference
from weitune.export.verify.prompts import VerificationPrompt, choose_prompts, held_out_prompts
from weitune.export.verify.rounding import RoundingCost, choose_computing, merge_rounded, narrower_formats
from weitune.gguf.families.fields import rounds_yarn
from weitune.gguf.splitting import splits_otherwise
from weitune.gguf.types import MIXTURES, GgufType
from weitune.messages import say
from weitune.model.rotation_by_length import short_tokens
from weitune.progress import Progress, Stage, enter_phase

BOUNDS = {
    "float64": Bounds(1e-4, 1e-3, 1e-4),
    "float32": Bounds(1e-4, 1e-3, 1e-4),
    "float16": Bounds(0.005, 0.05, 0.005),
    "bfloat16": Bounds(0.05, 0.5, 0.05),
    "F32": Bounds(1e-3, 0.01, 1e-3),
    "F16": Bounds(0.005, 0.05, 0.005),
    "BF16": Bounds(0.03, 0.4, 0.03),
    "Q8_0": Bounds(0.1, 1.6, 0.08),
    "Q6_K": Bounds(0.3, 1.6, 0.15),
    "Q5_K_M": Bounds(0.65, 2.0, 0.25),
    "Q4_K_M": Bounds(0.65, 2.0, 0.5),
    "Q4_0": Bounds(0.9, 6.0, 0.5),
}
"""Most are at least twice the largest measured; docs/export.md has the figures. Those of a merged model in float16 and
bfloat16 are for a comparison that cannot compute in float32."""

TABULATED_GELU = Bounds(0.02, 0.2, 0.02)
"""Of a GGUF file with this activation (Gemma): llama.cpp looks it up in a table of float16 numbers."""


def verify(folder: Path, source: ExportSource, options: ExportOptions, stage: Stage) -> Verdict:
    """Compare the export in ``folder`` with base + adapter. Raises InputError if there is nothing to compare on."""
    prompts, notes = choose_prompts(source, options.prompts)
    if not prompts:
        raise InputError("export.verification.no_dialogue")
    computing = choose_computing(source)
    reference = open_reference(source, computing)
    bounds = bounds_of(source, options, reference.dtype)
    enter_phase("evaluating")
    expected = all_outputs(reference, prompts, stage(say("export.verification.asking_reference")))
    held_out = held_out_prompts(source, options.prompts)
    if reference.dtype != torch.float32:
        notes.append(say("export.verification.not_in_float32"))
    elif options.format == "merged" and (formats := narrower_formats(source, options.dtype)):
        merge_rounded(reference.model, formats)
        rounded = all_outputs(reference, prompts, stage(say("export.verification.asking_rounded")))
        cost = RoundingCost.between(expected, rounded)
        expected, bounds = rounded, cost.widened(BOUNDS["float32"])
        notes.append(cost.note(formats))
    expected_of_held_out = all_logprobs(reference, held_out.prompts)
    del reference  # one model at a time
    if options.format in {"gguf", "ollama"} and options.gguf_type in MIXTURES:
        notes.append(formats_note(written_formats(folder / gguf_name(source, options))))
    if options.format != "merged":
        notes += _differences(source)
    with open_export(folder, source, options, [*prompts, *held_out.prompts], stage, computing) as model:
        enter_phase("evaluating")
        actual = all_outputs(model, prompts, stage(say("export.verification.asking_export")))
        actual_of_held_out = all_logprobs(model, held_out.prompts)
        ignored_stops = [token for token in source.stop_tokens if not model.stops_at(token)]
        sooner = frozenset() if options.format == "merged" else extra_stops(model, source, expected)
        engine = model.engine

    def text_of(token: int) -> str:
        return str(source.tokenizer.decode([token]))

    if sooner:
        names = ", ".join(repr(text_of(token)) for token in sorted(sooner))
        notes.append(say("export.verification.ends_answers_sooner", tokens=names))
    expected = [outputs.ended_at(sooner) for outputs in expected]
    framed = options.format != "gguf-adapter"
    checks = compare(prompts, expected, actual, bounds, text_of, ignored_stops, framed=framed)
    if not held_out.prompts:
        return Verdict(engine, len(prompts), bounds, checks, tuple(notes))
    perplexity = Perplexity.of(expected_of_held_out, actual_of_held_out, of_run=held_out.of_run)
    return Verdict(engine, len(prompts), bounds, (*checks, perplexity.check(bounds)), tuple(notes), perplexity)


def all_outputs(model: EngineModel, prompts: list[VerificationPrompt], progress: Progress) -> list[Outputs]:
    """Return the outputs of ``model`` for each prompt."""
    results = []
    with ThreadPoolExecutor(model.at_once) as pool:
        for done, outputs in enumerate(pool.map(model.outputs, prompts), 1):
            results.append(outputs)
            progress(done, len(prompts))
    return results


def all_logprobs(model: EngineModel, prompts: Sequence[VerificationPrompt]) -> list[tuple[float, ...]]:
    """Return how likely ``model`` finds each token of the answer to each prompt."""
    with ThreadPoolExecutor(model.at_once) as pool:
        return list(pool.map(model.logprobs, prompts))


def extra_stops(model: EngineModel, source: ExportSource, expected: list[Outputs]) -> frozenset[int]:
    """Return the control tokens in the expected answers at which ``model`` ends an answer all the same.

    llama.cpp recognises some by their text alone (``<|end_of_text|>``, ``<end_of_turn>``), whatever the file declares.
    """
    written = {token for outputs in expected for token in outputs.greedy}
    return frozenset(token for token in written & set(source.tokenizer.added_tokens_decoder) if model.stops_at(token))


@contextmanager
def open_export(
    folder: Path,
    source: ExportSource,
    options: ExportOptions,
    prompts: list[VerificationPrompt],
    stage: Stage,
    computing: Computing,
) -> Iterator[EngineModel]:
    """Open an export in its engine."""
    if options.format == "merged":
        yield open_merged(folder, computing)
        return
    from weitune.export.verify.outputs_gguf import open_gguf

    longest = max(max(len(each.prompt_tokens) + ANSWER_TOKENS, len(each.context + each.answer)) for each in prompts)
    path, end = folder / gguf_name(source, options), source.framing.end_of_turn
    if options.format != "gguf-adapter":
        with open_gguf(path, None, end, longest + 1) as model:
            yield model
        return
    with _base_file(folder, source, stage) as base, open_gguf(base, path, end, longest + 1) as model:
        yield model


@contextmanager
def _base_file(folder: Path, source: ExportSource, stage: Stage) -> Iterator[Path]:
    """Yield a GGUF file of the base to try its adapter on: the base itself if it is one, else a temporary one."""
    if source.files.gguf:
        yield source.files.folder / source.files.gguf
        return
    scratch = folder / ".base"  # within the folder that is not published yet: what a kill leaves goes with it
    scratch.mkdir(exist_ok=True)
    try:
        path = scratch / "base.gguf"
        progress = stage(say("export.verification.writing_base"))
        template = source.template_without_system
        write_gguf(path, source, source.base, _trial_type(source), template=template, progress=progress)
        yield path
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _differences(source: ExportSource) -> list[str]:
    """Return notes on what llama.cpp computes otherwise for every file of this model."""
    notes = []
    if short_tokens(source.config) is not None:
        notes.append(say("export.verification.rotates_by_context", tokens=short_tokens(source.config)))
    if rounds_yarn(source.config):
        notes.append(say("export.verification.rounds_yarn"))
    if splits_otherwise(json.loads(source.tokenizer.backend_tokenizer.to_str())):
        notes.append(say("export.verification.splits_otherwise"))
    return notes


def bounds_of(source: ExportSource, options: ExportOptions, computed: torch.dtype) -> Bounds:
    """Return how much an export may differ from base + adapter, whose outputs are ``computed`` in that dtype."""
    if options.format == "merged":
        written = _name(options.dtype or _base_dtype(source))
    elif options.format == "gguf-adapter":
        written = "Q8_0" if source.files.gguf else _trial_type(source)
    else:
        written = options.gguf_type
    bounds = [BOUNDS[written], BOUNDS[_name(computed)]]
    activation = getattr(source.config, "hidden_activation", None) or getattr(source.config, "hidden_act", None)
    if options.format != "merged" and str(activation).startswith("gelu"):
        bounds.append(TABULATED_GELU)
    return Bounds(
        max(each.mean_difference for each in bounds),
        max(each.margin for each in bounds),
        max(each.perplexity for each in bounds),
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _trial_type(source: ExportSource) -> GgufType:
    """Return the type of the base on which an adapter is tried: no narrower than the base's own weights."""
    return "F32" if _base_dtype(source).itemsize > 2 else "F16"


def _base_dtype(source: ExportSource) -> torch.dtype:
    """Return the number format of most of the base's weights."""
    numbers: Counter[torch.dtype] = Counter()
    for slot in source.base.slots.values():
        numbers[slot.dtype] += torch.Size(slot.shape).numel() if slot.dtype.is_floating_point else 0
    return numbers.most_common(1)[0][0]
