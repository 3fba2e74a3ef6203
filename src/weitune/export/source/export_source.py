"""A run opened for export: its adapter, its base's files, its tokenizer and framing. The base is not loaded."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from weitune.data.conversation import Conversation
from weitune.data.frame.choose import framing_for
from weitune.data.frame.framing import Framing
from weitune.data.prepare.recipe_reader import read_options
from weitune.data.read.conversations import Reader, read_conversations
from weitune.errors import RunError
from weitune.evaluate.general import GeneralQuestion, general_questions
from weitune.export.source.adapter_weights import AdapterWeights, why_not_mergeable
from weitune.export.source.base_weights import MergedWeights, Weights, open_weights
from weitune.export.source.chat_template import self_contained_template
from weitune.export.source.layout import Layout, layout_of
from weitune.generate.open_model import check_vocabulary
from weitune.generate.run import Run
from weitune.model.load.config import read_config, read_whole_config, stored_stop_tokens
from weitune.model.load.fingerprint import base_fingerprints
from weitune.model.load.locate import ModelFiles
from weitune.model.load.names import model_names
from weitune.model.load.tokenizer import open_framing
from weitune.recipe.schema import Recipe, Tokens
from weitune.run.run_folder import Which

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_QUESTIONS = 25
"""General questions of each language that stand for the data of an adapter made elsewhere."""


@dataclass(frozen=True)
class ExportSource:
    """A run to export: recipe, adapter, base, tokenizer and framing."""

    name: str
    recipe: Recipe
    adapter_folder: Path
    files: ModelFiles
    tokenizer: PreTrainedTokenizerFast
    framing: Framing
    made_elsewhere: bool = False
    """Whether another program made the adapter, so that its data are not known."""

    def dialogues(self) -> Iterable[Conversation]:
        """Yield the run's data as conversations; for an adapter made elsewhere, the general check questions.

        Raises InputError if the data cannot be read.
        """
        if self.made_elsewhere:
            return (question.answered for question in questions_in_place_of_data())
        return read_conversations(Reader(self.recipe.data, read_options(self.recipe)))

    @cached_property
    def adapter(self) -> AdapterWeights:
        return AdapterWeights(self.adapter_folder, model_names(self.files))

    @cached_property
    def base(self) -> Weights:
        return open_weights(self.files)

    @cached_property
    def merged(self) -> MergedWeights:
        return MergedWeights(self.base, self.adapter, self.layout)

    @cached_property
    def layout(self) -> Layout:
        return layout_of(self.files, self.base.slots)

    @cached_property
    def head_is_tied(self) -> bool:
        """Whether the output head is the matrix of the input embeddings.

        Some configurations say so of files that have two, such as that of Mistral Small 3.1.
        """
        if not self.config.tie_word_embeddings:
            return False
        files = {parameter: file for file, place in self.layout.places.items() for parameter in place.parameters}
        ends = [files[name] for name in ("lm_head.weight", "model.embed_tokens.weight") if name in files]
        return len(ends) < 2 or torch.equal(*(self.base.read(name, torch.float32) for name in ends))

    @cached_property
    def config(self) -> Any:
        """The configuration of the base's text model."""
        return read_config(self.files)

    @cached_property
    def whole_config(self) -> Any:
        """The configuration in the base's files, with a vision or audio tower if it has one."""
        return read_whole_config(self.files)

    @cached_property
    def base_stop_tokens(self) -> tuple[int, ...]:
        return stored_stop_tokens(self.files, self.config)

    @property
    def stop_tokens(self) -> tuple[int, ...]:
        """Every token at which an answer ends, the framing's end of turn first; the same as in ``weitune chat``."""
        return tuple(dict.fromkeys([*self.framing.stop_tokens, *self.base_stop_tokens]))

    @property
    def template(self) -> str:
        return self._template(self.recipe.system)

    @property
    def template_without_system(self) -> str:
        return self._template(None)

    def _template(self, system: str | None) -> str:
        return self_contained_template(self.framing, system, self._token_text(self.framing.end_of_turn))

    def _token_text(self, token: int) -> str:
        return str(self.tokenizer.convert_ids_to_tokens(token))

    @cached_property
    def base_framing(self) -> Framing:
        """The framing by the base's own chat template, with the run's template arguments."""
        tokens = Tokens(template_args=self.recipe.tokens.template_args)
        if self.files.adapter is None:
            return framing_for(self.tokenizer, tokens)
        return open_framing(replace(self.files, adapter=None), tokens).framing

    @property
    def base_template(self) -> str:
        """:attr:`base_framing` as a chat template that needs no arguments."""
        return self_contained_template(self.base_framing, None, self._token_text(self.base_framing.end_of_turn))

    def with_system(self, conversation: Conversation) -> Conversation:
        """Return ``conversation`` as training saw it: with the run's system prompt if it has none of its own."""
        return conversation.with_system(self.recipe.system, replace_blank=True)


def questions_in_place_of_data() -> list[GeneralQuestion]:
    """Return the questions that stand for the data of an adapter made elsewhere."""
    return general_questions(per_language=_QUESTIONS)


def open_export_source(run: Run, which: Which = "last") -> ExportSource:
    """Open ``run`` with one of its adapters.

    Raises RunError or ModelError if a part is missing or broken, or if the base is not the one of training.
    """
    folder = run.adapter_folder(which)
    assert folder is not None  # noqa: S101  (callers never ask for the base)
    recipe = run.recipe
    _check_init(recipe, run.path)
    files = run.base_files()
    tokenizer, framing = open_framing(files, recipe.tokens)
    if run.made_elsewhere:
        check_vocabulary(framing, files, read_config(files).get_text_config().vocab_size)
    return ExportSource(run.name, recipe, folder, files, tokenizer, framing, run.made_elsewhere)


def check_mergeable(recipe: Recipe, run: object) -> None:
    """Raise RunError if what a ``run`` of ``recipe`` trains cannot be added to its base's weights."""
    lora = recipe.adapter
    if lora is None:
        raise RunError("export.export_source.trains_whole_model", run=run)
    _check_init(recipe, run)
    options = {"modules_to_save": lora.modules_to_save, "trainable_token_indices": lora.train_tokens}
    if reasons := why_not_mergeable({"peft_type": "LORA", **options}):
        raise RunError("export.export_source.not_mergeable", run=run, reasons="; ".join(reasons))


def _check_init(recipe: Recipe, run: object) -> None:
    if recipe.adapter and recipe.adapter.init == "loftq":
        raise RunError("export.export_source.loftq", path=run)


def open_export_sources(runs: Mapping[str, Run], which: Which = "last") -> dict[str, ExportSource]:
    """Open runs that share a base. Raises RunError if they do not."""
    sources = {name: open_export_source(run, which) for name, run in runs.items()}
    first, *others = sources
    bases = {name: base_fingerprints(replace(source.files, adapter=None)) for name, source in sources.items()}
    for name in others:
        if bases[name] != bases[first]:
            models = {"first_model": sources[first].recipe.model, "second_model": sources[name].recipe.model}
            raise RunError("export.export_source.different_bases", first=first, second=name, **models)
    return sources
