"""The memory of a pass, for any architecture, computed by a block decoder or by a model's own modules under autograd.

No formula could cover every family's norms, routers, recurrent states and attention. So the model of the
configuration, with the sizes it really has, runs forward and backward on fake tensors (:mod:`.live_memory`), with the
adapter as PEFT attaches it:

    the first layers, until every kind of layer has occurred ─▶ what each keeps for backward, and the peak beside it
    the other layers                                         ─▶ as much as one of their kind

A few rows of the run's longest example tell what one more token, and one more row, takes. Cost: some tenths of a second
for each kind of layer.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from weitune.forecast.block_memory import WatchedParts, layers_to_run
from weitune.forecast.fake_batch import fake_batch, mask_bytes
from weitune.forecast.live_memory import LiveBytes, TooManyOperations, make_fake
from weitune.forecast.stand_in_numbers import stand_in_numbers, without_parameters
from weitune.model.batch import PackedTensors, TensorBatch
from weitune.model.capabilities import Capabilities
from weitune.model.decoder_of import decoder_of
from weitune.model.fast.attention import BLOCKS, register
from weitune.model.fast.decoder import BlockDecoder
from weitune.model.fast.matmul import onednn_is_faster
from weitune.model.lora.adapter import attach_adapter
from weitune.model.lora.targets import find_targets, layer_numbers
from weitune.model.own_dropout import turn_off_own_dropout
from weitune.model.supervised import SupervisedModel
from weitune.recipe.schema import Lora, Recompute

_SHORTEST = 64
"""Tokens of the shortest row that is measured: hybrid models compute such chunks."""
_SHORT = 128
"""Tokens of the rows of a model that computes token by token, where longer ones take long to measure."""


@dataclass(frozen=True, slots=True)
class Linear:
    """Bytes as a function of the size of a pass."""

    fixed: float
    per_row: float
    per_token: float

    def at(self, rows: float, tokens: int) -> int:
        return max(0, round(self.fixed + self.per_row * rows + self.per_token * tokens))

    @classmethod
    def through(cls, points: Sequence[tuple[int, int, int]]) -> Linear:
        """Return the function through (rows, tokens, bytes) of one row, of two, and perhaps of four half as long."""
        (_, length, one), (_, _, two), *more = points
        per_row = max(0.0, (more[0][2] - two) / 2) if more else 0.0
        per_token = max(0.0, (two - one - per_row) / length)
        return cls(one - per_row - per_token * length, per_row, per_token)


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a pass takes, apart from what is there before and after it, in bytes."""

    kept: Linear
    """For backward, by the decoder."""
    work: Linear
    """Beside that, at the most, while the decoder computes forward or backward."""
    head: Linear
    """Beside what is kept, at the most, while the head and the loss are computed for one prediction."""
    per_prediction: float
    """What each further prediction adds to the head, if its logits are not computed in chunks."""


@dataclass(frozen=True, slots=True)
class _Sample:
    kept: int
    work: int
    head: int


