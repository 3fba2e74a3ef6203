"""``weitune eval --gate``: its bounds as options, and its exit code."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from weitune.cli.shared.options import FiniteRange
from weitune.evaluate.gate import Bounds
from weitune.messages import joined, say

if TYPE_CHECKING:
    from weitune.evaluate.evaluation import Evaluation

_OPTIONS = {
    "general_drop": ("--max-general-drop", "Most points that right general answers may fall, in each language."),
    "stop_drop": ("--max-stop-drop", "Most points that answers which end by themselves may fall."),
    "repetition_rise": ("--max-repetition-rise", "Most points that answers which repeat themselves may rise."),
}


def gate_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--gate`` and its bounds to ``command``, which receives ``bounds``: None without ``--gate``."""

    @wraps(command)
    def with_bounds(*arguments: Any, gate: bool, **options: Any) -> Any:
        given = {name: bound for name in _OPTIONS if (bound := options.pop(name)) is not None}
        if given and not gate:
            raise click.UsageError(say("cli.gate.bound_without_gate"))
        return command(*arguments, bounds=Bounds(**given) if gate else None, **options)

    for name, (option, text) in reversed(_OPTIONS.items()):
        points, bound = FiniteRange(0, 100), getattr(Bounds(), name)
        with_bounds = click.option(option, name, type=points, metavar="POINTS", help=f"{text}  [default: {bound:g}]")(
            with_bounds
        )
    return click.option("--gate", is_flag=True, help="Exit with code 4 if a bound below is broken.")(with_bounds)


def raise_if_failed(evaluation: Evaluation) -> None:
    """Raise CheckFailed with the checks that did not pass, if ``evaluation`` was judged and one did not."""
    if evaluation.gate is not None and not evaluation.gate.passed:
        from weitune.errors import CheckFailed
        from weitune.evaluate.figures import described

        failed = [described(check) for check in evaluation.gate.checks if not check.passed]
        raise CheckFailed("cli.gate.failed", failed=joined("\n", [joined("", ["  ", line]) for line in failed]))
