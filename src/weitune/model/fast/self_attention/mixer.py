"""Softmax attention as a mixer of tokens.

x ─ q,k,v ─ [norms of heads, rotary embedding, attention] ─ o ─▶
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast

from weitune.model.fast.projection import read_group
from weitune.model.fast.self_attention.heads import GATES, Heads, read_heads
from weitune.model.fast.self_attention.observe import Rows, observe
from weitune.model.fast.self_attention.positions import shared_names
from weitune.model.fast.self_attention.projected import ProjectedMixer

_INPUTS = ("q_proj", "k_proj", "v_proj"), ("qkv_proj",)
_OUTPUTS = "o_proj", "out_proj", "dense"


@dataclass(frozen=True, slots=True, eq=False)
class Attention(ProjectedMixer):
    """The attention of one layer.

    Its middle is a :class:`.Heads`, from q (T, H·D), k and v (T, G·D) to (T, H·D). If k and v are given, they are those
    of an earlier layer, (1, G, T, D).
    """

    shares_keys: bool = False
    """Whether later layers read its keys and values"""

    @property
    def heads(self) -> Heads:
        return cast(Heads, self.middle)


def read_attention(module: Any, rows: Rows) -> Attention | None:
    """Return the attention that ``module`` computes, or None if it has not the parts that are known here.

    The first module of each kind is called, with ``rows``.
    """
    names = next(([n for n in names if _has(module, n)] for names in _INPUTS if _has(module, names[0])), None)
    output_name = next((name for name in _OUTPUTS if _has(module, name)), None)
    if names is None or output_name is None:
        return None
    names += [name for name in GATES if _has(module, name)]
    inputs, output = read_group(module, names), read_group(module, (output_name,))
    if inputs is None or output is None:
        return None

    def watched() -> Attention | None:
        seen = observe(module, rows)
        heads = read_heads(module, names, output_name, seen) if seen else None
        if seen is None or heads is None:
            return None
        given = shared_names(heads.kind) if seen.keys_given else ()
        both = tuple(names), (output_name,)
        return Attention(module, both, inputs, output, heads, carried=given, shares_keys=seen.keys_shared)

    first: Attention | None = rows.once("attention", module, watched)
    return first and replace(first, module=module, inputs=inputs, output=output, middle=first.heads.of(module))


def _has(module: Any, name: str) -> bool:
    return getattr(module, name, None) is not None
