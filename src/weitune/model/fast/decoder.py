"""Run a model's decoder block by block through :func:`.run_block`, with the model's own weights.

The parts have the names that Llama-like families share. :mod:`weitune.model.capabilities` tests whether a model really
computes what these parts compute; a model that does not is run by its own modules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from weitune.model.decoder_of import decoder_of
from weitune.model.fast.block import run_block, run_recomputed
from weitune.model.fast.dropout import DropoutDraws
from weitune.model.fast.feed_forward import FeedForward
from weitune.model.fast.matmul import lay_by_columns
from weitune.model.fast.norm import Norm, read_norm
from weitune.model.fast.parts import BlockContext, BlockParts, Mixer
from weitune.model.fast.recognise.arrangement import arrange
from weitune.model.fast.recognise.mixers import read_mixer
from weitune.model.fast.self_attention.observe import Rows
from weitune.model.fast.self_attention.positions import Positions
from weitune.model.fast.tree import Tree
from weitune.recipe.schema import Recompute

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class BlockDecoder:
    """The decoder of a model as a list of :class:`BlockParts`."""

    def __init__(self, decoder: Any, blocks: list[BlockParts], dtype: torch.dtype) -> None:
        self.module, self.parts, self.dtype = decoder, blocks, dtype
        groups = [group for block in blocks for group in block.groups]
        self._rate = max((group.rate for group in groups), default=0.0)
        self._widest = max((p.shape[1] for group in groups for p in group.projections), default=0)

    @classmethod
    def from_model(cls, model: PreTrainedModel, dtype: torch.dtype | None = None) -> BlockDecoder | None:
        """Return the block decoder of ``model``, or None if its blocks are not plain.

        It computes in ``dtype``, whatever the weights are stored in, by default in that of the model.
        """
        decoder = decoder_of(model)
        if any(getattr(decoder, name, None) is None for name in ("embed_tokens", "layers", "norm", "rotary_emb")):
            return None
        rows = Rows.of(decoder)
        blocks = [_read_block(layer, rows) for layer in decoder.layers]
        plain = [block for block in blocks if block is not None]
        return cls(decoder, plain, dtype or model.dtype) if len(plain) == len(blocks) else None

    def with_adapters(self, dtype: torch.dtype) -> BlockDecoder | None:
        """Return this decoder with the adapters that its layers have now, computing in ``dtype``.

        None if an adapter is not plain LoRA or DoRA, or if other parameters of the layers are trained.
        """
        read = [block.with_adapters() for block in self.parts]
        blocks = [block for block in read if block]
        decoder = BlockDecoder(self.module, blocks, dtype)
        return decoder if len(blocks) == len(read) and decoder.trains_all else None

    @property
    def trains_all(self) -> bool:
        """Whether every trained parameter of the decoder's layers gets a gradient."""
        trained = {id(parameter) for block in self.parts for parameter in block.parameters}
        return all(id(each) in trained for each in self.module.layers.parameters() if each.requires_grad)

    def lay_out(self) -> None:
        """Store the matrices of down by columns where oneDNN multiplies slices of their columns."""
        for block in self.parts:
            for branch in block.branches:
                if isinstance(branch.mixer, FeedForward):
                    lay_by_columns(branch.mixer.down.projections[0].layer)

    def states(
        self, input_ids: Tensor, tree: Tree, rows: Tensor, *, training: bool, recompute: Recompute = "none"
    ) -> Tensor:
        """Return the last hidden states (len(rows), C) at ``rows`` of a packed row ``input_ids`` (T,)."""
        hidden = self.embed(input_ids[None])[0]
        context = self.begin(hidden, tree, training=training, keep_feed_forward=recompute == "none")
        run = run_recomputed if recompute == "block" else run_block
        for block in self.parts[:-1]:
            hidden = run(block, hidden, context)
        hidden = run(self.parts[-1], hidden, context, rows)
        states: Tensor = self.module.norm(hidden)
        return states

    def embed(self, input_ids: Tensor) -> Tensor:
        """Return what the first block reads for ``input_ids``, of any shape: their embeddings, perhaps scaled."""
        embedded: Tensor = self.module.embed_tokens(input_ids).to(self.dtype)
        multiplier = getattr(self.module, "embedding_multiplier", 1)  # other families have it in the embeddings
        return embedded if multiplier == 1 else embedded * multiplier

    def begin(self, hidden: Tensor, tree: Tree, *, training: bool, keep_feed_forward: bool = True) -> BlockContext:
        """Begin a pass over ``hidden`` (T, C): compute positions and, in training, draw dropout for all blocks."""
        dropout = None
        if training and self._rate:
            dropout = DropoutDraws(self._rate, len(hidden) * self._widest, hidden.device, hidden.dtype)
        positions = Positions.of(self.module, hidden[None], tree.position_ids[None], tree)
        return BlockContext(positions, dropout, keep_feed_forward)


def _read_block(layer: nn.Module, rows: Rows) -> BlockParts | None:
    norms: dict[str, Norm] = {}
    mixers: dict[str, Mixer] = {}
    for name, part in layer.named_children():
        if norm := read_norm(part):
            norms[name] = norm
        elif mixer := read_mixer(part, rows):
            mixers[name] = mixer
    return arrange(layer, mixers, norms)
