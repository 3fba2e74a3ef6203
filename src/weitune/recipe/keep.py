"""The recipe's group ``keep``: what a model learns beside the run's own data, so that it keeps what it knew."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from weitune.recipe.section import Files, Section


class Keep(Section):
    """Examples that are learned beside `data`, so that the model keeps what it knew (docs/evaluation.md). `keep: 0.1`
    is short for `keep: {share: 0.1}`."""

    SHORT_FOR = "share"

    share: float = Field(0.1, gt=0, le=0.5)
    """Their share of the tokens that are learned. Whole examples come on top of `train.batch_size`."""
    data: Files | None = None
    """Files of prompts (rows with a `prompt` only) or of whole dialogues; a set of 1,147 prompts in English and Chinese
    that ships with weitune, if neither this nor `keep.run` is given. The model itself answers the prompts before the
    first step; of a dialogue, each answer is an example of weight 1. What the run's own rows ask is left
    out."""
    run: str | None = None
    """An earlier run whose rows are learned again, as dialogues are, but for those that it held out. Useful with
    `lora.init_from`."""
    max_answer_tokens: int = Field(64, ge=1)
    """Longest answer to a prompt, in tokens. Those that are cut there teach no end, so others are taken first."""
    target: Literal["rows", "distill"] = "rows"
    """What is learned of them: the tokens of the `rows`, or to `distill` the probabilities that the model itself gave
    before the first step (of its 32 likeliest tokens, and of all others as one)."""


def _share_or_group(value: Any) -> Any:
    """Let a number, also one written as a string, stand for the share."""
    try:
        number = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else None
    except ValueError:
        number = None
    return value if number is None else {"share": number}


KeepOrShare = Annotated[Keep, BeforeValidator(_share_or_group, json_schema_input_type=Keep | float)]
