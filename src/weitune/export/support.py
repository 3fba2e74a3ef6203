"""What a run can be exported as, told before it trains: from configuration, tokenizer and recipe, without weights.

Each answer comes from the function that refuses the export itself. What only the weights can tell, such as a tensor
without a place in GGUF, is found at the export.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from weitune.errors import InputError, ModelError, first_line
from weitune.export.formats.gguf_adapter import check_expressible
from weitune.export.formats.gguf_file import base_family, check_description
from weitune.export.formats.merged import check_complete
from weitune.export.options import ExportOptions, gguf_name
from weitune.export.run import check_system, modelfile_of
from weitune.export.source.export_source import ExportSource, check_mergeable
from weitune.messages import say
from weitune.model.load.config import read_config
from weitune.model.load.locate import ModelFiles
from weitune.model.load.text_model import empty_model
from weitune.model.load.tokenizer import TokenizerFraming, open_framing
from weitune.model.lora.targets import Targets, find_targets
from weitune.recipe.schema import Recipe


@dataclass(frozen=True, slots=True)
class ExportSupport:
    """For each format, why this run cannot become it; None if it can."""

    why_not: Mapping[str, str | None]

    def lines(self) -> list[str]:
        """Return one line with what is possible, and one for each reason why something is not."""
        possible = ", ".join(name for name, why in self.why_not.items() if why is None)
        reasons: dict[str, list[str]] = {}
        for name, why in self.why_not.items():
            if why is not None:
                reasons.setdefault(why, []).append(name)
        lines = [say("export.support.possible", formats=possible)] if possible else []
        return lines + [
            say("export.support.impossible", formats=", ".join(names), why=why) for why, names in reasons.items()
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the same for programs."""
        return {name: {"possible": why is None, "why_not": why} for name, why in self.why_not.items()}


@dataclass(frozen=True, slots=True)
class Future:
    """A run that has not been trained, as an export would find it."""

    source: ExportSource
    targets: Targets | None
    """What gets an adapter; None if the whole model is trained."""
    _description: list[ModelError | None] = field(default_factory=list)

    @classmethod
    def of(cls, recipe: Recipe, files: ModelFiles, framed: TokenizerFraming | None = None) -> Future:
        """Raises InputError if the model's configuration or tokenizer cannot be read."""
        tokenizer, framing = framed or open_framing(files, recipe.tokens)
        name = Path(recipe.output).name if recipe.output else "run"
        source = ExportSource(name, recipe, Path(), files, tokenizer, framing)
        if recipe.adapter is None:
            return cls(source, None)
        return cls(source, find_targets(empty_model(read_config(files)), recipe.adapter))

    def check_description(self) -> None:
        """Raise ModelError if GGUF cannot describe the model or its tokenizer; found out once for all formats."""
        if self._description:
            if isinstance(self._description[0], ModelError):
                raise self._description[0]
            return
        try:
            check_description(self.source)
            self._description.append(None)
        except ModelError as error:
            self._description.append(error)
            raise


Checks = Mapping[str, Callable[[Future], object]]
"""For each format a function that raises InputError if a run cannot become it."""


def support(recipe: Recipe, files: ModelFiles, more: Checks, framed: TokenizerFraming | None = None) -> ExportSupport:
    """Return what a run of ``recipe`` on the base in ``files`` can be exported as, formats of ``more`` included.

    Never raises: what goes wrong is the reason.
    """
    checks = {**_CHECKS, **more}
    try:
        future = Future.of(recipe, files, framed)
    except Exception as error:  # noqa: BLE001  (training itself will say what is wrong)
        return ExportSupport(dict.fromkeys(checks, _reason(error)))
    return ExportSupport({name: _why_not(check, future) for name, check in checks.items()})


def _why_not(check: Callable[[Future], object], future: Future) -> str | None:
    try:
        check_mergeable(future.source.recipe, future.source.name)
        check(future)
    except Exception as error:  # noqa: BLE001  (a strange model must not keep a run from starting)
        return _reason(error)
    return None


def _reason(error: Exception) -> str:
    return error.message if isinstance(error, InputError) else first_line(error)


def _merged(future: Future) -> None:
    check_system(future.source)
    check_complete(future.source)


def _gguf(future: Future) -> None:
    check_system(future.source)
    future.check_description()


def _gguf_adapter(future: Future) -> None:
    lora, targets = future.source.recipe.adapter, future.targets
    assert lora is not None and targets is not None  # noqa: S101, PT018  (check_mergeable refuses whole models)
    check_expressible(base_family(future.source), [*targets.adapted, *targets.experts], dora=lora.dora)


def _ollama(future: Future) -> None:
    _gguf(future)
    modelfile_of(future.source, gguf_name(future.source, ExportOptions("ollama")))


_CHECKS: Checks = {"merged": _merged, "gguf": _gguf, "gguf-adapter": _gguf_adapter, "ollama": _ollama}
