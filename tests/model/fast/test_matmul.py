"""oneDNN's products against PyTorch's, when they are used, and that results do not depend on the choice."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.invariant.test_oracle import examples_with_forks
from tests.model.fast.test_block import CPU, adapted_model, distance, loss_and_gradients
from weitune.data.pack import pack
from weitune.model.batch import to_tensors
from weitune.model.fast import matmul
from weitune.model.fast.decoder import BlockDecoder
from weitune.model.fast.loss import Head, Predictions, reference_loss, supervised_loss
from weitune.model.fast.matmul import add_linear, add_times, lay_by_columns, linear, round_rows, times, times_by_rows

FLOAT, HALF = torch.float32, torch.bfloat16

needs_onednn = pytest.mark.skipif(not matmul._onednn_works(), reason="this PyTorch has no such operator of oneDNN")


@pytest.fixture
def multiplied(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Use oneDNN on any processor, and return the matrices that it multiplies, in order."""
    used: list[Tensor] = []
    multiply = matmul._multiplied

    def watched(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if threading.current_thread() is threading.main_thread():
            used.append(weight)
        return multiply(x, weight, bias)

    monkeypatch.setattr(matmul, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(matmul, "_multiplied", watched)
    return used


def matrices() -> dict[str, tuple[Tensor, bool]]:
    """Return matrices (96, 80) by their layout in memory, and whether oneDNN should multiply them."""
    draw = torch.Generator().manual_seed(1)
    wide, tall = torch.randn(96, 200, generator=draw), torch.randn(200, 80, generator=draw)
    return {
        "contiguous": (torch.randn(96, 80, generator=draw), True),
        "rows": (tall[50:146], True),
        "columns": (wide[:, 60:140], False),
        "by columns": (torch.randn(80, 96, generator=draw).T, True),
        "columns, by columns": (torch.randn(200, 96, generator=draw)[60:140].T, True),
        "16 bits": (torch.randn(96, 80, generator=draw).bfloat16(), False),
    }


@needs_onednn
@pytest.mark.parametrize("rows", [1, 16, 37])
@pytest.mark.parametrize("name", [name for name in matrices() if name != "16 bits"])
def test_equal_the_exact_products(name: str, rows: int, multiplied: list[Tensor]) -> None:
    weight, suits = matrices()[name]
    draw = torch.Generator().manual_seed(rows)
    x, back, bias = (torch.randn(size, generator=draw) for size in ((rows, 80), (rows, 96), (96,)))
    total, back_total = torch.randn(rows, 96, generator=draw), torch.randn(rows, 80, generator=draw)
    exact, exact_back = x.double() @ weight.double().T, back.double() @ weight.double()
    expected = [exact + bias, exact, exact_back, total + exact, back_total + exact_back]
    results = [linear(x, weight, bias), linear(x, weight), times(back, weight), total, back_total]
    add_linear(total, x, weight)
    add_times(back_total, back, weight)
    for ours, theirs in zip(results, expected, strict=True):
        torch.testing.assert_close(ours, theirs.float(), rtol=1e-5, atol=1e-4)
    assert len(multiplied) == (5 if suits else 0)


@pytest.mark.parametrize("name", matrices())
def test_only_matrices_without_gaps_of_the_same_format_suit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "onednn_is_faster", lambda: True)
    weight, suits = matrices()[name]
    assert matmul._suits(torch.zeros(3, 80), weight) == suits
    assert not matmul._suits(torch.zeros(3, 80, dtype=torch.float64), weight.double())
    monkeypatch.setattr(matmul, "onednn_is_faster", lambda: False)
    assert not matmul._suits(torch.zeros(3, 80), weight)


def test_another_processor_or_an_operator_that_is_not_there_leaves_pytorchs_choice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ask = matmul.onednn_is_faster.__wrapped__
    monkeypatch.setattr(matmul, "_vendor_is_amd", lambda: True)
    monkeypatch.setattr(matmul, "_onednn_works", lambda: True)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    assert ask()
    for module, name, value in (
        (matmul, "_vendor_is_amd", False),
        (matmul, "_onednn_works", False),
        (torch.backends.mkl, "is_available", False),
        (torch.backends.cpu, "get_cpu_capability", "AVX2"),
    ):
        with monkeypatch.context() as changed:
            changed.setattr(module, name, lambda value=value: value)
            assert not ask()


@pytest.mark.parametrize("error", [AttributeError, RuntimeError, TypeError, None])
def test_an_operator_that_fails_or_computes_something_else_is_not_used(
    error: type[Exception] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if error is not None:
            raise error
        return torch.zeros(2, 4)

    monkeypatch.setattr(matmul, "_multiplied", multiply)
    assert not matmul._onednn_works()


@pytest.mark.parametrize(("vendor", "amd"), [("AuthenticAMD", True), ("GenuineIntel", False)])
def test_the_vendor_is_read_from_cpuinfo(vendor: str, amd: bool, tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\nmodel name\t: not AuthenticAMD here\n")
    assert matmul._vendor_is_amd(path) == amd


def test_rounding_adds_few_rows_and_leaves_few_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "onednn_is_faster", lambda: True)

    def rounded(rows: int) -> int:
        return rows + -rows % round_rows("cpu", FLOAT, rows)

    assert all(rounded(rows) - rows < max(16, rows / 31) for rows in range(1, 20_000))
    for octave in (16, 256, 1024, 8192):
        assert len({rounded(rows) for rows in range(octave, 2 * octave)}) <= 65
    assert [round_rows("cpu", HALF, rows) for rows in (0, 1, 16, 17, 32, 33, 64, 100)] == [16] * 3 + [32] * 2 + [64] * 3
    assert round_rows("cuda", HALF, 100) == round_rows("cuda", FLOAT, 100) == round_rows("cpu", torch.float64) == 1
    monkeypatch.setattr(matmul, "onednn_is_faster", lambda: False)
    assert round_rows("cpu", FLOAT, 100) == 1
    assert round_rows("cpu", HALF, 100) == 64


@needs_onednn
def test_another_thread_multiplies_a_new_shape_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(matmul, "_known_shapes", set())
    multiply, threads = matmul._multiplied, []

    def watched(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        threads.append(threading.current_thread() is threading.main_thread())
        return multiply(x, weight, bias)

    monkeypatch.setattr(matmul, "_multiplied", watched)
    for rows in (16, 16, 32):
        linear(torch.zeros(rows, 8), torch.zeros(4, 8))
    assert threads == [False, True, True, False, True]


@needs_onednn
def test_if_no_thread_can_start_this_one_multiplies(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(matmul, "onednn_is_faster", lambda: True)
    monkeypatch.setattr(matmul, "_known_shapes", set())
    monkeypatch.setattr(threading.Thread, "start", none_left)
    x, weight = torch.arange(128.0).view(16, 8), torch.arange(32.0).view(4, 8)
    assert torch.equal(linear(x, weight), x @ weight.T)


@needs_onednn
def test_the_gradient_of_the_loss_is_as_exact_as_by_pytorchs_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """The vocabulary is long, so that it matters in which order its rows are added."""
    draw = torch.Generator().manual_seed(0)
    head, grad = torch.randn(40_000, 64, generator=draw), torch.randn(48, 40_000, generator=draw).mul_(2).softmax(-1)
    target = torch.randint(8_000, (48, 1), generator=draw)
    grad.scatter_add_(1, target, torch.full((48, 1), -1.0))
    exact = grad.double() @ head.double()

    def error(onednn: bool) -> float:
        monkeypatch.setattr(matmul, "onednn_is_faster", lambda: onednn)
        out = torch.empty(48, 64)
        times_by_rows(grad.clone(), head, largest=target, out=out)
        return float((out - exact).norm() / exact.norm())

    assert error(onednn=True) < error(onednn=False)


@needs_onednn
@pytest.mark.parametrize("dora", [False, True], ids=["lora", "dora"])
def test_loss_and_gradients_are_the_same_by_both_libraries(
    dora: bool, multiplied: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weitune.model.fast.channel.feed_forward.SLICE_COLUMNS", (16, 48))
    adapted = adapted_model("qwen2", FLOAT, dora=dora)
    blocks = BlockDecoder.from_model(adapted.get_base_model())
    row = to_tensors(pack(examples_with_forks(12, vocabulary=400)), CPU)
    multiplied.clear()  # products of the probe
    with monkeypatch.context() as changed:
        changed.setattr(matmul, "onednn_is_faster", lambda: False)
        expected_loss, expected = loss_and_gradients(adapted, row, fast=True)
    assert not multiplied
    assert blocks is not None
    blocks.lay_out()
    loss, gradients = loss_and_gradients(adapted, row, fast=True)
    height, _ = blocks.parts[0].groups[-1].projections[0].shape
    slices = [weight for weight in multiplied if weight.shape in {(height, 48), (48, height)}]
    assert slices, "no product by a slice of down's columns was oneDNN's"
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=0)
    for name, gradient in expected.items():
        assert distance(gradients[name], gradient) < 1e-4, name


def test_laying_by_columns_changes_no_number_and_only_where_it_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Linear(80, 96).requires_grad_(False)
    before = layer.weight.clone()
    monkeypatch.setattr(matmul, "onednn_is_faster", lambda: False)
    lay_by_columns(layer)
    assert layer.weight.is_contiguous()
    monkeypatch.setattr(matmul, "onednn_is_faster", lambda: True)
    for _ in range(2):
        lay_by_columns(layer)
        assert layer.weight[:, 16:32].T.is_contiguous()
        assert torch.equal(layer.weight, before)
    narrow = nn.Linear(80, 96, dtype=HALF)
    lay_by_columns(narrow)
    assert narrow.weight.is_contiguous()


@needs_onednn
@pytest.mark.parametrize("n", [1, 16, 40, 100])
@pytest.mark.parametrize("chunk_rows", [1, 33, 1000])
def test_the_head_by_onednn(n: int, chunk_rows: int, multiplied: list[Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("weitune.model.fast.matmul.WEIGHT_ROWS", (64, 96))
    draw = torch.Generator().manual_seed(n)
    hidden = torch.randn(n, 24, generator=draw).requires_grad_()
    head, bias = torch.randn(200, 24, generator=draw), torch.randn(200, generator=draw)
    targets, weights = torch.randint(200, (n,), generator=draw), torch.rand(n, generator=draw)
    predictions = Predictions(torch.arange(n), targets, weights)
    loss = supervised_loss(hidden, Head(head, bias), predictions, chunk_rows * 200)
    (grad,) = torch.autograd.grad(loss, hidden)
    expected = reference_loss(hidden, Head(head, bias), predictions)
    (expected_grad,) = torch.autograd.grad(expected, hidden)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-4, atol=1e-5)
    assert {tuple(weight.shape) for weight in multiplied} == {(96, 24), (8, 24), (24, 96), (24, 8)}  # there and back
