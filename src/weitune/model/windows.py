"""Find out whether a model tells its attention of the windows of its layers, by trying it.

transformers gives a layer its window twice: in the mask, and as an argument of the attention function. Tree attention
has the argument alone, and some families use only the mask. Texts short enough for a probe never leave the window, so
here each mask is a tensor that says which window it has, and the attention function compares it with its argument.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from weitune.model.decoder_of import decoder_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NAME = "weitune_windows"


def tells_windows(model: PreTrainedModel) -> bool:
    """Return whether every layer of ``model`` gets the window of its mask as an argument too.

    Costs a forward of one token, if there are windows at all.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    if not getattr(model.config.get_text_config(), "sliding_window", None):
        return True
    equal = []
    device = model.get_input_embeddings().weight.device

    def mask(*_: Any, local_size: int | None = None, **__: Any) -> Tensor:
        return torch.full((1, 1, 1, 1), local_size or 0, device=device)

    def attention(
        _module: Any, query: Tensor, _key: Tensor, value: Tensor, attention_mask: Tensor | None,
        *, sliding_window: int | None = None, **_: Any,
    ) -> tuple[Tensor, None]:  # fmt: skip
        equal.append(attention_mask is None or int(attention_mask) == (sliding_window or 0))
        seen = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)  # one token sees only itself
        return seen.transpose(1, 2), None

    AttentionInterface.register(_NAME, attention)
    AttentionMaskInterface.register(_NAME, mask)
    before = model.config._attn_implementation
    try:
        model.set_attn_implementation(_NAME)
        decoder_of(model)(input_ids=torch.zeros(1, 1, dtype=torch.long, device=device), use_cache=False)
    finally:
        model.set_attn_implementation(before)
    return all(equal)
