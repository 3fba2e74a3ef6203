"""The same equalities on a GPU: compiled attention, fast blocks, recorded passes, runs. Skipped without one."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.data.preference.groups import answer
from tests.invariant.test_oracle import examples_with_forks
from tests.invariant.test_packing import softened
from tests.tiny import tiny_model
from tests.training.test_run import StopAfter, recipe_for
from weitune import train
from weitune.data.pack import PackedBatch, pack
from weitune.data.pack_groups import pack_groups
from weitune.data.preference.values import Group
from weitune.errors import Interrupted
from weitune.model.batch import to_tensors
from weitune.model.capabilities import probe
from weitune.model.cuda_graph import CudaGraphPasses
from weitune.model.fast.attention import dense_tree_attention, flex_tree_attention, register
from weitune.model.fast.decoder import BlockDecoder
from weitune.model.fast.tree import Tree
from weitune.model.lora.adapter import attach_adapter
from weitune.model.storage.shard import shard
from weitune.model.supervised import SupervisedModel
from weitune.recipe.schema import Lora, Storage, Train
from weitune.training.optim import seed_step
from weitune.training.run import resume

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
GPU = torch.device("cuda")
register()


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (8, 2)])
def test_compiled_attention_equals_the_dense_one(heads: int, groups: int, window: int | None) -> None:
    tree = Tree.from_batch(pack(examples_with_forks(40, vocabulary=50)), GPU)
    length = len(tree.subtree_end)
    draw = torch.Generator(GPU).manual_seed(0)
    inputs = [torch.randn(1, n, length, 64, generator=draw, device=GPU) for n in (heads, groups, groups)]
    grad = torch.randn(1, length, heads, 64, generator=draw, device=GPU)
    results = []
    for function in (dense_tree_attention, flex_tree_attention):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        out, _ = function(torch.nn.Module(), *leaves, None, tree=tree, scaling=0.125, sliding_window=window)
        out.backward(grad)
        results.append([out.detach(), *(leaf.grad for leaf in leaves)])
    for ours, theirs in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)  # TF32 and another order of sums


def test_fast_blocks_equal_the_modules() -> None:
    row = to_tensors(pack(examples_with_forks(12, vocabulary=400)), GPU)
    results = []
    for fast in (False, True):
        model = copy.deepcopy(tiny_model("qwen2")).to(GPU)
        assert probe(model).plain_blocks
        adapted = attach_adapter(model, Lora(dropout=0.0), seed=1, base="tiny")
        supervised = SupervisedModel(model, blocks=BlockDecoder.from_model(model) if fast else None).train()
        loss = supervised(row)
        loss.backward()
        norms = [float(p.grad.norm()) for p in adapted.parameters() if p.requires_grad]
        results.append([float(loss), *norms])
    assert results[1] == pytest.approx(results[0], rel=1e-2)


def test_a_run_in_bfloat16_learns(tmp_path: Path) -> None:
    run = train(recipe_for(tmp_path))
    losses = [event["loss"] for event in run.events() if event["event"] == "step"]
    assert losses[-1] < losses[0]


def test_a_base_that_accelerate_places_trains_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``device_map="auto"``, which one process with several GPUs takes, on the one there is: nothing moves there."""
    losses = []
    for placement in ("here", "auto"):
        if placement == "auto":
            monkeypatch.setattr("weitune.model.load.weights.device_map", lambda target, asked: "auto")
        (tmp_path / placement).mkdir()
        run = train(recipe_for(tmp_path / placement))
        losses.append([event["loss"] for event in run.events() if event["event"] == "step"])
    assert losses[0] == losses[1]


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("soft", [False, True], ids=["tokens", "probabilities"])
def test_recorded_passes_give_the_same_bits_as_eager_ones(soft: bool, dropout: float, dtype: torch.dtype) -> None:
    model = tiny_model("qwen2").to(GPU, dtype)
    adapted = attach_adapter(model, Lora(dropout=dropout), seed=1, base="tiny")
    supervised = SupervisedModel(model, blocks=BlockDecoder.from_model(model)).train()
    passes = CudaGraphPasses(supervised)
    trained = [p for p in adapted.parameters() if p.requires_grad]
    results: dict[int, list[torch.Tensor]] = {}
    for turn in range(4):  # eager, recorded, replayed, replayed
        for count in (6, 12, 40):
            examples = examples_with_forks(count, vocabulary=400)
            batch = pack([softened(example) for example in examples[::2]] + examples[1::2] if soft else examples)
            seed_step(42, count if turn < 3 else turn, 0)
            passes.zero_grad()
            loss = passes.run(batch, 0.5)
            if turn == 0:
                results[count] = [loss, *(p.grad.clone() for p in trained)]
                with torch.no_grad():
                    plain = supervised(to_tensors(batch, GPU))
                assert float(loss) == pytest.approx(float(plain), rel=0.1 if dropout else 1e-3)
            same = [torch.equal(a, b) for a, b in zip([loss, *(p.grad for p in trained)], results[count], strict=True)]
            assert all(same) if turn < 3 or not dropout else not all(same)
    norm = float(torch.stack([p.grad.norm() for p in trained]).norm())
    assert float(passes.clip_grad_norm(norm / 2)) == pytest.approx(norm, rel=1e-5)
    assert float(passes.clip_grad_norm(norm)) == pytest.approx(norm / 2, rel=1e-5)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_recorded_passes_over_groups_give_the_same_bits_as_eager_ones() -> None:
    model = tiny_model("qwen2").to(GPU)
    adapted = attach_adapter(model, Lora(dropout=0.0), seed=1, base="tiny")
    supervised = SupervisedModel(
        model, blocks=BlockDecoder.from_model(model), objective=lambda sums, given: (sums * given.coefficient).sum()
    ).train()
    passes = CudaGraphPasses(supervised)
    trained = [p for p in adapted.parameters() if p.requires_grad]
    pairs = [Group((answer([1, 2], [*range(k), 3]), answer([1, 2], [4] * k)), (True, False)) for k in range(1, 40)]
    results: dict[int, list[torch.Tensor]] = {}
    for turn in range(4):  # eager, recorded, replayed, replayed
        for count in (3, 17, 39):
            batch = pack_groups(pairs[:count])
            assert batch.answers is not None
            batch = replace(batch, answers=replace(batch.answers, coefficient=np.cos(np.arange(2.0 * count))))
            passes.zero_grad()
            found = [*passes.run(batch, 0.5), *(p.grad.clone() for p in trained)]
            if turn == 0:
                results[count] = found
                assert len(found[1]) == 2 * count
            assert all(torch.equal(a, b) for a, b in zip(found, results[count], strict=True))


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_passes_that_cannot_be_recorded_run_eagerly(dropout: float) -> None:
    model = tiny_model("qwen2").to(GPU)
    adapted = attach_adapter(model, Lora(dropout=dropout), seed=1, base="tiny")
    supervised = SupervisedModel(model, blocks=BlockDecoder.from_model(model)).train()
    passes = CudaGraphPasses(supervised)

    def waits_for_the_gpu(module: torch.nn.Module, given: object, states: torch.Tensor) -> None:
        assert torch.isfinite(states).all().item()

    small, large = (pack(examples_with_forks(count, vocabulary=400)) for count in (12, 40))
    results: dict[int, list[list[float]]] = {len(small): [], len(large): []}

    def run(batch: PackedBatch) -> None:
        seed_step(42, 1, 0)
        passes.zero_grad()
        loss = passes.run(batch, 1.0)
        results[len(batch)].append(
            [float(loss), *(float(p.grad.norm()) for p in adapted.parameters() if p.requires_grad)]
        )

    for batch in (small, small, small, large):
        run(batch)
    asked = model.get_decoder().norm.register_forward_hook(waits_for_the_gpu)
    with pytest.warns(RuntimeWarning, match="CUDA graphs"):
        run(large)
    for batch in (large, small):
        run(batch)
    asked.remove()
    for batch in (large, small):
        run(batch)
    assert all(each == same[0] for same in results.values() for each in same)


