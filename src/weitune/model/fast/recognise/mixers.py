"""The mixers that are known: what the parts of a decoder layer besides its norms may be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from weitune.model.fast.channel.feed_forward import read_feed_forward
from weitune.model.fast.experts.read import read_mixture
from weitune.model.fast.parts import Mixer
from weitune.model.fast.recurrent.gated_delta import read_gated_delta
from weitune.model.fast.recurrent.short_conv import read_short_conv
from weitune.model.fast.recurrent.state_space import read_state_space
from weitune.model.fast.self_attention.latent import read_latent
from weitune.model.fast.self_attention.mixer import read_attention
from weitune.model.fast.self_attention.observe import Rows

READERS: tuple[Callable[[Any], Mixer | None], ...] = (read_feed_forward, read_mixture)
"""Each returns the mixer that a module is, or None if the module has not the parts that it knows."""


def read_mixer(module: Any, rows: Rows) -> Mixer | None:
    """Return the mixer that ``module`` is, or None if none is known that has its parts.

    Mixers of tokens are called with ``rows`` to see what they do.
    """
    return (
        read_attention(module, rows)
        or read_latent(module, rows)
        or read_gated_delta(module, rows)
        or read_state_space(module, rows)
        or read_short_conv(module, rows)
        or next((mixer for read in READERS if (mixer := read(module)) is not None), None)
    )
