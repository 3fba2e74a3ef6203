"""Warnings of low memory say what is needed and which keys lower it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.families import save_family
from tests.tiny import save_tiny, tiny_model
from weitune.errors import ModelError, RunError
from weitune.forecast import memory_watch
from weitune.forecast.memory_estimate import PassSize, pass_bytes
from weitune.forecast.memory_watch import MemoryWatch, PassNeed, load_if_it_fits, weight_numbers
from weitune.model.load.locate import locate
from weitune.model.load.tokenizer import load_tokenizer
from weitune.model.load.weights import load_model
from weitune.model.storage.host_memory import HostMemory
from weitune.recipe.schema import Lora
from weitune.training.build import make_trainable
from weitune.training.trainable import Trainable

CPU = torch.device("cpu")


def test_weights_are_counted_from_headers(tmp_path: Path) -> None:
    files = locate(str(save_tiny(tmp_path)))
    model = tiny_model()
    expected = sum(p.numel() for p in model.state_dict().values())
    assert weight_numbers(files) in {expected, expected - model.lm_head.weight.numel()}  # the head may be tied


def test_weights_that_cannot_fit_are_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = locate(str(save_tiny(tmp_path)))
    tokenizer = load_tokenizer(files)
    need = 4 * weight_numbers(files)
    monkeypatch.setattr(memory_watch, "load_weights", lambda *a, **k: "loaded")
    monkeypatch.setattr(memory_watch, "host_memory", lambda: HostMemory(need, 1 << 40))
    assert load_if_it_fits(files, tokenizer, "fp32", CPU) == "loaded"
    monkeypatch.setattr(memory_watch, "host_memory", lambda: HostMemory(need - 1, 1 << 40))
    with pytest.raises(ModelError) as caught:
        load_if_it_fits(files, tokenizer, "fp32", CPU)
    assert f"the weights of '{tmp_path}' need" in str(caught.value)
    assert "--train.storage bf16" in caught.value.fix
    assert load_if_it_fits(files, tokenizer, "bf16", CPU) == "loaded"
    assert load_if_it_fits(files, tokenizer, "fp32", CPU, storage="nf4") == "loaded"


def test_what_each_process_unpacks_must_fit_for_all_of_a_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mixtral's files hold each expert by itself, Qwen2's are mapped and read layer by layer."""
    monkeypatch.setattr(memory_watch, "load_weights", lambda *a, **k: "loaded")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    for family, need in (("mixtral", 4), ("qwen2", 1 / 4)):
        folder = save_family(tmp_path / family, family) if family == "mixtral" else save_tiny(tmp_path / family)
        files = locate(str(folder))
        tokenizer, whole = load_tokenizer(files), 4 * weight_numbers(files)
        monkeypatch.setattr(memory_watch, "free_bytes", lambda device: 1 << 40)
        monkeypatch.setattr(memory_watch, "host_memory", lambda free=int(need * whole): HostMemory(free, 1 << 40))
        assert load_if_it_fits(files, tokenizer, "fp32", CPU, shards=4) == "loaded"
        monkeypatch.setattr(memory_watch, "host_memory", lambda free=int(need * whole) - 1: HostMemory(free, 1 << 40))
        if family == "mixtral":
            with pytest.raises(ModelError, match="each of the 4 processes on this machine unpacks all of them"):
                load_if_it_fits(files, tokenizer, "fp32", CPU, shards=4)
        else:
            assert load_if_it_fits(files, tokenizer, "fp32", CPU, shards=4) == "loaded"


def test_weights_that_the_device_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise ModelError("model.weights.cannot_be_loaded", folder="m", reason="x") from torch.OutOfMemoryError(
            "CUDA out of memory"
        )

    files = locate(str(save_tiny(tmp_path)))
    monkeypatch.setattr(memory_watch, "load_weights", refuse)
    with pytest.raises(ModelError, match=r"need .* in float32, and .* are free"):
        load_if_it_fits(files, load_tokenizer(files), "fp32", CPU)


class TestNeed:
    @pytest.fixture
    def trainable(self, tmp_path: Path) -> Trainable:
        return make_trainable(
            load_model(str(save_tiny(tmp_path)), precision="fp32", device="cpu"), Lora(), seed=0, base=""
        )

    def test_of_a_pass(self, trainable: Trainable) -> None:
        need = PassNeed.estimate(
            trainable.shape, trainable.pass_config(), PassSize(2048, 500, 300), trainable.pending_bytes()
        )
        assert need.bytes == sum(pass_bytes(trainable.shape, need.size, trainable.pass_config()))
        assert need.beside > 0  # gradients and moments
        assert "Lower train.micro_tokens below 2,048" in need.fix

    def test_of_one_example_longer_than_a_pass(self, trainable: Trainable) -> None:
        need = PassNeed.estimate(
            trainable.shape, trainable.pass_config(), PassSize(900, 500, 900), trainable.pending_bytes()
        )
        assert "tokens.max_length" in need.fix


def watch(
    monkeypatch: pytest.MonkeyPatch, *, available: int, total: int, peak: int = 0, resident: int = 0
) -> MemoryWatch:
    monkeypatch.setattr(memory_watch, "host_memory", lambda: HostMemory(available, total))
    monkeypatch.setattr(memory_watch, "free_bytes", lambda device: available)
    monkeypatch.setattr(memory_watch, "peak_bytes", lambda device: peak)
    monkeypatch.setattr(memory_watch, "resident_bytes", lambda: resident)
    return MemoryWatch(PassNeed(PassSize(1000, 500, 200), 1000 << 20, 200 << 20), CPU)


def test_it_warns_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    assert watch(monkeypatch, available=2000 << 20, total=1 << 40).forecast_warning() == ""
    told = watch(monkeypatch, available=500 << 20, total=1 << 40).forecast_warning()
    need = (
        "one forward pass of 1,000 tokens takes about 1.0 GiB, weights, gradients and optimizer state another 200 MiB"
    )
    assert f"{need}, and" in told
    assert "train.micro_tokens" in told


def test_what_a_step_left_at_its_peak_counts_and_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    gib = 1 << 30
    assert watch(monkeypatch, available=10 * gib, total=64 * gib, peak=20 * gib, resident=15 * gib).low_memory() == ""
    short = watch(monkeypatch, available=6 * gib, total=64 * gib, peak=20 * gib, resident=15 * gib)
    assert "at its peak, a step leaves 1.0 GiB of 64.0 GiB" in short.low_memory()
    assert short.low_memory() == ""


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: you tried 9"),
    ],
    ids=["python", "cuda", "cpu"],
)
def test_running_out_is_explained(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    with pytest.raises(RunError) as caught, watch(monkeypatch, available=1 << 30, total=1 << 40).explained("`again`"):
        raise error
    assert "out of memory: " in str(caught.value)
    assert "Lower train.micro_tokens below 1,000" in str(caught.value)
    assert "Continue from the last checkpoint with `again`." in str(caught.value)


def test_torch_s_own_refusal_is_recognised() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert memory_watch.is_out_of_memory(caught.value)


def test_other_errors_stay_what_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RuntimeError, match="shapes"), watch(monkeypatch, available=0, total=1).explained("x"):
        raise RuntimeError("shapes do not match")
