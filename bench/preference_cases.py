"""What weitune and TRL both compute to be compared: token ids, methods, models whose weights follow from a seed.

Imported in TRL's environment too, so nothing here needs weitune.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ORACLE = Path(__file__).parents[1] / "tests" / "training" / "preference" / "oracle.json"
"""TRL's values, which :mod:`.preference_oracle` writes and tests read."""
STEPS = 20
RATES = {"tiny": 1e-3, "smollm2-135m": 2e-4}
"""Learning rates of AdamW, by model."""
RANK, ALPHA = 4, 8
TARGETS = ["q_proj", "v_proj", "down_proj"]
SKETCH = 64
"""Numbers that stand for a gradient."""

METHODS: dict[str, dict[str, Any]] = {
    "dpo": {"beta": 0.1},
    "dpo with sft": {"method": "dpo", "beta": 0.1, "sft_weight": 0.5},
    "dpo_norm": {"beta": 2.0},
    "ipo": {"beta": 0.1},
    "hinge": {"beta": 0.1},
    "kto": {"beta": 0.1, "disliked_weight": 0.7},
    "orpo": {"beta": 0.1},
    "simpo": {"beta": 2.0, "margin": 1.0},
    "cpo": {"beta": 0.1, "label_smoothing": 0.1, "sft_weight": 1.0},
}
"""Values of the recipe's group ``preference``; the method is that of the name unless given."""


class PairOfIds(NamedTuple):
    """A pair as token ids."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


class JudgedIds(NamedTuple):
    """A judged answer as token ids, and the answer of another one that its prompt gets for z."""

    prompt: list[int]
    answer: list[int]
    liked: bool
    mismatched: list[int]


def pairs() -> list[PairOfIds]:
    """Return four pairs: two share their prompt, one's answers begin alike."""
    draw = np.random.RandomState(1)

    def tokens(count: int) -> list[int]:
        ids: list[int] = draw.randint(3, 500, count).tolist()
        return ids

    shared, opening = tokens(7), tokens(3)
    return [
        PairOfIds(shared, tokens(6), tokens(4)),
        PairOfIds(shared, tokens(3), tokens(8)),
        PairOfIds(tokens(4), [*opening, *tokens(3)], [*opening, *tokens(2)]),
        PairOfIds(tokens(9), tokens(5), tokens(5)),
    ]


def judged() -> list[JudgedIds]:
    """Return the answers of :func:`pairs` as judged ones; a prompt is mismatched with the answer of the next row."""
    rows = [(p.prompt, answer, liked) for p in pairs() for answer, liked in ((p.chosen, True), (p.rejected, False))]
    return [JudgedIds(*row, rows[(k + 1) % len(rows)][1]) for k, row in enumerate(rows)]


def tiny_model() -> Any:
    """Return a small Qwen2 whose weights are the same with every version of the libraries."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    config = Qwen2Config(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    model = Qwen2ForCausalLM(config).float()
    fill(model.named_parameters(), seed=2, deviation=0.15)
    return model.eval()


def fill_adapter(model: Any) -> None:
    """Give the adapter of a PEFT model weights that change its answers, the same ones everywhere."""
    fill(((n, p) for n, p in model.named_parameters() if "lora_" in n), seed=3, deviation=0.03)


def fill(parameters: Iterable[tuple[str, Any]], seed: int, deviation: float) -> None:
    """Draw values for ``parameters``, by name and in order; vectors stay near 1."""
    import torch

    draw = np.random.RandomState(seed)
    with torch.no_grad():
        for _, parameter in sorted(parameters):
            values = deviation * draw.standard_normal(parameter.shape) + (parameter.dim() == 1)
            parameter.copy_(torch.from_numpy(values))


def sketched(gradients: Iterable[tuple[str, Any]]) -> list[float]:
    """Return products of a gradient, given by parameter, with fixed random vectors of ±1.

    The relative distance of two such lists is that of the gradients themselves, within a fifth or so (Johnson and
    Lindenstrauss).
    """
    draw = np.random.RandomState(4)
    sums = np.zeros(SKETCH)
    for _, gradient in sorted(gradients):
        flat = gradient.detach().double().numpy().ravel()
        sums += (2.0 * draw.randint(0, 2, (SKETCH, len(flat))) - 1.0) @ flat
    return [float(x) for x in sums]
