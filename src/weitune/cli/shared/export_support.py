"""What a run can become once it is trained, as ``weitune plan`` and ``weitune train`` show it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from weitune.export.support import ExportSupport
    from weitune.model.load.locate import ModelFiles
    from weitune.model.load.tokenizer import TokenizerFraming
    from weitune.recipe.schema import Recipe


def export_support(recipe: Recipe, files: ModelFiles, framed: TokenizerFraming | None = None) -> ExportSupport:
    """Return the formats that a run of ``recipe`` on the base in ``files`` can become, and why not the others.

    ``framed`` is the base's tokenizer if it is loaded already.
    """
    from weitune.export.support import support
    from weitune.serve.vllm.support import check_vllm

    return support(recipe, files, {"vLLM": check_vllm}, framed)
