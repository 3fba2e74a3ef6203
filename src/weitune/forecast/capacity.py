"""Whether an adapter has room for its data, and whether it will know its rows by heart, before anything starts.

Room: a language model stores about 2 bits in a parameter (Allen-Zhu and Li, arXiv 2404.05405), and a learned token
carries about 1 bit, the usual loss of such data (Schulman et al., "LoRA Without Regret", 2025). An adapter that holds
less than its data carry falls behind full training. Both are rules of thumb: text that is far from what the model
knows carries more.

By heart: repeating data more than four times adds little to what is learned of them (Muennighoff et al., arXiv
2305.16264), while what is seen again and again is repeated word by word (Carlini et al., arXiv 2202.07646).
"""

from __future__ import annotations

import math

from weitune.messages import say

BITS_OF_A_PARAMETER = 2.0
BITS_OF_A_TOKEN = 1.0
PASSES_BY_HEART = 8.0
"""Passes over the data from which a model that has room for them repeats them."""


def room_note(parameters: int, rank: int, learned_tokens: int) -> str:
    """Return a note if an adapter of ``rank`` is small for ``learned_tokens`` (of one epoch), and nothing otherwise."""
    holds, carried = parameters * BITS_OF_A_PARAMETER, learned_tokens * BITS_OF_A_TOKEN
    if holds >= carried:
        return ""
    enough = rank
    while enough * holds < rank * carried:
        enough *= 2
    return say(
        "forecast.capacity.room",
        parameters=parameters,
        holds=holds / 1e6,
        tokens=learned_tokens,
        carried=carried / 1e6,
        rank=enough,
    )


def by_heart_note(parameters: int, rows: int, learned_tokens: int, passes: float) -> str:
    """Return a note if ``rows`` will be known by heart after so many ``passes``, and nothing otherwise."""
    if passes < PASSES_BY_HEART or parameters * BITS_OF_A_PARAMETER < learned_tokens * BITS_OF_A_TOKEN:
        return ""
    fewer = max(1, math.ceil(PASSES_BY_HEART) // 2)
    return say("forecast.capacity.by_heart", rows=rows, passes=passes, bound=PASSES_BY_HEART, epochs=fewer)
