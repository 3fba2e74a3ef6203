"""An export, from a run to a folder with proof: write aside, open again, compare, publish.

What fails its comparison does not get the name that was asked for; it is kept as ``NAME.failed``.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from weitune.errors import InputError
from weitune.export import destination
from weitune.export.gguf_file import GgufType, write_gguf
from weitune.export.merged import Progress, write_merged
from weitune.export.observe import ANSWER_TOKENS, Subject, merged_subject, reference
from weitune.export.ollama import modelfile, turn_frames
from weitune.export.probes import Probe, choose_probes
from weitune.export.tuned import Tuned, open_tuned
from weitune.export.verify import Bounds, Verdict, VerificationError, compare
from weitune.generate.run_folder import Run, Which
from weitune.publish import publish

Format = Literal["merged", "gguf", "gguf-adapter", "ollama"]
Stage = Callable[[str], Progress]
"""Called with the title of a piece of work; returns what is called as it proceeds."""

VERIFICATION = "verification.json"
_BOUNDS = {
    "float64": Bounds(1e-4, 1e-3),
    "float32": Bounds(1e-4, 1e-3),
    "float16": Bounds(0.01, 0.05),
    "bfloat16": Bounds(0.05, 0.3),
    "F32": Bounds(1e-3, 0.01),
    "F16": Bounds(0.01, 0.05),
    "BF16": Bounds(0.05, 0.3),
    "Q8_0": Bounds(0.05, 0.5),
    "Q4_0": Bounds(0.6, 3.0),
}


@dataclass(frozen=True, slots=True)
class Order:
    """What to export and how."""

    format: Format
    gguf_type: GgufType = "Q8_0"
    dtype: torch.dtype | None = None
    """Number format of ``merged``; None: the base's."""
    prompts: int = 8
    """Dialogues that the export is compared on; 0: it is not compared."""


@dataclass(frozen=True, slots=True)
class Exported:
    """A finished export."""

    folder: Path
    verdict: Verdict | None


def export(
    run: Run,
    folder: Path,
    order: Order,
    *,
    checkpoint: Which = "last",
    force: bool = False,
    stage: Stage = lambda title: lambda done, total: None,
) -> Exported:
    """Export ``run`` to ``folder`` as ``order`` says.

    Raises InputError if that cannot be done, and VerificationError if the result differs from base + adapter.
    """
    destination.check_destination(folder, force)
    if order.prompts and order.format != "merged":
        from weitune.generate.llama_cpp import require_llama_cpp

        require_llama_cpp()
    tuned = open_tuned(run, checkpoint)
    with destination.written_aside(folder) as partial:
        _write(partial, tuned, order, stage)
        destination.write_json(partial / destination.MARK, _described(tuned, order))
        verdict = _verify(partial, tuned, order, stage) if order.prompts else None
        if verdict is not None:
            destination.write_json(partial / VERIFICATION, verdict.to_json())
            if not verdict.passed:
                kept = folder.with_name(f"{folder.name}.failed")
                publish(partial, kept)
                raise VerificationError(verdict, str(kept))
    return Exported(folder, verdict)


def gguf_name(tuned: Tuned, order: Order) -> str:
    """Return the name of the GGUF file in an export's folder."""
    return f"{tuned.name}-adapter.gguf" if order.format == "gguf-adapter" else f"{tuned.name}-{order.gguf_type}.gguf"


def _write(folder: Path, tuned: Tuned, order: Order, stage: Stage) -> None:
    progress = stage(f"writing {order.format}")
    if order.format == "merged":
        write_merged(folder, tuned, order.dtype, progress)
    elif order.format == "gguf-adapter":
        from weitune.export.gguf_adapter import write_gguf_adapter

        write_gguf_adapter(folder / gguf_name(tuned, order), tuned, progress)
    else:
        frames = _frames(tuned) if order.format == "ollama" else None  # refused before a long write
        name = gguf_name(tuned, order)
        write_gguf(
            folder / name, tuned, tuned.merged, order.gguf_type, template=tuned.template, progress=progress
        )  # fmt: skip
        if frames is not None:
            stops = [str(tuned.tokenizer.convert_ids_to_tokens(token)) for token in tuned.stop_tokens]
            context = min(tuned.config.max_position_embeddings, 4096)
            text = modelfile(name, frames, tuned.recipe.system, stops, context)
            (folder / "Modelfile").write_text(text, encoding="utf-8")