@pytest.mark.parametrize("storage", ["auto", "nf4", "int8"])
def test_a_run_that_is_resumed_ends_in_the_same_bits(storage: Storage, tmp_path: Path) -> None:
    settings = Train(batch_size=4, epochs=4, checkpoint_every=2, learning_rate=1e-3, storage=storage)
    for name in ("whole", "stopped"):
        (tmp_path / name).mkdir()
    whole = train(recipe_for(tmp_path / "whole", train=settings))
    with pytest.raises(Interrupted):
        train(recipe_for(tmp_path / "stopped", train=settings), reporter=StopAfter(5))
    again = resume(tmp_path / "stopped" / "run")
    losses = [[event["loss"] for event in run.events() if event["event"] == "step"] for run in (whole, again)]
    assert losses[0] == losses[1]
    files = [run.path / "adapter" / "adapter_model.safetensors" for run in (whole, again)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_sharded_base_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """FSDP2 over NCCL, with the one GPU there is: the base is sharded among one process."""
    for name, value in {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29577", "RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    torch.distributed.init_process_group("nccl")
    try:
        row = to_tensors(pack(examples_with_forks(12, vocabulary=400)), GPU)
        results = []
        for sharded in (False, True):
            model = tiny_model("qwen2").requires_grad_(False)
            shard(model, GPU, torch.float32) if sharded else model.to(GPU)
            adapted = attach_adapter(model, Lora(dropout=0.0), seed=1, base="tiny")
            loss = SupervisedModel(model, blocks=BlockDecoder.from_model(model)).train()(row)
            loss.backward()
            results.append([float(loss), *(float(p.grad.norm()) for p in adapted.parameters() if p.requires_grad)])
        assert results[1] == pytest.approx(results[0], rel=1e-5)
    finally:
        torch.distributed.destroy_process_group()
