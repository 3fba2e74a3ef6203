"""The model card of an adapter, written only from the records of its run.

Paths of the machine that trained are left out: files are named without their folders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from weitune.data.read.source import BUILTIN
from weitune.data.read.sources import is_on_hub
from weitune.evaluate.evaluation import Evaluation, read_evaluation
from weitune.evaluate.figures import figures
from weitune.export.source.export_source import ExportSource
from weitune.files.json_files import json_object
from weitune.generate.run import Run
from weitune.messages import say
from weitune.messages.translate import translated
from weitune.model.load.locate import is_hub_id
from weitune.model.lora.adapter_config import read_adapter_config
from weitune.recipe.load import dump_recipe
from weitune.recipe.schema import Recipe
from weitune.run.data_record import DataRecord, read_data_record
from weitune.run.events import Event, Step, Validation
from weitune.run.names import ENVIRONMENT


def without_paths(recipe: Recipe) -> Recipe:
    """Return ``recipe`` with the names of files, without their folders."""
    named: dict[str, Any] = {"data": [_file_name(name) for name in recipe.data], "output": None}
    if recipe.weights:
        named["weights"] = {_file_name(name): weight for name, weight in recipe.weights.items()}
    if isinstance(recipe.encoding, dict):
        named["encoding"] = {_file_name(name): codec for name, codec in recipe.encoding.items()}
    if not is_hub_id(recipe.model):
        named["model"] = _file_name(recipe.model)
    if recipe.validation_files:
        named["validation"] = [_file_name(name) for name in recipe.validation_files]
    if recipe.train.sample_schema is not None:
        named["train"] = recipe.train.model_copy(update={"sample_schema": _file_name(recipe.train.sample_schema)})
    if (keep := recipe.keep) is not None:
        data = keep.data and [_file_name(name) for name in keep.data]
        named["keep"] = keep.model_copy(update={"data": data, "run": keep.run and Path(keep.run).name})
    if recipe.adapter is not None and recipe.adapter.init_from:
        named["lora"] = recipe.adapter.model_copy(update={"init_from": Path(recipe.adapter.init_from).name})
    return recipe.model_copy(update=named)


def model_card(run: Run, source: ExportSource, repository: str, licence: str | None) -> str:
    """Return the card as Markdown with its YAML head. ``repository`` is the adapter's future id on the hub."""
    recipe, preference = without_paths(source.recipe), source.recipe.preference
    base = source.recipe.model if is_hub_id(source.recipe.model) else None
    head: dict[str, Any] = {
        **({"base_model": base, "base_model_relation": "adapter"} if base else {}),
        **({"license": licence} if licence else {}),
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lora", *([preference.method] if preference else []), "weitune"],
    }
    events = list(run.typed_events())
    step = run.step_of(source.adapter_folder)
    rank = read_adapter_config(source.adapter_folder)["r"]
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---",
        f"# {repository.rsplit('/', maxsplit=1)[-1]}",
        say("export.model_card.summary", rank=rank, base=recipe.model),
        *([say("export.model_card.preference", method=preference.method)] if preference else []),
        *_system(source.recipe),
        *_usage(source, repository, base or recipe.model),
        *_data(read_data_record(run.path)),
        *_training(events, source, step, json_object(run.path / ENVIRONMENT)),
        *_evaluation(read_evaluation(run.path), step),
        _heading("export.model_card.recipe"),
        f"```yaml\n{dump_recipe(recipe).rstrip()}\n```",
        _heading("export.model_card.licence"),
        say("export.model_card.licence_is", base=recipe.model, licence=licence)
        if licence
        else say("export.model_card.licence_unknown", base=recipe.model),
    ]
    return "\n\n".join(parts) + "\n"


def _heading(message_id: str) -> str:
    return f"## {say(message_id)}"


def _system(recipe: Recipe) -> list[str]:
    if recipe.system is None:
        return []
    return [say("export.model_card.system"), "\n".join(f"> {line}" for line in recipe.system.splitlines())]


