"""Values of recipe keys that pydantic's types do not describe."""

from __future__ import annotations

import math
import re
from datetime import date
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from weitune.messages import say


def _as_json(value: Any) -> Any:
    """Return ``value`` as JSON has it; YAML also knows dates, which become their text, and numbers without end."""
    if isinstance(value, dict):
        return {key: _as_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_json(item) for item in value]
    if isinstance(value, date):  # a datetime is one
        return value.isoformat()
    if not isinstance(value, str | int | float | None) or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError(say("recipe.schema.not_json", value=value))
    return value


def _expression(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(say("recipe.schema.not_an_expression", value=value, error=error)) from None
    return value


JsonObject = Annotated[dict[str, Any], BeforeValidator(_as_json)]
Expression = Annotated[str, AfterValidator(_expression)]
"""A regular expression."""
