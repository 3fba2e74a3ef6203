"""Open the model of a run for generation: the base, or the base with an adapter merged into its weights.

Merging takes one pass over the adapted layers and makes every token as cheap as the base's. It changes the weights, so
the base is a copy of its own: exact, at the price of a second model in memory once both are asked for.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file

from weitune.data.render import framing_for
from weitune.errors import RunError
from weitune.generate.engine import Engine
from weitune.model.load import load_model
from weitune.model.saved import MODEL_FILES, holds_model
from weitune.model.stored import is_quantized
from weitune.model.trained import load_weights_into
from weitune.recipe.schema import QUANTIZED

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from weitune.recipe.schema import Recipe


def load_engine(recipe: Recipe, adapter: Path | None, *, device: str | None = None) -> Engine:
    """Load the recipe's model, merge the adapter in folder ``adapter`` (None: leave the base as it is), and frame it.

    Raises ModelError if the model cannot be loaded, RunError if the adapter does not fit it.
    """
    storage = recipe.train.storage if recipe.train.storage in QUANTIZED else "auto"
    loaded = load_model(
        recipe.model,
        precision=recipe.train.precision,
        storage=storage,
        hub=recipe.hub,
        revision=recipe.revision,
        device=device,
    )
    model = loaded.model if adapter is None else merge_adapter(loaded.model, adapter)
    return Engine(model, loaded.tokenizer, framing_for(loaded.tokenizer, recipe.tokens))


def merge_adapter(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Add the adapter in ``folder`` to the weights of ``model`` and return it as a plain model.

    The weights of a whole model in ``folder`` take the place of those of ``model``. Raises RunError if the adapter
    lacks weights that its configuration announces, or does not fit the model.
    """
    from peft import PeftModel

    if holds_model(folder):
        return _whole(model, folder)
    try:
        with warnings.catch_warnings(record=True) as complaints:
            warnings.simplefilter("always")
            tuned: Any = PeftModel.from_pretrained(model, str(folder), low_cpu_mem_usage=False)
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise RunError(
            f"the adapter in '{folder}' does not fit the run's model: {' '.join(reason[:3])}",
            "Check that the recipe's `model` is the one it was trained on, and that the files are whole.",
        ) from error
    missing = [str(each.message) for each in complaints if "missing adapter keys" in str(each.message)]
    if missing:
        raise RunError(
            f"the adapter in '{folder}' is incomplete: {missing[0].splitlines()[0][:300]}",
            "Use another checkpoint of the run, or train it again.",
        )
    if any(is_quantized(module) for module in model.modules()):
        quantized: PreTrainedModel = tuned  # a sum would be rounded again
        return quantized
    merged: PreTrainedModel = tuned.merge_and_unload()
    return merged


def _whole(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """Put the weights in ``folder`` into ``model``."""
    tensors = load_file(folder / MODEL_FILES[1])
    shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
    if {name: tensor.shape for name, tensor in tensors.items()} != shapes:
        raise RunError(f"the model in '{folder}' is not a tuned form of the run's model", "Check the recipe's `model`.")
    load_weights_into(model, tensors)
    return model
