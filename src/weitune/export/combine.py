"""Combine several adapters into one, with PEFT's own methods.

    linear   the sums of the A and of the B matrices, each scaled by the root of its weight; for adapters of one rank
    cat      all ranks side by side: the exact weighted sum of the updates
    svd      the weighted sum of the updates, truncated to the largest rank
    ties     small entries dropped, signs elected, then summed (Yadav et al., arXiv 2306.01708)
    dare     entries dropped at random and the rest rescaled, then summed (Yu et al., arXiv 2311.03099)

The result is a run folder: the first run's recipe, ``adapter/``, and ``environment.json``, which identifies the base.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from weitune.errors import InputError, RunError, first_line
from weitune.export.destination import written_aside
from weitune.export.options import Method, Mixture
from weitune.files.json_files import json_bytes
from weitune.generate.open_model import incomplete, incomplete_refused
from weitune.generate.run import Run
from weitune.messages import say
from weitune.model.file_names import ADAPTER_FILES, ADAPTER_FOLDER, holds_adapter
from weitune.model.load.fingerprint import base_fingerprints
from weitune.model.load.names import ModelNames, model_names
from weitune.model.load.tokenizer import open_framing
from weitune.model.load.weights import load_weights
from weitune.model.lora.adapter_config import read_adapter_config
from weitune.model.lora.trainable_state import LoraAdapter
from weitune.model.lora.wrapped_adapter import adapter_in_text
from weitune.recipe.load import dump_recipe
from weitune.run.base_check import place_of_base
from weitune.run.names import COMBINED, ENVIRONMENT, RECIPE

_DROPPED = ("use_dora", "modules_to_save", "trainable_token_indices")
"""Options of an adapter with tensors that PEFT's methods leave out."""
_WHERE = ("layers_to_transform", "layers_pattern", "exclude_modules")
"""Options that choose layers; the result has those of the first adapter."""
_ANY_RANKS = ("cat", "svd")
"""Methods for adapters whose layers differ in rank."""
_PEFT_NAMES = {"linear": "linear", "cat": "cat", "svd": "svd", "ties": "ties", "dare": "dare_linear"}


def combine(runs: Sequence[Run], output: Path, mixture: Mixture) -> Run:
    """Combine the adapters of ``runs`` and write the result as a run to ``output``.

    Raises InputError if the runs cannot be combined, if their number is not that of the weights, or if ``output``
    exists.
    """
    weights = list(mixture.weights) or [1 / len(runs)] * len(runs)
    folders = _check(runs, weights, output)
    recipe, files = runs[0].recipe, runs[0].base_files()
    names = model_names(files)
    _check_options(folders, mixture.method, wrapped=names.wrapped)
    tokenizer, framing = open_framing(files, recipe.tokens)
    basis = {**base_fingerprints(files), "framing": framing.basis()}
    loaded = load_weights(files, tokenizer, precision="fp32", device="cpu")
    tensors, config = _combined(loaded.model, names, folders, weights, mixture)
    changes = {"output": str(output), "revision": files.commit or recipe.revision}
    parts = [{"run": str(run.path), "weight": weight} for run, weight in zip(runs, weights, strict=True)]
    combined = {"method": mixture.method, "density": mixture.density, "seed": mixture.seed, "parts": parts}
    contents = {
        RECIPE: dump_recipe(recipe.model_copy(update=changes)).encode(),
        ENVIRONMENT: json_bytes({**place_of_base(recipe), "basis": basis}),
        f"{ADAPTER_FOLDER}/{ADAPTER_FILES[0]}": config,
        f"{ADAPTER_FOLDER}/{ADAPTER_FILES[1]}": save(tensors, metadata={"format": "pt"}),
        COMBINED: json_bytes(combined),
    }
    with written_aside(output) as partial:
        (partial / ADAPTER_FOLDER).mkdir()
        for name, content in contents.items():
            (partial / name).write_bytes(content)
    return Run(output)


