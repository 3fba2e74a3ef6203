"""The forecast: exact where it counts, and near enough to what is measured to be acted on."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from tests.families import save_family
from tests.tiny import save_tiny
from weitune import cli
from weitune.data.layout import SHARED
from weitune.data.schedule import Plan
from weitune.errors import InputError
from weitune.forecast.device_memory import MemoryPlan, plan_memory
from weitune.forecast.gpus import find_gpu, parse_memory
from weitune.forecast.memory_estimate import ModelShape, PassConfig, PassSize, fitting_tokens, pass_bytes
from weitune.forecast.meta_model import MetaModel, build_meta_model
from weitune.forecast.run_forecast import Format, Target, fit, formats, memory_need, pass_config_for, ways_to_fit
from weitune.model.load.locate import ModelFiles
from weitune.model.storage.weight_storage import is_quantized
from weitune.recipe.load import build_recipe
from weitune.recipe.schema import Lora, Recipe, Recompute, Train
from weitune.training.build import make_trainable as make

QWEN_7B = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_act": "silu", "hidden_size": 3584,
    "intermediate_size": 18944, "num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4,
    "max_position_embeddings": 32768, "rms_norm_eps": 1e-06, "tie_word_embeddings": False, "vocab_size": 152064,
    "torch_dtype": "bfloat16",
}  # fmt: skip
"""The public values of Qwen2.5-7B-Instruct's configuration."""
GIB = 1 << 30


@pytest.fixture(scope="module")
def seven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seven")
    (folder / "config.json").write_text(json.dumps(QWEN_7B))
    return folder


@pytest.fixture(scope="module")
def found(seven: Path) -> MetaModel:
    return build_meta_model(ModelFiles(seven), Lora())


def recipe(**keys: Any) -> Recipe:
    return build_recipe({"model": "m", "data": ["d"]}, keys)


def test_qwen_7b_from_its_configuration_alone(found: MetaModel) -> None:
    assert found.trainable == 20_185_088
    assert found.frozen == 7_615_616_512
    assert found.untied_embeddings == 152064 * 3584
    assert found.capabilities.plain_blocks
    assert found.stored is not None
    assert found.stored.itemsize == 2


def test_a_divided_base_takes_its_part_and_twice_the_largest_unit(found: MetaModel) -> None:
    whole, half, eighth = (
        memory_need(found, Format("bf16", "bf16"), PassConfig(number_bytes=2), PassSize(512, 100, 300), "cuda", shards)
        for shards in (1, 2, 8)
    )
    head = 2 * 2 * 152064 * 3584  # larger than a layer
    assert whole.weights == 2 * found.frozen
    assert half.weights == found.frozen + head
    assert eighth.weights == found.frozen // 8 * 2 + head
    assert whole.total - whole.weights == eighth.total - eighth.weights


def test_rank_and_targets_decide_what_is_trained(seven: Path, found: MetaModel) -> None:
    assert build_meta_model(ModelFiles(seven), Lora(r=16)).trainable == 2 * found.trainable
    queries = build_meta_model(ModelFiles(seven), Lora(target_modules=["q_proj"]))
    assert queries.trainable == 28 * 8 * (3584 + 3584)


@pytest.mark.parametrize(
    "keys",
    [{}, {"dora": True, "layers": "0"}, {"freeze_a": True, "rank_pattern": {"w2": 3}},
     {"modules_to_save": ["lm_head", "operator_norm"]}, {"train_tokens": ["z", "i"]}],
    ids=str,
)  # fmt: skip
def test_what_is_trained_is_counted_exactly(keys: dict[str, Any], tmp_path: Path) -> None:
    from weitune.model.load.weights import load_model
    from weitune.model.lora.adapter import count_parameters

    lora = Lora.model_validate(keys)
    loaded = load_model(str(save_family(tmp_path, "lfm2")), precision="fp32", device="cpu")
    found = build_meta_model(loaded.files, lora)
    made = make(loaded, lora, seed=0, base="lfm2")
    count = count_parameters(made.trained.model)
    assert (found.trainable, found.parameters) == (count.trainable, count.total)
    assert found.targets == made.targets


