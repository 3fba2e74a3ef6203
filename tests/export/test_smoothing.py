"""Channels evened out before quantization: the model stays what it was, and what is rounded loses less."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf import GGUFReader
from tests.export.runs import DIALOGUES, logits, save_run, silent
from tests.export.test_export import needs_llama_cpp
from tests.tiny import tiny_model
from weitune import Run
from weitune.errors import InputError
from weitune.export import fit, smoothing
from weitune.export import measure as measuring
from weitune.export.fit import fitted
from weitune.export.formats.gguf_file import write_gguf
from weitune.export.measure import measure
from weitune.export.options import ExportOptions
from weitune.export.run import export
from weitune.export.smoothing import SmoothedWeights, channels_of, estimated_error, head_loss, smoothing_factors
from weitune.export.source.export_source import ExportSource, open_export_source
from weitune.export.verify.compare import VerificationError
from weitune.export.verify.outputs import Computing, open_reference
from weitune.export.verify.prompts import choose_prompts
from weitune.gguf.types import BLOCK, GgufType

IDS = torch.tensor([[5, 17, 40, 8, 99, 3, 250, 61]])


def uneven_run(folder: Path, family: str = "llama", *, variant: str = "lora", **config: Any) -> Run:
    """Write a run on a model some of whose channels are much larger than others, and their columns smaller."""
    run = save_run(folder, family, variant=variant)
    model = tiny_model(family, **config)
    generator = torch.Generator().manual_seed(3)
    modules = dict(model.named_modules())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.1, generator=generator)
        for each in channels_of(model.config, head_is_tied=model.config.tie_word_embeddings):
            made = modules[each.output_of]
            large = torch.randperm(made.weight.shape[0], generator=generator)[:6]
            for parameter in made.parameters():
                parameter[large] *= 32
            for name in each.input_of:
                modules[name].weight[:, large] /= 32
    model.save_pretrained(run.recipe.model)
    return run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return uneven_run(tmp_path_factory.mktemp("smoothing") / "run")


def weights_of(source: ExportSource, gguf_type: GgufType = "Q8_0") -> SmoothedWeights:
    found = fitted(source, gguf_type, silent).weights
    assert isinstance(found, SmoothedWeights)
    return found


def model_of(source: ExportSource, weights: Any) -> Any:
    """Return ``weights`` as a model of transformers in float32."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(source.config, dtype=torch.float32).eval()
    tensors = {name: weights.read(name, torch.float32) for name in weights.slots}
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    assert not unexpected
    assert set(missing) <= {"lm_head.weight"}
    model.tie_weights()
    return model


def rounded(values: torch.Tensor, levels: int = 127) -> torch.Tensor:
    blocks = values.unflatten(-1, (-1, BLOCK))
    step = blocks.abs().amax(-1, keepdim=True) / levels
    return torch.where(step > 0, (blocks / step).round() * step, blocks).flatten(-2)


@pytest.mark.parametrize("variant", ["lora", "rslora", "dora"])
@pytest.mark.parametrize(
    ("family", "config"),
    [("llama", {}), ("llama", {"attention_bias": True, "mlp_bias": True}), ("llama", {"tie_word_embeddings": True}),
     ("mistral", {}), ("qwen2", {}), ("qwen2", {"tie_word_embeddings": True}), ("qwen3", {})],
)  # fmt: skip
def test_the_model_gives_the_same_bits(family: str, config: dict[str, Any], variant: str, tmp_path: Path) -> None:
    source = open_export_source(uneven_run(tmp_path / "run", family, variant=variant, **config))
    weights = weights_of(source)
    every = torch.cat([factors for name, factors in sorted(weights.factors.items())])
    assert every.min() < 1 < every.max()
    outer = {name for name in weights.factors if "layers" not in name}
    assert outer == (set() if source.config.tie_word_embeddings else {"lm_head.weight"})
    assert torch.equal(logits(model_of(source, weights), IDS), logits(model_of(source, source.merged), IDS))


def test_the_channels_are_those_of_the_model() -> None:
    for family in ("llama", "mistral", "qwen2", "qwen3"):
        for tied in (False, True):
            model = tiny_model(family, tie_word_embeddings=tied)
            modules = dict(model.named_modules())
            channels = list(channels_of(model.config, head_is_tied=model.config.tie_word_embeddings))
            taking = [name for each in channels for name in each.input_of]
            assert len(set(taking)) == len(taking) == 2 * 6 + (not tied)  # all but o: scaling v for it gained nothing
            for each in channels_of(model.config, head_is_tied=model.config.tie_word_embeddings):
                for name in each.input_of:
                    assert modules[each.output_of].weight.shape[0] == modules[name].weight.shape[1]


