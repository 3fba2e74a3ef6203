"""chrF and BLEU are sacrebleu's own; the rest has values that can be worked out by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weitune.errors import MissingExtraError
from weitune.evaluate.metrics import corpus_scores, distinct, is_chinese, rouge_l, score, units
from weitune.generate.stream import Answer

ENGLISH = (["The cat sat on the mat today.", "I am here."], ["The cat sat on a mat today.", "I am not here, am I?"])
CHINESE = (["我是甄嬛，家父是大理寺少卿。", "皇上万福金安。"], ["我是甄嬛，家父是大理寺少卿甄远道。", "臣妾参见皇上。"])


@pytest.mark.parametrize(("pair", "tokenizer"), [(ENGLISH, "13a"), (CHINESE, "zh")], ids=["english", "chinese"])
def test_chrf_and_bleu_are_those_of_sacrebleus_command(
    pair: tuple[list[str], list[str]], tokenizer: str, tmp_path: Path
) -> None:
    for name, texts in zip(("answers", "references"), pair, strict=True):
        (tmp_path / name).write_text("\n".join(texts) + "\n", encoding="utf-8")
    command = [sys.executable, "-m", "sacrebleu", "references", "-i", "answers", "-m", "chrf", "bleu", "-w", "8"]
    done = subprocess.run(
        [*command, "-tok", tokenizer], cwd=tmp_path, capture_output=True, text=True, check=True, encoding="utf-8"
    )
    theirs = {entry["name"]: entry["score"] for entry in json.loads(done.stdout)}
    chrf, bleu = corpus_scores(*pair)
    assert chrf == pytest.approx(theirs["chrF2"], abs=1e-6)
    assert bleu == pytest.approx(theirs["BLEU"], abs=1e-6)
    assert 5 < bleu < 95


def test_chinese_is_recognised() -> None:
    assert is_chinese(CHINESE[1])
    assert is_chinese(["请看 README 文件"])
    assert not is_chinese(ENGLISH[1])
    assert not is_chinese([])


def test_units_are_characters_and_words() -> None:
    assert units("Hello, World! 我是 Bob。") == ["hello", "world", "我", "是", "bob"]


def test_rouge_l_by_hand() -> None:
    assert rouge_l("the cat sat", "the cat sat") == 1
    assert rouge_l("the cat", "dogs bark") == 0
    assert rouge_l("", "a") == 0
    assert rouge_l("a b c d", "a c d e") == pytest.approx(2 * 3 / 8)
    assert rouge_l("我爱你", "我不爱你") == pytest.approx(2 * 3 / 7)


@given(a=st.text("abc ", max_size=20), b=st.text("abc ", max_size=20))
def test_rouge_l_is_symmetric_and_bounded(a: str, b: str) -> None:
    assert 0 <= rouge_l(a, b) == rouge_l(b, a) <= 1


def test_distinct_by_hand() -> None:
    assert distinct(["a b a b"], 1) == 0.5
    assert distinct(["a b a b"], 2) == pytest.approx(2 / 3)
    assert distinct(["", "…"], 1) == 0


def test_scores_of_answers() -> None:
    answers = [Answer("I am  Bob.", (1, 2, 3), stopped=True), Answer("Yes.", (1,), stopped=False)]
    found = score(answers, ["I am Bob.", "No."])
    assert (found.answers, found.exact, found.stopped, found.tokens) == (2, 0.5, 0.5, 2.0)
    assert found.rouge_l == 0.5
    alone = score(answers, [None, None])
    assert alone.chrf is alone.bleu is alone.rouge_l is alone.exact is None
    assert alone.distinct_1 == 1.0
    with pytest.raises(ValueError, match="no answers"):
        score([], [])


def test_answers_without_a_reference_are_not_compared() -> None:
    answers = [Answer("I am Bob.", (1,), stopped=True), Answer("", (), stopped=True)]
    found, alone = score(answers, ["I am Bob.", None]), score(answers[:1], ["I am Bob."])
    assert (found.exact, found.rouge_l, found.chrf) == (1.0, 1.0, alone.chrf)
    assert found.intervals["exact"] == alone.intervals["exact"]
    assert (found.answers, found.stopped, found.tokens) == (2, 1.0, 0.5)


def test_thoughts_are_not_compared_but_may_repeat() -> None:
    loop = "the moon is full and the sea is high " * 2
    found = score([Answer(f"<think>\n{loop}\n</think>\n\nAt noon.", (1,), stopped=True)], ["At noon."])
    assert (found.exact, found.rouge_l, found.repeating) == (1.0, 1.0, 1.0)


def test_without_sacrebleu_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(MissingExtraError, match=r"weitune\[eval\]"):
        corpus_scores(["a"], ["b"])
