"""The model as it stands answers greedily, and tells its likeliest tokens as it computes them one by one."""

from __future__ import annotations

import pytest
import torch

from tests.faults.runs import Inputs, make_inputs
from weitune.data.conversation import Conversation, Example, Turn
from weitune.data.pad import pad
from weitune.model.fast.attention import tree_attention
from weitune.training.build import load_base, make_trainable
from weitune.training.inputs import RunInputs, collect_inputs
from weitune.training.keep.answering import CHOICES, Answering
from weitune.training.keep.candidates import answered
from weitune.training.reporter import Reporter
from weitune.training.trainable import Trainable

LONGEST = 6


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunInputs, Trainable]:
    files: Inputs = make_inputs(tmp_path_factory.mktemp("answering") / "inputs")
    inputs = collect_inputs(files.recipe(files.folder / "unused"), Reporter())
    loaded = load_base(inputs.recipe, "cpu")
    return inputs, make_trainable(loaded, inputs.recipe.adapter, seed=1, base=inputs.recipe.model)


def asked(inputs: RunInputs) -> list[tuple[int, ...]]:
    texts = ("Hi", "Tell me a story about the sea.", "你是谁？")
    return [tuple(inputs.framing.prompt(Conversation((Turn("user", text),)))) for text in texts]


def logits(trainable: Trainable, tokens: tuple[int, ...]) -> torch.Tensor:
    model = trainable.trained.model.eval()
    with torch.inference_mode(), tree_attention(model, on=False):
        return torch.as_tensor(model(input_ids=torch.tensor([tokens])).logits[0])


def test_answers_are_the_likeliest_tokens(made: tuple[RunInputs, Trainable]) -> None:
    inputs, trainable = made
    prompts = asked(inputs)
    told: list[int] = []
    answering = Answering(inputs, trainable, LONGEST)
    answers = answering(prompts, told.append)
    assert sorted(told) == sorted(example.supervised * answering.ended(example) for example in answers)
    for prompt, example in zip(prompts, answers, strict=True):
        (span,) = example.spans
        assert (example.input_ids[: len(prompt)], span.start) == (prompt, len(prompt))
        assert span.stop == len(example.input_ids) <= len(prompt) + LONGEST + 1
        likeliest = logits(trainable, example.input_ids).argmax(-1).tolist()
        learned = list(example.input_ids[span.start :])
        stops = set(inputs.framing.stop_tokens)
        assert answering.ended(example) is (learned[-1] == inputs.framing.end_of_turn)
        if answering.ended(example):
            assert likeliest[span.start + len(learned) - 2] in stops
            learned = learned[:-1]
        assert learned == likeliest[span.start - 1 : span.start - 1 + len(learned)]
        assert not stops & set(learned)


def test_distilled_examples_have_the_likeliest_tokens_of_every_prediction(made: tuple[RunInputs, Trainable]) -> None:
    inputs, trainable = made
    examples: list[Example] = [answered(prompt, (5, 9, 7)[: 1 + at]) for at, prompt in enumerate(asked(inputs))]
    kept = Answering(inputs, trainable, LONGEST).distilled(examples)
    for example, soft in zip(examples, [kept[i] for i in range(len(kept))], strict=True):
        assert (soft.input_ids, soft.spans) == (example.input_ids, example.spans)
        assert len(soft.alternatives) == example.supervised
        shares = logits(trainable, example.input_ids).float().softmax(-1)
        for at, alternatives in enumerate(soft.alternatives, example.spans[0].start - 1):
            best = shares[at].topk(CHOICES)
            assert sorted(token for token, _ in alternatives) == sorted(best.indices.tolist())
            expected = dict(zip(best.indices.tolist(), best.values.tolist(), strict=True))
            assert dict(alternatives) == pytest.approx(expected, rel=1e-4)


def test_a_few_logits_are_computed_at_once(made: tuple[RunInputs, Trainable], monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, trainable = made
    answering = Answering(inputs, trainable, LONGEST)
    examples = [answered(prompt, (5, 9)) for prompt in asked(inputs)] * 2
    longest = max(len(example.inputs) for example in examples)
    together = answering.distilled(examples)
    passes: list[int] = []
    monkeypatch.setattr(
        "weitune.training.keep.answering._MOST_LOGITS", 2 * longest * trainable.trained.model.config.vocab_size
    )
    monkeypatch.setattr("weitune.training.keep.answering.pad", lambda some: passes.append(len(pad(some))) or pad(some))
    apart = answering.distilled(examples)
    assert len(passes) >= 3
    assert max(passes) == 2 * longest
    for number in range(len(examples)):
        for ours, theirs in zip(together[number].alternatives, apart[number].alternatives, strict=True):
            assert dict(ours) == pytest.approx(dict(theirs), rel=1e-4)