class OwnModules:
    """The model whose configuration ``read`` returns, with the adapter of ``lora`` if there is one.

    Its ``capabilities`` decide whether a block decoder or its own modules are measured. ``build`` makes the model of a
    configuration in a number format, on the current device.
    """

    def __init__(
        self,
        read: Callable[[], Any],
        lora: Lora | None,
        capabilities: Capabilities,
        build: Callable[[Any, torch.dtype], Any],
    ) -> None:
        self._read, self._lora, self._capabilities, self._build = read, lora, capabilities, build
        self._footprint = functools.cache(self._try)
        self._model = functools.cache(self._make)

    def footprint(self, number_bytes: int, *, recompute: Recompute, longest: int) -> Footprint | None:
        """Return the footprint of passes whose longest row has ``longest`` tokens, in 4 or 2 bytes a number.

        None if the model cannot run without numbers.
        """
        return self._footprint(number_bytes, recompute, longest)

    def _try(self, number_bytes: int, recompute: Recompute, longest: int) -> Footprint | None:
        length = max(longest, _SHORTEST)
        try:
            try:
                return self._measure(number_bytes, recompute, length)
            except TooManyOperations:
                return self._measure(number_bytes, recompute, min(length, _SHORT))
        except Exception:  # noqa: BLE001  (an unknown architecture may raise anything)
            return None

    def _measure(self, number_bytes: int, recompute: Recompute, length: int) -> Footprint:
        model = self._model(torch.float32 if number_bytes == 4 else torch.bfloat16)
        shapes = [(1, length), (2, length)]
        if not self._capabilities.shares_rows:
            shapes.append((4, length // 2))
        samples = [model.sample(rows, tokens, 1, recompute=recompute) for rows, tokens in shapes]

        def line(of: Callable[[_Sample], int]) -> Linear:
            return Linear.through([(n, n * each, of(s)) for (n, each), s in zip(shapes, samples, strict=True)])

        per_prediction = 0.0
        if self._capabilities.head is None:
            many = model.sample(1, length, length, recompute=recompute)
            per_prediction = (many.head - samples[0].head) / max(1, length - 1)
        return Footprint(
            line(lambda s: s.kept), line(lambda s: s.work), line(lambda s: s.head), max(0.0, per_prediction)
        )

    def _make(self, dtype: torch.dtype) -> _FakeModel:
        with without_parameters():
            model = self._build(self._read(), dtype)
        layers, kinds = layers_of(model), _kinds(model, self._lora)
        adapted = None if self._lora is None else find_targets(model, self._lora).record()  # by the names of all layers
        del layers[_first_layers(kinds) :]
        turn_off_own_dropout(model)
        model.requires_grad_(self._lora is None)
        blocks = None
        if self._capabilities.plain_blocks and self._capabilities.head is not None:
            model.set_experts_implementation("eager")  # grouped products want matrices that do not overlap
            with stand_in_numbers(model):
                blocks = BlockDecoder.from_model(model.eval())
            if blocks is None:
                raise LookupError(type(model).__name__)
        if self._lora is not None:
            plain = {"init": "default", "init_from": None, "train_tokens": None}
            with torch.device("meta"):
                targets = find_targets(model, self._lora, adapted)
                attach_adapter(model, self._lora.model_copy(update=plain), seed=0, base="", targets=targets)
        return _FakeModel(model, layers, kinds, self._capabilities, blocks)


def layers_of(model: Any) -> nn.ModuleList:
    """Return the decoder layers of ``model``. Raises LookupError if there is no list of them."""
    count = model.config.get_text_config().num_hidden_layers
    for module in decoder_of(model).modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise LookupError(type(model).__name__)


def _kinds(model: Any, lora: Lora | None) -> list[Hashable]:
    """Return for every decoder layer what its memory depends on: modules, sizes, and whether it is adapted."""
    adapted = set(layer_numbers(model, lora.layers)) if lora is not None and lora.layers else None
    return [
        (
            tuple(type(module) for module in layer.modules()),
            tuple((name, tuple(parameter.shape)) for name, parameter in layer.named_parameters()),
            adapted is None or number in adapted,
        )
        for number, layer in enumerate(layers_of(model))
    ]


def _first_layers(kinds: Sequence[Hashable]) -> int:
    """Return how many layers there are until each kind has occurred; two at least, since the first is special."""
    return max(min(2, len(kinds)), 1 + max(kinds.index(kind) for kind in set(kinds)))


class _FakeModel:
    """A model cut to its first layers, in fake tensors."""

    def __init__(
        self, model: Any, layers: nn.ModuleList, kinds: Sequence[Hashable], capabilities: Capabilities,
        blocks: BlockDecoder | None,
    ) -> None:  # fmt: skip
        self._model, self._layers, self._kinds, self._capabilities = model, layers, kinds, capabilities
        onednn_is_faster()  # which remembers what it finds, and must not try it with fake tensors
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        if capabilities.shares_rows:
            register()
            model.set_attn_implementation(BLOCKS)
        make_fake(model, self._fake)
        with self._fake:
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.grad = torch.empty_like(parameter)  # forecasts count gradients apart
            self._blocks = blocks and blocks.with_adapters(model.dtype)

    def sample(self, rows: int, length: int, predictions: int, *, recompute: Recompute) -> _Sample:
        """Run a pass of ``rows`` · ``length`` tokens, and return what it takes in the whole model."""
        if self._blocks is not None:
            return self._sample_of_blocks(self._blocks, rows, length, recompute)
        if recompute == "none":
            self._model.gradient_checkpointing_disable()
        form = self._capabilities.head
        supervised = SupervisedModel(self._model, head=form, recompute=recompute).train()
        with self._fake:
            batch = fake_batch(rows, length, predictions, shared=self._capabilities.shares_rows)
            with LiveBytes(self._before(batch)) as live, _Watch(live, self._model, self._layers, batch) as watch:
                result = supervised(batch) if form is None else supervised.predicting_states(batch)
                result.sum().backward()
        last = dict(zip(self._kinds, watch.layers, strict=False))  # of each kind
        others = sum(last[kind] for kind in self._kinds[len(self._layers) :])
        forward, head, backward = watch.peaks
        return _Sample(watch.kept + others, max(forward, backward) - watch.kept, head - watch.kept)

    def _sample_of_blocks(self, blocks: BlockDecoder, rows: int, length: int, recompute: Recompute) -> _Sample:
        """Run the blocks of some layers; the others take as much as one of their kind."""
        order = layers_to_run(self._kinds, len(self._layers))
        decoder = copy.copy(blocks)
        supervised = SupervisedModel(self._model, blocks=decoder, recompute=recompute).train()
        with self._fake:
            batch = fake_batch(rows, length, rows * length, shared=True)
            with LiveBytes(self._before(batch)) as live:
                decoder.parts = watched = WatchedParts([blocks.parts[at] for at in order], live, batch)
                states = supervised.predicting_states(batch)
                kept, forward = live.now, live.peak()
                states.sum().backward()
                work = max(forward, live.peak()) - kept
        return _Sample(kept + watched.kept_by_others(self._kinds, order), work, 0)

    def _before(self, batch: TensorBatch) -> list[Tensor]:
        """Return the tensors that a pass finds."""
        gradients = [p.grad for p in self._model.parameters() if p.grad is not None]
        return [*self._model.parameters(), *self._model.buffers(), *gradients, batch.input_ids]


class _Watch:
    """Reads within its block off ``live`` what a pass takes in each of its phases, in bytes."""

    def __init__(self, live: LiveBytes, model: Any, layers: nn.ModuleList, batch: TensorBatch) -> None:
        self.layers: list[int] = []
        """What each layer keeps."""
        self.peaks: list[int] = []
        """Of the decoder forward, of the head with the loss, of the decoder backward."""
        self.kept = 0
        """By the decoder, of all layers that there are."""
        self._live, self._tree = live, batch.tree if isinstance(batch, PackedTensors) else None
        self._handles = [decoder_of(model).register_forward_hook(self._decoded)]
        for layer in layers:
            self._handles += [layer.register_forward_pre_hook(self._begin), layer.register_forward_hook(self._end)]

    def __enter__(self) -> _Watch:
        return self

    def __exit__(self, *_: object) -> None:
        self.peaks.append(self._live.peak())
        for handle in self._handles:
            handle.remove()

    def _of_layers(self) -> int:
        """Return what exists now, without the masks, which all layers share."""
        return self._live.now - mask_bytes(self._tree)

    def _begin(self, *_: Any) -> None:
        if not self.peaks:  # and not once more, in backward
            self.layers.append(-self._of_layers())

    def _end(self, *_: Any) -> None:
        if not self.peaks:
            self.layers[-1] += self._of_layers()

    def _decoded(self, module: Any, inputs: Any, output: Any) -> None:
        self.peaks.append(self._live.peak())
        self.kept = self._live.now
        output.last_hidden_state.register_hook(lambda grad: self.peaks.append(self._live.peak()))
