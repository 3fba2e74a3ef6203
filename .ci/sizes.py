"""Fail if the source outgrows its rooms: ``python .ci/sizes.py``.

At most 16 modules in a folder, 300 lines in a module and 60 in a function, its docstring included.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src"
MODULES, MODULE_LINES, FUNCTION_LINES = 16, 300, 60


def too_large() -> Iterator[str]:
    """Yield a line for every folder, module and function that is too large."""
    files = sorted(SOURCE.rglob("*.py"))
    for folder, count in Counter(file.parent for file in files).items():
        if count > MODULES:
            yield f"{folder}: {count} modules, more than {MODULES}"
    for file in files:
        text = file.read_text(encoding="utf-8")
        if (lines := text.count("\n")) > MODULE_LINES:
            yield f"{file}: {lines} lines, more than {MODULE_LINES}"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > FUNCTION_LINES:
                    yield f"{file}:{node.lineno}: {node.name} has {length} lines, more than {FUNCTION_LINES}"


if __name__ == "__main__":
    faults = list(too_large())
    sys.stdout.write("\n".join(faults or ["Every folder, module and function is small enough."]) + "\n")
    sys.exit(bool(faults))
