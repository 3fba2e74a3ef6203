"""Which layers of a model get an adapter: ``lora.target_modules`` resolved against the model.

    auto             every linear layer of the decoder blocks that can be adapted, whatever it is called
    names            the linear layers of the decoder whose names end with one of them
    a run's record   what that run adapted, whatever ``auto`` means in this version

``plan``, ``train``, the number of trained parameters and the adapter itself all come from one :class:`Targets`. Only
names, classes and shapes are read, so the model may be on the meta device.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weitune.errors import ModelError
from weitune.messages import say
from weitune.model.lora.experts import expert_targets, names_peft_takes_for_experts
from weitune.model.lora.linear_layers import LinearLayers, Reason
from weitune.model.lora.target_names import ends_with, kind_of, kinds_text, matches, pattern_value, shortest_names
from weitune.recipe.schema import AUTO, Lora


@dataclass(frozen=True, slots=True)
class Targets:
    """What of a model gets an adapter, by the names of its modules and parameters."""

    adapted: tuple[str, ...]
    """Linear layers with an adapter, in the model's order."""
    experts: tuple[str, ...]
    """Parameters (experts, ., .) with an adapter, which :func:`.expert_targets` explains to PEFT."""
    weights: tuple[str, ...]
    """Those of ``adapted`` that PEFT would take for experts by their names (:mod:`.named_like_experts`)."""
    left_out: Mapping[str, Reason]
    """Linear layers, routers and experts' parameters without one."""
    names: list[str] | str
    """Ends of names, or a regular expression, that match ``adapted`` alone, as PEFT's ``target_modules`` do …"""
    layers: list[int] | None
    """… with these numbers of layers as its ``layers_to_transform``."""
    blocks: str
    """The name of the list of decoder blocks."""
    named_routers: tuple[str, ...] = ()
    """Those of ``adapted`` that ``auto`` would leave out as routers or gates of experts."""

    def counts(self) -> dict[str, int]:
        """Return how many layers of each kind have an adapter, by their name below the block."""
        return _by_kind([*self.adapted, *self.experts], self.blocks)

    def counts_left_out(self) -> dict[Reason, dict[str, int]]:
        """Return how many layers of each kind have none, for each reason."""
        return {
            why: _by_kind([name for name, each in self.left_out.items() if each == why], self.blocks)
            for why in dict.fromkeys(self.left_out.values())
        }

    def lines(self) -> list[str]:
        """Return what is adapted and what is not, and why, by kind of layer, for people."""
        count = len(self.adapted) + len(self.experts)
        lines = [say("model.targets.adapted", count=count, kinds=kinds_text(self.counts()))]
        if self.named_routers:
            kinds = kinds_text(_by_kind(self.named_routers, self.blocks))
            lines.append(say("model.targets.routers_named", kinds=kinds))
        if self.experts:
            lines.append(say("model.targets.no_dropout_on_experts"))
        left_out = [
            say("model.targets.kinds_and_why", kinds=kinds_text(counts), why=_text(why))
            for why, counts in self.counts_left_out().items()
        ]
        return [*lines, say("model.targets.left_out", kinds="; ".join(left_out))] if left_out else lines

    def to_json(self) -> dict[str, Any]:
        """Return the same for programs."""
        return {
            "adapted": self.counts(),
            "not_adapted": [
                {"name": kind, "count": count, "why": _text(why)}
                for why, counts in self.counts_left_out().items()
                for kind, count in counts.items()
            ],
        }

    @property
    def target_modules(self) -> list[str] | str:
        """PEFT's option of this name, for all of ``adapted`` but ``weights``."""
        if not self.weights:
            return self.names
        # of a regular expression PEFT would keep only the last parts of names here
        names = self.adapted if isinstance(self.names, str) else self.names
        taken = {name.rpartition(".")[2] for name in self.weights}
        return [name for name in names if name.rpartition(".")[2] not in taken]

    def record(self) -> dict[str, Any]:
        """Return what a run records of it, by PEFT's names; :func:`find_targets` takes it back."""
        return {
            "target_modules": self.names,
            "layers_to_transform": self.layers,
            "target_parameters": list(self.experts) or None,
        }


