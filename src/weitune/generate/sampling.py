"""How the next token is chosen: the options, declared once for Python and the command line."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, TypedDict

from weitune.errors import InputError
from weitune.messages import say

_INFINITE = float("inf")
SEEDS = 1 << 63
"""How many seeds there are; PyTorch takes no larger ones."""


def _option(default: Any, about: str, *, least: float, most: float = _INFINITE, above: bool = False) -> Any:
    """Declare an option from ``least`` (with ``above``: greater) to ``most``; ``about`` is its help."""
    return field(default=default, metadata={"help": about, "least": least, "most": most, "above": above})


@dataclass(frozen=True, slots=True)
class Sampling:
    """Options of generation; each field's metadata has its ``help``. Raises InputError for values out of range."""

    max_new_tokens: int = _option(512, "Longest answer, in tokens.", least=1)
    temperature: float = _option(
        0.0, "0 takes the likeliest token (greedy); logits are divided by anything above before sampling.", least=0
    )
    top_p: float = _option(
        1.0, "Sample from the likeliest tokens that together have this probability.", least=0, most=1, above=True
    )
    top_k: int = _option(0, "Sample from this many of the likeliest tokens; 0: from all.", least=0)
    repetition_penalty: float = _option(
        1.0, "Above 1, tokens that the conversation already has become less likely.", least=0, above=True
    )
    seed: int | None = _option(
        None, "The same seed gives the same answer; without one, each differs.", least=0, most=SEEDS - 1
    )

    def __post_init__(self) -> None:
        """Check every option. Raises InputError with all values that are out of range."""
        wrong = []
        for option in fields(self):
            value, least, most = getattr(self, option.name), option.metadata["least"], option.metadata["most"]
            above = option.metadata["above"]
            fits = value is None or ((least < value if above else least <= value) and value <= most)
            if fits and value != _INFINITE:
                continue
            if most < _INFINITE and not above:
                wrong.append(say("generate.sampling.from_to", name=option.name, least=least, most=most, value=value))
            elif most < _INFINITE:
                wrong.append(say("generate.sampling.above_to", name=option.name, least=least, most=most, value=value))
            elif above:
                wrong.append(say("generate.sampling.above", name=option.name, least=least, value=value))
            else:
                wrong.append(say("generate.sampling.at_least", name=option.name, least=least, value=value))
        if wrong:
            raise InputError("generate.sampling.out_of_range", options="\n".join(wrong))

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


class SamplingOptions(TypedDict, total=False):
    """The fields of :class:`Sampling` as keywords, for type checkers."""

    max_new_tokens: int
    temperature: float
    top_p: float
    top_k: int
    repetition_penalty: float
    seed: int | None