def _check(runs: Sequence[Run], weights: Sequence[float], output: Path) -> list[Path]:
    if len(runs) < 2:
        raise InputError("export.combine.too_few_runs")
    if len(weights) != len(runs):
        raise InputError("export.combine.counts_differ", adapters=len(runs), weights=len(weights))
    if output.exists():
        raise InputError("export.combine.output_exists", output=output)
    first, *others = runs
    base = base_fingerprints(first.base_files())
    different = []
    for run in others:
        paths = {"first": first.path, "other": run.path}
        tokens = {"first_tokens": first.recipe.tokens, "other_tokens": run.recipe.tokens}
        if run.recipe.tokens != first.recipe.tokens:
            different.append(say("export.combine.different_tokens", **paths, **tokens))
        models = {"first_model": first.recipe.model, "other_model": run.recipe.model}
        different += [
            say("export.combine.different_fingerprint", name=name, **paths, **models)
            for name, fingerprint in base_fingerprints(run.base_files()).items()
            if fingerprint != base[name]
        ]
    if different:
        raise InputError("export.combine.different_bases", differences="\n  ".join(different))
    folders = [folder for run in runs if (folder := run.adapter_folder("last")) is not None]
    if not all(map(holds_adapter, folders)):
        raise RunError("export.combine.whole_model")
    if named := [folder for folder in folders if read_adapter_config(folder).get("target_parameters")]:
        raise InputError("export.combine.has_parameters", folders=", ".join(map(str, named)))
    return folders


def _check_options(folders: Sequence[Path], method: Method, *, wrapped: bool) -> None:
    """Raise InputError if an adapter has what PEFT's methods would drop or combine wrongly.

    Adapters of a ``wrapped`` text model are read with the full names of their layers, which PEFT unites.
    """
    configs = [read_adapter_config(folder) for folder in folders]
    for folder, config in zip(folders, configs, strict=True):
        if dropped := [name for name in _DROPPED if config.get(name)]:
            raise InputError("export.combine.has_options", folder=folder, options=", ".join(dropped))
        if config.get("rank_pattern") and method not in _ANY_RANKS:
            raise InputError("export.combine.has_ranks", folder=folder, method=method)
        if not wrapped and any(_chosen(config, name) != _chosen(configs[0], name) for name in _WHERE):
            raise InputError("export.combine.other_layers", first=folders[0], other=folder)


def _chosen(config: Mapping[str, Any], name: str) -> Any:
    value = config.get(name) or None
    return sorted(value, key=str) if isinstance(value, list) else value  # PEFT saves sets in any order


def _combined(
    model: Any, base_names: ModelNames, folders: Sequence[Path], weights: Sequence[float], mixture: Mixture
) -> tuple[dict[str, torch.Tensor], bytes]:
    from peft import PeftModel

    names = [f"part{k}" for k in range(len(folders))]
    density = {"density": mixture.density} if mixture.method in {"ties", "dare"} else {}
    try:
        with incomplete_refused(folders[0]), adapter_in_text(folders[0], base_names) as read:
            adapted = PeftModel.from_pretrained(model, str(read), adapter_name=names[0])
        for name, folder in zip(names[1:], folders[1:], strict=True):
            with adapter_in_text(folder, base_names) as read:
                missing = adapted.load_adapter(str(read), adapter_name=name).missing_keys
            if missing:
                raise incomplete(folder, say("export.combine.lacks_tensors", count=len(missing), name=missing[0]))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mixture.seed)
            adapted.add_weighted_adapter(
                names, list(weights), "default", combination_type=_PEFT_NAMES[mixture.method], **density
            )
    except (ValueError, NotImplementedError, KeyError, AttributeError, RuntimeError) as error:
        raise InputError("export.combine.peft_refuses", method=mixture.method, reason=first_line(error)) from error
    for name in names:
        adapted.delete_adapter(name)
    adapted.set_adapter("default")
    adapted.peft_config["default"].use_rslora = False  # its matrices have the scales of all parts in them already
    saved = LoraAdapter(adapted, names=base_names)
    return {name: tensor.contiguous() for name, tensor in saved.tensors().items()}, saved.config()
