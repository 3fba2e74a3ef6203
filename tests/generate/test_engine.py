"""The engine says what the model says: greedy is the argmax, a batch is its rows, and a stop token ends it."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from tests.tiny import TEMPLATE_OF, longrope, save_tiny, save_tiny_adapter, tiny_model, tiny_tokenizer
from weitune.data.conversation import Conversation, Turn
from weitune.data.frame.choose import framing_for
from weitune.errors import InputError, RunError
from weitune.generate.engine import Engine
from weitune.generate.open_model import merge_adapter
from weitune.generate.sampling import Sampling
from weitune.recipe.schema import Tokens

QUESTIONS = (
    "你是谁？",
    "What is the capital of France?",
    "Tell me a story about the sea and the fisherman who went out every morning. 请告诉我一个故事。",
    "x",
)


def conversation(*texts: str) -> Conversation:
    roles = ("user", "assistant")
    return Conversation(tuple(Turn(roles[i % 2], text) for i, text in enumerate(texts)))  # type: ignore[arg-type]


def engine_of(model: Any, template: str) -> Engine:
    tokenizer = tiny_tokenizer(template)
    return Engine(model, tokenizer, framing_for(tokenizer, Tokens()))


def tiny_engine(family: str = "qwen2", **overrides: Any) -> Engine:
    return engine_of(tiny_model(family, **overrides), TEMPLATE_OF[family])


def argmax_loop(model: Any, prompt: list[int], steps: int) -> list[int]:
    """The slow twin: no cache, no processors, the whole sequence again for every token."""
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(steps):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def stop_at(engine: Engine, token: int) -> None:
    """Make ``engine`` write its stop token where it would have written ``token``, and nowhere else."""
    head = engine.model.get_output_embeddings().weight
    stop = min(engine.stop_tokens)
    with torch.no_grad():
        head[stop] = head[token] * 1.001
        head[sorted(engine.stop_tokens - {stop})] = 0
        head[token] *= 0.9


@pytest.mark.parametrize("family", TEMPLATE_OF)
def test_greedy_is_the_argmax_of_every_step(family: str) -> None:
    engine = tiny_engine(family)
    asked = conversation(QUESTIONS[0])
    expected = argmax_loop(engine.model, engine.prompt(asked), 24)
    assert not engine.stop_tokens.intersection(expected)
    assert list(engine.answer(asked, Sampling(max_new_tokens=24)).tokens) == expected


@pytest.mark.parametrize("family", TEMPLATE_OF)
def test_a_stop_token_ends_the_answer_and_is_not_shown(family: str) -> None:
    engine = tiny_engine(family, tie_word_embeddings=False)
    asked, sampling = conversation(QUESTIONS[1]), Sampling(max_new_tokens=24)
    endless = engine.answer(asked, sampling)
    assert not endless.stopped
    at = next(i for i in range(1, 24) if endless.tokens[i] not in endless.tokens[:i])
    stop_at(engine, endless.tokens[at])
    answer = engine.answer(asked, sampling)
    assert answer.stopped
    assert answer.tokens == endless.tokens[:at]
    assert engine.tokenizer.decode(sorted(engine.stop_tokens)) not in answer.text
    stream = engine.stream(asked, sampling)
    assert "".join(stream) == answer.text
    assert stream.answer == answer


def test_flags_that_the_model_ships_do_not_sneak_in(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.generation_config.repetition_penalty == 1.05
    shipped = model.generation_config
    engine = Engine(model, tokenizer := AutoTokenizer.from_pretrained(folder), framing_for(tokenizer, Tokens()))
    model.generation_config.update(repetition_penalty=50.0, min_new_tokens=30, forced_eos_token_id=7)
    asked = conversation(QUESTIONS[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answer = engine.answer(asked, Sampling(max_new_tokens=24))
    assert list(answer.tokens) == argmax_loop(model, engine.prompt(asked), 24)
    assert model.generation_config is shipped


@pytest.mark.parametrize("family", TEMPLATE_OF)
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_new_tokens=24),
        Sampling(max_new_tokens=24, temperature=0.8, top_p=0.9, top_k=50, repetition_penalty=1.3, seed=3),
    ],
    ids=["greedy", "sampled"],
)
def test_a_batch_gives_what_its_conversations_give_alone(family: str, sampling: Sampling) -> None:
    engine = tiny_engine(family)
    asked = [conversation(question) for question in QUESTIONS]
    alone = [engine.answer(each, sampling) for each in asked]
    assert engine.answers(asked, sampling) == alone
    assert engine.answers(asked, sampling, batch_size=3) == alone
    assert ["".join(engine.stream(each, sampling)) for each in asked] == [answer.text for answer in alone]


def test_no_conversation_of_a_batch_is_cut_for_a_longer_neighbour() -> None:
    engine = tiny_engine(max_position_embeddings=64)
    sampling = Sampling(max_new_tokens=30)
    asked = [conversation("hi"), conversation(QUESTIONS[1] + " 请"), conversation("hi", "yes", "hi")]
    lengths = [len(engine.prompt(each)) for each in asked]
    assert max(lengths) + 30 > 64 > min(lengths) + 30
    answers = engine.answers(asked, sampling)
    assert answers == [engine.answer(each, sampling) for each in asked]
    assert [len(answer.tokens) for answer in answers] == [min(30, 64 - length) for length in lengths]


@pytest.mark.parametrize("limit", [1, 24], ids=["not crossed", "crossed"])
def test_of_a_batch_no_conversation_is_rotated_as_its_longer_neighbour(limit: int) -> None:
    """LongRoPE has other factors for long rows, and transformers chooses one for a whole pass."""
    lengths = sorted({len(tiny_engine().prompt(conversation(question))) for question in QUESTIONS})
    engine = tiny_engine(rope_parameters=longrope(lengths[-2]))
    asked = [conversation(question) for question in QUESTIONS]
    sampling = Sampling(max_new_tokens=limit)
    assert engine.answers(asked, sampling) == [engine.answer(each, sampling) for each in asked]


def test_no_conversations_give_no_answers() -> None:
    assert tiny_engine().answers([]) == []


def test_a_seed_fixes_the_answer() -> None:
    engine, asked = tiny_engine(), conversation(QUESTIONS[0])
    answers = [engine.answer(asked, Sampling(max_new_tokens=16, temperature=1, seed=seed)) for seed in (1, 1, 2, None)]
    assert answers[0] == answers[1]
    assert len({answer.tokens for answer in answers}) == 3


def test_a_prompt_that_fills_the_context_is_refused() -> None:
    engine = tiny_engine(max_position_embeddings=32)
    with pytest.raises(InputError, match=r"has \d+ tokens, but the model takes 32 at most"):
        engine.stream(conversation(QUESTIONS[2]))


def test_what_opens_an_answer_counts_as_prompt() -> None:
    asked = conversation(QUESTIONS[0])
    engine = tiny_engine(max_position_embeddings=tiny_engine().prompt_tokens(asked) + 2)
    engine._grammars.opening = (1,)  # type: ignore[misc]
    assert engine.fits(engine.prompt(asked, {}), {})
    engine._grammars.opening = (1, 2)  # type: ignore[misc]
    assert engine.fits(engine.prompt(asked))
    for ask in (engine.stream, engine.answers):
        with pytest.raises(InputError, match="tokens, but the model takes"):
            ask([asked] if ask == engine.answers else asked, schema={})  # type: ignore[operator]


def test_a_model_in_training_is_left_as_it_was() -> None:
    engine = tiny_engine()
    engine.model.train()
    engine.answer(conversation("x"), Sampling(max_new_tokens=2))
    assert engine.model.training
    with pytest.raises(IndexError):
        engine._generate([[10**6]], 4, Sampling())
    assert engine.model.training
    assert isinstance(engine.model.generation_config, GenerationConfig)
    assert engine.model.generation_config.eos_token_id is not None


def test_an_exception_in_the_model_reaches_the_reader() -> None:
    engine = tiny_engine()
    calls = []

    def fail(*_: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("out of memory")

    engine.answer(conversation("x"), Sampling(max_new_tokens=1))
    engine.model.get_input_embeddings().register_forward_pre_hook(fail)
    stream = engine.stream(conversation("x"))
    with pytest.raises(RuntimeError, match="out of memory"):
        "".join(stream)
    assert len(stream.answer.tokens) == 2


def test_closing_a_stream_ends_the_generation_within_a_token() -> None:
    engine = tiny_engine()
    calls: list[int] = []
    engine.model.get_input_embeddings().register_forward_pre_hook(lambda *_: calls.append(1))
    stream = engine.stream(conversation("x"), Sampling(max_new_tokens=900))
    next(stream)
    stream.close()
    assert len(calls) < 450


def test_readers_in_several_threads_do_not_disturb_each_other() -> None:
    engine = tiny_engine()
    engine.model.generation_config.update(repetition_penalty=50.0)
    shipped, sampling = engine.model.generation_config, Sampling(max_new_tokens=12)
    asked = [conversation(question) for question in QUESTIONS]
    expected = [engine.answer(each, sampling) for each in asked]
    with ThreadPoolExecutor(len(asked)) as pool:
        assert list(pool.map(lambda each: engine.answer(each, sampling), asked)) == expected
    assert engine.model.generation_config is shipped


def test_merging_an_adapter_says_what_the_adapter_says(tmp_path: Path) -> None:
    from peft import PeftModel

    folder = save_tiny(tmp_path / "model")
    adapter = save_tiny_adapter(tmp_path / "adapter", folder)
    base = AutoModelForCausalLM.from_pretrained(folder)
    attached = engine_of(PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), adapter), "chatml")
    merged = engine_of(merge_adapter(AutoModelForCausalLM.from_pretrained(folder), adapter), "chatml")
    asked = [conversation(question) for question in QUESTIONS]
    sampling = Sampling(max_new_tokens=16)
    assert merged.answers(asked, sampling) == attached.answers(asked, sampling)
    assert merged.answers(asked, sampling) != engine_of(base, "chatml").answers(asked, sampling)


def test_an_adapter_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = save_tiny(tmp_path / "model")
    adapter = save_tiny_adapter(tmp_path / "adapter", folder)
    with pytest.raises(RunError, match="does not fit the run's model"):
        merge_adapter(tiny_model("qwen2", hidden_size=32), adapter)
    weights = load_file(adapter / "adapter_model.safetensors")
    weights.pop(next(iter(weights)))
    save_file(weights, adapter / "adapter_model.safetensors")
    with pytest.raises(RunError, match="is incomplete"):
        merge_adapter(tiny_model("qwen2"), adapter)
    (adapter / "adapter_model.safetensors").write_bytes(b"torn")
    with pytest.raises(RunError, match="does not fit"):
        merge_adapter(tiny_model("qwen2"), adapter)


@pytest.mark.parametrize("family", ["qwen2", "gemma"])
def test_progress_counts_the_conversations_that_are_answered(family: str) -> None:
    engine = tiny_engine(family)
    if family == "gemma":  # by transformers, as a model whose blocks are not plain
        engine.__dict__["_blocks"] = None
    done: list[tuple[int, int | None]] = []
    engine.answers(
        [conversation(question) for question in QUESTIONS],
        Sampling(max_new_tokens=5),
        batch_size=2,
        progress=lambda *counts: done.append(counts),
    )
    assert done[-1] == (4, 4)
    assert [count for count, _ in done] == sorted({count for count, _ in done})


@pytest.mark.parametrize("seed", [-1, 1 << 63])
def test_a_seed_that_pytorch_does_not_take_is_refused(seed: int) -> None:
    with pytest.raises(InputError, match="seed must be from 0 to"):
        Sampling(temperature=1, seed=seed)
    assert Sampling(seed=(1 << 63) - 1).seed == (1 << 63) - 1
