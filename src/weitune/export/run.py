"""An export, from a run to a folder with proof: write aside, open again, compare, publish.

What fails its comparison does not get the name that was asked for; it is kept as ``NAME.failed``.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weitune.errors import InputError
from weitune.export import destination
from weitune.export.formats.gguf_file import check_gguf, write_gguf
from weitune.export.formats.merged import write_merged
from weitune.export.formats.ollama import modelfile, turn_frames
from weitune.export.options import ExportOptions, gguf_name
from weitune.export.smoothing import Smoothed, smoothed
from weitune.export.source.export_source import ExportSource, open_export_source
from weitune.export.verify.compare import Verdict, VerificationError
from weitune.export.verify.verification import verdict_on
from weitune.files.json_files import write_json
from weitune.files.publish import publish
from weitune.generate.run_folder import Run, Which
from weitune.messages import say
from weitune.progress import Stage

VERIFICATION = "verification.json"


@dataclass(frozen=True, slots=True)
class Exported:
    """A finished export."""

    folder: Path
    verdict: Verdict | None


def export(
    run: Run,
    folder: Path,
    order: ExportOptions,
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
    tuned = open_export_source(run, checkpoint)
    if order.format != "gguf-adapter":
        _check_system(tuned)
    with destination.written_aside(folder) as partial:
        written = _write(partial, tuned, order, stage)
        write_json(partial / destination.MARK, _described(tuned, order, written))
        verdict = verdict_on(partial, tuned, order, stage) if order.prompts else None
        if verdict is not None:
            write_json(partial / VERIFICATION, verdict.to_json())
            if not verdict.passed:
                kept = folder.with_name(f"{folder.name}.failed")
                publish(partial, kept)
                raise VerificationError(verdict, str(kept))
    return Exported(folder, verdict)


def _check_system(tuned: ExportSource) -> None:
    """Raise InputError if the system prompt has the text of a control token, which a template cannot keep as text."""
    tokens = map(str, tuned.tokenizer.convert_ids_to_tokens(sorted(tuned.framing.control_ids)))
    if found := [token for token in tokens if token in (tuned.recipe.system or "")]:
        raise InputError("export.run.system_prompt_has_text", found=found[0])


def _write(folder: Path, tuned: ExportSource, order: ExportOptions, stage: Stage) -> dict[str, Any]:
    """Write the export, and return what there is to say of a GGUF file of the whole model."""
    title = say("export.run.writing", format=order.format)
    if order.format == "merged":
        write_merged(folder, tuned, order.dtype, stage(title))
        return {}
    if order.format == "gguf-adapter":
        from weitune.export.formats.gguf_adapter import write_gguf_adapter

        write_gguf_adapter(folder / gguf_name(tuned, order), tuned, stage(title))
        return {}
    frames = _frames(tuned) if order.format == "ollama" else None  # refused before long work
    check_gguf(tuned)
    name = gguf_name(tuned, order)
    model = smoothed(tuned, order.gguf_type, stage) if order.smooth else Smoothed(tuned.merged)
    write_gguf(
        folder / name, tuned, model.weights, order.gguf_type, head=model.head, template=tuned.template,
        progress=stage(title),
    )  # fmt: skip
    if frames is not None:
        stops = [str(tuned.tokenizer.convert_ids_to_tokens(token)) for token in tuned.stop_tokens]
        context = min(tuned.config.get_text_config().max_position_embeddings, 4096)
        text = modelfile(name, frames, stops, context)
        (folder / "Modelfile").write_bytes(text.encode())  # as it is: a text may have line ends of any kind
    about = {"type": order.gguf_type, "smoothed": model.weights is not tuned.merged}
    return {**about, **({"smoothed_on": model.notes} if model.notes else {})}


def _frames(tuned: ExportSource) -> Any:
    """Read the frames of the run's turns, and its system prompt, which the Modelfile says by itself."""
    template = tuned.template_without_system
    tokenizer = tuned.tokenizer

    def render(messages: list[dict[str, str]], ask: bool) -> str:
        return str(
            tokenizer.apply_chat_template(messages, chat_template=template, tokenize=False, add_generation_prompt=ask)
        )

    plain, bare = tokenizer.encode("a"), tokenizer.encode("a", add_special_tokens=False)
    automatic = tokenizer.decode(plain[: len(plain) - len(bare)])
    return turn_frames(render, automatic, tuned.recipe.system)


def _described(tuned: ExportSource, order: ExportOptions, written: dict[str, Any]) -> dict[str, Any]:
    """Return what an export was made from, and what was ``written``."""
    from importlib.metadata import version

    adapter = (tuned.adapter_folder / "adapter_model.safetensors").read_bytes()
    return {
        "weitune": version("weitune"),
        "format": order.format,
        **written,
        "run": tuned.name,
        "adapter": tuned.adapter_folder.name,
        "adapter_sha256": hashlib.sha256(adapter).hexdigest(),
        "base_model": tuned.recipe.model,
        "revision": tuned.recipe.revision,
        "system": tuned.recipe.system,
        "stop_tokens": list(tuned.stop_tokens),
    }
