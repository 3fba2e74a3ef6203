"""Options that several commands have, each declared once."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from weitune.gguf.types import GGUF_TYPES
from weitune.messages import say

if TYPE_CHECKING:
    from weitune.run.run_folder import Which

Command = Callable[..., Any]
Decorator = Callable[[Command], Command]

json_option = click.option("--json", "as_json", is_flag=True, help="Print everything as one JSON object.")
training_device_option = click.option(
    "--device", metavar="DEVICE", help="Device to train on, such as cpu or cuda:1.  [default: the best one]"
)
accept_changed_base_option = click.option(
    "--accept-changed-base",
    is_flag=True,
    help="Use the base model that is here even if it is not the one that the run was trained on.",
)
adapter_base_option = click.option(
    "--model", metavar="BASE", help="Base of an adapter that was made elsewhere, if not the one that it names."
)
adapter_system_option = click.option(
    "--system", metavar="TEXT", help="System prompt of an adapter that was made elsewhere."
)


class FiniteRange(click.FloatRange):
    """A finite number in a range; click's own range lets ``nan`` through, which compares with nothing."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(say("cli.options.not_finite", value=value), param, ctx)
        return number


class Checkpoint(click.ParamType):  # type: ignore[type-arg]
    """The step of a checkpoint, or one of ``words``; the message ``not_base`` explains why ``base`` is not allowed."""

    name = "checkpoint"

    def __init__(self, words: tuple[str, ...], not_base: str = "") -> None:
        self._words, self._not_base = words, not_base

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Which:
        if value in self._words or isinstance(value, int):
            return value  # type: ignore[no-any-return]
        if value == "base" and self._not_base:
            self.fail(say(self._not_base), param, ctx)
        step = str(value).removeprefix("checkpoint-")
        if not step.isdecimal():
            *words, last = (f"'{word}'" for word in self._words)
            self.fail(say("cli.options.no_checkpoint", value=value, words=", ".join(words), last=last), param, ctx)
        return int(step)


def checkpoint_option(*words: str, help: str, not_base: str = "") -> Decorator:  # noqa: A002  (as click has it)
    """Return the option ``--checkpoint``, which takes a step or one of ``words``."""
    kind, metavar = Checkpoint(words, not_base), "|".join(("N", *words))
    return click.option("--checkpoint", metavar=metavar, type=kind, default="last", show_default=True, help=help)


def adapter_option(of: str = "", *, not_base: str) -> Decorator:
    """Return the option ``--checkpoint`` of a command that needs an adapter, so that ``base`` is refused."""
    help = f"The adapter of step N, the one with the lowest validation loss, or the last one{of}."  # noqa: A001
    return checkpoint_option("best", "last", not_base=not_base, help=help)


def gguf_type_option(help: str) -> Decorator:  # noqa: A002
    """Return the option ``--type``, a number format of GGUF files."""
    kind = click.Choice(GGUF_TYPES, case_sensitive=False)
    return click.option("--type", "gguf_type", type=kind, default="Q8_0", show_default=True, help=help)
