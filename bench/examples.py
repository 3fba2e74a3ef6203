"""The examples that benchmarks train on: real rows, and made ones with a given shape."""

from __future__ import annotations

import random
from pathlib import Path

from weitune.data.conversation import Example, Span
from weitune.recipe.schema import Recipe, Tokens

SHARED = Path(__file__).parents[2] / "shared" / "data"
SYSTEM = "现在你要扮演皇帝身边的女人--甄嬛"


def prepared(model: str, recipe: Recipe) -> list[Example]:
    """Return what ``recipe`` makes of its data with the tokenizer of ``model``."""
    from transformers import AutoTokenizer

    from weitune.data.frame.choose import framing_for
    from weitune.data.prepare.prepare import prepare

    rows = prepare(recipe, framing_for(AutoTokenizer.from_pretrained(model), recipe.tokens))
    return [rows[k] for k in range(len(rows))]


def huanhuan(model: str) -> list[Example]:
    """Return the tutorial's data in the tutorial's framing."""
    tokens = Tokens(template="tutorial", max_length=384, truncation="cut")
    return prepared(model, Recipe(model=model, data=[str(SHARED / "huanhuan.json")], system=SYSTEM, tokens=tokens))


def persona(model: str) -> list[Example]:
    """Return the persona that ``weitune train demo`` learns, in the model's chat template."""
    return prepared(model, Recipe(model=model, data=["builtin:captain-en"]))


def made(  # the knobs of the shared-prefix and long-context benchmarks
    count: int, *, prefix: int, prompt: int, answer: int, answers_per_prompt: int = 1, vocabulary: int = 32_000
) -> list[Example]:
    """Return examples of random tokens: ``prefix`` tokens shared by all, then ``prompt``, then ``answer`` learned."""
    draw = random.Random(0)
    shared = [draw.randrange(vocabulary) for _ in range(prefix)]
    examples: list[Example] = []
    while len(examples) < count:
        question = [draw.randrange(vocabulary) for _ in range(prompt)]
        for _ in range(min(answers_per_prompt, count - len(examples))):
            reply = [draw.randrange(vocabulary) for _ in range(answer)]
            start = prefix + prompt
            examples.append(Example((*shared, *question, *reply), (Span(start, start + answer),)))
    return examples
