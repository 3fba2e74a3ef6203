"""``data.json`` of a run's folder: the report of its data, a few examples as they are learned, the validation data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from weitune.data.prepare.report import DataReport
from weitune.files.json_files import json_object, record_from
from weitune.run.names import DATA


@dataclass(frozen=True, slots=True)
class ExamplePreview:
    """One example: the place of its row, and its parts, each (text, ``learned``, ``control`` or ``prompt``)."""

    place: str = ""
    parts: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True)
class ValidationSize:
    """The size of the validation data."""

    examples: int = 0
    learned_tokens: int = 0


@dataclass(frozen=True, slots=True)
class KeptSize:
    """What the run learns of kept examples (the recipe's ``keep``), as planned when it began."""

    examples: int = 0
    learned_tokens: int = 0
    share: float = 0.0
    """of all learned tokens"""
    target: str = ""


@dataclass(frozen=True, slots=True)
class DataRecord:
    """What a run's folder says about its data."""

    report: DataReport
    preview: Sequence[ExamplePreview] = ()
    validation: ValidationSize | None = None
    kept: KeptSize | None = None

    def to_json(self) -> dict[str, Any]:
        record = {**self.report.to_json(), "preview": [asdict(example) for example in self.preview]}
        sizes = {"validation": self.validation, "kept": self.kept}
        return {**record, **{name: asdict(size) for name, size in sizes.items() if size}}


def read_data_record(run: Path) -> DataRecord | None:
    """Return the record of the data in the folder ``run``; None if there is none that can be read."""
    tree = json_object(run / DATA)
    if not tree:
        return None
    try:
        preview = [record_from(ExamplePreview, example) for example in tree.get("preview", ())]
        validation = record_from(ValidationSize, tree["validation"]) if tree.get("validation") else None
        kept = record_from(KeptSize, tree["kept"]) if tree.get("kept") else None
        return DataRecord(DataReport.from_json(tree), preview, validation, kept)
    except (TypeError, ValueError, AttributeError):
        return None
