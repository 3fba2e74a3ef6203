"""A loaded model with what is trained of it: what it can do, and what memory its training takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from weitune.data.layout import Layout
from weitune.forecast.device_memory import (
    SHARE_OF_FREE_MEMORY,
    MemoryPlan,
    choose_recorded_tokens,
    free_bytes,
    plan_memory,
    resident_bytes,
)
from weitune.forecast.memory_estimate import MOST_TOKENS_ON_CPU, ModelShape, PassConfig, trained_bytes
from weitune.model.capabilities import Capabilities
from weitune.model.fast.decoder import BlockDecoder
from weitune.model.fast.matmul import kept_bytes
from weitune.model.fast.packed import COPIES, packing_pays
from weitune.model.load.weights import LoadedModel
from weitune.model.lora.targets import Targets
from weitune.model.lora.trainable_state import TrainableState
from weitune.model.storage.shard import gathered_bytes, held_numbers
from weitune.model.storage.weight_storage import dense_bytes
from weitune.recipe.schema import Recompute, Train

if TYPE_CHECKING:
    from weitune.forecast.own_modules import OwnModules


@dataclass(frozen=True, slots=True)
class Trainable:
    """A model ready to be trained."""

    loaded: LoadedModel
    trained: TrainableState
    capabilities: Capabilities
    """Of the model with its adapter."""
    blocks: BlockDecoder | None = None
    """Runs its decoder blocks, if ``capabilities.plain_blocks``."""
    targets: Targets | None = None
    """What has an adapter; None if the whole model is trained."""
    modules: OwnModules | None = None
    """Measures its passes, if no formula holds for them."""

    @property
    def layout(self) -> Layout:
        return self.capabilities.layout

    @property
    def group_layout(self) -> Layout:
        return self.capabilities.group_layout

    @property
    def shape(self) -> ModelShape:
        return ModelShape.from_config(self.loaded.model.config)

    def pass_config(self, recompute: Recompute = "none") -> PassConfig:
        lora: Any = getattr(self.trained.model, "peft_config", {}).get("default")
        plain_blocks = self.capabilities.plain_blocks
        return PassConfig(
            number_bytes=self.loaded.dtype.itemsize,
            plain_blocks=plain_blocks,
            recompute=recompute,
            rank=lora.r if lora else 0,
            dropout=bool(lora and lora.lora_dropout),
            slices=self.loaded.device.type == "cpu",
            dense_bytes=dense_bytes(
                self.loaded.storage, self.loaded.dtype, plain_blocks=plain_blocks, dora=bool(lora and lora.use_dora)
            ),
            modules=self.modules,
        )

    def pending_bytes(self) -> int:
        """Return the bytes that training will allocate once, besides its passes, and has not allocated yet.

        Weights that are mapped from a file take memory when they are first read, gradients and moments at the first
        step, as does the code that oneDNN generates for each shape of a matrix product.
        """
        numbers = [(held_numbers(p), p.element_size(), p.requires_grad) for p in self.trained.model.parameters()]
        held = sum(numel * size for numel, size, _ in numbers)
        unread = max(0, held - resident_bytes()) if self.loaded.device.type == "cpu" else 0
        whole = gathered_bytes(self.loaded.model) if self.loaded.shards > 1 else 0
        code = kept_bytes(self.loaded.device.type, self.loaded.dtype)
        return unread + whole + code + sum(trained_bytes(sum(numel for numel, _, trained in numbers if trained))[1:])

    def copied_bytes(self) -> int:
        """Return the bytes of packed copies of its frozen matrices, 0 if there is no use for them."""
        if self.blocks is None or self.loaded.shards > 1 or not packing_pays():
            return 0
        return COPIES * sum(layer.weight.nbytes for layer in self.blocks.packable())

    def memory_plan(
        self,
        train: Train,
        *,
        longest: int,
        micro_tokens: int | None = None,
        may_pack: bool = True,
        most_on_cpu: int = MOST_TOKENS_ON_CPU,
    ) -> MemoryPlan:
        """Return the values that ``auto`` resolves to with the memory that is free on this device now.

        ``longest`` is the length of the longest example, in tokens; ``micro_tokens`` overrides ``train``; on a CPU
        ``auto`` is at most ``most_on_cpu``. Without ``may_pack``, no matrices are copied.
        """
        return plan_memory(
            self.shape,
            self.pass_config(),
            train,
            budget=self._budget(),
            longest=longest,
            micro_tokens=micro_tokens,
            copies=self.copied_bytes() if may_pack else 0,
            most_on_cpu=most_on_cpu,
        )

    def graph_tokens(self, recompute: Recompute) -> int:
        """Return how many tokens a pass may have whose CUDA graph is kept in the memory that is free now."""
        return choose_recorded_tokens(self.shape, self.pass_config(recompute), budget=self._budget())

    def _budget(self) -> int:
        return int(SHARE_OF_FREE_MEMORY * (free_bytes(self.loaded.device) - self.pending_bytes()))
