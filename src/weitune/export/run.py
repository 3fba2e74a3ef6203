"""Export a run to a folder: write it aside, open it again, verify it, publish it.

An export that fails its verification is kept as ``NAME.failed``, not under the name that the user gave.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from weitune.errors import InputError
from weitune.export import destination
from weitune.export.fit import Fitted, fitted
from weitune.export.formats.gguf_file import check_gguf, write_gguf
from weitune.export.formats.merged import write_merged
from weitune.export.formats.ollama import TurnFrames, modelfile, turn_frames
from weitune.export.formats.ollama_tools import ToolFrames, tool_frames
from weitune.export.formats.written import written_formats
from weitune.export.options import ExportOptions, gguf_name
from weitune.export.source.export_source import ExportSource, open_export_source
from weitune.export.verify.compare import Verdict, VerificationError
from weitune.export.verify.verification import verify
from weitune.files.json_files import write_json
from weitune.files.publish import publish
from weitune.generate.run import Run
from weitune.gguf.quantize import require_quantizer
from weitune.gguf.types import MIXTURES
from weitune.messages import say
from weitune.model.file_names import ADAPTER_FILES
from weitune.progress import Stage, enter_phase
from weitune.run.run_folder import Which

VERIFICATION = "verification.json"


class Modelfile(NamedTuple):
    """A Modelfile, and whether its template has the tools of a dialogue."""

    text: str
    has_tools: bool


@dataclass(frozen=True, slots=True)
class Exported:
    """A finished export."""

    folder: Path
    verdict: Verdict | None
    notes: tuple[str, ...] = ()
    """What the user should know about how the files were made."""


def export(
    run: Run,
    folder: Path,
    options: ExportOptions,
    *,
    checkpoint: Which = "last",
    force: bool = False,
    stage: Stage = lambda title: lambda done, total: None,
) -> Exported:
    """Export ``run`` to ``folder`` with ``options``.

    Raises InputError if that is not possible, and VerificationError if the result differs from base + adapter.
    """
    destination.check_destination(folder, force)
    if options.prompts and options.format != "merged":
        from weitune.generate.llama_cpp import require_llama_cpp

        require_llama_cpp()
    source = open_export_source(run, checkpoint)
    if options.format != "gguf-adapter":
        check_system(source)
    with destination.written_aside(folder) as partial:
        written = _write(partial, source, options, stage)
        write_json(partial / destination.MARK, _described(source, options, written))
        verdict = verify(partial, source, options, stage) if options.prompts else None
        if verdict is not None:
            write_json(partial / VERIFICATION, verdict.to_json())
            if not verdict.passed:
                kept = destination.free_for_failed(folder)
                publish(partial, kept)
                raise VerificationError(verdict, str(kept))
    return Exported(folder, verdict, tuple(written.get("notes", ())))


def check_system(source: ExportSource) -> None:
    """Raise InputError if the system prompt has the text of a control token, which a template cannot keep as text."""
    tokens = map(str, source.tokenizer.convert_ids_to_tokens(sorted(source.framing.control_ids)))
    token = next((token for token in tokens if token in (source.recipe.system or "")), None)
    if token is not None:
        raise InputError("export.run.control_token_in_system_prompt", token=token)


def _write(folder: Path, source: ExportSource, options: ExportOptions, stage: Stage) -> dict[str, Any]:
    """Write the export; return the fields that weitune.json has for a GGUF file of the merged model."""
    enter_phase("writing")
    title = say("export.run.writing", format=options.format)
    if options.format == "merged":
        write_merged(folder, source, options.dtype, stage(title))
        return {}
    if options.format == "gguf-adapter":
        from weitune.export.formats.gguf_adapter import write_gguf_adapter

        write_gguf_adapter(folder / gguf_name(source, options), source, stage(title))
        return {}
    name = gguf_name(source, options)
    if options.gguf_type in MIXTURES:
        require_quantizer()
    check_gguf(source)  # refused before long work
    written = modelfile_of(source, name) if options.format == "ollama" else None
    if options.smooth or options.gguf_type in MIXTURES:
        model = fitted(source, options.gguf_type, stage, smooth=options.smooth)
    else:
        model = Fitted(source.merged)
    write_gguf(
        folder / name,
        source,
        model.weights,
        options.gguf_type,
        head=model.head,
        importance=model.importance,
        template=source.template,
        progress=stage(title),
    )
    about = {"type": options.gguf_type, "smoothed": model.smoothed, "weighed": bool(model.importance)}
    if written is not None:
        (folder / "Modelfile").write_bytes(written.text.encode())  # in bytes, which keeps line ends of any kind
        about["tools"] = written.has_tools
    measured_on = "smoothed_on" if model.smoothed else "weighed_on" if model.importance else "notes"
    return {**about, "formats": written_formats(folder / name), **({measured_on: model.notes} if model.notes else {})}


def modelfile_of(source: ExportSource, name: str) -> Modelfile:
    """Return the Modelfile beside the GGUF file ``name``. Raises ModelError if Ollama could not frame as ``source``."""
    stops = [str(source.tokenizer.convert_ids_to_tokens(token)) for token in source.stop_tokens]
    context = min(source.config.get_text_config().max_position_embeddings, 4096)
    frames = _frames(source)
    return Modelfile(modelfile(name, frames, stops, context), isinstance(frames, ToolFrames))


def _frames(source: ExportSource) -> TurnFrames | ToolFrames:
    """Return the text around each role's turns, and around tools if the chat template has them."""
    tokenizer, template, system = source.tokenizer, source.template_without_system, source.recipe.system

    def render(messages: Sequence[Any], tools: Sequence[Any], ask: bool) -> str:
        return str(
            tokenizer.apply_chat_template(
                list(messages), list(tools) or None, chat_template=template, tokenize=False, add_generation_prompt=ask
            )
        )

    plain, bare = tokenizer.encode("a"), tokenizer.encode("a", add_special_tokens=False)
    automatic = tokenizer.decode(plain[: len(plain) - len(bare)])
    turns = turn_frames(lambda messages, ask: render(messages, [], ask), automatic, system)
    return tool_frames(render, turns, automatic, system) or turns


def _described(source: ExportSource, options: ExportOptions, written: dict[str, Any]) -> dict[str, Any]:
    """Return the contents of weitune.json: what an export was made from, and what was ``written``."""
    from importlib.metadata import version

    adapter = (source.adapter_folder / ADAPTER_FILES[1]).read_bytes()
    return {
        "weitune": version("weitune"),
        "format": options.format,
        **written,
        "run": source.name,
        "adapter": source.adapter_folder.name,
        "adapter_sha256": hashlib.sha256(adapter).hexdigest(),
        "base_model": source.recipe.model,
        "revision": source.recipe.revision,
        "system": source.recipe.system,
        "stop_tokens": list(source.stop_tokens),
    }