def _usage(source: ExportSource, repository: str, base: str) -> list[str]:
    code = f"""```python
from pathlib import Path

from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import cached_file

template = Path(cached_file({repository!r}, "chat_template.jinja")).read_text(encoding="utf-8")
tokenizer = AutoTokenizer.from_pretrained({base!r})
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({base!r}, dtype="auto"), {repository!r})
messages = [{{"role": "user", "content": "…"}}]
prompt = tokenizer.apply_chat_template(
    messages, chat_template=template, add_generation_prompt=True, return_dict=True, return_tensors="pt"
)
answer = model.generate(**prompt, max_new_tokens=512, do_sample=False, eos_token_id={list(source.stop_tokens)})
print(tokenizer.decode(answer[0, prompt["input_ids"].shape[1]:], skip_special_tokens=True))
```"""
    return [_heading("export.model_card.usage"), code, say("export.model_card.other_programs")]


def _data(data: DataRecord | None) -> list[str]:
    if data is None:
        return []
    report = data.report
    rows, lengths, duplicates = report.rows, report.lengths, report.findings.exact_duplicates
    heads = (say("export.model_card.source"), say("export.model_card.format"), say("export.model_card.rows"))
    table = [
        f"| {' | '.join(heads)} |",
        "| --- | --- | --- |",
        *(f"| {_file_name(source.name)} | {source.format or ''} | {source.rows:,} |" for source in report.sources),
    ]
    counts = [say("export.model_card.rows_read", read=rows.read, trained=rows.trained)]
    counts += [
        say("export.model_card.rows_set_aside", rows=number, reason=translated(reason, "data"))
        for reason, number in rows.set_aside.items()
    ]
    if lengths.all:
        counts.append(say("export.model_card.tokens", all=lengths.all, learned=lengths.supervised))
    if (kept := data.kept) is not None:
        counts.append(say("export.model_card.kept", examples=kept.examples, share=kept.share, target=kept.target))
    if duplicates:
        counts.append(say("export.model_card.duplicates", rows=duplicates))
    return [_heading("export.model_card.data"), "\n".join(table), "\n".join(counts)]


def _training(
    events: Sequence[Event], source: ExportSource, step: int | None, environment: Mapping[str, Any]
) -> list[str]:
    steps = [event for event in events if isinstance(event, Step) and None not in {event.step, event.loss}]
    lines = []
    if steps:
        losses_of_steps = {"first_loss": steps[0].loss, "last_loss": steps[-1].loss}
        counts = {"steps": steps[-1].step, "tokens": sum(event.tokens or 0 for event in steps)}
        adapter = source.adapter_folder.name
        lines.append(say("export.model_card.steps", adapter=adapter, **counts, **losses_of_steps))
    validations = [event for event in events if isinstance(event, Validation) and event.loss is not None]
    losses = {event.step: event.loss for event in validations if event.step is not None}
    if step in losses and 0 in losses:
        lines.append(say("export.model_card.validation_and_base", loss=losses[step], base_loss=losses[0]))
    elif step in losses:
        lines.append(say("export.model_card.validation", loss=losses[step]))
    if environment:
        packages = environment.get("packages", {})
        versions = ", ".join(f"{name} {packages[name]}" for name in ("weitune", "torch", "peft") if packages.get(name))
        precision = environment.get("precision") or say("export.model_card.unknown_precision")
        lines.append(say("export.model_card.trained_in", precision=precision, versions=versions))
    return [_heading("export.model_card.training"), "\n".join(lines)] if lines else []


def _evaluation(evaluation: Evaluation | None, step: int | None) -> list[str]:
    if evaluation is None:
        return []
    shown = [m for m in evaluation.models if m.which == "base" or (step is not None and m.step == step)]
    if all(model.which == "base" for model in shown):
        return []
    rows = evaluation.rows
    name = _file_name(rows.name)
    base, adapter = say("export.model_card.base"), say("export.model_card.this_adapter")
    table = [
        f"| | {' | '.join(base if model.which == 'base' else adapter for model in shown)} |",
        f"| --- {'| ---: ' * len(shown)}|",
        *(f"| {' | '.join(row)} |" for row in figures(shown)),
    ]
    return [
        _heading("export.model_card.evaluation"),
        say("export.model_card.evaluated_on", name=name, examples=rows.examples, questions=rows.questions),
        "\n".join(table),
    ]


def _file_name(name: str) -> str:
    """Return ``name`` without folders; the names of data on hubs and of built-in data stay as they are."""
    stays = name.startswith(BUILTIN) or is_on_hub(name)
    return name if stays else Path(name.replace("\\", "/")).name
