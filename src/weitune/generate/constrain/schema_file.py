"""Read the JSON schema that answers are kept to from a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from weitune.errors import InputError


def read_schema(file: Path) -> Mapping[str, Any]:
    """Return the schema in ``file``. Raises InputError if it cannot be read or holds no JSON object."""
    try:
        schema = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError("generate.schema_file.not_read", file=file, error=error.strerror or error) from None
    except (ValueError, RecursionError) as error:
        raise InputError("generate.schema_file.not_read", file=file, error=error) from None
    if not isinstance(schema, dict):
        raise InputError("generate.schema_file.not_an_object", file=file)
    return schema
