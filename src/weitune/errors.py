"""The exceptions weitune raises on purpose.

Everything a user can mend is an :class:`InputError`; the command line prints it and exits with 2. Anything that is not
a :class:`WeituneError` is a bug of ours and exits with 1.
"""

from __future__ import annotations

from collections.abc import Sequence


class WeituneError(Exception):
    """Base of every exception that weitune raises on purpose."""

    exit_code = 1


class InputError(WeituneError):
    """Something the user gave is wrong: ``message`` says what and where, ``fix`` how to fix it."""

    exit_code = 2

    def __init__(self, message: str, fix: str = "") -> None:
        """Keep ``message`` (one sentence or a small list) and ``fix`` (what to do) apart for the command line."""
        super().__init__(message)
        self.message = message
        self.fix = fix

    def __str__(self) -> str:
        """Return the message followed by the fix."""
        return f"{self.message}\n{self.fix}" if self.fix else self.message


class RecipeError(InputError):
    """The recipe has an unknown key, a wrong type or a value out of range."""


class DataError(InputError):
    """Rows, files or encodings are not what they must be; :attr:`problems` has every one of them."""

    def __init__(self, message: str, fix: str = "", problems: Sequence[object] = ()) -> None:
        """Keep every problem found, so that programs need not read the message."""
        super().__init__(message, fix)
        self.problems = tuple(problems)


class ModelError(InputError):
    """The model or its tokenizer cannot be found, loaded or used as asked."""


class RunError(InputError):
    """A run folder is missing, taken, locked or does not fit what is asked of it."""


class MissingExtraError(InputError):
    """An optional dependency is not installed."""

    def __init__(self, package: str, extra: str) -> None:
        """Name the missing ``package`` and the ``extra`` that brings it."""
        super().__init__(
            f"this needs the package '{package}', which is not installed",
            f"Install it with:  pip install 'weitune[{extra}]'",
        )


class NonFiniteError(WeituneError):
    """A loss or a gradient is not finite; training stopped before the weights changed."""

    exit_code = 3


class Interrupted(WeituneError):  # noqa: N818  (an event, not a fault)
    """The run was asked to stop; a checkpoint was written."""

    exit_code = 130


def first_line(error: BaseException, otherwise: str = "") -> str:
    """Return the first line of what ``error`` says; ``otherwise``, or its kind, if it says nothing."""
    return (str(error).strip().splitlines() or [otherwise or type(error).__name__])[0]