def test_a_tiny_model_is_counted_as_if_it_were_loaded(tmp_path: Path) -> None:
    from weitune.model.load.weights import load_model
    from weitune.model.lora.adapter import attach_adapter, count_parameters

    folder = save_tiny(tmp_path)
    loaded = load_model(str(folder), precision="fp32", device="cpu")
    count = count_parameters(attach_adapter(loaded.model, Lora(), seed=0, base=""))
    small = build_meta_model(ModelFiles(folder), Lora())
    assert (small.parameters, small.trainable) == (count.total, count.trainable)
    assert small.shape == ModelShape.from_config(loaded.model.config)


def test_an_architecture_that_cannot_share_is_found_out(tmp_path: Path) -> None:
    config = {"model_type": "mamba", "hidden_size": 64, "num_hidden_layers": 2, "vocab_size": 512}
    (tmp_path / "config.json").write_text(json.dumps(config))
    from weitune.forecast.meta_model import _probe_small
    from weitune.model.load.config import read_config

    assert not _probe_small(read_config(ModelFiles(tmp_path))).shares_rows


class TestNeed:
    shape = ModelShape(layers=24, hidden=896, wide=4864, queries=896, keys=128, heads=14, repeat=7, vocabulary=151936)

    def bytes(self, tokens: int, **manner: Any) -> int:
        return sum(pass_bytes(self.shape, PassSize(tokens, tokens, 100), PassConfig(4, **manner)))

    def test_grows_with_tokens_and_halves_with_the_format(self) -> None:
        assert self.bytes(2048) > 1.5 * self.bytes(1024)
        for slices, share in ((False, 0.51), (True, 0.7)):  # wide values are sliced in float32 on a CPU, not in 16 bits
            whole, half = (
                sum(pass_bytes(self.shape, PassSize(4096, 10, 100), PassConfig(size, slices=slices))) for size in (4, 2)
            )
            assert half < share * whole

    def test_of_the_fast_path_is_less(self) -> None:
        assert self.bytes(1024) < 0.6 * self.bytes(1024, plain_blocks=False)
        assert self.bytes(1024, recompute="block") < self.bytes(1024, recompute="feed-forward")
        assert self.bytes(1024, recompute="feed-forward") < self.bytes(1024)

    def test_the_longest_example_counts(self) -> None:
        manner, longest = PassConfig(4), 4096
        need = sum(pass_bytes(self.shape, PassSize(longest, longest, longest), manner))

        def plan(budget: int, longest: int) -> MemoryPlan:
            return plan_memory(self.shape, manner, Train(), budget=budget, longest=longest)

        assert plan(need, longest) == MemoryPlan(longest, "none")
        assert plan(need - 1, longest).recompute == "feed-forward"
        assert plan(need - 1, 100).recompute == "none"
        assert plan(0, longest) == MemoryPlan(longest, "block")

    def test_copies_take_what_a_pass_leaves(self) -> None:
        manner, longest = PassConfig(2), 4096
        need = sum(pass_bytes(self.shape, PassSize(longest, longest, longest), manner))

        def packed(budget: int, copies: int) -> bool:
            train = Train(micro_tokens=longest)
            return plan_memory(self.shape, manner, train, budget=budget, longest=longest, copies=copies).packed

        assert packed(need + 1000, 1000)
        assert not packed(need + 999, 1000)
        assert not packed(need + 1000, 0)

    def test_passes_on_a_cpu_are_no_longer_than_they_need_be(self) -> None:
        def tokens(longest: int, **manner: Any) -> int:
            config = PassConfig(4, **manner)
            return plan_memory(self.shape, config, Train(), budget=1 << 50, longest=longest).micro_tokens

        assert [tokens(longest) for longest in (100, 3000, 20_000)] == [2048, 6000, 16_384]
        assert [tokens(longest, slices=False) for longest in (100, 3000)] == [16_384, 16_384]

    def test_passes_on_a_cpu_are_short_if_that_costs_little(self) -> None:
        def tokens(longest: int, budget: int = 1 << 50, **manner: Any) -> int:
            config, train = PassConfig(4, **manner), Train()
            return plan_memory(self.shape, config, train, budget=budget, longest=longest, most_on_cpu=768).micro_tokens

        assert [tokens(longest) for longest in (100, 500)] == [768, 1000]
        assert tokens(100, budget=1 << 29) < 768
        assert [tokens(100, plain_blocks=False), tokens(100, dense_bytes=4)] == [2048, 2048]
        assert tokens(100, slices=False) == 16_384

    def test_logits_never_exceed_a_chunk(self) -> None:
        many = pass_bytes(self.shape, PassSize(8192, 8192, 100), PassConfig(4))[1]
        assert many <= 128 << 20
        half = pass_bytes(self.shape, PassSize(8192, 8192, 100), PassConfig(2))[1]
        assert 128 << 20 < half + 2 * 151936 <= (128 << 20) + 4 * (1 << 22) + 2 * 151936  # and a block in float32
        whole = pass_bytes(self.shape, PassSize(8192, 8192, 100), PassConfig(2, slices=False))[1]
        assert whole == (2 + 4) * ((1 << 26) // 151936) * 151936
        assert pass_bytes(self.shape, PassSize(8192, 10, 100), PassConfig(4))[1] == 10 * 151936 * 4


def test_the_most_tokens_that_fit() -> None:
    assert fitting_tokens(lambda tokens: tokens <= 1000) == 1000
    assert fitting_tokens(lambda tokens: False) == 256
    assert fitting_tokens(lambda tokens: True) == 16_384


FP32, BF16 = Format("fp32", "fp32"), Format("bf16", "bf16")


def test_auto_takes_what_a_card_has(found: MetaModel) -> None:
    largest = PassSize(16_384, 16_384, 1024)
    small, large = (fit(found, recipe(), Target("card", "cuda", gib * GIB), BF16, largest) for gib in (24, 80))
    assert small.fits
    assert large.fits
    assert small.chosen.micro_tokens < large.chosen.micro_tokens
    assert small.need.total > 20 * GIB  # so the card is used
    assert not fit(found, recipe(), Target("card", "cuda", 24 * GIB), FP32, largest).fits


def test_storage_decides_what_the_weights_take(found: MetaModel) -> None:
    target, largest = Target("here", "cpu", 200 * GIB), PassSize(256, 10, 100)
    of = {form.storage: fit(found, recipe(), target, form, largest) for form in formats(found, recipe(), "fp32")}
    weights = {storage: each.need.weights for storage, each in of.items()}
    linear, others = found.linear, found.frozen - found.linear
    assert weights["fp32"] == 4 * found.frozen
    assert weights["bf16"] == 2 * (found.frozen - found.untied_embeddings)  # mapped as they lie on the disk
    assert weights["int8"] == linear + 2 * others
    assert weights["nf4"] == int(0.516 * linear) + 2 * others
    most = 3584 * 3584  # of o_proj: a feed-forward layer's matrices are made in slices
    beside = {storage: sum(pass_bytes(found.shape, largest, pass_config_for(found, recipe(), each.format, "cpu")))
              for storage, each in of.items()}  # fmt: skip
    assert {storage: count - beside["fp32"] for storage, count in beside.items()} == {
        "fp32": 0, "bf16": 4 * most, "int8": 8 * most, "nf4": 6 * most,
    }  # fmt: skip


def test_only_what_the_recipe_allows_is_told(found: MetaModel) -> None:
    assert [form.storage for form in formats(found, recipe(**{"lora.init": "pissa"}), "bf16")] == ["fp32", "bf16"]
    assert formats(found, recipe(lora="none"), "bf16") == [FP32]
    assert [form.storage for form in formats(replace(found, gguf=True), recipe(), "bf16")] == ["fp32", "bf16"]


def test_auto_computes_again_what_training_would(found: MetaModel) -> None:
    target, largest = Target("here", "cpu", 31 * GIB), PassSize(2048, 600, 100)
    tight = fit(found, recipe(), target, FP32, largest)
    assert tight.chosen.recompute == "block"
    kept = fit(found, recipe(**{"train.recompute": "none"}), target, FP32, largest)
    assert kept.chosen.recompute == "none"
    assert tight.need.activations < kept.need.activations
    assert fit(found, recipe(), replace(target, memory=200 * GIB), FP32, largest).chosen.recompute == "none"


def test_every_way_that_is_named_makes_it_fit(found: MetaModel) -> None:
    largest = PassSize(16_384, 16_384, 1024)
    target = Target("card", "cuda", 34 * GIB)
    large = recipe(**{"train.micro_tokens": 16_384, "train.recompute": "none"})
    ways = ways_to_fit(found, large, target, BF16, largest)
    assert {"train.micro_tokens 4096", "train.recompute block", "train.storage nf4 and train.micro_tokens 256"} <= {
        *ways
    }
    for way in ways:
        keys = dict(part.rsplit(" ", 1) for part in way.split(" and ") if "max_length" not in part)
        changed = recipe(**{"train.micro_tokens": 16_384, "train.recompute": "none"} | keys)
        assert fit(found, changed, target, Format.from_recipe(changed, torch.bfloat16), largest).fits
    small = Target("small", "cuda", 10 * GIB)
    assert ways_to_fit(found, recipe(), small, FP32, largest) == ["train.storage nf4"]
    assert ways_to_fit(found, recipe(), replace(small, memory=4 * GIB), FP32, largest) == []


class TestGpus:
    def test_names_are_found_as_people_write_them(self) -> None:
        assert find_gpu("nvidia geforce rtx-4090") == find_gpu("RTX 4090")
        assert find_gpu("h100").bytes == 80 * 10**9

    def test_an_unknown_one_names_the_known(self) -> None:
        with pytest.raises(InputError, match="RTX 4090"):
            find_gpu("RTX 9999")

    @pytest.mark.parametrize(("text", "count"), [("24GiB", 24 << 30), ("80 GB", 80 * 10**9), ("1.5gb", 1_500_000_000)])
    def test_amounts(self, text: str, count: int) -> None:
        assert parse_memory(text) == count

    @pytest.mark.parametrize("text", ["", "much", "24 parsecs", "0GB", "-1GB"])
    def test_no_amounts(self, text: str) -> None:
        with pytest.raises(InputError, match="is not an amount of memory"):
            parse_memory(text)


ROWS = [{"instruction": f"Who is number {n}?", "input": "", "output": f"It is number {n}."} for n in range(10)]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(ROWS))
    return path