def _frames(tuned: Tuned) -> Any:
    """Read the frames of the run's turns, without its system prompt: the Modelfile says that by itself."""
    template = tuned.template_without_system
    tokenizer = tuned.tokenizer

    def render(messages: list[dict[str, str]], ask: bool) -> str:
        return str(
            tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=ask)
        )

    plain, bare = tokenizer.encode("a"), tokenizer.encode("a", add_special_tokens=False)
    automatic = tokenizer.decode(plain[: len(plain) - len(bare)])
    return turn_frames(render, automatic)


def _described(tuned: Tuned, order: Order) -> dict[str, Any]:
    """Return what an export was made from: the same for the same run, whenever and wherever."""
    from importlib.metadata import version

    adapter = (tuned.adapter_folder / "adapter_model.safetensors").read_bytes()
    kind = {} if order.format == "merged" else {"type": order.gguf_type}
    return {
        "weitune": version("weitune"),
        "format": order.format,
        **({} if order.format == "gguf-adapter" else kind),
        "run": tuned.name,
        "adapter": tuned.adapter_folder.name,
        "adapter_sha256": hashlib.sha256(adapter).hexdigest(),
        "base_model": tuned.recipe.model,
        "revision": tuned.recipe.revision,
        "system": tuned.recipe.system,
        "stop_tokens": list(tuned.stop_tokens),
    }


def _verify(folder: Path, tuned: Tuned, order: Order, stage: Stage) -> Verdict:
    probes, notes = choose_probes(tuned, order.prompts)
    if not probes:
        raise InputError(
            "there is no dialogue to compare the export on: none of the run's data ends with an answer in plain text",
            "Export with --no-verify.",
        )
    run = reference(tuned)
    expected = _observed(run, probes, stage("asking base + adapter"))
    del run  # one model at a time
    with _opened(folder, tuned, order, probes, stage) as subject:
        found = _observed(subject, probes, stage("asking the export"))
        running_on = [token for token in tuned.stop_tokens if not subject.stops_at(token)]
        engine = subject.engine
    bounds = _bounds(tuned, order)
    checks = compare(probes, expected, found, bounds, _text_of(tuned), running_on)
    return Verdict(engine, len(probes), bounds, checks, tuple(notes))


def _observed(subject: Subject, probes: list[Probe], progress: Progress) -> list[Any]:
    found = []
    for done, probe in enumerate(probes, 1):
        found.append(subject.observe(probe))
        progress(done, len(probes))
    return found


@contextmanager
def _opened(folder: Path, tuned: Tuned, order: Order, probes: list[Probe], stage: Stage) -> Iterator[Subject]:
    """Open an export in the engine it is for."""
    if order.format == "merged":
        with merged_subject(folder, tuned) as subject:
            yield subject
        return
    from weitune.export.observe_gguf import gguf_subject

    longest = max(max(len(probe.prompt) + ANSWER_TOKENS, len(probe.context + probe.answer)) for probe in probes)
    path, end = folder / gguf_name(tuned, order), tuned.framing.end_of_turn
    if order.format != "gguf-adapter":
        with gguf_subject(path, None, end, longest + 1) as subject:
            yield subject
        return
    with _base_file(folder, tuned, stage) as base, gguf_subject(base, path, end, longest + 1) as subject:
        yield subject


@contextmanager
def _base_file(folder: Path, tuned: Tuned, stage: Stage) -> Iterator[Path]:
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


def _bounds(tuned: Tuned, order: Order) -> Bounds:
    if order.format == "merged":
        return _BOUNDS[str(order.dtype or _base_dtype(tuned)).removeprefix("torch.")]
    if order.format == "gguf-adapter":
        return _BOUNDS["Q8_0" if tuned.files.gguf else _trial_type(tuned)]
    return _BOUNDS[order.gguf_type]


def _trial_type(tuned: Tuned) -> GgufType:
    """Return the type of the base on which an adapter is tried: no narrower than the base's own weights."""
    return "F32" if _base_dtype(tuned).itemsize > 2 else "F16"


def _base_dtype(tuned: Tuned) -> torch.dtype:
    return max((slot.dtype for slot in tuned.base.slots.values()), key=lambda dtype: dtype.itemsize)


def _text_of(tuned: Tuned) -> Callable[[int], str]:
    return lambda token: str(tuned.tokenizer.decode([token]))