def find_targets(model: Any, lora: Lora, recorded: Mapping[str, Any] | None = None) -> Targets:
    """Return what of ``model``, which has no adapter yet, gets one by ``lora``.

    A resumed run gives what it has ``recorded``: :meth:`Targets.record`, or its ``adapter_config.json``. Raises
    ModelError if a name in the recipe fits no layer, or more than it says, or if nothing would be adapted.
    """
    linear = LinearLayers(model)
    automatic, all_experts = linear.reasons(), list(linear.experts())
    taken = names_peft_takes_for_experts(model.config.model_type) if all_experts else ()
    reasons: dict[str, Reason | None]
    names: list[str] | str
    if recorded is None:
        _check_saved_modules(lora, linear.modules)
        layers = layer_numbers(model, lora.layers) if lora.layers else None
        reasons, names, layers = _by_recipe(lora, linear, automatic, layers, taken if lora.dora else ())
    else:
        names, layers = recorded["target_modules"], recorded.get("layers_to_transform")
        reasons = {name: None if matches(name, names, layers) else why or "other" for name, why in automatic.items()}
    adapted = tuple(name for name, why in reasons.items() if why is None)
    experts = _experts(model, lora, recorded)
    if not adapted and not experts:
        raise ModelError("model.targets.nothing", names=", ".join(linear.last_names()))
    left_out: dict[str, Reason] = {name: why for name, why in reasons.items() if why is not None}
    left_out |= {name: "experts" for name in all_experts if name not in experts}
    if recorded is None:
        _check_patterns(lora, [*adapted, *experts])
    routers = tuple(name for name in adapted if automatic[name] == "router")
    weights = tuple(name for name in adapted if name.rpartition(".")[2] in taken)
    return Targets(adapted, experts, weights, left_out, names, layers, linear.blocks, routers)


def _experts(model: Any, lora: Lora, recorded: Mapping[str, Any] | None) -> tuple[str, ...]:
    if recorded is not None:
        return tuple(expert_targets(model, lora, recorded=recorded.get("target_parameters") or ()).names)
    if not lora.experts:
        return ()
    names = expert_targets(model, lora, layer_numbers(model, lora.layers) if lora.layers else None).names
    if not names:
        raise ModelError("model.targets.no_experts")
    return tuple(names)


def _by_recipe(
    lora: Lora,
    linear: LinearLayers,
    automatic: Mapping[str, Reason | None],
    layers: list[int] | None,
    without_dora: Collection[str],
) -> tuple[dict[str, Reason | None], list[str] | str, list[int] | None]:
    """Return for every layer why it has no adapter, or None, and the names and layers that match what has one.

    ``without_dora`` are last parts of the names of layers that get no adapter for want of DoRA.
    """
    auto = lora.target_modules in AUTO
    reasons = dict(automatic) if auto else _named(lora.target_modules, linear, automatic)
    saved = re.compile("|".join(rf"(.*\.)?{module}(\..*)?" for module in lora.modules_to_save or ["$"]))
    reasons = {name: "saved" if why is None and saved.fullmatch(name) else why for name, why in reasons.items()}
    if without_dora:
        able = {name: name.rpartition(".")[2] not in without_dora for name in reasons}
        reasons = {name: "dora" if why is None and not able[name] else why for name, why in reasons.items()}
    wanted = [name for name, why in reasons.items() if why is None]
    others = [name for name in linear.modules if name and not saved.fullmatch(name)]  # PEFT never adapts what it saves
    names: list[str] | str = list(lora.target_modules)
    if auto or {name for name in others if matches(name, names)} != set(wanted):
        names = shortest_names(wanted, others)
    if layers is not None:
        chosen = [name for name in wanted if matches(name, [name.rpartition(".")[2]], layers)]
        reasons |= dict.fromkeys(set(wanted) - set(chosen), "layers")
        if isinstance(names, str):  # with which PEFT takes no numbers of layers
            names, layers = shortest_names(chosen, others), None
    return reasons, names, layers


