"""Rotary embeddings that depend on the length of the longest row of a pass.

LongRoPE (arXiv:2402.13753; Phi-3, Phi-3.5 and Phi-4-mini with 128k tokens) rotates by its short factors up to the
length of pretraining and by its long ones beyond it. transformers chooses one of them for a whole pass, by its last
position, so that a short row computes something else beside a long one than alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from weitune.model.decoder_of import decoder_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LONGROPE = "longrope"
_BY_LENGTH = {"dynamic", _LONGROPE}


def rotates_by_length(model: PreTrainedModel) -> bool:
    """Return whether the rotary embeddings of ``model`` depend on the length of the whole row."""
    return not _BY_LENGTH.isdisjoint(_types(model).values())


def short_row_tokens(model: PreTrainedModel) -> int | None:
    """Return up to how many tokens a row is rotated by LongRoPE's short factors; None if ``model`` has no LongRoPE."""
    return short_tokens(model.config) if _LONGROPE in _types(model).values() else None


def short_tokens(config: Any) -> int | None:
    """Return the same of a model's configuration."""
    rope: dict[str, Any] = getattr(config.get_text_config(), "rope_parameters", None) or {}
    settings = [rope, *(each for each in rope.values() if isinstance(each, dict))]
    found = [each["original_max_position_embeddings"] for each in settings if each.get("rope_type") == _LONGROPE]
    return min(map(int, found), default=None)


def _types(model: PreTrainedModel) -> dict[str, str]:
    """Return the type of rotary embeddings by the kind of layer, which is empty if all layers have the same."""
    kinds: str | dict[str, str] = getattr(getattr(decoder_of(model), "rotary_emb", None), "rope_type", "default")
    return kinds if isinstance(kinds, dict) else {"": kinds}