def test_a_text_model_in_a_wrapper_is_not_smoothed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files name the weights otherwise (Mistral Small 3: language_model.model.layers.0…)."""
    source = open_export_source(run)
    assert list(fit._channels(source))
    wrapped = {f"language_model.{name}": slot for name, slot in source.merged.slots.items()}
    monkeypatch.setattr(type(source.merged), "slots", wrapped)
    assert not list(fit._channels(source))
    assert not fitted(source, "Q8_0", lambda title: silent("")).smoothed


def test_sizes_are_root_mean_squares_over_all_tokens(run: Run) -> None:
    source = open_export_source(run)
    model = open_reference(source, Computing()).model
    prompts, _ = choose_prompts(source, 4)
    done: list[tuple[int, int]] = []
    found = measure(
        model,
        [each.input_of[0] for each in channels_of(source.config, head_is_tied=source.head_is_tied)],
        prompts,
        lambda at, total: done.append((at, total)),
    )
    assert done == [(i, len(DIALOGUES)) for i in range(1, len(DIALOGUES) + 1)]
    assert not any(module._forward_pre_hooks for module in model.modules())
    with torch.inference_mode():
        all_ids = [torch.tensor([each.context + each.answer]) for each in prompts]
        every = [model.model(ids, output_hidden_states=True) for ids in all_ids]
    last = torch.cat([output.last_hidden_state[0] for output in every])
    entering = torch.cat([output.hidden_states[1][0] for output in every])  # the second layer
    normed = model.model.layers[1].input_layernorm(entering)
    for name, expected in (("lm_head", last), ("model.layers.1.self_attn.q_proj", normed)):
        assert torch.allclose(found.sizes[name], expected.square().mean(0).sqrt(), rtol=1e-4)
    assert found.taught.tolist() == [token for each in prompts for token in each.answer]
    assert found.hidden_states.shape == (len(found.taught), 64)
    assert torch.allclose(found.hidden_states[-1], every[-1].last_hidden_state[0, -2], atol=1e-5)


def test_a_large_channel_no_longer_takes_the_digits_of_the_others() -> None:
    torch.manual_seed(0)
    values, matrix = torch.randn(200, 64), torch.randn(48, 64) * 0.05
    values[:, 7] *= 100
    size = values.square().mean(0).sqrt()
    factors = smoothing_factors(size, [matrix[:20], matrix[20:]], 127)
    assert factors[7] >= 8 * factors[[i for i in range(32) if i != 7]].max()
    exact = values.double() @ matrix.double().T

    def error(factors: torch.Tensor) -> float:
        return float((rounded(values / factors) @ rounded(matrix * factors).T - exact).std())

    assert error(factors) < 0.5 * error(torch.ones(64))


@pytest.mark.parametrize("levels", [127, 8])
def test_the_estimate_is_right_about_how_errors_compare(levels: int) -> None:
    torch.manual_seed(1)
    found, expected = [], []
    for spread in (0.0, 0.5, 1.0, 1.5, 2.0):
        size = torch.exp(spread * torch.randn(64))
        values, matrix = torch.randn(400, 64) * size, torch.randn(96, 64) * torch.exp(spread / 2 * torch.randn(64))
        exact = values.double() @ matrix.double().T
        found.append(float(estimated_error(size, [matrix], torch.ones(64), levels).sum().sqrt()))
        expected.append(float((rounded(values) @ rounded(matrix, levels).T - exact).square().sum(1).mean().sqrt()))
    ratios = torch.tensor(expected) / torch.tensor(found)
    assert ratios.max() / ratios.min() < 2  # while the errors themselves differ by far more
    assert max(expected) / min(expected) > 20


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**31), st.integers(1, 3), st.floats(0, 6), st.sampled_from([127, 8]), st.booleans()
)  # fmt: skip
def test_factors_are_powers_of_two_and_never_make_it_worse(
    seed: int, blocks: int, spread: float, levels: int, dead: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    size = torch.exp(spread * torch.randn(blocks * BLOCK, generator=generator))
    matrix = torch.randn(10, blocks * BLOCK, generator=generator)
    if dead:
        size[:20], matrix[:, 10:BLOCK] = 0, 0
    factors = smoothing_factors(size, [matrix], levels)
    exponents = factors.log2()
    assert torch.equal(exponents, exponents.round())
    assert exponents.abs().max() <= 4
    before, after = (estimated_error(size, [matrix], each, levels) for each in (torch.ones_like(factors), factors))
    assert (after <= before).all()


@pytest.mark.parametrize("levels", [127, 8])
def test_a_channel_that_was_silent_keeps_its_weights(levels: int) -> None:
    """Other dialogues may use it: its column must not vanish below the steps of its block."""
    torch.manual_seed(2)
    size, matrix = torch.ones(BLOCK), torch.randn(64, BLOCK)
    size[3] = 0
    scaled = matrix * smoothing_factors(size, [matrix], levels)
    kept = rounded(scaled, levels)[:, 3]
    assert (kept - scaled[:, 3]).norm() < 0.5 * scaled[:, 3].norm()


def test_a_column_of_zeros_does_not_blunt_the_others() -> None:
    size, matrix = torch.ones(BLOCK), torch.ones(8, BLOCK)
    size[5], matrix[:, 9] = 50, 0
    factors = smoothing_factors(size, [matrix], 127)
    assert factors[5] / factors[4] >= 4


@pytest.mark.parametrize("gguf_type", ["F32", "F16", "BF16"])
def test_other_types_are_left_alone(run: Run, gguf_type: GgufType) -> None:
    source = open_export_source(run)
    assert fitted(source, gguf_type, silent) == (source.merged, "Q8_0", {}, ())


def test_a_gguf_base_is_left_alone(run: Run, tmp_path: Path) -> None:
    source = open_export_source(run)
    base = tmp_path / "base.gguf"
    write_gguf(base, source, source.base, "F16", template=source.template_without_system, progress=silent(""))
    second = open_export_source(save_run(tmp_path / "second", "llama", model=str(base)))
    assert fitted(second, "Q8_0", silent).weights is second.merged


def test_without_dialogues_nothing_is_evened_out(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_export_source(run)
    monkeypatch.setattr(fit, "choose_prompts", lambda source, count: ([], []))
    found = fitted(source, "Q8_0", silent)
    assert found.weights is source.merged
    assert "nothing could be measured" in found.notes[0]

    def refused(source: ExportSource, count: int) -> Any:
        raise InputError("export.verification.no_dialogue")

    monkeypatch.setattr(fit, "choose_prompts", refused)
    assert fitted(source, "Q8_0", silent).weights is source.merged


def test_dialogues_that_stand_in_are_told_of(tmp_path: Path) -> None:
    run = save_run(tmp_path / "run", "llama", data=[str(tmp_path / "gone.json")])
    exported = export(run, tmp_path / "out", ExportOptions("gguf", "Q4_0", prompts=0))
    described = json.loads((exported.folder / "weitune.json").read_text())
    assert described["smoothed"] is True
    assert "built-in dialogues" in described["smoothed_on"][0]


def test_no_more_is_measured_than_needed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, _ = choose_prompts(open_export_source(run), 4)
    first, second = (len(each.context + each.answer) for each in prompts[:2])
    for limit, chosen in ((1, [0]), (first, [0]), (first + second, [0, 2]), (10**6, [0, 1, 2, 3])):
        monkeypatch.setattr(measuring, "_TOKENS", limit)
        assert measuring.within(prompts) == [prompts[at] for at in chosen]


@pytest.mark.parametrize(("tied", "tensor"), [(False, "output"), (True, "token_embd")])
def test_a_head_that_rounding_would_spoil_stays_f16(
    tied: bool, tensor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_export_source(uneven_run(tmp_path / "run", tie_word_embeddings=tied))
    for bound, gguf_type, expected in ((0.0, "Q8_0", "F16"), (9.0, "Q8_0", "Q8_0"), (0.0, "Q4_0", "Q8_0")):
        monkeypatch.setattr(fit, "HEAD_LOSS", bound)
        found = fitted(source, gguf_type, silent)  # type: ignore[arg-type]
        assert found.head == expected
        path = tmp_path / "x.gguf"
        write_gguf(
            path, source, found.weights, gguf_type, head=found.head, template=source.template, progress=silent("")  # type: ignore[arg-type]
        )  # fmt: skip
        types = {each.name: each.tensor_type.name for each in GGUFReader(path).tensors}
        assert types[f"{tensor}.weight"] == expected
        assert types["token_embd.weight"] == (expected if tied else "Q8_0")


def test_the_loss_of_a_head_is_that_of_its_rounded_product(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_export_source(run)
    prompts, _ = choose_prompts(source, 4)
    measured = measure(open_reference(source, Computing()).model, [], prompts, silent(""))
    head = source.merged.read("lm_head.weight")
    off = []
    for state, token in zip(measured.hidden_states, measured.taught, strict=True):
        fine = (state @ head.T).log_softmax(-1)
        coarse = (rounded(state) @ rounded(head).T).log_softmax(-1)
        off.append(float((fine - coarse)[token].abs()))
    found = head_loss(measured, head, None, silent(""))
    assert found == pytest.approx(sum(off) / len(off), rel=0.1)  # steps are float16 in a file
    monkeypatch.setattr(smoothing, "_ROWS_AT_ONCE", 100)
    assert head_loss(measured, head, None, silent("")) == pytest.approx(found, rel=1e-4)
    assert head_loss(measured, head, weights_of(source).factors["lm_head.weight"], silent("")) < 0.7 * found


@needs_llama_cpp
def test_llama_cpp_finds_the_difference(run: Run, tmp_path: Path) -> None:
    exported = export(run, tmp_path / "smooth", ExportOptions("gguf", "Q8_0"))
    with pytest.raises(VerificationError) as error:
        export(run, tmp_path / "rough", ExportOptions("gguf", "Q8_0", smooth=False))
    said = []
    for verdict, folder, smooth in (
        (exported.verdict, exported.folder, True), (error.value.verdict, tmp_path / "rough.failed", False)
    ):  # fmt: skip
        assert verdict is not None
        assert json.loads((folder / "weitune.json").read_text())["smoothed"] is smooth
        said.append(next(check.found for check in verdict.checks if check.name == "logprobs"))
    smooth_mean, rough_mean = (float(found.split()[2]) for found in said)
    assert smooth_mean < 0.6 * rough_mean
