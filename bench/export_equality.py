"""How far the exports of a run are from base + adapter, in every format; verification's bounds rest on its figures.

    python -m bench.export_equality RUN [--prompts 50] [--types F32,F16,Q8_0,Q4_K_M] [--name NAME]

    tokens         every dialogue of the run's data, framed and tokenized by the run, by transformers and by llama.cpp
    merged         the largest difference of any logit, over prompts and answers, in float32 and in float64
    F32 … Q4_0     greedy answers, and log-probabilities of the taught answers, in llama.cpp
    adapter        the adapter's GGUF on the base's F32 GGUF, beside base + adapter, and beside the merged F32 GGUF

Every part is printed and kept in ``bench/results`` as soon as it is there. Needs xllamacpp, and room for a float32 copy
of the model on the disk and six in memory.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any, cast

import torch

from weitune import Run
from weitune.data.conversation import Conversation
from weitune.data.prepare.recipe_reader import read_options
from weitune.data.read.conversations import Reader, read_conversations
from weitune.export.fit import fitted
from weitune.export.formats.gguf_adapter import write_gguf_adapter
from weitune.export.formats.gguf_file import write_gguf
from weitune.export.formats.merged import write_merged
from weitune.export.source.export_source import ExportSource, open_export_source
from weitune.export.verify.compare import differences, divergences
from weitune.export.verify.outputs import (
    ANSWER_TOKENS,
    Computing,
    Outputs,
    TransformersModel,
    open_merged,
    open_reference,
)
from weitune.export.verify.outputs_gguf import LlamaCppModel, open_gguf
from weitune.export.verify.prompts import VerificationPrompt, choose_prompts
from weitune.export.verify.verification import all_outputs
from weitune.gguf.types import GGUF_TYPES, GgufType

RESULTS = Path(__file__).parent / "results"


def silent(done: int, total: int | None) -> None:
    """Show nothing."""


class Figures:
    """Results so far, on the screen and in a file."""

    def __init__(self, name: str, **about: Any) -> None:
        """Begin with what is measured."""
        self.path, self.found = RESULTS / f"{name}.json", dict(about)

    @classmethod
    def begun_before(cls, name: str) -> Figures:
        """Go on with the results that the file has."""
        figures = cls(name)
        if figures.path.is_file():
            figures.found = json.loads(figures.path.read_text(encoding="utf-8"))
        return figures

    def add(self, part: str, figures: dict[str, Any]) -> None:
        """Print and keep the figures of one part."""
        print(f"{part}: {json.dumps(figures, ensure_ascii=False)}", flush=True)
        self.found[part] = figures
        RESULTS.mkdir(exist_ok=True)
        self.path.write_text(json.dumps(self.found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def compared(expected: Sequence[Outputs], found: Sequence[Outputs]) -> dict[str, Any]:
    """Return how far outputs are apart."""
    each = [difference for difference, _, _ in differences(expected, found)]
    parted = divergences(expected, found)
    return {
        "prompts": len(expected),
        "same_prompts": sum(a.prompt_tokens == b.prompt_tokens for a, b in zip(expected, found, strict=True)),
        "same_answers": len(expected) - len(parted),
        "partings": [[place.number, place.at, round(place.margin, 5)] for place in parted],
        "largest_margin": max((place.margin for place in parted), default=0.0),
        "answer_tokens": len(each),
        "mean_difference": sum(each) / len(each),
        "largest_difference": max(each),
    }


def token_equality(source: ExportSource, model: LlamaCppModel) -> dict[str, Any]:
    """Frame and tokenize every dialogue of the data in three ways, and count those that differ."""
    rows = other = strange = tokens = 0
    for conversation in read_conversations(Reader(source.recipe.data, read_options(source.recipe))):
        asked = Conversation(conversation.turns[:-1])
        prompt = tuple(source.framing.prompt(source.with_system(asked)))
        case = VerificationPrompt(asked, prompt, prompt, ())
        theirs = source.tokenizer.apply_chat_template(
            case.messages, chat_template=source.template, add_generation_prompt=True, return_dict=False
        )
        rows, tokens = rows + 1, tokens + len(prompt)
        other += tuple(theirs) != prompt
        strange += model.prompt_tokens(case) != prompt
    return {"rows": rows, "tokens": tokens, "differ_in_transformers": other, "differ_in_llama_cpp": strange}


def logit_difference(
    run: TransformersModel, merged: TransformersModel, prompts: Sequence[VerificationPrompt]
) -> dict[str, Any]:
    """Return the largest difference of any logit over prompts and answers: in float32, and with products in float64.

    The latter shows the file alone. How far float32 takes base + adapter and the merged model from it is told too.
    """
    models = [run.model, merged.model, deepcopy(run.model).double(), deepcopy(merged.model).double()]
    largest, size = [0.0] * 4, 0.0
    for each in prompts:
        ids = torch.tensor([each.context + each.answer])
        with torch.inference_mode():
            one, two, exact_one, exact_two = (model(ids, use_cache=False).logits.double() for model in models)
        pairs = ((one, two), (exact_one, exact_two), (one, exact_one), (two, exact_two))
        largest = [max(now, float((a - b).abs().max())) for now, (a, b) in zip(largest, pairs, strict=True)]
        size = max(size, float(one.abs().max()))
    return {
        "prompts": len(prompts), "largest_difference": largest[0], "largest_difference_in_float64": largest[1],
        "base_and_adapter_from_float64": largest[2], "merged_from_float64": largest[3], "largest_logit": size,
    }  # fmt: skip


def measure(source: ExportSource, types: Sequence[GgufType], count: int, figures: Figures, scratch: Path) -> None:
    """Write and measure one export after the other."""
    prompts, notes = choose_prompts(source, count)
    figures.add("prompts", {"count": len(prompts), "notes": notes})
    longest = max(max(len(each.prompt_tokens) + ANSWER_TOKENS, len(each.context + each.answer)) for each in prompts) + 1
    end = source.framing.end_of_turn

    run = open_reference(source, Computing())
    (scratch / "merged").mkdir()
    write_merged(scratch / "merged", source, torch.float32, silent)
    merged = open_merged(scratch / "merged", Computing())
    figures.add("merged", logit_difference(run, merged, prompts))
    del merged
    expected = all_outputs(run, prompts, silent)
    del run

    in_llama_cpp: dict[str, list[Outputs]] = {}
    for gguf_type in types:
        path = scratch / f"{gguf_type}.gguf"
        model = fitted(source, gguf_type, lambda title: silent)
        write_gguf(
            path, source, model.weights, gguf_type, head=model.head, importance=model.importance,
            template=source.template, progress=silent,
        )  # fmt: skip
        with open_gguf(path, None, end, longest) as subject:
            if gguf_type == types[0]:
                figures.add("tokens", token_equality(source, subject))
            in_llama_cpp[gguf_type] = all_outputs(subject, prompts, silent)
        figures.add(
            gguf_type, {**({"head": model.head} if model.smoothed else {}), "bytes": path.stat().st_size,
                        **compared(expected, in_llama_cpp[gguf_type])}
        )  # fmt: skip
        path.unlink()
    write_gguf(
        scratch / "base.gguf", source, source.base, "F32", template=source.template_without_system, progress=silent
    )  # fmt: skip
    write_gguf_adapter(scratch / "adapter.gguf", source, silent)
    with open_gguf(scratch / "base.gguf", scratch / "adapter.gguf", end, longest) as subject:
        beside = all_outputs(subject, prompts, silent)
    figures.add("adapter", compared(expected, beside))
    if "F32" in in_llama_cpp:
        figures.add("adapter beside merged F32", compared(in_llama_cpp["F32"], beside))


def main() -> None:
    """Measure one run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--prompts", type=int, default=50)
    parser.add_argument("--types", default=",".join(GGUF_TYPES))
    parser.add_argument("--name", help="end of the result's file name  [default: the run's name]")
    options = parser.parse_args()
    types = cast("list[GgufType]", options.types.split(","))
    source = open_export_source(Run(options.run))
    figures = Figures(
        f"export_equality-{options.name or source.name}", model=Path(source.recipe.model).name,
        tied=source.config.tie_word_embeddings, cores=len(os.sched_getaffinity(0)),
    )  # fmt: skip
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="weitune-bench-") as scratch:
        measure(source, types, options.prompts, figures, Path(scratch))
    figures.add("seconds", {"all": round(time.perf_counter() - began)})


if __name__ == "__main__":
    main()
