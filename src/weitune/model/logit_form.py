"""Find out how a model makes logits of the products of its output layer, by trying it.

The model runs one token, and a hook gives its head other hidden states instead: real ones, from so small that a cap
changes nothing to so large that it holds every logit back. The smallest logits show the scale, the largest the cap, and
all of them whether scale and cap are everything that the model does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from weitune.model.decoder_of import decoder_of
from weitune.model.fast.loss import LogitForm

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_EXPONENTS = (-8, -2, 0, 2, 4, 6, 8, 16)
"""The largest product of the output layer is about 2 to these powers: powers of two round nothing."""
_ROWS = 2
"""Hidden states for each of them."""


def read_logit_form(model: PreTrainedModel, hidden: Tensor, tolerance: float) -> LogitForm | None:
    """Return how ``model`` makes its logits, or None if it is in no way that :class:`LogitForm` describes.

    ``hidden`` (N, C) are some of its last hidden states. ``tolerance`` bounds the relative distance of its logits from
    those of the form. Costs a forward of one token.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        return None
    hidden = hidden[:_ROWS].to(head.weight.device)
    _, exponent = math.frexp(float(head(hidden).abs().max()))
    states = torch.cat([2.0 ** (each - exponent) * hidden for each in _EXPONENTS])
    products, logits = (x.chunk(len(_EXPONENTS)) for x in (head(states), _logits_of(model, states)))
    form = _fitting(products, logits, _Numbers(model.config.get_text_config(), hidden.dtype))
    pairs = zip(logits, (form.logits(each.double()) for each in products), strict=True)
    return form if all(float((a - b).norm()) < tolerance * float(b.norm()) for a, b in pairs) else None


def _fitting(products: Sequence[Tensor], logits: Sequence[Tensor], numbers: _Numbers) -> LogitForm:
    """Return the form that fits the smallest ``products`` and the largest with their ``logits``."""
    small = products[0].double()
    scale = numbers.nearest(float((logits[0] * small).sum() / small.square().sum()))
    most, unbounded = (float(each[-1].abs().max()) for each in (logits, products))
    return LogitForm(scale, numbers.nearest(most) if most < abs(scale) * unbounded / 2 else None)


def _logits_of(model: PreTrainedModel, states: Tensor) -> Tensor:
    """Return the logits (N, V) that ``model`` makes of the last hidden states ``states`` (N, C)."""

    def replace(_decoder: Any, _inputs: Any, output: Any) -> Any:
        output.last_hidden_state = states[None].to(output.last_hidden_state)
        return output

    token = torch.zeros(1, 1, dtype=torch.long, device=model.get_input_embeddings().weight.device)
    hook = decoder_of(model).register_forward_hook(replace)
    try:
        logits: Tensor = model(input_ids=token, use_cache=False).logits
    finally:
        hook.remove()
    return logits[0].to(states.device)


class _Numbers:
    """The numbers of a configuration and their reciprocals, one of which a measured number should be up to rounding."""

    def __init__(self, config: Any, dtype: torch.dtype) -> None:
        found = [1.0, *(float(each) for each in config.to_dict().values() if type(each) in {int, float} and each)]
        self._numbers = found + [1 / each for each in found]
        self._rounding = max(1e-5, torch.finfo(dtype).eps / 3)

    def nearest(self, measured: float) -> float:
        """Return the number that ``measured`` must be, or ``measured`` itself if it is none of them."""
        number = min(self._numbers, key=lambda each: abs(each - measured))
        return number if abs(number - measured) < self._rounding * abs(measured) else measured
