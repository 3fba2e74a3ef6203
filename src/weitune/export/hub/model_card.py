"""The model card of an adapter, written from what its run recorded: no claim is in it that the run does not hold.

Paths of the machine that trained are left out: files are named without their folders.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from weitune.evaluate.evaluation import Evaluation, read_evaluation
from weitune.evaluate.figures import figures
from weitune.export.source.export_source import ExportSource
from weitune.files.json_files import json_object
from weitune.generate.run import Run
from weitune.model.file_names import ADAPTER_FILES
from weitune.model.load.locate import is_hub_id
from weitune.recipe.load import dump_recipe
from weitune.recipe.schema import Recipe
from weitune.run.data_record import DataRecord, read_data_record
from weitune.run.names import ENVIRONMENT, checkpoint_step


def without_paths(recipe: Recipe) -> Recipe:
    """Return ``recipe`` with files named, and their folders left out."""
    named: dict[str, Any] = {"data": [_file_name(name) for name in recipe.data], "output": None}
    if recipe.weights:
        named["weights"] = {_file_name(name): weight for name, weight in recipe.weights.items()}
    if isinstance(recipe.encoding, dict):
        named["encoding"] = {_file_name(name): codec for name, codec in recipe.encoding.items()}
    if not is_hub_id(recipe.model):
        named["model"] = _file_name(recipe.model)
    return recipe.model_copy(update=named)


def model_card(run: Run, source: ExportSource, repository: str, licence: str | None) -> str:
    """Return the card as Markdown with its YAML head. ``repository`` is where the adapter will lie."""
    recipe = without_paths(source.recipe)
    base = source.recipe.model if is_hub_id(source.recipe.model) else None
    head: dict[str, Any] = {
        **({"base_model": base, "base_model_relation": "adapter"} if base else {}),
        **({"license": licence} if licence else {}),
        "library_name": "peft",
        "pipeline_tag": "text-generation",
        "tags": ["lora", "weitune"],
    }
    events = list(run.events())
    step = _step_of(source.adapter_folder, events)
    parts = [
        f"---\n{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---",
        f"# {repository.rsplit('/', maxsplit=1)[-1]}",
        f"A LoRA adapter (rank {_rank(source)}) of `{recipe.model}`, trained with weitune.",
        _system(source.recipe),
        _usage(source, repository, base or recipe.model),
        _data(read_data_record(run.path)),
        _training(events, source, step, json_object(run.path / ENVIRONMENT)),
        _evaluation(read_evaluation(run.path), step),
        f"## Recipe\n\n```yaml\n{dump_recipe(recipe).rstrip()}\n```",
        _licence(licence, recipe.model),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _rank(source: ExportSource) -> int:
    config = json_object(source.adapter_folder / ADAPTER_FILES[0])
    return int(config["r"])


def _system(recipe: Recipe) -> str:
    if recipe.system is None:
        return ""
    quoted = "\n".join(f"> {line}" for line in recipe.system.splitlines())
    return f"It was trained with this system prompt, and answers best with it:\n\n{quoted}"


def _usage(source: ExportSource, repository: str, base: str) -> str:
    system = [{"role": "system", "content": source.recipe.system}] if source.recipe.system is not None else []
    messages = json.dumps([*system, {"role": "user", "content": "…"}], ensure_ascii=False)
    arguments = "".join(f", {name}={value!r}" for name, value in (source.recipe.tokens.template_args or {}).items())
    return f"""## How to use

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({base!r})
model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained({base!r}, dtype="auto"), {repository!r})
messages = {messages}
prompt = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"{arguments}
)
answer = model.generate(**prompt, max_new_tokens=512, do_sample=False, eos_token_id={list(source.stop_tokens)})
print(tokenizer.decode(answer[0, prompt["input_ids"].shape[1]:], skip_special_tokens=True))
```

`chat_template.jinja` has the framing of training with its system prompt as the default, for programs that take a
template (`vllm serve … --chat-template chat_template.jinja`). vLLM answers greedily, as above, with
`--generation-config vllm --override-generation-config '{{"temperature": 0}}'`."""


def _data(data: DataRecord | None) -> str:
    """Return what was read, trained and set aside."""
    if data is None:
        return ""
    report = data.report
    rows, lengths, duplicates = report.rows, report.lengths, report.findings.exact_duplicates
    lines = ["## Data", "", "| source | format | rows |", "| --- | --- | --- |"]
    lines += [f"| {_file_name(source.name)} | {source.format or ''} | {source.rows:,} |" for source in report.sources]
    aside = "".join(f", {count:,} set aside ({reason})" for reason, count in rows.set_aside.items())
    lines += ["", f"{rows.read:,} rows were read and {rows.trained:,} trained{aside}."]
    if lengths.all:
        lines.append(f"They have {lengths.all:,} tokens, of which {lengths.supervised:,} were learned.")
    if duplicates:
        lines.append(f"{duplicates:,} rows repeat an earlier one.")
    return "\n".join(lines)


def _training(
    events: Sequence[Mapping[str, Any]], source: ExportSource, step: int | None, environment: Mapping[str, Any] | None
) -> str:
    """Tell what the run measured: training loss, validation, and what it ran on."""
    steps = [event for event in events if event.get("event") == "step"]
    lines = ["## Training", ""]
    if steps:
        tokens = sum(event.get("tokens", 0) for event in steps)
        lines.append(
            f"{steps[-1]['step']:,} optimizer steps over {tokens:,} tokens; the loss of a step went from "
            f"{steps[0]['loss']:.3f} to {steps[-1]['loss']:.3f}. This adapter is `{source.adapter_folder.name}`."
        )
    judged = [event for event in events if event.get("event") == "validation" and event["loss"] is not None]
    losses = {event["step"]: event["loss"] for event in judged}
    if step in losses:
        of_base = f"; that of the base was {losses[0]:.4f}" if 0 in losses else ""
        lines.append(f"Its loss on the validation data is {losses[step]:.4f}{of_base}.")
    if environment:
        packages = environment.get("packages", {})
        versions = ", ".join(f"{name} {packages[name]}" for name in ("weitune", "torch", "peft") if packages.get(name))
        lines.append(f"Trained in {environment.get('precision', 'an unknown precision')}, with {versions}.")
    return "\n".join(lines) if len(lines) > 2 else ""


def _evaluation(evaluation: Evaluation | None, step: int | None) -> str:
    """Return what `weitune eval` measured of this adapter, beside its base if that was judged too."""
    if evaluation is None:
        return ""
    shown = [m for m in evaluation.models if m.which == "base" or (step is not None and m.step == step)]
    if all(model.which == "base" for model in shown):
        return ""
    rows = evaluation.rows
    lines = [
        "## Evaluation",
        "",
        f"`weitune eval` on {_file_name(rows.name)}: {rows.examples} examples, {rows.questions} questions.",
        "",
        f"| | {' | '.join('base' if model.which == 'base' else 'this adapter' for model in shown)} |",
        f"| --- {'| ---: ' * len(shown)}|",
        *(f"| {' | '.join(row)} |" for row in figures(shown)),
    ]
    return "\n".join(lines)


def _step_of(adapter: Path, events: Sequence[Mapping[str, Any]]) -> int | None:
    """Return the step that an adapter was saved at; that of the final one stands in the event that ended the run."""
    if (step := checkpoint_step(adapter.name)) is not None:
        return step
    ends = [event for event in events if event.get("event") == "end"]
    return ends[-1].get("adapter_step") if ends else None


def _licence(licence: str | None, base: str) -> str:
    told = f"its licence is `{licence}`" if licence else "see there for its licence"
    return f"## Licence\n\nThe adapter is made for `{base}` and of no use without it; {told}."


def _file_name(name: str) -> str:
    """Leave out folders, but not the names of hubs and built-in data."""
    is_path = name.startswith((".", "/", "~")) or "\\" in name or Path(name).suffix != "" or Path(name).exists()
    return Path(name.replace("\\", "/")).name if is_path and not name.startswith("builtin:") else name
