"""Combined adapters: the sums that the methods promise, and what does not go together."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.tiny import save_tiny_adapter, save_tiny_run
from weitune import Run
from weitune.cli import main
from weitune.errors import InputError, RunError
from weitune.export.combine import combine
from weitune.export.options import Mixture
from weitune.export.source.adapter_weights import AdapterWeights


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    first = save_tiny_run(tmp_path / "a")
    second = tmp_path / "b"
    shutil.copytree(first, second)
    save_tiny_adapter(second / "adapter", tmp_path / "a-model", seed=2)
    return [Run(first), Run(second)]


def updates(folder: Path) -> dict[str, torch.Tensor]:
    updates = AdapterWeights(folder / "adapter").updates
    return {name: update.scale * update.b @ update.a for name, update in updates.items()}


@pytest.mark.parametrize("method", ["cat", "svd"])
def test_updates_add_up(method: str, runs: list[Run], tmp_path: Path) -> None:
    made = combine(runs, tmp_path / "ab", Mixture(method, (0.7, 0.3)))  # type: ignore[arg-type]
    a, b, both = (updates(path) for path in (runs[0].path, runs[1].path, made.path))
    for name, update in both.items():
        wanted = 0.7 * a[name] + 0.3 * b[name]
        if method == "svd":  # the best of rank 4
            left, values, right = torch.linalg.svd(wanted)
            wanted = (left[:, :4] * values[:4]) @ right[:4]
        torch.testing.assert_close(update, wanted, rtol=1e-3, atol=1e-4)
    assert isinstance(made.chat("Who are you?", device="cpu", max_new_tokens=3), str)


@pytest.mark.parametrize("method", ["linear", "dare"])
def test_all_the_weight_on_one_and_every_entry_kept_is_that_one(method: str, runs: list[Run], tmp_path: Path) -> None:
    made = combine(runs, tmp_path / "aa", Mixture(method, (1.0, 0.0), density=1.0))  # type: ignore[arg-type]
    one, both = updates(runs[0].path), updates(made.path)
    for name, update in both.items():
        torch.testing.assert_close(update, one[name], rtol=1e-3, atol=1e-4)


def test_ties_of_an_adapter_with_itself_are_itself(runs: list[Run], tmp_path: Path) -> None:
    made = combine([runs[0], runs[0]], tmp_path / "aa", Mixture("ties", (1.0, 1.0), density=1.0))
    one, both = updates(runs[0].path), updates(made.path)
    for name, update in both.items():
        torch.testing.assert_close(update, one[name], rtol=1e-3, atol=1e-4)


def test_it_is_the_same_each_time_and_depends_on_the_seed(runs: list[Run], tmp_path: Path) -> None:
    made = [updates(combine(runs, tmp_path / f"ab{k}", Mixture("dare", seed=seed)).path)
            for k, seed in enumerate((1, 1, 2))]  # fmt: skip
    name = next(iter(made[0]))
    assert torch.equal(made[0][name], made[1][name])
    assert not torch.equal(made[0][name], made[2][name])


def with_config(run: Run, **options: object) -> Run:
    """Return ``run`` after its adapter's configuration was given some ``options``."""
    path = run.path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **options}), encoding="utf-8")
    return run


@pytest.mark.parametrize("method", ["linear", "cat", "svd", "dare"])
@pytest.mark.parametrize("which", [(0,), (1,), (0, 1)])
def test_the_scale_of_rank_stabilised_adapters_is_kept(
    method: str, which: tuple[int, ...], runs: list[Run], tmp_path: Path
) -> None:
    """All the weight on one: PEFT's result has the options of the first, and the scales in the matrices."""
    for at in which:
        with_config(runs[at], use_rslora=True)
    for at, weights in enumerate(((1.0, 0.0), (0.0, 1.0))):
        made = combine(runs, tmp_path / f"ab{at}", Mixture(method, weights, density=1.0))  # type: ignore[arg-type]
        one, both = updates(runs[at].path), updates(made.path)
        for name, update in both.items():
            torch.testing.assert_close(update, one[name], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "method", "said"),
    [
        ({"use_dora": True}, "cat", "use_dora"),
        ({"trainable_token_indices": [1]}, "linear", "trainable_token_indices"),
        ({"modules_to_save": ["lm_head"]}, "svd", "modules_to_save"),
        ({"rank_pattern": {"q_proj": 2}}, "linear", "--method cat"),
        ({"layers_to_transform": [0]}, "cat", "different layers"),
    ],
)
def test_what_peft_would_drop_is_refused(
    options: dict[str, object], method: str, said: str, runs: list[Run], tmp_path: Path
) -> None:
    with_config(runs[1], **options)
    with pytest.raises(InputError) as refused:
        combine(runs, tmp_path / "ab", Mixture(method))  # type: ignore[arg-type]
    assert said in str(refused.value)
    assert not (tmp_path / "ab").exists()


@pytest.mark.parametrize("weights", ["nan,1", "inf,1", "1,x"])
def test_weights_are_finite_numbers(weights: str, runs: list[Run], capsys: pytest.CaptureFixture[str]) -> None:
    paths = [str(run.path) for run in runs]
    assert main(["merge-adapters", *paths, "--weights", weights, "--output", "never"]) == 2


def test_what_does_not_go_together_is_refused(
    runs: list[Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="weights"):
        combine(runs, tmp_path / "ab", Mixture(weights=(1.0,)))
    with pytest.raises(InputError, match="already"):
        combine(runs, runs[0].path, Mixture())
    with pytest.raises(InputError, match="one model"):
        combine([runs[0], Run(save_tiny_run(tmp_path / "c", "llama"))], tmp_path / "ab", Mixture())
    assert main(["merge-adapters", str(runs[0].path), "--output", str(tmp_path / "ab")]) == 2
    assert main(["merge-adapters", *(str(run.path) for run in runs), "--weights", "a,b", "--output", "x"]) == 2
    assert "nothing to combine" in capsys.readouterr().err
    assert not (tmp_path / "ab").exists()


def test_an_incomplete_adapter_is_not_combined(runs: list[Run], tmp_path: Path) -> None:
    path = runs[1].path / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file({name: tensor for name, tensor in tensors.items() if "layers.1" not in name}, path)
    with pytest.raises(RunError, match="is incomplete"):
        combine(runs, tmp_path / "ab", Mixture())
    assert not (tmp_path / "ab").exists()


def test_adapters_that_name_parameters_are_refused_with_a_way_out(runs: list[Run], tmp_path: Path) -> None:
    file = runs[1].path / "adapter" / "adapter_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**config, "target_parameters": ["mlp.experts.down_proj"]}), encoding="utf-8")
    with pytest.raises(InputError, match="that name parameters") as caught:
        combine(runs, tmp_path / "ab", Mixture("cat"))
    assert "Train one adapter on the data of all runs" in caught.value.fix
