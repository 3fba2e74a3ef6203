"""Whether vLLM could serve the adapter of a run that has not been trained, as far as weitune can tell."""

from __future__ import annotations

from weitune.export.support import Future
from weitune.model.load.names import model_names
from weitune.recipe.schema import TAKEN_FROM_BASE
from weitune.serve.vllm.adapter import check_kind, check_layers
from weitune.serve.vllm.command import accepted_rank


def check_vllm(future: Future) -> None:
    """Raise ModelError if vLLM would refuse the adapter or leave out layers, as ``weitune serve`` would."""
    lora, targets = future.source.recipe.adapter, future.targets
    assert lora is not None and targets is not None  # noqa: S101, PT018  (a whole model has been refused before)
    check_kind(dora=lora.dora)
    ranks = [lora.r, *(lora.rank_pattern or {}).values()]
    accepted_rank(max(ranks) * (2 if lora.init in TAKEN_FROM_BASE else 1))
    names = model_names(future.source.files)
    experts = (f"{name.rpartition('.')[0]}.base_layer" for name in targets.experts)
    layers = [names.in_wrapper(name) for name in (*targets.adapted, *experts)]
    check_layers(future.source.name, future.source, layers, layers)
