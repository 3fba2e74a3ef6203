"""What each type of GGUF file costs a run, and what the importance matrix and the smoothing of channels give.

    python -m bench.gguf_types RUN [--types F16,Q8_0,Q6_K,Q5_K_M,Q4_K_M,Q4_0] [--prompts 16] [--plain] [--name NAME]

Base + adapter in float32 is compared with the file in llama.cpp, as ``weitune export`` does it: greedy answers,
log-probabilities of the taught answers, perplexity on rows that were held out, and the verdict by the type's bounds.
``--plain`` measures each quantized type once more, made of the weights alone, and a K type a third time, with the
importance matrix alone. What base + adapter answers is kept in RUN/bench, by the adapter and the prompts, so that one
type after the other can be measured. Every type is printed and
kept in ``bench/results`` as soon as it is there; then the table is printed. Needs xllamacpp.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch

from bench.export_equality import Figures, compared, silent
from weitune import Run
from weitune.export.fit import Fitted, fitted
from weitune.export.formats.gguf_file import write_gguf
from weitune.export.formats.written import written_formats
from weitune.export.options import ExportOptions
from weitune.export.source.export_source import ExportSource, open_export_source
from weitune.export.verify.compare import Perplexity, compare
from weitune.export.verify.outputs import ANSWER_TOKENS, Computing, Outputs, open_reference
from weitune.export.verify.outputs_gguf import open_gguf
from weitune.export.verify.prompts import HeldOut, VerificationPrompt, choose_prompts, held_out_prompts
from weitune.export.verify.verification import all_logprobs, all_outputs, bounds_of, extra_stops
from weitune.gguf.types import MIXTURES, GgufType
from weitune.model.file_names import ADAPTER_FILES

TYPES = "F16,Q8_0,Q6_K,Q5_K_M,Q4_K_M,Q4_0"
COLUMNS = ("type", "MB", "same answers", "mean difference", "largest margin", "perplexity", "to F16", "verdict")


class Asked(NamedTuple):
    """Dialogues, and what base + adapter makes of them."""

    prompts: list[VerificationPrompt]
    held_out: HeldOut
    outputs: list[Outputs]
    logprobs: list[tuple[float, ...]]
    """Of the answers that were held out."""

    @property
    def longest(self) -> int:
        """Tokens of the longest dialogue."""
        every = [*self.prompts, *self.held_out.prompts]
        return max(max(len(each.prompt_tokens) + ANSWER_TOKENS, len(each.context + each.answer)) for each in every)


def asked(source: ExportSource, count: int, kept: Path) -> Asked:
    """Return the dialogues and what base + adapter makes of them: computed, or as an earlier call kept it."""
    prompts, _ = choose_prompts(source, count)
    held_out = held_out_prompts(source, count)
    path = kept / f"expected-{_digest(source, [*prompts, *held_out.prompts])}.json"
    if not path.is_file():
        run = open_reference(source, Computing())
        outputs = [asdict(each) for each in all_outputs(run, prompts, silent)]
        path.write_text(json.dumps({"outputs": outputs, "logprobs": all_logprobs(run, held_out.prompts)}))
    found = json.loads(path.read_text())
    outputs = [Outputs(**{key: _tupled(value) for key, value in each.items()}) for each in found["outputs"]]
    return Asked(prompts, held_out, outputs, [tuple(each) for each in found["logprobs"]])


def _digest(source: ExportSource, prompts: Sequence[VerificationPrompt]) -> str:
    """Return a name for what an adapter answers to ``prompts``."""
    digest = hashlib.sha256((source.adapter_folder / ADAPTER_FILES[1]).read_bytes())
    digest.update(repr([(each.prompt_tokens, each.context, each.answer) for each in prompts]).encode())
    return digest.hexdigest()[:16]


def variants(gguf_type: GgufType, *, plain: bool) -> list[tuple[str, str]]:
    """Return the name of each file of a type that is measured, and what it is fitted with."""
    names = [(gguf_type, "all")]
    if plain and gguf_type in MIXTURES:
        names.append((f"{gguf_type}, matrix alone", "matrix"))
    return [*names, (f"{gguf_type}, weights alone", "nothing")] if plain and gguf_type.startswith("Q") else names


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def measure(source: ExportSource, model: Fitted, gguf_type: GgufType, asked: Asked, scratch: Path) -> dict[str, Any]:
    """Write a file and compare it with base + adapter."""
    path = scratch / f"{gguf_type}.gguf"
    write_gguf(
        path, source, model.weights, gguf_type, head=model.head, importance=model.importance,
        template=source.template, progress=silent,
    )  # fmt: skip
    try:
        with open_gguf(path, None, source.framing.end_of_turn, asked.longest + 1) as subject:
            outputs = all_outputs(subject, asked.prompts, silent)
            logprobs = all_logprobs(subject, asked.held_out.prompts)
            ignored = [token for token in source.stop_tokens if not subject.stops_at(token)]
            extra = extra_stops(subject, source, asked.outputs)
        size, formats = path.stat().st_size, written_formats(path)
    finally:
        path.unlink()
    bounds = bounds_of(source, ExportOptions("gguf", gguf_type), torch.float32)
    perplexity = Perplexity.of(asked.logprobs, logprobs, of_run=asked.held_out.of_run)
    expected = [each.ended_at(extra) for each in asked.outputs]
    checks = [*compare(asked.prompts, expected, outputs, bounds, str, ignored), perplexity.check(bounds)]
    return {
        "bytes": size, **compared(expected, outputs), "perplexity": asdict(perplexity),
        "bounds": asdict(bounds), "failed": [check.name for check in checks if not check.passed],
        "weighed": bool(model.importance), "smoothed": model.smoothed, "head": model.head, "formats": formats,
    }  # fmt: skip


def table(found: dict[str, Any]) -> list[str]:
    """Return a table of what was found, in Markdown."""
    rows = [COLUMNS, ("---",) * len(COLUMNS)]
    f16 = found.get("F16", {}).get("perplexity", {}).get("actual")
    for name, each in found.items():
        if not isinstance(each, dict) or "perplexity" not in each:
            continue
        perplexity = each["perplexity"]["actual"]
        rows.append((
            name, f"{each['bytes'] / 1e6:,.0f}", f"{each['same_answers']} of {each['prompts']}",
            f"{each['mean_difference']:.2g}", f"{each['largest_margin']:.2g}", f"{perplexity:.4g}",
            f"{perplexity / f16 - 1:+.1%}" if f16 else "–", ", ".join(each["failed"]) or "passed",
        ))  # fmt: skip
    return [f"| {' | '.join(row)} |" for row in rows]


def main() -> None:
    """Measure one run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--types", default=TYPES)
    parser.add_argument("--plain", action="store_true", help="measure quantized types made of the weights alone, too")
    parser.add_argument("--name", help="end of the result's file name  [default: the run's name]")
    options = parser.parse_args()
    source = open_export_source(Run(options.run))
    kept = options.run / "bench"
    kept.mkdir(exist_ok=True)
    figures = Figures.begun_before(f"gguf_types-{options.name or source.name}")
    dialogues = asked(source, options.prompts, kept)
    for gguf_type in cast("Sequence[GgufType]", options.types.split(",")):
        for name, by in variants(gguf_type, plain=options.plain):
            model = (
                Fitted(source.merged)
                if by == "nothing"
                else fitted(source, gguf_type, lambda title: silent, smooth=by == "all")
            )
            figures.add(name, measure(source, model, gguf_type, dialogues, kept))
    print("\n".join(table(figures.found)))


if __name__ == "__main__":
    main()
