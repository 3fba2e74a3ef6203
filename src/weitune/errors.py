"""The exceptions weitune raises on purpose, and the exit code of each.

    WeituneError                 1   a message and a fix
    ├── InputError               2   something the user gave is wrong, and the fix says how to correct it
    │   ├── RecipeError              a key, a type or a value of the recipe
    │   ├── DataError                rows, files or encodings; ``problems`` has every one
    │   ├── ModelError               the model or its tokenizer
    │   ├── RunError                 a run's folder
    │   └── MissingExtraError        an optional dependency
    ├── NonFiniteError           3   a loss or a gradient is not finite
    ├── CheckFailed              4   a check that was asked for did not pass
    └── Interrupted              130 the run was asked to stop

Anything else is a bug of weitune and exits with 1.
"""

from __future__ import annotations

import copyreg
import errno
from collections.abc import Sequence
from typing import Any

from weitune.messages import texts


class WeituneError(Exception):
    """Base of every exception that weitune raises on purpose.

    ``message_id`` names its texts in the catalogue (:mod:`weitune.messages`); ``values`` fill them in.
    ``message`` says what is wrong and where, ``fix`` (which may be empty) what to do.
    """

    exit_code = 1

    def __init__(self, message_id: str, /, **values: object) -> None:
        parts = texts(message_id, **values)
        super().__init__(message_id)
        self.message_id = message_id
        self.message = parts["message"]
        self.fix = parts.get("fix", "")

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the filled-in texts, not their values, so that every process of a run can raise the error."""
        return copyreg.__newobj__, (type(self), *self.args), self.__dict__  # type: ignore[attr-defined]

    def __str__(self) -> str:
        return f"{self.message}\n{self.fix}" if self.fix else self.message


class InputError(WeituneError):
    """Something the user gave is wrong."""

    exit_code = 2


class RecipeError(InputError):
    """The recipe has an unknown key, a wrong type or a value out of range."""


class DataError(InputError):
    """Rows, files or encodings are wrong; :attr:`problems` has every problem."""

    def __init__(self, message_id: str, /, *, problems: Sequence[object] = (), **values: object) -> None:
        super().__init__(message_id, **values)
        self.problems = tuple(problems)


class ModelError(InputError):
    """The model or its tokenizer cannot be found, loaded or used as asked."""


class RunError(InputError):
    """A run's folder is missing, in use or locked, or lacks what is asked for."""


class MissingExtraError(InputError):
    """The optional dependency ``package`` is not installed; ``extra`` of weitune brings it."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__("errors.missing_extra", package=package, extra=extra)


class NonFiniteError(WeituneError):
    """A loss or a gradient is not finite; training stopped before the weights changed."""

    exit_code = 3


class CheckFailed(WeituneError):  # noqa: N818  (a verdict, not a fault)
    """A check that the user asked for did not pass; what was measured is written."""

    exit_code = 4


class Interrupted(WeituneError):  # noqa: N818  (an event, not a fault)
    """The run was asked to stop; a checkpoint was written."""

    exit_code = 130


def refused_by_system(error: BaseException) -> InputError | None:
    """Return what to tell if the operating system refused access to a file or folder, which is no bug; else None."""
    if not isinstance(error, OSError) or error.errno not in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return None
    if error.filename is None:
        return None
    return InputError("errors.refused_by_system", path=error.filename, reason=error.strerror)


def first_line(error: BaseException, otherwise: str = "") -> str:
    """Return the first line of the text of ``error``; if it has none, ``otherwise`` or the name of its class."""
    return (str(error).strip().splitlines() or [otherwise or type(error).__name__])[0]
