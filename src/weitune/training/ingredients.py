"""What a run is made of before any weights are loaded: model files, tokenizer, framing, prepared data.

Data come before weights, since most mistakes are there and they are found quickly.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from weitune.data.plan import Plan
from weitune.data.prepare import Prepared, prepare
from weitune.data.render import Framing, framing_for
from weitune.errors import DataError, ModelError
from weitune.model.fingerprint import model_fingerprint, tokenizer_fingerprint
from weitune.model.load import LoadedModel, load_tokenizer
from weitune.model.locate import ModelFiles, locate
from weitune.recipe.schema import Recipe
from weitune.training.changes import Basis
from weitune.training.reporter import Reporter

if TYPE_CHECKING:
    from accelerate import Accelerator
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, slots=True)
class Ingredients:
    """All that decides the steps of a run, but for the weights."""

    recipe: Recipe
    files: ModelFiles
    tokenizer: PreTrainedTokenizerFast
    framing: Framing
    prepared: Prepared
    plan: Plan
    basis: Basis
    """What must be the same again when the run goes on (:mod:`.changes`)."""


def gather(recipe: Recipe, reporter: Reporter, accelerator: Accelerator) -> Ingredients:
    """Find the model, prepare the data, and check that both go together. Raises InputError if they do not."""
    files = locate(recipe.model, hub=recipe.hub, revision=recipe.revision)
    tokenizer = load_tokenizer(files)
    framing = framing_for(tokenizer, recipe.tokens)
    for note in framing.notes:
        reporter.say(note)
    with accelerator.main_process_first():
        prepared = prepare(recipe, framing, reporter.preparing())
    for line in prepared.report.lines():
        reporter.say(line)
    _check_end_of_turn(framing, prepared)
    train = recipe.train
    plan = Plan(len(prepared), train.batch_size, train.epochs, train.seed, train.max_steps)
    return Ingredients(recipe, files, tokenizer, framing, prepared, plan, _basis(files, framing, prepared, plan))


def check_stops(loaded: LoadedModel, framing: Framing, reporter: Reporter) -> None:
    """Say so if other programs would not stop where this model learns to stop; weitune itself always does."""
    if framing.end_of_turn >= loaded.model.get_input_embeddings().weight.shape[0]:
        raise ModelError(
            f"the end-of-turn token {framing.end_of_turn} is outside the vocabulary of '{loaded.files.folder}'",
            "The tokenizer belongs to another model.",
        )
    known: Any = loaded.model.generation_config.eos_token_id
    stops = {known} if isinstance(known, int) else set(known or ())
    if not set(framing.stop_tokens) & stops:
        text = loaded.tokenizer.convert_ids_to_tokens(framing.end_of_turn)
        reporter.say(f"the model's generation config does not stop at {text}; weitune does, in chat and in exports")


def _basis(files: ModelFiles, framing: Framing, prepared: Prepared, plan: Plan) -> Basis:
    return {
        "model": model_fingerprint(files),
        "tokenizer": tokenizer_fingerprint(files),
        "framing": {key: value for key, value in framing.describe().items() if key != "tokenizer_sha256"},
        "data": {
            "examples": len(prepared),
            "tokens": int(prepared.lengths.sum()),
            "learned tokens": int(prepared.supervised.sum()),
            "contents": prepared.digest(),
        },
        "plan": {
            "steps in an epoch": plan.steps_per_epoch,
            "first step": hashlib.sha256(str(plan.step(0).tolist()).encode()).hexdigest(),
        },
    }


def _check_end_of_turn(framing: Framing, prepared: Prepared) -> None:
    """Raise DataError unless the examples teach the model to end its turn."""
    looked_at = [prepared[k] for k in range(min(len(prepared), 1000))]
    if not any(e.input_ids[span.stop - 1] == framing.end_of_turn for e in looked_at for span in e.spans):
        raise DataError(
            "no example teaches the model to end its turn: the end-of-turn token is never supervised",
            "Raise tokens.max_length, or use tokens.truncation drop: the answers are cut before they end.",
        )
