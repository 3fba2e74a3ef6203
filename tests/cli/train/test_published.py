"""A base that was published quantized, by the command line: plan, train, chat and export; and what is refused."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import published as kinds
from tests.cli.train.test_train import ROWS, write_rows
from tests.families import save_family
from tests.published import quantize
from weitune import cli
from weitune.model.load.weight_files import CONFIG, SINGLE

BASES = {"qwen3": kinds.FP8, "gpt_oss": kinds.MXFP4, "deepseek_v3": kinds.FP8, "mistral3_ministral3": kinds.FP8_WHOLE}


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("family", BASES)
def test_a_published_base_from_plan_to_export(tmp_path: Path, family: str, capsys: pytest.CaptureFixture[str]) -> None:
    base, run, merged = tmp_path / "base", tmp_path / "run", tmp_path / "merged"
    save_family(base, family)
    dense = load_file(base / SINGLE)
    quantize(base, BASES[family])
    before = contents(base)
    common = ["--model", str(base), "--data", write_rows(tmp_path, ROWS * 4), "--device", "cpu"]
    common += ["--train.precision", "fp32", "--lora.experts", str(family == "gpt_oss").lower()]
    published = f"published in {'MXFP4' if family == 'gpt_oss' else 'FP8'} and has "

    assert cli.main(["plan", *common, "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert any(published in note for note in plan["notes"])
    frozen = plan["model"]["parameters"] - plan["model"]["trainable"]
    assert plan["here"]["need"]["weights"] == pytest.approx(4 * frozen, rel=0.01)

    assert cli.main(["train", *common, "--output", str(run), "--train.max_steps", "2"]) == 0
    assert published in capsys.readouterr().err
    question = ["--prompt", "Who are you?", "--max-new-tokens", "4", "--device", "cpu"]
    assert cli.main(["chat", str(run), *question]) == 0
    assert cli.main(["export", str(run), "--format", "merged", "--output", str(merged)]) == 0
    assert contents(base) == before

    config = json.loads((merged / CONFIG).read_text())
    written = load_file(merged / SINGLE)
    assert "quantization" not in json.dumps(config)
    assert config["dtype"] == "bfloat16"
    assert {name: tensor.shape for name, tensor in written.items()} == {n: t.shape for n, t in dense.items()}
    assert all(tensor.dtype == torch.bfloat16 for tensor in written.values())


@pytest.mark.parametrize("command", ["plan", "train", "data check"])
def test_other_methods_are_refused_before_anything_is_done(
    tmp_path: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    base, run = save_family(tmp_path / "Tiny-Chat-AWQ", "qwen3"), tmp_path / "run"
    config = json.loads((base / CONFIG).read_text())
    (base / CONFIG).write_text(json.dumps({**config, "quantization_config": {"quant_method": "awq", "bits": 4}}))
    (base / SINGLE).unlink()  # it is not read
    data = write_rows(tmp_path, ROWS)
    options = {
        "plan": ["--data", data, "--device", "cpu"],
        "train": ["--data", data, "--device", "cpu", "--output", str(run)],
        "data check": [data],
    }
    assert cli.main([*command.split(), *options[command], "--model", str(base)]) == 2
    told = capsys.readouterr().err
    assert "quantized with AWQ" in told
    assert "by its name Tiny-Chat: with `train.storage: nf4`" in told
    assert "Traceback" not in told
    assert not run.exists()
