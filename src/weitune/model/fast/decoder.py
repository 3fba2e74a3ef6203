"""Run a model's decoder block by block through :func:`.run_block`, with the model's own weights.

A layer is read part by part: its norms (:mod:`.norm`), its mixers (:mod:`.recognise.mixers`) and what lies between them
(:mod:`.recognise.arrangement`). Then :mod:`weitune.model.capabilities` tests whether the whole computes what the model
computes; a model with a layer that is not known, or of which that is not true, is run by its own modules.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from weitune.model.decoder_of import decoder_of
from weitune.model.fast.block import run_block, run_recomputed
from weitune.model.fast.channel.per_layer import PerLayerInput, per_layer_name, read_per_layer_embeddings
from weitune.model.fast.channel.side_by_side import SideBySide
from weitune.model.fast.dropout import DropoutDraws
from weitune.model.fast.experts.mixture import Mixture
from weitune.model.fast.matmul import lay_by_columns
from weitune.model.fast.norm import Norm, read_norm
from weitune.model.fast.packed import can_be_packed
from weitune.model.fast.parts import BlockContext, BlockParts, Mixer
from weitune.model.fast.recognise.arrangement import arrange
from weitune.model.fast.recognise.by_name import arrange_by_name
from weitune.model.fast.recognise.mixers import read_mixer
from weitune.model.fast.self_attention.observe import FOREVER, Rows
from weitune.model.fast.self_attention.positions import Positions
from weitune.model.fast.self_attention.shared_keys import share_keys
from weitune.model.fast.tree import Tree
from weitune.model.storage.shard import gathered
from weitune.recipe.schema import Recompute

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class BlockDecoder:
    """The decoder of a model as a list of :class:`BlockParts`."""

    def __init__(
        self,
        decoder: Any,
        blocks: list[BlockParts],
        dtype: torch.dtype,
        per_layer_norm: Norm | None = None,
        positions: int = FOREVER,
    ) -> None:
        self.module, self.parts, self.dtype = decoder, blocks, dtype
        groups = [group for block in blocks for group in block.groups]
        self._rate = max((group.rate for group in groups), default=0.0)
        self._widest = max((p.shape[1] for group in groups for p in group.projections), default=0)
        self._per_layer = read_per_layer_embeddings(decoder, per_layer_norm)
        self.positions = positions
        """Positions below this are computed as the model computes them; from there on, some models scale attention"""

    @classmethod
    def from_model(cls, model: PreTrainedModel, dtype: torch.dtype | None = None) -> BlockDecoder | None:
        """Return the block decoder of ``model``, or None if its blocks are not plain.

        It computes in ``dtype``, whatever the weights are stored in, by default in that of the model.
        """
        decoder = decoder_of(model)
        if not hasattr(decoder, "layers") or _last_norm(decoder) is None:
            return None
        try:
            rows = Rows.of(decoder)
        except LookupError:  # some kinds of layers have no rotary embeddings
            return None
        read: list[BlockParts] = []
        for layer in decoder.layers:
            with gathered(layer):
                block = _read_block(layer, rows)
            if block is None:
                return None
            read.append(block)
        blocks = cls(decoder, read, dtype or model.dtype, positions=min(rows.limits, default=FOREVER))
        return blocks if blocks.has_all_inputs else None

    def with_adapters(self, dtype: torch.dtype) -> BlockDecoder | None:
        """Return this decoder with the adapters that its layers have now, computing in ``dtype``.

        None if an adapter is not plain LoRA or DoRA, or if other parameters of the layers are trained.
        """
        read = [block.with_adapters() for block in self.parts]
        blocks = [block for block in read if block]
        per_layer_norm = self._per_layer.norm if self._per_layer else None
        decoder = BlockDecoder(self.module, blocks, dtype, per_layer_norm, self.positions)
        whole = len(blocks) == len(read) and decoder.has_all_inputs and decoder.trains_all
        return decoder if whole else None

    @property
    def has_all_inputs(self) -> bool:
        """Whether what the blocks read besides the hidden states can be computed."""
        mixers = [branch.mixer for block in self.parts for branch in block.branches]
        return self._per_layer is not None or not any(isinstance(mixer, PerLayerInput) for mixer in mixers)

    @property
    def trains_all(self) -> bool:
        """Whether every trained parameter of the decoder's layers, and of what they read, gets a gradient."""
        trained = {id(parameter) for block in self.parts for parameter in block.parameters}
        modules = [self.module.layers]
        if self._per_layer:  # it reads the embeddings without a gradient to them
            modules += [*self._per_layer.modules, self.module.get_input_embeddings()]
        parameters = (parameter for module in modules for parameter in module.parameters())
        return all(id(each) in trained for each in parameters if each.requires_grad)

    def waits_for(self, device: torch.device) -> bool:
        """Return whether a pass on ``device`` waits for numbers that it has computed: the rows of each expert."""
        branches = [branch for block in self.parts for branch in block.branches]
        branches += [inner for each in branches if isinstance(each.mixer, SideBySide) for inner in each.mixer.branches]
        routed = [branch.mixer.routed for branch in branches if isinstance(branch.mixer, Mixture)]
        return not all(each.can_group(device, self.dtype) for each in routed)

    def lay_out(self) -> None:
        """Store matrices by columns where oneDNN multiplies slices of their columns, those of down."""
        for block in self.parts:
            for group in block.groups:
                for projection in group.projections if group.reads_slices else ():
                    lay_by_columns(projection.layer)

    def packable(self) -> list[nn.Linear]:
        """Return the linear layers of whose frozen matrices copies can be made (:mod:`.packed`), each once."""
        if self.dtype != torch.bfloat16:
            return []
        groups = [group for block in self.parts for group in block.groups]
        read = [
            p.layer
            for group in groups
            for p in group.projections
            if p.part is None and (p.magnitude is None or group.rate)  # otherwise DoRA multiplies its rows in a pass
        ]
        return [layer for layer in dict.fromkeys(read) if can_be_packed(layer)]

    def states(
        self, input_ids: Tensor, tree: Tree, rows: Tensor, *, training: bool, recompute: Recompute = "none"
    ) -> Tensor:
        """Return the last hidden states (len(rows), C) at ``rows`` of a packed row ``input_ids`` (T,).

        No token's states are read after the last block that computes keys and values, save those wanted: that block and
        those after it run for ``rows`` only.
        """
        hidden = self.embed(input_ids[None])[0]
        context = self.begin(hidden, tree, training=training, keep_feed_forward=recompute == "none")
        run = run_recomputed if recompute == "block" else run_block
        last = max(index for index, block in enumerate(self.parts) if block.makes_keys)
        self._carry_per_layer_inputs(context, input_ids, hidden, rows, last)
        for index, block in enumerate(self.parts):
            if block.keys is not None:
                block.keys.run(hidden, context)
            wanted = rows if index == last else None
            if block.keys is not None and wanted is not None:
                hidden, context, wanted = hidden[rows], context.only(rows), None
            hidden = run(block, hidden, context, wanted)
            if wanted is not None and index + 1 < len(self.parts):
                context = context.only(rows)
        states: Tensor = _last_norm(self.module)(hidden)
        return states

    def embed(self, input_ids: Tensor) -> Tensor:
        """Return what the first block reads for ``input_ids``, of any shape: their embeddings, perhaps scaled."""
        embedded: Tensor = self.module.get_input_embeddings()(input_ids).to(self.dtype)
        multiplier = getattr(self.module, "embedding_multiplier", 1)  # other families have it in the embeddings
        return embedded if multiplier == 1 else embedded * multiplier

    def _carry_per_layer_inputs(
        self, context: BlockContext, input_ids: Tensor, hidden: Tensor, rows: Tensor, last: int
    ) -> None:
        """Let ``context`` carry what blocks read beside ``hidden``; from the block ``last`` on for ``rows`` only."""
        if self._per_layer is None:
            return
        computed = self._per_layer.compute(input_ids, hidden.detach())
        for index, of_layer in enumerate(computed.unbind(1)):
            context.carried[per_layer_name(index)] = of_layer[rows] if index >= last else of_layer

    def begin(self, hidden: Tensor, tree: Tree, *, training: bool, keep_feed_forward: bool = True) -> BlockContext:
        """Begin a pass over ``hidden`` (T, C): compute positions and, in training, draw dropout for all blocks."""
        dropout = None
        if training and self._rate:
            dropout = DropoutDraws(self._rate, len(hidden) * self._widest, hidden.device, hidden.dtype)
        positions = Positions.of(self.module, hidden[None], tree.position_ids[None], tree)
        return BlockContext(positions, dropout, keep_feed_forward)


def _last_norm(decoder: Any) -> Any:
    """Return what normalises the states of the last layer, or None if that cannot be told."""
    if hasattr(decoder, "norm"):
        return decoder.norm
    norms = [
        part for part in decoder.children() if isinstance(w := getattr(part, "weight", None), Tensor) and w.dim() == 1
    ]
    return norms[0] if len(norms) == 1 else None


def _read_block(layer: nn.Module, rows: Rows) -> BlockParts | None:
    norms: dict[str, Norm] = {}
    mixers: dict[str, Mixer] = {}
    with gathered(layer):  # some parts are tried on a few rows
        for name, part in layer.named_children():
            if norm := read_norm(part):
                norms[name] = norm
            elif mixer := read_mixer(part, rows):
                mixers[name] = mixer
    block = arrange(layer, mixers, norms) or arrange_by_name(layer, mixers, norms)
    return block and share_keys(block)