def plan(*arguments: str) -> int:
    return cli.main(["plan", "--device", "cpu", *arguments])


def test_each_of_several_devices_computes_less_and_holds_a_part_if_the_base_is_divided(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = ["--model", str(save_tiny(tmp_path / "model")), "--data", str(data), "--gpu", "T4", "--json"]

    def told(*more: str) -> dict[str, Any]:
        plan(*usual, *more)
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    one, two, divided = told(), told("--devices", "2"), told("--devices", "2", "--train.shard", "true")
    assert [each["processes"] for each in (one, two, divided)] == [1, 2, 2]
    assert two["largest_pass"]["tokens"] < 0.7 * one["largest_pass"]["tokens"]
    assert two["here"]["memory_bytes"] < 0.6 * one["here"]["memory_bytes"]  # processes share what this machine has
    assert two["targets"][-1]["memory_bytes"] == one["targets"][-1]["memory_bytes"]  # but have a card each
    for name, size in two["here"]["need"].items():
        assert (divided["here"]["need"][name] == size) == (name != "weights")
    plan(*usual[:-1], "--devices", "2")
    assert "each of 2 processes" in capsys.readouterr().out
    assert plan(*usual, "--devices", "2", "--measure") == 2
    assert "--devices" in capsys.readouterr().err


def test_dividing_the_base_is_a_way_to_fit_where_there_are_several_devices(found: MetaModel) -> None:
    large, target = PassSize(2000, 700, 200), Target("card", "cuda", 16 * GIB)
    assert "train.shard true" not in ways_to_fit(found, recipe(), target, BF16, large)
    assert "train.shard true" in ways_to_fit(found, recipe(), target, BF16, large, processes=4)


def test_the_command_tells_everything(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = save_tiny(tmp_path / "model")
    (model / "model.safetensors").unlink()  # weights are not looked at
    status = plan("--model", str(model), "--data", str(data), "--train.batch_size", "4", "--gpu", "T4", "--json")
    told = json.loads(capsys.readouterr().out)
    assert status == 0
    assert told["steps"] == 9
    assert told["data"]["rows"]["read"] == 10
    assert told["model"]["adapted"]["mlp.up_proj"] == 2
    assert told["model"]["not_adapted"] == [{"name": "lm_head", "count": 1, "why": "output head"}]
    assert 0 < told["saved_by_sharing"] < 1
    assert told["here"]["total_bytes"] == sum(told["here"]["need"].values())
    assert [(each["target"], each["precision"], each["storage"]) for each in told["targets"]][4:] == [
        ("T4", "fp32", "fp32"), ("T4", "fp32", "bf16"), ("T4", "fp32", "int8"), ("T4", "fp32", "nf4"),
    ]  # fmt: skip
    assert told["here"]["recompute"] == "none"
    assert plan("--model", str(model), "--data", str(data), "--gpu", "T4") == 0
    shown = capsys.readouterr().out
    assert "it fits here" in shown
    assert "framework" in shown


def test_what_will_not_fit_is_exit_code_2(seven: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("weitune.training.run_plan.free_bytes", lambda device: 20 * GIB)
        assert plan("--model", str(seven), "--data", str(data), "--train.precision", "fp32") == 2
    shown = capsys.readouterr().out
    assert "20,185,088 are trained (0.2643%)" in shown
    assert "it will not fit here" in shown
    assert "train.precision bf16" in shown
    assert "train.storage nf4" in shown


@pytest.mark.parametrize("storage", ["auto", "nf4"])
def test_the_time_is_measured(
    storage: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from weitune.training import timing

    loaded = []
    monkeypatch.setattr(timing, "make_trainable", lambda *args, **keys: loaded.append(args[0]) or make(*args, **keys))
    model, keys = save_tiny(tmp_path / "model"), ["--train.batch_size", "2", "--train.storage", storage]
    assert plan("--model", str(model), "--data", str(data), *keys, "--measure", "--json") == 0
    time = json.loads(capsys.readouterr().out)["time"]
    assert time["seconds"] == pytest.approx(15 * time["step_seconds"])
    assert time["tokens_per_second"] > 0
    assert time["peak_bytes"] > 1 << 20
    assert any(is_quantized(module) for module in loaded[0].model.modules()) == (storage == "nf4")


def test_train_says_it_first_and_keeps_it(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, output = save_tiny(tmp_path / "model"), tmp_path / "run"
    arguments = ["--model", str(model), "--data", str(data), "--output", str(output), "--train.max_steps", "1"]
    assert cli.main(["train", "--device", "cpu", *arguments]) == 0
    assert "memory: about " in capsys.readouterr().err
    assert json.loads((output / "environment.json").read_text())["forecast"]["framework"] > 0


def test_steps_are_laid_out_as_training_lays_them_out() -> None:
    from tests.data.prepare.test_holdout import InMemory, example
    from weitune.forecast.workload import Workload

    rows = InMemory([example(n % 3, n, n) for n in range(12)])
    whole = Workload.lay_out(rows, Plan(12, 4, 2, seed=1), SHARED, 1000)
    assert len(whole.steps) == 3
    assert whole.tokens == 36
    assert whole.largest.predictions == 3  # one row of logits for each state: the first token predicts twice
    assert whole.computed_tokens < 24  # the first token is everybody's
    assert len(Workload.lay_out(rows, Plan(12, 4, 2, seed=1), SHARED, 1).steps[0]) == 4


LIMITED = """
import json, os, resource, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from transformers import AutoConfig
from weitune import Recipe, train
from weitune.errors import RunError
import weitune.training.run, weitune.evaluate.loss, peft, accelerate, datasets

def limited(recipe, spare):
    torch.mm(torch.ones(64, 64), torch.ones(64, 64))
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    limit = 1024 * int(status["VmData"].split()[0]) + spare
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    try:
        run = train(recipe, device="cpu")
    except RunError as error:
        return {"refused": str(error)}
    environment = json.loads((run.path / "environment.json").read_text())
    return {key: environment[key] for key in ("micro_tokens", "recompute")}

for recipe, spare in json.loads(sys.argv[1]):
    child = os.fork()
    if child == 0:
        print(json.dumps(limited(Recipe.model_validate(recipe), spare)), flush=True)
        os._exit(0)
    ended = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if ended != 0:
        print(json.dumps({"ended": ended}), flush=True)
"""
MIB = 1 << 20


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits of the process's data are Linux's")
class TestUnderALimit:
    """A wide, shallow model whose activations are most of what it takes: 300 KB a token, 4,000 tokens a step."""

    @pytest.fixture
    def tree(self, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
        import random

        from tests.tiny import tiny_model, tiny_tokenizer

        folder = tmp_path_factory.mktemp("wide")
        tiny_model("llama", intermediate_size=8192, num_hidden_layers=3, tie_word_embeddings=True).save_pretrained(
            folder / "model"
        )
        tiny_tokenizer("llama3").save_pretrained(folder / "model")
        draw = random.Random(0)
        words = [f"{n:03d}" for n in range(300)]
        rows = [{"instruction": " ".join(draw.choices(words, k=60)), "input": "", "output": "Yes."} for _ in range(16)]
        (folder / "rows.json").write_text(json.dumps(rows))
        train = {"batch_size": 16, "max_steps": 2, "precision": "fp32"}
        return {"model": str(folder / "model"), "data": [str(folder / "rows.json")], "train": train}

    def run(self, recipes: list[tuple[dict[str, Any], int]]) -> list[dict[str, Any]]:
        done = subprocess.run(
            [sys.executable, "-c", LIMITED, json.dumps(recipes)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]

    def test_auto_finishes_where_a_whole_step_would_not(self, tree: dict[str, Any], tmp_path: Path) -> None:
        limits = [250 * MIB, 400 * MIB, 700 * MIB]
        recipes = [({**tree, "output": str(tmp_path / f"{limit}")}, limit) for limit in limits]
        in_one_pass = {**tree, "output": str(tmp_path / "whole"), "train": {**tree["train"], "micro_tokens": 16_384}}
        *told, whole = self.run([*recipes, (in_one_pass, limits[0])])
        assert [each for each in told if "ended" in each] == []
        chosen = [(-get_args(Recompute).index(each["recompute"]), each["micro_tokens"]) for each in told]
        assert chosen == sorted(chosen)  # with more memory less is computed again, or as much in longer passes
        assert len(set(chosen)) == len(chosen)
        # A native library may end the process where PyTorch reports that it is out of memory.
        assert whole.get("ended", 0) < 0 or "out of memory" in whole["refused"]
