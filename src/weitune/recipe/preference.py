"""The recipe's group ``preference``: learning from answers that were compared or judged, and by which loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Field, model_validator

from weitune.messages import say
from weitune.recipe.section import Section, check_rules

Method = Literal["dpo", "dpo_norm", "ipo", "hinge", "kto", "orpo", "simpo", "cpo"]
WITH_REFERENCE: tuple[Method, ...] = ("dpo", "dpo_norm", "ipo", "hinge", "kto")
"""Methods whose loss compares the model with itself before the first step."""
WITHOUT_SFT: tuple[Method, ...] = ("kto", "orpo", "simpo")
SMOOTHED: tuple[Method, ...] = ("dpo", "cpo")
METHOD_DEFAULTS: Mapping[Method, Mapping[str, float]] = {"simpo": {"beta": 2.0}, "cpo": {"sft_weight": 1.0}}
"""Defaults of a method's own, by key."""
LEARNING_RATE = 1e-5
MAX_LENGTH_TOKENS = 2048
S = TypeVar("S", bound=Section | str)


class Preference(Section):
    """Learn from pairs of answers, a chosen and a rejected one, or from answers that were liked or not
    (docs/preference.md). `preference: dpo` is short for `preference: {method: dpo}`. With it, `train.learning_rate` is
    1e-5 if not given, `tokens.max_length` 2048, and `lora.dropout` 0 for a method with a reference, which is the model
    before the first step."""

    SHORT_FOR = "method"

    method: Method
    """The loss. With a reference: `dpo` (arXiv 2305.18290), `dpo_norm` (with means over an answer's tokens, arXiv
    2411.15124), `ipo` (arXiv 2310.12036), `hinge` (arXiv 2305.10425), `kto` (for single answers that were liked or
    not, arXiv 2402.01306; of a pair it makes two). Without: `orpo` (arXiv 2403.07691), `simpo` (arXiv 2405.14734),
    `cpo` (arXiv 2401.08417)."""
    beta: float = Field(0.1, gt=0)
    """How strongly the loss reacts to a difference of log-probabilities; 2 for `simpo` if not given. The larger, the
    nearer a model stays to its reference. `orpo`: the weight of its odds ratio."""
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)
    """Share of the pairs that are taken to be the wrong way round (`dpo`, `cpo`)."""
    margin: float = Field(1.0, ge=0)
    """By how much the chosen answer's score should exceed the rejected one's (`simpo`)."""
    sft_weight: float = Field(0.0, ge=0)
    """Weight of the chosen answers' own loss, as in training without preferences; 1 for `cpo` if not given. It keeps
    their probability from falling. Not for `kto`, `orpo` and `simpo`."""
    liked_weight: float = Field(1.0, ge=0)
    """Weight of the answers that were liked (`kto`)."""
    disliked_weight: float = Field(1.0, ge=0)
    """Weight of the answers that were not liked (`kto`)."""

    @property
    def has_reference(self) -> bool:
        """Whether the loss compares the model with itself before the first step."""
        return self.method in WITH_REFERENCE

    @property
    def needs_pairs(self) -> bool:
        """Whether the loss compares two answers; otherwise it looks at one that was liked or not."""
        return self.method != "kto"

    @property
    def answers(self) -> int:
        """How many answers a term of the loss looks at."""
        return 2 if self.needs_pairs else 1

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_method(cls, tree: Any) -> Any:
        method = tree.get("method") if isinstance(tree, Mapping) else None
        own = METHOD_DEFAULTS.get(method) if isinstance(method, str) else None  # type: ignore[call-overload]
        return {**own, **tree} if own else tree

    @model_validator(mode="after")
    def _keys_fit_the_method(self) -> Preference:
        """Refuse a value that the method does not use, unless it is the default."""
        method = self.method
        used = {
            "label_smoothing": method in SMOOTHED,
            "margin": method == "simpo",
            "sft_weight": method not in WITHOUT_SFT,
            "liked_weight": method == "kto",
            "disliked_weight": method == "kto",
        }
        unused = [key for key, is_used in used.items() if not is_used and getattr(self, key) != _default(key)]
        silent = method == "kto" and not self.liked_weight and not self.disliked_weight
        return check_rules(
            self,
            *((True, say("recipe.preference.not_of_method", key=f"preference.{key}", method=method)) for key in unused),
            (silent, say("recipe.preference.nothing_weighs")),
        )


def _default(key: str) -> Any:
    return Preference.model_fields[key].default


def _method_or_group(value: Any) -> Any:
    """Let a word stand for the method."""
    return {"method": value} if isinstance(value, str) else value


MethodOrPreference = Annotated[
    Preference, BeforeValidator(_method_or_group, json_schema_input_type=Preference | Method)
]


def recipe_defaults(preference: Preference) -> dict[str, dict[str, float]]:
    """Return the keys of the recipe that have other defaults with ``preference``, with these, by their group."""
    defaults: dict[str, dict[str, float]] = {
        "tokens": {"max_length": MAX_LENGTH_TOKENS},
        "train": {"learning_rate": LEARNING_RATE},
    }
    return defaults | {"lora": {"dropout": 0.0}} if preference.has_reference else defaults


def with_defaults(name: str, section: S, preference: Preference | None) -> S:
    """Return ``section``, the recipe's group ``name``, with the defaults of ``preference`` for keys not given."""
    if preference is None or isinstance(section, str):
        return section
    defaults = recipe_defaults(preference).get(name, {})
    return section.model_copy(update={k: v for k, v in defaults.items() if k not in section.model_fields_set})
