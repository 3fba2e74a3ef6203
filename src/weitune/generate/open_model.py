"""Open the model of a run for generation: the base, or the base with an adapter merged into its weights.

Merging takes one pass over the adapted layers, and every token then costs what it costs with the base. It changes the
weights, so the base is loaded again if it is asked for too: exact, at the price of a second model in memory.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file
from torch import nn

from weitune.errors import RunError
from weitune.generate.engine import Engine
from weitune.model.file_names import ADAPTER_FILES, MODEL_FILES, holds_model
from weitune.model.load.locate import ModelFiles, locate_base
from weitune.model.load.names import ModelNames, model_names
from weitune.model.load.tokenizer import open_framing
from weitune.model.load.weight_files import read_safetensors_header
from weitune.model.load.weights import load_weights
from weitune.model.lora.adapter_config import check_adapter
from weitune.model.lora.merge import merge_plain
from weitune.model.lora.trainable_state import WholeModel
from weitune.model.lora.wrapped_adapter import adapter_in_text
from weitune.model.storage.weight_storage import is_quantized
from weitune.recipe.schema import QUANTIZED

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from weitune.data.frame.framing import Framing
    from weitune.recipe.schema import Recipe


def load_engine(
    recipe: Recipe, adapter: Path | None, *, files: ModelFiles | None = None, device: str | None = None
) -> Engine:
    """Load the recipe's model, merge the adapter in folder ``adapter`` (None: leave the base as it is), and frame it.

    ``files`` are those of the model, if they have been found already. Raises ModelError if the model cannot be loaded,
    RunError if the adapter does not fit it.
    """
    storage = recipe.train.storage if recipe.train.storage in QUANTIZED else "auto"
    files = files or locate_base(recipe)
    tokenizer, framing = open_framing(files, recipe.tokens)
    loaded = load_weights(files, tokenizer, precision=recipe.train.precision, storage=storage, device=device)
    model = loaded.model if adapter is None else merge_adapter(loaded.model, adapter, model_names(files))
    check_vocabulary(framing, files, model.get_input_embeddings().weight.shape[0])
    return Engine(model, tokenizer, framing, fixed=True)


def check_vocabulary(framing: Framing, files: ModelFiles, rows: int) -> None:
    """Raise RunError if a token that frames dialogues is not among the ``rows`` of the model's embedding."""
    outside = sorted(token for token in {*framing.control_ids, *framing.stop_tokens} if token >= rows)
    if outside and files.adapter is not None:
        raise RunError(
            "generate.open_model.tokens_outside_vocabulary",
            count=len(outside),
            first=outside[0],
            rows=rows,
            files=files,
        )


def merge_adapter(model: PreTrainedModel, folder: Path, names: ModelNames | None = None) -> PreTrainedModel:
    """Add the adapter in ``folder`` to the weights of ``model`` and return it as a plain model.

    The weights of a whole model in ``folder`` take the place of those of ``model``. ``names`` are the model's. Raises
    RunError if the adapter lacks weights that its configuration announces, or does not fit the model.
    """
    if holds_model(folder):
        return _whole(model, folder)
    quantized = any(is_quantized(module) for module in model.modules())
    if not quantized:
        with adapter_in_text(folder, names) as read:
            if merge_plain(model, read):
                return model
    tuned: Any = attach_saved_adapter(model, folder, names)
    if quantized:
        _merge_experts(tuned)
        beside: PreTrainedModel = tuned  # a sum would be rounded again
        return beside
    _untie_adapted(tuned)
    merged: PreTrainedModel = tuned.merge_and_unload()
    return merged


def _untie_adapted(tuned: PeftModel) -> None:
    """Give the output head a weight of its own if it shares one and an adapter is on it or on the input embeddings.

    PEFT adds each adapter to its layer's weight, and would change the other layer, too.
    """
    from peft.tuners.lora import LoraLayer

    model: Any = tuned.get_base_model()
    ends = model.get_input_embeddings(), model.get_output_embeddings()
    inputs, head = (getattr(layer, "base_layer", layer) for layer in ends)
    if head is not None and head.weight is inputs.weight and any(isinstance(layer, LoraLayer) for layer in ends):
        head.weight = nn.Parameter(head.weight.detach().clone(), requires_grad=False)


def _merge_experts(tuned: PeftModel) -> None:
    """Merge the adapters of experts, which quantized storage does not round: they would be merged for every token."""
    from peft.tuners.lora.layer import ParamWrapper

    for module in tuned.modules():
        if isinstance(module, ParamWrapper):
            module.merge()


def attach_saved_adapter(model: PreTrainedModel, folder: Path, names: ModelNames | None = None) -> PeftModel:
    """Return ``model`` with the adapter in ``folder`` beside its weights; ``names`` are the model's.

    Raises RunError if the adapter lacks weights that its configuration announces, has others that the model has no
    place for, or if this PEFT does not know a part of its configuration.
    """
    from peft import PeftModel

    check_adapter(folder)
    try:
        with incomplete_refused(folder), adapter_in_text(folder, names) as read:
            tuned: PeftModel = PeftModel.from_pretrained(model, str(read), low_cpu_mem_usage=False)
            _check_all_used(tuned, read, folder)
    except RunError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise RunError(
            "generate.open_model.adapter_does_not_fit", folder=folder, reason=" ".join(reason[:3])
        ) from error
    return tuned


@contextmanager
def incomplete_refused(folder: Path) -> Iterator[None]:
    """Raise RunError if PEFT warns in the block that tensors are missing in ``folder``, which it does not refuse."""
    with warnings.catch_warnings(record=True) as complaints:
        warnings.simplefilter("always")
        yield
    missing = [str(each.message) for each in complaints if "missing adapter keys" in str(each.message)]
    if missing:
        raise incomplete(folder, missing[0].splitlines()[0][:300])


def incomplete(folder: Path, why: str) -> RunError:
    """Return the error of an adapter that lacks tensors."""
    return RunError("generate.open_model.adapter_incomplete", folder=folder, why=why)


def _check_all_used(tuned: PeftModel, read: Path, folder: Path) -> None:
    """Raise RunError if PEFT ignored tensors of the adapter that it ``read`` because the model has no place for them.

    ``folder`` is what people know the adapter by.
    """
    from peft import get_peft_model_state_dict

    if tuned.peft_config["default"].target_parameters:  # PEFT may have converted what older versions wrote
        return
    known = {*get_peft_model_state_dict(tuned, save_embedding_layers=False), *tuned.state_dict()}
    names = {
        name: name.replace("lora_magnitude_vector.weight", "lora_magnitude_vector")
        for name in read_safetensors_header(read / ADAPTER_FILES[1])
    }
    unknown = [name for name, now in names.items() if name not in known and now not in known]
    if unknown:
        raise RunError("generate.open_model.unknown_tensors", folder=folder, count=len(unknown), first=unknown[0])


def _whole(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    whole = WholeModel(model)
    tensors = whole.completed(load_file(folder / MODEL_FILES[1]))
    if {name: tensor.shape for name, tensor in tensors.items()} != whole.shapes():
        raise RunError("generate.open_model.another_model", folder=folder)
    whole.load(tensors)
    return model
