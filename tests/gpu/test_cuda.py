"""The same equalities on a GPU: compiled attention, fast blocks, recorded passes, whole runs. Skipped without one."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from tests.invariant.test_oracle import examples_with_forks
from tests.tiny import tiny_model
from tests.training.test_run import StopAfter, recipe_for
from weitune import Run, train
from weitune.data.pack import pack
from weitune.errors import Interrupted
from weitune.model.adapter import attach_adapter
from weitune.model.attention import Tree, dense_tree_attention, flex_tree_attention
from weitune.model.decoder import BlockDecoder
from weitune.model.probe import probe
from weitune.model.recorded import RecordedPasses
from weitune.model.shard import shard
from weitune.model.supervised import Row, SupervisedModel
from weitune.recipe.schema import Lora, Storage, Train
from weitune.training.optim import seed_step
from weitune.training.run import resume

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
GPU = torch.device("cuda")


@pytest.mark.parametrize("window", [None, 7])
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (8, 2)])
def test_compiled_attention_equals_the_dense_one(heads: int, groups: int, window: int | None) -> None:
    tree = Tree.of(pack(examples_with_forks(40, vocabulary=50)), GPU)
    length = len(tree.subtree_end)
    draw = torch.Generator(GPU).manual_seed(0)
    inputs = [torch.randn(1, n, length, 64, generator=draw, device=GPU) for n in (heads, groups, groups)]
    slope = torch.randn(1, length, heads, 64, generator=draw, device=GPU)
    results = []
    for function in (dense_tree_attention, flex_tree_attention):
        leaves = [tensor.clone().requires_grad_() for tensor in inputs]
        out, _ = function(torch.nn.Module(), *leaves, None, tree=tree, scaling=0.125, sliding_window=window)
        out.backward(slope)
        results.append([out.detach(), *(leaf.grad for leaf in leaves)])
    for ours, theirs in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)  # TF32 and another order of sums


def test_fast_blocks_equal_the_modules() -> None:
    row = Row.of(pack(examples_with_forks(12, vocabulary=400)), GPU)
    found = []
    for fast in (False, True):
        model = copy.deepcopy(tiny_model("qwen2")).to(GPU)
        assert probe(model).plain_blocks
        adapted = attach_adapter(model, Lora(dropout=0.0), seed=1, base="tiny")
        supervised = SupervisedModel(model, blocks=BlockDecoder.of(model) if fast else None).train()
        loss = supervised(row)
        loss.backward()
        norms = [float(p.grad.norm()) for p in adapted.parameters() if p.requires_grad]
        found.append([float(loss), *norms])
    assert found[1] == pytest.approx(found[0], rel=1e-2)


def test_a_run_in_bfloat16_learns(tmp_path: Path) -> None:
    run = train(recipe_for(tmp_path))
    losses = [event["loss"] for event in run.events() if event["event"] == "step"]
    assert losses[-1] < losses[0]


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_recorded_passes_give_the_bits_of_those_they_replace(dropout: float, dtype: torch.dtype) -> None:
    model = tiny_model("qwen2").to(GPU, dtype)
    adapted = attach_adapter(model, Lora(dropout=dropout), seed=1, base="tiny")
    supervised = SupervisedModel(model, blocks=BlockDecoder.of(model)).train()
    passes = RecordedPasses(supervised)
    trained = [p for p in adapted.parameters() if p.requires_grad]
    found: dict[int, list[torch.Tensor]] = {}
    for turn in range(4):  # as it is, recorded, replayed, replayed
        for count in (6, 12, 40):
            batch = pack(examples_with_forks(count, vocabulary=400))
            seed_step(42, count if turn < 3 else turn, 0)
            passes.forget()
            loss = passes.run(batch, 0.5)
            if turn == 0:
                found[count] = [loss, *(p.grad.clone() for p in trained)]
                with torch.no_grad():
                    plain = supervised(Row.of(batch, GPU))
                assert float(loss) == pytest.approx(float(plain), rel=0.1 if dropout else 1e-3)
            same = [torch.equal(a, b) for a, b in zip([loss, *(p.grad for p in trained)], found[count], strict=True)]
            assert all(same) if turn < 3 or not dropout else not all(same)
    norm = float(torch.stack([p.grad.norm() for p in trained]).norm())
    assert float(passes.clip(norm / 2)) == pytest.approx(norm, rel=1e-5)
    assert float(passes.clip(norm)) == pytest.approx(norm / 2, rel=1e-5)


def test_passes_that_cannot_be_recorded_are_made_as_they_are() -> None:
    model = tiny_model("qwen2").to(GPU)
    adapted = attach_adapter(model, Lora(dropout=0.0), seed=1, base="tiny")
    supervised = SupervisedModel(model, blocks=BlockDecoder.of(model)).train()
    passes = RecordedPasses(supervised)
    asked = model.get_decoder().norm.register_forward_hook(lambda *given: float(given[2].sum()))  # waits for the GPU
    batch, found = pack(examples_with_forks(12, vocabulary=400)), []
    for turn in range(4):
        if turn == 3:
            asked.remove()
        passes.forget()
        with pytest.warns(RuntimeWarning, match="CUDA graphs") if turn == 1 else nullcontext():
            loss = passes.run(batch, 1.0)
        found.append([float(loss), *(float(p.grad.norm()) for p in adapted.parameters() if p.requires_grad)])
    assert found[0] == found[1] == found[2] == found[3]


def test_two_processes_take_the_mean_of_what_they_recorded(tmp_path: Path) -> None:
    """Over gloo, for NCCL wants a GPU for each."""
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    settings = {"lora": Lora(dropout=0.0), "train": Train(batch_size=4, epochs=4, learning_rate=1e-3, precision="fp32")}
    one = train(recipe_for(tmp_path / "one", **settings))
    path = tmp_path / "two" / "recipe.json"
    path.write_text(recipe_for(tmp_path / "two", **settings).model_dump_json(), encoding="utf-8")
    here = {
        **os.environ,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "29578",
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _ONE_OF_TWO, str(path)], env={**here, "RANK": str(k), "LOCAL_RANK": str(k)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for k in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=200)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    losses = [
        [event["loss"] for event in run.events() if event["event"] == "step"]
        for run in (one, Run(tmp_path / "two" / "run"))
    ]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)


_ONE_OF_TWO = """
import sys, torch
torch.distributed.init_process_group("gloo")
from weitune import Recipe, train
from weitune.training.loop import Loop
ordinary = Loop.run
def watched(loop, *rest):
    assert loop.recorded is not None
    return ordinary(loop, *rest)
Loop.run = watched
train(Recipe.model_validate_json(open(sys.argv[1], encoding="utf-8").read()))
"""


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
        row = Row.of(pack(examples_with_forks(12, vocabulary=400)), GPU)
        found = []
        for sharded in (False, True):
            model = tiny_model("qwen2").requires_grad_(False)
            shard(model, GPU, torch.float32) if sharded else model.to(GPU)
            adapted = attach_adapter(model, Lora(dropout=0.0), seed=1, base="tiny")
            loss = SupervisedModel(model, blocks=BlockDecoder.of(model)).train()(row)
            loss.backward()
            found.append([float(loss), *(float(p.grad.norm()) for p in adapted.parameters() if p.requires_grad)])
        assert found[1] == pytest.approx(found[0], rel=1e-5)
    finally:
        torch.distributed.destroy_process_group()
