"""Texts that tokenizers may split in different ways."""

from __future__ import annotations

import random
from functools import cache

ODD = [
    "", " ", "  two  spaces  and\ttabs\t\t", "\n\n\nlines\r\n\r\nand more\n", "1234567890 3.14 ½ ²", "don't I'LL we'Ve",
    "naïve café ŒUVRE", "😀👩\u200d👩\u200d👧 \u200d\ufeff", "ภาษาไทย हिन्दी العربية",
    "def f(x):\n    return x**2  # ok", "“臣妾”——做不到啊！……（跪）", "<p>&amp;</p> {{ x }} {% y %}", "｜ ▁ Ġ ĉ",
]  # fmt: skip
"""All of it composed (NFC): llama.cpp does not compose, as Qwen's tokenizer does (docs/export.md)."""

CHARACTERS = [
    *"aZéÉяЯßǅʰªا中文の가9٣½²Ⅷ", *"'.,!?/-_#$+<=>^`|~“”…。，、（）€→✓", *("'s", "'LL", "don't", "x_1", "123", "4567"),
    "e\u0301", "\u0915\u093f", "\u0e01\u0e34", "\u0627\u064b", "❤\ufe0f", "😀", "👩\u200d👧", "\u200b", "\ufeff",
    *(" ", "  ", "   ", "\t", "\n", "\r\n", "\n\n", "\u00a0", "\u3000", "\u2028", "\u000b"),
]  # fmt: skip
"""Letters of every case and script, digits, punctuation, symbols, marks, joiners and blanks."""


@cache
def mixed_texts() -> list[str]:
    """Return the odd texts and 400 made of the characters; the same every time."""
    chance = random.Random(0)
    mixed = ["".join(chance.choices(CHARACTERS, k=chance.randrange(1, 24))) for _ in range(400)]
    return [*filter(None, ODD), *mixed]