def _named(
    targets: Sequence[str], linear: LinearLayers, automatic: Mapping[str, Reason | None]
) -> dict[str, Reason | None]:
    """Return for every layer why ``targets`` do not name it, or None. Raises ModelError if a name fits no layer."""
    fitting = {end: [name for name in linear.names_in_decoder() if ends_with(name, end)] for end in targets}
    able = {end: [name for name in names if linear.can_be_adapted(name)] for end, names in fitting.items()}
    if missing := [end for end, names in fitting.items() if not names]:
        raise ModelError(
            "model.targets.no_such_target", missing=", ".join(map(repr, missing)), names=", ".join(linear.last_names())
        )
    if unable := [end for end, names in able.items() if not names]:
        why = _text(automatic[fitting[unable[0]][0]] or "own_forward")
        raise ModelError("model.targets.cannot_be_adapted", names=", ".join(map(repr, unable)), why=why)
    named = {name for names in able.values() for name in names}
    return {name: None if name in named else why or "not_named" for name, why in automatic.items()}


def _check_saved_modules(lora: Lora, modules: Iterable[str]) -> None:
    names = [name for name in modules if name]
    meant = {end: [name for name in names if ends_with(name, end)] for end in lora.modules_to_save or ()}
    if missing := [end for end, found in meant.items() if not found]:
        last = ", ".join(sorted({name.rpartition(".")[2] for name in names}))
        raise ModelError("model.targets.no_such_module", missing=", ".join(map(repr, missing)), names=last)
    for end, found in meant.items():
        also = dict.fromkeys(name.rpartition(".")[2] for name in names if name.endswith(end) and name not in found)
        if also:  # PEFT does not ask where a part of a name begins
            raise ModelError("model.targets.also_saved", name=end, also=", ".join(also), longer=", ".join(found[:4]))


def _check_patterns(lora: Lora, adapted: Iterable[str]) -> None:
    for option, pattern in (("rank_pattern", lora.rank_pattern), ("alpha_pattern", lora.alpha_pattern)):
        for key in pattern or ():
            if all(pattern_value({key: key}, name) is None for name in adapted):
                ends = ", ".join(sorted({name.rpartition(".")[2] for name in adapted}))
                raise ModelError("model.targets.no_such_pattern", option=option, key=key, names=ends)


def layer_numbers(model: Any, ranges: Iterable[str]) -> list[int]:
    """Return the layers named by ``ranges`` such as ``0-7``. Raises ModelError if the model has no such layer."""
    count = model.config.get_text_config().num_hidden_layers
    numbers: set[int] = set()
    for text in ranges:
        first, _, last = text.partition("-")
        named = range(int(first), int(last or first) + 1)
        if not named:
            raise ModelError("model.targets.no_such_layers", ranges=text, count=count, last=count - 1)
        numbers |= set(named)
    if not numbers or max(numbers) >= count:
        raise ModelError("model.targets.no_such_layers", ranges=",".join(ranges), count=count, last=count - 1)
    return sorted(numbers)


def _by_kind(names: Iterable[str], blocks: str) -> dict[str, int]:
    return dict(Counter(kind_of(name, blocks) for name in names))


def _text(why: Reason) -> str:
    texts: dict[Reason, str] = {
        "experts": say("model.targets.why_experts"),
        "router": say("model.targets.why_router"),
        "fused": say("model.targets.why_fused"),
        "indexer": say("model.targets.why_indexer"),
        "own_forward": say("model.targets.why_own_forward"),
        "head": say("model.targets.why_head"),
        "outside_blocks": say("model.targets.why_outside_blocks"),
        "outside_decoder": say("model.targets.why_outside_decoder"),
        "saved": say("model.targets.why_saved"),
        "dora": say("model.targets.why_dora"),
        "layers": say("model.targets.why_layers"),
        "not_named": say("model.targets.why_not_named"),
        "other": say("model.targets.why_other"),
    }
    return texts[why]
