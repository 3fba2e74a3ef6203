"""The base in fewer bits, and values computed again: what changes by rounding, and what not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from peft import PeftModel

from tests.conftest import skip_unless_ci
from tests.faults.runs import digest
from tests.invariant.test_adapter_family import logits
from tests.invariant.test_oracle import examples_with_forks
from tests.model.fast.test_block import distance, loss_and_gradients
from tests.tiny import save_tiny, tiny_model
from tests.training.loops import Recorder
from tests.training.test_run import StopAfter, recipe_for
from weitune import train
from weitune.data.pack import pack
from weitune.data.schedule import Plan
from weitune.errors import Interrupted, MissingExtraError, RunError
from weitune.export.options import ExportOptions
from weitune.export.run import export
from weitune.forecast.device_memory import SHARE_OF_FREE_MEMORY, MemoryPlan
from weitune.forecast.memory_estimate import ENOUGH_TOKENS, PassSize, pass_bytes
from weitune.model.batch import to_tensors
from weitune.model.load.weights import load_model
from weitune.model.storage.weight_storage import dense, is_quantized
from weitune.recipe.schema import Lora, Recompute, Train
from weitune.training.build import make_loop, make_trainable
from weitune.training.resume.snapshot import Snapshot
from weitune.training.run import resume
from weitune.training.trainable import Trainable

CPU = torch.device("cpu")
STORAGES = ("bf16", "int8", "nf4")


@pytest.fixture(autouse=True)
def _bitsandbytes() -> None:
    try:
        import bitsandbytes  # noqa: F401
    except ImportError:
        skip_unless_ci("bitsandbytes is not installed")


def trainable_of(folder: Path, storage: Any, **lora: Any) -> Trainable:
    loaded = load_model(str(save_tiny(folder / "model")), precision="fp32", storage=storage, device="cpu")
    return make_trainable(loaded, Lora(r=4, dropout=0.0, **lora), seed=1, base="tiny")


def fit(trainable: Trainable, **options: Any) -> list[float]:
    from accelerate import Accelerator

    examples = examples_with_forks(12, vocabulary=400)
    settings = Train(batch_size=12, learning_rate=3e-3, **options)
    plan = Plan(12, 12, epochs=10, seed=0)
    loop = make_loop(trainable, settings, examples, plan, accelerator=Accelerator(cpu=True))
    watcher = Recorder()
    loop.run(0, watcher)
    return [record.loss for record in watcher.records]


@pytest.mark.parametrize("storage", STORAGES)
def test_losses_follow_those_of_fp32(storage: str, tmp_path: Path) -> None:
    exact, rounded = (fit(trainable_of(tmp_path, each)) for each in ("fp32", storage))
    assert exact != rounded
    assert exact[-1] < 0.9 * exact[0]
    assert rounded == pytest.approx(exact, rel=0.001 if storage == "bf16" else 0.03)


@pytest.mark.parametrize("storage", STORAGES)
def test_a_weight_is_what_it_was_but_for_rounding(storage: Any, tmp_path: Path) -> None:
    model = trainable_of(tmp_path, storage).loaded.model
    original = dict(tiny_model().named_modules())
    largest = {"bf16": 0.004, "int8": 0.02, "nf4": 0.12}[storage]
    for name, module in model.named_modules():
        if name.endswith("base_layer"):
            weight = original[name.removesuffix(".base_layer")].weight
            assert is_quantized(module) == (storage != "bf16")
            assert module.weight.dtype == {"bf16": torch.bfloat16, "int8": torch.int8, "nf4": torch.uint8}[storage]
            assert 0 < distance(dense(module, torch.float32), weight) < largest


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        (slice(3, 70), slice(None)),
        (slice(None), slice(-64, None)),
        (slice(1, 5), slice(0, 64)),
        (slice(None), slice(7, 9)),
    ],
    ids=["rows", "columns", "both", "within a block"],
)
def test_a_part_of_a_matrix_is_that_part_of_the_whole(
    storage: Any, rows: slice, columns: slice, tmp_path: Path
) -> None:
    for name in ("gate_proj", "down_proj"):
        layer = getattr(trainable_of(tmp_path, storage).loaded.model.get_decoder().layers[0].mlp, name).base_layer
        part = dense(layer, torch.float32, rows, columns)
        assert part.numel()
        assert torch.equal(part, dense(layer, torch.float32)[rows, columns])


def test_fast_blocks_compute_what_4_bit_modules_do(tmp_path: Path) -> None:
    trainable = trainable_of(tmp_path, "nf4")
    assert trainable.capabilities.plain_blocks
    draw = torch.Generator().manual_seed(2)
    adapted: Any = trainable.trained.model
    for name, parameter in adapted.named_parameters():
        if ".lora_B." in name:
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=draw)
        elif not parameter.requires_grad and parameter.is_floating_point():
            parameter.data = parameter.data.float()
    row = to_tensors(pack(examples_with_forks(12, vocabulary=400)), CPU)
    loss, gradients = loss_and_gradients(adapted, row, fast=True)
    for module in adapted.modules():  # the kernel of bitsandbytes for CPUs rounds to bf16; its matrix is exact
        if is_quantized(getattr(module, "base_layer", None)):
            plain = torch.nn.Linear(module.in_features, module.out_features, bias=module.base_layer.bias is not None)
            plain.weight.data, plain.bias = dense(module.base_layer, torch.float32), module.base_layer.bias
            module.base_layer = plain.requires_grad_(False)
    expected_loss, expected = loss_and_gradients(adapted, row, fast=False)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-4, atol=0)
    for name, gradient in expected.items():
        assert distance(gradients[name], gradient) < 1e-3, name


@pytest.mark.parametrize("kind", [{}, {"modules_to_save": ["input_layernorm"]}], ids=["blocks", "modules"])
def test_recomputing_changes_no_bit_of_the_losses(kind: dict[str, Any], tmp_path: Path) -> None:
    losses = {}
    for recompute in get_args(Recompute):
        torch.manual_seed(0)
        losses[recompute] = fit(trainable_of(tmp_path, "fp32", **kind), recompute=recompute)
    assert losses["feed-forward"] == pytest.approx(losses["none"], rel=1e-6)
    assert losses["block"] == pytest.approx(losses["none"], rel=1e-6)


def test_as_little_is_recomputed_as_memory_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainable = trainable_of(tmp_path, "fp32")
    size = PassSize(ENOUGH_TOKENS, ENOUGH_TOKENS, 20)
    beside = trainable.pending_bytes()
    for level in get_args(Recompute):
        need = sum(pass_bytes(trainable.shape, size, trainable.pass_config(level)))
        free = need / SHARE_OF_FREE_MEMORY + beside + 100
        monkeypatch.setattr("weitune.training.trainable.free_bytes", lambda device, free=free: free)
        assert trainable.memory_plan(Train(), longest=20).recompute == level
        assert trainable.memory_plan(Train(recompute="none"), longest=20).recompute == "none"
        assert trainable.memory_plan(Train(micro_tokens=4096), longest=20) == MemoryPlan(4096, "block")


def test_a_4_bit_run_resumes_to_the_same_bits_answers_and_is_exported(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    settings = Train(batch_size=4, epochs=2, checkpoint_every=2, learning_rate=1e-3, storage="nf4", recompute="block")
    run = train(recipe_for(tmp_path / "a", train=settings, lora=Lora(dropout=0.2)), device="cpu")
    with pytest.raises(Interrupted):
        train(recipe_for(tmp_path / "b", train=settings, lora=Lora(dropout=0.2)), device="cpu", reporter=StopAfter(3))
    resume(tmp_path / "b" / "run", device="cpu")
    name = "adapter_model.safetensors"
    assert digest(run.path / "adapter")[name] == digest(tmp_path / "b" / "run" / "adapter")[name]
    assert isinstance(run.chat("Who are you?", device="cpu", max_new_tokens=3), str)
    assert any(is_quantized(module) for module in run.engine(device="cpu").model.modules())
    verdict = export(run, tmp_path / "merged", ExportOptions("merged", prompts=2)).verdict
    assert verdict is not None
    assert verdict.passed


def test_loftq_corrects_4_bit_rounding_and_fits_only_the_4_bit_base(tmp_path: Path) -> None:
    original = logits(tiny_model())
    plain, corrected = trainable_of(tmp_path, "nf4"), trainable_of(tmp_path, "nf4", init="loftq")
    assert distance(logits(corrected.trained.model), original) < distance(logits(plain.trained.model), original)
    losses = fit(corrected)
    assert losses[-1] < 0.9 * losses[0]

    from transformers import AutoModelForCausalLM

    from weitune.model.storage.weight_storage import quantization
    from weitune.training.optim import make_optimizer

    optimizer = make_optimizer(corrected.trained.model.named_parameters(), Train())
    for file, data in Snapshot.take(10, corrected.trained, optimizer, {}).files():
        (tmp_path / file).write_bytes(data)
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", dtype=torch.bfloat16, quantization_config=quantization("nf4", torch.float32)
    )
    for module in theirs.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):  # another kernel, that rounds to 16 bits
            module.support_avx512bf16_for_cpu = False
    assert torch.equal(logits(PeftModel.from_pretrained(theirs, tmp_path)), logits(corrected.trained.model))

    (tmp_path / "run").mkdir()
    settings = Train(batch_size=4, epochs=1, storage="nf4")
    run = train(recipe_for(tmp_path / "run", train=settings, lora=Lora(init="loftq")), device="cpu")
    with pytest.raises(RunError, match="4-bit"):
        export(run, tmp_path / "merged", ExportOptions("merged"))


def test_without_bitsandbytes_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib.util

    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "bitsandbytes" else find_spec(name))
    with pytest.raises(MissingExtraError, match="quantized"):
        trainable_of(tmp_path, "nf4")
