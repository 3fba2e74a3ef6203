"""What the recipe's declaration is written with: groups of fields, lists that one value may stand for, and rules."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, TypeVar, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from weitune.messages import say

S = TypeVar("S")


class Section(BaseModel):
    """A group of recipe fields; unknown keys are errors and values never change after validation."""

    SHORT_FOR: ClassVar[str] = ""
    """The key whose value may stand for the whole group, if there is one."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_boolean_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse `r: yes`, which pydantic would read as 1."""
        annotation = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and not {bool, str} & {annotation, *get_args(annotation)}:
            raise ValueError(say("recipe.schema.boolean"))
        return value


def check_rules(section: S, *rules: tuple[bool, str]) -> S:
    """Return ``section`` if it breaks none of ``rules``, each (is it broken, what to say).

    Raises ValueError with the texts of all broken ones.
    """
    broken = [text for is_broken, text in rules if is_broken]
    if broken:
        raise ValueError("; ".join(broken))
    return section


@dataclass(frozen=True, slots=True)
class Repeatable:
    """Marks a list whose command-line option is given once for each item; its help calls an item ``metavar``."""

    metavar: str


def _one_as_list(value: Any) -> Any:
    """Let one string stand for a list; it is not split, since a comma may be part of it."""
    return [value] if isinstance(value, str) else value


def _texts(value: Any) -> Any:
    """Let one string stand for a list, and an empty one for none."""
    items = _one_as_list(value)
    return [item for item in items if item != ""] if isinstance(items, list) else items


def _as_list(value: Any) -> Any:
    """Let one name, or names separated by commas, stand for a list."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _as_ranges(value: Any) -> Any:
    """Let a number stand for a range of one, and ranges separated by commas for a list."""
    parts = _as_list(str(value) if isinstance(value, int) else value)
    return [str(part) if isinstance(part, int) else part for part in parts] if isinstance(parts, list) else parts


def _fraction_or_files(value: Any) -> Any:
    """Let a number, also one written as a string, stand for a fraction, and anything else for files."""
    if value is None:
        return None
    only = value[0] if isinstance(value, list) and len(value) == 1 else value
    try:
        fraction = float(only) if isinstance(only, str | int | float) and not isinstance(only, bool) else None
    except ValueError:
        fraction = None
    if fraction is None:
        if not value or value == [""]:
            raise ValueError(say("recipe.schema.fraction_or_files"))
        return _one_as_list(value)
    if not 0 < fraction < 1:
        raise ValueError(say("recipe.schema.fraction_range"))
    return fraction


SPLIT_AT_COMMAS = BeforeValidator(_as_list)
Names = Annotated[list[str], SPLIT_AT_COMMAS, Field(min_length=1)]
Ranges = Annotated[
    list[Annotated[str, Field(pattern=r"^\d+(-\d+)?$")]], BeforeValidator(_as_ranges), Field(min_length=1)
]
"""Whole numbers from 0 and ranges of them with both ends, such as `0-7`."""
Files = Annotated[list[str], BeforeValidator(_one_as_list), Repeatable("FILE"), Field(min_length=1)]
RowFormat = Literal["alpaca", "sharegpt", "messages", "prompt-completion", "chosen-rejected", "preferred-output"]
FractionOrFiles = Annotated[float | list[str], BeforeValidator(_fraction_or_files), Repeatable("FILE")]
Texts = Annotated[list[str], BeforeValidator(_texts), Repeatable("TEXT")]
