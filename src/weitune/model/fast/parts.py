"""What decoder blocks are made of: branches on the residual stream, each with a mixer between norms.

    h ─┬─ pre-norm ─ mixer ─ post-norm ─ ·multiplier ─ + ─▶ h'
       └───────────────────────────────────────────────┘

The branches of a block run one after another or, if they are parallel, all read the same h. A mixer is attention, a
feed-forward layer or a mixture of experts. Each part has a forward and a backward that are written out, and a readable
twin called ``reference``, which autograd differentiates.

Parts are found in a model by their structure, never by its name, and the whole is compared with the model's own modules
before it is used (:mod:`weitune.model.capabilities`).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from torch import Tensor, nn

from weitune.model.fast.dropout import DropoutDraws
from weitune.model.fast.norm import Norm
from weitune.model.fast.projection import LoraGroup


@dataclass(slots=True, eq=False)
class BlockContext:
    """What all blocks share in one forward pass."""

    attention: Any
    """What attention needs to know of the row: its tree and its rotary embedding."""
    dropout: DropoutDraws | None
    keep_feed_forward: bool = True
    """Keep gate and up for backward: faster, but twice the memory."""
    retain_graph: bool = False
    """Let backward be called several times, as gradcheck does. Otherwise it frees what was kept while it runs."""
    carried: dict[Hashable, Tensor] = field(default_factory=dict)
    """What blocks read besides the hidden states, by name: per-layer inputs, the keys of an earlier block. Gradients
    flow back through it."""

    def only(self, rows: Tensor) -> BlockContext:
        """Return the context for some ``rows`` (U,) that attend to keys and values of all."""
        return replace(self, attention=self.attention.only(rows))


class MixerPass(Protocol):
    """A mixer in one pass: it knows which dropout was drawn."""

    def forward(self, x: Tensor, base: Tensor | None, rows: Tensor | None) -> tuple[Tensor, Any]:
        """Return ``base`` + mix(``x``), and what backward needs.

        ``x`` (T, C) is the normalised input, and neither it nor ``base`` is overwritten. Without ``base`` the output is
        mix(x) in memory of its own. A mixer of tokens may be asked for some ``rows`` of its output only; ``base`` then
        has only these.
        """
        ...

    def backward(
        self, grad: Tensor, x: Tensor, saved: Any, *, retain: bool, needs_input: bool
    ) -> tuple[Tensor | None, list[Tensor]]:
        """Return the gradient of ``x``, if it is needed, and those of what the mixer reads of the context's ``carried``
        and of its parameters, in their order.

        ``grad`` is that of the output and is not overwritten. Unless backward is to be called again (``retain``),
        ``saved`` may be overwritten.
        """
        ...


class Mixer(Protocol):
    """What a branch computes between its norms, with the weights and adapters of a model."""

    @property
    def groups(self) -> Sequence[LoraGroup]:
        """The linear layers with the adapters on them. A pass draws dropout for the groups in this order."""
        ...

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The trained tensors, in the order of the gradients that backward returns."""
        ...

    @property
    def carried(self) -> Sequence[Hashable]:
        """The names of what it reads of the context's ``carried``."""
        ...

    @property
    def mixes_tokens(self) -> bool:
        """Whether a row of the output depends on other rows of the input."""
        ...

    def begin(self, context: BlockContext) -> MixerPass:
        """Begin a pass: draw the offsets of dropout masks and measure DoRA's norms."""
        ...

    def reference(self, x: Tensor, context: BlockContext) -> Tensor:
        """Return mix(x) as models write it, differentiable by autograd; the same dropout as a pass draws."""
        ...

    def with_adapters(self) -> Mixer | None:
        """Return this mixer with the adapters that its layers have now; None if one is not plain LoRA or DoRA."""
        ...


class KeySource(Protocol):
    """What computes the keys and values that attention reads in its block and in later ones."""

    @property
    def inputs(self) -> LoraGroup: ...

    @property
    def parameters(self) -> list[nn.Parameter]: ...

    def run(self, hidden: Tensor, context: BlockContext) -> None:
        """Add keys and values for ``hidden`` (T, C), the block's input, to the context's ``carried``."""
        ...

    def reference(self, hidden: Tensor, context: BlockContext) -> None:
        """Do the same as models write it; differentiable by autograd."""
        ...

    def with_adapters(self) -> KeySource | None:
        """Return this source with the adapters that its layers have now; None if one is not plain LoRA or DoRA."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Branch:
    """A mixer between its norms: multiplier · post(mixer(pre(h)))."""

    pre: Norm | None
    mixer: Mixer
    post: Norm | None = None
    multiplier: float = 1.0


@dataclass(frozen=True, slots=True, eq=False)
class BlockParts:
    """A decoder block as an arrangement of branches."""

    branches: Sequence[Branch]
    layer: nn.Module
    """The decoder layer that has the weights"""
    parallel: bool = False
    """Whether all branches read the block's input, rather than each the sum that the one before it leaves"""
    scale: float = 1.0
    """what the output is multiplied by at the end"""
    keys: KeySource | None = None
    """what runs before the block, if later blocks read its keys and values"""

    @property
    def groups(self) -> list[LoraGroup]:
        of_keys = [self.keys.inputs] if self.keys else []
        return of_keys + [group for branch in self.branches for group in branch.mixer.groups]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Every trained tensor of the block."""
        return (self.keys.parameters if self.keys else []) + self.branch_parameters

    @property
    def branch_parameters(self) -> list[nn.Parameter]:
        """Those of the branches."""
        return [parameter for branch in self.branches for parameter in branch.mixer.parameters]

    @property
    def makes_keys(self) -> bool:
        """Whether the block needs all tokens of a row, because it computes keys and values."""
        mixers = [branch.mixer for branch in self.branches]
        return self.keys is not None or any(mixer.mixes_tokens and not mixer.carried for mixer in mixers)

    @property
    def carried(self) -> list[Hashable]:
        """The names of what it reads of the context's ``carried``, each once."""
        return list(dict.fromkeys(name for branch in self.branches for name in branch.mixer.carried))

    def with_adapters(self) -> BlockParts | None:
        """Return this block with the adapters that its layers have now; None if one is not plain LoRA or DoRA."""
        branches = []
        for branch in self.branches:
            mixer = branch.mixer.with_adapters()
            if mixer is None:
                return None
            branches.append(replace(branch, mixer=mixer))
        keys = self.keys.with_adapters() if self.keys else None
        return None if self.keys and keys is None else replace(self, branches=branches, keys=keys)
