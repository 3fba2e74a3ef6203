"""Every validation loss of a run, the best of them, and early stopping.

    step        0     50    100   150   200   250        patience 2
    loss      5.86   4.56  4.42  4.36  4.38  4.41
                                 best   1     2   ── stop; adapter/ becomes that of step 150

Each evaluation after a step writes a checkpoint, so the best one can be kept. The history is part of every checkpoint,
so a resumed run knows it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weitune.run.checkpoint import Checkpoint, list_checkpoints
from weitune.run.history import best_of, finite
from weitune.run.names import checkpoint_name
from weitune.run.preference_figures import fields_of
from weitune.run.rotation import best_checkpoint

if TYPE_CHECKING:
    from weitune.evaluate.samples import Sample


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The validation of a model after ``step`` steps."""

    step: int
    loss: float
    perplexity: float
    """e to the power of the loss; of preferences, to that of the cross entropy of the liked answers."""
    learned_tokens: float
    """Weight of the tokens that this is the mean over. Of preferences, of those that the perplexity is about: 0 without
    liked answers."""
    seconds: float
    samples: Sequence[Sample]
    best: bool = False
    """Whether no earlier loss was as low."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """Of preferences, by name."""

    @property
    def measured(self) -> bool:
        """Whether there were held-out examples; otherwise there are samples alone, and the loss is no number."""
        return self.learned_tokens > 0 or bool(self.figures)

    def event(self) -> dict[str, Any]:
        """Return it as an event of the run."""
        fields = fields_of(self)
        if self.measured:
            return {"event": "validation", **fields}
        return {"event": "samples", **{name: fields[name] for name in ("step", "seconds", "samples")}}


@dataclass(slots=True)
class ValidationHistory:
    """Every validation loss so far, by step."""

    losses: list[tuple[int, float | None]] = field(default_factory=list)
    """(step, loss); None for a loss that was not finite."""

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> ValidationHistory:
        return cls([(int(step), loss) for step, loss in state.get("evaluations", ())])

    def state(self, step: int) -> dict[str, Any]:
        """Return what the checkpoint of ``step`` records; rotation keeps the best checkpoint by its ``metric``."""
        return {"metric": dict(self.losses).get(step), "evaluations": [list(pair) for pair in self.losses]}

    def add(self, step: int, loss: float) -> bool:
        """Add a loss, and return whether it is lower than all before."""
        best = self.best()
        self.losses.append((step, finite(loss)))
        return self.best() != best

    def has(self, step: int) -> bool:
        return any(there == step for there, _ in self.losses)

    def best(self) -> tuple[int, float] | None:
        """Return step and loss of the best evaluation (:mod:`weitune.run.history`), if any."""
        return best_of(self.losses)

    def patience_exhausted(self, patience: int | None) -> bool:
        """Return whether the last ``patience`` evaluations brought no lower loss."""
        best = self.best()
        if patience is None or best is None:
            return False
        return len(self.losses) - 1 - [step for step, _ in self.losses].index(best[0]) >= patience


def chosen_checkpoint(run: Path, step: int, patience: int | None) -> Checkpoint:
    """Return the checkpoint whose adapter a run that ended after ``step`` publishes.

    It is the last one, or with ``patience`` the best one that verifies, as for `--checkpoint best`.
    """
    last = Checkpoint(run / checkpoint_name(step), step)
    best = best_checkpoint(list_checkpoints(run)) if patience is not None else None
    return best or last
