"""Counts for ``/metrics``, in Prometheus' text format."""

from __future__ import annotations

from collections import Counter

from weitune.serve.admission import Admission

_HELP = {
    "weitune_requests_total": ("counter", "Finished requests by status; 499: the client went away."),
    "weitune_answers_total": ("counter", "Finished answers by model."),
    "weitune_prompt_tokens_total": ("counter", "Tokens of prompts by model."),
    "weitune_generated_tokens_total": ("counter", "Generated tokens by model."),
    "weitune_running": ("gauge", "Answers being generated."),
    "weitune_waiting": ("gauge", "Answers waiting for a slot."),
}


class Metrics:
    """What happened since the server began."""

    def __init__(self, admission: Admission) -> None:
        """Read the gauges from ``admission``."""
        self._admission = admission
        self._counts: Counter[tuple[str, str]] = Counter()

    def finished(self, status: int) -> None:
        """Count a request."""
        self._counts["weitune_requests_total", f'status="{status}"'] += 1

    def answered(self, model: str, prompt_tokens: int, generated_tokens: int) -> None:
        """Count an answer of ``model``."""
        label = 'model="{}"'.format(model.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n"))
        self._counts["weitune_answers_total", label] += 1
        self._counts["weitune_prompt_tokens_total", label] += prompt_tokens
        self._counts["weitune_generated_tokens_total", label] += generated_tokens

    def text(self) -> str:
        """Return every count and gauge."""
        values = {f"{name}{{{label}}}": count for (name, label), count in sorted(self._counts.items())}
        values |= {"weitune_running": self._admission.running, "weitune_waiting": self._admission.waiting}
        lines = []
        for name, (kind, about) in _HELP.items():
            lines += [f"# HELP {name} {about}", f"# TYPE {name} {kind}"]
            lines += [f"{key} {value}" for key, value in values.items() if key.partition("{")[0] == name]
        return "\n".join(lines) + "\n"
