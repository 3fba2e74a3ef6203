"""A run whose every text is hostile, and a reader of pages that checks their tags."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from tests.tiny import save_tiny_run

EVIL = '<script>alert("x")</script><img src=x onerror=alert(1)>\' "&amp;'
_VOID = {"meta", "br", "img", "input"}


class Page(HTMLParser):
    """Collects tags, attributes and the text in a reader's ``language``, and checks that every tag is closed."""

    def __init__(self, html: str, language: str = "en") -> None:
        super().__init__()
        self._unread = {"en": "zh", "zh": "en"}[language]
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self._open: list[tuple[str, bool]] = []
        """Tags, and whether the reader sees what is in them."""
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in _VOID:
            hidden = self._unread in (dict(attrs).get("class") or "").split()
            self._open.append((tag, self._seen and not hidden))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if self._seen:
            self.texts.append(data)

    @property
    def _seen(self) -> bool:
        return not self._open or self._open[-1][1]


def made_run(folder: Path, *, losses: tuple[float, ...] = (5.0, 4.0, 4.5), **recipe: Any) -> Path:
    run = save_tiny_run(folder, **recipe)
    events: list[dict[str, Any]] = [{"event": "start", "step": 0, "steps": 20}]
    events += [
        {"event": "step", "step": step, "loss": 5 - step / 20, "learning_rate": 1e-4, "grad_norm": "nan", "tokens": 100,
         "tokens_per_second": 50.0, "step_seconds": 2.0, "memory_bytes": 3 << 30} for step in range(1, 21)
    ]  # fmt: skip
    for k, loss in enumerate(losses):
        sample = {"prompt": EVIL, "answer": EVIL, "reference": EVIL, "stopped": True}
        events.append(
            {"event": "validation", "step": 10 * k, "loss": loss, "perplexity": math.exp(loss), "samples": [sample]}
        )
    events.append({"event": "end", "step": 20, "adapter_step": 10})
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (run / "data.json").write_text(json.dumps({
        "sources": [{"name": EVIL, "rows": 3, "format": "alpaca"}],
        "rows": {"read": 3, "trained": 2, "set_aside": {EVIL: 1}},
        "examples": {"kept": 2, "cut": 0}, "tokens": {"all": 1234, "supervised": 56, "per_example": {"mean": 7.5}},
        "preview": [{"place": EVIL, "parts": [[EVIL, "learned"], [EVIL, "control"], [EVIL, "prompt"]]}],
    }))  # fmt: skip
    (run / "environment.json").write_text(
        json.dumps({"processor": EVIL, "forecast": {"weights": 1 << 30, EVIL: 1 << 30}})
    )
    scores = {"answers": 1, "chrf": 12.5, "bleu": None, "rouge_l": 0.1, "exact": 0, "distinct_1": 1, "distinct_2": 1,
              "stopped": 1, "tokens": 3}  # fmt: skip
    models = [{"which": which, "step": None, "loss": 1.5, "perplexity": None, "scores": scores, "general": None}
              for which in ("base", EVIL)]  # fmt: skip
    (run / "evaluation.json").write_text(json.dumps({
        "rows": {"name": EVIL, "examples": 1, "questions": 1}, "models": models,
        "answers": [{"prompt": EVIL, "reference": EVIL, "said": {"base": EVIL, EVIL: EVIL}}],
        "general": [], "win_rate": None,
    }))  # fmt: skip
    return run
