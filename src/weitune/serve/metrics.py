"""Counts for ``/metrics``, in Prometheus' text format."""

from __future__ import annotations

from collections import Counter

from weitune.messages import in_english, say
from weitune.serve.admission import Admission

_METRICS = {
    "weitune_requests_total": ("counter", "serve.metrics.requests"),
    "weitune_answers_total": ("counter", "serve.metrics.answers"),
    "weitune_prompt_tokens_total": ("counter", "serve.metrics.prompt_tokens"),
    "weitune_generated_tokens_total": ("counter", "serve.metrics.generated_tokens"),
    "weitune_running": ("gauge", "serve.metrics.running"),
    "weitune_waiting": ("gauge", "serve.metrics.waiting"),
}
"""Type of each metric, and the id of its help."""


class Metrics:
    """The counts since the server started, and gauges from ``admission``."""

    def __init__(self, admission: Admission) -> None:
        self._admission = admission
        self._counts: Counter[tuple[str, str]] = Counter()

    def finished(self, status: int) -> None:
        self._counts["weitune_requests_total", f'status="{status}"'] += 1

    def answered(self, model: str, prompt_tokens: int, generated_tokens: int) -> None:
        label = 'model="{}"'.format(model.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n"))
        self._counts["weitune_answers_total", label] += 1
        self._counts["weitune_prompt_tokens_total", label] += prompt_tokens
        self._counts["weitune_generated_tokens_total", label] += generated_tokens

    def text(self) -> str:
        values = {f"{name}{{{label}}}": count for (name, label), count in sorted(self._counts.items())}
        values |= {"weitune_running": self._admission.running, "weitune_waiting": self._admission.waiting}
        lines = []
        for name, (kind, help_id) in _METRICS.items():
            lines += [f"# HELP {name} {in_english(say(help_id))}", f"# TYPE {name} {kind}"]
            lines += [f"{key} {value}" for key, value in values.items() if key.partition("{")[0] == name]
        return "\n".join(lines) + "\n"
