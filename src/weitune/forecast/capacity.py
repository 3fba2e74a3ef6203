"""Whether an adapter has room for its data, and whether it will know its rows by heart, before anything starts.

Room: a language model stores about 2 bits in a parameter (Allen-Zhu and Li, arXiv 2404.05405), and a learned token
carries about 1 bit, the usual loss of such data (Schulman et al., "LoRA Without Regret", 2025). An adapter that holds
less than its data carry falls behind full training. Both are rules of thumb: text that is far from what the model
knows carries more.

By heart: what is seen again and again is repeated word by word (Carlini et al., arXiv 2202.07646), the sooner the
higher the rate. So passes over the rows count as many times as the rate is that of a long run (:func:`.first_rate`).
SmolLM2-135M on 84 dialogues at 1.5 times that rate repeated none of its answers after 2.9 passes, a quarter after 4.3
and two thirds after 5.7 (docs/lab/judging.md), which are 4, 6 and 8 such passes.
"""

from __future__ import annotations

from weitune.messages import say

BITS_OF_A_PARAMETER = 2.0
BITS_OF_A_TOKEN = 1.0
PASSES_BY_HEART, PASSES_WITHOUT = 6.0, 4.0
"""Passes at the rate of a long run from which a model that has room for the rows repeats many, and up to which none."""


def room_note(parameters: int, rank: int, learned_tokens: int) -> str:
    """Return a note if an adapter of ``rank`` is small for ``learned_tokens`` (of one epoch), and nothing otherwise."""
    if _has_room(parameters, learned_tokens):
        return ""
    enough = rank
    while not _has_room(parameters * enough // rank, learned_tokens):
        enough *= 2
    holds, carried = parameters * BITS_OF_A_PARAMETER / 1e6, learned_tokens * BITS_OF_A_TOKEN / 1e6
    return say(
        "forecast.capacity.room",
        parameters=parameters,
        holds=holds,
        tokens=learned_tokens,
        carried=carried,
        rank=enough,
    )


def by_heart_note(
    parameters: int, learned_tokens: int, rows: int, passes: float, rate: float, rate_of_long_run: float
) -> str:
    """Return a note if ``rows`` will be known by heart after so many ``passes`` at ``rate``, and nothing otherwise."""
    if passes <= 1 or passes * rate < PASSES_BY_HEART * rate_of_long_run or not _has_room(parameters, learned_tokens):
        return ""
    epochs = max(1, int(PASSES_WITHOUT * rate_of_long_run / rate))
    lower = float(f"{PASSES_WITHOUT * rate_of_long_run / passes:.0e}")
    return say("forecast.capacity.by_heart", rows=rows, passes=passes, rate=rate, epochs=epochs, lower=lower)


def _has_room(parameters: int, learned_tokens: int) -> bool:
    return parameters * BITS_OF_A_PARAMETER >= learned_tokens * BITS_OF_A_TOKEN
